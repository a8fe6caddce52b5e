"""What a set of embedded images can be asked: retrieval, re-identification or verification, and the
answers.

Pairs make it verification; cameras, and who asks and who is searched, make it re-identification;
labels are enough for retrieval.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from lookalike.data.images import Annotations, Images, QueryGallery
from lookalike.errors import DataError, Error, RecipeError
from lookalike.geometry import Distance
from lookalike.scoring import (
    bootstrap,
    breakdown,
    clustering,
    reidentification,
    rerank,
    retrieval,
    verification,
)
from lookalike.scoring.nearest import Gallery
from lookalike.scoring.ranks import PerQuery
from lookalike.scoring.reidentification import AP

Task = Literal["retrieval", "reidentification", "verification"]

FARS = (0.1, 0.01, 0.001)
"""Of these, the ones that enough different pairs can measure, where none are asked for."""

RERANKED, POOLED = "rerank/", "multi_query/"
"""Before the names of the scores of re-ranked lists and of pooled queries."""


class Reranking(NamedTuple):
    """Numbers of k-reciprocal re-ranking; `weight` is the paper's λ."""

    k1: int
    k2: int
    weight: float


@dataclass(frozen=True)
class Measures:
    """What to measure beside the task's own scores; without `whole_list` retrieval has no mAP."""

    ks: tuple[int, ...] = (1, 5, 10)
    ap: AP = "step"
    rerank: Reranking | None = None
    multi_query: bool = False
    fars: tuple[float, ...] | None = None
    level: float = 0.0
    breakdown: bool = True
    seed: int = 0
    whole_list: bool = True


class EmbeddedSet(NamedTuple):
    """N embedded images, what is `known` of them, and how they are compared."""

    x_ND: Tensor
    known: Annotations
    distance: Distance


class Results(TypedDict):
    """Scores in [0, 1] by name, counts, the protocol in words, intervals, and means by group."""

    scores: dict[str, float]
    counts: dict[str, int]
    protocol: dict[str, Any]
    intervals: dict[str, tuple[float, float]]
    groups: dict[str, dict[int, dict[str, float]]]


def task_of(images: Images, wanted: str = "auto") -> Task:
    """The task that the images are made for, or the one that is wanted.

    Raises RecipeError where a wanted one needs what is not known of them, DataError where not even
    labels are.
    """
    known = {
        "labels": images.labels is not None,
        "cameras": images.cameras is not None,
        "pairs": images.pairs is not None,
    }
    task: Task = "retrieval"
    if wanted != "auto":
        task = wanted  # type: ignore[assignment]
    elif known["pairs"]:
        task = "verification"
    elif known["cameras"] and images.roles is not None:
        task = "reidentification"
    remedies = {
        "labels": "use class folders or a manifest with labels, or leave evaluate out",
        "cameras": "add them (a manifest's column camera), or set evaluate.task=retrieval",
        "pairs": "take data that lists pairs, or another evaluate.task",
    }
    needs = {
        "retrieval": ["labels"],
        "reidentification": ["labels", "cameras"],
        "verification": ["pairs"],
    }
    for name in needs[task]:
        if not known[name] and name == "labels":
            raise DataError(
                f"data: evaluation needs labels, and these images have none: {remedies[name]}"
            )
        if not known[name]:
            raise RecipeError(
                f"evaluate.task: {task} needs {name}, which these images have not: {remedies[name]}"
            )
    return task


def query_and_gallery(
    rows: int, labels_N: Tensor | None, roles: QueryGallery | None, task: Task
) -> tuple[Tensor, Tensor]:
    """The rows that ask, int64 (Q,), and that are searched, (G,); without roles all do both.

    A label below 0 names no class: it never asks, and re-identification's -1 is not searched
    either. Raises DataError where nobody asks or nothing is searched.
    """
    everything_N = torch.ones(rows, dtype=torch.bool)
    query_N, gallery_N = (everything_N, everything_N) if roles is None else roles
    if labels_N is not None:
        query_N = query_N & (labels_N >= 0)
        gallery_N = (
            gallery_N & (labels_N != reidentification.SKIPPED)
            if task == "reidentification"
            else gallery_N
        )
    query_Q, gallery_G = query_N.nonzero()[:, 0], gallery_N.nonzero()[:, 0]
    for some, what in ((query_Q, "no image is a query"), (gallery_G, "the gallery is empty")):
        if not len(some):
            raise DataError(
                f"data: {what} among {rows} images: check the split and the roles in the data"
            )
    return query_Q, gallery_G


