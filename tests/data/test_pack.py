"""Packing: what comes out of the shards is what went in, byte for byte the same however often it
was killed.
"""

import hashlib
import json
import os
import signal
import tarfile
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import children
from lookalike import cli
from lookalike.data import Digits, Folder, Shards, cache
from lookalike.data.decode import BadImage, decode
from lookalike.data.pack import Packing, pack
from lookalike.errors import DataError
from lookalike.geometry import PixelFormat


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    for i in range(60):
        path = root / f"{('cat', 'dog', 'emu')[i % 3]}/{i:02d}.{('png', 'jpg', 'webp')[i % 4 % 3]}"
        path.parent.mkdir(exist_ok=True)
        Image.effect_noise((40 + i, 30), 60).convert("RGB").save(path)
    (root / "cat/bad.png").write_bytes(b"<html>")
    (root / "dog/cut.jpg").write_bytes((root / "dog/01.jpg").read_bytes()[:200])
    return root


SMALL = Packing(shard_mb=0.02)


def made(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def readable(images) -> list[int]:
    def good(i: int) -> bool:
        try:
            images.read(i)
        except BadImage:
            return False
        return True

    return [i for i in range(len(images)) if good(i)]


def test_shards_give_the_same_images_labels_classes_and_splits(photos, tmp_path):
    source = Folder(str(photos), canvas=16, test_fraction=0.3)
    pack(source, tmp_path / "s", SMALL, workers=0)
    assert len(list((tmp_path / "s").glob("train-*.tar"))) > 2
    for split in ("train", "test"):
        before, after = source.split(split), Shards(str(tmp_path / "s"), canvas=16).split(split)
        kept = readable(before)
        assert len(after) == len(kept)
        assert after.classes == before.classes == ("cat", "dog", "emu")
        assert after.labels.tolist() == before.labels[kept].tolist()
        for j, i in enumerate(kept):
            assert after.contents(j) == before.contents(i)
            assert torch.equal(after.read(j), before.read(i))
    listed = [
        json.loads(line) for line in (tmp_path / "s/bad_samples.jsonl").read_text().splitlines()
    ]
    assert sorted(record["path"].rsplit("/", 1)[1] for record in listed) == ["bad.png", "cut.jpg"]
    assert all(record["reason"] for record in listed)


def test_the_index_beside_a_shard_is_what_reading_it_finds(photos, tmp_path):
    pack(Folder(str(photos)), tmp_path / "s", SMALL, workers=0)
    kept = Shards(str(tmp_path / "s")).split("train")
    for path in (tmp_path / "s").glob("*.idx"):
        path.unlink()
    found = Shards(str(tmp_path / "s")).split("train")
    assert found.fingerprint == kept.fingerprint
    assert [found.contents(i) for i in range(len(found))] == [
        kept.contents(i) for i in range(len(kept))
    ]
    for path in (tmp_path / "s").glob("*.tar"):
        with tarfile.open(path) as tar:
            assert {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar} == {(0, 0, 0, "", 0o644)}


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_and_repetition_change_no_byte(photos, tmp_path, workers):
    for name, count in (("one", 0), ("two", workers), ("two", workers)):
        pack(
            Folder(str(photos)),
            tmp_path / name,
            Packing(shard_mb=0.02, resize=20, form="webp"),
            workers=count,
        )
    assert made(tmp_path / "one") == made(tmp_path / "two")


def test_killed_anywhere_it_goes_on_to_the_same_bytes(photos, tmp_path):
    pack(Folder(str(photos)), tmp_path / "whole", SMALL, workers=0)
    code = (
        "import sys, time, pathlib, lookalike.data.pack as p\n"
        "from lookalike.data import Folder\n"
        "p.encode = (lambda do: lambda *a: (time.sleep(.01), do(*a))[1])(p.encode)\n"
        "p.pack(Folder(sys.argv[1]), pathlib.Path(sys.argv[2]), p.Packing(shard_mb=.02), 0)\n"
    )
    target, kills = tmp_path / "killed", 0
    for wait in (0.05, 0.15, 0.3):
        program = children.Program(code, str(photos), str(target))
        while not list(target.glob(".tmp-*")) and program.process.is_alive():
            time.sleep(0.005)
        time.sleep(wait)
        program.send_signal(signal.SIGKILL)
        kills += program.wait().returncode == -signal.SIGKILL
        assert not (target / "index.json").exists()
        for path in target.glob("*.tar"):
            tarfile.open(path).close()
    assert kills == 3
    pack(Folder(str(photos)), target, SMALL, workers=0)
    assert made(target) == made(tmp_path / "whole")


def test_a_shard_damaged_or_removed_since_is_written_again_and_others_are_left(photos, tmp_path):
    target = tmp_path / "s"
    pack(Folder(str(photos)), target, SMALL, workers=0)
    wanted, stamp = made(target), (target / "train-000000.tar").stat().st_mtime_ns
    (target / "train-000001.tar").unlink()
    os.truncate(target / "train-000002.tar", 700)
    (target / "test-000000.tar.idx").write_bytes(b"")
    (target / ".tmp-train-000001.tar-1").write_bytes(b"left by a kill")
    pack(Folder(str(photos)), target, SMALL, workers=0)
    assert made(target) == wanted
    assert (target / "train-000000.tar").stat().st_mtime_ns == stamp


def test_other_images_or_options_in_one_folder_are_refused(photos, tmp_path):
    pack(Folder(str(photos)), tmp_path / "s", SMALL, workers=0)
    for source, how in ((Folder(str(photos)), Packing()), (Folder(str(photos / "cat")), SMALL)):
        with pytest.raises(
            DataError,
            match="holds shards of other images, labels or options: choose another folder",
        ):
            pack(source, tmp_path / "s", how, workers=0)


@pytest.mark.parametrize(("form", "suffix"), [("jpeg", "JPEG"), ("webp", "WEBP"), (None, "JPEG")])
def test_resized_images_have_the_shorter_side_and_none_grows(photos, tmp_path, form, suffix):
    pack(
        Folder(str(photos), test_fraction=0.3),
        tmp_path / "s",
        Packing(resize=25, form=form, shard_samples=10),
        0,
    )
    images = Shards(str(tmp_path / "s")).split("train")
    assert all(size <= 10 for size in images.sizes_of_shards())
    for i in range(len(images)):
        data = images.contents(i)
        assert min(decode(data, "", size=None, form=PixelFormat(3)).shape[1:]) == 25
        assert (data[:3] == b"\xff\xd8\xff") == (suffix == "JPEG")
    pack(Folder(str(photos), test_fraction=0.3), tmp_path / "t", Packing(resize=5000), 0)
    big = Shards(str(tmp_path / "t")).split("train")
    assert min(decode(big.contents(0), "", size=None, form=PixelFormat(3)).shape[1:]) == 30


def test_images_in_memory_are_packed_without_loss(tmp_path):
    pack(Digits(), tmp_path / "s", Packing(shard_samples=700), workers=0)
    for split in ("train", "test"):
        before, after = (
            Digits().split(split),
            Shards(str(tmp_path / "s"), canvas=8, channels=1).split(split),
        )
        assert after.labels.tolist() == before.labels.tolist()
        assert after.classes == before.classes
        assert torch.equal(
            torch.stack([after.read(i) for i in range(50)]), before.read_many(range(50))
        )


def test_a_set_without_test_or_labels_says_so(photos, tmp_path):
    with pytest.warns(UserWarning, match="no test set is packed: .*none of its"):
        pack(Folder(str(photos), test_fraction=0, labels="none"), tmp_path / "s", SMALL, workers=0)
    assert Shards(str(tmp_path / "s")).split("train").labels is None
    with pytest.raises(DataError, match="holds no test set: pack one"):
        Shards(str(tmp_path / "s")).split("test")


@pytest.mark.parametrize(
    "words",
    [
        ("--format", "gif"),
        ("--format", "keep", "--resize", "9"),
        ("--quality", "0"),
        ("--shard-size", "-1"),
        ("a.b=1",),
    ],
)
def test_the_shell_refuses_what_cannot_be(photos, tmp_path, capsys, words):
    call = ["pack", str(photos), str(tmp_path / "s"), *words]
    assert cli.guarded(lambda: cli.app(call, standalone_mode=False)) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "s").exists()


