"""The trainings of a classifier: the main one, those with few labels, and the same from a network
that is untrained.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lookalike import rng
from lookalike.classification.targets import Targets
from lookalike.data.images import Images, subset
from lookalike.data.order import BalancedOrder, order_of
from lookalike.data.sources import stratified
from lookalike.errors import DataError, RecipeError
from lookalike.evaluation.draws import ALL
from lookalike.evaluation.few import Subset, listed, subsets
from lookalike.experiment import Classify
from lookalike.training import early, loop


@dataclass(frozen=True)
class Course:
    """One training: on which of the train images, from which weights. `name`: of how many labels,
    `draw`: which draw of them; the network is the backbone's, or `untrained`.
    """

    name: str
    draw: int
    targets: Targets
    settings: Classify
    seed: int
    untrained: bool = False

    @property
    def is_main(self) -> bool:
        """Whether its classifier is the one that is kept."""
        return self.name == ALL and not self.untrained

    @property
    def words(self) -> str:
        """What tells it from the others, for a line."""
        untrained = ", untrained" if self.untrained else ""
        return f"{self.name}, draw {self.draw}{untrained}"

    @property
    def folder(self) -> Path:
        """Where it lies, below the run folder."""
        root = Path("classify", "untrained") if self.untrained else Path("classify")
        return root if self.name == ALL else root / "few" / self.name / str(self.draw)


def divided(train: Targets, held_out: float) -> tuple[Targets, Targets]:
    """What is trained on, and the share of each class that is held out, by a fixed hash. Raises
    DataError where no class has two images to part.
    """
    if held_out == 0:
        return train, train.of(torch.empty(0, dtype=torch.int64))
    is_held_K = stratified(train.labels_K, held_out)
    if not bool(is_held_K.any()):
        raise DataError(
            f"classify.held_out: {held_out:g}, but no class has two images: set it to 0"
        )
    return train.of((~is_held_K).nonzero().flatten()), train.of(is_held_K.nonzero().flatten())


def few_of(
    settings: Classify, images: Images, train: Targets, seed: int
) -> list[tuple[Subset, Targets]]:
    """What is seen with few labels: draws from all of train, and the lists of the recipe."""
    if settings.few is None:
        return []
    place_N = torch.full((len(images),), -1)
    place_N[train.rows_K] = torch.arange(len(train))
    named = [one._replace(rows_K=place_N[one.rows_K]) for one in listed(settings.few, images)]
    drawn = [*subsets(settings.few, train.labels_K, seed), *named]
    return [(one, train.of(one.rows_K[one.rows_K >= 0])) for one in drawn]


def planned_courses(
    name: str, seed: int, settings: Classify, kept: Targets, few: list[tuple[Subset, Targets]]
) -> tuple[Course, ...]:
    """All trainings, the main one first."""
    courses = [Course(ALL, 0, kept, settings, seed)]
    for one, some in few:
        refuse_few(name, one.name, some)
        own = rng.seed(seed, "classify", one.name, one.draw)
        try:
            courses.append(Course(one.name, one.draw, some, with_few(settings, len(some)), own))
        except ValueError as error:
            raise RecipeError(f"{name}: classify.few_epochs: {error}") from error
    if settings.baseline == "untrained":
        courses += [replace(course, untrained=True) for course in courses]
    return tuple(courses)


def refuse_few(name: str, label: str, some: Targets) -> None:
    """Raises RecipeError for a name that is no folder's, DataError for labels that tell no two
    classes apart.
    """
    if label in (ALL, ".", ".."):
        raise RecipeError(f"{name}: classify.few.lists: {label!r}: take another name")
    if len(torch.unique(some.labels_K)) < 2:
        raise DataError(
            f"classify.few: {label}: its {len(some)} images are of fewer than two classes: name "
            "more"
        )


def with_few(settings: Classify, images: int) -> Classify:
    """The section for so few images: a batch that they fill, the largest power of two, where they
    do not fill its own. Raises ValueError where so few epochs do not fit its other keys.
    """
    epochs = settings.few_epochs or settings.epochs
    short: dict[str, Any] = {
        "epochs": epochs,
        "warmup_epochs": min(settings.warmup_epochs, epochs),
        "head_epochs": min(settings.head_epochs, epochs),
    }
    if images < settings.batch:
        short |= {"batch": 1 << (images.bit_length() - 1), "accumulate": 1}
    return replace(settings, **short)


def refuse_batch(name: str, course: Course, ranks: int) -> None:
    """Raises RecipeError unless every rank has an image of each batch, and whole pairs where pairs
    are mixed, and the engine takes it.
    """
    settings = course.settings
    micro = settings.batch // settings.accumulate
    of = "" if course.name == ALL else f" of {course.name}"
    if micro < ranks:
        raise RecipeError(
            f"{name}: classify.batch: {micro} images a micro-batch{of} for {ranks} ranks: raise "
            "it, or take fewer ranks: every rank needs one"
        )
    if settings.mixing and settings.batch % (2 * ranks * settings.accumulate):
        raise RecipeError(
            f"{name}: classify.mixing: pairs of images are mixed, but a batch of {settings.batch}"
            f"{of} does not divide by 2 × {ranks} ranks × accumulate {settings.accumulate}: change "
            "classify.batch"
        )
    loop.refuse_engine(name, "classify", settings, ranks)
    early.refuse_decode(name, "classify", settings)


def make_order(course: Course, images: Images) -> loop.Order:
    """The batches of a training. Raises DataError where there are fewer images than one."""
    settings, targets = course.settings, course.targets
    if settings.sampling == "balanced":
        return BalancedOrder(targets.labels_K, settings.batch, settings.accumulate, course.seed)
    some = chosen(images, targets)
    return order_of(some, settings.batch, settings.accumulate, course.seed)


def chosen(images: Images, targets: Targets) -> Images:
    """The images of the targets, in that order."""
    whole = len(targets) == len(images)
    return images if whole else subset(images, targets.rows_K)
