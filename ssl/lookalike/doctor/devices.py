"""What each GPU of a machine computes in, a line each; a function of what it tells of itself."""

import torch

from lookalike import comm
from lookalike.nn.precision import Capability, by_tensor_cores, fastest


def able(name: str, capability: Capability, memory: int) -> str:
    """A line on an NVIDIA GPU of so many bytes of memory."""
    cores = by_tensor_cores(capability)
    has = f"{', '.join(cores)} in tensor cores" if cores else "no tensor cores"
    number = ".".join(map(str, capability))
    return (
        f"{name}: {memory / 2**30:.0f} GiB, compute capability {number}: {has}; precision: auto is "
        f"{fastest(capability)}"
    )


def devices() -> list[str]:
    """A line on each GPU that this process sees, or on Apple's."""
    found = []
    for i in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(i)
        found.append(able(about.name, (about.major, about.minor), about.total_memory))
    return found or ([apple()] if torch.backends.mps.is_available() else [])


def apple() -> str:
    """A line on Apple's GPU."""
    return (
        "Apple's GPU (mps): fp32, fp16, bf16, no float64; one process; precision: auto is fp32; "
        f"{comm.DEVICE}=cpu trains on the CPU"
    )
