"""Imports that leave out what nobody asked for: torch's compiler, which takes as long to import as
torch itself and serves `compile` only, and what a library imports for a function that nobody calls.

torchvision asks `torch._dynamo` for one function, timm marks functions by `torch.compiler.disable`,
both at their import; torch's optimizers ask it at their construction, to keep it away. Here they
get what asks the compiler at its first call, as torch's own `_disable_dynamo` does.
"""

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

import torch
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

_COMPILER, _ASKED = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def without_compiler() -> Iterator[None]:
    """torchvision and timm are imported in it without the compiler, where that is not there yet."""
    if _COMPILER in sys.modules:
        yield
        return
    stand_in = _StandIn()
    stand_in.begin()
    try:
        yield
    finally:
        stand_in.end()


@contextmanager
def without(name: str) -> Iterator[None]:
    """`import package.module` is believed in it, not done, where that is not there yet: for a
    package that imports its modules itself once they are asked for, as SciPy does.
    """
    if name in sys.modules:
        yield
        return
    stand_in = ModuleType(name)

    def end() -> None:
        if sys.modules.get(name) is stand_in:
            del sys.modules[name]

    def asked(attribute: str) -> Any:
        end()
        return getattr(importlib.import_module(name), attribute)

    stand_in.__dict__["__getattr__"] = asked
    sys.modules[name] = stand_in
    try:
        yield
    finally:
        end()


class _StandIn(MetaPathFinder):
    """Stands for the compiler until somebody asks for the compiler itself, or all is imported."""

    def __init__(self) -> None:
        self.module = ModuleType(_ASKED)
        self.module.__dict__["is_compile_supported"] = _is_compile_supported
        self.disable = torch.compiler.disable

    def begin(self) -> None:
        """From here on."""
        sys.meta_path.insert(0, self)
        sys.modules[_ASKED] = self.module
        torch.compiler.disable = _disable

    def end(self) -> None:
        """All is as it was; asked twice, nothing."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
            del sys.modules[_ASKED]
            torch.compiler.disable = self.disable

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> None:
        """Finds nothing; hears what is looked for."""
        if name == _COMPILER:
            self.end()


def _is_compile_supported(device: str) -> bool:
    """The compiler's own, which is imported now."""
    from torch._dynamo import utils

    supported: bool = utils.is_compile_supported(device)
    return supported


def _disable(fn: Any = None, recursive: bool = True, **about: Any) -> Any:
    """`torch.compiler.disable`, which imports the compiler at the first call of `fn`."""
    return _disable_dynamo(fn, recursive)


def leave_alone(method: Any) -> None:
    """A method that nothing compiles is called as it is: what torch would import the compiler for
    is set before torch looks. Where another torch looks elsewhere, it imports it, as ever.
    """
    function = getattr(method, "__wrapped__", None)
    if function is not None and _COMPILER not in sys.modules:
        vars(function).setdefault("__dynamo_disable", function)


leave_alone(Optimizer.add_param_group)
