"""Pixels stay in their own type from the file to the canvas; which type, a few headers say."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.data import glimpse
from lookalike.data.decode import BadImage, cut
from lookalike.data.images import ArrayImages, FileImages, Reading, subset
from lookalike.data.loader import batches, in_order
from lookalike.data.order import order_of
from lookalike.data.pack import Packing, pack
from lookalike.data.reading import FileSource, fit_to, refuse_other
from lookalike.data.slots import Slots
from lookalike.data.sources import Folder
from lookalike.errors import DataError
from lookalike.experiment import load_recipe
from lookalike.geometry import PixelFormat

DEEP = PixelFormat(1, "uint16", (0.0, 4095.0))


def grey(values: np.ndarray) -> bytes:
    """A PNG of 8 or 16 bits."""
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def fill(folder, count, dtype=np.uint16, top=4096, side=20, name="c{}/{}.png"):
    """Grey PNGs in two classes; their values, (side, side) each, in the order of names."""
    values = np.random.default_rng(7).integers(0, top, (count, side, side)).astype(dtype)
    for i, value in enumerate(values):
        path = folder / name.format(i % 2, f"{i:04d}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grey(value))
    return values


@pytest.mark.parametrize("dtype", [torch.uint16, torch.float32])
@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_a_deep_cut_is_the_resize_in_double_precision(dtype, mode):
    generator = torch.Generator().manual_seed(3)
    image_CHW = torch.randint(0, 65536, (5, 40, 44), generator=generator).to(dtype)
    out_CHW = torch.empty(5, 13, 17, dtype=dtype)
    assert cut(image_CHW, (3, 5, 30, 36), out_CHW, mode) is out_CHW
    piece = image_CHW.double()[None, :, 3:33, 5:41]
    wanted = torch.nn.functional.interpolate(piece, (13, 17), mode=mode, antialias=True)[0]
    if dtype == torch.uint16:
        wanted = wanted.round().clamp(0, 65535)
    assert (out_CHW.double() - wanted).abs().max() <= (1 if dtype == torch.uint16 else 0.05)


def test_a_cut_of_16_bits_is_clamped_and_not_wrapped():
    image_CHW = torch.zeros(1, 8, 16, dtype=torch.uint16)
    image_CHW[:, :, 8:] = 65535  # the cubic overshoots on both sides of the edge
    out_CHW = cut(image_CHW, (0, 0, 8, 16), torch.empty(1, 11, 23, dtype=torch.uint16))
    rows = out_CHW[0].to(torch.int32).diff(dim=1)
    assert (rows >= -1300).all()  # what overshoots is at the end, not at the other one
    assert int(out_CHW.to(torch.int32).max()) == 65535
    assert int(out_CHW.to(torch.int32).min()) == 0


def test_a_cut_of_the_same_sides_keeps_every_bit():
    image_CHW = torch.arange(65536).to(torch.uint16).reshape(1, 256, 256)
    same = cut(image_CHW, (0, 0, 256, 256), torch.empty(1, 256, 256, dtype=torch.uint16))
    assert torch.equal(same, image_CHW)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_slots_hold_rows_of_their_type_side_by_side(dtype):
    slots = Slots(3, 4, [(5, 3, 7), (1, 2, 2)], dtype)
    wanted = {}
    for slot in range(3):
        for k, part in enumerate(slots.parts(slot, 4)):
            assert (part.dtype, part.shape[0]) == (dtype, 4)
            wanted[slot, k] = torch.randint(0, 250, part.shape).to(dtype)
            part.copy_(wanted[slot, k])
    for (slot, k), values in wanted.items():
        assert torch.equal(slots.parts(slot, 2)[k], values[:2])


@pytest.mark.parametrize("workers", [0, 2])
def test_canvases_of_16_bits_come_whole_from_every_loader(tmp_path, workers):
    values = fill(tmp_path, 9)
    images = FileImages(tmp_path, [f"c{i % 2}/{i:04d}.png" for i in range(9)], Reading(20, DEEP))
    seen = {}
    for ids, canvas_BCHW in in_order(images, 4, workers):
        assert canvas_BCHW.dtype == torch.uint16
        seen |= {i: canvas.numpy().copy() for i, canvas in zip(ids, canvas_BCHW, strict=True)}
    for i, value in enumerate(values):
        assert np.array_equal(seen[i][0], value)
    order = order_of(images, 4, 1, seed=1)
    how = {"first_step": 0, "last_step": 2, "rank": 0, "world": 1, "workers": workers}
    for batch in batches(images, order, pin=False, **how):
        for i, canvas in zip(batch.ids_B.tolist(), batch.pixels, strict=True):
            assert np.array_equal(canvas[0].numpy(), values[i])


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
def test_images_in_memory_keep_their_type(dtype):
    images_MCHW = (torch.arange(6 * 5 * 4 * 4) % 200).reshape(6, 5, 4, 4).to(dtype)
    ends = (0.0, 199.0) if dtype == torch.float32 else None
    images = ArrayImages(images_MCHW, range=ends)
    assert images.form == PixelFormat(5, str(dtype).removeprefix("torch."), ends)
    some = subset(images, [4, 1])
    assert some.form == images.form
    assert torch.equal(some.read_many([0, 1]), images_MCHW[[4, 1]])
    assert torch.equal(some.open(1).pixels(), images_MCHW[1])


def test_images_in_memory_that_nothing_explains_are_refused():
    with pytest.raises(ValueError, match="uint8, uint16, float32"):
        ArrayImages(torch.zeros(2, 3, 4, 4, dtype=torch.float64))
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="outside 0 … 1: give their range"):
            ArrayImages(torch.full((1, 1, 2, 2), value))
    with pytest.raises(ValueError, match="larger value first"):
        ArrayImages(torch.zeros(1, 1, 2, 2), range=(1.0, 1.0))
    bytes_, deep = (torch.zeros(1, 1, 2, 2, dtype=d) for d in (torch.uint8, torch.uint16))
    assert ArrayImages(bytes_).fingerprint != ArrayImages(deep).fingerprint
    ranged = ArrayImages(deep, range=(0.0, 9.0))
    assert ranged.fingerprint != ArrayImages(deep).fingerprint


class Seen(FileImages):
    """Images of files that say which heads were read, and how many whole files."""

    def head(self, i, size):
        self.__dict__.setdefault("heads", []).append((i, size))
        return super().head(i, size)

    def contents(self, i):
        self.__dict__.setdefault("wholes", []).append(i)
        return super().contents(i)


def test_a_few_headers_say_how_deep_a_set_is(tmp_path):
    fill(tmp_path, 600, np.uint8, 256, side=4)
    names = [f"c{i % 2}/{i:04d}.png" for i in range(600)]
    images = Seen(tmp_path, names, Reading(4, PixelFormat(1)))
    assert glimpse.depth_of(images) == "uint8"
    assert len(images.heads) == 256
    assert {size for _, size in images.heads} == {4096}
    assert not hasattr(images, "wholes")
    looked = sorted(i for i, _ in images.heads)
    assert looked[0] == 0
    assert looked[-1] == 599
    assert max(b - a for a, b in zip(looked, looked[1:], strict=False)) <= 3
    (tmp_path / names[599]).write_bytes(grey(np.full((4, 4), 700, np.uint16)))
    assert glimpse.depth_of(images) == "uint16"
    (tmp_path / names[599]).write_bytes(b"no image at all")
    assert glimpse.depth_of(images) == "uint8"


def test_a_header_far_into_its_file_is_found_in_some_files_read_whole(tmp_path, monkeypatch):
    """As a TIFF's may be at its end: no image is looked at twice, and few files are read whole."""
    needed = {i: 70_000 if i % 3 else 5000 for i in range(60)}

    def look(data):
        if len(data) < needed[data[0]]:
            raise ValueError("cut short")
        return glimpse.Look(1, 16, False, False)

    monkeypatch.setattr(glimpse, "look", look)
    for i in range(60):
        (tmp_path / f"{i:02d}").write_bytes(bytes([i]) * 80_000)
    images = Seen(tmp_path, [f"{i:02d}" for i in range(60)], Reading(4, PixelFormat(1)))
    assert len(glimpse.looked(images)) == 20 + 16
    assert {size for _, size in images.heads} == {4096, 65536}
    assert len(images.heads) == 120
    assert len(images.wholes) == 16
    monkeypatch.setattr(glimpse, "_WHOLE_BYTES", 200_000)
    assert len(glimpse.looked(images)) == 20 + 3


