"""Is a classifier from a pretrained backbone above the same network untrained? Fashion-MNIST, with
1 %, 10 % and all labels, five draws each, full fine-tuning.

    python benchmarks/classify.py OUT [short] [KEY.PATH=VALUE …]

The backbone, views and pretraining are those of recipes/fashion_mnist.yaml (Debian's package
dataset-fashion-mnist); each training of a classifier is the same for both, its layer and the order
of its images drawn by the same seed. Printed: top-1 of both, and of their differences draw by draw
the mean and Student's interval at 95 %; it ends with code 1 unless every interval of a difference
lies above 0. OUT is a run folder: the same command goes on where it was stopped.

`short`: the first 3,000 training and 1,000 test images, a smaller network, minutes instead of
hours. It says nothing of the recipe, and shows that the way is sound.
"""

import gzip
import json
import os
import platform
import sys
import time
from pathlib import Path

import lookalike

ROOT = Path(__file__).parent.parent
SETS = {"train": 3_000, "t10k": 1_000}
VIEWS = "{name: symmetric, views: 1, crop: [0.5, 1.0], aspect: [0.85, 1.18], grey: 0.0, blur: 0.0}"
SECTION = (
    "classify={{optimizer: {{name: adamw, lr: 1e-3}}, epochs: 1, few_epochs: {epochs}, "
    "warmup_epochs: 0.5, batch: 128, layer_decay: 0.8, baseline: untrained, views: "
    + VIEWS.replace("{", "{{").replace("}", "}}")
    + ", few: {{share: {share}, draws: 5}}}}"
)
EPOCHS = {"few": ("[0.01, 0.1]", 60, 12), "all": ("[1.0]", 10, 2)}
"""Of each run the shares of labels, and the epochs on them, in earnest and `short`."""
GONE = ["probe=null", "finetune=null", "evaluate=null", "export=null"]
SMALL = [
    "backbone.size=28",
    "backbone.args={channels: [16, 32, 64, 128], layers: [1, 1, 1, 1]}",
    "pretrain.epochs=8",
]


def first_images(source: Path, target: Path) -> None:
    """The first images and labels of each set, as idx files."""
    target.mkdir(parents=True, exist_ok=True)
    for name, count in SETS.items():
        for kind, header, each in (("images-idx3", 16, 784), ("labels-idx1", 8, 1)):
            with gzip.open(source / f"{name}-{kind}-ubyte.gz") as file:
                content = file.read(header + count * each)
            made = content[:4] + count.to_bytes(4, "big") + content[8:]
            (target / f"{name}-{kind}-ubyte").write_bytes(made)


def main(out: Path, words: list[str]) -> int:
    """Runs or resumes; prints the table; 0 where the backbone is above at each share."""
    began, short = time.process_time(), "short" in words
    own = [word for word in words if word != "short"]
    given = [*GONE, *(SMALL if short else [])]
    if short:
        first_images(Path("/usr/share/datasets/fashion-mnist"), out / "data")
        given.append(f"data.path={out / 'data'}")
    file, found = ROOT / "recipes" / "fashion_mnist.yaml", {}
    pretrained = lookalike.pretrain(lookalike.load_recipe(file, [*given, *own]), out / "run")
    for name, (share, earnest, brief) in EPOCHS.items():
        section = SECTION.format(share=share, epochs=brief if short else earnest)
        recipe = lookalike.load_recipe(file, [*given, "pretrain=null", section, *own])
        lookalike.classify(pretrained, recipe, out / name)
        found |= json.loads((out / name / "classify.json").read_text())["few"]
    print(f"\n{platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    print(f"processor time of this call {time.process_time() - began:.0f} s")
    print(f"{'labels':<12}{'images':>8}{'pretrained':>12}{'untrained':>12}{'difference':>28}")
    above = True
    for name, group in found.items():
        if "interval" not in group["difference"]["top1"]:
            continue
        mine, theirs, apart = (
            each["top1"] for each in (group, group["untrained"], group["difference"])
        )
        low, high = (100 * end for end in apart["interval"])
        above &= low > 0
        span = f"{100 * apart['mean']:+.2f} ({low:+.2f} … {high:+.2f})"
        print(
            f"{name:<12}{group['images']:>8}{100 * mine['mean']:>10.2f} %"
            f"{100 * theirs['mean']:>10.2f} %{span:>28}"
        )
    print("above at each" if above else "not above at each")
    return 0 if above else 1


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
