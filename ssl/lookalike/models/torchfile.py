"""Tensors of a file that others wrote, by torch.save or as safetensors, told apart by content.

A file of torch.save is a pickle: a program. torch runs none of it beyond `weights_only`, but that
too lets a small file ask for any amount of memory, by bytes that are encoded again and again or by
members that inflate. So the program is read first, and is only run where it names nothing but
tensors and plain containers.
"""

import io
import os
import pickletools
import re
import stat
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from lookalike.errors import BackboneError, printable
from lookalike.folder import without_waiting
from lookalike.models.stored import mapped

# A training's checkpoint of the largest models, with its optimizer, has 12,000 tensors, described
# in 3 MB; mapped files are not read, those of torch before 1.6 are.
_LARGEST, _LARGEST_READ = 2**36, 2**33
_LARGEST_PROGRAM, _MOST_OPERATIONS = 2**23, 2_000_000
_LARGEST_DIRECTORY, _MOST_MEMBERS = 2**25, 100_000
_MOST_VALUES, _DEEPEST = 200_000, 8
_REMEDY = "take a file of weights, .safetensors or of torch.save"

_TYPES = r"(Float|Double|Half|BFloat16|Long|Int|Short|Char|Byte|Bool)"
_KNOWN = re.compile(
    r"collections (OrderedDict|Counter)|builtins set|__builtin__ set|argparse Namespace"
    rf"|torch {_TYPES}Storage|torch\.storage (Untyped|Typed)Storage"
    r"|torch (Size|device|float32|float64|float16|bfloat16|u?int\d\d?|bool)"
    r"|torch\._utils _rebuild_(tensor(_v2)?|parameter)|torch\.nn\.parameter Parameter"
)


