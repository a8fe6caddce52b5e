"""Views of any number of channels, and of pixels deeper than a byte."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike import rng, views
from lookalike.data.images import ArrayImages, FileImages, Reading
from lookalike.data.reader import HostCrops, Reader
from lookalike.geometry import PixelFormat
from lookalike.views import VIEWS, MultiCrop, Symmetric, fused, scale

CPU = torch.device("cpu")
PLAIN = Symmetric(
    views=1, crop=(1.0, 1.0), aspect=(1.0, 1.0), flip=0, jitter=0, grey=0, blur=0, solarize=0
)
XRAY = PixelFormat(1, "uint16", (0.0, 4095.0))


def made(policy, pixels, form, size, count=None, **how):
    channels = form.channels
    known = {"mean": [0.0] * channels, "std": [1.0] * channels, "seed": 5, "device": CPU}
    first = pixels if isinstance(pixels, torch.Tensor) else pixels[0]
    ids_B = torch.arange(len(first))
    return views.make(policy, pixels, ids_B, 3, size=size, form=form, **(known | how))


@pytest.mark.parametrize("crop_on", ["device", "host"])
def test_a_ramp_of_12_bits_keeps_its_values_to_the_view(tmp_path, crop_on):
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, "PNG")
    (tmp_path / "ramp.png").write_bytes(file.getvalue())
    images = FileImages(tmp_path, ["ramp.png"], Reading(64, XRAY))
    crops = HostCrops(PLAIN, 64) if crop_on == "host" else None
    reader = Reader(images, 5, crops)
    parts = [torch.empty(1, *shape, dtype=reader.dtype) for shape in reader.shapes]
    assert reader.fill(3, [0], parts) == []
    (view_1CHW,) = made(PLAIN, parts if crops else parts[0], XRAY, 64)
    assert len(view_1CHW.unique()) >= 4000
    assert torch.equal(view_1CHW[0, 0], torch.from_numpy(ramp.astype(np.float32)) / 4095)


@pytest.mark.parametrize("depth", ["uint8", "uint16", "float32"])
def test_scale_is_the_range_in_double_precision(depth):
    form = PixelFormat(2, depth, (20.0, 200.0))
    x = torch.arange(256).reshape(1, 2, 8, 16).to(form.dtype)
    wanted = ((x.double() - 20) / 180).clamp(0, 1)
    assert (scale(x, form).double() - wanted).abs().max() <= 1e-7
    whole = {"uint8": 255, "uint16": 65535, "float32": 1}[depth]
    wanted = (x.double() / whole).clamp(0, 1)
    assert (scale(x, PixelFormat(2, depth)).double() - wanted).abs().max() <= 1e-7


def test_pixels_of_another_type_than_was_said_are_refused():
    with pytest.raises(ValueError, match=r"pixels of torch.uint16, not of uint8"):
        scale(torch.zeros(1, 1, 2, 2, dtype=torch.uint16))


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_bytes_and_the_same_bytes_as_16_bits_make_the_same_views(name, channels):
    """What a byte is multiplied by is its range's white; the byte kernel rounds between."""
    policy = VIEWS[name](**({"small_size": 12} if name == "multi_crop" else {}))
    canvas = torch.randint(0, 256, (6, channels, 21, 24), dtype=torch.uint8)
    deep = canvas.to(torch.int32).mul(257).to(torch.uint16)
    first = made(policy, canvas, PixelFormat(channels), 16)
    second = made(policy, deep, PixelFormat(channels, "uint16"), 16)
    third = made(policy, deep.float() / 65535, PixelFormat(channels, "float32"), 16)
    for one, other, last in zip(first, second, third, strict=True):
        assert one.shape == other.shape
        # Solarization and the hue of nearly grey pixels turn a rounding into a jump.
        assert ((one - other).abs() < 0.03).float().mean() > 0.9
        assert ((other - last).abs() < 1e-4).float().mean() > 0.995


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_what_has_no_three_colours_has_brightness_and_contrast_alone(channels):
    canvas = torch.randint(0, 65536, (5, channels, 16, 16)).to(torch.uint16)
    form, how = PixelFormat(channels, "uint16"), replace(PLAIN, jitter=1.0, order="fixed")
    (changed,) = made(how, canvas, form, 16)
    (same,) = made(replace(how, hue=0.5, saturation=1.0, grey=1.0), canvas, form, 16)
    assert torch.equal(changed, same)
    factors = how.draws(torch.arange(5), 5, 3, range(1), 16, 16)["factors"][0]
    x = canvas.double() / 65535
    bright = (x * factors[:, 0, None, None, None]).clamp(0, 1)
    mean = bright.mean(dim=(1, 2, 3), keepdim=True)
    contrast = factors[:, 1, None, None, None]
    wanted = (bright * contrast + (1 - contrast) * mean).clamp(0, 1)
    assert (changed.double() - wanted).abs().max() < 1e-5


