"""Everything that a classifier's logits on test are scored for, as plain data."""

from typing import Any, NamedTuple

from torch import Tensor

from lookalike.classification.targets import Targets
from lookalike.scoring import bootstrap
from lookalike.scoring.calibration import BINS, calibration
from lookalike.scoring.classification import per_class, predictions, right, several_labels


class Answers(NamedTuple):
    """Logits (N, C) of test images and what these show; how many images could not be read
    (`dropped`), and how many are of classes that train does not have (`unknown`).
    """

    logits_NC: Tensor
    targets: Targets
    dropped: int = 0
    unknown: int = 0


def scores_of(
    answers: Answers, classes: tuple[str, ...], temperature: float, level: float, seed: int
) -> dict[str, Any]:
    """Scores in 0 … 1 by name: `top1`, `top5` (of more than five classes), `balanced` (the mean of
    the classes' recalls), or with several labels `map`, `f1_micro`, `f1_macro`, `exact`; `ece`,
    `nll`, `brier` at the temperature; `intervals` at a level by resampled images, 0 for none;
    `per_class`.
    """
    logits_NC, targets = answers.logits_NC, answers.targets
    several = targets.several_KC is not None
    found, values = _of_several(answers) if several else _of_one(answers, classes)
    own = found.pop("per_class")
    before = calibration(logits_NC, targets.values)
    after = calibration(logits_NC, targets.values, temperature) if temperature != 1 else before
    found |= {**after, "temperature": temperature}
    if temperature != 1:
        found["uncalibrated"] = before
    if level:
        spans = bootstrap.intervals(values, level=level, seed=seed)
        found["intervals"] = {name: list(span) for name, span in spans.items()}
    counts = {"images": len(targets), "dropped": answers.dropped, "unknown": answers.unknown}
    return {**found, **counts, "bins": BINS, "per_class": {"class": list(classes), **own}}


def _of_one(answers: Answers, classes: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Where an image has one label: scores, and those that are means over images, image by
    image.
    """
    logits_NC, labels_N = answers.logits_NC, answers.targets.labels_K
    values = {
        f"top{k}": right_N
        for k, right_N in right(logits_NC, labels_N).items()
        if k == 1 or len(classes) > k
    }
    own = per_class(predictions(logits_NC), labels_N, len(classes))
    there = [r for r, n in zip(own["recall"], own["images"], strict=True) if n]
    means = {name: float(value_N.mean()) for name, value_N in values.items()}
    return {**means, "balanced": sum(there) / len(there), "per_class": own}, values


def _of_several(answers: Answers) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same where an image has any number of labels."""
    several_NC = answers.targets.several_KC
    assert several_NC is not None
    found = several_labels(answers.logits_NC, several_NC)
    return found, {"exact": found.pop("exact_N")}


def table(scores: dict[str, Any]) -> str:
    """The scores as lines for a person."""
    names = [n for n in ("top1", "top5", "balanced", "map", "f1_micro", "f1_macro") if n in scores]
    lines = [f"classify: {scores['images']} test images"]
    for name in names:
        low_high = scores.get("intervals", {}).get(name)
        span = f"  ({100 * low_high[0]:.2f} … {100 * low_high[1]:.2f})" if low_high else ""
        lines.append(f"{name:<20}{100 * scores[name]:>8.2f} %{span}")
    lines.append(
        f"{'calibration':<20}ECE {100 * scores['ece']:.2f} %, NLL {scores['nll']:.4f}, Brier "
        f"{scores['brier']:.4f} at temperature {scores['temperature']:.3g}"
    )
    for labels, group in scores.get("few", {}).items():
        name = "top1" if "top1" in group else "map"
        lines.append(f"{labels:<20}{_span(group[name])}")
        if "untrained" in group:
            lines.append(f"{'  untrained':<20}{_span(group['untrained'][name])}")
            lines.append(f"{'  difference':<20}{_span(group['difference'][name])}")
    return "\n".join(lines)


def _span(found: dict[str, Any]) -> str:
    interval = found.get("interval")
    some = f"  ({100 * interval[0]:.2f} … {100 * interval[1]:.2f})" if interval else ""
    return f"{100 * found['mean']:>8.2f} %{some}"