class _Nothing:
    """What becomes of the options of a training, argparse.Namespace, that stand beside its weights:
    a value that holds and does nothing.
    """

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def tensors_of(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file by its whole name, `state_dict.module.conv1.weight`.

    Raises BackboneError where it is no such file, or one that asks for more than it holds; nothing
    of it is executed.
    """
    kind, size = kind_of(path)
    if kind == "safetensors":
        return mapped(path, _REMEDY)
    try:
        program = _of_zip(path) if kind == "zip" else _beginning(path)
        stranger = _stranger(program, 1 if kind == "zip" else 5)
        if stranger is None:
            return dict(_flat(_loaded(path, mapping=kind == "zip"), size))
    except BackboneError:
        raise
    except Exception as error:  # zipfile and torch raise whatever a broken file makes them meet
        reason = printable((str(error).splitlines() or [""])[0][:200])
        raise BackboneError(
            f"{printable(path)}: cannot be read as weights ({type(error).__name__}: {reason}): "
            f"{_REMEDY}"
        ) from error
    raise BackboneError(
        f"{printable(path)}: holds {printable(stranger[:100])}, which is no weight and would have "
        'to be executed: where you trust its author, keep the weights alone: python -c "import '
        "torch; torch.save(torch.load('OLD.pth', weights_only=False)['state_dict'], 'NEW.pth')\", "
        "or another key than state_dict"
    )


def kind_of(path: Path) -> tuple[str, int]:
    """What the first bytes of a file say, safetensors, zip (torch since 1.6) or stream (before),
    and its size. Raises BackboneError where they say nothing.
    """
    try:
        if path.is_dir():
            raise ValueError("is a folder: backbone.folder takes one that lookalike wrote")
        with open(path, "rb", opener=without_waiting) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ValueError("not a regular file")
            head, size = file.read(9), file.seek(0, io.SEEK_END)
    except (OSError, ValueError) as error:
        reason = printable(str(getattr(error, "strerror", None) or error)[:200])
        raise BackboneError(f"backbone.weights: {printable(path)}: {reason}") from error
    kind = "zip" if head[:4] == b"PK\3\4" else "stream" if head[:1] == b"\x80" else ""
    if head[4:] == b"\0\0\0\0{":
        kind = "safetensors"
    if not kind:
        raise BackboneError(f"{printable(path)}: neither safetensors nor of torch.save: {_REMEDY}")
    most = _LARGEST_READ if kind == "stream" else _LARGEST
    if size > most:
        raise BackboneError(f"{printable(path)}: {size} bytes, more than the {most} allowed")
    return kind, size


def _of_zip(path: Path) -> BinaryIO:
    """The program in an archive whose members lie in it as they are."""
    with path.open("rb") as file:
        _refuse_directory(file)
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            programs = [m for m in members if m.filename.rpartition("/")[2] == "data.pkl"]
            if any(m.filename.endswith("constants.pkl") for m in members):
                raise ValueError("it is a TorchScript archive, a program")
            if len(programs) != 1 or len({m.filename for m in members}) != len(members):
                raise ValueError("the archive is not one of torch.save")
            if any(m.compress_type != zipfile.ZIP_STORED for m in members):
                raise ValueError("its members are compressed, which torch.save never does")
            if programs[0].file_size > _LARGEST_PROGRAM:
                raise ValueError(f"{programs[0].file_size} bytes beside its tensors")
            return io.BytesIO(archive.read(programs[0]))


def _refuse_directory(file: BinaryIO) -> None:
    """Raises ValueError where the archive's list of members is larger than any model's, before it
    is read.
    """
    size = file.seek(0, io.SEEK_END)
    start = file.seek(max(0, size - 2**16 - 22))
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0 or len(tail) < end + 22:
        raise ValueError("the archive is cut short")
    members, length = struct.unpack_from("<10xHI", tail, end)
    if tail[end - 20 : end - 16] == b"PK\6\7":
        file.seek(min(*struct.unpack_from("<8xQ", tail, end - 20), start + end))
        members, length = struct.unpack_from("<32xQQ", file.read(56).ljust(56, b"\0"))
    if members > _MOST_MEMBERS or length > _LARGEST_DIRECTORY:
        raise ValueError(f"an archive of {members} members")


def _beginning(path: Path) -> BinaryIO:
    """The programs with which a file of torch before 1.6 begins."""
    with path.open("rb") as file:
        return io.BytesIO(file.read(_LARGEST_PROGRAM))


def _stranger(program: BinaryIO, count: int) -> str | None:
    """The first name of `count` programs that is neither a tensor's nor a container's."""
    operations = 0
    for _ in range(count):
        for operation, argument, _ in pickletools.genops(program):
            operations += 1
            if operations > _MOST_OPERATIONS:
                raise ValueError(f"more than {_MOST_OPERATIONS} values beside its tensors")
            if operation.name == "GLOBAL" and not _KNOWN.fullmatch(str(argument)):
                return str(argument).replace(" ", ".")
            if operation.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                return f"a name by {operation.name}"
    return None


def _loaded(path: Path, *, mapping: bool) -> Any:
    """The values of a file, its tensors mapped where they can be; torch goes by the suffix before
    it looks into a file.
    """
    allowed = torch.serialization.safe_globals([(_Nothing, "argparse.Namespace")])
    with allowed, warnings.catch_warnings(action="ignore"):  # of how old the file is
        if mapping and path.suffix != ".safetensors":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)


def _flat(tree: Any, size: int) -> Iterator[tuple[str, Tensor]]:
    """The tensors below a value with their names. Raises ValueError where there are too many
    values, or where a tensor is not the numbers of the file, once each.
    """
    waiting, seen = [(tree, "", 0)], 0
    while waiting:
        value, name, depth = waiting.pop()
        seen += 1
        if isinstance(value, Tensor):
            _refuse_unreal(value, name, size)
            yield name, value.detach()
        elif isinstance(value, Mapping | list | tuple):
            if depth == _DEEPEST or seen + len(waiting) + len(value) > _MOST_VALUES:
                raise ValueError("too many values in one another")
            parts = value.items() if isinstance(value, Mapping) else enumerate(value)
            below = [(part, f"{name}.{key}" if name else str(key)) for key, part in parts]
            waiting += [(part, named, depth + 1) for part, named in reversed(below)]


def _refuse_unreal(tensor: Tensor, name: str, size: int) -> None:
    there = tensor.layout == torch.strided and tensor.device.type == "cpu"
    bytes_ = tensor.numel() * tensor.element_size()
    if not there or tensor.is_quantized or bytes_ > min(size, tensor.untyped_storage().nbytes()):
        raise ValueError(f"{printable(name[:100])} is no plain tensor")
