"""An estimator named in a recipe: learned on the features of a frozen backbone, folded into an
embedding's head.
"""

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lookalike import rng
from lookalike.errors import RecipeError, RunError
from lookalike.log import say
from lookalike.models import Backbone
from lookalike.models.embedding import Embedding
from lookalike.recipe import Choice, Spec


def table() -> Mapping[str, Any]:
    """ESTIMATORS, imported when a recipe asks: scikit-learn takes a second that nothing else here
    needs.
    """
    found: Mapping[str, Any] = importlib.import_module("lookalike.metric.estimators").ESTIMATORS
    return found


ESTIMATOR = Choice(table, supplied={"random_state"})


def build(estimator: Spec, seed: int) -> Any:
    """The estimator; one that draws does so by the seed."""
    drawn = rng.seed(seed, "finetune", "estimator") % 2**32
    return estimator.build(
        **({"random_state": drawn} if "random_state" in estimator.make().get_params() else {})
    )


def check(estimator: Spec, width: int, labels_N: Tensor, seed: int) -> None:
    """Raises RecipeError when the estimator cannot give what it is asked for, of so many features
    and rows of these classes, int64 (N,).
    """
    learner = build(estimator, seed)
    try:
        learner.refuse_labels(labels_N.numpy())
        learner.refuse(width, len(torch.unique(labels_N)))
    except ValueError as error:
        raise RecipeError(f"finetune.estimator: {estimator.name}: {error}") from error


def folded(
    backbone: Backbone, estimator: Spec, h_ND: Tensor, labels_N: Tensor, seed: int
) -> Embedding:
    """The backbone with the learned map as its head, in eval mode: on the unit sphere where
    nearness is the cosine.

    h_ND: (N, D) its features. The estimator gets them centred and divided by one number, the root
    of the mean of their variances, for margins and stopping rules that have a scale; the head takes
    both back. Raises RunError when the estimator refuses the features. Says what it warns of.
    """
    x_ND = h_ND.double()
    mean_D, scale = x_ND.mean(dim=0), x_ND.var(dim=0, correction=0).mean().sqrt().clamp_min(1e-30)
    learner = build(estimator, seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            learner.fit(((x_ND - mean_D) / scale).numpy(), labels_N.numpy())
        except ValueError as error:
            raise RunError(
                f"finetune.estimator: {estimator.name}: {' '.join(str(error).split())}"
            ) from error
    for text in dict.fromkeys(str(warning.message) for warning in caught):
        say(f"finetune.estimator: {text}")
    weight_PD = torch.from_numpy(learner.components_) / scale
    model = Embedding(backbone.cpu(), None, distance=learner.distance)
    model.fold(weight_PD, -weight_PD @ (mean_D + scale * torch.from_numpy(learner.mean_)))
    return model.eval()
