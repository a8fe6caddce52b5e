"""Rows of images that were judged right or wrong, for people: one HTML page, or one PNG.

The judgement is a word, a sign and a frame, never a colour alone.
"""

import base64
import html
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike.data.pixels import jpeg, png
from lookalike.report import page

Mark = Literal["query", "right", "wrong", "junk"]
SIGNS = {"query": "?", "right": "✓", "wrong": "✗", "junk": "–"}

_SIDE = 160
_TINY = 64
_FRAME = 4
_PER_ROW = 12
_COLOURS = {
    "query": (9, 105, 218),
    "right": (26, 127, 55),
    "wrong": (207, 34, 46),
    "junk": (140, 149, 159),
}
_BITMAPS = {
    "query": ("..###..", ".#...#.", ".....#.", "...##..", "...#...", ".......", "...#..."),
    "right": (".......", "......#", ".....##", "#...##.", "##.##..", ".###...", "..#...."),
    "wrong": ("#.....#", "##...##", ".##.##.", "..###..", ".##.##.", "##...##", "#.....#"),
    "junk": (".......", ".......", ".......", "#######", ".......", ".......", "......."),
}
_STYLE = """
:root{color-scheme:light dark;--ink:#1f2328;--soft:#59636e;--line:#d1d9e0;--paper:#fff;--card:#f6f8fa;
--query:#0969da;--right:#1a7f37;--wrong:#cf222e;--junk:#8c959f}
@media(prefers-color-scheme:dark){:root{--ink:#f0f6fc;--soft:#9198a1;--line:#3d444d;--paper:#0d1117;--card:#151b23;
--query:#4493f8;--right:#3fb950;--wrong:#f85149;--junk:#656c76}}
body{margin:0 auto;padding:28px 32px 64px;max-width:1560px;color:var(--ink);background:var(--paper)}
h1{font-size:24px;margin:0 0 4px}h2{font-size:18px;margin:40px 0 2px}p{margin:4px 0 14px;color:var(--soft);
max-width:110ch}
table{border-collapse:collapse;margin:14px 0}td,th{padding:5px 14px 5px 0;border-bottom:1px solid var(--line)}
td.n,th.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}th{font-weight:600;color:var(--soft)}
.side{display:flex;flex-wrap:wrap;gap:0 56px}.bar{display:block;width:160px;height:8px;border-radius:4px;
background:var(--line);margin-top:6px}.bar i{display:block;height:8px;border-radius:4px;background:var(--query)}
.strips{display:flex;flex-wrap:wrap;gap:0 28px}.strip{border-top:1px solid var(--line);padding:12px 0 14px;min-width:0}
.strip.long{width:100%}.strip>div{display:flex;gap:8px;overflow-x:auto;padding-bottom:2px}
.strip>b{display:block;font-weight:600;margin-bottom:8px;overflow-wrap:anywhere}
figure{margin:0;width:120px;flex:none}figure.query{margin-right:16px}
figure img{width:112px;height:112px;object-fit:contain;border:4px solid;border-radius:6px;background:var(--card);
image-rendering:auto}figure img.tiny{image-rendering:pixelated}
.gone{display:grid;place-items:center;text-align:center;width:112px;height:112px;border:4px solid;border-radius:6px;
background:var(--card);color:var(--soft)}
.query img,.query .gone{border-color:var(--query)}.right img,.right .gone{border-color:var(--right)}
.wrong img,.wrong .gone{border-color:var(--wrong)}.junk img,.junk .gone{border-color:var(--junk);
border-style:dotted}.junk img{filter:grayscale(1);opacity:.45}
figcaption{font-size:12px;line-height:1.35;margin-top:4px}figcaption *{display:block;overflow:hidden;
text-overflow:ellipsis;white-space:nowrap}figcaption .s{display:flex;justify-content:space-between;font-weight:600;
font-variant-numeric:tabular-nums}.query .s{color:var(--query)}.right .s{color:var(--right)}
.wrong .s{color:var(--wrong)}.junk .s{color:var(--soft)}figcaption small{color:var(--soft)}
"""


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
"""Image uint8 (C, H, W) by number; None where it cannot be read any more."""


def small(image_CHW: Tensor) -> Tensor:
    """uint8 (C, H, W) as RGB of at most 160 pixels a side."""
    colour_CHW = image_CHW.expand(3, -1, -1) if image_CHW.shape[0] == 1 else image_CHW
    longest = max(colour_CHW.shape[1:])
    if longest <= _SIDE:
        return colour_CHW
    sides = [max(1, round(side * _SIDE / longest)) for side in colour_CHW.shape[1:]]
    return F.interpolate(colour_CHW[None], sides, mode="bicubic", antialias=True)[0]


