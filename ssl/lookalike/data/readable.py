"""A look at some images of a set before a training begins: a set of which none can be read is no
data, whatever the reason.
"""

import torch

from lookalike.data import remote
from lookalike.data.decode import BadImage
from lookalike.data.images import ArrayImages, Images
from lookalike.data.images.encoded import Subset
from lookalike.data.images.shards import ShardImages
from lookalike.errors import printable

LOOKED_AT = 16
"""So many images of a set are decoded, evenly spread from its first to its last."""


def look(images: Images, key: str = "data") -> tuple[str, str]:
    """Why the set cannot be used, and what is to be said of it otherwise; empty where all is well.
    `key`: where the recipe names it.

    Images in memory are not looked at, nor those in remote shards, of which one image costs a
    shard.
    """
    if isinstance(images, ArrayImages) or is_far(images):
        return "", ""
    count = min(LOOKED_AT, len(images))
    ids = torch.linspace(0, len(images) - 1, count).round().long().tolist()
    bad = [why for i in ids if (why := _reason(images, i))]
    if not bad:
        return "", ""
    first = f"first {bad[0]}"
    if len(bad) == count:
        what = "its only image" if count == 1 else f"none of the {count} images looked at"
        remedy = f"give files that can, or another {key}.path"
        return f"{key}: {what} can be read, {first}: {remedy}", ""
    return "", f"{key}: {len(bad)} of {count} images looked at cannot be read, {first}"


def is_far(images: Images) -> bool:
    """Whether they lie in shards on other machines."""
    whole = images.whole if isinstance(images, Subset) else images
    return isinstance(whole, ShardImages) and any(
        remote.is_remote(shard.place) for shard in whole.shards
    )


def _reason(images: Images, i: int) -> str:
    """Why the image cannot be read; empty where it can."""
    try:
        images.read(i)
    except BadImage as error:
        return printable(str(error))
    return ""
