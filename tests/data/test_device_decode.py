"""JPEGs that the device decodes: the canvases, order and bad images of the host's decoder. In place
of nvJPEG here stands torchvision's decoder of the host, which refuses what nvJPEG might.
"""

import io

import numpy as np
import pytest
import torch
from PIL import Image

import toy
from lookalike.data import nvjpeg
from lookalike.data.decode import Opened
from lookalike.data.images import FileImages, Reading
from lookalike.data.loader import Batch, batches
from lookalike.data.order import EpochOrder
from lookalike.data.reader import Reader
from lookalike.errors import RecipeError
from lookalike.geometry import PixelFormat
from lookalike.runs import Run
from lookalike.stages import pretrain

CPU = torch.device("cpu")
MOST = 9


def by_torchvision(files, channels):
    """The stand-in; all or nothing, as nvJPEG."""
    mode = 1 if channels == 1 else 3
    return [torch.ops.image.decode_jpeg(file.clone(), mode, False) for file in files]


def photo(height: int, width: int, seed: int) -> Image.Image:
    """Soft colours: what differs here is the resize, not the decoder."""
    draw = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, 4, 5, generator=draw)
    x_HW3 = torch.nn.functional.interpolate(small, (height, width), mode="bicubic")[0].clamp(0, 1)
    return Image.fromarray((x_HW3 * 255).byte().permute(1, 2, 0).numpy())


def saved(image: Image.Image, form: str = "JPEG", **how) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **how)
    return buffer.getvalue()


