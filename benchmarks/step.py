"""What a whole training step costs beside the bare network: (whole step) / (forward + backward +
optimizer), one run.

The real loop trains; before each of its steps one bare step on ready views is taken on the same
engine, so that both see the same machine. A whole step is everything from one batch to the next:
reading, views, network, log.

    python benchmarks/step.py RECIPE [STEPS]
    python benchmarks/step.py resnet18 [STEPS]  a ResNet-18 at 64 pixels on JPEG files of 500 × 375
"""

import copy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent))
import decode

import lookalike
from lookalike import comm
from lookalike.data.order import EpochOrder
from lookalike.experiment import Pretrain
from lookalike.optim import parameter_groups
from lookalike.stages.pretrain import make_inputs, make_method
from lookalike.training import loop
from lookalike.training.inputs import on_device

TEXT = """
data: {{name: folder, path: {images}, test_fraction: 0}}
backbone: {{name: resnet18, size: 64}}
pretrain:
  method: {{name: barlow_twins, projector: [512, 512]}}
  optimizer: {{name: adamw, lr: 1e-3, weight_decay: 0.05}}
  epochs: 1
  warmup_epochs: 0
  batch: 64
  workers: 0
"""


class Alternation:
    """Inputs for the loop that also time it, with a bare step between any two."""

    def __init__(self, recipe: Any, module: Any) -> None:
        settings = recipe.section(Pretrain)
        policy, architecture = settings.views.build(), module.backbone.architecture
        self.views = on_device(policy, architecture, recipe.seed)
        self.whole: list[float] = []
        self.bare: list[float] = []
        self.left: float | None = None
        self.bare_module: Any = copy.deepcopy(module)
        self.optimizer: Any = recipe.section(Pretrain).optimizer.build(
            parameter_groups(self.bare_module)
        )

    def __call__(self, batch: Any) -> Any:
        now = wait()
        if self.left is not None:
            self.whole.append(now - self.left)
        inputs = make_inputs(self.views, None, batch)
        begun = wait()
        self.bare_module(*inputs).value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.bare.append(wait() - begun)
        self.left = wait()
        return make_inputs(self.views, None, batch)


def wait() -> float:
    """The time, after all that the device still had to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def resnet18(steps: int) -> None:
    """`main` with a recipe and images of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (images := Path(folder, "images")).mkdir()
        decode.write(images, 256)
        recipe = Path(folder, "resnet18.yaml")
        recipe.write_text(TEXT.format(images=images))
        main(str(recipe), steps)


def main(path: str, steps: int) -> None:
    """Trains `steps` steps of the recipe and prints the ratio with its quartiles."""
    recipe = lookalike.load_recipe(path, ["pretrain.accumulate=1", "pretrain.engine=plain"])
    settings = recipe.section(Pretrain)
    images = recipe.data.build().split("train", recipe.backbone.size)
    order = EpochOrder(len(images), settings.batch, 1, recipe.seed)
    module = make_method(recipe)
    inputs = Alternation(recipe, module)
    # The loop trains the module, the bare side a copy of it with an optimizer of its own; they take
    # turns.
    with tempfile.TemporaryDirectory() as folder:
        job = loop.Job("step", Path(folder), module, images, order, inputs, {})
        epochs = max(1, steps // order.steps_per_epoch)
        shorter = type(settings)(**{**vars(settings), "epochs": epochs, "warmup_epochs": 0.0})
        loop.train(job, shorter)
    # A whole step begins after the views of its own batch: the wait for the next batch and its
    # views belong to it.
    whole, bare = inputs.whole[5:], inputs.bare[6 : 6 + len(inputs.whole[5:])]
    ratios = [w / b for w, b in zip(whole, bare, strict=False)]
    low, _, high = statistics.quantiles(ratios, n=4)
    where = f"{torch.get_num_threads()} threads, {comm.device()}"
    print(f"{path}: batch {settings.batch}, {where}, {len(ratios)} pairs of steps")
    print(
        f"bare {1e3 * statistics.median(bare):.1f} ms, whole {1e3 * statistics.median(whole):.1f} "
        "ms"
    )
    ratio = statistics.median(whole) / statistics.median(bare)
    print(
        f"whole step / bare network = {ratio:.3f} (quartiles of the pairs {low:.3f} to {high:.3f})"
    )


if __name__ == "__main__":
    words = sys.argv[1:]
    steps = int(words[1]) if len(words) > 1 else 200
    if words and words[0] == "resnet18":
        resnet18(steps)
    else:
        main(words[0] if words else "recipes/quickstart.yaml", steps)