@pytest.mark.parametrize("form", [PixelFormat(5, "uint16"), PixelFormat(3)])
def test_a_dropped_channel_is_black_and_drawn_by_seed_epoch_sample_and_view(form):
    canvas = (torch.randint(1, 200, (64, form.channels, 8, 8))).to(form.dtype)
    policy = replace(PLAIN, views=2, channel_drop=0.5)
    without = made(replace(policy, channel_drop=0.0), canvas, form, 8)
    dropped = made(policy, canvas, form, 8)
    for v, (view, whole) in enumerate(zip(dropped, without, strict=True)):
        ids = torch.arange(64)
        happens = rng.uniform(5, 3, v, rng.tag("drop"), ids) < 0.5
        which = (rng.uniform(5, 3, v, rng.tag("channel"), ids) * form.channels).long()
        for b in range(64):
            wanted = whole[b].clone()
            if happens[b]:
                wanted[which[b]] = 0
            assert torch.equal(view[b], wanted)
        assert 16 < int(happens.sum()) < 48
        assert len(which[happens].unique()) == form.channels
    again = made(policy, canvas[10:20], form, 8)
    shifted = views.make(
        policy, canvas[10:20], torch.arange(10, 20), 3,
        size=8, mean=[0.0], std=[1.0], seed=5, device=CPU, form=form,
    )  # fmt: skip
    assert all(torch.equal(a[10:20], b) for a, b in zip(dropped, shifted, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(again, shifted, strict=True))


def test_an_only_channel_is_never_dropped():
    canvas = torch.randint(1, 256, (8, 1, 8, 8), dtype=torch.uint8)
    form, policy = PixelFormat(1), replace(PLAIN, channel_drop=1.0)
    assert torch.equal(made(policy, canvas, form, 8)[0], made(PLAIN, canvas, form, 8)[0])


def test_no_drop_draws_nothing_and_each_view_may_have_its_own():
    ids = torch.arange(9)
    assert "drop" not in Symmetric().draws(ids, 0, 0, range(2), 8, 8)
    drawn = Symmetric(channel_drop=(0.0, 1.0)).draws(ids, 0, 0, range(2), 8, 8)
    assert drawn["drop"].tolist() == [[False] * 9, [True] * 9]
    with pytest.raises(ValueError, match="channel_drop has 3 values for 2 views"):
        Symmetric(channel_drop=(0.1, 0.1, 0.1))
    small = MultiCrop(channel_drop=(1.0, 0.0), small=3, small_size=8)
    every = small.each(
        ids, seed=0, epoch=0, heights_B=torch.full((9,), 8), widths_B=torch.full((9,), 8)
    )
    assert [bool(view["drop"].all()) for view in every] == [True, False, True, True, True]


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_the_graph_makes_the_same_views_of_deep_pixels(channels):
    policy = Symmetric(channel_drop=0.5)
    form = PixelFormat(channels, "uint16")
    canvas = scale(torch.randint(0, 65536, (8, channels, 20, 20)).to(torch.uint16), form)
    draws = policy.draws(torch.arange(8), 1, 1, range(2), 20, 20)
    as_wanted = fused.ViewFormat((16, 16), "bicubic", 2.0, (0.5,), (0.5,))
    eager = torch.cat(fused.make(canvas, draws, as_wanted))
    known = fused.flat(draws, channels, as_wanted.sides)
    radius = fused.colour.kernel_radius(2.0, 16)
    known["taps"] = fused.colour.taps(torch.where(known["blur"], known["sigma"], 1e-3), radius)
    graph = fused.graph(canvas, known, as_wanted, True)
    assert ((eager - graph).abs() < 1e-4).float().mean() > 0.995


def test_host_crops_of_floats_are_cut_as_they_stand():
    form = PixelFormat(2, "float32", (-1000.0, 3000.0))
    pixels = torch.rand(4, 2, 24, 24) * 4000 - 1000
    images = ArrayImages(pixels, range=form.range)
    reader = Reader(images, 5, HostCrops(PLAIN, 24))
    parts = [torch.empty(4, *shape, dtype=reader.dtype) for shape in reader.shapes]
    reader.fill(3, range(4), parts)
    (view,) = made(PLAIN, parts, form, 24)
    assert (view.double() - (pixels.double() + 1000) / 4000).abs().max() < 1e-6
