"""The laws of decode: good files equal an independent computation, bad ones are BadImage."""

import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from bad_images import bad_files, bombs, colours, png, save, tiff
from lookalike.data.decode import BadImage, Opened, contents, cut
from lookalike.data.decode import decode as decode_bytes
from lookalike.data.decoders import pixels as pixels_room
from lookalike.errors import printable
from lookalike.geometry import PixelFormat


def decode(path: Path | str, max_bytes: int = 1_000_000, **how) -> torch.Tensor:
    """The image of a file."""
    return decode_bytes(contents(path, max_bytes), str(path), **how)


def pixels(path: Path, channels: int = 3, **limits) -> np.ndarray:
    """What decode gives, as (H, W) or (H, W, 3)."""
    image_CHW = decode(path, size=None, form=PixelFormat(channels), **limits)
    assert image_CHW.dtype == torch.uint8
    assert image_CHW.is_contiguous()
    image_HWC = image_CHW.permute(1, 2, 0).numpy()
    return image_HWC[..., 0] if channels == 1 else image_HWC


def refusal(path: Path | str, size: int | None = 16, channels: int = 3, **limits) -> str:
    with pytest.raises(BadImage) as caught:
        decode(path, size=size, form=PixelFormat(channels), **limits)
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value.reason


def refusal_of_the_header(path: Path, max_pixels: int | None = None) -> str:
    """Why the file is refused before a pixel is asked for."""
    with pytest.raises(BadImage) as caught:
        Opened(contents(path), str(path), PixelFormat(3), max_pixels)
    return caught.value.reason


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.TIF", "a.webp"])
def test_lossless_formats_give_the_very_pixels(tmp_path, name):
    options = {"lossless": True} if name.endswith("webp") else {}
    assert np.array_equal(pixels(save(tmp_path / name, colours(), **options)), colours())


def test_format_follows_the_bytes_and_not_the_name(tmp_path):
    path = save(tmp_path / "a.jpg", colours(), format="PNG")
    assert np.array_equal(pixels(path), colours())


def test_pillow_may_try_that_one_format_only(tmp_path, monkeypatch):
    asked = []
    real = Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, **options: (asked.append(options), real(file, **options))[1]
    )
    for suffix in ("png", "jpg", "tiff"):
        path = tmp_path / f"a.{suffix}"
        Image.fromarray(colours()).convert("CMYK" if suffix == "jpg" else "RGB").save(path)
        asked.clear()
        pixels(path)
        assert {one for options in asked for one in options["formats"]} == {
            {"jpg": "JPEG"}.get(suffix, suffix.upper())
        }


PLAIN = [
    ("a.jpg", {"quality": 90}),
    ("a.jpg", {"progressive": True}),
    ("a.jpg", {"subsampling": 0}),
]
PLAIN += [("a.webp", {"quality": 80}), ("a.webp", {"lossless": True})]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_both_decoders_give_the_same_bits(tmp_path, monkeypatch, name, options, channels):
    """So a torchvision without decoders changes nothing but the time."""
    for i, array in enumerate((colours(90, 131), colours(64, 48)[..., 0])):
        data = save(tmp_path / f"{i}{name}", array, **options).read_bytes()
        with monkeypatch.context() as patch:
            if channels == 3 or name == "a.jpg":
                patch.setattr(pixels_room, "_by_pillow", None)  # would raise if it were asked
            fast = decode_bytes(data, name, size=None, form=PixelFormat(channels))
        monkeypatch.setattr(pixels_room, "_by_torchvision", lambda *_: None)
        assert torch.equal(decode_bytes(data, name, size=None, form=PixelFormat(channels)), fast)
        monkeypatch.undo()


def test_jpeg_equals_pillow_and_is_near_the_source(tmp_path):
    path = save(tmp_path / "a.jpg", colours(), quality=95, subsampling=0)
    with Image.open(path) as image:
        assert np.array_equal(pixels(path), np.asarray(image))
    assert np.abs(pixels(path).astype(int) - colours()).mean() < 3