def gallery_of(scene: EmbeddedSet, task: Task) -> tuple[Gallery, Tensor, Tensor]:
    """Queries and gallery, and the rows of both, int64 (Q,) and (G,).

    Raises DataError as `query_and_gallery` does, and where no query has anything to find or to be
    mistaken for.
    """
    known = scene.known._replace(pairs=None)
    if task != "reidentification":
        known = known._replace(cameras=None)
    query_Q, gallery_G = query_and_gallery(len(scene.x_ND), known.labels, known.roles, task)
    asking, searched = known.of(query_Q), known.of(gallery_G)
    assert asking.labels is not None
    assert searched.labels is not None
    place_N = torch.full((len(scene.x_ND),), -1)
    place_N[gallery_G] = torch.arange(len(gallery_G))
    gallery_GD = scene.x_ND[gallery_G]
    sets = Gallery(
        gallery_GD if torch.equal(query_Q, gallery_G) else scene.x_ND[query_Q],
        asking.labels,
        asking.cameras,
        gallery_GD,
        searched.labels,
        searched.cameras,
        place_N[query_Q],
        scene.distance,
    )
    refuse_hopeless(sets)
    return sets, query_Q, gallery_G


def refuse_unanswerable(images: Images, task: Task) -> None:
    """Raises, before there are embeddings, what the task would raise for these images."""
    if task == "verification":
        refuse_one_kind(images)
        return
    if task == "reidentification":
        refuse_unknown_cameras(images)
    gallery_of(EmbeddedSet(torch.zeros(len(images), 1), images.annotations, "cosine"), task)


def refuse_one_kind(images: Images) -> None:
    """Raises DataError for pairs that are all of the same one, or all of different ones."""
    assert images.pairs is not None
    same = int(images.pairs.same_P.sum())
    if same in (0, len(images.pairs.same_P)):
        what = "different ones" if same == 0 else "the same one"
        raise DataError(
            f"data: all {len(images.pairs.same_P)} pairs are of {what}, and verification tells the "
            "two kinds apart: list pairs of both, or take another evaluate.task"
        )


def refuse_unknown_cameras(images: Images) -> None:
    """Raises DataError where the camera of a query, or of the gallery, is a number below 0."""
    assert images.cameras is not None
    asked = query_and_gallery(len(images), images.labels, images.roles, "reidentification")
    unknown = int((images.cameras[torch.unique(torch.cat(asked))] < 0).sum())
    if unknown:
        raise DataError(
            f"data: {unknown} of {len(images)} images name no camera, and re-identification leaves "
            "out those of a query's own: name all, or set evaluate.task=retrieval"
        )


def refuse_fars(images: Images, fars: tuple[float, ...] | None) -> None:
    """Raises RecipeError for a FAR that so few different pairs cannot measure."""
    different = 0 if images.pairs is None else int((~images.pairs.same_P).sum())
    for far in fars or ():
        if different and not verification.measurable(far, different):
            least = f"from 1/{different} = {1 / different:.3g} on"
            raise RecipeError(
                f"evaluate.fars: {far:g}, but {different} different pairs can measure one {least}: "
                "change it"
            )


def refuse_hopeless(sets: Gallery) -> None:
    """Raises DataError where no query has anything to find, or nothing could be mistaken for it."""
    if len(torch.unique(torch.cat([sets.labels_Q, sets.labels_N]))) < 2:
        raise DataError(
            "data: all images are of one class, so every answer is right: give two or more classes"
        )
    if not bool(relevant(sets).any()):
        where = (
            "of another camera in the gallery" if sets.cameras_Q is not None else "in the gallery"
        )
        raise DataError(
            f"data: none of {len(sets.labels_Q)} queries has another image of its class {where}: "
            "give two or more of "
            "a class to the images that are scored, or score more of them (test_fraction, held_out)"
        )


def relevant(sets: Gallery) -> Tensor:
    """How many items of the gallery each query should find, int64 (Q,)."""
    if sets.cameras_Q is None or sets.cameras_N is None:
        return retrieval.relevant(sets.labels_Q, sets.labels_N, sets.own_Q)
    return reidentification.relevant_and_junk(
        sets.labels_Q, sets.cameras_Q, sets.labels_N, sets.cameras_N
    )[0]


def junk(sets: Gallery) -> Tensor:
    """How many items of the gallery are of each query's own class and camera, int64 (Q,)."""
    if sets.cameras_Q is None or sets.cameras_N is None:
        return torch.zeros_like(sets.labels_Q)
    return reidentification.relevant_and_junk(
        sets.labels_Q, sets.cameras_Q, sets.labels_N, sets.cameras_N
    )[1]


