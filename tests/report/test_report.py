"""Laws of what is shown: every text is text, a page asks nobody for anything, images are theirs."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from jinja2 import UndefinedError
from PIL import Image

from lookalike.report import gallery, page, tables, tiles
from lookalike.report.gallery import Card, Section, Strip
from lookalike.report.tables import Summary, Table

HOSTILE = [
    "<script>alert(1)</script>",
    "</style></title></textarea><img src=https://example.org/x onerror=alert(1)>",
    "\" onmouseover=alert(1) x='",
    "' autofocus onfocus=alert(1) \"",
    "{{ 7 * 7 }}{% include 'base.html' %}",
    "invoice\u202egpj.exe",
    "nul\0 bell\a esc\x1b[31m\r\nline\udcff",
    "&lt;b&gt; &amp;amp;",
    "javascript:alert(1)",
]
TAGS = {"html", "meta", "title", "style", "h1", "h2", "p", "div", "b", "figure", "img", "i"}
TAGS |= {"figcaption", "span", "small", "table", "tr", "th", "td"}
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Page(HTMLParser):
    """Its tags with their attributes, and all that a person reads."""

    def __init__(self, data):
        super().__init__()
        self.tags, self.texts = [], []
        self.feed(data.decode())

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.texts += [value for name, value in attributes if name in ("alt", "title")]

    def handle_data(self, data):
        self.texts.append(data.strip())


def noise(channels, height, width):
    generator = torch.Generator().manual_seed(height)
    shape = (channels, height, width)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def gallery_page(text):
    summary = Summary(
        text, [Table([text, "mAP"], [[text, text]])], [Table([text], [[text]], [0.5])]
    )
    card = Card(0, "right", text, text, text, text)
    sections = [Section(text, text, [Strip(text, [card, card._replace(i=1, mark="wrong")])])]
    return gallery.document(text, summary, sections, [noise(3, 9, 9), None].__getitem__)


def preview_page(text):
    tile = tiles.enlarged(noise(1, 9, 9))
    return page.render("preview.html", title=text, samples=[(text, [tile] * 3, [text] * 2)])


def search_page(text):
    answer = {"query": text, "rows": [0, 1], "near": [0.5, 0.25]}
    looks = iter([tiles.enlarged(noise(3, 9, 9)), text, text])
    values = {"path": lambda row: text, "look": lambda path: next(looks)}
    return page.render("search.html", title=text, answers=[answer], **values)


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("made", [gallery_page, preview_page, search_page])
def test_text_from_outside_stays_text(made, text):
    shown = Page(made(text))
    assert {tag for tag, _ in shown.tags} <= TAGS
    names = {name for _, given in shown.tags for name in given}
    assert names <= {"lang", "charset", "http-equiv", "content", "name", "class", "style"} | {
        "title", "alt", "src"
    }  # fmt: skip
    visible = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    assert shown.texts.count(visible) >= 5
    assert all(c.isprintable() or c == "\n" for c in made(text).decode())


@pytest.mark.parametrize("made", [gallery_page, preview_page, search_page])
def test_a_page_loads_nothing_from_elsewhere(made):
    text = made("plain")
    tags = Page(text).tags
    assert tags[2] == ("meta", {"http-equiv": "Content-Security-Policy", "content": POLICY})
    sources = [given["src"] for tag, given in tags if tag == "img"]
    assert sources
    assert all(source.startswith("data:image/") for source in sources)
    assert not re.search(rb"https?:|url\(|@import|<link|<script|<base", text)


def test_a_value_that_is_missing_is_an_error():
    with pytest.raises(UndefinedError, match="samples"):
        page.render("preview.html", title="x")


def decoded(url):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))


@pytest.mark.parametrize("channels", [1, 3])
def test_tiles_hold_the_pixels_enlarged_by_whole_numbers(channels):
    image_CHW = noise(channels, 20, 30)
    found = decoded(tiles.data_url(tiles.enlarged(image_CHW)))
    wanted = image_CHW.expand(3, -1, -1).permute(1, 2, 0).numpy()
    assert np.array_equal(found, wanted.repeat(4, 0).repeat(4, 1))
    assert np.array_equal(np.asarray(tiles.thumbnail(image_CHW)), wanted)


@pytest.mark.parametrize("shape", [(1, 1000), (1000, 1), (1, 1), (300, 200), (152, 152), (160, 90)])
@pytest.mark.parametrize("mark", ["query", "right", "wrong", "junk"])
def test_every_shape_has_its_square_in_the_colour_of_its_mark(shape, mark):
    tile = np.asarray(tiles.framed(noise(3, *shape), mark))
    assert tile.shape == (160, 160, 3)
    frame = np.concatenate([tile[:4].reshape(-1, 3), tile[-4:].reshape(-1, 3)])
    assert len(np.unique(frame, axis=0)) == 1
    corner = tile[4:26, 4:26].reshape(-1, 3)
    assert 0.03 < (corner == 255).all(1).mean() < 0.5
    assert max(tiles.thumbnail(noise(3, *shape)).size) == min(160, max(shape))


def test_a_mark_has_its_own_sign():
    signs = [np.asarray(tiles.framed(None, mark))[:27, :27] for mark in gallery.SIGNS]
    drawn = {(sign == 255).all(2).tobytes() for sign in signs}
    assert len(drawn) == 4


def test_a_sheet_of_uneven_rows_is_filled_with_white():
    sizes = [[(8, 8), (4, 6)], [(2, 2)], [(3, 3), (5, 5), (7, 1)]]
    rows = [[tiles.enlarged(torch.zeros(1, 96, 96, dtype=torch.uint8)).resize(size) for size in row]
            for row in sizes]  # fmt: skip
    found = np.asarray(Image.open(io.BytesIO(tiles.grid(rows))))
    assert found.shape == (3 * 12 + 4, 4 + 12 + 9 + 11, 3)
    wanted = np.full_like(found, 255)
    for r, row in enumerate(sizes):
        for (width, height), left in zip(row, (4, 16, 25), strict=False):
            wanted[4 + 12 * r : 4 + 12 * r + height, left : left + width] = 0
    assert np.array_equal(found, wanted)


def test_the_summary_begins_with_the_table_of_the_model():
    scores = {
        "a": {"task": "retrieval", "recall@1": 0.5, "data": "x"},
        "b": {"task": "verification", "auc": 0.25, "data": "y", "pairs": 4, "same": 2, "folds": 2},
    }
    scores["b"] |= {"protocol": {"nearness": "cosine", "folds": 2}}
    scores["b"] |= {
        "breakdown": {"fold": {str(n): {"accuracy": n / 4, "pairs": 2} for n in (2, 1)}}
    }
    found = tables.summary(scores, "b")
    assert found.about == "4 pairs, 2 of them the same, 2 folds · nearness: cosine"
    assert found.tables[0] == Table(["verification", "AUC"], [["b", "25.00 %"]])
    assert found.tables[1] == Table(["retrieval", "Recall@1"], [["a", "50.00 %"]])
    body = [["1", "2", "25.00 %"], ["2", "2", "50.00 %"]]
    assert found.lowest == [Table(["lowest by fold", "pairs", "accuracy"], body, [0.25, 0.5])]
