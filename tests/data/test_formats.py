"""Formats by content, with all their bits and channels: what was written comes back."""

import io
import struct
import sys

import imagecodecs
import numpy as np
import pydicom
import pytest
import torch
from PIL import Image, ImageOps

import deep
import heics
import mutants
from lookalike.data.decode import BadImage, Look, Opened, decode, is_image, look
from lookalike.data.headers import jxl
from lookalike.geometry import PixelFormat

RAW = (0.0, 9.0)  # any range: values stay as they stand


def read(data: bytes, channels: int, depth: str = "uint16", **how) -> np.ndarray:
    """(H, W, C)."""
    form = PixelFormat(channels, depth, how.pop("range", None), how.pop("alpha", "white"))
    found = decode(data, "a", size=None, form=form, **how)
    assert found.dtype == form.dtype
    assert found.is_contiguous()
    return found.permute(1, 2, 0).numpy()


def refusal(data: bytes, channels: int, depth: str = "uint16", **how) -> str:
    with pytest.raises(BadImage) as caught:
        read(data, channels, depth, **how)
    assert "\n" not in caught.value.reason
    return caught.value.reason


def hwc(values: np.ndarray) -> np.ndarray:
    return values[..., None] if values.ndim == 2 else values


def planar(values: np.ndarray) -> np.ndarray:
    return np.moveaxis(values, -1, 0).copy()


GREY, RGB, FIVE = deep.ramp(1, 16), deep.ramp(3, 16), deep.ramp(5, 16)
X_RAY = deep.ramp(1, 12)
SIGNED = (deep.ramp(1, 16).astype(np.int32) - 32768).astype(np.int16)
BANDS = {"photometric": "minisblack", "planarconfig": "contig"}
MSB = {"photometric": "minisblack"}

# name -> (file, values that were written, the one that is white)
EXACT = {
    "grey 16.png": (lambda: deep.png16(GREY), GREY, 65535),
    "grey alpha 16.png": (lambda: deep.png16(deep.ramp(2, 16)), deep.ramp(2, 16), 65535),
    "rgb 16.png": (lambda: deep.png16(RGB), RGB, 65535),
    "rgba 16.png": (lambda: deep.png16(deep.ramp(4, 16)), deep.ramp(4, 16), 65535),
    "p2.pgm": (lambda: deep.netpbm(2, X_RAY, 4095, "# words 9 9\n"), X_RAY, 4095),
    "p3.ppm": (lambda: deep.netpbm(3, RGB, 65535), RGB, 65535),
    "p5 15.pgm": (lambda: deep.netpbm(5, deep.ramp(1, 4), 15), deep.ramp(1, 4), 15),
    "p5 16.pgm": (lambda: deep.netpbm(5, GREY, 65535), GREY, 65535),
    "p6 16.ppm": (lambda: deep.netpbm(6, RGB, 65535), RGB, 65535),
    "five.pam": (lambda: deep.pam(FIVE, 65535), FIVE, 65535),
    "grey.jp2": (lambda: deep.jp2(GREY, 16), GREY, 65535),
    "x-ray.jp2": (lambda: deep.jp2(X_RAY, 12), X_RAY, 4095),
    "rgb.j2k": (lambda: deep.jp2(RGB, 16, "j2k"), RGB, 65535),
    "five.jp2": (lambda: deep.jp2(FIVE, 16), FIVE, 65535),
    "grey.jxl": (lambda: deep.jxl(GREY), GREY, 65535),
    "rgb.jxl": (lambda: deep.jxl(RGB), RGB, 65535),
    "12 bits.heic": (lambda: heics.heic(12), heics.ramp(12), 4095),
    "10 bits.heic": (lambda: heics.heic(10), heics.ramp(10), 1023),
    "u2.npy": (lambda: deep.npy(RGB), RGB, 65535),
    "big-endian.npy": (lambda: deep.npy(GREY.astype(">u2")), GREY, 65535),
    "fortran.npy": (lambda: deep.npy(np.asfortranarray(FIVE)), FIVE, 65535),
    "first.npy": (lambda: deep.npy(planar(FIVE)), FIVE, 65535),
    "bool.npy": (lambda: deep.npy(GREY > 9), (GREY > 9).astype(np.uint8), 1),
    "grey.tif": (lambda: deep.tiff(GREY), GREY, 65535),
    "big-endian.tif": (lambda: deep.tiff(GREY, byteorder=">"), GREY, 65535),
    "rgb.tif": (lambda: deep.tiff(RGB, photometric="rgb"), RGB, 65535),
    "five.tif": (lambda: deep.tiff(FIVE, **BANDS), FIVE, 65535),
    "five planar.tif": (
        lambda: deep.tiff(planar(FIVE), planarconfig="separate", **MSB),
        FIVE,
        65535,
    ),
    "five big tiled.tif": (
        lambda: deep.tiff(FIVE, bigtiff=True, tile=(16, 16), compression="zlib", **BANDS),
        FIVE,
        65535,
    ),
    "predicted.tif": (
        lambda: deep.tiff(RGB, photometric="rgb", compression="lzw", predictor=True),
        RGB,
        65535,
    ),
    "thirteen 8 bits.tif": (lambda: deep.tiff(deep.ramp(13, 8), **BANDS), deep.ramp(13, 8), 255),
    "white is zero.tif": (
        lambda: deep.tiff(65535 - GREY, photometric="miniswhite"),
        GREY,
        65535,
    ),
    "packed.tif": (lambda: packed(X_RAY), X_RAY, 4095),
    "rgb and two.tif": (
        lambda: deep.tiff(deep.ramp(5, 8), photometric="rgb", extrasamples=(0, 0)),
        deep.ramp(5, 8),
        255,
    ),
    "x-ray.dcm": (lambda: deep.dicom(X_RAY, 12), X_RAY, 4095),
    "rle.dcm": (lambda: deep.dicom(X_RAY, 12, "RLE"), X_RAY, 4095),
    "j2k.dcm": (lambda: deep.dicom(X_RAY, 12, "J2K"), X_RAY, 4095),
    "rgb.dcm": (lambda: deep.dicom(deep.ramp(3, 8), 8), deep.ramp(3, 8), 255),
    "black is most.dcm": (
        lambda: deep.dicom(4095 - X_RAY, 12, PhotometricInterpretation="MONOCHROME1"),
        X_RAY,
        4095,
    ),
}


