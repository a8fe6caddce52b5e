"""Packing: a folder of images, or what a recipe's `data:` names, as tar shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lookalike.data.loader import cores
from lookalike.data.pack import Packing
from lookalike.data.pack import pack as write_shards
from lookalike.data.sources import Folder
from lookalike.errors import DataError, RecipeError
from lookalike.experiment import load_recipe


def pack(
    source: str,
    target: Path,
    overrides: Sequence[str] = (),
    *,
    workers: int | None = None,
    **options: Any,
) -> None:
    """A folder of images, or what a recipe's `data:` names, as tar shards in `target`; `options` as
    for Packing.
    """
    if Path(source).is_dir():
        if overrides:
            raise RecipeError(f"{overrides[0]}: a folder has no keys: name a recipe to change one")
        if target.resolve().is_relative_to(Path(source).resolve()):
            raise DataError(
                f"{target}: lies in the folder that is packed: name another for the shards"
            )
        made = Folder(source)
    else:
        made = load_recipe(source, overrides).data.build()
    write_shards(made, target, Packing(**options), cores() if workers is None else workers)