UPRIGHT = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_numpys_flip(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name.endswith("webp") else {}
    path = save(tmp_path / name, colours(), exif=exif, **options)
    assert np.array_equal(pixels(path), UPRIGHT[orientation](colours()))


@pytest.mark.parametrize("orientation", [1, 6])
def test_jpeg_orientation_also_in_draft_mode(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", colours(240, 320), quality=95, exif=exif)
    turned = decode(path, size=32, form=PixelFormat(3))
    reference = save(tmp_path / "b.png", UPRIGHT[orientation](colours(240, 320)))
    difference = turned.int() - decode(reference, size=32, form=PixelFormat(3)).int()
    assert difference.abs().float().mean() < 4


@pytest.mark.parametrize("exif", [b"II*\0\xff\xff\xff\xff", b"neither II nor MM"])
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_damaged_exif_leaves_the_image(tmp_path, name, exif):
    plain = pixels(save(tmp_path / name, colours()))
    assert np.array_equal(pixels(save(tmp_path / name, colours(), exif=b"Exif\0\0" + exif)), plain)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_16_bit_grey_keeps_the_high_byte(tmp_path, order, name):
    grey_HW = np.random.default_rng(0).integers(0, 65536, (9, 31)).astype(order)
    path = tmp_path / name
    if name == "a.png":  # PNG has one byte order
        rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in grey_HW)
        path.write_bytes(png(31, 9, zlib.compress(rows), depth=16, colour=0))
    elif order == "<u2":
        path.write_bytes(tiff(31, 9, grey_HW.tobytes(), bits=16))
    else:
        Image.frombytes("I;16B", (31, 9), grey_HW.tobytes()).save(path)
        assert path.read_bytes()[:2] == b"MM"
    expected = (grey_HW >> 8).astype(np.uint8)
    assert np.array_equal(pixels(path, channels=1), expected)
    assert np.array_equal(pixels(path), np.stack([expected] * 3, axis=-1))


def test_16_bit_colour_keeps_the_high_byte(tmp_path):
    deep = np.random.default_rng(1).integers(0, 65536, (5, 7, 3)).astype(">u2")
    (tmp_path / "a.png").write_bytes(
        png(7, 5, zlib.compress(b"".join(b"\0" + r.tobytes() for r in deep)), depth=16)
    )
    assert np.array_equal(pixels(tmp_path / "a.png"), deep >> 8)


def test_32_bit_greys(tmp_path):
    whole = np.random.default_rng(0).integers(0, 65536, (6, 8)).astype(np.int32)
    assert np.array_equal(pixels(save(tmp_path / "i.tiff", whole), 1), whole // 256)
    for bad in (whole + 65536, whole - 1 - whole.max()):
        assert "outside 0 to 65535" in refusal(save(tmp_path / "i.tiff", bad), None)


def test_floats_become_no_bytes_by_a_guess_that_each_image_makes_anew(tmp_path):
    share = np.random.default_rng(0).random((6, 8)).astype(np.float32)
    for image in (share, share * 200 + 5, share * 300, np.full((6, 8), np.nan, np.float32)):
        assert refusal(save(tmp_path / "f.tiff", image), None) == (
            "floats, which data.depth: uint8 cannot hold: set data.depth: float32"
        )


def test_grey_is_itu_601_luma(tmp_path):
    luma = np.rint(colours() @ np.array([0.299, 0.587, 0.114]))
    grey = pixels(save(tmp_path / "a.png", colours()), channels=1).astype(int)
    assert np.abs(grey - luma).max() <= 1
    with Image.fromarray(colours()) as image:
        assert np.array_equal(grey, np.asarray(image.convert("L")))


def test_one_bit_and_grey_become_equal_channels(tmp_path):
    bits = colours()[..., 0] > 100
    for name in ("a.png", "a.tiff", "a.bmp"):
        expected = np.stack([bits * np.uint8(255)] * 3, axis=-1)
        assert np.array_equal(pixels(save(tmp_path / name, bits)), expected)
    grey = colours()[..., 2]
    assert np.array_equal(pixels(save(tmp_path / "b.png", grey)), np.stack([grey] * 3, axis=-1))
    assert np.array_equal(pixels(save(tmp_path / "b.png", grey), channels=1), grey)


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return colour * share + 255 * (1 - share)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.webp"])
def test_alpha_lies_on_white(tmp_path, name):
    alpha = np.arange(37 * 53).reshape(37, 53).astype(np.uint8)
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    path = save(tmp_path / name, np.dstack([colours(), alpha]), **options)
    assert np.abs(pixels(path) - on_white(colours(), alpha)).max() <= 1


def test_grey_with_alpha_lies_on_white(tmp_path):
    grey, alpha = colours()[..., 1], colours()[..., 2]
    path = tmp_path / "a.png"
    Image.fromarray(np.dstack([grey, alpha])).save(path)
    expected = on_white(np.stack([grey] * 3, axis=-1), alpha)
    assert np.abs(pixels(path) - expected).max() <= 1
    assert np.abs(pixels(path, channels=1) - expected[..., 0]).max() <= 1


PALETTED = [
    ("a.png", None),
    ("a.png", 3),
    ("a.png", bytes(range(0, 160, 16))),
    ("a.gif", None),
    ("a.gif", 3),
]


@pytest.mark.parametrize(("name", "transparency"), PALETTED)
def test_palettes(tmp_path, name, transparency):
    index = np.random.default_rng(0).integers(0, 10, (12, 17)).astype(np.uint8)
    palette = np.random.default_rng(1).integers(0, 256, (10, 3)).astype(np.uint8)
    image = Image.fromarray(index)
    image.putpalette(palette.tobytes())
    assert image.mode == "P"
    options = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / name, optimize=False, **options)
    alpha = np.full(10, 255)
    if transparency == 3:
        alpha[3] = 0
    elif transparency:
        alpha = np.frombuffer(transparency, np.uint8)
    assert np.abs(pixels(tmp_path / name) - on_white(palette[index], alpha[index])).max() <= 1


@pytest.mark.parametrize("name", ["a.tiff", "a.jpg"])
def test_cmyk_is_pillows_rgb(tmp_path, name):
    Image.fromarray(colours()).convert("CMYK").save(tmp_path / name, quality=95)
    with Image.open(tmp_path / name) as image:
        assert image.mode == "CMYK"
        assert np.array_equal(pixels(tmp_path / name), np.asarray(image.convert("RGB")))
    assert np.abs(pixels(tmp_path / name).astype(int) - colours()).mean() < 4  # not inverted


@pytest.mark.parametrize("name", ["a.gif", "a.tiff", "a.webp", "a.png", "a.mpo"])
def test_of_many_frames_the_first(tmp_path, name):
    frames = [Image.fromarray(colours(seed=40 * i)) for i in range(3)]
    Image.fromarray(colours()).save(tmp_path / "one.jpg", quality=95)
    options = {"lossless": True} if name == "a.webp" else {"quality": 95} if name == "a.mpo" else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    with Image.open(tmp_path / name) as image:
        assert image.n_frames == 3
        first = np.asarray(image.convert("RGB"))
    assert np.array_equal(pixels(tmp_path / name), first)
    assert np.abs(first.astype(int) - colours()).mean() < (20 if name == "a.gif" else 4)


@pytest.mark.parametrize(
    ("height", "width"), [(37, 53), (53, 37), (16, 16), (7, 11), (300, 100), (16, 40), (1, 90)]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_canvas_is_the_central_square_resized_antialiased(tmp_path, height, width, channels):
    path = save(tmp_path / "a.png", colours(height, width))
    canvas = decode(path, size=16, form=PixelFormat(channels))
    assert canvas.shape == (channels, 16, 16)
    assert canvas.is_contiguous()
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = decode(path, size=None, form=PixelFormat(channels))[
        :, top : top + side, left : left + side
    ].double()
    resized = torch.nn.functional.interpolate(
        square[None], [16, 16], mode="bicubic", antialias=True
    )[0]
    difference = canvas - resized.clamp(0, 255).round()
    assert difference.abs().max() <= 1
    assert difference.abs().mean() < 0.2


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 20), (64, 21), (18, 90), (300, 301)])
@pytest.mark.parametrize("whole", [False, True])
def test_a_canvas_that_is_no_square_is_the_middle_of_its_shape_or_the_whole_squashed(
    tmp_path, height, width, whole
):
    path = save(tmp_path / "a.png", colours(height, width))
    found = Opened(path.read_bytes(), "a.png", PixelFormat(3)).canvas(
        torch.empty(3, 24, 12, dtype=torch.uint8), whole=whole
    )
    h, w = (
        (height, width) if whole else (round(min(height, 2 * width)), round(min(height / 2, width)))
    )
    left, top = (width - w) // 2, (height - h) // 2
    with Image.open(path) as image:
        expected = np.asarray(
            image.crop((left, top, left + w, top + h)).resize((12, 24), Image.BICUBIC)
        ).astype(int)
    difference = np.abs(found.permute(1, 2, 0).numpy() - expected)
    assert difference.max() <= 6  # where the cubic overshoots, bytes clip between the two passes
    assert difference.mean() < 0.2


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize(
    "box", [(0, 0, 37, 53), (3, 5, 30, 12), (36, 52, 1, 1), (2, 1, 16, 16), (0, 4, 5, 40)]
)
def test_a_cut_is_pillows_resize_of_the_box(mode, box):
    """The other side knows no torch: Pillow cuts and resizes, from its own bytes."""
    top, left, height, width = box
    whole = torch.from_numpy(colours()).permute(2, 0, 1)
    found = cut(whole, box, torch.empty(3, 16, 16, dtype=torch.uint8), mode)
    piece = Image.fromarray(colours()).crop((left, top, left + width, top + height))
    expected = np.asarray(
        piece.resize((16, 16), {"bicubic": Image.BICUBIC, "bilinear": Image.BILINEAR}[mode])
    )
    difference = np.abs(found.permute(1, 2, 0).numpy().astype(int) - expected)
    assert difference.max() <= 6  # where the cubic overshoots, bytes clip between the two passes
    assert difference.mean() < 0.2


