"""Predict: the classes of images, by a classifier's folder."""

import json
import os
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from lookalike import comm
from lookalike.data.decode import BadImage
from lookalike.data.folders.roots import images_below
from lookalike.data.images import FileImages, Reading
from lookalike.data.loader import workers_for
from lookalike.data.reading import canvas_for
from lookalike.errors import BackboneError, DataError, Error, RunError, printable
from lookalike.evaluation.features import embedded_in_order, embedder
from lookalike.log import note, progress
from lookalike.models.classifier import Classifier, load_classifier

BATCH = 64
FEW = 256
"""Of no more images than this none is read by processes of its own, which take a second to
start."""


class Prediction(NamedTuple):
    """An image, by the path under which it was named, and its likeliest classes, first the
    likeliest, with their probabilities.
    """

    path: str
    classes: list[str]
    probabilities: list[float]


def predict(
    model: str | Path, images: Sequence[str], *, top: int = 1, as_json: bool = False
) -> Iterator[str]:
    """Lines for each image file, or image below a folder: path, class and probability with tabs
    between, the `top` likeliest classes a line each; or one of JSON. `-`: paths on stdin, one a
    line, answered as they come.

    What cannot be read is said, and at last raises DataError. Raises BackboneError for a folder
    without classes, RunError on several ranks.
    """
    if comm.world_size() > 1:
        raise RunError("predict: answers in one process: start it without a launcher")
    refuse_run(Path(model))
    opened = load_classifier(model).to(comm.device())
    if top < 1:
        raise Error(f"--top {top}: ask for at least 1")
    line = line_of_json if as_json else listing
    return map(line, predictions(opened, images, top))


def refuse_run(folder: Path) -> None:
    """Raises BackboneError for a run folder, with the classifiers that lie in it."""
    inner = [folder / name / "classifier" for name in ("classify", "probe")]
    there = [path for path in inner if (path / "manifest.json").exists()]
    if there and not (folder / "manifest.json").exists():
        named = " or ".join(printable(path) for path in there)
        raise BackboneError(f"{printable(folder)}: a run folder: name its classifier, {named}")


def listing(found: Prediction) -> str:
    """A line a class, for people and for `cut`: nothing in a name breaks a line or a column."""
    pairs = zip(found.classes, found.probabilities, strict=True)
    return "\n".join(f"{printable(found.path)}\t{printable(c)}\t{p:.6f}" for c, p in pairs)


def line_of_json(found: Prediction) -> str:
    """The same for machines: names as they are, stray bytes as lone surrogates."""
    pairs = zip(found.classes, found.probabilities, strict=True)
    classes = [{"class": name, "probability": p} for name, p in pairs]
    return json.dumps({"path": found.path, "classes": classes})


def predictions(model: Classifier, images: Sequence[str], top: int) -> Iterator[Prediction]:
    """What the classifier says of each image that can be read, in order. Raises DataError at the
    end where one could not be.
    """
    count, failed = 0, list[str]()
    for paths, told in batches(images):
        count += len(paths)
        for answer in answered(model, paths, top, told):
            if isinstance(answer, Prediction):
                yield answer
            else:
                failed.append(answer)
                note(f"lookalike: {answer}")
    if failed:
        raise DataError(
            f"{len(failed)} of {count} images could not be read: see above, or remove them"
        )


def batches(images: Sequence[str]) -> Iterator[tuple[list[str], bool]]:
    """Paths to be looked at together, and whether a bar shows how far it has come: all that was
    named, each folder's in its place; those on stdin as many as have come.
    """
    if list(images) == ["-"]:
        yield from ((paths, False) for paths in arriving(sys.stdin.buffer))
        return
    paths = [path for named in images for path in below(named)]
    yield paths, len(paths) > BATCH


def below(named: str) -> list[str]:
    """The image files of a folder and all below it, or the file itself. Raises DataError for a
    folder without any.
    """
    if not Path(named).is_dir():
        return [named]
    found, inventory = images_below(Path(named))
    if told := inventory.said():
        note(f"{printable(named)}: {told}")
    return [os.path.join(named, os.fsdecode(path)) for path in found]  # noqa: PTH118 (as named)


def arriving(lines: Iterable[bytes]) -> Iterator[list[str]]:
    """Paths that come one a line: as many as are there, at most BATCH, and at least one as soon as
    it is.
    """
    came: queue.Queue[bytes | None] = queue.Queue(4 * BATCH)

    def read() -> None:
        for line in lines:
            came.put(line)
        came.put(None)

    threading.Thread(target=read, daemon=True).start()
    ended = False
    while not ended:
        some = [came.get()]
        while some[-1] is not None and len(some) < BATCH and not came.empty():
            some.append(came.get())
        ended = some[-1] is None
        paths = [os.fsdecode(line.rstrip(b"\r\n")) for line in some if line is not None]
        if found := [path for path in paths if path]:
            yield found


def answered(
    model: Classifier, paths: list[str], top: int, told: bool
) -> Iterator[Prediction | str]:
    """Of each path in order what the classifier says, or why the image cannot be read."""
    files = [os.path.abspath(path)[1:] for path in paths]  # noqa: PTH100 (as it is named)
    a = model.architecture
    images = FileImages("", files, Reading(canvas_for(a.size), a.form))
    workers = 0 if len(images) <= FEW else workers_for(images, None)
    found = embedded_in_order(embedder(model, a), images, BATCH, workers)
    say_done = partial(_unread, images, paths)
    done = 0
    with progress("predict", len(paths), active=told) as tell_done:
        for ids, logits_BC in found:
            best = model.probabilities(logits_BC).topk(min(top, model.dim), dim=1)
            for row, i in enumerate(ids):
                yield from (say_done(missed) for missed in range(done, i))
                yield _prediction(model, paths[i], best.indices[row], best.values[row])
                done = i + 1
            tell_done(done)
        yield from (say_done(missed) for missed in range(done, len(paths)))


def _prediction(model: Classifier, path: str, best_K: Tensor, sure_K: Tensor) -> Prediction:
    return Prediction(path, [model.classes[c] for c in best_K.tolist()], sure_K.tolist())


def _unread(images: FileImages, paths: list[str], i: int) -> str:
    """Why the i-th image cannot be read."""
    try:
        images.read(i)
    except BadImage as error:
        return f"{printable(paths[i])}: {error.reason}"
    return f"{printable(paths[i])}: could not be read a moment ago"
