"""What people bring, as one table: every row gives the counts, classes and pixels that are right,
or one line that refuses it before the first step.

Each row writes a few small files, and goes the way of a user: a recipe, a run, its images, `check`.
"""

import io
import json
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

import toy
from lookalike.errors import Error
from lookalike.experiment import Experiment
from lookalike.pipeline import check
from lookalike.runs import Run

SIDE = 16
Pixels = Callable[[list[Tensor]], bool]


class Case(NamedTuple):
    """`make` writes files below a folder; `data` is the recipe's section, its paths below it.

    Right are so many `train` images and, where a stage asks for it, `test` images, train `classes`
    by name with their number, so many `left_out`, and `pixels`; or `refused`, a pattern of the
    line.
    `stages`: the sections that come after pretraining.
    """

    make: Callable[[Path], Any]
    data: Mapping[str, Any] = {}
    train: int = 0
    test: int | None = None
    classes: Mapping[str, int] = {}
    left_out: int | None = None
    pixels: Pixels | None = None
    refused: str = ""
    stages: Mapping[str, Any] = {}


# Files.


def colours(seed: int = 0, channels: int = 3) -> np.ndarray:
    """Slow ramps, other ones for each seed, uint8 (16, 16, C), (16, 16) of one channel."""
    y, x = np.mgrid[:SIDE, :SIDE]
    ramps = [(4 * x + 3 * y + 40 * c + 7 * seed) % 256 for c in range(channels)]
    pixels = np.stack(ramps, axis=-1).astype(np.uint8)
    return pixels[..., 0] if channels == 1 else pixels