def test_draft_mode_is_used_for_large_jpegs_only(tmp_path, monkeypatch):
    asked = []
    real = Opened.pixels
    monkeypatch.setattr(
        Opened,
        "pixels",
        lambda self, s=1: (asked.append((s, real(self, s).shape)), real(self, s))[1],
    )
    for height, width in ((320, 256), (64, 320), (63, 63)):
        decode(save(tmp_path / "a.jpg", colours(height, width)), size=32, form=PixelFormat(3))
    assert asked == [(8, (3, 40, 32)), (2, (3, 32, 160)), (1, (3, 63, 63))]
    decode(save(tmp_path / "a.png", colours(256, 256)), size=32, form=PixelFormat(3))
    assert asked[-1] == (8, (3, 256, 256))  # the format has no draft: whole


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff"])
def test_the_sides_known_before_decoding_are_the_pixels_own(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = Opened(save(tmp_path / name, colours(), exif=exif).read_bytes(), name, PixelFormat(3))
    assert (
        (opened.height, opened.width)
        == opened.pixels().shape[1:]
        == UPRIGHT[orientation](colours()).shape[:2]
    )


def test_every_bad_file_is_a_bad_image_with_its_path(tmp_path):
    files = bad_files(tmp_path)
    for name, (data, part) in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        reason = refusal(path)
        assert part in reason.lower(), (name, reason)
        assert reason
        assert "0x" not in reason  # an address would make two runs differ
        assert refusal(path) == reason
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_flipped_and_cut_bytes_never_raise_anything_else(tmp_path):
    draw = np.random.default_rng(7)
    kinds = [
        ("jpg", {}),
        ("png", {}),
        ("gif", {}),
        ("tiff", {}),
        ("tiff", {"compression": "tiff_lzw"}),
        ("webp", {}),
    ]
    refused = 0
    for suffix, options in kinds:
        whole = save(tmp_path / f"a.{suffix}", colours(20, 24), **options).read_bytes()
        for _ in range(60):
            data = bytearray(
                whole[: draw.integers(1, len(whole) + 1)] if draw.random() < 0.3 else whole
            )
            for place in draw.integers(0, len(data), 3):
                data[place] = draw.integers(0, 256)
            (tmp_path / "b").write_bytes(data)
            try:
                canvas = decode(tmp_path / "b", size=8, form=PixelFormat(3), max_pixels=1_000_000)
                assert canvas.shape == (3, 8, 8)
            except BadImage:
                refused += 1
    assert 60 < refused < 360


def test_healthy_images_are_the_same_among_bad_neighbours(tmp_path):
    path = save(tmp_path / "good.jpg", colours(90, 120))
    before = decode(path, size=32, form=PixelFormat(3))
    for name, (data, _) in bad_files(tmp_path).items():
        (tmp_path / name).write_bytes(data)
        refusal(tmp_path / name)
        assert torch.equal(decode(path, size=32, form=PixelFormat(3)), before)


def peak_kib(reset: bool = False) -> int:
    """The most memory this process held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])


@pytest.mark.parametrize("name", list(bombs()))
def test_bombs_are_refused_from_the_header(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(bombs()[name])
    before = peak_kib(reset=True)
    assert "pixels" in refusal_of_the_header(path, 99_000_000)
    assert peak_kib() - before < 100 * 1024


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_whose_header_promises_more_than_its_bytes_can_hold(tmp_path, progressive):
    """Decoders believe it and fill up with grey; the flattest honest image stays below."""
    path = save(tmp_path / "a.jpg", colours(), progressive=progressive)
    data = bytearray(path.read_bytes())
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 9000, 9000)
    path.write_bytes(data)
    before = peak_kib(reset=True)
    said = f"9000 x 9000 pixels in {len(data)} bytes: the header lies"
    assert refusal_of_the_header(path) == said
    assert peak_kib() - before < 100 * 1024
    flat = save(
        path,
        np.full((3000, 3000), 128, np.uint8),
        progressive=progressive,
        optimize=True,
        quality=1,
    )
    assert decode(flat, size=8, form=PixelFormat(1)).float().mean() == pytest.approx(128, abs=2)


@pytest.mark.parametrize(("name", "options"), PLAIN)
def test_damaged_bytes_give_what_pillow_alone_makes_of_them(tmp_path, monkeypatch, name, options):
    """The faster decoder accepts nothing that Pillow refuses, and makes the same of what both
    accept.
    """
    whole, draw = (
        save(tmp_path / name, colours(40, 56), **options).read_bytes(),
        np.random.default_rng(3),
    )
    seen = {"refused": 0, "accepted": 0}
    for turn in range(200):
        data = bytearray(whole[: draw.integers(4, len(whole))] if turn % 4 == 0 else whole)
        for place in draw.integers(2, len(data), draw.integers(0 if turn % 4 == 0 else 1, 5)):
            data[place] = draw.integers(0, 256)
        found = []
        for alone in (False, True):
            with monkeypatch.context() as patch:
                if alone:
                    patch.setattr(pixels_room, "_by_torchvision", lambda *_: None)
                try:
                    found.append(
                        decode_bytes(
                            bytes(data), "a", size=None, form=PixelFormat(3), max_pixels=10**6
                        ).tolist()
                    )
                except BadImage as error:
                    found.append(error.reason)
        assert found[0] == found[1]
        seen["refused" if isinstance(found[0], str) else "accepted"] += 1
    assert min(seen.values()) > 3, seen


def test_no_warning_leaks_and_the_filters_stay(tmp_path):
    (tmp_path / "a.png").write_bytes(bombs()["b.png"])
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        refusal(tmp_path / "a.png", size=None)
    assert not seen
    assert warnings.filters == filters


def test_limits_are_the_callers(tmp_path):
    path = save(tmp_path / "a.png", colours())
    assert refusal(path, max_pixels=1960) == (
        "1961 pixels (53 x 37), more than the 1960 allowed for PNG: data.max_pixels allows more"
    )
    assert pixels(path, max_pixels=1961).shape == (37, 53, 3)
    size = path.stat().st_size
    assert f"{size} bytes, more than the {size - 1} allowed" in refusal(path, max_bytes=size - 1)
    assert pixels(path, max_bytes=size).shape == (37, 53, 3)


def test_a_strip_is_not_blown_up(tmp_path):
    path = save(tmp_path / "a.png", np.zeros((1, 65_000), np.uint8))
    before = peak_kib(reset=True)
    assert decode(path, size=256, form=PixelFormat(3)).shape == (3, 256, 256)
    assert peak_kib() - before < 20 * 1024
    assert pixels(path).shape == (1, 65_000, 3)


def test_what_is_no_file(tmp_path):
    assert refusal(tmp_path / "gone.jpg") == "No such file or directory"
    assert refusal(tmp_path)
    assert refusal(str(tmp_path / "a\0b"))
    os.mkfifo(tmp_path / "pipe.jpg")
    assert refusal(tmp_path / "pipe.jpg") == "not a regular file"  # an `open` would wait for ever


def test_unreadable(tmp_path):
    path = save(tmp_path / "a.png", colours())
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user reads everything")
    assert refusal(path) == "Permission denied"


def test_no_descriptor_is_left_open(tmp_path):
    path = save(tmp_path / "a.png", colours())
    (tmp_path / "b.png").write_bytes(path.read_bytes()[:80])
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        pixels(path)
        refusal(tmp_path / "b.png")
        refusal(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_bad_image_survives_a_worker_and_shows_in_one_line():
    bad = pickle.loads(pickle.dumps(BadImage("x/a\nb\udcff.jpg", "empty file")))
    assert (bad.path, bad.reason) == ("x/a\nb\udcff.jpg", "empty file")
    assert str(bad) == "x/a\\nb\\udcff.jpg: empty file"
    assert printable("grün/猫.png") == "grün/猫.png"
