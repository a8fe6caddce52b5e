"""Images of coloured squares with their masks: a toy on which segmentation must succeed."""

from pathlib import Path

import numpy as np
from PIL import Image

PALETTE = [(0, 0, 0), (200, 30, 30), (30, 200, 30), (30, 30, 200)]
COLOURS = np.array([(40, 40, 40), (220, 60, 60), (60, 220, 60), (60, 60, 220)], float)


def write_mask(path: Path, mask_HW: np.ndarray) -> None:
    """As a palette PNG, whose colours say nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask_HW.astype(np.uint8))
    image.putpalette(np.random.default_rng(0).integers(0, 255, 768, dtype=np.uint8).tobytes())
    image.save(path)


def write_image(path: Path, image_HWC: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image_HWC.astype(np.uint8)).save(path)


def drawn(seed: int, side: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """An image, uint8 (H, W, 3), and its mask, of two squares of 16 pixels on grey."""
    generator = np.random.default_rng(seed)
    mask = np.zeros((side, side), np.uint8)
    for kind in generator.permutation([1, 2, 3])[:2]:
        top, left = 8 * generator.integers(0, (side - 16) // 8 + 1, 2)
        mask[top : top + 16, left : left + 16] = kind
    image = COLOURS[mask] + generator.normal(0, 6, (side, side, 3))
    return image.clip(0, 255).astype(np.uint8), mask


def squares(root: Path, *, train: int = 24, test: int = 8, random: bool = False) -> Path:
    """PATH/images/{train,val} and PATH/masks/{train,val}; `random`: masks that images do not
    tell.
    """
    for split, first, count in (("train", 0, train), ("val", 1000, test)):
        for n in range(first, first + count):
            image, mask = drawn(n)
            if random:
                mask = drawn(n + 5000)[1]
            write_image(root / "images" / split / f"{n}.png", image)
            write_mask(root / "masks" / split / f"{n}.png", mask)
    return root
