"""Ranks of a machine find the images once: what each would find itself, in a file of them all."""

import os
import pickle
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toy
from lookalike import comm
from lookalike.data import Folder, together
from lookalike.data.folders import walk
from lookalike.data.mapped import Spill, kept
from lookalike.errors import Error
from lookalike.runs import Run

KEYS = ("data={name: folder, path: p, canvas: 16, channels: 1}", "pretrain.workers=0")


def folder(path: Path, count: int = 24) -> Path:
    """Two classes of small images, in train and test."""
    for split in ("train", "test"):
        for label in "ab":
            (path / "p" / split / label).mkdir(parents=True)
            for i in range(count):
                grey = np.full((12, 12), i, np.uint8)
                Image.fromarray(grey).save(path / "p" / split / label / f"{i:02}.bmp")
    return path


def joined(home: str, way: str) -> tuple[dict[str, int], list[str], list[str], str]:
    """How often a rank asked the system for images and folders; what it then knows of them."""
    os.chdir(home)
    asked = {"stat": 0, "scandir": 0}
    system = os.stat, os.scandir

    def stat(path, *words, **how):
        asked["stat"] += not isinstance(path, int) and os.fsdecode(path).endswith(".bmp")
        return system[0](path, *words, **how)

    def scandir(path, *words):
        asked["scandir"] += os.path.realpath(os.fsdecode(path)).startswith(home)
        return system[1](path, *words)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "stat", stat)
        patch.setattr(os, "scandir", scandir)
        run = Run(toy.recipe(*KEYS))
        said = []
        patch.setattr("lookalike.runs.note", said.append)
        if way in ("apart", "two machines") and comm.rank():  # as a rank that looks from elsewhere
            patch.setenv("HOME", tempfile.gettempdir())
        if way == "two machines":  # one file system, whose folders have long been as they are
            patch.setattr(walk, "SETTLED", -(2**62))
        if way == "no room":
            patch.setattr(together, "places", lambda: iter([Path("/proc/none")]))
        try:
            run.join()
        except Error as error:
            return asked, [str(error)], [], ""
        sets = [run.images(name) for name in ("train", "test")]
        again = run.images("train", (8, 8))
        prints = [each.fingerprint for each in (*sets, again)]
    text = [each.name(i) for each in sets for i in range(len(each))]
    text += [str(each.labels.tolist()) for each in sets] + [str(each.classes) for each in sets]
    text += [str(int(sets[0].read(i).sum())) for i in range(3)]
    return asked, text, prints, " ".join(said)


def test_of_two_ranks_one_lists_and_asks_for_every_file(ranks, tmp_path):
    home = folder(tmp_path)
    (one, mine, prints, _), (two, yours, others, _) = ranks.run(joined, str(home), "so")
    assert one["stat"] == 96
    assert one["scandir"] >= 6
    assert two == {"stat": 0, "scandir": 0}
    assert (mine, prints) == (yours, others)
    assert len(mine) == 96 + 4 + 3
    assert prints[0] == prints[2]
    assert not list(Path(tempfile.gettempdir()).glob("lookalike-found*"))


def test_a_second_machine_lists_what_the_first_asked_for_and_asks_no_file_again(ranks, tmp_path):
    home = folder(tmp_path)
    (one, mine, prints, _), (two, yours, others, _) = ranks.run(joined, str(home), "two machines")
    assert (one["stat"], two["stat"]) == (96, 0)
    assert one["scandir"] == two["scandir"]
    assert (mine, prints) == (yours, others)


def test_another_machine_is_believed_of_the_same_folders_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(walk, "SETTLED", -(2**62))
    home = folder(tmp_path / "one", 3)

    def listed(path):
        return Folder(str(path / "p"), channels=1, canvas=8).split("train")

    first, same = listed(home), listed(home)
    told = together._told([first])
    together._believe([same], told)
    assert same.digests == first.digests
    told[first.mark] = ("believed", "")
    again = listed(home)
    together._believe([again], told)
    assert again.fingerprint == "believed"
    home.rename(tmp_path / "away")
    shutil.copytree(tmp_path / "away", home)  # the same names by the same path: a local copy
    copy = listed(home)
    together._believe([copy], told)
    assert copy.order == first.order
    assert copy.fingerprint == first.fingerprint
    (home / "p/train/a/new.bmp").write_bytes(b"x")
    other = listed(home)
    together._believe([other], told)
    assert other.fingerprint not in ("believed", first.fingerprint)
    monkeypatch.setattr(walk, "SETTLED", 2**62)
    assert listed(home).mark == ""  # it may change once more in the same tick of the clock


@pytest.mark.parametrize("way", ["apart", "no room"])
def test_ranks_that_cannot_share_find_the_same_each_for_itself(ranks, tmp_path, way):
    home = folder(tmp_path)
    (one, mine, prints, said), (two, yours, others, _) = ranks.run(joined, str(home), way)
    assert one["stat"] == two["stat"] == 96
    assert (mine, prints) == (yours, others)
    assert ("each rank lists the images itself: /proc/none: No such file" in said) == (
        way == "no room"
    )


def test_what_is_handed_over_comes_back_and_no_other_file_is_read(tmp_path, monkeypatch):
    found = {"x": torch.arange(7).view(1, 7), "n": np.arange(5.0), "text": ["a"], "none": None}
    monkeypatch.setattr(together, "places", lambda: iter([tmp_path / "gone", tmp_path]))
    handed, why = together._handed(found)
    assert why == ""
    again, why = together._taken(handed)
    assert why == ""
    assert torch.equal(again["x"], found["x"])
    assert np.array_equal(again["n"], found["n"])
    assert (again["text"], again["none"]) == (["a"], None)
    again["x"].zero_()  # is this rank's own
    assert together._taken(handed)[0]["x"].tolist() == [list(range(7))]
    other = tmp_path / "other"
    other.write_bytes(pickle.dumps(1))
    for path in (other, tmp_path / "nothing"):
        assert together._taken(handed._replace(path=str(path)))[0] is None
    assert together._handed(lambda: 0)[0] is None


def test_an_array_is_the_same_in_memory_in_a_file_and_on_a_full_disk(monkeypatch):
    monkeypatch.setattr("lookalike.data.mapped.SMALL", 100)
    words = [bytes([i]) * i for i in range(60)]
    for most in (None, 0, 300):
        with pytest.MonkeyPatch.context() as patch:
            if most is not None:
                patch.setattr("lookalike.data.mapped._nameless", lambda most=most: Full(most))
            spill = Spill()
            for word in words:
                spill.write(word)
            assert spill.done().tobytes() == b"".join(words)
    numbers = np.arange(1000, dtype=np.int32).reshape(250, 4)
    assert np.array_equal(kept(numbers), numbers)


class Full:
    """A file on a disk that has no more room than `most` bytes."""

    def __init__(self, most: int) -> None:
        self.file, self.most = tempfile.TemporaryFile(buffering=0), most  # noqa: SIM115

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, piece) -> int:
        room = self.most - self.file.tell()
        if room <= 0:
            raise OSError(28, "No space left on device")
        return self.file.write(piece[:room])
