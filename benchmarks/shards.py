"""How fast a shard is indexed, beside Python's tarfile on the same shard, and what random reads
cost.

    python benchmarks/shards.py [SAMPLES [BYTES]]

A sample is an image of BYTES random bytes and a .cls, so two members. Ours also computes every
image's crc32. Printed last: members a second, and tarfile / ours, medians of five rounds in turn;
the shard lies in the page cache.
"""

import os
import random
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lookalike.data import Shards
from lookalike.data.pack import member
from lookalike.data.webdataset.samples import read_samples


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Writes one shard, reads it both ways in turn, then at random."""
    samples, size = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (50_000, 4096)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.tar"
        with path.open("wb") as file:
            for i in range(samples):
                file.write(
                    member(f"{i:09d}.jpg", os.urandom(size))
                    + member(f"{i:09d}.cls", b"%d" % (i % 1000))
                )
            file.write(bytes(1024))

        def peer() -> None:
            with tarfile.open(path) as tar:
                tar.getmembers()

        def ours() -> None:
            with path.open("rb", buffering=1 << 20) as file:
                read_samples(file, str(path))

        rows = [(seconds(peer), seconds(ours)) for _ in range(5)]
        images = Shards(str(path), test_fraction=0).split("train")
        some = random.Random(0).sample(range(samples), min(samples, 20_000))
        reads = seconds(lambda: [images.contents(i) for i in some])
    peers, mine = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"random reads, crc32 checked: {len(some) / reads:,.0f} images/s of {size} bytes")
    print(f"{2 * samples / mine:,.0f} members/s; tarfile / ours {peers / mine:.2f}")


if __name__ == "__main__":
    main()