def turned(turn: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = turn
    return saved(photo(40, 61, turn), exif=exif)


def rgb_coded() -> bytes:
    return saved(photo(30, 30, 5), keep_rgb=True)


FILES = {
    **{f"turn{turn}.jpg": turned(turn) for turn in range(1, 9)},
    "as-large.jpg": saved(photo(16, 16, 20)),
    "large.jpg": saved(photo(150, 90, 21), quality=95),
    "eighth.jpg": saved(photo(300, 400, 22)),
    "small.jpg": saved(photo(9, 12, 23)),
    "grey.jpg": saved(photo(33, 28, 24).convert("L")),
    "cmyk.jpg": saved(photo(33, 28, 25).convert("CMYK")),
    "progressive.jpg": saved(photo(50, 40, 26), progressive=True),
    "rgb.jpg": rgb_coded(),
    "png.jpg": saved(photo(33, 44, 27), "PNG"),
    "cut.jpg": saved(photo(60, 60, 28))[:-300],
    "none.jpg": b"not an image",
}
SENT = [*(f"turn{t}.jpg" for t in range(1, 9)), "as-large.jpg", "large.jpg", "eighth.jpg"]
SENT += ["small.jpg", "grey.jpg", "progressive.jpg"]


@pytest.fixture
def images(tmp_path) -> FileImages:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    return FileImages(tmp_path, list(FILES), Reading(16, PixelFormat(3)))


def stream(images, decode=None, *, rank=0, world=1, workers=0, first=0) -> list[Batch]:
    order = EpochOrder(len(images), 9, 1, seed=1)
    how = {"rank": rank, "world": world, "workers": workers, "pin": False}
    found = batches(
        images,
        order,
        first_step=first,
        last_step=6,
        decode=(CPU, decode) if decode else None,
        **how,
    )
    return [batch._replace(pixels=batch.pixels.clone()) for batch in found]


def near(one: list[Batch], two: list[Batch], most: int = MOST) -> None:
    """The same batches, but for so many levels of a pixel."""
    assert len(one) == len(two) > 0
    for a, b in zip(one, two, strict=True):
        assert (a.epoch, a.ids_B.tolist(), a.bad) == (b.epoch, b.ids_B.tolist(), b.bad)
        assert (a.pixels.int() - b.pixels.int()).abs().max() <= most


def test_these_are_sent_and_the_host_has_the_others(images):
    sent = {name for i, name in enumerate(FILES) if is_sent(images, i)}
    assert sent == set(SENT)


def is_sent(images: FileImages, i: int) -> bool:
    try:
        return images.open(i).for_device is not None
    except Exception:
        return False


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_of_the_device_are_those_of_the_host(images, workers):
    near(stream(images, by_torchvision, workers=workers), stream(images))


@pytest.mark.parametrize("name", SENT)
def test_a_canvas_is_the_hosts_but_for_rounding_and_the_smoothing_of_colours(name):
    """Where the host decodes at a part of the sides, libjpeg smooths no colours."""
    opened = Opened(FILES[name], name, PixelFormat(3))
    mine, host = torch.empty(2, 3, 16, 16, dtype=torch.uint8)
    (stored,) = by_torchvision([torch.frombuffer(bytearray(FILES[name]), dtype=torch.uint8)], 3)
    nvjpeg.fit(stored, opened.header.turn, mine, whole=False)
    opened.canvas(host)
    difference = (mine.int() - host.int()).abs().float()
    shrunk = min(opened.height, opened.width) >= 32
    assert difference.max() <= (MOST if shrunk else 1)
    assert difference.mean() <= (1.6 if shrunk else 0.3)


def test_ranks_and_a_resume_change_nothing(images):
    whole = stream(images, by_torchvision)
    near(stream(images, by_torchvision, first=3), whole[3:], most=0)
    parts = [stream(images, by_torchvision, rank=rank, world=3) for rank in range(3)]
    for step, batch in enumerate(whole):
        mine = [part[step] for part in parts]
        assert torch.equal(torch.cat([one.pixels for one in mine]), batch.pixels)
        assert [bad for one in mine for bad in one.bad] == batch.bad


@pytest.mark.parametrize("odd", [0, 1, 2])
def test_what_the_device_refuses_the_host_decodes(images, odd):
    calls = []

    def fussy(files, channels):
        calls.append(len(files))
        if any(len(file) % 3 == odd for file in files):
            raise RuntimeError("nvjpeg: not supported")
        return by_torchvision(files, channels)

    near(stream(images, fussy), stream(images))
    assert max(calls) > 1

    def silent(files, channels):
        """Gives an image of other sides instead."""
        found = by_torchvision(files, channels)
        return [x[:, 1:] if len(f) % 3 == odd else x for x, f in zip(found, files, strict=True)]

    near(stream(images, silent), stream(images))


def test_a_few_are_decoded_at_a_time_where_they_are_large(images, monkeypatch):
    monkeypatch.setattr(nvjpeg, "_AT_ONCE", 5000)
    sizes = []

    def counted(files, channels):
        sizes.append(len(files))
        return by_torchvision(files, channels)

    near(stream(images, counted), stream(images))
    assert 1 in sizes


def test_a_file_larger_than_its_canvas_travels_beside_it(images):
    large = list(FILES).index("large.jpg")
    reader = Reader(images, 1)
    part = torch.zeros(1, *images.shape, dtype=torch.uint8)
    (jpeg,) = nvjpeg.read(reader, 0, [large], [part]).jpegs
    assert len(jpeg.data) == jpeg.size > part.numel()
    assert not part.any()


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_grey_colour_and_squashed_canvases(images, channels, squash):
    fit = "squash" if squash else "crop"
    read = Reading((16, 24), PixelFormat(channels), fit)
    images.read_by(read)
    near(stream(images, by_torchvision), stream(images))


def test_deep_forms_are_the_hosts(images):
    for form in (PixelFormat(3, "float32"), PixelFormat(3, "uint16"), PixelFormat(4, alpha="keep")):
        assert Opened(FILES["large.jpg"], "", form).for_device is None


def test_a_thread_ahead_keeps_the_order_and_hands_on_an_error():
    def work(item):
        if item == 5:
            raise ValueError("five")
        return item * 2

    found = nvjpeg.one_ahead(iter(range(9)), work)
    assert [next(found) for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(ValueError, match="five"):
        next(found)
    assert list(nvjpeg.one_ahead(iter(range(3)), work)) == [0, 2, 4]


def test_without_a_gpu_it_is_refused_in_one_line():
    with pytest.raises(RecipeError) as caught:
        pretrain.job(Run(toy.recipe("pretrain.decode=device")))
    text = str(caught.value)
    assert text.endswith("pretrain.decode: device, but there is no GPU of CUDA: decode: host")
    assert "\n" not in text
    with pytest.raises(RecipeError, match=r"of which crop_on: host makes none"):
        toy.recipe("pretrain.decode=device", "pretrain.crop_on=host")


def test_a_box_average_is_near_what_libjpeg_makes_of_an_eighth():
    grain = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    data = saved(Image.fromarray(grain), quality=95)
    mine = torch.empty(3, 16, 16, dtype=torch.uint8)
    (stored,) = by_torchvision([torch.frombuffer(bytearray(data), dtype=torch.uint8)], 3)
    nvjpeg.fit(stored, 1, mine, whole=False)
    host = Opened(data, "", PixelFormat(3)).canvas(torch.empty_like(mine))
    difference = (mine.int() - host.int()).abs().float()
    assert difference.mean() < 6  # noise, of which the decoders cut off what exceeds a byte