@pytest.mark.parametrize(
    ("floating", "signed", "bits", "depth"),
    [
        (False, False, 8, "uint8"),
        (False, False, 1, "uint8"),
        (False, False, 12, "uint16"),
        (False, False, 16, "uint16"),
        (False, False, 32, "float32"),
        (False, True, 16, "float32"),
        (True, False, 32, "float32"),
        (True, False, 16, "float32"),
    ],
)
def test_the_deepest_of_them_decides(tmp_path, monkeypatch, floating, signed, bits, depth):
    fill(tmp_path, 6, np.uint8, 256, side=4, name="{1}.png")
    deep = (tmp_path / "0004.png").read_bytes()

    def look(data):
        found = original(data)
        return (
            found._replace(floating=floating, signed=signed, bits=bits) if data == deep else found
        )

    original = glimpse.look
    monkeypatch.setattr(glimpse, "look", look)
    names = [f"{i:04d}.png" for i in range(6)]
    assert glimpse.depth_of(FileImages(tmp_path, names, Reading(4, PixelFormat(1)))) == depth


def test_a_recipe_that_says_the_depth_has_no_file_opened(tmp_path, monkeypatch):
    fill(tmp_path, 6)
    monkeypatch.setattr(FileImages, "head", lambda *_: pytest.fail("opened"))
    monkeypatch.setattr(FileImages, "contents", lambda *_: pytest.fail("opened"))
    source = Folder(str(tmp_path), channels=1, depth="uint16", range=(0.0, 4095.0))
    assert source.split("train", 8).form == DEEP


