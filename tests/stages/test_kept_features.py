"""Features kept in a run folder: believed with their checksums, made again without, a block at a
time, never used damaged.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import toy
from lookalike.evaluation.blocks import BLOCK, BLOCKS, HEADER, IDS, PART, ROWS, Form
from lookalike.evaluation.features import PIXELS, pixels
from lookalike.evaluation.store import Made, Stored, stored
from lookalike.stages.probe import probe

FORM = Form(3 * BLOCK + 40, "float32")
WIDTH = 40
ROW = 4 * WIDTH
BAD = {0: (3,), 1: (), 2: (2 * BLOCK, 2 * BLOCK + 9), 3: ()}


def made(asked: list[int], bad: dict[int, tuple[int, ...]] = BAD) -> Callable[..., Iterator[Made]]:
    """A maker that notes what it was asked for."""

    def make(numbers: Sequence[int]) -> Iterator[Made]:
        for n in numbers:
            asked.append(n)
            ids = [i for i in FORM.images_of(n) if i not in bad[n]]
            x_ND = torch.rand(FORM.images, WIDTH, generator=torch.Generator().manual_seed(0))
            yield Made(n, bad[n], x_ND[ids])

    return make


def same(one: Stored, other: Stored) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


WHOLE = stored(None, FORM, made([]))


@pytest.fixture
def kept(tmp_path) -> Path:
    assert same(stored(tmp_path / "f", FORM, made([])), WHOLE)
    return tmp_path / "f"


def change(path: Path, at: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(content)] = content
    path.write_bytes(data)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path: Path, left: int) -> None:
    path.write_bytes(path.read_bytes()[:left])


def without_line(kept: Path, n: int) -> None:
    lines = (kept / BLOCKS).read_text().splitlines(keepends=True)
    (kept / BLOCKS).write_text("".join(lines[: n + 1] + lines[n + 2 :]))


def other_bad(kept: Path) -> None:
    """A line that tells of another image than the one that could not be read."""
    lines = (kept / BLOCKS).read_text().splitlines()
    number, _, sha256 = json.loads(lines[1])
    lines[1] = json.dumps([number, [4], sha256])
    (kept / BLOCKS).write_text("\n".join(lines))


SIZE = HEADER + (FORM.images - 3) * ROW
# What is done to the folder, and which blocks are made again then.
DAMAGES: dict[str, tuple[Callable[[Path], None], list[int]]] = {
    "a page of zeros": (lambda kept: change(kept / ROWS, 8192, bytes(4096)), [0]),
    "zeros over a border": (
        lambda kept: change(kept / ROWS, HEADER + 255 * ROW - 9, bytes(99)),
        [0, 1],
    ),
    "one bit": (lambda kept: flip(kept / ROWS, SIZE - 1), [3]),
    "the header": (lambda kept: flip(kept / ROWS, 70), []),
    "longer": (lambda kept: change(kept / ROWS, SIZE, b"more"), []),
    "a line less": (lambda kept: without_line(kept, 1), [1]),
    "a line less, of a block with gaps": (lambda kept: without_line(kept, 0), [0, 1, 2, 3]),
    "another image left out": (other_bad, [0]),
    "a width of others": (lambda kept: change(kept / BLOCKS, 0, b"{]"), [0, 1, 2, 3]),
    "no checksum": (lambda kept: (kept / BLOCKS).unlink(), [0, 1, 2, 3]),
    "no checksum, but an empty file": (lambda kept: cut(kept / BLOCKS, 0), [0, 1, 2, 3]),
    "cut short": (lambda kept: cut(kept / ROWS, SIZE - 100), [3]),
    "cut to half": (lambda kept: cut(kept / ROWS, SIZE // 2), [1, 2, 3]),
    "empty": (lambda kept: cut(kept / ROWS, 0), [0, 1, 2, 3]),
    "another file": (lambda kept: (kept / ROWS).write_bytes(b"PK\x03\x04" * 99), [0, 1, 2, 3]),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_features_are_made_again_and_that_is_said(kept, capsys, kind):
    """And those alone."""
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    asked: list[int] = []
    damage, expected = DAMAGES[kind]
    damage(kept)
    assert same(stored(kept, FORM, made(asked)), WHOLE)
    assert sorted(set(asked)) == expected
    assert f"{kept}: kept features are damaged (" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    assert same(stored(kept, FORM, lambda numbers: pytest.fail("made again")), WHOLE)
    assert not capsys.readouterr().err


def test_damage_in_what_is_half_done_is_found_too(tmp_path, capsys):
    def three(numbers: Sequence[int]) -> Iterator[Made]:
        yield from made([])(numbers[:3])
        raise InterruptedError

    with pytest.raises(InterruptedError):
        stored(tmp_path, FORM, three)
    flip(tmp_path / PART, HEADER + BLOCK * ROW + 5)
    with (tmp_path / "blocks-0.jsonl").open("a") as file:
        file.write('[3, [], "torn')
    asked: list[int] = []
    assert same(stored(tmp_path, FORM, made(asked)), WHOLE)
    assert asked == [1, 3]
    assert "1 of 4 blocks changed since they were written" in capsys.readouterr().err


def test_numbers_of_images_for_others_are_written_again(kept):
    (kept / IDS).write_bytes(b"")
    stored(kept, FORM, made([]))
    assert np.array_equal(np.load(kept / IDS), WHOLE.ids_N)
    assert np.array_equal(np.load(kept / ROWS), WHOLE.x_ND)


def test_an_image_that_can_be_read_again_moves_all_rows_after_it(kept):
    """Where its block is made again: all are then, since none lies where it did."""
    flip(kept / ROWS, HEADER + 300 * ROW)
    more = {**BAD, 1: (BLOCK + 7,)}
    found = stored(kept, FORM, made([], more))
    assert same(found, stored(None, FORM, made([], more)))
    assert len(found.x_ND) == len(WHOLE.x_ND) - 1


def test_what_is_changed_in_memory_changes_no_file(kept):
    found = stored(kept, FORM, made([]))
    found.x_ND.zero_()
    assert same(stored(kept, FORM, lambda numbers: pytest.fail("made again")), WHOLE)


def test_scores_come_from_whole_features_only(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    recipe = toy.recipe("probe.baselines=false")
    first = probe(run / "backbone", recipe, run)
    for path in (run / "features").glob("*/rows.npy"):
        change(path, 200, bytes(4096))
    (run / "probe.json").unlink()  # where every score is there, no feature is looked at
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
