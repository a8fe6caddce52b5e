"""What a long computation has done so far, in one file: whole or not there, alike on all ranks."""

import hashlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from lookalike import comm
from lookalike.errors import RunError
from lookalike.folder import write_file
from lookalike.log import note


class Kept(NamedTuple):
    """Tensors by name, on the CPU, and JSON data about them."""

    tensors: dict[str, Tensor]
    about: dict[str, Any]


def keep(path: Path | None, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Writes them atomically on rank 0; nothing without a path. Where that fails, as on a full
    disk, it is said, and the computation goes on.
    """
    if path is None or comm.rank() != 0:
        return
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(dict(about))
    # One entry, for safetensors writes several in any order.
    told = {"kept": json.dumps({"sha256": digest(held, text), "about": text})}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, save(held, told))
    except (RunError, OSError) as error:
        # Of the folder, so that one full disk is one warning.
        reason = " ".join(str(error).replace(str(path), str(path.parent)).split())
        warnings.warn(f"{reason}: what is done so far is not kept", stacklevel=2)


def kept(path: Path | None) -> Kept | None:
    """What `keep` wrote, on every rank; None where there is nothing, or, which is said, where it is
    damaged.

    Rank 0 reads and tells the others: another machine may see the file later, or never.
    """
    found = _read(path) if path is not None and comm.rank() == 0 else None
    whole: Kept | None = comm.broadcast_object(found)
    return whole


def forget(path: Path | None) -> None:
    """Removes the file on rank 0, its work being done."""
    if path is not None and comm.rank() == 0:
        path.unlink(missing_ok=True)


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """sha256 of a text and of names, types, shapes and bytes."""
    whole = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        whole.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()


def _read(path: Path) -> Kept | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {})["kept"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        if told["sha256"] != digest(tensors, told["about"]):
            raise ValueError("its bytes have changed")
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:120]
        note(f"{path}: cannot be read ({reason}): what it held is computed anew")
        return None
    return Kept(tensors, json.loads(told["about"]))
