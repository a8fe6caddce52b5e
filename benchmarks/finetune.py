"""What pretraining is worth to fine-tuning: Recall@1 on classes never shown, before and after, of
two backbones.

    python benchmarks/finetune.py RECIPE [SEEDS] [FIRST] [key.path=value …]

One is pretrained by the recipe, without labels; the other has the weights that the seed draws. Both
are fine-tuned by the recipe on its first classes and scored on the others. Printed last: the means
over seeds, with their spread.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import torch

import lookalike
from lookalike.models import make_backbone
from lookalike.recipe import Recipe

STATES = ("untrained", "untrained, fine-tuned", "pretrained", "pretrained, fine-tuned")


def scores(recipe: Recipe, folder: Path) -> list[float]:
    """Recall@1 in per cent of STATES, in their order."""
    torch.manual_seed(recipe.seed)
    untrained = make_backbone(recipe.backbone).eval()
    found = []
    for name in ("untrained", "pretrained"):
        out = folder / name
        backbone = untrained if name == "untrained" else lookalike.pretrain(recipe, out)
        found.append(lookalike.evaluate(backbone, recipe))
        found.append(lookalike.evaluate(lookalike.finetune(backbone, recipe, out), recipe))
    return [100 * one["recall@1"] for one in found]


def main(path: str, seeds: int = 3, first: int = 0, overrides: tuple[str, ...] = ()) -> None:
    """A line a seed, then the means."""
    rows = []
    for seed in range(first, first + seeds):
        recipe = lookalike.load_recipe(path, [*overrides, f"seed={seed}"])
        with tempfile.TemporaryDirectory() as folder:
            rows.append(scores(recipe, Path(folder)))
        print(
            f"seed {seed}: "
            + ", ".join(f"{n} {v:.2f}" for n, v in zip(STATES, rows[-1], strict=True)),
            flush=True,
        )
    for name, column in zip(STATES, zip(*rows, strict=True), strict=True):
        spread = f" ± {statistics.stdev(column):.2f}" if len(column) > 1 else ""
        print(f"Recall@1, {name}: {statistics.mean(column):.2f}{spread} %")


if __name__ == "__main__":
    words = sys.argv[1:]
    if words:
        numbers = [int(word) for word in words[1:] if "=" not in word]
        main(words[0], *numbers, overrides=tuple(word for word in words[1:] if "=" in word))
    else:
        print(__doc__)
