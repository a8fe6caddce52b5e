"""Images with masks: numbers are kept, masks lie as canvases do, and nothing disappears."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.data.decode import BadImage, numbers
from lookalike.data.images import LayeredImages, subset
from lookalike.data.images.masked import nearest, unlayered
from lookalike.data.loader import in_order
from lookalike.data.masks import Masks, classes_in
from lookalike.errors import DataError
from squares import drawn, squares, write_image, write_mask


def encoded(image, tmp_path):
    image.save(tmp_path / "x.png")
    return numbers((tmp_path / "x.png").read_bytes(), "x.png")


def grey_png(values_HW: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits, written by hand."""
    height, width = values_HW.shape
    flat = np.unpackbits(values_HW.astype(np.uint8)[..., None], axis=2)[:, :, 8 - bits :]
    rows = np.packbits(flat.reshape(height, -1), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def test_the_numbers_of_a_mask_are_kept_not_its_colours(tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (9, 13), dtype=np.uint8)
    palette = Image.fromarray(values)
    palette.putpalette(np.random.default_rng(1).integers(0, 255, 768, dtype=np.uint8).tobytes())
    assert (encoded(palette, tmp_path).numpy() == values).all()
    assert (encoded(Image.fromarray(values), tmp_path).numpy() == values).all()
    deep = values.astype(np.uint16) * 200
    found = encoded(Image.fromarray(deep), tmp_path)
    assert (found.numpy() == deep).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_numbers_of_few_bits_are_not_spread(bits):
    values = np.random.default_rng(bits).integers(0, 2**bits, (7, 11))
    assert (numbers(grey_png(values, bits), "x").numpy() == values).all()


def test_hostile_masks_are_bad_images(tmp_path):
    data = grey_png(np.ones((8, 8), int), 4)
    wide = data[:16] + struct.pack(">II", 60_000, 60_000) + data[24:29]
    bomb = wide + struct.pack(">I", zlib.crc32(wide[12:29])) + data[33:]
    Image.new("RGB", (8, 8)).save(tmp_path / "rgb.png")
    Image.new("L", (8, 8)).save(tmp_path / "grey.jpg")
    cases = {
        "pixels": bomb,
        "damaged": data[:40] + b"\xff" + data[41:],
        "colours": (tmp_path / "rgb.png").read_bytes(),
        "save it as PNG": (tmp_path / "grey.jpg").read_bytes(),
    }
    for words, content in cases.items():
        with pytest.raises(BadImage, match=words):
            numbers(content, "x.png")


@pytest.mark.parametrize("fit", ["crop", "squash"])
@pytest.mark.parametrize("sides", [(120, 90), (40, 160), (23, 31), (64, 64)])
@pytest.mark.parametrize("form", ["png", "jpg"])
def test_a_mask_made_of_its_image_stays_aligned(tmp_path, fit, sides, form):
    """A ramp along rows and one along columns: what the canvas shows, the mask says there."""
    height, width = sides
    for axis, along in ((0, height), (1, width)):
        ramp = np.broadcast_to(np.arange(along).reshape((-1, 1) if axis == 0 else (1, -1)), sides)
        write_mask(tmp_path / str(axis) / "masks" / "a.png", ramp)
        grey = (ramp * (250 / along))[..., None].repeat(3, 2)
        (tmp_path / str(axis) / "images").mkdir()
        Image.fromarray(grey.astype(np.uint8)).save(
            tmp_path / str(axis) / "images" / f"a.{form}", quality=100, subsampling=0
        )
        source = Masks(str(tmp_path / str(axis)), test_fraction=0, canvas=(24, 32), fit=fit)
        images = source.split("train")
        shown = images.read(0)[0].float() * (along / 250)
        told = images.mask(0).float()
        inner = (slice(2, -2), slice(2, -2))
        step = max(1.0, along / (24 if axis == 0 else 32))
        assert (shown - told)[inner].abs().max() <= 0.6 * step + 1.5
        assert abs(float((shown - told)[inner].mean())) <= 0.75  # pixels of the file


def test_nearest_is_the_pixel_below_each_centre():
    x_HW = torch.arange(30).view(5, 6)
    assert torch.equal(nearest(x_HW, (0, 0, 5, 6), (5, 6)), x_HW)
    assert nearest(x_HW, (1, 0, 3, 6), (1, 2)).tolist() == [[13, 16]]
    assert nearest(x_HW, (0, 0, 1, 2), (2, 4)).tolist() == [[0, 0, 1, 1]] * 2


def test_ade_ignores_zero_and_counts_from_one(tmp_path):
    for split in ("training", "validation"):
        write_image(tmp_path / "images" / split / "a.jpg", np.zeros((8, 8, 3)))
        mask = np.array([[0, 1], [150, 255]]).repeat(4, 0).repeat(4, 1)
        write_mask(tmp_path / "annotations" / split / "a.png", mask)
    source = Masks(str(tmp_path), reduce_zero=True, classes=150, canvas=8)
    mask_HW = source.split("test").mask(0)
    assert mask_HW[::4, ::4].tolist() == [[-1, 0], [149, -1]]
    assert source.split("train").names[:2] == ("1", "2")


def test_voc_sets_are_its_lists_and_boxes_are_no_masks(tmp_path):
    for name in "abcd":
        write_image(tmp_path / "JPEGImages" / f"{name}.jpg", drawn(1)[0])
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{name}.xml").write_text("<box/>")
    for name in "abc":
        write_mask(tmp_path / "SegmentationClass" / f"{name}.png", drawn(1)[1])
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nz\n")
    (lists / "val.txt").write_text("c\n")
    source = Masks(str(tmp_path), classes=21)
    train, test = source.split("train"), source.split("test")
    assert [train.name(i)[-5:] for i in range(len(train))] == ["a.jpg", "b.jpg"]
    assert test.mask_name(0).endswith("SegmentationClass/c.png")
    assert source.inventory.names()["listed in train.txt"] == ["z"]
    assert "Annotations" in source.inventory.names()["beside the sets"]


def test_sets_may_lie_above_the_folders_and_endings_may_differ(tmp_path):
    for split in ("train", "val"):
        write_image(tmp_path / split / "leftImg8bit" / "city" / "a_left.png", drawn(1)[0])
        write_mask(tmp_path / split / "gtFine" / "city" / "a_ids.png", drawn(1)[1])
        write_mask(tmp_path / split / "gtFine" / "city" / "a_color.png", drawn(1)[1])
    source = Masks(str(tmp_path), image_ending="_left", mask_ending="_ids")
    assert source.split("test").mask_name(0).endswith("val/gtFine/city/a_ids.png")
    assert list(source.inventory.names()) == ["not _ids"]


def test_one_set_is_divided_by_a_hash_and_all_of_it_is_there(tmp_path):
    for n in range(40):
        write_image(tmp_path / "imgs" / f"{n}.png", drawn(n)[0])
        write_mask(tmp_path / "labels" / f"{n}.png", drawn(n)[1])
    source = Masks(str(tmp_path))
    parts = [source.split(name) for name in ("train", "test")]
    names = [images.name(i) for images in parts for i in range(len(images))]
    assert len(set(names)) == 40
    assert 2 <= len(parts[1]) <= 16
    assert len(source.split("all")) == 40


def test_what_has_no_partner_is_accounted(tmp_path):
    root = squares(tmp_path, train=3, test=2)
    (root / "masks" / "train" / "0.png").unlink()
    (root / "images" / "val" / "1000.png").unlink()
    (root / "README.md").write_text("squares")
    source = Masks(str(root))
    assert [len(source.split(name)) for name in ("train", "test")] == [2, 1]
    assert source.inventory.names() == {
        "no mask": ["images/train/0.png"],
        "no image of the mask": ["masks/val/1000.png"],
        "beside the sets": ["README.md"],
    }


def test_a_mask_of_other_sides_is_a_bad_image(tmp_path):
    root = squares(tmp_path, train=2, test=1)
    write_mask(root / "masks" / "train" / "0.png", np.zeros((20, 32)))
    images = Masks(str(root), classes=4).split("train")
    with pytest.raises(BadImage, match="32 x 20 pixels for an image of 32 x 32"):
        images.mask(0)
    assert [ids for ids, _ in in_order(LayeredImages(images), 2)] == [[1]]


def test_classes_are_named_counted_or_looked_for(tmp_path):
    root = squares(tmp_path, train=6, test=1)
    assert Masks(str(root)).split("train").names == ("0", "1", "2", "3")
    (root / "names.txt").write_text("ground\nred\n\ngreen\nblue\n")
    named = Masks(str(root), classes="names.txt").split("test")
    assert named.names == ("ground", "red", "green", "blue")
    few = Masks(str(root), classes=2).split("train")
    with pytest.raises(DataError, match=r"the number \d in a mask, but there are 2 classes"):
        classes_in(few, most=9)
    with pytest.raises(DataError, match="two classes are called a"):
        Masks(str(root), classes=("a", "b", "a")).split("train")
    with pytest.raises(DataError, match="no such file"):
        Masks(str(root), classes="nowhere.txt").split("train")


def test_without_masks_there_is_one_line(tmp_path):
    write_image(tmp_path / "a.png", drawn(0)[0])
    with pytest.raises(DataError, match="no folders of images and masks"):
        Masks(str(tmp_path)).split("train")


@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
def test_canvas_and_mask_travel_as_one(tmp_path, depth):
    write_image(tmp_path / "images" / "a.png", drawn(3)[0])
    (tmp_path / "masks").mkdir()
    many = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) + 300
    Image.fromarray(many).save(tmp_path / "masks" / "a.png")
    how = {"depth": depth} | ({"range": (0.0, 255.0)} if depth == "float32" else {})
    source = Masks(str(tmp_path), test_fraction=0, canvas=32, classes=2000, ignore=305, **how)
    images = source.split("train")
    canvas_BCHW, mask_BHW = unlayered(LayeredImages(images).read(0)[None])
    assert torch.equal(canvas_BCHW[0], images.read(0))
    assert torch.equal(mask_BHW[0], images.mask(0).long())
    assert mask_BHW[0, 0, 4:7].tolist() == [304, -1, 306]


def test_workers_and_rows_give_the_same_masks(tmp_path):
    images = LayeredImages(Masks(str(squares(tmp_path, train=5, test=1))).split("train"))
    alone = torch.cat([x.clone() for _, x in in_order(images, 2)])
    helped = torch.cat([x.clone() for _, x in in_order(images, 2, workers=1)])
    assert torch.equal(alone, helped)
    some = subset(images, [3, 1])
    assert torch.equal(torch.stack([some.read(0), some.read(1)]), alone[[3, 1]])


def test_another_mask_is_another_set(tmp_path):
    root = squares(tmp_path, train=3, test=1)
    before = Masks(str(root)).split("train")
    marks = before.fingerprint, before.content
    write_mask(root / "masks" / "train" / "1.png", drawn(77)[1])
    after = Masks(str(root)).split("train")
    assert after.content != marks[1]
