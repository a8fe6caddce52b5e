"""The same pretraining by lookalike and by lightly (pip install lightly), end to end: images a
second, and kNN.

    python benchmarks/peer_lightly.py DATA [EPOCHS] [ROUNDS] [WORKERS]

DATA: the folder of Fashion-MNIST's idx files; 4,000 of its images, mildly tinted, become JPEG files
of 96 × 96. Both train SimCLR on the same small CNN at 64 pixels with the same heads, optimizer,
schedule, batch and law of views, with as many loader processes: lightly by its own transform, data
set, head and loss in the loop of its documentation. Timed is all of a training but building the
network; kNN-20 is of 2,000 test images, 4,000 in its memory. Printed last: the median of the
rounds' ratios.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.backbones import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torch import Tensor
from torchvision.io import write_jpeg

import lookalike
from lookalike import rng
from lookalike.data import Idx
from lookalike.evaluation.features import embedder, extract
from lookalike.experiment import Experiment
from lookalike.models import make_backbone
from lookalike.optim import parameter_groups, set_rates, warmup_cosine
from lookalike.recipe import Recipe, from_text
from lookalike.scoring import knn

SIZE, BATCH, TRAIN, TEST = 64, 128, 4000, 2000
TEXT = """
seed: {seed}
data: {{name: folder, path: {data}, canvas: 72}}
backbone: {{name: resnet18, size: 64, pool: avg, \
args: {{channels: [16, 32, 64, 128], layers: [1, 1, 1, 1]}}}}
pretrain:
  method: {{name: simclr, projector: [512, 128], temperature: 0.2}}
  views: {{name: symmetric, interpolation: bilinear, brightness: 0.8, contrast: 0.8, \
saturation: 0.8, hue: 0.2}}
  optimizer: {{name: adamw, lr: 2e-3, weight_decay: 0.05}}
  epochs: {epochs}
  warmup_epochs: 0.5
  batch: 128
  workers: {workers}
  health_every: 0
"""


def write(source: Idx, folder: Path) -> None:
    """Class folders of JPEG files."""
    generator = torch.Generator().manual_seed(0)
    for split, n in (("train", TRAIN), ("test", TEST)):
        images = source.split(split)  # type: ignore[arg-type]
        for i in range(n):
            grey = torch.nn.functional.interpolate(
                images.read(i)[None].float() / 255, (96, 96), mode="bicubic"
            )[0]
            front, back = (torch.rand(3, 1, 1, generator=generator) for _ in range(2))
            colour = grey * (0.8 + 0.2 * front) + (1 - grey) * 0.1 * back
            target = folder / split / str(int(images.labels[i]))
            target.mkdir(parents=True, exist_ok=True)
            write_jpeg(
                (colour.clamp(0, 1) * 255).round().to(torch.uint8),
                str(target / f"{i}.jpg"),
                quality=90,
            )


def ours(recipe: Recipe, folder: Path) -> tuple[Any, float]:
    """The backbone and the seconds that its training took."""
    began = time.monotonic()
    path = lookalike.pretrain(recipe, folder)
    return lookalike.load_backbone(path), time.monotonic() - began


def lightly(recipe: Recipe, folder: Path) -> tuple[Any, float]:
    """The same with lightly's parts, as its SimCLR example puts them together."""
    settings, seed = recipe.pretrain, recipe.seed
    torch.manual_seed(rng.seed(seed, "weights"))
    backbone = make_backbone(recipe.backbone)
    module = torch.nn.Sequential(backbone, SimCLRProjectionHead(backbone.dim, 512, 128)).train()
    optimizer = settings.optimizer.build(parameter_groups(module))
    criterion = NTXentLoss(temperature=0.2)
    began = time.monotonic()
    data = LightlyDataset(str(folder / "train"), transform=SimCLRTransform(input_size=SIZE))
    loader = torch.utils.data.DataLoader(
        data, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=settings.workers
    )
    step, steps = 0, settings.epochs * len(loader)
    for _ in range(settings.epochs):
        for (first, second), _, _ in loader:
            set_rates(
                optimizer, warmup_cosine(step, steps=steps, warmup=len(loader) // 2, final=0.001)
            )
            loss = criterion(module(first), module(second))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    return backbone, time.monotonic() - began


def score(backbone: Any, train: Any, test: Any) -> float:
    """Top-1 of kNN-20 in percent."""
    function = embedder(backbone, backbone.architecture)
    found: list[Tensor] = []
    for images in (train, test):
        features = extract(function, images)
        found += [features.x_ND, features.labels_N]
    return 100 * knn.accuracy(*found)["top1"]


def main(data: str, epochs: int = 4, rounds: int = 3, workers: int = 0) -> None:
    """Alternates and prints."""
    ratios = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write(Idx(data), folder / "images")
        where = f"{torch.get_num_threads()} threads, {workers} loader processes"
        print(
            f"{TRAIN} JPEG files, {epochs} epochs, batch {BATCH}, {SIZE} pixels, {where}",
            flush=True,
        )
        for seed in range(rounds):
            text = TEXT.format(seed=seed, data=folder / "images", epochs=epochs, workers=workers)
            recipe = from_text(text, "peer", [], Experiment)
            source = recipe.data.build()
            sets = source.split("train", SIZE), source.split("test", SIZE)
            seen = epochs * (TRAIN // BATCH) * BATCH
            mine, seconds = ours(recipe, folder / f"run{seed}")
            theirs, longer = lightly(recipe, folder / "images")
            ratios.append(longer / seconds)
            print(
                f"seed {seed}: lookalike {seen / seconds:.1f} images/s, kNN "
                f"{score(mine, *sets):.2f} %; "
                f"lightly {seen / longer:.1f} images/s, kNN {score(theirs, *sets):.2f} %",
                flush=True,
            )
    low, high = min(ratios), max(ratios)
    print(
        f"lightly / lookalike, seconds: {statistics.median(ratios):.2f} ({low:.2f} to {high:.2f})"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1], *(int(word) for word in sys.argv[2:]))
    else:
        print(__doc__)