def ranked(sets: Gallery, task: Task, asked: Measures) -> tuple[Results, PerQuery]:
    """Retrieval's or re-identification's answers, and the measures of single queries."""
    if task == "retrieval":
        found = retrieval.each(
            sets.query_QD,
            sets.labels_Q,
            sets.gallery_ND,
            sets.labels_N,
            own_N=sets.own_Q,
            ks=asked.ks,
            distance=sets.distance,
            whole=asked.whole_list,
        )
        variants = {"": (found, sets.labels_Q)}
    else:
        variants = _reidentified(sets, asked)
        found = variants[""][0]
    scores: dict[str, float] = {}
    intervals: dict[str, tuple[float, float]] = {}
    for prefix, (each, labels_Q) in variants.items():
        scores |= {
            f"{prefix}{name}": float(value_Q.mean()) for name, value_Q in each.values.items()
        }
        if asked.level:
            ends = bootstrap.intervals(
                each.values, labels_Q[each.row_Q], level=asked.level, seed=asked.seed
            )
            intervals |= {f"{prefix}{name}": pair for name, pair in ends.items()}
    protocol: dict[str, Any] = {"nearness": sets.distance, "ties": "pessimistic"}
    if task == "reidentification":
        protocol |= {"ap": asked.ap, "junk": "same class and camera, left out"}
        protocol |= {"rerank": asked.rerank._asdict()} if asked.rerank else {}
    else:
        protocol |= {"ap": "step", "own image": "left out"}
    counts = {
        "queries": len(found.row_Q),
        "dropped": found.dropped,
        "gallery": len(sets.labels_N),
        "classes": len(torch.unique(sets.labels_Q)),
    }
    counts |= {"junk": int(junk(sets).sum())} if task == "reidentification" else {}
    groups = {}
    if asked.breakdown:
        groups["class"] = breakdown.by_group(found.values, sets.labels_Q[found.row_Q])
        if sets.cameras_Q is not None:
            groups["camera"] = breakdown.by_group(found.values, sets.cameras_Q[found.row_Q])
    return Results(
        scores=scores, counts=counts, protocol=protocol, intervals=intervals, groups=groups
    ), found


def _reidentified(sets: Gallery, asked: Measures) -> dict[str, tuple[PerQuery, Tensor]]:
    """By prefix: the measures of single queries, and the classes of all."""
    searched = (sets.gallery_ND, sets.labels_N, sets.cameras_N)
    how: dict[str, Any] = {"ks": asked.ks, "ap": asked.ap}
    each = reidentification.each(
        sets.query_QD, sets.labels_Q, sets.cameras_Q, *searched, **how, distance=sets.distance
    )
    found = {"": (each, sets.labels_Q)}
    if asked.multi_query:
        some_PD, labels_P, cameras_P = reidentification.pooled(
            sets.query_QD, sets.labels_Q, sets.cameras_Q, distance=sets.distance
        )
        each = reidentification.each(
            some_PD, labels_P, cameras_P, *searched, **how, distance=sets.distance
        )
        found[POOLED] = each, labels_P
    if asked.rerank:
        distance_QN = rerank.distances(
            sets.query_QD, sets.gallery_ND, **asked.rerank._asdict(), distance=sets.distance
        )
        each = reidentification.each_of_distances(
            distance_QN, sets.labels_Q, sets.cameras_Q, sets.labels_N, sets.cameras_N, **how
        )
        found[RERANKED] = each, sets.labels_Q
    return found


def compared(scene: EmbeddedSet, asked: Measures) -> tuple[Results, Tensor, Tensor]:
    """Verification's answers, the similarity of each pair and the threshold that judges it, float64
    (P,) both.

    With folds the threshold of a pair comes from the other folds. Raises Error as
    `verification.scores` does.
    """
    assert scene.known.pairs is not None
    rows_P2, same_P, folds_P = scene.known.pairs
    near_P = verification.similarity(scene.x_ND, rows_P2, distance=scene.distance)
    different = int((~same_P).sum())
    fars = asked.fars
    if fars is None:
        fars = tuple(far for far in FARS if verification.measurable(far, different))
    folded = len(torch.unique(folds_P)) > 1
    folds = verification.over_folds(near_P, same_P, folds_P) if folded else None
    scores = verification.scores(near_P, same_P, fars=fars) | (folds.scores() if folds else {})
    protocol = {
        "nearness": scene.distance,
        "threshold": "of the other folds" if folded else "of these pairs",
    }
    groups: dict[str, dict[int, dict[str, float]]] = {}
    if folds:
        names_F, fold_P = torch.unique(folds_P, return_inverse=True)
        threshold_P = folds.threshold_F[fold_P]
        if asked.breakdown:
            size_F = torch.bincount(fold_P).tolist()
            each = zip(names_F.tolist(), folds.accuracy_F.tolist(), size_F, strict=True)
            groups["fold"] = {
                fold: {"accuracy": accuracy, "pairs": size} for fold, accuracy, size in each
            }
    else:
        threshold_P = torch.full_like(near_P, verification.threshold(near_P, same_P))
    counts = {"pairs": len(same_P), "same": len(same_P) - different, "different": different}
    counts |= {"folds": len(torch.unique(folds_P))}
    answers = Results(scores=scores, counts=counts, protocol=protocol, intervals={}, groups=groups)
    return answers, near_P, threshold_P


def clusters(scene: EmbeddedSet, seed: int) -> float:
    """NMI of all the images. Raises DataError without labels."""
    if scene.known.labels is None:
        raise DataError("evaluate.nmi: needs labels, which these images have not: remove it")
    return clustering.nmi(scene.x_ND, scene.known.labels, distance=scene.distance, seed=seed)


def refuse_numberless(x_ND: Tensor, name: str) -> None:
    """Raises Error, with the model's name, where embeddings are NaN or Inf."""
    bad = int((~x_ND.isfinite().all(1)).sum())
    if bad:
        raise Error(
            f"{name}: NaN or Inf in {bad} of {len(x_ND)} embeddings: check the weights and the "
            "precision"
        )