@pytest.mark.parametrize("first", ["train", "test"])
def test_both_splits_have_the_form_of_the_train_images(tmp_path, first):
    fill(tmp_path / "train", 6)
    fill(tmp_path / "test", 6, np.uint8, 256)
    source = Folder(str(tmp_path), channels=1)
    assert source.split(first, 8).form == PixelFormat(1, "uint16")
    assert {source.split(name, 8).form for name in ("train", "test")} == {PixelFormat(1, "uint16")}


def test_percentiles_are_those_of_all_values_where_they_are_few(tmp_path):
    values = fill(tmp_path, 7)
    source = Folder(
        str(tmp_path), channels=1, test_fraction=0.0, range={"percentiles": (2.0, 97.0)}
    )
    images = source.split("train", 8)
    wanted = np.percentile(values.astype(np.float64), (2.0, 97.0))
    assert images.form.range == pytest.approx(tuple(wanted), abs=1e-3)
    assert source.measured == images.form.range


def test_percentiles_of_a_sample_are_the_same_wherever_they_are_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(glimpse, "PIXELS", 64)
    monkeypatch.setattr("lookalike.data.images.encoded.LOOKS", 3)
    values = fill(tmp_path, 40)
    names = [f"c{i % 2}/{i:04d}.png" for i in range(40)]
    found = {
        glimpse.measured(FileImages(tmp_path, names, Reading(side, DEEP)), (5.0, 95.0))
        for side in (4, 8)
    }
    assert len(found) == 1
    low, high = found.pop()
    assert low == pytest.approx(np.percentile(values, 5), abs=200)
    assert high == pytest.approx(np.percentile(values, 95), abs=200)


def test_what_has_been_measured_is_not_measured_again(tmp_path, monkeypatch):
    fill(tmp_path, 4)
    monkeypatch.setattr(glimpse, "measured", lambda *_: pytest.fail("measured again"))
    keys = {"range": {"percentiles": (1.0, 99.0)}, "measured": (3.0, 4000.0)}
    source = Folder(str(tmp_path), channels=1, **keys)
    assert source.split("train", 8).form.range == (3.0, 4000.0)