def packed(values: np.ndarray) -> bytes:
    """A TIFF of 12 bits a value, two in three bytes."""
    pairs = values.reshape(-1, 2).astype(np.uint32)
    joined = pairs[:, 0] << 12 | pairs[:, 1]
    body = np.stack([joined >> 16, joined >> 8 & 255, joined & 255], 1).astype(np.uint8).tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: len(body)}
    return mutants.tiff({tag: mutants.longs(value) for tag, value in tags.items()}, body)


@pytest.mark.parametrize("name", EXACT)
def test_what_was_written_comes_back_with_all_its_bits(name):
    make, written, white = EXACT[name]
    data, expected = make(), hwc(written)
    channels = expected.shape[2]
    assert is_image(data[:4096])
    found = read(data, channels, alpha="keep", range=RAW)
    assert np.array_equal(found, expected)
    as_floats = read(data, channels, "float32", alpha="keep", range=RAW)
    assert np.array_equal(as_floats, expected)
    deep_white = {255: 257, 65535: 1}.get(white)
    scaled = expected.astype(np.uint32) * deep_white if deep_white else expected * (65535 / white)
    assert np.array_equal(read(data, channels, alpha="keep"), np.rint(scaled))
    share = read(data, channels, "float32", alpha="keep")
    assert np.array_equal(share, (expected / white).astype(np.float32))
    bits = {15: 8, 255: 8, 1023: 10, 1: 8}.get(white, 12 if white == 4095 else 16)
    assert look(data[: 1 << 16]) == Look(channels, bits, False, False)


@pytest.mark.parametrize("name", EXACT)
def test_bytes_of_deep_values_are_the_high_ones_or_the_nearest(name):
    make, written, white = EXACT[name]
    expected, channels = hwc(written).astype(np.float64), hwc(written).shape[2]
    found = read(make(), channels, "uint8", alpha="keep")
    byte = np.floor(expected / 256) if white == 65535 else np.rint(expected * 255 / white)
    assert np.array_equal(found, byte)


