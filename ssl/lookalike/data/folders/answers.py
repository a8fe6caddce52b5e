"""The classes of images that do not lie in class folders, as ImageNet and Tiny-ImageNet publish
those of their validation set.
"""

from pathlib import Path

from lookalike.data.outside import lines, opened
from lookalike.errors import DataError, printable

TINY, KAGGLE = "val_annotations.txt", "LOC_val_solution.csv"
_ABOVE = 4  # ILSVRC/Data/CLS-LOC/val


def answers_for(folder: Path) -> Path | None:
    """The list that says what lies in a folder: Tiny-ImageNet's in it, or Kaggle's of ImageNet in
    it or a few folders above.
    """
    if (folder / TINY).is_file():
        return folder / TINY
    places = [folder, *folder.absolute().parents[:_ABOVE]]
    if folder.name.lower() != "val":
        return None
    return next((place / KAGGLE for place in places if (place / KAGGLE).is_file()), None)


def read_answers(file: Path, names: set[bytes]) -> dict[bytes, bytes]:
    """The class of each of these file names that the list knows. Raises DataError, with the line,
    for what is no such list.
    """
    place, parse = printable(file), _kaggle if file.name == KAGGLE else _tiny
    found: dict[bytes, bytes] = {}
    with opened(file) as data:
        for number, line in enumerate(lines(data.readline, place), 1):
            name, word = parse(line.rstrip(b"\r\n"))
            if name == b"ImageId.JPEG" or not line.strip():
                continue
            if not name or not word or b"/" in word or b"\0" in word:
                raise DataError(
                    f"{place}:{number}: names no image and class: fix the line, or fetch the file "
                    "again"
                )
            if name in names:
                found[name] = word
    return found


def _tiny(line: bytes) -> tuple[bytes, bytes]:
    """`val_0.JPEG <tab> n03444034 <tab> box`."""
    name, _, rest = line.partition(b"\t")
    return name, rest.partition(b"\t")[0]


def _kaggle(line: bytes) -> tuple[bytes, bytes]:
    """`ILSVRC2012_val_00000001,n01751748 111 108 370 354 ` below `ImageId,PredictionString`."""
    name, _, rest = line.partition(b",")
    return name and name + b".JPEG", rest.partition(b" ")[0]
