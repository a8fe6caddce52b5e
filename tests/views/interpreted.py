"""Views of an accelerator on a CPU beside the torch form, of the cases named here; run by itself,
with TRITON_INTERPRET=1, those of Triton's kernels.
"""

import itertools
import sys
from typing import Any

import torch
from torch import Tensor

from lookalike.views import VIEWS, device, fused
from lookalike.views.form import ViewFormat

NEVER: dict[str, Any] = {"flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0}
STILL = dict.fromkeys(("brightness", "contrast", "saturation", "hue"), 0.0)
EVERY = {"solarize": 0.5, "pad": 2, "channel_drop": 0.3, "erase": 0.5, "hue": 0.3}
WIDE, FEW = {"blur_sigma": (0.1, 3.0)}, {"interpolation": "bilinear", "pad_with": "reflect"}


def cases() -> dict[str, dict[str, Any]]:
    """Arguments of `case` by name: each operation alone on crops, canvases, and all together."""
    alone = {
        "flip": {"flip": 0.5},
        **{name: {"jitter": 1.0, **STILL, name: 0.4} for name in STILL},
        "grey": {"grey": 0.5},
        "blur": {"blur": 0.7, "blur_sigma": (0.1, 1.0)},
        "blur as wide as the view": {"blur": 0.7, **WIDE},
        "solarize": {"solarize": 0.5},
        "drop": {"channel_drop": 0.5},
        **{f"erase {by}": {"erase": 0.8, "erase_with": by} for by in ("random", "mean", "zero")},
    }
    found = {name: {"law": {**NEVER, **law}} for name, law in alone.items()}
    found["randaugment"] = {"law": {**EVERY, "randaugment": 2}}
    found["orders"] = {"law": {**NEVER, "jitter": 1.0}, "orders": True}
    still = {"law": {**NEVER, "crop": "whole", "solarize": 1.0}, "shape": (7, 9), "size": [7, 9]}
    found["a box of the view's size"] = still | {"cut": True}
    found["canvas"] = {"law": EVERY, "cut": True}
    found["bilinear, padded by a mirror"] = {"law": {**EVERY, **FEW}, "cut": True, "size": [20, 6]}
    found["one channel"] = {"law": EVERY, "cut": True, "channels": 1, "floats": True}
    found["four channels"] = {"law": EVERY, "channels": 4, "floats": True}
    return found


def oracle(images: Any, draws: dict[str, Tensor], form: ViewFormat) -> Tensor:
    """The views, (M, C, *sides), one at a time by the operations of torch, cut as floats."""
    found = []
    mean, std = (torch.tensor(v)[:, None, None] for v in (form.mean, form.std))
    images = fused.in_unit(images) if isinstance(images, Tensor) else images
    for m in range(len(draws["flip"])):
        rows = torch.tensor([m])
        chosen = {name: value[rows] for name, value in draws.items()}
        x = fused.moved(fused.cut(images, rows, chosen, form), chosen, form)
        x = fused.erased(fused.colours(x, chosen, form.sigma_max), chosen, form)
        found.append((x - mean) / std)
    return torch.cat(found)


def given(
    law: dict[str, Any],
    channels: int = 3,
    floats: bool = False,
    shape: tuple[int, int] = (9, 10),
    size: Any = (7, 9),
    cut: bool = False,
    orders: bool = False,
    ids: Tensor | None = None,
) -> device.Part:
    """What is to be made into views: two of each of three images, with orders of twelve."""
    policy, generator = VIEWS["symmetric"](**law), torch.Generator().manual_seed(1)
    n = 12 if orders else 2
    mean, std = [0.4, 0.5, 0.6, 0.3][:channels], [0.2, 0.25, 0.3, 0.35][:channels]
    form = policy.form(size, mean, std)
    sides = shape if cut else form.sides
    pixels = torch.randint(0, 256, (n, channels, *sides), generator=generator).byte()
    ids = torch.arange(n) if ids is None else ids
    pixels = pixels[ids].float() / 255 if floats else pixels[ids]
    drawn = policy.draws(ids, 3, 0, range(policy.views), *shape)
    if orders:
        drawn["order"] = torch.tensor([*itertools.permutations(range(4))]).view(2, 12, 4)
    images = pixels if cut else [pixels, pixels.flip(3)]
    return device.Part(images, fused.flat(drawn, channels, form.sides), form)


def main(target: str) -> None:
    """Writes the views of Triton's kernels, (M, C, *sides), by the names of their cases; the canvas
    once more, cut into other batches, in another order.
    """
    torch.set_num_threads(1)
    made = {name: torch.cat(device.by_kernels([given(**how)])) for name, how in cases().items()}
    how = cases()["canvas"]
    apart = [torch.stack(device.by_kernels([given(**how, ids=torch.tensor([i]))])) for i in (1, 0)]
    made["canvas, apart"] = torch.cat(apart[::-1], dim=1).flatten(0, 1)
    torch.save(made, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
