"""Pure functions do not write into their arguments: every public one of scoring, metric and views,
bit for bit.

What is made to write says so in its docstring, and is listed here; a new function without an entry
is found out.
"""

import dataclasses
import importlib
import inspect
import pkgutil
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_metric_learning.distances import LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.reducers import MeanReducer
from torch import Tensor

import lookalike.metric
import lookalike.scoring
import lookalike.views
from lookalike.geometry import DISTANCES, Distance, PixelFormat
from lookalike.metric.estimators import ESTIMATORS
from lookalike.metric.estimators.csml import Rows
from lookalike.metric.memory import Memory
from lookalike.metric.pair_masks import Masks
from lookalike.metric.sampler import PKSampler
from lookalike.scoring.ivf import InvertedLists
from lookalike.scoring.linear import Linear
from lookalike.scoring.linear.rows import Moments
from lookalike.scoring.linear.rows import Rows as LinearRows
from lookalike.scoring.nearest import Gallery
from lookalike.scoring.quality import Spectrum
from lookalike.scoring.ranks import PerQuery, rank_positions
from lookalike.scoring.scarce import Standard
from lookalike.scoring.segheads import Heads
from lookalike.scoring.similarity import Bank, nearness_to
from lookalike.scoring.topk import topk
from lookalike.scoring.verification import roc
from lookalike.views import Asymmetric, MultiCrop, Symmetric
from lookalike.views.device import Part
from lookalike.views.form import ViewFormat
from lookalike.views.fused import flat

ROOMS = (lookalike.scoring, lookalike.metric, lookalike.views)
LABELS = torch.arange(12) % 3
CAMERAS = torch.arange(12) // 3 % 2
ONES = torch.ones(12, dtype=torch.bool)
SEVERAL = torch.arange(48).view(12, 4) % 3 == 0
SAME, APART = LABELS[:, None] == LABELS, LABELS[:, None] != LABELS
MASKS = Masks(SAME & ~torch.eye(12, dtype=torch.bool), APART, mirrored=True)
PLACES, RELEVANT = torch.tensor([[1, 3, 0], [2, 4, 6]]), torch.tensor([2, 3])
FORM = ViewFormat((8, 8), "bilinear", 2.0, (0.5,) * 3, (0.2,) * 3)
LAW = Symmetric(solarize=0.5, grey=0.5, blur=0.5, pad=2, randaugment=2, erase=0.5)
VIEW = {"size": 8, "mean": FORM.mean, "std": FORM.std, "seed": 0, "device": torch.device("cpu")}
DRAWS = LAW.draws(torch.arange(4), 0, 0, range(2), 16, 16)


def rows(dtype: torch.dtype, n: int = 12, width: int = 4, seed: int = 0) -> Tensor:
    return torch.rand(
        n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).to(dtype)


def images(dtype: torch.dtype) -> Tensor:
    return rows(dtype, 4, 3 * 16 * 16).view(4, 3, 16, 16)


def numbers(n: int = 12, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, width))


def distances(dtype: torch.dtype) -> Tensor:
    return torch.cdist(rows(dtype), rows(dtype, seed=1))


def reid(dtype: torch.dtype) -> tuple[Any, ...]:
    return rows(dtype), LABELS, CAMERAS, rows(dtype, seed=1), LABELS, CAMERAS


def gallery(dtype: torch.dtype, distance: Distance = "cosine") -> Gallery:
    return Gallery(*reid(dtype), torch.arange(12), distance)


def near() -> Tensor:
    return (torch.randn(12, 12, generator=torch.Generator().manual_seed(0)) * 100).int()


def places(row_B: Tensor) -> Tensor:
    return rank_positions(near()[row_B], SAME[row_B], torch.zeros_like(SAME)[row_B], 12)


def csml_rows() -> Rows:
    return Rows(torch.from_numpy(numbers()), torch.eye(3, dtype=torch.float64)[LABELS])


def chosen() -> dict[str, Tensor]:
    return flat(DRAWS, 3, FORM.sides)


def linear_rows(dtype: torch.dtype) -> list[LinearRows]:
    return [LinearRows(rows(dtype)), LinearRows(rows(dtype, 24), torch.arange(0, 24, 2))]


def moments() -> Moments:
    return Moments(DOUBLE[0], DOUBLE[1] + 1, 1 / (DOUBLE[1] + 1), 4.0)


def linear(dtype: torch.dtype) -> Linear:
    return Linear(rows(dtype, 3), rows(dtype)[0, :3], rows(dtype)[1], rows(dtype)[2] + 1, True)


def heads() -> Heads:
    return Heads(*(rows(torch.float64, 2 * 3, 4, seed).view(2, 3, 4) for seed in range(3)))


