"""How long it takes to index a folder of a million images, beside torchvision's own listing of the
same tree.

    python benchmarks/index.py [FOLDERS FILES_IN_EACH [WHERE]]

    python benchmarks/index.py memory [NAMES]

The second makes no file: NAMES names (ten million) in 1,000 class folders are pretended to a
rank that lists them and to one that maps what it found, each a process of its own; printed are the
memory of its own that each then holds, and held at most, above what its imports take.

The first makes the tree in a temporary folder (of WHERE), hard links of a few small files. Cold:
after the kernel's caches were dropped, where this user may drop them; it is said. Printed last:
torchvision / ours, both warm, ours without what an earlier run kept.
"""

import contextlib
import gc
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from lookalike.data import Folder, cache, together
from lookalike.data.folders import walk
from lookalike.data.images import FileImages
from lookalike.data.order import EpochOrder
from lookalike.data.passport import portable

T = TypeVar("T")
CLASSES = 1000
LINKS = 50_000  # ext4 allows 65,000 names of one file


def grow(root: Path, folders: int, files: int) -> None:
    """`folders` class folders with `files` names each."""
    made, source = 0, root
    for folder in range(folders):
        inner = root / "tree" / f"class{folder:05d}"
        inner.mkdir(parents=True)
        for file in range(files):
            if made % LINKS == 0:
                source = root / f"image{made}.jpg"
                source.write_bytes(b"never opened")
            os.link(source, inner / f"image{file:07d}.jpg")
            made += 1


def drop() -> str:
    """Empties the kernel's caches of files and names, if it may."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    except OSError:
        return "with warm kernel caches"
    return "kernel caches dropped"


def forget() -> None:
    """Empties our own cache."""
    shutil.rmtree(cache.home(), ignore_errors=True)


def timed(what: str, work: Callable[[], object]) -> float:
    """Seconds, which are printed too, with those that this process had of a core."""
    began, mine = time.perf_counter(), time.process_time()
    work()
    seconds, mine = time.perf_counter() - began, time.process_time() - mine
    print(f"{what}: {seconds:.2f} s, {mine:.2f} s of a core", flush=True)
    return seconds


class Entry:
    """A file or folder of the pretended tree."""

    def __init__(self, name: bytes, *, folder: bool = False) -> None:
        self.name, self._folder = name, folder

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return not self._folder

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self._folder

    def is_symlink(self) -> bool:
        return False


class Pretended:
    """A tree of that many names below `TREE`, which is an empty folder."""

    def __init__(self, tree: str, names: int) -> None:
        self._tree, self._each, self._system = os.fsencode(tree), names // CLASSES, os.scandir
        self._state = os.stat(tree)  # noqa: PTH116 (as it is named)

    def scandir(self, path: Any) -> Any:
        """A folder of the tree as it would be listed; others as they are."""
        if not isinstance(path, bytes) or not path.startswith(self._tree):
            return self._system(path)
        return contextlib.nullcontext(self._listed(path.removeprefix(self._tree).strip(b"/")))

    def _listed(self, inner: bytes) -> Iterator[Entry]:
        if inner:
            return (Entry(b"image%s_%07d.JPEG" % (inner, i)) for i in range(self._each))
        return (Entry(b"n%08d" % i, folder=True) for i in range(CLASSES))

    def status(self, path: bytes) -> os.stat_result:
        """The folder's own, with another inode for each."""
        inode = self._state.st_ino + zlib.crc32(path)
        long_ago = {"st_mtime_ns": 1, "st_ctime_ns": 1}
        return os.stat_result((self._state.st_mode, inode, *self._state[2:]), long_ago)

    def begin(self) -> None:
        """From now on it is there."""
        walk.os.scandir = self.scandir  # type: ignore[assignment]
        walk.status_of = self.status
        FileImages._states = lambda self, paths: [(len(path), 7) for path in paths]  # type: ignore


def own() -> int:
    """Bytes of this process that no file holds."""
    said = Path("/proc/self/status").read_text()
    return 1024 * int(said.partition("RssAnon:")[2].split()[0])


def watched(what: str, work: Callable[[], T]) -> T:
    """What it gives; the memory and time that it took are printed."""
    before, most, ended = own(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            most[0] = max(most[0], own())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    began = time.process_time()
    found = work()
    seconds = time.process_time() - began
    ended.set()
    thread.join()
    gc.collect()
    now, peak = ((size - before) / 1e6 for size in (own(), max(most[0], own())))
    print(f"  {what}: {now:.0f} MB kept, {peak:.0f} MB at most, {seconds:.1f} s of a core")
    return found


def rank(number: int, place: str, names: int) -> None:
    """A rank that lists, or one that maps what the first left in `place`."""
    torch.set_num_threads(1)
    handed = Path(place, "handed")
    if number == 0:
        tree = Path(place, "tree")
        tree.mkdir()
        Pretended(str(tree), names).begin()
        images = watched("lists and labels", lambda: Folder(str(tree)).split("train"))
        watched("fingerprint and labels", lambda: portable(images))
        found, why = watched("hands over", lambda: together._handed(images))
        handed.write_bytes(pickle.dumps((found, portable(images))))
        print(why, end="")
    else:
        found, wanted = pickle.loads(handed.read_bytes())
        images, why = watched("maps what was found", lambda: together._taken(found))
        watched("knows its fingerprint", lambda: portable(images))
        assert portable(images) == wanted, why
    order = EpochOrder(len(images), 1024, 1, seed=0)
    read = lambda: [images.name(i) for step in range(9) for i in order.ids(0, step).tolist()]  # noqa: E731
    watched("an order, and 9,216 names in it", read)


def memory(names: int) -> None:
    """Both ranks."""
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"XDG_CACHE_HOME": f"{place}/cache", "TMPDIR": place}
        for number in range(2):
            print(f"rank {number}, {names:,} names", flush=True)
            words = [sys.executable, __file__, "rank", str(number), place, str(names)]
            subprocess.run(words, check=True)


def main() -> None:
    """Cold, again, once more, and what a fingerprint takes."""
    folders, files = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (1000, 1000)
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else None) as place:
        os.environ["XDG_CACHE_HOME"] = f"{place}/cache"
        grow(Path(place), folders, files)
        time.sleep(3)  # a folder that has just changed is not remembered
        tree = str(Path(place) / "tree")

        def peer() -> None:
            make_dataset(tree, find_classes(tree)[1], extensions=IMG_EXTENSIONS)

        def ours() -> None:
            Folder(tree).split("train")

        print(f"{folders * files:,} files in {folders:,} folders")
        how = drop()
        timed(f"torchvision, {how}", peer)
        how = drop()
        timed(f"ours, {how}, nothing kept", ours)
        timed("ours, again", ours)
        rows = []
        for _ in range(3):
            forget()
            rows.append((timed("torchvision, warm", peer), timed("ours, warm, nothing kept", ours)))
        images = Folder(tree).split("train")
        timed(f"fingerprint (sizes of {len(images):,} files)", lambda: images.fingerprint)
        print(f"torchvision / ours: {sorted(peer / ours for peer, ours in rows)[1]:.2f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        memory(int(sys.argv[2]) if len(sys.argv) > 2 else 10_000_000)
    elif sys.argv[1:2] == ["rank"]:
        rank(int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
    else:
        main()
