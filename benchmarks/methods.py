"""Every method for the same time on the same machine: kNN of the backbone beside its untrained
self.

    python benchmarks/methods.py DATA [--minutes 10] [--only simclr byol …]

DATA: the folder of Fashion-MNIST's idx files. One backbone, one batch size and one law of views for
all; heads and rates below. The number of steps is what fits into the time, as measured on the first
steps; the schedule knows it.
"""

import argparse
import time
from typing import Any

import torch

from lookalike.data.loader import batches
from lookalike.data.order import EpochOrder
from lookalike.evaluation.features import embedder, extract
from lookalike.experiment import Experiment
from lookalike.methods import METHODS
from lookalike.nn.hooks import follow, start_step
from lookalike.optim import Progress, parameter_groups, set_rates, warmup_cosine
from lookalike.recipe import Recipe, from_text
from lookalike.scoring import knn
from lookalike.stages.pretrain import labels_for, make_method
from lookalike.training.inputs import on_device

HEADS = {
    "barlow_twins": "projector: [512, 512], off_diagonal: 0.01",
    "byol": "projector: [512, 128], predictor: [512, 128], momentum: 0.99",
    "dcl": "projector: [512, 128], temperature: 0.2",
    "dino": "hidden: 512, bottleneck: 128, prototypes: 1024, momentum: 0.99, "
    "teacher_warmup_epochs: 0",
    "moco_v2": "projector: [512, 128], queue: 8192, momentum: 0.99",
    "moco_v3": "projector: [512, 128], predictor: [512, 128], temperature: 0.2",
    "nnclr": "projector: [512, 512, 128], predictor: [512, 128], temperature: 0.2, queue: 8192",
    "simclr": "projector: [512, 128], temperature: 0.2",
    "simsiam": "projector: [512, 512, 512], predictor: 128",
    "supcon": "projector: [512, 128], temperature: 0.2",
    "swav": "projector: [512, 128], prototypes: 300, frozen_epochs: 0.2",
    "tico": "projector: [512, 128]",
    "vicreg": "projector: [512, 512]",
    "w_mse": "projector: [512, 64], slice_size: 128",
}
TEXT = """
data: {{name: idx, path: {data}}}
backbone:
  name: resnet18
  size: 40
  channels: 1
  pool: avg
  mean: [0.286]
  std: [0.353]
  args: {{channels: [32, 64, 128, 256], layers: [1, 1, 1, 1]}}
pretrain:
  method: {{name: {name}, {heads}}}
  views: {{name: asymmetric, crop: [0.5, 1.0], aspect: [0.85, 1.18], \
blur: [0.3, 0.1], blur_sigma: [0.1, 1.0], solarize: [0.0, 0.1]}}
  optimizer: {{name: adamw, lr: 2e-3, weight_decay: 0.05}}
  epochs: 1
  warmup_epochs: 0.5
  batch: 128
"""
TRY = 10


def recipe(name: str, data: str) -> Recipe:
    """The recipe in which the methods differ by name and heads only."""
    return from_text(TEXT.format(name=name, heads=HEADS[name], data=data), name, [], Experiment)


def train(made: Recipe, seconds: float) -> tuple[Any, int]:
    """The method after as many steps as fit into the time, and how many those were."""
    settings, images = made.pretrain, made.data.build().split("train")
    module = make_method(made)
    optimizer = settings.optimizer.build(parameter_groups(module))
    order = EpochOrder(len(images), settings.batch, 1, 0)
    stream = batches(
        images, order, first_step=0, last_step=10**6, rank=0, world=1, workers=0, pin=False
    )
    views = on_device(settings.views.build(), module.backbone.architecture, 0)
    labels_N = labels_for(module, images)
    began, steps, done = time.monotonic(), 10**6, 0
    while done < steps:
        if done == TRY:
            steps = max(2 * TRY, int(seconds / (time.monotonic() - began) * TRY))
        batch = next(stream)
        start_step(module, Progress(done, steps, done / order.steps_per_epoch))
        set_rates(
            optimizer,
            warmup_cosine(done, steps=steps, warmup=min(200, max(1, steps // 10)), final=0.001),
        )
        x = views(batch.pixels, batch.ids_B, batch.epoch)
        loss = module(x) if labels_N is None else module(x, labels_N[batch.ids_B])
        loss.value.backward()
        optimizer.step()
        optimizer.zero_grad()
        follow(module)
        done += 1
    return module, done * settings.batch


def score(made: Recipe, module: Any) -> float:
    """Top-1 of kNN-20 on the test images, all training images as its memory."""
    source, function = (
        made.data.build(),
        embedder(module.backbone, module.backbone.architecture),
    )
    bank, test = (extract(function, source.split(split)) for split in ("train", "test"))
    return knn.accuracy(bank.x_ND, bank.labels_N, test.x_ND, test.labels_N)["top1"]


def main() -> None:
    """Trains and scores one method after the other."""
    words = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    words.add_argument("data")
    words.add_argument("--minutes", type=float, default=10.0)
    words.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS))
    chosen = words.parse_args()
    print(f"{torch.get_num_threads()} threads, {chosen.minutes:g} minutes each", flush=True)
    untrained = score(first := recipe(chosen.only[0], chosen.data), make_method(first))
    print(f"{'untrained':14} {100 * untrained:6.2f} %", flush=True)
    for name in chosen.only:
        made = recipe(name, chosen.data)
        began = time.monotonic()
        module, images = train(made, 60 * chosen.minutes)
        minutes = (time.monotonic() - began) / 60
        print(
            f"{name:14} {100 * score(made, module):6.2f} %  {images:9,} images in {minutes:.1f} "
            "min",
            flush=True,
        )


if __name__ == "__main__":
    main()
