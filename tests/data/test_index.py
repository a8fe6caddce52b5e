"""The index of a folder: found again is what would be found anew, whatever changed and whatever
befell the cache.
"""

import hashlib
import os
import time
from pathlib import Path

import pytest

from lookalike.data import Folder, cache
from lookalike.data.folders import index, walk

NAMES = (
    "a/1.png",
    "a/2.JPG",
    "a-b/x.gif",
    "b/deep/er/3.webp",
    "b/note.txt",
    "loose.bmp",
    ".hid/4.png",
    "b/.5.png",
)


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Path:
    """A folder that changed long enough ago to be remembered, in a cache of its own, however small
    it is.
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "WORTH_KEEPING", 0)
    monkeypatch.setattr(walk, "SETTLED", -(2**62))
    root = tmp_path / "tree"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def brute(root: Path) -> list[bytes]:
    """Independent: every path whose parts are visible, by pathlib."""
    suffixes = {suffix.decode() for suffix in index.SUFFIXES}
    inside = [
        path.relative_to(root)
        for path in root.rglob("*")
        if path.is_file() and path.suffix.lower() in suffixes
    ]
    kept = [path for path in inside if not any(part.startswith(".") for part in path.parts)]
    return sorted(os.fsencode(path.as_posix()) for path in kept)


def listings(monkeypatch) -> list:
    """Grows by one with every folder that is listed from now on."""
    seen, listed = [], os.scandir

    def counted(path):
        seen.append(path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", counted)
    return seen


def test_found_again_without_listing_a_folder(tree, monkeypatch):
    first = index.scan(tree, tree).paths
    assert first == brute(tree)
    assert len(first) == 5
    seen = listings(monkeypatch)
    assert index.scan(tree, tree).paths == first
    assert seen == []


CHANGES = {
    "add": lambda tree: (tree / "b/deep/new.png").write_bytes(b"x"),
    "remove": lambda tree: (tree / "a/1.png").unlink(),
    "rename": lambda tree: (tree / "a/1.png").rename(tree / "a/0.png"),
    "new folder": lambda tree: (tree / "c").mkdir() or (tree / "c/1.png").write_bytes(b"x"),
    "folder gone": lambda tree: (tree / "a-b/x.gif").unlink() or (tree / "a-b").rmdir(),
    "folder renamed": lambda tree: (tree / "a").rename(tree / "z"),
    "folders exchanged": lambda tree: [
        (tree / x).rename(tree / y) for x, y in ("at", ("a-b", "a"), ("t", "a-b"))
    ],
    "a link now": lambda tree: (
        (tree / "a/1.png").unlink() or (tree / "a/1.png").symlink_to("/etc/hostname")
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen_though_times_are_put_back(tree, change):
    index.scan(tree, tree)
    times = {path: path.stat().st_mtime_ns for path in (tree, *tree.rglob("*")) if path.is_dir()}
    time.sleep(0.02)  # more than a tick of the file system's clock
    CHANGES[change](tree)
    for path, stamp in times.items():
        if path.exists():
            os.utime(path, ns=(stamp, stamp))
    wanted = [name for name in brute(tree) if not (tree / os.fsdecode(name)).is_symlink()]
    assert index.scan(tree, tree).paths == wanted


def test_where_a_link_leads_is_looked_at_each_time(tree, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    (tree / "store").mkdir()
    (tree / "store/blob").write_bytes(b"x")
    (tree / "step").symlink_to("store")
    (tree / "a/link.png").symlink_to("../step/blob")
    (tree / "a/out.png").symlink_to(tmp_path / "secret.png")
    assert b"a/link.png" in index.scan(tree, tree).paths
    assert b"a/out.png" not in index.scan(tree, tree).paths
    outside = tmp_path / "outside"
    (tree / "store").rename(outside)
    (tree / "store").symlink_to(outside)
    assert b"a/link.png" not in index.scan(tree, tree).paths


def test_a_folder_that_has_just_changed_is_listed_again(tree, monkeypatch):
    monkeypatch.setattr(walk, "SETTLED", 2_000_000_000)
    index.scan(tree, tree)
    seen = listings(monkeypatch)
    index.scan(tree, tree)
    assert len(seen) == 6


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:]]
)
def test_a_damaged_cache_is_made_anew(tree, damage, monkeypatch):
    first = index.scan(tree, tree).paths
    (kept,) = cache.home().iterdir()
    good = kept.read_bytes()
    kept.write_bytes(damage(good))
    assert index.scan(tree, tree).paths == first
    assert kept.read_bytes() == good


@pytest.mark.filterwarnings("ignore:.* no cache is kept")
def test_no_cache_can_be_written_and_all_goes_on(tree, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tree / "loose.bmp"))
    monkeypatch.setattr("tempfile.tempdir", str(tree / "loose.bmp"))
    assert index.scan(tree, tree).paths == index.scan(tree, tree).paths == brute(tree)


def test_two_folders_and_two_walls_do_not_share_what_is_kept(tree, tmp_path):
    assert index.scan(tree / "a", tree).paths == [b"1.png", b"2.JPG"]
    (tree / "a/link.png").symlink_to("../b/deep/er/3.webp")
    assert index.scan(tree / "a", tree).paths == [b"1.png", b"2.JPG", b"link.png"]
    assert index.scan(tree / "a", tree / "a").paths == [b"1.png", b"2.JPG"]
    assert index.scan(tree / "b", tree).paths == [b"deep/er/3.webp"]


def test_sealed_parts_come_back_or_nothing_does():
    parts = [b"", b"abc", bytes(1000), b""]
    sealed = cache.seal(parts)
    assert cache.unseal(sealed) == parts
    for at in range(0, len(sealed), 7):
        with pytest.raises(ValueError):
            cache.unseal(sealed[:at] + bytes([sealed[at] ^ 4]) + sealed[at + 1 :])
        with pytest.raises(ValueError):
            cache.unseal(sealed[:at])


def test_units_are_the_law_of_the_split_and_remembered(tree, monkeypatch):
    names = [b"%d.png" % i for i in range(500)]
    wanted = [index.unit(name) for name in names]
    assert index.units(names, tree).tolist() == wanted
    assert index.units(names, tree).tolist() == wanted
    assert index.units(names[1:], tree).tolist() == wanted[1:]
    assert index.unit(b"1.png") == int(hashlib.sha256(b"1.png").hexdigest()[:12], 16) / 2**48


def test_top_folders_are_those_of_each_path():
    paths = sorted([b"a/1", b"a-b/1", b"a-b/2", b"a/2/3", b"b/1", b"a0/1", b"a./1", b"\xff/1"])
    found = index.top_folders(paths)
    assert {name: [paths[i] for i in rows] for name, rows in found.items()} == {
        name: [path for path in paths if path.split(b"/")[0] == name]
        for name in {p.split(b"/")[0] for p in paths}
    }
    assert index.top_folders([b"a/1", b"loose"]) == b"loose"


def test_a_folder_source_is_the_same_remembered(tree):
    (tree / "loose.bmp").unlink()
    for split in ("train", "test"):
        one, two = (Folder(str(tree), test_fraction=0.5).split(split) for _ in range(2))
        assert [one.name(i) for i in range(len(one))] == [two.name(i) for i in range(len(two))]
        assert one.labels.tolist() == two.labels.tolist()
        assert one.classes == two.classes == ("a", "a-b", "b")
        assert one.fingerprint == two.fingerprint


def test_the_cache_lies_where_the_system_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "here"))
    assert cache.home() == tmp_path / "here" / "lookalike"
    for relative in ("", "here"):  # which the XDG specification says to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", relative)
        assert cache.home() == tmp_path / ".cache" / "lookalike"


@pytest.mark.filterwarnings("ignore:there is no home folder")
def test_without_any_place_nothing_is_kept_and_nothing_is_wrong(monkeypatch):
    def nowhere(*words, **more):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.setattr(cache, "user_cache_path", nowhere)
    monkeypatch.setattr("tempfile.tempdir", "/nonexistent")
    monkeypatch.setenv("HOME", "/nonexistent")  # what was found before was for another
    cache.store("key", [b"value"])
    with cache.locked("key"):
        assert cache.load("key") is None
