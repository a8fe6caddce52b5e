"""Before the first step: is every rank about to train the same, by the same program, on the same
images?

Ranks that differ would train without a word on mixed batches, or on gradients of another recipe.
"""

import hashlib
import platform
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from lookalike import comm
from lookalike.data.images import Images
from lookalike.data.passport import portable
from lookalike.doctor.machine import source, version
from lookalike.errors import Error, RunError, printable
from lookalike.recipe import Recipe

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "kornia",
    "deepspeed",
    "pytorch-metric-learning",
    "numpy",
    "pillow",
)
_LONGEST = 80
_NAMED = 8

Split = Callable[[Literal["train", "test"]], Images]
"""The images of a split, by its name."""

# What has been agreed on in this process: the words with which, by the digest of each recipe.
_agreed: dict[str, dict[str, Any]] = {}


def agree(recipe: Recipe, images: Split, **words: Any) -> None:
    """Returns when every rank has the same recipe, program, libraries, `images` and `words`.

    Else raises RunError, on every rank with the same line: which ranks differ from the first, and
    in what.
    """
    if comm.world_size() == 1:
        return
    digest = hashlib.sha256(recipe.text().encode()).hexdigest()
    known = digest in _agreed and words.items() <= _agreed[digest].items()
    asked = comm.gather_objects((digest, sorted(words.items()), known))
    if known and all(one == asked[0] for one in asked):
        return
    told = comm.gather_objects(
        {"host": socket.gethostname(), "facts": facts(recipe, images, words)}
    )
    found = [line for rank, one in enumerate(told) for line in _line(rank, one, told[0])]
    if found:
        more = f"; … and {len(found) - _NAMED} ranks more" if len(found) > _NAMED else ""
        raise RunError(
            f"ranks differ: {'; '.join(found[:_NAMED])}{more}: give every rank the same and start "
            "again"
        )
    _agreed[digest] = words


def facts(recipe: Recipe, images: Split, words: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be the same on every rank, as flat JSON data: name -> value."""
    versions = {name: version(name) for name in PACKAGES}
    program = {
        "python": platform.python_version(),
        "lookalike": f"{version('lookalike')} {source()}",
    }
    return {**dict(_flat("", recipe.plain())), **words, **program, **versions, **_data(images)}


def _data(images: Split) -> dict[str, Any]:
    """The marks of both sets; where one cannot be had, why."""
    found: dict[str, Any] = {}
    for split in ("train", "test"):
        try:
            found |= {f"{split} images: {k}": mark for k, mark in portable(images(split)).items()}
        except Error as error:
            found[f"{split} images"] = str(error)
    return found


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Each key of a recipe by its whole path."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(f"{path}.{name}" if path else name, inner)
    else:
        yield path, value


def _line(rank: int, one: Mapping[str, Any], first: Mapping[str, Any]) -> Iterator[str]:
    """How a rank differs from the first, if it does."""
    mine, theirs = one["facts"], first["facts"]
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    what = [
        f"{name} is {_short(mine, name)}, on rank 0 {_short(theirs, name)}" for name in names[:4]
    ]
    if names:
        yield f"rank {rank} ({printable(one['host'])}): {', '.join(what)}"


def _short(facts: Mapping[str, Any], name: str) -> str:
    text = printable(str(facts.get(name, "absent")))
    if re.fullmatch("[0-9a-f]{64}", text):
        return text[:12]
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
