"""Multinomial logistic regression to its optimum, L2 chosen on a held-out part of train."""

from dataclasses import dataclass

from lookalike.evaluation.protocols.contract import Found, Subject
from lookalike.scoring import linear


@dataclass(frozen=True)
class Lbfgs:
    """Logistic regression on features standardised by train, fitted by L-BFGS to its optimum; the
    L2 of the probe's `grid` that is best on a held-out part of train, then fitted on all of train;
    test is scored once.
    """

    needs_model = False

    def score(self, subject: Subject) -> Found:
        """`linear/top1`, …"""
        train, test = subject.features
        numbers = subject.numbers
        found, head = linear.chosen(
            train.x_ND,
            train.labels_N,
            test.x_ND,
            test.labels_N,
            grid=numbers.grid,
            held_out=numbers.held_out,
            seed=numbers.seed,
            max_iterations=numbers.max_iterations,
            folder=subject.folder,
        )
        scores = {f"linear/{name}": v for name, v in found.items() if isinstance(v, float | int)}
        told = {
            "solver": "L-BFGS to the optimum",
            "l2": list(numbers.grid),
            "chosen on": f"{numbers.held_out:g} of each class of train",
        }
        return Found(scores, {"linear": told}, head)
