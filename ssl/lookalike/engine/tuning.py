"""A module as it is trained on this rank's device: BatchNorm over all ranks, the layout of its
weights, compiled or not; and torch's switches, set for one training and put back after it.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from lookalike import comm
from lookalike.engine.speed import Compile, Speed
from lookalike.models import Backbone
from lookalike.nn.batchnorm import GlobalBatchNorm, global_batchnorm
from lookalike.nn.convolution import padded
from lookalike.nn.precision import computed, half, round_factors, rounded


def prepared(module: nn.Module, settings: Speed, *, full: bool = False) -> Any:
    """The module in training mode, on this rank's device; its names stay as they are.

    `full`: every rank always holds an image.
    """
    device = comm.device()
    made = global_batchnorm(module.train(), full=full).to(device)
    for network in wants_channels_last(made, settings, device):
        lay_channels_last(network)
    return made


@contextlib.contextmanager
def tuned(module: nn.Module, settings: Speed, device: torch.device | None = None) -> Iterator[None]:
    """While entered, the module is compiled if that is asked for, and torch is told what its
    sizes and its precision allow; on a CPU in bf16 its convolutions are `padded`.
    """
    device = device or comm.device()
    with _switches(device), contextlib.ExitStack() as stack:
        if device.type == "cpu" and half(computed(settings.precision, device)) is torch.bfloat16:
            stack.enter_context(padded(module))
        if settings.compile:
            overhead = settings.compile == "reduce-overhead" and device.type == "cuda"
            stack.enter_context(compiled(module, "reduce-overhead" if overhead else True))
        yield


@contextlib.contextmanager
def _switches(device: torch.device) -> Iterator[None]:
    """On a GPU: cuDNN tries its algorithms out, once a size, unless torch is to be deterministic;
    nothing is rounded to tf32 but where `products` says so, while torch's default rounds in every
    float32 convolution.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    before, tries = rounded(), cudnn.benchmark
    strict = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
    round_factors(False, False)
    cudnn.benchmark = not strict
    try:
        yield
    finally:
        round_factors(*before)
        cudnn.benchmark = tries


def networks(module: nn.Module) -> list[nn.Module]:
    """What is compiled of a module: the network of each backbone, and each outermost Sequential
    beside them, the heads; a teacher's too. Losses, poolings and prototypes are not.
    """
    if isinstance(module, Backbone):
        return [module.model]
    if isinstance(module, nn.Sequential):
        return [module] if len(module) else []
    found = (part for child in module.children() for part in networks(child))
    return list({id(part): part for part in found}.values())


@contextlib.contextmanager
def compiled(
    module: nn.Module, how: Compile = True, backend: str | Callable[..., Any] = "inductor"
) -> Iterator[None]:
    """While entered, its networks are compiled in place, each anew for each size, train and eval.

    A size is compiled for itself and never made a variable: views have few sizes, and batches one.
    BatchNorm over several ranks is left as it is, a graph ends before it and another begins after.
    """
    parts, norms = networks(module), _across_ranks(module)
    # Which says that there is no CUDA where a CPU is compiled for.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    for norm in norms:
        vars(norm)["forward"] = torch.compiler.disable(norm.forward)  # type: ignore[no-untyped-call]
    for part in parts:
        given: dict[str, Any] = {"backend": backend, "dynamic": False}
        if how == "reduce-overhead":
            given["mode"] = how
        part.compile(**given)
        if how == "reduce-overhead":
            _copy_out(part)
    try:
        yield
    finally:
        for part in parts:
            part._compiled_call_impl = None
        for norm in norms:
            vars(norm).pop("forward", None)
        torch.compiler.reset()


def _across_ranks(module: nn.Module) -> list[nn.Module]:
    kinds = (GlobalBatchNorm, nn.SyncBatchNorm)
    return [part for part in module.modules() if isinstance(part, kinds)]


def _copy_out(part: nn.Module) -> None:
    """What a CUDA graph gives lies where its next replay writes: it is copied, so that a queue, the
    log or a verdict one step late may keep it.
    """
    inner: Any = part._compiled_call_impl

    def copied(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs).clone()

    part._compiled_call_impl = copied


def wants_channels_last(
    module: nn.Module, settings: Speed, device: torch.device
) -> list[nn.Module]:
    """The backbones whose weights are to lie channels-last: all where the recipe says so; where it
    says nothing, those that are convolutional, on a GPU whose tensor cores are used.
    """
    by_itself = device.type == "cuda" and computed(settings.precision, device) != "fp32"
    if not (by_itself if settings.channels_last is None else settings.channels_last):
        return []
    found = [part for part in module.modules() if isinstance(part, Backbone)]
    return [part for part in found if settings.channels_last or is_convolutional(part)]


def is_convolutional(network: nn.Module) -> bool:
    """Whether it has more than one two-dimensional convolution: a ViT has that of its patches."""
    return len(_convolutions(network)) > 1


def _convolutions(network: nn.Module) -> list[nn.Conv2d]:
    return [part for part in network.modules() if isinstance(part, nn.Conv2d)]


@torch.no_grad()
def lay_channels_last(network: nn.Module) -> None:
    """Lays the weights of its convolutions as (C_out, H, W, C_in), their shapes and names the same;
    what is saved of them is laid as ever.
    """
    for convolution in _convolutions(network):
        weight = convolution.weight
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
