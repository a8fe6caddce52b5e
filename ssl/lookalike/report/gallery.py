"""Rows of images that were judged right or wrong, for people: one HTML page, or one PNG.

The judgement is a word, a sign and a frame, never a colour alone.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from lookalike.report import page, tiles
from lookalike.report.tables import Summary
from lookalike.report.tiles import Mark

SIGNS = {"query": "?", "right": "✓", "wrong": "✗", "junk": "–"}
_PER_ROW = 12


class Card(NamedTuple):
    """Image number `i`, what it was judged, its place and similarity in words, its class and its
    name.
    """

    i: int
    mark: Mark
    place: str
    value: str
    kind: str
    name: str


class Strip(NamedTuple):
    """Cards that belong together, and what is to be said of them."""

    about: str
    cards: Sequence[Card]


class Section(NamedTuple):
    """Strips under a heading."""

    title: str
    note: str
    strips: Sequence[Strip]


Read = Callable[[int], Tensor | None]
"""Image uint8 (1 or 3, H, W) by number; None where it cannot be read any more."""


def document(title: str, summary: Summary, sections: Sequence[Section], read: Read) -> bytes:
    """The HTML page: the summary, then the sections. One image at a time is in memory."""

    def look(i: int) -> tiles.Tile | str:
        image_CHW = read(i)
        return "cannot be read" if image_CHW is None else tiles.thumbnail(image_CHW)

    known = {"title": title, "summary": summary, "sections": sections, "signs": SIGNS}
    return page.render("gallery.html", **known, look=look)


def sheet(sections: Sequence[Section], read: Read) -> bytes:
    """The PNG: a row a strip, or several of a row where they are short; each tile framed, its sign
    in the corner.
    """
    rows: list[list[tiles.Tile]] = []
    for section in sections:
        room = 0
        for strip in section.strips:
            if len(strip.cards) > room:
                rows.append([])
                room = max(_PER_ROW, len(strip.cards))
            if rows[-1]:
                rows[-1].append(tiles.plain(8, "white"))
            rows[-1] += [tiles.framed(read(card.i), card.mark) for card in strip.cards]
            room -= len(strip.cards) + 1
    return tiles.grid(rows)
