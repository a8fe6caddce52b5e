"""Images ask an index: the answers as lines, as JSON, as one HTML page or one PNG."""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from lookalike import comm
from lookalike.data.decode import BadImage, Opened, contents
from lookalike.errors import DataError, Error, printable
from lookalike.folder import write_file
from lookalike.geometry import BYTES, PixelFormat
from lookalike.log import note, say
from lookalike.report import page, tiles
from lookalike.search.index import SearchIndex

AT_ONCE = 64
"""Queries that go through the model together."""

SIDE = 128
"""Pixels of an image on a page."""


class Answer(NamedTuple):
    """The rows nearest to an image, nearest first, and how near: cosine similarity or Euclidean
    distance.
    """

    query: str
    rows: list[int]
    near: list[float]


def query(
    index: SearchIndex, queries: Iterable[str], k: int = 10, *, approximate: bool = False
) -> Iterator[Answer]:
    """The k nearest of each image file. Raises DataError for one that is no image, Error for k
    below 1.
    """
    waiting = iter(queries)
    while some := list(islice(waiting, AT_ONCE)):
        row_Qk, near_Qk = index.nearest(index.embed(some), k, approximate=approximate)
        yield from (
            Answer(*each) for each in zip(some, row_Qk.tolist(), near_Qk.tolist(), strict=True)
        )


def query_lines(
    index: SearchIndex, lines: Iterable[bytes], k: int = 10, *, approximate: bool = False
) -> Iterator[Answer]:
    """The same for paths that come one a line, each answered at once. Raises DataError at the end
    if one was none.
    """
    count = failed = 0
    for path in (os.fsdecode(line.rstrip(b"\r\n")) for line in on_all_ranks(lines)):
        count += 1
        try:
            yield from query(index, [path], k, approximate=approximate)
        except DataError as error:
            failed += 1
            if comm.rank() == 0:
                note(f"lookalike: {error}")
    if failed:
        raise DataError(f"{failed} of {count} queries could not be read")


def on_all_ranks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that the first rank reads, on every rank as they come."""
    if comm.world_size() == 1:
        yield from lines
        return
    source = iter(lines) if comm.rank() == 0 else iter(())
    while True:
        line = next(source, None)
        comm.barrier(patient=True)
        line = comm.broadcast_object(line)
        if line is None:
            return
        yield line


def refuse(k: int, show: Path | None, asked: bool) -> None:
    """Raises Error, before any work, for what `report` could not say. `asked`: there are
    queries.
    """
    if show and not asked:
        raise Error(
            f"--show {printable(show)}: there is no QUERY, so nothing to show: name an image"
        )
    if k < 1:
        raise Error(f"-k {k}: ask for at least 1")
    if show and show.suffix.lower() not in (".png", ".html"):
        raise Error(f"{printable(show)}: answers are shown as .png or .html: name it so")


def report(
    index: SearchIndex, answers: Iterable[Answer], as_json: bool = False, show: Path | None = None
) -> None:
    """Says each answer as it comes, for people or as a line of JSON; all of them go to `show`,
    .html or .png. All ranks ask, the first says.
    """
    kept = []
    for answer in answers:
        if comm.rank() != 0:
            continue
        say(line_of_json(index, answer) if as_json else listing(index, answer))
        if show:
            kept.append(answer)
    if show and kept:
        drawn = sheet if show.suffix.lower() == ".png" else document
        write_file(show, drawn(index, kept))
        note(f"written to {printable(show)}")


def listing(index: SearchIndex, answer: Answer) -> str:
    """The query, and a line for each image: place, similarity or distance, path; tabs between."""
    pairs = zip(answer.near, answer.rows, strict=True)
    lines = [
        f"{n}\t{near:.4f}\t{printable(index.path(row))}" for n, (near, row) in enumerate(pairs, 1)
    ]
    return "\n".join([printable(answer.query), *lines])


def line_of_json(index: SearchIndex, answer: Answer) -> str:
    """The same for machines: paths as they are, stray bytes as lone surrogates."""
    word = "similarity" if index.distance == "cosine" else "distance"
    pairs = zip(answer.near, answer.rows, strict=True)
    return json.dumps(
        {
            "query": answer.query,
            "nearest": [{"path": index.path(row), word: near} for near, row in pairs],
        }
    )


def look(path: str, form: PixelFormat = BYTES) -> tiles.Tile | str:
    """What the model sees of an image file, small; or why it cannot be shown."""
    try:
        opened = Opened(contents(path), path, form)
        side = min(SIDE, opened.height, opened.width)
        canvas_CHW = opened.canvas(torch.empty(form.channels, side, side, dtype=form.dtype))
        return tiles.enlarged(tiles.visible(canvas_CHW, form))
    except BadImage as error:
        return error.reason


def look_as(index: SearchIndex) -> Callable[[str], tiles.Tile | str]:
    """`look` by the form that the model takes; a grey one is shown the images' colours."""
    form = index.model.architecture.form
    return partial(look, form=BYTES if form.plain and form.channels == 1 else form)


def sheet(index: SearchIndex, answers: Sequence[Answer]) -> bytes:
    """A PNG, a row an answer: the query, then the nearest; grey where an image cannot be shown."""
    grey, rows, see = tiles.plain(SIDE, "#c8c8c8"), [], look_as(index)
    for answer in answers:
        looks = [see(path) for path in (answer.query, *map(index.path, answer.rows))]
        rows.append([grey if isinstance(seen, str) else seen for seen in looks])
    return tiles.grid(rows)


def document(index: SearchIndex, answers: Sequence[Answer]) -> bytes:
    """One HTML page of the queries and their nearest."""
    what = "cosine similarity" if index.distance == "cosine" else "Euclidean distance"
    title = f"The nearest of {len(index)} images, by {what}"
    see = look_as(index)
    return page.render("search.html", title=title, answers=answers, path=index.path, look=see)
