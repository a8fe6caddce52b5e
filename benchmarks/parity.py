"""Does it matter who makes the views? The same pretraining with ours, kornia's and torchvision's
views, several seeds.

    python benchmarks/parity.py DATA [STEPS] [SEEDS] [FIRST]

DATA: the folder of Fashion-MNIST's idx files. Its images are tinted, each in two colours of its
own, so that colours are a nuisance that the views must teach the backbone to ignore. SimCLR, a
small ResNet at 32 pixels; kNN-20 of 10,000 training and 5,000 test images. Printed last: the mean
of each maker's views, with the spread over seeds.
"""

import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
import views as makers
from lookalike.data import Idx
from lookalike.data.images import ArrayImages
from lookalike.evaluation.features import embedder, extract
from lookalike.experiment import Experiment
from lookalike.optim import parameter_groups, set_rates, warmup_cosine
from lookalike.recipe import from_text
from lookalike.scoring import knn
from lookalike.stages.pretrain import make_method

SIZE, BATCH = 32, 128
TEXT = """
seed: {seed}
data: {{name: digits}}
backbone: {{name: resnet18, size: 32, channels: 3, pool: avg, \
args: {{channels: [32, 64, 128, 256], layers: [1, 1, 1, 1]}}}}
pretrain:
  method: {{name: simclr, projector: [512, 128], temperature: 0.2}}
  optimizer: {{name: adamw, lr: 2e-3, weight_decay: 0.05}}
  epochs: 1
  warmup_epochs: 0.5
  batch: 128
"""
MAKERS = {"ours": makers.ours, "kornia": makers.kornia, "torchvision": makers.torchvision}


def tinted(images: Any, n: int, seed: int) -> ArrayImages:
    """(n, 3, 36, 36): white and black become mild random colours."""
    generator = torch.Generator().manual_seed(seed)
    grey = torch.nn.functional.pad(images.read_many(range(n)), (4, 4, 4, 4)).float() / 255
    front, back = (torch.rand(n, 3, 1, 1, generator=generator) for _ in range(2))
    made = 255 * (grey * (0.8 + 0.2 * front) + (1 - grey) * 0.1 * back)
    return ArrayImages(
        made.round().to(torch.uint8), images.annotations.of(torch.arange(n)), "tinted"
    )


def train(maker: str, seed: int, canvas_NCHW: Tensor, steps: int) -> Any:
    """The method after its steps."""
    made = from_text(TEXT.format(seed=seed), maker, [], Experiment)
    settings = made.pretrain
    module = make_method(made)
    optimizer = settings.optimizer.build(parameter_groups(module))
    views, generator = MAKERS[maker](SIZE), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    for step in range(steps):
        rows = torch.randint(len(canvas_NCHW), (BATCH,), generator=generator)
        set_rates(optimizer, warmup_cosine(step, steps=steps, warmup=steps // 10, final=0.001))
        module(views(canvas_NCHW[rows], 1000 * seed + step)).value.backward()
        optimizer.step()
        optimizer.zero_grad()
    return module


def main(data: str, steps: int = 400, seeds: int = 3, first: int = 0) -> None:
    """Three runs a seed, one seed after the other."""
    source = Idx(data)
    bank, test = tinted(source.split("train"), 10_000, 1), tinted(source.split("test"), 5_000, 2)
    canvas_NCHW = bank.read_many(range(len(bank)))
    found: dict[str, list[float]] = {maker: [] for maker in MAKERS}
    for seed in range(first, first + seeds):
        for maker in MAKERS:
            began = time.monotonic()
            module = train(maker, seed, canvas_NCHW, steps)
            function = embedder(module.backbone, module.backbone.architecture)
            memory, asked = extract(function, bank), extract(function, test)
            top1 = (
                100 * knn.accuracy(memory.x_ND, memory.labels_N, asked.x_ND, asked.labels_N)["top1"]
            )
            found[maker].append(top1)
            print(
                f"seed {seed} {maker:12} kNN-20 {top1:.2f} %, {time.monotonic() - began:.0f} s",
                flush=True,
            )
    for maker, values in found.items():
        print(f"{maker:12} {statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} %")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1], *(int(word) for word in sys.argv[2:]))
    else:
        print(__doc__)