def test_shards_may_not_lie_among_the_images(photos, capsys):
    for target in (photos, photos / "shards"):
        assert (
            cli.guarded(
                lambda t=target: cli.app(["pack", str(photos), str(t)], standalone_mode=False)
            )
            == 2
        )
        assert "lies in the folder that is packed" in capsys.readouterr().err
    assert not (photos / "shards").exists()


def test_the_shell_packs_a_folder_and_a_recipe(photos, tmp_path, capsys):
    call = ["pack", str(photos), str(tmp_path / "s"), "--shard-size", "0.02", "--workers", "0"]
    assert cli.guarded(lambda: cli.app(call, standalone_mode=False)) == 0
    assert "2 bad ones left out" in capsys.readouterr().out
    pack(Folder(str(photos)), tmp_path / "t", SMALL, workers=0)
    assert made(tmp_path / "s") == made(tmp_path / "t")
    recipe = Path(__file__).parents[2] / "recipes/quickstart.yaml"
    call = ["pack", str(recipe), str(tmp_path / "d"), "data.test_fraction=0.5", "--workers", "0"]
    assert cli.guarded(lambda: cli.app(call, standalone_mode=False)) == 0
    assert len(Shards(str(tmp_path / "d"), channels=1).split("test")) == len(
        Digits(0.5).split("test")
    )


def test_a_listing_that_is_not_ours_is_refused(photos, tmp_path):
    pack(Folder(str(photos)), tmp_path / "s", SMALL, workers=0)
    good = json.loads((tmp_path / "s/index.json").read_text())
    evil = [
        {**good["splits"]["train"][0], "name": name}
        for name in ("../x.tar", "/etc/passwd", 3, "a/b.tar")
    ]
    texts = [json.dumps({**good, "splits": {"train": [entry]}}) for entry in evil]
    for text in (
        *texts,
        "",
        "[",
        "[]",
        "3",
        '{"format": 2}',
        json.dumps({**good, "splits": 1}),
        "[" * 100_000,
    ):
        (tmp_path / "s/index.json").write_text(text)
        with pytest.raises(
            DataError, match=r"index\.json: not a listing that `lookalike pack` wrote"
        ):
            Shards(str(tmp_path / "s")).split("train")


def test_a_label_beyond_the_classes_is_refused(photos, tmp_path):
    pack(Folder(str(photos)), tmp_path / "s", SMALL, workers=0)
    listing = json.loads((tmp_path / "s/index.json").read_text())
    (tmp_path / "s/index.json").write_text(
        json.dumps({**listing, "classes": {**listing["classes"], "train": ["cat"]}})
    )
    with pytest.raises(DataError, match="labels beyond its classes: pack again"):
        Shards(str(tmp_path / "s")).split("train")
    assert cache.unseal((tmp_path / "s/train-000000.tar.idx").read_bytes())
