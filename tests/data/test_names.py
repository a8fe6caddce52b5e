"""Many names in little memory: the same as a list of them."""

import hashlib
import random

import numpy as np
import pytest

from lookalike.data import names
from lookalike.data.images import FileImages, Reading
from lookalike.data.names import Names
from lookalike.geometry import PixelFormat


@pytest.fixture
def many(monkeypatch) -> list[bytes]:
    """Some names, of which few are Python's at a time."""
    monkeypatch.setattr(names, "BLOCK", 7)
    monkeypatch.setattr(names, "_RUN", 20)
    monkeypatch.setattr("lookalike.data.mapped.SMALL", 64)
    draw = random.Random(0)
    return [bytes(draw.randrange(256) for _ in range(draw.randrange(6))) for _ in range(150)]


def test_names_are_a_list_of_them(many):
    packed = Names(many)
    assert packed == many
    assert list(packed) == many
    assert [packed[i] for i in (0, -1, 77)] == [many[i] for i in (0, -1, 77)]
    assert packed[3:40:5] == many[3:40:5]
    with pytest.raises(IndexError):
        packed[150]
    mask = np.arange(150) % 3 == 1
    assert packed.where(mask) == [name for name, is_in in zip(many, mask, strict=True) if is_in]
    assert list(packed.ordered()) == sorted(many)
    assert list(Names(sorted(many)).ordered()) == sorted(many)
    assert Names([]) == []
    assert Names.of(*packed.parts) == many


def test_the_digest_is_of_the_names_and_their_ends(many):
    ends = np.cumsum([0, *map(len, many)], dtype=np.int64)
    wanted = hashlib.sha256(b"".join(many) + ends.tobytes()).hexdigest()
    assert Names(many).digest == wanted


def test_the_mark_of_some_names_knows_which(many):
    packed, mask = Names(many, "there"), np.arange(150) < 9
    assert Names(many).where(mask).mark == ""
    marks = {packed.mark, packed.where(mask).mark, packed.where(~mask).mark}
    assert len(marks) == 3
    assert packed.where(mask).mark == Names(many, "there").where(mask).mark


def test_the_fingerprint_of_many_is_that_of_all_lines_at_once(many, tmp_path, monkeypatch):
    monkeypatch.setattr("lookalike.data.images.files._ASKED", 13)
    paths = [b"%d.png" % i for i in random.Random(1).sample(range(200), 90)]
    for k, path in enumerate(paths[:-3]):
        (tmp_path / path.decode()).write_bytes(bytes(k))
    images = FileImages(tmp_path, paths, Reading(8, PixelFormat(3)))
    sizes = {path: k if k < 87 else -1 for k, path in enumerate(paths)}
    lines = b"".join(b"%b\0%d\n" % (path, sizes[path]) for path in sorted(paths))
    assert images.fingerprint == hashlib.sha256(lines).hexdigest()
    mtimes = [(tmp_path / p.decode()).stat().st_mtime_ns if sizes[p] >= 0 else -1 for p in sizes]
    by_path = [mtime for _, mtime in sorted(zip(paths, mtimes, strict=True))]
    assert images.times == hashlib.sha256(np.array(by_path, np.int64).tobytes()).hexdigest()
