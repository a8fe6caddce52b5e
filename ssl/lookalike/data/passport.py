"""What a stage was made of, written beside what it made: whether the images and labels are still
the same.

A data set's fingerprint says which files of how many bytes there are, and not what is in them. Of
files there are two marks more: `content`, a hash of some of their bytes, and `times`, a hash of all
mtimes. Together they see an image that was overwritten by another of the same size: always on the
machine where it happened, as long as its mtime changed; elsewhere, as in a copy, where it is among
the files looked into, which up to 1,024 are all of them. In tar shards and in memory the
fingerprint itself is of the content.
"""

import hashlib

from torch import Tensor

from lookalike.data.images import FileImages, Images
from lookalike.data.images.encoded import Subset


def passport(images: Images) -> dict[str, str | int]:
    """`data`, the fingerprint, `images`, how many; of files also `content` and `times`."""
    known: dict[str, str | int] = {"data": images.fingerprint, "images": len(images)}
    whole = images.whole if isinstance(images, Subset) else images
    if isinstance(whole, FileImages):
        known |= {"content": whole.content, "times": whole.times}
    return known


def portable(images: Images) -> dict[str, str | int]:
    """The same with a digest of the labels, and without what a mere copy elsewhere has otherwise,
    the times.
    """
    marks = passport(images) | {"labels": labels_digest(images.labels, images.classes)}
    return {name: mark for name, mark in marks.items() if name != "times"}


def labels_digest(labels_N: Tensor | None, classes: tuple[str, ...]) -> str:
    """sha256 of the labels, int64, and of the names of their classes; empty where there are
    none.
    """
    if labels_N is None:
        return ""
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogateescape"))
    digest.update(labels_N.contiguous().numpy().data)
    return digest.hexdigest()
