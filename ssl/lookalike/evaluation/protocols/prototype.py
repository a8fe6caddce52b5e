"""Nearest class mean of frozen features, by cosine and by Euclidean distance."""

from dataclasses import dataclass

from lookalike.evaluation.protocols.contract import Found, Subject
from lookalike.scoring import prototype


@dataclass(frozen=True)
class Prototype:
    """The nearest mean of a class, by cosine and by Euclidean distance: nothing is fitted or
    chosen.
    """

    needs_model = False

    def score(self, subject: Subject) -> Found:
        """`prototype/top1`, `prototype_euclidean/top1`, …"""
        train, test = subject.features
        sets = (train.x_ND, train.labels_N, test.x_ND, test.labels_N)
        scores = {
            f"{name}/{key}": value
            for name, by in NAMED.items()
            for key, value in prototype.accuracy(*sets, by=by).items()
        }
        told = {name: {"solver": f"nearest class mean, {by}"} for name, by in NAMED.items()}
        return Found(scores, told)


NAMED: dict[str, prototype.Nearness] = {
    "prototype": "cosine",
    "prototype_euclidean": "euclidean",
}
"""Under which name each way to be near is scored."""