def test_percentiles_of_one_value_are_refused(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(grey(np.full((6, 6), 9, np.uint16)))
    source = Folder(str(tmp_path), channels=1, range={"percentiles": (1.0, 99.0)})
    with pytest.raises(DataError, match=r"data\.range: both percentiles of . images are 9"):
        source.split("train", 8)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ("range: [5, 1]", "the smaller value comes first"),
        ("range: [5, 5]", "the smaller value comes first"),
        ("range: {percentiles: [5, 101]}", "data.range"),
        ("range: {percentile: [5, 10]}", "data.range"),
        ("range: 7", "data.range"),
        ("depth: uint32", "data.depth"),
        ("channels: 513", "data.channels"),
    ],
)
def test_a_range_that_is_none_is_refused_by_its_place(tmp_path, keys, said):
    path = tmp_path / "r.yaml"
    path.write_text(f"data: {{name: folder, path: x, {keys}}}\nbackbone: {{name: resnet18}}\n")
    with pytest.raises(Exception, match=said) as caught:
        load_recipe(path)
    assert f"{path}:1:" in str(caught.value)


def test_floats_that_only_a_range_explains_are_refused_before_anything_is_read(tmp_path):
    for i, top in enumerate((0.5, 900.0)):
        Image.fromarray(np.full((6, 6), top, np.float32)).save(tmp_path / f"{i}.tif")
    source = Folder(str(tmp_path), channels=1, test_fraction=0.0)
    with pytest.raises(DataError, match=r"1\.tif: .*data\.range"):
        source.split("train", 8)
    ranged = Folder(str(tmp_path), channels=1, test_fraction=0.0, range=(0.0, 1000.0))
    assert ranged.split("train", 8).form == PixelFormat(1, "float32", (0.0, 1000.0))


def test_a_model_says_what_the_recipe_leaves_open_and_no_more(tmp_path):
    fill(tmp_path, 6)
    source = Folder(str(tmp_path), channels=1)
    fit_to(source, DEEP)
    assert source.split("train", 8).form == DEEP
    fit_to(source, PixelFormat(3, "uint8"))
    assert source.split("train", 8).form == PixelFormat(1, "uint8")
    for keys in ({"depth": "uint8"}, {"range": (0.0, 255.0)}, {"alpha": "black"}):
        with pytest.raises(DataError, match=f"data.{next(iter(keys))}: .* but the model takes"):
            fit_to(FileSource(**keys), DEEP)
    fit_to(FileSource(range={"percentiles": (1.0, 99.0)}), DEEP)
    fit_to(FileSource(depth="uint16", range=(0.0, 4095.0)), DEEP)
    with pytest.raises(DataError, match="8-bit values 0 … 255 become 0 … 1, but for the model 16"):
        refuse_other(PixelFormat(1), DEEP)


def test_shards_keep_16_bits_or_are_refused(tmp_path):
    fill(tmp_path / "set", 12)
    source = Folder(str(tmp_path / "set"), channels=1, test_fraction=0.4)
    for how in (Packing(form="jpeg"), Packing(resize=8), Packing(form="webp")):
        with pytest.raises(DataError, match="1 channels of uint16, and a packed image has 8 bits"):
            pack(source, tmp_path / "out", how, 0)
    assert not (tmp_path / "out").exists()
    pack(source, tmp_path / "out", Packing(), 0)
    shard = b"".join(path.read_bytes() for path in (tmp_path / "out").glob("*.tar"))
    files = [path.read_bytes() for path in (tmp_path / "set").rglob("*.png")]
    assert all(file in shard for file in files)


def test_a_head_of_a_link_out_of_the_folder_is_not_read(tmp_path):
    inner = tmp_path / "in"
    inner.mkdir()
    (tmp_path / "secret.png").write_bytes(grey(np.zeros((4, 4), np.uint8)))
    (inner / "a.png").symlink_to(tmp_path / "secret.png")
    images = FileImages(inner, ["a.png"], Reading(4, PixelFormat(1)), within=inner)
    with pytest.raises(BadImage, match="a link out of"):
        images.head(0, 9)
