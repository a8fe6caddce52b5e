"""Bytes that a forward keeps for its backward, an image, with and without activation checkpoints,
and the processor time of a step: what `checkpoint_activations` gives, and what it costs.

    OMP_NUM_THREADS=1 python benchmarks/activations.py [--batch 8] [--steps 5]
"""

import argparse
import copy
import platform
import statistics
import time

import torch
from torch import Tensor

from lookalike.engine.activations import checkpoint_activations
from lookalike.models import Architecture, Backbone
from lookalike.nn.batchnorm import freeze_running_stats

NETWORKS = ("resnet50", "convnext_tiny", "vit_small_patch16_224")


def step(backbone: Backbone, x_BCHW: Tensor) -> tuple[int, float]:
    """Bytes kept beside the weights, each storage once, and seconds of the processor."""
    own = {t.untyped_storage().data_ptr() for t in backbone.state_dict().values()}
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(x: Tensor) -> Tensor:
        if (place := x.untyped_storage().data_ptr()) not in own:
            storages[place] = x.untyped_storage()
        return x

    start = time.process_time()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        value = backbone(x_BCHW).square().sum()
    kept = sum(storage.nbytes() for storage in storages.values())
    storages.clear()
    with freeze_running_stats(backbone):
        value.backward()  # type: ignore[no-untyped-call]
    seconds = time.process_time() - start
    backbone.zero_grad()
    return kept, seconds


def main() -> None:
    """A row a network."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor()}")
    print("network                  MB an image   with checkpoints   time with / without")
    for name in NETWORKS:
        plain = Architecture(name=name, size=224).build().train()
        other = copy.deepcopy(plain)
        checkpoint_activations(other)
        x_BCHW = torch.randn(given.batch, 3, 224, 224)
        pairs = [(step(plain, x_BCHW), step(other, x_BCHW)) for _ in range(given.steps)]
        (usual, _), (found, _) = pairs[0]
        ratios = sorted(b / a for (_, a), (_, b) in pairs)
        times = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
        sizes = f"{usual / given.batch / 1e6:11.0f} {found / given.batch / 1e6:18.1f}"
        print(f"{name:24} {sizes}   {times:>19}")


if __name__ == "__main__":
    main()