DOUBLE = rows(torch.float64)
VIEWED = rows(torch.float64, 24, 3).view(12, 2, 3)
STANDARD = Standard(DOUBLE[0], DOUBLE[1] + 1)
SPECTRUM = Spectrum(DOUBLE[:, 0].sort(descending=True)[0], DOUBLE[:, 1].sort(descending=True)[0])
CLASSES = torch.arange(4 * 8 * 8).view(4, 8, 8) % 4 - 1
VALUES = {"a": torch.arange(12).double(), "b": torch.arange(12).float()}
Y = LABELS.numpy()
# Of each function the arguments of its calls, for a floating type.
CALLS: dict[str, Any] = {
    "scoring.bootstrap.intervals": lambda t: [(VALUES,), (VALUES, LABELS)],
    "scoring.blocks.taken": lambda t: [(rows(t), LABELS), (rows(t), slice(2, 5))],
    "scoring.blocks.hit": lambda t: [(rows(t), LABELS)],
    "scoring.blocks.shares": lambda t: [(rows(t)[0, :2], 9, 7)],
    "scoring.breakdown.checked": lambda t: [(VALUES, LABELS)],
    "scoring.breakdown.by_group": lambda t: [(VALUES, LABELS)],
    "scoring.breakdown.macro": lambda t: [(VALUES, LABELS)],
    "scoring.ivf.nearest_in_lists": lambda t: [
        (
            rows(t, 3),
            rows(t),
            2,
            InvertedLists(rows(torch.float32, 2), torch.arange(12), torch.tensor([0, 6, 12])),
        )
    ],
    "scoring.calibration.best_temperature": lambda t: [(rows(t), LABELS), (rows(t), SEVERAL)],
    "scoring.calibration.calibration": lambda t: [(rows(t), LABELS), (rows(t), SEVERAL, 2.0)],
    "scoring.classification.average_precision": lambda t: [(rows(t), SEVERAL)],
    "scoring.classification.blocks": lambda t: [(rows(t),)],
    "scoring.classification.confusion": lambda t: [(LABELS, LABELS.flip(0), 3)],
    "scoring.classification.per_class": lambda t: [(LABELS, LABELS.flip(0), 3)],
    "scoring.classification.predictions": lambda t: [(rows(t),)],
    "scoring.classification.right": lambda t: [(rows(t), LABELS)],
    "scoring.classification.several_labels": lambda t: [(rows(t), SEVERAL)],
    "scoring.clustering.nmi": lambda t: [
        (rows(t), LABELS),
        {"distance": "euclidean", "of": (rows(t), LABELS)},
    ],
    "scoring.rows.check": lambda t: [(rows(t), "train", LABELS)],
    "scoring.rows.same_width": lambda t: [(rows(t), rows(t))],
    "scoring.rows.check_shape": lambda t: [(rows(t), "train")],
    "scoring.rows.blocks": lambda t: [(rows(t), 9)],
    "scoring.rows.split": lambda t: [(LABELS, 5)],
    "scoring.knn.dense": lambda t: [(LABELS, LABELS + 1)],
    "scoring.knn.rank": lambda t: [(rows(t, 12, 3), LABELS)],
    "scoring.knn.hits": lambda t: [(LABELS, 3)],
    "scoring.knn.votes": lambda t: [
        (rows(t), LABELS, rows(t, seed=1)),
        (rows(t), LABELS.int(), rows(t)),
    ],
    "scoring.knn.predict": lambda t: [(rows(t), LABELS, rows(t, seed=1))],
    "scoring.knn.accuracy": lambda t: [(rows(t), LABELS, rows(t, seed=1), LABELS)],
    "scoring.knn.accuracies": lambda t: [
        (rows(t), LABELS, rows(t, seed=1), LABELS, {"ks": (1, 5)})
    ],
    "scoring.linear.sweep.fit": lambda t: [
        (rows(t), LABELS, 0.1, {"classes": 3}),
        (rows(t), LABELS, 0.1, {"classes": 3, "start": linear(t)}),
    ],
    "scoring.linear.sweep.split": lambda t: [(LABELS, 0.3, 0)],
    **{
        f"scoring.linear.sweep.{name}": lambda t: [
            (rows(t), LABELS, rows(t, seed=1), LABELS, {"grid": (0.1, 1.0)})
        ]
        for name in ("probe", "chosen")
    },
    "scoring.linear.kept.digest": lambda t: [(rows(t), LABELS, ("a", 1))],
    "scoring.linear.lbfgs.direction": lambda t: [
        (DOUBLE, [(DOUBLE + 1, DOUBLE + 2), (DOUBLE + 3, DOUBLE + 1)])
    ],
    "scoring.linear.lbfgs.minimise": lambda t: [
        (lambda z: (float(z.square().sum()), 2 * z), DOUBLE, (1.0, 2 * DOUBLE), 9, 1e-6)
    ],
    "scoring.linear.problem.problem": lambda t: [(each, LABELS, 3) for each in linear_rows(t)],
    "scoring.linear.problem.places": lambda t: [(linear(t), r, LABELS) for r in linear_rows(t)],
    "scoring.linear.rows.from_first": lambda t: [(lambda: rows(t, seed=1), rows(t))],
    "scoring.linear.rows.moments": lambda t: [(each,) for each in linear_rows(t)],
    "scoring.linear.rows.refuse": lambda t: [(rows(t), "train", LABELS)],
    "scoring.linear.turn.columns": lambda t: [(r, moments(), range(1, 3)) for r in linear_rows(t)],
    "scoring.linear.turn.parts": lambda t: [(each,) for each in linear_rows(t)],
    "scoring.linear.turn.turned": lambda t: [
        *((each, moments(), 3) for each in linear_rows(t)),
        (LinearRows(rows(t, 3)), moments(), 3),
    ],
    "scoring.nearest.kinds": lambda t: [(gallery(t), torch.arange(5), LABELS[:10].view(5, 2))],
    "scoring.nearest.nearest": lambda t: [
        (gallery(t), torch.arange(5), 3),
        (gallery(t, "euclidean"), torch.arange(5), 3),
    ],
    "scoring.patches.groups": lambda t: [(images(t)[..., :4, :4], 2, 0)],
    "scoring.prototype.accuracy": lambda t: [
        (rows(t), LABELS, rows(t, seed=1), LABELS, {"by": by}) for by in ("cosine", "euclidean")
    ],
    "scoring.prototype.means": lambda t: [
        (rows(t), LABELS - 1, 3, {"by": by}) for by in ("cosine", "euclidean")
    ],
    "scoring.prototype.scores": lambda t: [
        (rows(t), rows(t, 3), {"by": by}) for by in ("cosine", "euclidean")
    ],
    "scoring.quality.alignment": lambda t: [(VIEWED.to(t),)],
    "scoring.quality.alpha_req": lambda t: [(SPECTRUM,)],
    "scoring.quality.effective_rank": lambda t: [(rows(t)[:, 0],)],
    "scoring.quality.lidar": lambda t: [(VIEWED.to(t),)],
    "scoring.quality.rankme": lambda t: [(SPECTRUM,)],
    "scoring.quality.spectrum": lambda t: [(rows(t),), (rows(t, 3),)],
    "scoring.quality.uniformity": lambda t: [(rows(t),)],
    "scoring.scarce.accuracy": lambda t: [
        (rows(t), LABELS, torch.arange(6), rows(t, seed=1), LABELS, STANDARD, (0.1, 1.0))
    ],
    **{
        f"scoring.scarce.{name}": lambda t: [
            (DOUBLE, LABELS, 3, (0.1, 1.0)),
            (rows(torch.float64, 6, 8), LABELS[:6], 3, (0.1, 1.0)),
        ]
        for name in ("chosen", "fit")
    },
    "scoring.scarce.folds": lambda t: [(LABELS,)],
    "scoring.scarce.standard": lambda t: [(rows(t),)],
    "scoring.segheads.gradients": lambda t: [(heads(), images(torch.float32), CLASSES)],
    "scoring.segheads.known_pixels": lambda t: [(CLASSES,)],
    "scoring.segheads.pieces": lambda t: [(images(t), CLASSES, 3)],
    "scoring.segheads.predicted": lambda t: [(heads(), 1, images(torch.float32), (8, 8))],
    "scoring.segmentation.confusion": lambda t: [(CLASSES.clamp(min=0), CLASSES.clamp(min=0), 3)],
    "scoring.segmentation.overlap": lambda t: [(torch.arange(9).view(3, 3),)],
    "scoring.segmentation.pixel_logits": lambda t: [
        (images(t), rows(t, 2, 3), rows(t)[0, :2], (20, 20))
    ],
    "scoring.segmentation.pixel_loss": lambda t: [
        (images(t)[..., :8, :8], CLASSES.clamp(min=0, max=2))
    ],
    "scoring.similarity.frame": lambda t: [(rows(t), d) for d in DISTANCES],
    "scoring.similarity.refuse_widths": lambda t: [(rows(t), rows(t))],
    "scoring.similarity.refuse_numberless": lambda t: [(rows(t), 0, "gallery")],
    "scoring.similarity.points": lambda t: [
        (x, y, distance)
        for distance in DISTANCES
        for x, y in ((rows(t), rows(t, seed=1)), 2 * (rows(t),), (rows(t).double(), rows(t)))
    ],
    "scoring.similarity.nearness": lambda t: [
        (rows(t), rows(t, seed=1), True),
        (rows(t), rows(t, seed=1), False),
    ],
    "scoring.similarity.squares": lambda t: [(rows(t), rows(t, seed=1))],
    "scoring.similarity.of_distances": lambda t: [(distances(t),)],
    **{
        f"scoring.{name}": lambda t: [(rows(t, 3), rows(t), d) for d in DISTANCES]
        for name in ("topk.topk", "similarity.nearness_to")
    },
    "scoring.ranks.evaluate_queries": lambda t: [
        (places, lambda place_BR, relevant_B: {"a": place_BR[:, 0] / relevant_B}, SAME.sum(1), 5)
    ],
    "scoring.ranks.padded": lambda t: [(LABELS, torch.arange(12) // 4, 3, 4, 0)],
    "scoring.ranks.count_twins": lambda t: [(LABELS, LABELS)],
    "scoring.ranks.summary": lambda t: [(PerQuery(torch.arange(12), VALUES, 0),)],
    "scoring.ranks.rank_positions": lambda t: [
        (near(), SAME, torch.zeros_like(SAME), width) for width in (4, 40)
    ],
    "scoring.ranks.found_within": lambda t: [(PLACES, 2)],
    "scoring.ranks.r_precision": lambda t: [(PLACES, RELEVANT)],
    "scoring.ranks.average_precision": lambda t: [(PLACES, RELEVANT)],
    "scoring.ranks.map_at_r": lambda t: [(PLACES, RELEVANT)],
    "scoring.ranks.trapezoid_precision": lambda t: [(PLACES, RELEVANT)],
    "scoring.ranks.inverse_penalty": lambda t: [(PLACES, RELEVANT)],
    "scoring.reidentification.each": lambda t: [
        reid(t),
        (*reid(t), {"distance": "euclidean", "ap": "trapezoid"}),
    ],
    "scoring.reidentification.each_of_distances": lambda t: [
        (distances(t), LABELS, CAMERAS, LABELS, CAMERAS)
    ],
    "scoring.reidentification.scores": lambda t: [reid(t)],
    "scoring.reidentification.pooled": lambda t: [
        reid(t)[:3],
        (*reid(t)[:3], {"distance": "euclidean"}),
    ],
    "scoring.reidentification.relevant_and_junk": lambda t: [(LABELS, CAMERAS, LABELS, CAMERAS)],
    "scoring.rerank.distances": lambda t: [
        (rows(t), rows(t, seed=1), {"distance": n}) for n in DISTANCES
    ],
    "scoring.retrieval.each": lambda t: [
        (rows(t), LABELS),
        (rows(t), LABELS, rows(t, seed=1), LABELS),
    ],
    "scoring.retrieval.scores": lambda t: [(rows(t), LABELS, {"distance": "euclidean"})],
    "scoring.retrieval.relevant": lambda t: [(LABELS, LABELS, torch.arange(12))],
    "scoring.search.nearest": lambda t: [
        (rows(t, 3), rows(t), 2, {"distance": n}) for n in DISTANCES
    ],
    "scoring.verification.similarity": lambda t: [
        (rows(t), torch.arange(12).view(6, 2), {"distance": n}) for n in DISTANCES
    ],
    "scoring.verification.roc": lambda t: [(rows(t)[:, 0], LABELS > 0)],
    **{
        f"scoring.verification.{name}": lambda t: [(roc(rows(t)[:, 0], LABELS > 0),)]
        for name in ("auc", "eer", "best_accuracy")
    },
    "scoring.verification.measurable": lambda t: [(0.5, 9)],
    "scoring.verification.tar_at_far": lambda t: [(roc(rows(t)[:, 0], LABELS > 0), 0.5)],
    "scoring.verification.threshold": lambda t: [(rows(t)[:, 0], LABELS > 0)],
    "scoring.verification.over_folds": lambda t: [(rows(t)[:, 0], LABELS > 0, CAMERAS)],
    "scoring.verification.scores": lambda t: [(rows(t)[:, 0], LABELS > 0, CAMERAS)],
    "metric.barlow_twins.correlation": lambda t: [(rows(t), rows(t, seed=1), SAME)],
    "metric.classes.first_unseen": lambda t: [(5, 0.5)],
    "metric.constellation.hard_negatives": lambda t: [(distances(t), APART, LABELS, 2)],
    "metric.constellation.random_negatives": lambda t: [(APART, LABELS, 2, 0)],
    "metric.constellation.constellation": lambda t: [(distances(t), rows(t), LABELS, LABELS + 3)],
    "metric.csml.csml": lambda t: [(distances(t), SAME, APART), (distances(t), SAME, APART, "sum")],
    "metric.estimators.csml.cosine_gap": lambda t: [
        (rows(t, 4, 4), rows(t), torch.eye(3, dtype=t)[LABELS])
    ],
    "metric.estimators.csml.csml_slope": lambda t: [(numbers(4), csml_rows(), 0.1, numbers(4))],
    "metric.estimators.csml.verification_error": lambda t: [
        ((numbers()[0], numbers()[1]), (numbers()[2], numbers()[3]))
    ],
    "metric.estimators.csml.best_threshold": lambda t: [(numbers()[:, 0], numbers()[:, 1])],
    "metric.estimators.csml.similarities": lambda t: [(numbers(4), csml_rows())],
    "metric.estimators.csml.deal": lambda t: [
        (Y, 3, np.random.RandomState(0), of) for of in ("rows", "classes")
    ],
    "metric.estimators.descent.minimise": lambda t: [
        (
            lambda w: (float((w * w).sum()), 2 * w),
            numbers(),
            {"max_iter": 50, "tol": 1e-9, "name": "x"},
        )
    ],
    "metric.estimators.itml.itml_matrix": lambda t: [
        (numbers(), np.where(Y > 0, 1.0, -1.0), np.ones(12), 1.0, {"max_iter": 5, "tol": 0.1})
    ],
    "metric.estimators.itml.draw_pairs": lambda t: [(Y, 9, np.random.RandomState(0))],
    "metric.estimators.lmnn.target_neighbours": lambda t: [(numbers(), Y, 2)],
    "metric.estimators.lmnn.lmnn_loss": lambda t: [
        (numbers(4), numbers(), Y, np.arange(24).reshape(12, 2) % 12, 0.5)
    ],
    "metric.estimators.mmc.mmc_spread": lambda t: [(numbers(), Y)],
    "metric.estimators.scatter.principal": lambda t: [(numbers(),)],
    "metric.estimators.scatter.within": lambda t: [(numbers(), Y, np.ones(3))],
    "metric.estimators.scatter.inverse_root": lambda t: [(np.cov(numbers().T), 0.1, "x")],
    "metric.estimators.scatter.chunks": lambda t: [(5,)],
    "metric.estimators.scatter.squared_distances": lambda t: [(numbers(), slice(0, 5))],
    "metric.hinges.triplet_hinges": lambda t: [
        (distances(t), MASKS.positive_BR, APART, 0.2, {"semihard": semihard})
        for semihard in (False, True)
    ],
    "metric.hinges.quadruplet_hinges": lambda t: [
        (distances(t), LABELS, LABELS, MASKS.positive_BR, APART, 0.2)
    ],
    "metric.n_pair.pairs": lambda t: [(LABELS,)],
    "metric.n_pair.n_pair": lambda t: [(distances(t), LABELS)],
    "metric.quadruplet.quadruplet_all": lambda t: [
        (distances(t), LABELS, LABELS, MASKS, (0.2, 0.1))
    ],
    "metric.quadruplet.hardest": lambda t: [(distances(t), LABELS, LABELS, MASKS)],
    "metric.quadruplet.adaptive_margins": lambda t: [(distances(t), MASKS)],
    "metric.sampler.spread": lambda t: [([3, 5, 1], 2, 0)],
    "metric.sentence.alike": lambda t: [(rows(t), rows(t, seed=1), rows(t, 2, 12))],
    "metric.pair_masks.masks": lambda t: [
        (None, LABELS, LABELS),
        ((LABELS, LABELS + 3, LABELS + 1), LABELS, LABELS),
    ],
    "metric.pair_masks.hinges": lambda t: [(None, LABELS, LABELS, distances(t), 0.2)],
    "metric.pair_masks.refuse_unknown": lambda t: [(LABELS, 3)],
    "metric.pair_masks.classes": lambda t: [(LABELS, LABELS + 1)],
    "metric.pair_masks.listed": lambda t: [
        (distances(t), SAME, "pos_pair", MeanReducer()),
        (rows(t)[:, 0], LABELS > 0, "element", MeanReducer(), (LABELS,)),
    ],
    "metric.pair_masks.reducer_of": lambda t: [(MeanReducer(), "loss")],
    "metric.sizes.seen": lambda t: [(rows(t),)],
    "metric.sizes.at_most": lambda t: [(LABELS.max(), 9)],
    "metric.pair_masks.dissimilarity": lambda t: [(LpDistance(), rows(t), rows(t, seed=1))],
    "metric.pair_masks.number": lambda t: [(rows(t).sum(),)],
    "views.make": lambda t: [
        (LAW, (images(t) * 255).to(torch.uint8), torch.arange(4), 0, VIEW),
        (LAW, [images(t).mul(255).to(torch.uint8)] * 2, torch.arange(4), 0, VIEW | {"size": 16}),
    ],
    "views.scale": lambda t: [
        ((images(t) * 255).to(torch.uint8),),
        (images(torch.float32), PixelFormat(3, "float32", (0.1, 0.6))),
    ],
    "views.taken": lambda t: [
        ((images(t) * 255).to(torch.uint8), PixelFormat(3)),
        ([images(torch.float32)] * 2, PixelFormat(3, "float32")),
    ],
    "views.normalise": lambda t: [(images(t), (0.5,) * 3, (0.2,) * 3)],
    "views.colour.coefficients": lambda t: [(rows(t), torch.arange(4).expand(12, 4), 3)],
    "views.colour.luma": lambda t: [(images(t),), (images(t)[:, :1],)],
    "views.colour.taps": lambda t: [(rows(t)[:, 0] + 0.1, 3)],
    "views.colour.kernel_radius": lambda t: [(2.0, 8)],
    "views.colour.blur": lambda t: [(images(t), rows(t, 4, 5))],
    "views.fused.make": lambda t: [
        (images(torch.float32), DRAWS, FORM),
        ((images(t) * 255).to(torch.uint8), DRAWS, FORM),
        ([(images(t) * 255).to(torch.uint8)[..., :8, :8] for _ in range(2)], DRAWS, FORM),
    ],
    "views.fused.make_several": lambda t: [
        ([(images(torch.float32), DRAWS, FORM), (images(t), DRAWS, FORM)],)
    ],
    "views.device.make": lambda t: [
        ([Part(images(t), flat(DRAWS, 3, FORM.sides), FORM)],),
        ([Part([images(t)[..., :8, :8]] * 2, flat(DRAWS, 3, FORM.sides), FORM)],),
    ],
    "views.device.by_torch": lambda t: [
        ([Part((images(t) * 255).to(torch.uint8), flat(DRAWS, 3, FORM.sides), FORM)],)
    ],
    "views.fused.cached": lambda t: [()],
    "views.fused.flat": lambda t: [(DRAWS, 3, FORM.sides)],
    "views.fused.erased_boxes": lambda t: [(DRAWS, FORM.sides)],
    "views.fused.channel_of": lambda t: [(rows(t).abs().clamp(max=1)[:, 0], 3)],
    "views.fused.in_unit": lambda t: [(images(t),), ((images(t) * 255).to(torch.uint8),)],
    "views.fused.hue_turns": lambda t: [(chosen(), 3)],
    "views.fused.groups": lambda t: [(chosen(), 3)],
    "views.fused.cut": lambda t: [
        ((images(t) * 255).to(torch.uint8), torch.arange(8), chosen(), FORM),
        (images(torch.float32), torch.arange(8), chosen(), FORM),
    ],
    "views.fused.channels_last": lambda t: [(images(t),)],
    "views.send.constant": lambda t: [((0.5, 0.25), torch.device("cpu"))],
    "views.send.send_all": lambda t: [([images(t), LABELS], torch.device("cpu"))],
    "views.send.send": lambda t: [(images(t), torch.device("cpu"))],
    "views.erasing.erase_boxes": lambda t: [(rows(t), rows(t) + 0.1, rows(t)[:, :2], (8, 9))],
    "views.mixing.boxes": lambda t: [(*rows(t)[:, :3].T.unbind(), 8, 9)],
    "views.randaugment.coefficients": lambda t: [(LABELS + 6, rows(t)[:, 0], 3)],
    "views.randaugment.matrices": lambda t: [(LABELS + 3, rows(t)[:, 0], (8, 9))],
    "views.randaugment.translations": lambda t: [(LABELS + 2, rows(t)[:, 0], (8, 9))],
    "views.randaugment.warp": lambda t: [
        (images(torch.float32), torch.rand(4, 2, 3), torch.rand(3, 1, 1))
    ],
    "views.randaugment.equalize": lambda t: [(images(t),)],
    "views.resample.between": lambda t: [(rows(t), 0.1, 0.9)],
    "views.resample.log_between": lambda t: [(rows(t), 0.1, 0.9)],
    "views.resample.below": lambda t: [(rows(t), LABELS[:, None] + 1)],
    "views.fused.graph": lambda t: [
        (images(torch.float32), chosen() | {"taps": rows(torch.float32, 8, 5)}, FORM, True)
    ],
    "views.resample.weights": lambda t: [(rows(t)[:, 0], rows(t)[:, 1] + 4, 16, 8, "bicubic")],
    "views.resample.crop_resize": lambda t: [
        (images(torch.float32), torch.tensor([[0, 0, 9, 9]] * 4), 8)
    ],
    "views.resample.crop_boxes": lambda t: [
        (*rows(t)[:, :4].T.unbind(), 16, 16, (0.1, 1.0), (0.75, 1.33))
    ],
    "views.resample.resize_crop": lambda t: [(images(torch.float32), 8)],
}
# Made to write; the words of its docstring, or of its room's, that say so.
WRITES = {
    "scoring.similarity.in_steps": "in place",
    "views.colour.blend": "All write into their argument",
    "views.colour.hue": "All write into their argument",
    "views.colour.drop": "All write into their argument",
    "views.colour.solarize": "All write into their argument",
    "views.fused.colours": "in place",
    "views.fused.moved": "in place",
    "views.fused.erased": "in place",
    "views.erasing.erase": "in place",
    "views.randaugment.augmented": "in place",
    "views.randaugment.translate": "in place",
    "views.randaugment.sharpness": "write into their argument",
    "views.randaugment.posterize": "write into their argument",
    "views.randaugment.solarize": "write into their argument",
    "views.randaugment.autocontrast": "write into their argument",
    "views.resample.shifted": "in place",
    "views.send.on_marked": "writes",
    "views.fused.put": "Writes images to their rows",
    "metric.estimators.scatter.add_gradient": "Adds to g",
}
# Neither tensors nor arrays go in, or a whole backbone; or it needs a package or a compiler that
# may not be there.
OTHERS = {
    "metric.classes.split_classes",
    "metric.classes.of_classes",
    "metric.fit_head.table",
    "metric.fit_head.build",
    "metric.fit_head.check",
    "metric.fit_head.folded",
    "metric.objectives.required",
    "metric.choices.every",
    "metric.choices.single",
    "metric.choices.table",
    "scoring.blocks.dealt",
    "scoring.blocks.zeros",
    "scoring.ivf.train_ivf",
    "scoring.linear.rows.rows_of_a_block",
    "scoring.quality.sample",
    "scoring.ranks.at_once",
    "scoring.rows.shared",
    "scoring.segheads.rate",
    "scoring.similarity.full_precision",
    "scoring.similarity.is_cosine",
    "views.device.by_kernels",
    "views.device.launch",
    "views.fused.make_compiled",
    "views.compiling.name",
    "views.compiling.source",
    "views.compiling.compiler",
    "views.compiling.seal",
    "views.compiling.whole",
    "views.compiling.build",
    "views.build.main",
    "views.native.loaded",
    "views.native.refuse",
    "views.native.found",
    "views.native.mark",
    "views.native.available",
    "views.native.make",
    "views.native.space",
    "views.native.views",
    "views.native.write",
    "views.fused.native_views",
}


def modules() -> Iterator[tuple[str, Any]]:
    for room in ROOMS:
        for name in (
            room.__name__,
            *(m.name for m in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")),
        ):
            if name != "lookalike.views.kernels":  # of Triton's alone
                yield name, importlib.import_module(name)


def functions() -> dict[str, Any]:
    found = {}
    for name, module in modules():
        for each, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == name and not each.startswith("_"):
                found[f"{name.removeprefix('lookalike.')}.{each}"] = value
    return found


FUNCTIONS = functions()
# Those that take a gallery with what is known of it, from its rows.
FUNCTIONS["scoring.topk.topk"] = lambda query_QD, x_ND, distance: topk(
    query_QD, Bank(x_ND, distance), 5
)
FUNCTIONS["scoring.similarity.nearness_to"] = lambda query_QD, x_ND, distance: nearness_to(
    Bank(x_ND, distance)
)(query_QD.double())


def leaves(value: Any) -> Iterator[Any]:
    """The tensors and arrays in arguments."""
    if isinstance(value, Tensor | np.ndarray):
        yield value
    elif isinstance(value, dict):
        yield from (leaf for each in value.values() for leaf in leaves(each))
    elif isinstance(value, list | tuple):
        yield from (leaf for each in value for leaf in leaves(each))
    elif dataclasses.is_dataclass(value):
        yield from leaves(vars(value))


def mapped(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(each, change) for key, each in value.items()}
    if isinstance(value, list | tuple):
        parts = [mapped(each, change) for each in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and any(True for _ in leaves(value)):
        fields = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{n: mapped(getattr(value, n), change) for n in fields})
    return value


def apart(x: Any) -> Any:
    """The same values with other numbers between them."""
    if isinstance(x, np.ndarray):
        wide = np.empty((*x.shape, 2), x.dtype)
        wide[..., 0], wide[..., 1] = x, 77
        return wide[..., 0]
    wide = x.new_full((*x.shape, 2), 77 if x.dtype != torch.bool else True)
    wide[..., 0] = x.detach()
    return wide[..., 0]


def asked(x: Any) -> Any:
    return x.clone().requires_grad_() if isinstance(x, Tensor) and x.is_floating_point() else x


def kept(x: Any) -> bytes:
    """The bytes of a tensor or an array and of all that lies between its values."""
    if isinstance(x, np.ndarray):
        return (
            (x if x.base is None else x.base).tobytes()
            if isinstance(x.base, np.ndarray | None)
            else x.tobytes()
        )
    return bytes(x.detach().untyped_storage().tolist())


def call(function: Any, given: Any) -> None:
    if isinstance(given, dict):
        given = (*given.pop("of"), given)
    arguments, words = (
        (given[:-1], given[-1]) if given and isinstance(given[-1], dict) else (given, {})
    )
    if words and not all(name in inspect.signature(function).parameters for name in words):
        arguments, words = given, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = function(*arguments, **words)
    if inspect.isgenerator(made):
        list(made)


def unwritten(function: Any, given: Any) -> None:
    """Calls it and holds its arguments against what they were, bit for bit, and against torch's
    count of writes.
    """
    held = list(leaves(given))
    before = [(kept(x), getattr(x, "_version", 0)) for x in held]
    call(function, given)
    for x, (data, version) in zip(held, before, strict=True):
        assert kept(x) == data
        assert getattr(x, "_version", 0) == version


def test_every_public_function_is_held_against_the_law():
    listed = [*CALLS, *WRITES, *OTHERS]
    assert len(listed) == len(set(listed))
    assert set(FUNCTIONS) == set(listed), "name the arguments of a new function in CALLS"
    assert len(FUNCTIONS) > 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", CALLS)
def test_a_pure_function_does_not_write_into_its_arguments(name, dtype):
    for change in (lambda x: x.copy() if isinstance(x, np.ndarray) else x.clone(), apart):
        for given in CALLS[name](dtype):
            unwritten(FUNCTIONS[name], mapped(given, change))


@pytest.mark.parametrize(
    "name", [name for name in CALLS if name.startswith("metric.") and "estimators" not in name]
)
def test_no_loss_writes_where_a_gradient_is_asked_for(name):
    for given in CALLS[name](torch.float64):
        unwritten(FUNCTIONS[name], mapped(given, asked))


@pytest.mark.parametrize("name", WRITES)
def test_what_is_made_to_write_says_so(name):
    said = f"{FUNCTIONS[name].__doc__} {inspect.getmodule(FUNCTIONS[name]).__doc__}"
    assert WRITES[name] in said


def losses() -> dict[str, Any]:
    found = {}
    for _, module in modules():
        for name, kind in vars(module).items():
            if (
                inspect.isclass(kind)
                and issubclass(kind, BaseMetricLossFunction)
                and kind.__module__ == module.__name__
            ):
                found[name] = kind
    return found


GIVEN = {"num_classes": 3, "embedding_size": 4, "dim": 4, "classes": 3}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("name", losses())
def test_a_loss_does_not_write_into_embeddings_and_labels(name, dtype):
    kind = losses()[name]
    needed = inspect.signature(kind).parameters
    loss = kind(**{key: value for key, value in GIVEN.items() if key in needed}).to(dtype)
    for change in (lambda x: x, apart, asked):
        x_BD, labels_B = mapped((rows(dtype), LABELS), change)
        unwritten(loss, (x_BD, labels_B))


def test_losses_are_found():
    assert len(losses()) >= 8


# A few iterations write what many would.
SHORT = {
    "csml": {"betas": (0.1,), "folds": 2, "rounds": 1, "max_iter": 20},
    "itml": {"max_iter": 20},
    "lmnn": {"max_iter": 20},
    "mmc": {"max_iter": 20},
    "nca": {"max_iter": 20},
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator_does_not_write_into_its_arrays(name, dtype):
    for change in (np.copy, apart, np.asfortranarray):
        x, y = change(numbers(30).astype(dtype)), change(np.arange(30) % 3)
        found = ESTIMATORS[name](**SHORT.get(name, {}))
        unwritten(found.fit, (x, y))
        unwritten(found.transform, (x,))


def test_samplers_and_memory_do_not_write_into_their_arguments():
    unwritten(lambda labels_N: list(PKSampler(labels_N, 2, 2)), (LABELS.clone(),))
    memory = Memory(20, 4)
    unwritten(memory.put, (rows(torch.float32), LABELS.clone()))


@pytest.mark.parametrize(
    "policy", [Symmetric(), Asymmetric(), MultiCrop()], ids=lambda policy: type(policy).__name__
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_views_do_not_write_into_the_canvas(policy, dtype):
    canvas = (images(torch.float32) * (255 if dtype == torch.uint8 else 1)).to(dtype)

    def views(canvas_BCHW, ids_B):
        return policy(canvas_BCHW, ids_B, size=8, seed=0, epoch=0, mean=(0.5,) * 3, std=(0.2,) * 3)

    unwritten(views, (canvas, torch.arange(4)))
    unwritten(views, (apart(canvas), torch.arange(4)))
