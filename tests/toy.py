"""Small recipes and systems that several tests share."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lookalike.data.reader import Bad, HostCrops, Reader
from lookalike.folder import verify
from lookalike.methods import METHODS
from lookalike.models import Architecture
from lookalike.pipeline import SECTIONS
from lookalike.recipe import Recipe, from_text

RESNET = "{name: resnet18, size: 16, channels: 1, pool: avg, args: {channels: [8, 8, 16, 16], layers: [1, 1, 1, 1]}}"
VIT = (
    "{name: vit_tiny_patch16_224, size: 16, channels: 1, pool: avg, "
    "args: {patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2}}"
)

TEXT = """
seed: 3
data: {{name: digits}}
backbone: {backbone}
pretrain:
  method: {{name: barlow_twins, projector: [16, 32], off_diagonal: 0.02}}
  views: {{name: asymmetric, crop: [0.4, 1.0], blur: [0.5, 0.1], blur_sigma: [0.1, 1.0]}}
  optimizer: {{name: adamw, lr: 2e-3}}
  epochs: 2
  batch: 144
  warmup_epochs: 0.5
  log_every: 1
probe: {{grid: [1e-2, 1.0], max_iterations: 30}}
finetune:
  optimizer: {{name: adamw, lr: 1e-3}}
  epochs: 1
  classes_per_batch: 4
  per_class: 8
  dim: 16
  log_every: 1
evaluate: {{}}
export: {{}}
"""


def recipe(*overrides: str, backbone: str = RESNET) -> Recipe:
    """Digits through a tiny network: 9 steps an epoch, 2 epochs."""
    return from_text(TEXT.format(backbone=backbone), "toy.yaml", list(overrides), SECTIONS)


def write(path: Path, backbone: str = RESNET) -> Path:
    """The same recipe as a file."""
    path.write_text(TEXT.format(backbone=backbone))
    return path


def architecture(kind: str = "resnet") -> Architecture:
    """A tiny ResNet, with batch statistics, or a tiny ViT, without; both take views of 8 pixels
    too.
    """
    args: dict[str, Any] = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
    if kind == "resnet":
        return Architecture("resnet18", size=16, channels=1, args=args)
    vit = {"patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2, "dynamic_img_size": True}
    return Architecture("vit_tiny_patch16_224", size=16, channels=1, args=vit)


def system(kind: str = "resnet", seed: int = 0) -> nn.Module:
    """A tiny Barlow Twins in training mode."""
    torch.manual_seed(seed)
    return METHODS["barlow_twins"](
        architecture(kind).build(), projector=(16, 32), off_diagonal=0.02
    ).train()


def views(step: int, batch: int = 16) -> list[Tensor]:
    """Two correlated batches, a pure function of the step."""
    generator = torch.Generator().manual_seed(step)
    common = torch.randn(batch, 1, 16, 16, generator=generator)
    return [common + 0.3 * torch.randn(batch, 1, 16, 16, generator=generator) for _ in range(2)]


def lines(path: Path) -> list[dict[str, Any]]:
    """metrics.jsonl as dictionaries."""
    import json

    return [json.loads(line) for line in path.read_text().splitlines()]


def tensors(run: Path, step: int = 18) -> dict[str, Tensor]:
    """What a checkpoint holds, after its manifest was checked."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    verify(folder)
    return {
        f"{n}:{k}": v
        for n in ("model", "optim")
        for k, v in load_file(folder / f"{n}.safetensors").items()
    }


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    """Parameters and buffers of the same names, equal to the bit."""
    return same(one.state_dict(), other.state_dict())


def curve(run: Path) -> list[tuple[int, float]]:
    """The loss of every logged step."""
    return [(line["step"], line["loss"]) for line in lines(run / "metrics.jsonl")]


def read_many(
    images, ids, seed: int, host_crops: HostCrops | None = None
) -> tuple[torch.Tensor, list[Bad]]:
    """What a reader makes of the samples; of several parts the first."""
    reader = Reader(images, seed, host_crops)
    parts = [torch.zeros(len(ids), *shape, dtype=torch.uint8) for shape in reader.shapes]
    bad = reader.fill(0, list(ids), parts)
    return parts[0], bad
