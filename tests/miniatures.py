"""Published data sets in small, enough to train on: a few classes in the layout of each, images
made here. The corners of each layout are in data/test_published.py.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image


def image(path: Path, one: int, height: int = 64, width: int = 64) -> None:
    """Classes differ by a coarse pattern."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(one).integers(0, 255, (4, 4, 3))
    noise = np.random.default_rng(len(str(path))).normal(0, 30, (height, width, 3))
    whole = np.kron(coarse, np.ones((height // 4, width // 4, 1))) + noise
    Image.fromarray(whole.clip(0, 255).astype(np.uint8)).save(path)


def trainable_market(root: Path) -> Iterator[str]:
    """Four persons to train on, four others whose first two images ask; a distractor and one of no
    one.
    """
    for one, k in np.ndindex(8, 6):
        part = "bounding_box_train" if one < 4 else "query" if k < 2 else "bounding_box_test"
        image(root / part / f"{one + 1:04d}_c{k % 3 + 1}s1_{k:06d}_00.jpg", one, 128)
    for name in ("0000_c1s1_000001_00.jpg", "-1_c1s1_000001_00.jpg"):
        image(root / "bounding_box_test" / name, 99, 128)
    yield f"data.path={root}"


def trainable_cub(root: Path) -> Iterator[str]:
    """Four birds of either half, five images each."""
    paths = [
        f"{one:03d}.Bird/{k}.jpg" for one in (1, 2, 3, 4, 101, 102, 103, 104) for k in range(5)
    ]
    for path in paths:
        image(root / "images" / path, int(path[:3]))
    lines = {"images.txt": paths, "image_class_labels.txt": [int(path[:3]) for path in paths]}
    for name, column in lines.items():
        (root / name).write_text("".join(f"{i} {value}\n" for i, value in enumerate(column, 1)))
    yield f"data.path={root}"
    yield "finetune.head_epochs=0.5"


def trainable_sop(root: Path) -> Iterator[str]:
    """Four products of either part, four images each."""
    for part, first in (("train", 1), ("test", 5)):
        rows = [
            (one, f"chair_final/{one}_{k}.JPG") for one in range(first, first + 4) for k in range(4)
        ]
        for one, path in rows:
            image(root / path, one)
        lines = [f"{i} {one} 1 {path}\n" for i, (one, path) in enumerate(rows, 1)]
        (root / f"Ebay_{part}.txt").write_text(
            "image_id class_id super_class_id path\n" + "".join(lines)
        )
    yield f"data.path={root}"


def trainable_lfw(root: Path) -> Iterator[str]:
    """Six persons to train on; six others in two folds of three pairs of one and three of two."""
    for one, k in np.ndindex(6, 8):
        image(root / "faces" / f"P{one}" / f"{k}.jpg", one, 112, 112)
    for one, k in np.ndindex(6, 3):
        image(root / "lfw" / f"N{one}" / f"N{one}_{k + 1:04d}.jpg", 20 + one, 112, 112)
    lines = ["2\t3"]
    for fold in range(2):
        lines += [f"N{3 * fold + a}\t1\t2" for a in range(3)] + [
            f"N{a}\t{fold + 1}\tN{3 + a}\t3" for a in range(3)
        ]
    (root / "lfw" / "pairs.txt").write_text("\n".join(lines) + "\n")
    yield f"data.path={root / 'faces'}"
    yield f"evaluate.data.path={root / 'lfw'}"
    yield "data.test_fraction=0.1"
    yield "evaluate.fars=[0.2]"
