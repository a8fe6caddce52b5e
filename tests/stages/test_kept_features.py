"""Features kept in a run folder: believed with their checksum, made again without, never used
damaged.
"""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import toy
from lookalike.evaluation.features import PIXELS, Features, cached, pixels
from lookalike.stages.probe import probe

KEY = ("model", "images")


def made() -> Features:
    x_ND = torch.rand(300, 40, generator=torch.Generator().manual_seed(0))
    return Features(x_ND, torch.arange(300) % 7, 2, torch.arange(300))


def same(one: Features, other: Features) -> bool:
    return one.dropped == other.dropped and all(
        torch.equal(a, b) for a, b in zip(one, other, strict=True) if isinstance(a, torch.Tensor)
    )


@pytest.fixture
def kept(tmp_path) -> Path:
    cached(tmp_path, KEY, made)
    (path,) = tmp_path.iterdir()
    return path


def zeroed_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8192:12288] = bytes(4096)
    path.write_bytes(data)


def flipped_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-777] ^= 1
    path.write_bytes(data)


def swapped_labels(path: Path) -> None:
    tensors = load_file(path)
    save_file({**tensors, "labels_N": tensors["labels_N"].flip(0)}, path, {"sha256": "0" * 64})


DAMAGES = {
    "a page of zeros": zeroed_page,
    "one bit": flipped_bit,
    "other labels": swapped_labels,
    "no checksum": lambda path: save_file(load_file(path), path),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "another file": lambda path: path.write_bytes(b"PK\x03\x04" * 99),
    "a tensor less": lambda path: save_file({"x_ND": torch.ones(3, 2)}, path),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_features_are_made_again_and_that_is_said(kept, capsys, kind):
    DAMAGES[kind](kept)
    assert same(cached(kept.parent, KEY, made), made())
    assert f"{kept}: kept features are damaged (" in capsys.readouterr().err
    assert same(cached(kept.parent, KEY, lambda: pytest.fail("made again")), made())
    assert not capsys.readouterr().err


def test_scores_come_from_whole_features_only(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    recipe = toy.recipe("probe.baselines=false")
    first = probe(run / "backbone", recipe, run)
    for path in (run / "features").iterdir():
        zeroed_page(path)
    assert probe(run / "backbone", recipe, run) == first


@pytest.mark.parametrize(
    ("height", "width", "wide"), [(256, 256, 32 * 32), (64, 32, 32 * 16), (20, 1000, 32)]
)
def test_raw_pixels_are_few(height, width, wide):
    canvas_BCHW = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    x_BD = pixels(canvas_BCHW)
    assert x_BD.shape == (2, 3 * wide)
    assert 0 <= float(x_BD.min()) <= float(x_BD.max()) <= 1
    mean = canvas_BCHW.float().mean(dim=(2, 3)) / 255
    torch.testing.assert_close(x_BD.view(2, 3, -1).mean(dim=2), mean, atol=0.02, rtol=0)


def test_raw_pixels_of_a_small_canvas_are_the_canvas():
    canvas_BCHW = torch.randint(0, 256, (2, 3, PIXELS, 28), dtype=torch.uint8)
    assert torch.equal(pixels(canvas_BCHW), canvas_BCHW.flatten(1) / 255)
