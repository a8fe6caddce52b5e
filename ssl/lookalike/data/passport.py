"""What a stage was made of, written beside what it made: whether the images and labels are still the same.

A data set's fingerprint says which files of how many bytes there are, and not what is in them. Of files there are two
marks more: `content`, a hash of some of their bytes, and `times`, a hash of all mtimes. Together they see an image
that was overwritten by another of the same size: always on the machine where it happened, as long as its mtime
changed; elsewhere, as in a copy, where it is among the files looked into, which up to 1,024 are all of them. In tar
shards and in memory the fingerprint itself is of the content.
"""

import hashlib

from torch import Tensor

from lookalike.data.images import FilePictures, Pictures
from lookalike.data.images.encoded import Rows


def passport(pictures: Pictures) -> dict[str, str | int]:
    """`data`, the fingerprint, `pictures`, how many; of files also `content` and `times`."""
    known: dict[str, str | int] = {"data": pictures.fingerprint, "pictures": len(pictures)}
    whole = pictures.whole if isinstance(pictures, Rows) else pictures
    if isinstance(whole, FilePictures):
        known |= {"content": whole.content, "times": whole.times}
    return known


def portable(pictures: Pictures) -> dict[str, str | int]:
    """The same with a digest of the labels, and without what a mere copy elsewhere has otherwise, the times."""
    marks = passport(pictures) | {"labels": labels_digest(pictures.labels, pictures.classes)}
    return {name: mark for name, mark in marks.items() if name != "times"}


def labels_digest(labels_N: Tensor | None, classes: tuple[str, ...]) -> str:
    """sha256 of the labels, int64, and of the names of their classes; empty where there are none."""
    if labels_N is None:
        return ""
    digest = hashlib.sha256("\0".join(classes).encode(errors="surrogateescape"))
    digest.update(labels_N.numpy().tobytes())
    return digest.hexdigest()
