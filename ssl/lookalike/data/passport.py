"""What a stage was made of, written beside what it made: whether the images and labels are still the same.

A data set's fingerprint says which files of how many bytes there are, and not what is in them. Of files there are two
marks more: `content`, a hash of some of their bytes, and `times`, a hash of all mtimes. Together they see an image
that was overwritten by another of the same size: always on the machine where it happened, as long as its mtime
changed; elsewhere, as in a copy, where it is among the files looked into, which up to 1,024 are all of them. In tar
shards and in memory the fingerprint itself is of the content.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from torch import Tensor

from lookalike.data.pictures import FilePictures, Pictures
from lookalike.data.pictures.encoded import Rows

FILES = 1024
"""Of so many files, evenly spread, some bytes are read."""

_READS = 4096
_MOST_BLOCKS = 16


def passport(pictures: Pictures) -> dict[str, str | int]:
    """`data`, the fingerprint, `pictures`, how many; of files also `content` and `times`."""
    known: dict[str, str | int] = {"data": pictures.fingerprint, "pictures": len(pictures)}
    whole = pictures.whole if isinstance(pictures, Rows) else pictures
    if isinstance(whole, FilePictures):
        known |= {"content": content(whole), "times": whole.times}
    return known


def content(pictures: FilePictures) -> str:
    """sha256 over some bytes of at most `FILES` files, evenly spread over the set."""
    ids = np.unique(np.linspace(0, len(pictures) - 1, min(len(pictures), FILES)).astype(np.int64)).tolist()
    look = partial(pictures.glimpse, blocks=min(_MOST_BLOCKS, max(2, _READS // len(ids))))
    digest = hashlib.sha256()
    with ThreadPoolExecutor(16) as pool:
        for glimpse in pool.map(look, ids):
            digest.update(hashlib.sha256(glimpse).digest())
    return digest.hexdigest()


def labels_digest(labels_N: Tensor | None, classes: tuple[str, ...]) -> str:
    """sha256 of the labels, int64, and of the names of their classes; empty where there are none."""
    if labels_N is None:
        return ""
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogateescape"))
    digest.update(labels_N.numpy().tobytes())
    return digest.hexdigest()
