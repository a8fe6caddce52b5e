"""In what a network computes: its weights stay float32, as do statistics and losses.

bf16 and fp16 are autocast's; tf32 lets the tensor cores of a GPU round the factors of float32
products and convolutions to 10 bits of mantissa (torch's "high" for float32 matmul precision).
What may never be rounded is marked `numerics.exact`.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch

Precision = Literal["fp32", "tf32", "bf16", "fp16", "auto"]
Computed = Literal["fp32", "tf32", "bf16", "fp16"]
Capability = tuple[int, int]
"""NVIDIA's compute capability: T4 (7, 5), V100 (7, 0), A100 (8, 0), H100 (9, 0)."""
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# What tensor cores compute in, by the first capability that has it.
_CORES: dict[Computed, Capability] = {"fp16": (7, 0), "bf16": (8, 0), "tf32": (8, 0)}
# The slowest and least exact first: what several ranks have in common is the first of theirs.
FASTEST: tuple[Computed, ...] = ("fp32", "fp16", "bf16")


def by_tensor_cores(capability: Capability) -> tuple[Computed, ...]:
    """What a GPU of this compute capability computes in its tensor cores."""
    return tuple(name for name, first in _CORES.items() if capability >= first)


def fastest(capability: Capability) -> Computed:
    """What `auto` is on a GPU of this compute capability: bf16, else fp16, where tensor cores have
    it, else fp32.
    """
    has = by_tensor_cores(capability)
    return "bf16" if "bf16" in has else "fp16" if "fp16" in has else "fp32"


def computed(precision: Precision, device: torch.device) -> Computed:
    """What a precision is on this device: `auto` is the `fastest` of an NVIDIA GPU, elsewhere
    fp32, as is tf32 where there is no such GPU.
    """
    if precision == "auto":
        return fastest(_capability(device)) if device.type == "cuda" else "fp32"
    return "fp32" if precision == "tf32" and device.type != "cuda" else precision


def _capability(device: torch.device) -> Capability:
    return torch.cuda.get_device_capability(device)


def remark(precision: Precision, device: torch.device) -> str:
    """What is to be said of a precision that this device does not have as one would expect; empty
    elsewhere.
    """
    if device.type == "cuda":
        return unsupported(precision, _capability(device))
    where = "Apple's GPU" if device.type == "mps" else "a CPU"
    if precision == "tf32":
        return f"precision: tf32 changes nothing on {where}, it computes in fp32"
    if precision in _HALVES and device.type == "cpu":
        slower = "many times slower" if precision == "fp16" else "often slower"
        return f"precision: {precision} on a CPU is {slower} than fp32: take auto"
    return ""


def unsupported(precision: Precision, capability: Capability) -> str:
    """The same of a GPU by its compute capability."""
    has, number = by_tensor_cores(capability), ".".join(map(str, capability))
    if precision in ("fp32", "auto") or precision in has:
        return ""
    remedy = f"auto takes {fastest(capability)}"
    does = {
        "tf32": "tf32 changes nothing, it computes in fp32",
        "bf16": "bf16 is emulated, slower than fp32",
        "fp16": "fp16 has no tensor cores",
    }[precision]
    return f"precision: {does} on a GPU of compute capability {number}: {remedy}"


def half(computed: Computed) -> torch.dtype | None:
    """The 16-bit type that autocast computes in; None in fp32 and tf32."""
    return _HALVES.get(computed)


@contextlib.contextmanager
def autocast(device: torch.device, precision: Precision) -> Iterator[None]:
    """bf16 or fp16 for what is safe in it, tf32 for products; parameters, statistics and losses
    stay fp32.
    """
    dtype = half(computed(precision, device))
    cast = torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
    with products(device, precision), cast:
        yield


@contextlib.contextmanager
def products(device: torch.device, precision: Precision) -> Iterator[None]:
    """Lets float32 products and convolutions be rounded where the precision is tf32; for a
    backward, whose kernels read torch's flags anew. Afterwards the flags are as they were.
    """
    if computed(precision, device) != "tf32":
        yield
        return
    before = rounded()
    round_factors(True, True)
    try:
        yield
    finally:
        round_factors(*before)


def rounded() -> tuple[bool, bool]:
    """Whether products, and whether convolutions, are computed in tf32 as torch's flags stand."""
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def round_factors(products: bool, convolutions: bool) -> None:
    """Sets both flags, of the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = products
    torch.backends.cudnn.allow_tf32 = convolutions