def test_16_bit_colour_becomes_bytes_as_ever():
    """By Pillow, for which nothing but the high byte exists."""
    for data in (deep.png16(RGB), deep.tiff(RGB, photometric="rgb")):
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        assert np.array_equal(read(data, 3, "uint8"), expected)


EIGHT = {
    "jp2": lambda a: deep.jp2(a, 8),
    "j2k": lambda a: deep.jp2(a, 8, "j2k"),
    "jxl": deep.jxl,
    "npy": deep.npy,
    "ppm": lambda a: deep.netpbm(6 if a.ndim == 3 else 5, a, 255),
    "text": lambda a: deep.netpbm(3 if a.ndim == 3 else 2, a, 255),
    "png.ico": lambda a: deep.icon(Image.fromarray(a), "png", sizes=[(32, 32), (16, 16)]),
    "bmp.ico": lambda a: deep.icon(Image.fromarray(a), "bmp", sizes=[(32, 32)]),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", EIGHT)
def test_eight_bits_of_the_further_formats(kind, channels):
    image = deep.ramp(channels, 8, 32, 32)
    data = EIGHT[kind](image)
    assert is_image(data[:4096])
    assert np.array_equal(read(data, channels, "uint8"), hwc(image))
    assert np.array_equal(read(data, channels, "uint16"), hwc(image).astype(int) * 257)
    luma = np.rint(image @ np.array([0.299, 0.587, 0.114])) if channels == 3 else image
    assert np.abs(read(data, 1, "uint8")[..., 0] - luma).max() <= 1
    if channels == 1:
        assert np.array_equal(read(data, 3, "uint8"), np.repeat(hwc(image), 3, -1))


def test_a_bitmap_of_one_bit_has_black_and_white():
    bits = deep.ramp(1, 8) > 90
    for form in (1, 4):
        data = deep.netpbm(form, ~bits, 1)
        expected = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
        assert np.array_equal(read(data, 1, "uint8")[..., 0], expected)
        assert np.array_equal(expected, bits * 255)
    tight = b"P1 3 2 010\n1 0 1 trailing"
    assert read(tight, 1, "uint8")[..., 0].tolist() == [[255, 0, 255], [0, 255, 0]]


def test_avif_is_what_its_decoder_makes_of_it():
    """The codec loses; both decoders are given the same file."""
    for bits, channels in ((8, 1), (8, 3), (8, 4), (10, 3), (12, 1), (12, 3), (12, 4)):
        data = deep.avif(deep.ramp(channels, bits, 40, 40), bits)
        theirs = hwc(imagecodecs.avif_decode(data))
        found = read(data, channels, alpha="keep", range=RAW)
        assert np.abs(found.astype(int) - theirs).max() <= (1 if bits == 8 else 0)
        pillows = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        if channels < 4:
            assert np.array_equal(read(data, 3, "uint8"), pillows)


@pytest.mark.parametrize("turn", range(1, 9))
def test_every_kind_is_turned_as_it_says(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    upright = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1]}
    upright |= {5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 8: np.rot90}
    upright |= {1: lambda a: a, 7: lambda a: np.rot90(a, 2).swapaxes(0, 1)}
    expected = upright[turn](RGB)
    chunk = mutants.chunk(b"eXIf", exif.tobytes()[6:])
    png = deep.png16(RGB)
    tags = [(274, 3, 1, turn, True)]
    for data in (
        png[:33] + chunk + png[33:],
        deep.tiff(RGB, photometric="rgb", extratags=tags),
    ):
        assert np.array_equal(read(data, 3), expected)
        opened = Opened(data, "a", PixelFormat(3, "uint16"))
        assert (opened.height, opened.width) == expected.shape[:2]
    grey = deep.tiff(GREY, extratags=tags)
    assert np.array_equal(read(grey, 1)[..., 0], upright[turn](GREY))


