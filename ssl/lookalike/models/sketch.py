"""A backbone without memory: built on torch's meta device to see what it would hold, within what
its file holds.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lookalike.errors import BackboneError, printable
from lookalike.lean import leave_alone
from lookalike.models.backbone import Architecture, Backbone

# What a model computes when it is built, as positions and masks, beside its weights; and the
# parameters that it makes and replaces, as classifiers.
_BESIDE = 64 * 2**20
_REPLACED = 200
# The largest model of timm has 7 * 10^9 parameters.
_LARGEST, _MOST = 2**35, 20_000


class _Bound(TorchDispatchMode):
    """Stops the construction of a model at a tensor of more than `most` bytes, or beyond so many
    parameters.

    timm's constructors may wrap or hide what stops them: `passed` says what it was.
    """

    def __init__(self, most: int, parameters: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes, self.left, self.passed = most, parameters, ""

    @classmethod
    def of(cls, stored: Mapping[str, Tensor]) -> "_Bound":
        """What weights can explain."""
        return cls(_size(stored.values()) + _BESIDE, len(stored) + _REPLACED)

    def __enter__(self) -> "_Bound":
        self._handle = nn.modules.module.register_module_parameter_registration_hook(self._count)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        self._handle.remove()
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def _count(self, module: nn.Module, name: str, parameter: Tensor) -> None:
        self.left -= 1
        if self.left < 0:
            self._stop("more parameters")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _draws(func) and args[0].device.type == "meta":
            return args[0]  # numbers of nothing, for which torch would import its compiler
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage().nbytes() > self.bytes:
                self._stop("larger tensors")
        return made

    def _stop(self, what: str) -> None:
        self.passed = what
        raise MemoryError(what)


leave_alone(_Bound.__torch_dispatch__)


def _draws(func: Any) -> bool:
    """Whether an operator fills its first argument with random numbers."""
    return torch.Tag.nondeterministic_seeded in func.tags and func.__name__.split(".")[0][-1] == "_"


def sketch(
    architecture: Architecture,
    stored: Mapping[str, Tensor],
    path: Path,
    remedy: str = "export it again",
) -> Backbone:
    """The backbone on torch's meta device, its width known, for the weights in `path`: dtypes and
    shapes, no numbers. `remedy` ends a message.

    Where a model cannot be made there, it is made in memory, within the same bounds. The stream of
    random numbers stays where it was. Raises BackboneError where the model would hold more than the
    file does, or cannot be made.
    """
    where = f"{printable(path)}: the weights do not fit config.json, which asks for"
    refusal = (where, f"than they explain: {remedy}")
    return _anywhere(architecture, partial(_Bound.of, stored), refusal)


def refuse_large(architecture: Architecture, name: str) -> None:
    """Raises BackboneError where an architecture that `name` describes, with no weights to explain
    it, would hold more than any model of timm's.
    """
    refusal = (f"{printable(name)}: its config.json asks for", "than any model has: take another")
    drawn = _anywhere(architecture, partial(_Bound, _LARGEST, _MOST), refusal)
    if _size(drawn.parameters()) > _LARGEST:
        raise BackboneError(f"{refusal[0]} larger weights {refusal[1]}")


def plain_sketch(architecture: Architecture) -> Backbone:
    """The same of an architecture that is trusted."""
    return _anywhere(architecture, partial(_Bound, 2**62, 2**62), ("", ""))


def _anywhere(
    architecture: Architecture, bound: Callable[[], _Bound], refusal: tuple[str, str]
) -> Backbone:
    """On the meta device, or in memory where the model cannot be made there."""
    try:
        return _sketch(architecture, bound(), refusal, "meta")
    except BackboneError as error:
        if not _knows_no_meta(error.__cause__):
            raise
        return _sketch(architecture, bound(), refusal, "cpu")


def _knows_no_meta(error: BaseException | None) -> bool:
    return isinstance(error, NotImplementedError) or "meta" in str(error)


def _sketch(
    architecture: Architecture, bound: _Bound, refusal: tuple[str, str], device: str
) -> Backbone:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.device(device):
        warnings.simplefilter("ignore")  # the model itself will give them
        backbone = _within(bound, architecture, refusal)
        if device == "meta":
            _without_recurrence(backbone)
        backbone.dim = backbone.dry_run()
    return backbone


def _within(bound: _Bound, architecture: Architecture, refusal: tuple[str, str]) -> Backbone:
    """The backbone, its width not yet known. Raises BackboneError where it passes the bound, or
    cannot be made.
    """
    try:
        with bound:
            backbone = Backbone(architecture, dim=0)
    except BackboneError:
        if not bound.passed:
            raise
    if not bound.passed and _size(backbone.buffers()) > bound.bytes:
        bound.passed = "larger buffers"
    if bound.passed:
        raise BackboneError(f"{refusal[0]} {bound.passed} {refusal[1]}")
    return backbone


def _without_recurrence(backbone: Backbone) -> None:
    """Without memory torch would walk an LSTM step by step, for seconds; only the shape of what it
    gives is wanted.
    """
    for module in backbone.modules():
        if isinstance(module, nn.RNNBase):
            width = (module.proj_size or module.hidden_size) * (1 + module.bidirectional)
            module.forward = lambda x, hx=None, width=width: (x.new_empty(*x.shape[:-1], width), hx)


def _size(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
