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
    from lookalike.stages.evaluate import evaluate
    from lookalike.stages.export import export
    from lookalike.stages.finetune import finetune
    from lookalike.stages.pretrain import pretrain
    from lookalike.stages.probe import probe

__all__ = [
    "Backbone",
    "Error",
    "evaluate",
    "export",
    "finetune",
    "load_backbone",
    "load_model",
    "load_recipe",
    "pretrain",
    "probe",
    "run",
]

_ROOMS = {
    "Backbone": "models",
    "Error": "errors",
    "evaluate": "stages.evaluate",
    "export": "stages.export",
    "finetune": "stages.finetune",
    "load_backbone": "models",
    "load_model": "models.embedding",
    "load_recipe": "experiment",
    "pretrain": "stages.pretrain",
    "probe": "stages.probe",
    "run": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"lookalike.{_ROOMS[name]}"), name)


def __dir__() -> list[str]:
    return __all__