@pytest.mark.parametrize("turn", range(1, 9))
def test_an_avif_is_turned_by_its_boxes(turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    image, file = Image.fromarray(mutants.colours()), io.BytesIO()
    image.save(file, "AVIF", quality=100, subsampling="4:4:4", exif=exif)
    found = read(file.getvalue(), 3, "uint8").astype(int)
    plain = io.BytesIO()
    image.save(plain, "AVIF", quality=100, subsampling="4:4:4")
    flipped = Image.open(plain).convert("RGB").transpose
    moves = Image.Transpose
    expected = {
        1: lambda: Image.open(plain),
        2: lambda: flipped(moves.FLIP_LEFT_RIGHT),
        3: lambda: flipped(moves.ROTATE_180),
        4: lambda: flipped(moves.FLIP_TOP_BOTTOM),
        5: lambda: flipped(moves.TRANSPOSE),
        6: lambda: flipped(moves.ROTATE_270),
        7: lambda: flipped(moves.TRANSVERSE),
        8: lambda: flipped(moves.ROTATE_90),
    }[turn]()
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("bits", [8, 10, 12])
@pytest.mark.parametrize("turned", [None, 1, 2, 3])
@pytest.mark.parametrize("mirrored", [None, 0, 1])
def test_a_heic_is_turned_and_mirrored_by_its_boxes(bits, turned, mirrored):
    data = heics.heic(bits, turned, mirrored)
    expected = np.rot90(heics.ramp(bits), turned or 0)
    expected = expected if mirrored is None else np.flip(expected, mirrored)
    opened = Opened(data, "a", PixelFormat(expected.shape[2], "uint16", RAW))
    assert (opened.height, opened.width) == expected.shape[:2]
    assert np.array_equal(opened.pixels().permute(1, 2, 0).numpy(), expected)


def turned_jxl(data: bytes, turn: int) -> bytes:
    """The code of a sRGB image without further fields in its metadata, with these put in."""
    bits = jxl._Bits(data[2:])
    jxl._sides(bits)
    begin = 8 * len(data[2:]) - bits._left
    bits.take(2)
    jxl._depth(bits)
    bits.take(1)
    assert bits.choice((0, 0), (1, 0), (2, 4), (1, 12)) == 0
    bits.take(1)
    end = 8 * len(data[2:]) - bits._left
    text = "".join(f"{byte:08b}"[::-1] for byte in data[2:])
    assert (text[begin : begin + 2], text[end : end + 4]) == ("00", "1001")
    further = "1" + f"{turn - 1:03b}"[::-1] + "000"
    head = text[: begin + 1] + further + text[begin + 2 : end + 1] + "1" + text[end + 1 : end + 4]
    head += "0" * (-len(head) % 8)
    made = bytes(int(head[i : i + 8][::-1], 2) for i in range(0, len(head), 8))
    return data[:2] + made + data[2 + -(-(end + 4) // 8) :]


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_jpeg_xl_is_turned_by_its_metadata(turn):
    rgb = deep.ramp(3, 8)
    data = turned_jxl(deep.jxl(rgb, usecontainer=False), turn)
    opened = Opened(data, "a", PixelFormat(3))
    exif = Image.Exif()
    exif[0x0112] = turn
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG", exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    assert (opened.height, opened.width) == expected.shape[:2]
    assert np.array_equal(opened.pixels().permute(1, 2, 0).numpy(), expected)


# Channels and transparency


def test_other_numbers_of_channels_are_refused_with_the_key():
    five = deep.tiff(FIVE, **BANDS)
    for channels in (1, 2, 3, 4, 6):
        said = f"5 channels, data.channels says {channels}: set it, or leave this file out"
        assert refusal(five, channels) == said
        assert refusal(five, channels, "uint8") == said
    assert "1 channel, data.channels says 5" in refusal(deep.png16(GREY), 5)
    dropped = deep.tiff(deep.ramp(5, 8), photometric="rgb", extrasamples=(0, 0))
    assert np.asarray(Image.open(io.BytesIO(dropped))).shape[2] == 3  # by Pillow, without a word
    assert "5 channels" in refusal(dropped, 3, "uint8")
    unknown = deep.tiff(deep.ramp(4, 8), photometric="rgb", extrasamples=(0,))
    assert "4 channels" in refusal(unknown, 3, "uint8")
    assert np.array_equal(read(unknown, 4, "uint8"), deep.ramp(4, 8))


def blended(colour: np.ndarray, alpha: np.ndarray, white: float, paper: float) -> np.ndarray:
    share = alpha[..., None] / white
    return colour * share + paper * (1 - share)


@pytest.mark.parametrize("paper", ["white", "black"])
def test_transparency_lies_on_paper_in_every_depth(paper):
    for channels in (2, 4):
        image = deep.ramp(channels, 16)
        on = blended(image[..., :-1], image[..., -1], 65535, 65535 * (paper == "white"))
        for data in (deep.png16(image), deep.jxl(image)):
            found = read(data, channels - 1, alpha=paper)
            assert np.abs(found - on).max() <= 0.5
            share = read(data, channels - 1, "float32", alpha=paper)
            assert np.abs(share - on / 65535).max() < 1e-6


def test_8_bit_transparency_on_black_and_kept():
    image = deep.ramp(4, 8)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    on = blended(image[..., :3], image[..., 3], 255, 0)
    assert np.abs(read(file.getvalue(), 3, "uint8", alpha="black") - on).max() <= 0.5
    assert np.array_equal(read(file.getvalue(), 4, "uint8", alpha="keep"), image)
    assert "4 channels, transparency among them" in refusal(
        file.getvalue(), 3, "uint8", alpha="keep"
    )


def test_what_has_no_transparency_is_opaque_where_it_is_kept():
    assert np.array_equal(
        read(deep.png16(RGB), 4, alpha="keep"), np.dstack([RGB, np.full(RGB.shape[:2], 65535)])
    )
    grey = read(deep.netpbm(5, deep.ramp(1, 8), 255), 2, "uint8", alpha="keep")
    assert (grey[..., 1] == 255).all()
    assert np.array_equal(grey[..., 0], deep.ramp(1, 8))


def test_a_colour_that_is_transparent():
    key = tuple(RGB[3, 4].tolist())
    found = read(deep.png16(RGB, key), 4, alpha="keep")
    assert np.array_equal(found[..., :3], RGB)
    assert np.array_equal(found[..., 3] == 0, (key == RGB).all(-1))
    grey = read(deep.png16(GREY, (int(GREY[2, 2]),)), 2, alpha="keep")
    assert np.array_equal(grey[..., 1] == 0, GREY[2, 2] == GREY)


def test_deep_luma_is_rounded_601():
    luma = RGB @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read(deep.png16(RGB), 1)[..., 0] - luma).max() <= 0.5
    assert np.abs(read(deep.png16(RGB), 1, "float32")[..., 0] - luma / 65535).max() < 1e-6


# Floats, signs and ranges

SHARE = (GREY / 65535).astype(np.float32)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_come_as_they_are(dtype):
    values = SHARE.astype(dtype)
    files = [deep.npy(values), deep.tiff(values), deep.tiff(values, compression="zlib")]
    files += [deep.jxl(values)] if dtype != np.float64 else []
    for data in files:
        assert np.array_equal(read(data, 1, "float32")[..., 0], values.astype(np.float32))
        assert look(data)[2:] == (True, False)
        for depth in ("uint8", "uint16"):
            for range in (None, RAW):
                assert refusal(data, 1, depth, range=range) == (
                    f"floats, which data.depth: {depth} cannot hold: set data.depth: float32"
                )


def test_floats_outside_0_to_1_need_a_range():
    for values in (SHARE * 300, SHARE - 1):
        for data in (deep.npy(values), deep.tiff(values)):
            assert "data.range says what becomes" in refusal(data, 1, "float32")
            assert np.array_equal(read(data, 1, "float32", range=RAW)[..., 0], values)
    for bad in (np.nan, np.inf, -np.inf):
        values = SHARE.copy()
        values[3, 3] = bad
        for range in (None, RAW):
            assert "NaN or infinite" in refusal(deep.npy(values), 1, "float32", range=range)
    huge = np.full((5, 6), 1e300)
    assert "too large for float32" in refusal(deep.npy(huge), 1, "float32", range=RAW)


def test_values_that_the_type_cannot_hold_name_it():
    assert "set data.depth: uint16" in refusal(deep.npy(X_RAY), 1, "uint8", range=(0, 4095))
    assert "set data.depth: float32" in refusal(deep.npy(SIGNED), 1, "uint16", range=(-9, 9))
    assert np.array_equal(read(deep.npy(SIGNED), 1, "float32", range=RAW)[..., 0], SIGNED)
    assert np.array_equal(read(deep.npy(X_RAY // 16), 1, "uint8", range=RAW)[..., 0], X_RAY // 16)


def test_signed_and_32_bit_integers_count_as_16_bits_or_need_a_range():
    for dtype in (np.int32, np.uint32, np.int64):
        wide = GREY.astype(dtype)
        for data in (deep.npy(wide), *([deep.tiff(wide)] if dtype != np.int64 else [])):
            assert np.array_equal(read(data, 1)[..., 0], GREY)
            assert np.array_equal(read(data, 1, "uint8")[..., 0], GREY >> 8)
    for data in (deep.npy(SIGNED), deep.tiff(SIGNED)):
        assert "outside 0 to 65535: data.range says" in refusal(data, 1)
        assert np.array_equal(read(data, 1, "float32", range=RAW)[..., 0], SIGNED)
        assert look(data) == Look(1, 16, False, True)
    assert "data.range" in refusal(deep.npy(np.zeros((4, 5), np.int8)), 1, "uint8")


# Of single formats


def test_of_several_pages_the_first():
    pages = np.stack([GREY, GREY[::-1], GREY // 2])
    data = deep.tiff(pages, **MSB)
    assert np.array_equal(read(data, 1)[..., 0], GREY)


def test_the_preview_of_camera_raw_is_no_image():
    data = deep.tiff(deep.ramp(3, 8), photometric="rgb", subfiletype=1)
    assert "its first image is a preview" in refusal(data, 3, "uint8")


def test_objects_in_numpy_files_are_not_read():
    file = io.BytesIO()
    np.save(file, np.array([[{}, []]], dtype=object), allow_pickle=True)
    assert "not of numbers" in refusal(file.getvalue(), 1)
    structured = np.zeros((4, 5), [("a", "u1"), ("b", "u1")])
    assert "not read" in refusal(deep.npy(structured), 1)
    for shape in ((5,), (2, 3, 4, 5)):
        assert f"an array of shape {shape}" in refusal(deep.npy(np.zeros(shape, np.uint8)), 1)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((3, 9, 8), 3), ((9, 8, 3), 3), ((5, 5, 5), 5), ((3, 9, 3), 3), ((1, 6, 7), 1)],
)
def test_where_the_channels_lie_in_an_array(shape, channels):
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    first = shape[0] < min(shape[1:]) and not shape[2] < min(shape[:2])
    expected = np.moveaxis(values, 0, -1) if first else values
    assert np.array_equal(read(deep.npy(values), channels, "uint8"), expected)


def test_dicom_is_rescaled():
    whole = deep.dicom(X_RAY, 12, RescaleSlope="1", RescaleIntercept="-1024")
    assert np.array_equal(
        read(whole, 1, "float32", range=RAW)[..., 0], X_RAY.astype(np.int32) - 1024
    )
    assert look(whole) == Look(1, 32, False, True)
    assert "data.range says" in refusal(whole, 1)
    half = deep.dicom(X_RAY, 12, RescaleSlope="0.5", RescaleIntercept="3")
    assert np.array_equal(read(half, 1, "float32", range=RAW)[..., 0], X_RAY * 0.5 + 3)
    assert look(half).floating
    assert "data.depth: float32" in refusal(half, 1, range=RAW)
    signed = deep.dicom((X_RAY.astype(np.int32) - 2048).astype(np.int16), 12)
    assert np.array_equal(read(signed, 1, "float32", range=RAW)[..., 0], X_RAY.astype(int) - 2048)
    black = (2047 - X_RAY.astype(np.int32)).astype(np.int16)
    inverted = deep.dicom(black, 12, PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(inverted, 1, "float32", range=RAW)[..., 0], X_RAY.astype(int) - 2048)


def test_dicom_in_every_transfer_syntax_is_what_pydicom_reads():
    whole = pydicom.dcmread(io.BytesIO(deep.dicom(X_RAY, 12)))
    for syntax in (pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRBigEndian):
        whole.file_meta.TransferSyntaxUID = syntax
        file = io.BytesIO()
        big = syntax == pydicom.uid.ExplicitVRBigEndian
        whole.PixelData = X_RAY.astype(">u2" if big else "<u2").tobytes()
        block = whole.private_block(0x0029, "words", create=True)
        block.add_new(1, "SQ", [pydicom.Dataset()])
        pydicom.dcmwrite(
            file,
            whole,
            implicit_vr=syntax == pydicom.uid.ImplicitVRLittleEndian,
            little_endian=not big,
            enforce_file_format=True,
        )
        assert np.array_equal(read(file.getvalue(), 1, range=RAW)[..., 0], X_RAY)
        theirs = pydicom.dcmread(io.BytesIO(file.getvalue())).pixel_array
        assert np.array_equal(theirs, X_RAY)


def test_dicom_colours_are_rgb():
    rgb = deep.ramp(3, 8)
    ycbcr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    data = deep.dicom(ycbcr.copy(), 8, PhotometricInterpretation="YBR_FULL")
    assert np.abs(read(data, 3, "uint8").astype(int) - rgb).max() <= 3
    index = (GREY % 7).astype(np.uint8)
    table = np.arange(8 * 3, dtype=np.uint16).reshape(3, 8) * 2000
    names = ("Red", "Green", "Blue")
    tags = {f"{n}PaletteColorLookupTableDescriptor": [8, 0, 16] for n in names}
    tags |= {f"{n}PaletteColorLookupTableData": table[i].tobytes() for i, n in enumerate(names)}
    data = deep.dicom(index, 8, PhotometricInterpretation="PALETTE COLOR", **tags)
    assert np.array_equal(read(data, 3), table.T[index])


def test_of_several_frames_one_must_be_asked_for():
    frames = np.stack([X_RAY, X_RAY // 2, X_RAY // 3])
    for code in ("", "RLE"):
        data = deep.dicom(frames, 12, code)
        assert "3 frames in one file: save each as a file of its own" in refusal(data, 1)
        for i, frame in enumerate(frames):
            opened = Opened(data, "a", PixelFormat(1, "uint16", RAW), frame=i)
            assert np.array_equal(opened.pixels()[0].numpy(), frame)


@pytest.mark.parametrize("code", ["RLE", "J2K", "LS", "lossless"])
@pytest.mark.parametrize("signed", [False, True])
def test_code_without_loss_in_dicom(code, signed):
    """Whether the code knows of the sign or, as here, not."""
    data = deep.dicom(X_RAY, 12, code, PixelRepresentation=int(signed))
    expected = X_RAY.astype(np.int32)
    expected = np.where(expected > 2047, expected - 4096, expected) if signed else expected
    assert np.array_equal(read(data, 1, "float32", range=RAW)[..., 0], expected)


def test_jpeg_in_dicom_is_what_pillow_makes_of_it():
    rgb = mutants.colours()
    data = deep.dicom(rgb, 8, "JPEG", PhotometricInterpretation="YBR_FULL")
    code = data[data.index(b"\xff\xd8") :]
    pillows = np.asarray(Image.open(io.BytesIO(code)).convert("RGB"))
    assert np.abs(read(data, 3, "uint8").astype(int) - pillows).max() <= 1
    grey = deep.dicom(rgb[..., 0].copy(), 8, "JPEG")
    assert np.abs(read(grey, 1, "uint8")[..., 0].astype(int) - rgb[..., 0]).max() <= 4


# What is asked for an image


OTHERS = {
    "text": b"BMW and other words of a text that is longer than the head of a bitmap",
    "note": b"P1 priority: none\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "pdf": b"%PDF-1.7 ...",
    "font": b"\0\1\0\0" + bytes(60),
    "empty": b"",
    "zip": b"PK\3\4" + bytes(60),
    "movie": struct.pack(">I", 24) + b"ftypisom" + bytes(4) + b"isommp42" + bytes(40),
    "utf-16": "words".encode("utf-16"),
    "icon of nothing": b"\0\0\1\0\0\0" + bytes(40),
    "wave": b"RIFF" + bytes(4) + b"WAVEfmt " + bytes(30),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_no_images(name):
    assert not is_image(OTHERS[name])
    with pytest.raises(BadImage):
        decode(OTHERS[name], "a", size=8, form=PixelFormat(3))


def test_a_format_is_known_by_its_first_bytes_alone():
    for name, data in (mutants.images() | deep.images()).items():
        assert is_image(data[:4096]), name
        found = look(data[: 1 << 16])
        assert found.bits in (8, 10, 12, 16, 32, 64), name


def test_heads_of_large_files_say_enough():
    """All but a TIFF whose tags lie at its end, which says so."""
    image = np.random.default_rng(0).integers(0, 65536, (300, 300, 3)).astype(np.uint16)
    bytes_ = (image >> 8).astype(np.uint8)
    files = {
        "png": (deep.png16(image), Look(3, 16, False, False)),
        "jpg": (mutants.encoded(bytes_, "JPEG", quality=100), Look(3, 8, False, False)),
        "jp2": (deep.jp2(image, 16), Look(3, 16, False, False)),
        "jxl": (deep.jxl(image), Look(3, 16, False, False)),
        "avif": (deep.avif(image >> 4, 12), Look(3, 12, False, False)),
        "npy": (deep.npy(image), Look(3, 16, False, False)),
        "ppm": (deep.netpbm(6, image, 65535), Look(3, 16, False, False)),
        "dcm": (deep.dicom(image[..., 0], 16), Look(1, 16, False, False)),
        "tif": (deep.tiff(image, photometric="rgb"), Look(3, 16, False, False)),
    }
    for name, (data, expected) in files.items():
        assert len(data) > 1 << 16, name
        assert look(data[: 1 << 16]) == expected, name
    last = mutants.tiff({k: mutants.longs(300) for k in (256, 257)}, bytes(90_000))
    with pytest.raises(BadImage, match="lies elsewhere"):
        look(last[: 1 << 16])


EXTRAS = {
    "imagecodecs": (lambda: deep.png16(RGB), "imagecodecs", "images"),
    "tifffile": (lambda: deep.tiff(FIVE, **BANDS), "tifffile", "images"),
    "pi_heif": (lambda: heics.heic(8), "pi-heif", "images"),
    "pydicom": (lambda: deep.dicom(X_RAY, 12), "pydicom", "dicom"),
    "imagecodecs.dicom": (lambda: deep.dicom(X_RAY, 12, "J2K"), "imagecodecs", "dicom"),
}


@pytest.mark.parametrize("module", EXTRAS)
def test_a_missing_library_is_one_line(module, monkeypatch):
    make, package, extra = EXTRAS[module]
    module = module.split(".")[0]
    data = make()
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    said = f"needs {package}: pip install 'lookalike[{extra}]'"
    assert refusal(data, look(data).channels, range=RAW) == said


def test_the_core_alone_reads_what_it_can(monkeypatch):
    """16-bit greys, floats, JPEG 2000 and AVIF of 8 bits, Netpbm's and NumPy's."""
    files = {
        "png": (deep.png16(GREY), GREY),
        "tif": (deep.tiff(GREY), GREY),
        "jp2": (deep.jp2(GREY, 16), GREY),
        "pgm": (deep.netpbm(5, GREY, 65535), GREY),
        "npy": (deep.npy(GREY), GREY),
        "float": (deep.tiff(SHARE), SHARE),
    }
    avif, rgb = deep.avif(deep.ramp(3, 8), 8), deep.png16(RGB)
    for module in EXTRAS:
        monkeypatch.setitem(sys.modules, module.split(".")[0], None)
    for name, (data, expected) in files.items():
        depth = "float32" if name == "float" else "uint16"
        assert np.array_equal(read(data, 1, depth)[..., 0], expected), name
    assert read(avif, 3, "uint8").shape == (20, 28, 3)
    assert np.array_equal(read(rgb, 3, "uint8"), RGB >> 8)


def test_a_deep_canvas_is_asked_of_cut(monkeypatch):
    """The image comes whole, in its own type, whatever the kind."""
    seen = []
    monkeypatch.setattr(
        "lookalike.data.decode.cut", lambda image, box, out: (seen.append((image, box)), out)[1]
    )
    form = PixelFormat(5, "uint16")
    out = Opened(deep.tiff(FIVE, **BANDS), "a", form).canvas(torch.empty(5, 8, 8, dtype=form.dtype))
    ((image, box),) = seen
    assert out.dtype == image.dtype == torch.uint16
    assert np.array_equal(image.permute(1, 2, 0).numpy(), FIVE)
    assert box == (0, 4, 20, 20)
