"""Each trainable parameter in exactly one group, by what a module asks for its parameters."""

from collections.abc import Mapping, Set
from typing import Any, NamedTuple

from torch import nn

from lookalike.errors import RunError

Groups = list[dict[str, Any]]


class LrScale(NamedTuple):
    """How a parameter's rate differs from the recipe's: `scale` times that, and 0 before epoch
    `starts`.
    """

    scale: float = 1.0
    starts: float = 0.0


class ParameterHints:
    """A base for modules that want some of their parameters trained otherwise; names are relative
    to the module, as in `named_parameters`.
    """

    def lr_scales(self) -> Mapping[str, LrScale]:
        """Parameters whose rate differs from the recipe's."""
        return {}

    def constant_lr(self) -> Set[str]:
        """Parameters whose rate the schedule leaves alone."""
        return frozenset()

    def no_weight_decay(self) -> Set[str]:
        """Parameters that are spared weight decay, as vectors always are."""
        return frozenset()


def parameter_groups(module: nn.Module) -> Groups:
    """Trainable parameters as `weights` (matrices and kernels) and `biases and norms` (vectors, and
    whatever is spared weight decay); apart from both what ParameterHints give another rate.

    Raises RunError when nothing is trainable.
    """
    spared, constant, lr_scales = _hints(module)
    held: dict[tuple[bool, LrScale, bool], list[nn.Parameter]] = {}
    for p in module.parameters():
        if p.requires_grad:
            kind = (
                id(p) in constant,
                lr_scales.get(id(p), LrScale()),
                p.ndim <= 1 or id(p) in spared,
            )
            held.setdefault(kind, []).append(p)
    if not held:
        raise RunError(
            "optimizer: no parameter is trainable: unfreeze the backbone or give it a head"
        )
    return [
        {
            "name": _name(*kind),
            "params": held[kind],
            "vectors": kind[2],
            "constant": kind[0],
            **kind[1]._asdict(),
        }
        for kind in sorted(held)
    ]


def _name(constant: bool, lr_scale: LrScale, vectors: bool) -> str:
    scaled = f", rate × {lr_scale.scale:g}" if lr_scale.scale != 1 else ""
    waits = f", from epoch {lr_scale.starts:g}" if lr_scale.starts else ""
    return (
        ("biases and norms" if vectors else "weights")
        + (", constant rate" if constant else "")
        + scaled
        + waits
    )


def _hints(module: nn.Module) -> tuple[set[int], set[int], dict[int, LrScale]]:
    """By the id of the parameter: what is spared weight decay, whose rate is constant, and whose is
    scaled.
    """
    spared: set[str] = set()
    constant: set[str] = set()
    lr_scales: dict[str, LrScale] = {}
    for prefix, child in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        # By name, not by type: it is timm's convention, kept by models that know nothing of us.
        asked = getattr(child, "no_weight_decay", None)
        if callable(asked):
            spared |= {dot + name for name in asked()}
        if isinstance(child, ParameterHints):
            constant |= {dot + name for name in child.constant_lr()}
            lr_scales |= {dot + name: scale for name, scale in child.lr_scales().items()}
    named = list(module.named_parameters(remove_duplicate=False))
    return (
        {id(p) for name, p in named if name in spared},
        {id(p) for name, p in named if name in constant},
        {id(p): lr_scales[name] for name, p in named if name in lr_scales},
    )