def save(path: Path, pixels: np.ndarray | Image.Image | None = None, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    made = colours(sum(map(ord, str(path.name)))) if pixels is None else pixels
    (made if isinstance(made, Image.Image) else Image.fromarray(made)).save(path, **how)
    return path


def tree(at: Path, **counts: int) -> None:
    """So many images in each folder; `__` is a slash in its name."""
    for folder, count in counts.items():
        for i in range(count):
            save(at / folder.replace("__", "/") / f"{i}.png")


def link(path: Path, to: Path | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(to)


def encoded(pixels: np.ndarray | None = None, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(colours() if pixels is None else pixels).save(buffer, kind)
    return buffer.getvalue()


def png_of_16_bits(path: Path, pixels: np.ndarray) -> None:
    """RGB of 16 bits, which Pillow cannot write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        size, end = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(name + data))
        return size + name + data + end

    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))


def avi(path: Path, frames: int, rate: int) -> None:
    """Motion JPEG: RIFF with a header, a list of frames and an index."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def listed(name: bytes, data: bytes, outer: bytes = b"LIST") -> bytes:
        return chunk(outer, name + data)

    parts = [chunk(b"00dc", encoded(colours(i), "JPEG")) for i in range(frames)]
    sides = (SIDE, SIDE)
    main = struct.pack("<14I", 10**6 // rate, 0, 0, 16, frames, 0, 1, 10**6, *sides, 0, 0, 0, 0)
    stream = b"vidsMJPG" + struct.pack("<10I4H", 0, 0, 0, 1, rate, 0, frames, 0, 0, 0, 0, 0, *sides)
    form = struct.pack("<IiiHH4s5I", 40, *sides, 1, 24, b"MJPG", 3 * SIDE * SIDE, 0, 0, 0, 0)
    head = listed(b"strl", chunk(b"strh", stream) + chunk(b"strf", form))
    places = np.cumsum([4, *(len(part) for part in parts[:-1])])
    index = b"".join(
        b"00dc" + struct.pack("<III", 16, int(at), len(part) - 8)
        for at, part in zip(places, parts, strict=True)
    )
    body = listed(b"hdrl", chunk(b"avih", main) + head) + listed(b"movi", b"".join(parts))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(listed(b"AVI ", body + chunk(b"idx1", index), b"RIFF"))


# What is held of pixels.


def equal(wanted: np.ndarray | list[Any], dtype: torch.dtype = torch.uint8) -> Pixels:
    """Every image has these values, (H, W, C) or (H, W), of this type."""
    whole = np.asarray(wanted)
    whole_CHW = whole[None] if whole.ndim == 2 else whole.transpose(2, 0, 1)
    made = torch.from_numpy(np.ascontiguousarray(whole_CHW)).to(dtype)

    def holds(found: list[Tensor]) -> bool:
        return all(image.dtype == dtype and torch.equal(image, made) for image in found)

    return holds


def near(wanted: np.ndarray, most: int) -> Pixels:
    """The same but for what a lossy format loses."""
    made = torch.from_numpy(wanted.transpose(2, 0, 1).copy()).int()
    return lambda found: all((image.int() - made).abs().max() <= most for image in found)


def means(*wanted: float) -> Pixels:
    """Each channel has this mean, to a step."""
    goal = torch.tensor(wanted)
    return lambda found: all(
        image.shape[0] == len(goal) and (image.double().mean((1, 2)) - goal).abs().max() <= 1
        for image in found
    )


# The rows.

CASES: dict[str, Case] = {}


def three(at: Path) -> None:
    """Classes a and b in train, and other images outside."""
    tree(at / "data/train", a=3, b=3)
    tree(at / "store", c=3, d=2)


def with_links(**links: str) -> Callable[[Path], None]:
    def make(at: Path) -> None:
        three(at)
        for path, to in links.items():
            link(at / "data/train" / path.replace("__", "/").replace("_png", ".png"), to)

    return make


AB = {"a": 3, "b": 3}
DATA = {"path": "data"}
CASES |= {
    "links: a class folder": Case(
        with_links(c="../../store/c"), DATA, train=9, classes={**AB, "c": 3}, left_out=0
    ),
    "links: two files of a class": Case(
        with_links(b__x_png="../../../store/d/0.png", b__y_png="../../../store/d/1.png"),
        DATA,
        train=8,
        classes={"a": 3, "b": 5},
        left_out=0,
    ),
    "links: a loop": Case(with_links(a__loop=".."), DATA, train=6, classes=AB),
    "links: a folder twice": Case(with_links(z="b"), DATA, train=6, classes=AB),
    "links: to nothing": Case(
        with_links(b__x_png="gone.png"), DATA, train=6, classes=AB, left_out=1
    ),
    "links: none out of the folder": Case(
        with_links(c="../../store/c", b__x_png="../../../store/d/0.png"),
        {**DATA, "links": "inside"},
        train=6,
        classes=AB,
        left_out=2,
    ),
    "links: some that stay inside": Case(
        with_links(b__x_png="../a/0.png", c="../../store/c"),
        {**DATA, "links": "inside"},
        train=7,
        classes={"a": 3, "b": 4},
        left_out=1,
    ),
}


def flat(name: str, kind: str, pixels: np.ndarray | None = None, **how: Any) -> Any:
    """Two images of one name and kind."""

    def make(at: Path) -> None:
        stem, dot, suffix = name.partition(".")
        for i in range(2):
            made = colours() if pixels is None else pixels
            save(at / f"{stem}{i}{dot}{suffix}", made, format=kind, **how)

    return make


def into_train(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    """The same files in the train folder, so that a hash has no say."""

    def within(at: Path) -> None:
        (at / "train").mkdir()
        make(at / "train")

    return within


SMOOTH = colours()
EXACT, ALIKE = equal(SMOOTH), near(SMOOTH, 90)
SUFFIXES: list[tuple[str, str, Pixels]] = [
    ("a.JPG", "JPEG", ALIKE),
    ("b.jfif", "JPEG", ALIKE),
    ("c.jpe", "JPEG", ALIKE),
    ("d.ppm", "PPM", EXACT),
    ("f.avif", "AVIF", ALIKE),
    ("g.jp2", "JPEG2000", EXACT),
    ("h.PNG", "PNG", EXACT),
    ("i.tif", "TIFF", EXACT),
    ("j", "PNG", EXACT),
    ("k.png", "BMP", EXACT),
    ("l.dat", "PNG", EXACT),
    ("m.ico", "ICO", EXACT),
]
CASES |= {
    f"suffix: {name} that is {kind}": Case(
        into_train(flat(name, kind)), train=2, left_out=0, pixels=holds
    )
    for name, kind, holds in SUFFIXES
}


def beside(at: Path) -> None:
    tree(at, **{".": 4})
    (at / "readme.txt").write_text("not an image")
    (at / "movie.mp4").write_bytes(b"\0" * 64)


CASES |= {
    "suffix: grey e.pgm": Case(
        into_train(flat("e.pgm", "PPM", colours(channels=1))),
        {"channels": 1},
        train=2,
        pixels=equal(colours(channels=1)),
    ),
    "suffix: other files are counted": Case(beside, train=4, left_out=2),
}


def split(train: str, test: str) -> Callable[[Path], None]:
    def make(at: Path) -> None:
        for folder, count in ((train, 4), (test, 2)):
            tree(at / folder, cat=count, dog=count)

    return make


def taxonomy(at: Path) -> None:
    tree(at / "animalia/aves", robin=3, wren=3)
    tree(at / "plantae", oak=3)


def stray(at: Path) -> None:
    tree(at, cat=5, dog=5)
    save(at / "cover.png")


def tiny_imagenet(at: Path) -> None:
    for word in ("n01", "n02"):
        for i in range(3):
            save(at / "train" / word / "images" / f"{word}_{i}.JPEG")
    for i in range(4):
        save(at / "val/images" / f"val_{i}.JPEG")
    lines = [f"val_{i}.JPEG\tn0{i % 2 + 1}\t0\t0\t9\t9\n" for i in range(4)]
    (at / "val/val_annotations.txt").write_text("".join(lines))


def listed(at: Path) -> None:
    tree(at, a=3, b=3)
    (at / "list.txt").write_text("".join(f"{c}/{i}.png\n" for c in "ab" for i in range(2)))


def hidden(at: Path) -> None:
    tree(at, cat=3, dog=3)
    save(at / ".thumbnails/0.png")
    save(at / "cat/._0.png")


SCORED, WHOLE = {"probe": {"k": 1}}, {"test_fraction": 0}
PETS, TWO_PETS = {"cat": 4, "dog": 4}, {"cat": 5, "dog": 5}
CASES |= {
    f"layout: {train} and {test}": Case(
        split(train, test), train=8, test=4, classes=PETS, stages=SCORED
    )
    for train, test in (
        ("Train", "Test"),
        ("TRAIN", "TEST"),
        ("training", "testing"),
        ("train", "val"),
        ("train", "Valid"),
        ("Train", "validation"),
    )
}
CASES |= {
    "layout: an image beside the classes": Case(
        stray, WHOLE, train=10, classes=TWO_PETS, left_out=1
    ),
    "layout: the first folder is the class": Case(
        taxonomy, WHOLE, train=9, classes={"animalia": 6, "plantae": 3}
    ),
    "layout: the last folder is the class": Case(
        taxonomy,
        {"class_folder": "last", **WHOLE},
        train=9,
        classes={"robin": 3, "wren": 3, "oak": 3},
    ),
    "layout: the whole path is the class": Case(
        taxonomy,
        {"class_folder": "path", **WHOLE},
        train=9,
        classes={"animalia/aves/robin": 3, "animalia/aves/wren": 3, "plantae/oak": 3},
    ),
    "layout: nothing is held out for nobody": Case(
        lambda at: tree(at, **{".": 20}), train=20, left_out=0
    ),
    "layout: Tiny-ImageNet's": Case(
        tiny_imagenet, train=6, test=4, classes={"n01": 3, "n02": 3}, stages=SCORED
    ),
    "layout: several roots": Case(
        lambda at: (tree(at / "one", cat=3, dog=3), tree(at / "two", dog=2, owl=2)),
        {"path": ["one", "two"], **WHOLE},
        train=10,
        classes={"cat": 3, "dog": 5, "owl": 2},
    ),
    "layout: a list of files": Case(listed, {"path": "list.txt"}, train=4),
    "layout: hidden names are counted": Case(
        hidden, WHOLE, train=6, classes={"cat": 3, "dog": 3}, left_out=2
    ),
}

# Depths and channels.

RAMP = np.linspace(0, 4095, SIDE * SIDE).astype(np.uint16).reshape(SIDE, SIDE)
FLOATS = (RAMP / 4095).astype(np.float32)
BANDS = (np.arange(SIDE * SIDE * 5) * 51 % 65536).astype(np.uint16).reshape(SIDE, SIDE, 5)


def tiff(pixels: np.ndarray, **how: Any) -> Callable[[Path], None]:
    def make(at: Path) -> None:
        for i in range(2):
            tifffile.imwrite(at / f"{i}.tif", pixels, **how)

    return make


def half_clear(at: Path) -> None:
    """Red, and in the right half nothing."""
    pixels = np.zeros((SIDE, SIDE, 4), np.uint8)
    pixels[..., 0], pixels[:, : SIDE // 2, 3] = 200, 255
    for i in range(2):
        save(at / f"{i}.png", pixels)


def drawn(image: Image.Image, name: str) -> Callable[[Path], None]:
    return lambda at: [save(at / f"{i}{name}", image) for i in range(2)]


PALETTE = Image.fromarray(SMOOTH).quantize(64)
GREY_ALPHA = Image.merge("LA", [Image.new("L", (SIDE, SIDE), v) for v in (100, 0)])
BITS = Image.fromarray(np.eye(SIDE, dtype=bool))
INK = Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0))
DEEP: dict[str, tuple[Callable[[Path], Any], dict[str, Any], Pixels]] = {
    "12 bits in a PNG of 16": (
        lambda at: [save(at / f"{i}.png", RAMP) for i in range(2)],
        {"channels": 1},
        equal(RAMP, torch.uint16),
    ),
    "floats in a TIFF": (tiff(FLOATS), {"channels": 1}, equal(FLOATS, torch.float32)),
    "five bands of 16 bits": (
        tiff(BANDS, photometric="minisblack", planarconfig="contig"),
        {"channels": 5},
        equal(BANDS, torch.uint16),
    ),
    "five bands, band after band": (
        tiff(
            np.ascontiguousarray(BANDS.transpose(2, 0, 1)),
            photometric="minisblack",
            planarconfig="separate",
        ),
        {"channels": 5},
        equal(BANDS, torch.uint16),
    ),
    "five bands in a .npy": (
        lambda at: [np.save(at / f"{i}.npy", BANDS) for i in range(2)],
        {"channels": 5},
        equal(BANDS, torch.uint16),
    ),
    "RGB of 16 bits in a PNG": (
        lambda at: [png_of_16_bits(at / f"{i}.png", BANDS[..., :3]) for i in range(2)],
        {},
        equal(BANDS[..., :3], torch.uint16),
    ),
    "RGB of 16 bits in a TIFF": (
        tiff(np.ascontiguousarray(BANDS[..., :3]), photometric="rgb"),
        {},
        equal(BANDS[..., :3], torch.uint16),
    ),
    "RGB of 8 bits read as 16": (
        lambda at: [save(at / f"{i}.png", SMOOTH) for i in range(2)],
        {"depth": "uint16"},
        equal(SMOOTH.astype(np.uint16) * 257, torch.uint16),
    ),
    "RGBA on white": (half_clear, {}, means(227.5, 127.5, 127.5)),
    "RGBA on black": (half_clear, {"alpha": "black"}, means(100, 0, 0)),
    "RGBA as four": (half_clear, {"channels": 4, "alpha": "keep"}, means(200, 0, 0, 127.5)),
    "grey with alpha": (drawn(GREY_ALPHA, ".png"), {}, means(255, 255, 255)),
    "a palette": (
        drawn(PALETTE, ".png"),
        {},
        equal(np.asarray(PALETTE.convert("RGB"))),
    ),
    "CMYK": (drawn(INK, ".tif"), {}, means(255, 0, 0)),
    "one bit": (drawn(BITS, ".png"), {"channels": 1}, equal(np.eye(SIDE) * 255)),
}
CASES |= {
    f"depth: {name}": Case(into_train(make), data, train=2, pixels=holds)
    for name, (make, data, holds) in DEEP.items()
}

# Tables.


def table(text: Callable[[Path], str | bytes], name: str = "t.csv") -> Callable[[Path], None]:
    """Six images in `img`, and a table of them."""

    def make(at: Path) -> None:
        tree(at, img=6)
        made = text(at)
        (at / name).write_bytes(made if isinstance(made, bytes) else made.encode())

    return make


def rows(head: str, row: str, join: str = "") -> Callable[[Path], str]:
    """A line for each image: {i}, its class {y}, its split {s}, where all lies {at}."""

    def text(at: Path) -> str:
        lines = [
            row.format(i=i, y=i % 2, w="xy"[i % 2], s="validation" if i > 3 else "Train", at=at)
            for i in range(6)
        ]
        return "\n".join([join + head, *lines, ""])

    return text


ALL, HALVES = {"name": "manifest", "path": "t.csv", "test_fraction": 0}, {"0": 3, "1": 3}
TABLES: dict[str, Case] = {
    "absolute paths": Case(
        table(rows("path,label", "{at}/img/{i}.png,{y}")), ALL, train=6, classes=HALVES
    ),
    "absolute paths below a root": Case(
        table(rows("path,label", "{at}/img/{i}.png,{y}")),
        {**ALL, "root": "img"},
        train=6,
        classes=HALVES,
    ),
    "absolute paths that leave the root": Case(
        table(rows("path,label", "/etc/img/{i}.png,{y}")), ALL, refused=r"t\.csv:2: .*/etc/img/0"
    ),
    "semicolons": Case(table(rows("path;label", "img/{i}.png;{y}")), ALL, train=6, classes=HALVES),
    "tabs": Case(
        table(rows("path\tlabel", "img/{i}.png\t{y}"), "t.tsv"),
        {**ALL, "path": "t.tsv"},
        train=6,
        classes=HALVES,
    ),
    "a BOM": Case(
        table(rows("path,label", "img/{i}.png,{y}", "\ufeff")), ALL, train=6, classes=HALVES
    ),
    "quotes": Case(
        table(rows("path,label,note", '"img/{i}.png","{y}","a, ""b"""')),
        ALL,
        train=6,
        classes=HALVES,
    ),
    "Hugging Face's file_name": Case(
        table(rows("file_name,label", "img/{i}.png,{y}")), ALL, train=6, classes=HALVES
    ),
    "image_path": Case(
        table(rows("image_path,label", "img/{i}.png,{y}")), ALL, train=6, classes=HALVES
    ),
    "columns of other names": Case(
        table(rows("where,kind", "img/{i}.png,{w}")),
        {**ALL, "columns": {"path": "where", "label": "kind"}},
        train=6,
        classes={"x": 3, "y": 3},
    ),
    "a split called validation": Case(
        table(rows("path,label,split", "img/{i}.png,{y},{s}")),
        {"name": "manifest", "path": "t.csv"},
        train=4,
        test=2,
        classes={"0": 2, "1": 2},
        stages=SCORED,
    ),
    "labels that are words": Case(
        table(rows("path,label", "img/{i}.png,{w}")), ALL, train=6, classes={"x": 3, "y": 3}
    ),
    "labels that are whole floats": Case(
        table(rows("path,label", "img/{i}.png,{y}.0")), ALL, train=6, classes=HALVES
    ),
}
CASES |= {f"table: {name}": case for name, case in TABLES.items()}


def backslashes(at: Path) -> None:
    table(rows("path,label", "img\\{i}.png,{y}"))(at)


# Shards.


def samples(*members: str, count: int = 4) -> Callable[[Path], None]:
    """A shard of so many samples, each of these members: {i}, {y} and {w} stand for its number and
    class; a text behind `=` is what the member holds, else it is an image.
    """

    def make(at: Path) -> None:
        held = []
        for i in range(count):
            for member in members:
                name, _, text = member.partition("=")
                known = {"i": f"{i:04}", "y": str(i % 2), "w": "xy"[i % 2]}
                for word, value in known.items():
                    name, text = name.replace(f"<{word}>", value), text.replace(f"<{word}>", value)
                held.append((name, text.encode() if text else encoded(colours(i))))
        tar(at / "s.tar", held)

    return make


def some_bare(at: Path) -> None:
    """Four whole samples, one without an image and one without a label."""
    held = [(f"{i}.png", encoded(colours(i))) for i in range(5)]
    held += [(f"{i}.cls", b"%d" % (i % 2)) for i in (0, 1, 2, 3, 9)]
    tar(at / "s.tar", sorted(held))


SHARDS, PAIRS = {"name": "shards", "test_fraction": 0}, {"0": 2, "1": 2}
TEXTS = {"x": 2, "y": 2}
FOREIGN: dict[str, Case] = {
    "plain": Case(samples("<i>.png", "<i>.cls=<y>"), SHARDS, train=4, classes=PAIRS),
    "x.input.png and x.target.cls": Case(
        samples("<i>.input.png", "<i>.target.cls=<y>"),
        {**SHARDS, "image_key": "input.png", "label_key": "target.cls"},
        train=4,
        classes=PAIRS,
    ),
    "dots in names": Case(
        samples("img.v1.<i>.png", "img.v1.<i>.cls=<y>"), SHARDS, train=4, classes=PAIRS
    ),
    "labels as text in .json": Case(
        samples("<i>.png", '<i>.json={"label": "<w>", "caption": "c"}'),
        SHARDS,
        train=4,
        classes=TEXTS,
    ),
    "a path into .json": Case(
        samples("<i>.png", '<i>.json={"about": {"kind": "<w>"}}'),
        {**SHARDS, "label_key": "json:about.kind"},
        train=4,
        classes=TEXTS,
    ),
    "the folder is the label": Case(
        samples("<w>/<i>.png"), {**SHARDS, "label_key": "folder"}, train=4, classes=TEXTS
    ),
    "two images a sample": Case(
        samples("<i>.mask.png", "<i>.jpg", "<i>.cls=<y>"),
        {**SHARDS, "image_key": "jpg"},
        train=4,
        classes=PAIRS,
    ),
    "img2dataset's": Case(
        samples("<i>.jpg", "<i>.txt=a cat", '<i>.json={"key": "<i>", "status": "success"}'),
        SHARDS,
        train=4,
    ),
    "samples without image or label": Case(some_bare, SHARDS, train=5, left_out=2),
}
CASES |= {f"shards: {name}": case for name, case in FOREIGN.items()}


# Video, and Hugging Face's Parquet.


def clips(at: Path) -> None:
    for name, frames in (("a", 40), ("b", 30)):
        avi(at / f"{name}.avi", frames, rate=10)
    (at / "notes.txt").write_text("x")


def embedded(path: Path) -> None:
    images = [{"bytes": encoded(colours(i)), "path": f"{i}.png"} for i in range(6)]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"image": pa.array(images, kind), "label": [i % 2 for i in range(6)]}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


CASES |= {
    "video: a frame a second, the clip as its group": Case(
        clips, {"name": "video", "every": 1.0, "test_fraction": 0}, train=7, left_out=1
    ),
    "Parquet: images in its rows": Case(
        lambda at: embedded(at / "t.parquet"),
        {**ALL, "path": "t.parquet"},
        train=6,
        classes=HALVES,
        pixels=lambda found: all(map(torch.equal, found, map(chw, range(6)))),
    ),
    "Parquet: a data set of Hugging Face": Case(
        lambda at: [
            embedded(at / "data" / f"{part}-00000-of-00001.parquet") for part in ("train", "test")
        ],
        {"name": "hf"},
        train=6,
        test=6,
        classes=HALVES,
        stages=SCORED,
    ),
}


def chw(seed: int) -> Tensor:
    return torch.from_numpy(colours(seed).transpose(2, 0, 1).copy())


# What cannot be done.

TUNED = {"optimizer": {"name": "adamw", "lr": 1e-3}, "classes_per_batch": 2, "per_class": 2}
TUNED |= {"warmup_epochs": 0, "held_out": 0}


def spoilt(at: Path) -> None:
    tree(at, train=5, test=1)
    for path in at.glob("train/*"):
        path.write_bytes(path.read_bytes()[:60])


REFUSED: dict[str, Case] = {
    "a probe of one image a class": Case(
        lambda at: tree(at, **{f"train__c{c}": 1 for c in range(6)}, test__c0=1, test__c1=1),
        refused="each of the 6 classes has one train image",
        stages=SCORED,
    ),
    "a probe of classes that train lacks": Case(
        lambda at: tree(at, train__a=4, train__b=4, test__c=2, test__d=2),
        refused="no test image is of a class that the train images have",
        stages=SCORED,
    ),
    "a probe without labels": Case(
        lambda at: tree(at, train=4, test=4), refused="no labels", stages=SCORED
    ),
    "retrieval without a match": Case(
        lambda at: tree(at, train__a=4, train__b=4, test__a=1, test__b=1),
        refused="none of 2 queries has another image of its class",
        stages={"evaluate": {}},
    ),
    "a batch above the images": Case(
        lambda at: tree(at, train=5, test=1),
        refused=r"pretrain\.batch: 5 images are fewer than one batch of 8",
        stages={"pretrain.batch": 8},
    ),
    "too few classes for a batch": Case(
        lambda at: tree(at, train__a=4, train__b=4, test__a=2, test__b=2),
        refused=r"finetune\.classes_per_batch: 3 classes a batch, but only 2",
        stages={"finetune": {**TUNED, "classes_per_batch": 3}},
    ),
    "triplets without a positive": Case(
        lambda at: tree(at, train__a=4, train__b=4, test__a=2, test__b=2),
        refused=r"finetune\.per_class: 1, but FaceNetLoss learns nothing",
        stages={"finetune": {**TUNED, "per_class": 1}},
    ),
    "images that are all cut short": Case(
        spoilt, refused="none of the 5 images looked at can be read, first"
    ),
    "a folder without images": Case(
        lambda at: (at / "readme.txt").write_text("x"), refused="no images in it or below"
    ),
    "a folder that is not there": Case(lambda at: None, {"path": "gone"}, refused="no such folder"),
}
CASES |= {f"refused: {name}": case for name, case in REFUSED.items()}


# The driver.


def recipe(at: Path, case: Case) -> Experiment:
    """The recipe of a small network on the case's data, with no stage that the case does not
    name.
    """
    data = {"name": "folder", "path": ".", "canvas": SIDE, **case.data}
    for key in {"path", "root"} & data.keys():
        given = data[key]
        data[key] = str(at / given) if isinstance(given, str) else [str(at / one) for one in given]
    stages = {"probe": None, "finetune": None, "evaluate": None, "export": None, **case.stages}
    small = {"pretrain.batch": 2, "pretrain.epochs": 1, "pretrain.workers": 0}
    words = {"data": data, "backbone.channels": data.get("channels", 3), **small, **stages}
    return toy.recipe(*(f"{key}={json.dumps(value)}" for key, value in words.items()))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_what_people_bring_is_read_rightly_or_refused_in_one_line(tmp_path, name):
    case, at = CASES[name], tmp_path / "in"
    at.mkdir()
    case.make(at)
    made = recipe(at, case)
    if case.refused:
        with pytest.raises(Error, match=case.refused) as refusal:
            check(Run(made, tmp_path / "out"))
        assert "\n" not in str(refusal.value)
        return
    run = Run(made)
    train = run.images("train")
    assert len(train) == case.train
    if case.test is not None:
        assert len(run.images("test")) == case.test
    labels = [] if train.labels is None else train.labels.tolist()
    assert Counter(train.classes[label] for label in labels) == case.classes
    images = [train.read(i) for i in range(len(train))]
    if case.pixels:
        assert case.pixels(images)
    if case.left_out is not None:
        (source,) = run._sources.values()
        assert sum(one.number for one in source.inventory) == case.left_out
    check(Run(made, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_names_from_windows_are_read_or_refused_at_the_first_line(tmp_path):
    backslashes(tmp_path)
    told = ""
    try:
        train = Run(recipe(tmp_path, Case(backslashes, ALL))).images("train")
        found = [train.read(i).shape[0] for i in range(len(train))]
    except Error as error:
        told, found = str(error), []
    assert found == [3] * 6 or ("t.csv:2: " in told and "\\" in told)


def test_frames_of_a_clip_are_of_one_group(tmp_path):
    """Of as many groups as there are clips, each with a frame a second."""
    clips(tmp_path)
    case = Case(clips, {"name": "video", "every": 1.0, "test_fraction": 0})
    train = Run(recipe(tmp_path, case)).images("train")
    assert sorted(Counter(train.annotations.groups.tolist()).values()) == [3, 4]


def test_the_table_is_as_long_as_it_should_be():
    assert len(CASES) >= 40
