"""Self-supervised pretraining, probing, metric-learning fine-tuning and export of vision backbones.

Nothing heavy is imported until a name of the face is asked for, so that `lookalike --help` answers
at once.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lookalike.errors import Error
    from lookalike.experiment import load_recipe
    from lookalike.models import Backbone, load_backbone
    from lookalike.models.embedding import load_model
    from lookalike.pipeline import run
    from lookalike.stages.classify import classify
    from lookalike.stages.embed import embed
    from lookalike.stages.evaluate import evaluate
    from lookalike.stages.export import export
    from lookalike.stages.finetune import finetune
    from lookalike.stages.pretrain import pretrain
    from lookalike.stages.probe import probe
    from lookalike.stages.segment import segment

__all__ = [
    "Backbone",
    "Error",
    "classify",
    "embed",
    "evaluate",
    "export",
    "finetune",
    "load_backbone",
    "load_model",
    "load_recipe",
    "pretrain",
    "probe",
    "run",
    "segment",
]

_ROOMS = {
    "Backbone": "models",
    "Error": "errors",
    "classify": "stages.classify",
    "embed": "stages.embed",
    "evaluate": "stages.evaluate",
    "export": "stages.export",
    "finetune": "stages.finetune",
    "load_backbone": "models",
    "load_model": "models.embedding",
    "load_recipe": "experiment",
    "pretrain": "stages.pretrain",
    "probe": "stages.probe",
    "run": "pipeline",
    "segment": "stages.segment",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lookalike.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
