"""Whether a sample has several images, or several samples share what stands before a dot."""

from collections.abc import Sequence
from typing import NamedTuple

SEVERAL_IMAGES = "several images"
"""A sample has several, and nothing says which is meant."""
DOTS = ("", "dots", "two dots")
"""Nothing is in doubt; names have dots of their own, so that they end at the last, or the last but
one."""
SEEMS = "dots?"
"""They seem to: nothing else speaks for either."""
_VIEWS = 16  # of one sample; what has more is no sample


class Candidate(NamedTuple):
    """A member that may be its sample's image: `rank` 0 is the surest; `crc`: -1 where none was
    taken yet.
    """

    name: bytes
    key: bytes
    suffix: bytes
    rank: int
    offset: int
    size: int
    crc: int


def crowded(samples: Sequence[Sequence[Candidate]]) -> list[Sequence[Candidate]]:
    """Those of which it is not plain which image is theirs."""
    return [
        images for images in samples if len(images) > _VIEWS or all(image.rank for image in images)
    ]


def doubt(crowds: Sequence[Sequence[Candidate]], others: Sequence[bytes], dots: int) -> str:
    """One of the words above, for crowded samples, members `others` beside them, and names that end
    before the last `dots`, 0: at the first.

    Names have dots of their own where images stand together with other members at a later dot, or
    where one sample would have more than 16 images; suffixes that come again in other samples, as
    input.png and mask.png, are several images of a sample.
    """
    if not crowds:
        return ""
    if dots:
        return SEVERAL_IMAGES
    later = _later(crowds, others)
    if later or max(map(len, crowds)) > _VIEWS:
        return DOTS[later or 1]
    suffixes = [image.suffix for images in crowds for image in images]
    return SEEMS if len(set(suffixes)) == len(suffixes) else SEVERAL_IMAGES


def _later(crowds: Sequence[Sequence[Candidate]], others: Sequence[bytes]) -> int:
    """At which dot from the end images stand together with other members; 0 at none."""
    images = [(image.key, image.key + b"." + image.suffix) for some in crowds for image in some]
    for dots in (1, 2):
        stems = [name.rsplit(b".", dots)[0] for _, name in images]
        own = all(stem != key for stem, (key, _) in zip(stems, images, strict=True))
        known = {name.rsplit(b".", dots)[0] for name in others if name.count(b".") >= dots}
        if not known.isdisjoint(stems) and (dots == 1 or (own and len({*stems}) == len(stems))):
            return dots
    return 0