def document(title: str, lead: str, sections: Sequence[Section], read: Read) -> bytes:
    """The HTML page: `lead` (whose texts are escaped), then the sections. One image at a time is in
    memory.
    """
    return page.document(
        title, lead + "".join(_section(section, read) for section in sections), _STYLE
    ).encode()


def _section(section: Section, read: Read) -> str:
    strips = "".join(_strip(strip, read) for strip in section.strips)
    note = f"<p>{html.escape(section.note)}</p>"
    return f'<h2>{html.escape(section.title)}</h2>{note}<div class="strips">{strips}</div>'


def _strip(strip: Strip, read: Read) -> str:
    cards = "".join(_figure(card, read(card.i)) for card in strip.cards)
    long = " long" if len(strip.cards) > 2 else ""
    return f'<div class="strip{long}"><b>{html.escape(strip.about)}</b><div>{cards}</div></div>'


def _figure(card: Card, image_CHW: Tensor | None) -> str:
    kind, name = html.escape(card.kind), html.escape(card.name)
    tail = html.escape(card.name.rsplit("/", 1)[-1])
    if image_CHW is None:
        shown = '<div class="gone">cannot be read</div>'
    else:
        shown = _image(small(image_CHW), card.name)
    sign = f'<span title="{card.mark}">{SIGNS[card.mark]} {html.escape(card.place)}</span>'
    caption = f'<span class="s">{sign}<span>{html.escape(card.value)}</span></span><span title="{kind}">{kind}</span>'
    return (
        f'<figure class="{card.mark}">{shown}<figcaption>{caption}<small '
        f'title="{name}">{tail}</small></figcaption>'
        "</figure>"
    )


def _image(image_CHW: Tensor, alt: str) -> str:
    tiny = max(image_CHW.shape[1:]) <= _TINY
    data = base64.b64encode(png(image_CHW) if tiny else jpeg(image_CHW)).decode()
    what = ("png", ' class="tiny"') if tiny else ("jpeg", "")
    return f'<img{what[1]} alt="{html.escape(alt)}" src="data:image/{what[0]};base64,{data}">'


def sheet(sections: Sequence[Section], read: Read) -> bytes:
    """The PNG: a row a strip, or several of a row where they are short; each tile framed, its sign
    in the corner.
    """
    rows: list[list[Tensor]] = []
    for section in sections:
        room = 0
        for strip in section.strips:
            if len(strip.cards) > room:
                rows.append([])
                room = max(_PER_ROW, len(strip.cards))
            tiles = [framed(read(card.i), card.mark) for card in strip.cards]
            rows[-1] += [_gap(), *tiles] if rows[-1] else tiles
            room -= len(strip.cards) + 1
    blank = _gap()
    widest = max(map(len, rows))
    return page.grid([row + [blank] * (widest - len(row)) for row in rows])


def _gap() -> Tensor:
    return torch.full((3, 8, 8), 255, dtype=torch.uint8)


def framed(image_CHW: Tensor | None, mark: Mark) -> Tensor:
    """A square tile, uint8 (3, S, S): the image, pale where it is junk, in a frame with the mark's
    sign.
    """
    side = _SIDE - 2 * _FRAME
    inner_CHW = torch.full((3, side, side), 235, dtype=torch.uint8)
    if image_CHW is not None:
        x = small(image_CHW).float()
        times = side / max(x.shape[1:])
        sides = [max(1, round(length * times)) for length in x.shape[1:]]
        mode = "nearest" if times > 1 else "area"
        x = F.interpolate(x[None], sides, mode=mode)[0]
        top, left = (side - sides[0]) // 2, (side - sides[1]) // 2
        x = 255 - (255 - x.mean(0, keepdim=True).expand(3, -1, -1)) * 0.4 if mark == "junk" else x
        inner_CHW[:, top : top + sides[0], left : left + sides[1]] = x.round().to(torch.uint8)
    colour_C11 = torch.tensor(_COLOURS[mark], dtype=torch.uint8)[:, None, None]
    tile_CHW = colour_C11.expand(3, _SIDE, _SIDE).clone()
    tile_CHW[:, _FRAME:-_FRAME, _FRAME:-_FRAME] = inner_CHW
    sign_HW = torch.tensor([[c == "#" for c in line] for line in _BITMAPS[mark]]).repeat_interleave(
        3, 0
    )
    sign_HW = F.pad(sign_HW.repeat_interleave(3, 1), (3, 3, 3, 3))
    height, width = sign_HW.shape
    tile_CHW[:, :height, :width] = torch.where(sign_HW, 255, colour_C11)
    return tile_CHW
