"""The keys of a training that decide how fast it computes, and what is refused or said of them
before its first step.
"""

import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
from torch import nn

from lookalike import comm
from lookalike.errors import RecipeError
from lookalike.log import say
from lookalike.nn.batchnorm import running_stats
from lookalike.nn.precision import FASTEST, Precision, computed, half, remark
from lookalike.recipe import FREE, MOVED_0_2, SINCE_0_2, Spec

Compile = bool | Literal["reduce-overhead"]
S = TypeVar("S", bound="Speed")
# Without these torch compiles nothing: for a CPU a C++ compiler, for a GPU Triton and a C compiler
# that builds what launches its kernels.
_COMPILERS = {"cpu": ("g++", "clang++", "c++"), "cuda": ("gcc", "clang", "cc")}
_OR = ", or set compile: false"
_VARIABLES = {"cpu": "CXX", "cuda": "CC"}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a training computes, and how exactly: docs/speed.md.

    `precision`: bf16 and fp16 compute in these by autocast, tf32 rounds the factors of float32
    products, auto takes what the GPU is fastest in; weights, statistics and losses stay fp32;
    `compile`: torch.compile of backbone and heads, once for each size of view, equal to rounding;
    `reduce-overhead` replays them as CUDA graphs too, for small networks; `channels_last`: weights
    of convolutions lie as tensor cores read them, by default for convolutional networks on a GPU in
    tf32, bf16 or fp16.
    """

    precision: Annotated[Precision, MOVED_0_2] = "fp32"
    compile: Annotated[Compile, SINCE_0_2, FREE] = False
    channels_last: Annotated[bool, SINCE_0_2, FREE] | None = None

    @property
    def dtype(self) -> torch.dtype:
        """What the network reads: in bf16 and fp16 these, which autocast would round to anyway."""
        return half(computed(self.precision, comm.device())) or torch.float32


def settled(title: str, settings: S) -> S:
    """The settings with `auto` as what the devices of all ranks have, which is said; called by
    every rank alike.
    """
    if settings.precision != "auto":
        return settings
    found = comm.gather_objects(computed("auto", comm.device()))
    least = min(found, key=FASTEST.index)
    if comm.rank() == 0:
        say(f"{title}: precision: auto is {least} on {_name(comm.device())}")
    return replace(settings, precision=least)


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple's GPU" if device.type == "mps" else "a CPU"


def refuse(
    place: str, settings: Speed, engine: Spec | None, module: nn.Module, pieces: int = 1
) -> None:
    """Raises RecipeError where an option cannot be had on this machine, or not beside another.

    `place`: recipe and section; `pieces`: how many parts of a batch the backbone sees one after
    another.
    """
    device = comm.device().type
    if engine and engine.name == "zero" and device == "mps":
        raise RecipeError(
            f"{place}.engine: zero: DeepSpeed does not train on Apple's GPU: remove it, or set "
            f"{comm.DEVICE}=cpu"
        )
    if settings.compile is False:
        return
    clash = _clash(settings, engine.args if engine else {}, module, pieces) or lacking(device)
    if clash:
        raise RecipeError(f"{place}.compile: {clash}")


def _clash(settings: Speed, args: Mapping[str, Any], module: nn.Module, pieces: int) -> str:
    """What of the rest a compiled network does not go with, with the remedy."""
    again = "runs the network again in backward: remove that, or set compile:"
    recomputes = args.get("checkpoint_activations", False)
    if args.get("stage") == 3:
        return (
            "ZeRO stage 3 gathers parameters inside the network, which cannot be compiled: set "
            "compile: false, or engine.stage: 2"
        )
    if settings.compile == "reduce-overhead" and (pieces > 1 or recomputes):
        key = "micro_batch" if pieces > 1 else "engine.checkpoint_activations"
        return f"reduce-overhead replays a graph as it was recorded, but {key} {again} true"
    if recomputes and running_stats(module):
        key = "engine.checkpoint_activations"
        return f"a compiled BatchNorm moves its statistics, but {key} {again} false"
    return ""


def lacking(device: str) -> str:
    """What torch.compile needs for a kind of device and does not find, with the remedy; empty where
    it finds all.
    """
    if device not in _COMPILERS:
        return f"torch.compile is not relied on for {device}: set compile: false"
    if device == "cuda" and importlib.util.find_spec("triton") is None:
        return f"torch.compile needs Triton, not installed here: pip install triton{_OR}"
    names, variable = _COMPILERS[device], _VARIABLES[device]
    asked = os.environ.get(variable, "").split()[:1]
    if not any(shutil.which(name) for name in asked or names):
        what = (asked or names)[0]
        return (
            f"torch.compile needs a compiler, {what} is not there: install it, set {variable}{_OR}"
        )
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return f"torch.compile needs Python.h, not there: install Python's headers{_OR}"
    return ""


def remarks(place: str, settings: Speed) -> Iterator[str]:
    """What is to be said of the options on this rank's device, a line each."""
    device = comm.device()
    if text := remark(settings.precision, device):
        yield f"{place}.{text}"
    if settings.compile == "reduce-overhead" and device.type != "cuda":
        yield f"{place}.compile: reduce-overhead needs a CUDA GPU: here it is as true"
