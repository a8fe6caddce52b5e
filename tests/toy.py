"""Small recipes and systems that several tests share."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import lookalike
from lookalike.data.images import Images
from lookalike.data.reader import Bad, HostCrops, Reader
from lookalike.experiment import Experiment
from lookalike.folder import verify
from lookalike.methods import METHODS
from lookalike.models import Architecture
from lookalike.recipe import Recipe, from_text
from lookalike.runs import Run
from lookalike.stages import evaluate

RESNET = (
    "{name: resnet18, size: 16, channels: 1, pool: avg, "
    "args: {channels: [8, 8, 16, 16], layers: [1, 1, 1, 1]}}"
)
VIT = (
    "{name: vit_tiny_patch16_224, size: 16, channels: 1, pool: avg, "
    "args: {patch_size: 8, embed_dim: 24, depth: 1, num_heads: 2}}"
)

# Small heads of each method, some of whose keys are not the defaults.
HEADS: dict[str, dict[str, Any]] = {
    "barlow_twins": {"projector": (16, 32), "off_diagonal": 0.02},
    "byol": {"projector": (16, 8), "predictor": (16, 8)},
    "dcl": {"projector": (16, 8), "sigma": 0.5},
    "dino": {"hidden": 16, "bottleneck": 8, "prototypes": 12, "frozen_epochs": 0},
    "moco_v2": {"projector": (16, 8), "queue": 40, "momentum": 0.9},
    "moco_v3": {"projector": (16, 8), "predictor": (16, 8)},
    "nnclr": {"projector": (16, 8), "predictor": (16, 8), "queue": 40},
    "simclr": {"projector": (16, 8)},
    "simsiam": {"projector": (16, 8), "predictor": 4},
    "supcon": {"projector": (16, 8)},
    "swav": {"projector": (16, 8), "prototypes": 12, "frozen_epochs": 0},
    "tico": {"projector": (16, 8), "beta": 0.1},
    "vicreg": {"projector": (16, 32)},
    "w_mse": {"projector": (16, 4), "slice_size": 6},
}

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


def sections(**keys: Any) -> type[Recipe]:
    """A kind of recipe of these sections, an annotation each or (annotation, default)."""
    fields = [
        (name, *key)
        if isinstance(key, tuple)
        else (name, key, None)
        if type(None) in get_args(key)
        else (name, key)
        for name, key in keys.items()
    ]
    return make_dataclass("Sections", fields, bases=(Recipe,), frozen=True, kw_only=True)


def scored(made: Recipe) -> Images:
    """The images that the recipe's evaluation scores on."""
    return evaluate.scored(Run(made))


def recipe(*overrides: str, backbone: str = RESNET) -> Experiment:
    """Digits through a tiny network: 9 steps an epoch, 2 epochs."""
    return from_text(TEXT.format(backbone=backbone), "toy.yaml", list(overrides), Experiment)


def write(path: Path, backbone: str = RESNET) -> Path:
    """The same recipe as a file."""
    path.write_text(TEXT.format(backbone=backbone))
    return path


def folder_of_images(path: Path, count: int = 40) -> Path:
    """Training and test images of noise in files, 12 × 12 grey."""
    generator = torch.Generator().manual_seed(0)
    for split, most in (("train", count), ("test", 2)):
        (path / split).mkdir(parents=True)
        for i in range(most):
            values = torch.randint(0, 256, (12, 12), generator=generator, dtype=torch.uint8)
            Image.fromarray(values.numpy()).save(path / split / f"{i:02}.png")
    return path


def on_folder(path: Path, *words: str) -> Recipe:
    """The toy recipe on such images, in batches of 8: 5 steps an epoch, 2 epochs."""
    data = f"data={{name: folder, path: '{path}', canvas: 16, channels: 1}}"
    return recipe(data, "pretrain.batch=8", "pretrain.epochs=2", "pretrain.workers=0", *words)


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


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The texts of all warnings, afterwards."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            yield texts
        finally:
            texts += [str(warning.message) for warning in found]


def once_nan(folder: Path, rank: int = 0) -> str:
    """A fault: steps 12 to 14 are NaN on this rank, and no longer after a rollback."""
    return f"nan:rank={rank},step=12,steps=3,once={folder / 'nan'}"


def tuned(out: Path, *words: str, kind: str = "vit") -> Path:
    """The folder of a fine-tuning of a tiny backbone that the seed decides."""
    torch.manual_seed(0)
    backbone = architecture(kind).build()
    text = VIT if kind == "vit" else RESNET
    lookalike.finetune(backbone, recipe(*words, backbone=text), out)
    return out / "finetune"


def marks(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of every file in them: what is written again, even alike, has others."""
    files = [path for folder in folders for path in folder.rglob("*")]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def read_many(
    images, ids, seed: int, host_crops: HostCrops | None = None
) -> tuple[torch.Tensor, list[Bad]]:
    """What a reader makes of the samples; of several parts the first."""
    reader = Reader(images, seed, host_crops)
    parts = [torch.zeros(len(ids), *shape, dtype=torch.uint8) for shape in reader.shapes]
    bad = reader.fill(0, list(ids), parts)
    return parts[0], bad
