"""How long it takes to index a folder of a million images, beside torchvision's own listing of the
same tree.

    python benchmarks/index.py [FOLDERS FILES_IN_EACH [WHERE]]

Makes the tree in a temporary folder (of WHERE), hard links of a few small files. Cold: after the
kernel's caches were dropped, where this user may drop them; it is said. Printed last: torchvision /
ours, both warm, ours without what an earlier run kept.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from lookalike.data import Folder, cache

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
    main()
