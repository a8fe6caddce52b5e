"""Laws of the views: operations and draws are torchvision's, and no sample sees another."""

import itertools
import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy import stats
from torchvision.transforms import ColorJitter, InterpolationMode, RandomResizedCrop

from lookalike import rng
from lookalike.views import (
    Asymmetric,
    MultiCrop,
    Symmetric,
    colour,
    fused,
    make,
    normalise,
    resize_crop,
    scale,
)
from lookalike.views.fused import ViewFormat
from lookalike.views.resample import crop_resize

DRAWS = 10_000
CHANCE = 1e-5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MODES = {"bicubic": InterpolationMode.BICUBIC, "bilinear": InterpolationMode.BILINEAR}
WAYS = {"symmetric": Symmetric(solarize=0.3), "asymmetric": Asymmetric()}


def canvas(batch=8, channels=3, height=24, width=24, seed=0):
    """Half noise, half smooth, with flat black and white corners: uint8."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(batch, channels, height, width, generator=generator)
    coarse = torch.rand(batch, channels, 3, 3, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    x = torch.where(torch.arange(batch)[:, None, None, None] % 2 == 0, noise, smooth)
    x[:, :, :4, :4], x[:, :, -4:, -4:] = 0, 1
    return (x * 255).round().to(torch.uint8)


def images(*args, **kwargs):
    return scale(canvas(*args, **kwargs))


def views(way, x, ids, *, seed=3, epoch=1, size=16):
    channels = (x if isinstance(x, torch.Tensor) else x[0]).shape[1]
    return way(x, ids, seed=seed, epoch=epoch, size=size, mean=MEAN[:channels], std=STD[:channels])


def parameters(way, ids, key, height, width):
    """What is drawn for one view; key = (seed, epoch, view)."""
    drawn = way.draws(ids, *key[:2], range(key[2], key[2] + 1), height, width)
    return {name: value[0] for name, value in drawn.items()}


def raw(size, mode="bicubic", sigma_max=2.0):
    """A form that normalises nothing: the views stay in [0, 1]."""
    return ViewFormat((size, size), mode, sigma_max, (0.0,), (1.0,))


def one_view(way, x, ids, key, size=16):
    """One view of a law, from a uint8 canvas, in [0, 1]."""
    drawn = way.draws(ids, *key[:2], range(key[2], key[2] + 1), *x.shape[2:])
    return fused.make(x, drawn, raw(size, way.interpolation, way.blur_sigma[1]))[0]


def coloured(x, **drawn):
    """What the views' colours make of square uint8 images: nothing but what is drawn here."""
    n, off = len(x), torch.zeros(len(x), dtype=torch.bool)
    plain = {
        "flip": off,
        "jitter": off,
        "grey": off,
        "blur": off,
        "solarize": off,
        "sigma": torch.ones(n),
    }
    plain |= {
        "factors": torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(n, 4),
        "order": torch.arange(4).expand(n, 4),
    }
    return fused.make(
        [x], {name: value[None] for name, value in {**plain, **drawn}.items()}, raw(x.shape[3])
    )[0]


def torchvision_crop(x, box, size, mode):
    """One axis after the other, as Pillow has it: the cubic's overshoot is clamped in between."""
    how = {"interpolation": MODES[mode], "antialias": True}
    wide = tv.resized_crop(x, *box, [box[2], size], **how).clamp(0, 1)
    return tv.resize(wide, [size, size], **how).clamp(0, 1)


# --- crop, resize, flip ---------------------------------------------------------------------------

BOXES = [
    (0, 0, 40, 56),
    (3, 5, 20, 31),
    (0, 0, 1, 1),
    (39, 55, 1, 1),
    (17, 0, 8, 56),
    (2, 50, 37, 3),
    (10, 10, 16, 16),
]


def random_boxes(n, height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for _ in range(n):
        h, w = (
            int(torch.randint(1, side + 1, (), generator=generator)) for side in (height, width)
        )
        top = int(torch.randint(height - h + 1, (), generator=generator))
        boxes.append((top, int(torch.randint(width - w + 1, (), generator=generator)), h, w))
    return boxes


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 7, 16, 64])
def test_crop_resize_is_torchvision_s_antialiased_resize_of_the_cut_out_box(mode, size):
    boxes = BOXES + random_boxes(60, 40, 56, seed=size)
    x_BCHW = images(len(boxes), 3, 40, 56)
    made = crop_resize(x_BCHW, torch.tensor(boxes), size, interpolation=mode)
    assert made.shape == (len(boxes), 3, size, size)
    for x, box, found in zip(x_BCHW, boxes, made, strict=True):
        # Both sum the same products in float32; 2/255 is what a reader would see, this is rounding
        # alone.
        torch.testing.assert_close(
            found, torchvision_crop(x, box, size, mode), rtol=0, atol=2e-5, msg=f"{box}"
        )


def test_bicubic_stays_in_range_where_the_cubic_overshoots():
    x = (torch.arange(16) % 8 < 4).float().expand(1, 3, 16, 16).contiguous()
    made = crop_resize(x, torch.tensor([[0, 0, 16, 16]]), 37)
    raw = tv.resize(x, [37, 37], interpolation=MODES["bicubic"], antialias=True)
    assert raw.min() < -0.01
    assert raw.max() > 1.01
    assert made.min() == 0
    assert made.max() == 1


def test_a_box_of_the_view_s_own_size_is_copied():
    x = images(2, 3, 20, 30)
    made = crop_resize(x, torch.tensor([[2, 3, 16, 16], [4, 14, 16, 16]]), 16)
    torch.testing.assert_close(
        made, torch.stack([x[0, :, 2:18, 3:19], x[1, :, 4:20, 14:30]]), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("mode", MODES)
def test_flip_mirrors_the_marked_results_and_no_other(mode):
    x, boxes = images(6, 3, 30, 20), torch.tensor(random_boxes(6, 30, 20, seed=1))
    flip_B = torch.tensor([True, False, True, True, False, False])
    plain = crop_resize(x, boxes, 13, interpolation=mode)
    flipped = crop_resize(x, boxes, 13, flip_B=flip_B, interpolation=mode)
    expected = torch.where(flip_B[:, None, None, None], plain.flip(3), plain)
    torch.testing.assert_close(flipped, expected, rtol=0, atol=1e-6)
    assert not flipped.equal(plain)


@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (41, 24), (8, 8)])
@pytest.mark.parametrize("share", [1.0, 0.875])
def test_test_time_view_is_torchvision_s_centre_crop_resized(shape, share):
    x = images(2, 3, *shape)
    side = round(min(shape) * share)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    expected = torchvision_crop(x, (top, left, side, side), 16, "bicubic")
    torch.testing.assert_close(resize_crop(x, 16, share), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size", [(20, 10), (7, 21)])
@pytest.mark.parametrize("shape", [(24, 24), (24, 40), (41, 13), (40, 20)])
def test_a_test_time_view_that_is_no_square_is_the_largest_middle_box_of_its_shape(shape, size):
    x = images(2, 3, *shape)
    boxes = [(h, round(h * size[1] / size[0])) for h in range(1, shape[0] + 1)]
    boxes += [(round(w * size[0] / size[1]), w) for w in range(1, shape[1] + 1)]
    h, w = max(box for box in boxes if box[0] <= shape[0] and box[1] <= shape[1])
    box = ((shape[0] - h) // 2, (shape[1] - w) // 2, h, w)
    expected = torch.stack(
        [tv.resized_crop(p, *box, list(size), MODES["bicubic"], antialias=True) for p in x]
    )
    torch.testing.assert_close(resize_crop(x, size), expected.clamp(0, 1), rtol=0, atol=0.05)
    assert (resize_crop(x, size) - expected).abs().mean() < 2e-3


# --- colour ---------------------------------------------------------------------------------------

TORCHVISION = {
    "brightness": tv.adjust_brightness,
    "contrast": tv.adjust_contrast,
    "saturation": tv.adjust_saturation,
    "hue": tv.adjust_hue,
}
FACTORS = {
    "brightness": [0.0, 0.3, 0.6, 1.0, 1.4, 2.0, 1.2, 0.9],
    "contrast": [0.0, 0.3, 0.6, 1.0, 1.4, 2.0, 1.2, 0.9],
    "saturation": [0.0, 0.3, 0.8, 1.0, 1.2, 2.0, 1.1, 0.9],
    "hue": [-0.5, -0.3, -0.1, 0.0, 0.05, 0.1, 0.3, 0.5],
}
STEP = 1 / 255


ALL = torch.ones(8, dtype=torch.bool)


@pytest.mark.parametrize("operation", colour.OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_colour_operation_is_torchvision_s_with_each_image_s_own_factor(operation, channels):
    x_BCHW, factors, o = canvas(8, channels), FACTORS[operation], colour.OPERATIONS.index(operation)
    factor_B4 = torch.tensor([1.0, 1.0, 1.0, 0.0]).repeat(8, 1)
    factor_B4[:, o] = torch.tensor(factors)
    found = coloured(x_BCHW, jitter=ALL, factors=factor_B4)
    expected = [TORCHVISION[operation](x, f) for x, f in zip(scale(x_BCHW), factors, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=STEP)


def jittered_by_torchvision(x, factors, order):
    for o in order:
        x = TORCHVISION[colour.OPERATIONS[o]](x, factors[o])
    return x


@pytest.mark.parametrize("channels", [1, 3])
def test_jitter_follows_the_order_of_each_image(channels):
    orders = list(itertools.permutations(range(4)))
    x_BCHW = canvas(1, channels).expand(len(orders), -1, -1, -1)
    factors = [1.4, 0.6, 1.2, 0.1]
    drawn = {"factors": torch.tensor(factors).expand(len(orders), 4), "order": torch.tensor(orders)}
    found = coloured(x_BCHW, jitter=torch.ones(len(orders), dtype=torch.bool), **drawn)
    expected = torch.stack(
        [jittered_by_torchvision(scale(x_BCHW[0]), factors, order) for order in orders]
    )
    # torchvision writes the luma's first weight as .2989, Pillow as .299; four operations pass that
    # on.
    torch.testing.assert_close(found, expected, rtol=0, atol=STEP)
    assert (expected[0] - expected[-1]).abs().max() > 10 * STEP


def test_jitter_uses_the_factors_of_the_image_and_leaves_unmarked_ones_alone():
    x_BCHW = canvas(8)
    generator = torch.Generator().manual_seed(2)
    factor_B4 = 0.6 + 0.8 * torch.rand(8, 4, generator=generator)
    factor_B4[:, 3] = 0.2 * torch.rand(8, generator=generator) - 0.1
    order_B4 = torch.rand(8, 4, generator=generator).argsort(1)
    on_B = torch.tensor([True, True, False, True, False, True, True, True])
    found = coloured(x_BCHW, jitter=on_B, factors=factor_B4, order=order_B4)
    assert found[~on_B].equal(scale(x_BCHW[~on_B]))
    for i in torch.nonzero(on_B).flatten().tolist():
        expected = jittered_by_torchvision(
            scale(x_BCHW[i]), factor_B4[i].tolist(), order_B4[i].tolist()
        )
        torch.testing.assert_close(found[i], expected, rtol=0, atol=STEP)


def test_hue_s_turn_of_nothing_gives_every_colour_back():
    levels = torch.tensor([0, 1, 63, 64, 127, 128, 200, 254, 255])
    every = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 27, 27) / 255
    torch.testing.assert_close(colour.hue(every.clone(), torch.zeros(1)), every, rtol=0, atol=1e-6)
    torch.testing.assert_close(colour.hue(every.clone(), torch.ones(1)), every, rtol=0, atol=2e-6)


def test_grey_is_torchvision_s_luma_in_three_channels():
    x, on_B = canvas(8), torch.arange(8) % 3 != 0
    found = coloured(x, grey=on_B)
    greyed = tv.rgb_to_grayscale(scale(x), num_output_channels=3)
    torch.testing.assert_close(
        found, torch.where(on_B[:, None, None, None], greyed, scale(x)), rtol=0, atol=STEP
    )
    assert found[on_B][:, 0].equal(found[on_B][:, 2])


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_torchvision_s_gaussian_with_each_image_s_own_sigma(channels):
    x, on_B = canvas(8, channels, 40, 40), torch.arange(8) != 5
    sigmas = [0.1, 0.3, 0.7, 1.0, 1.3, 1.6, 1.9, 2.0]
    found = coloured(x, blur=on_B, sigma=torch.tensor(sigmas))
    for i, (image, sigma) in enumerate(zip(scale(x), sigmas, strict=True)):
        # A kernel to 3 σ of the image's own σ, and the one that covers the largest σ.
        for kernel, tolerance in ((2 * math.ceil(3 * sigma) + 1, 1e-6), (13, STEP / 4)):
            expected = (
                tv.gaussian_blur(image, [kernel, kernel], [sigma, sigma]) if on_B[i] else image
            )
            torch.testing.assert_close(found[i], expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("side", [1, 2, 3, 7, 12])
def test_blur_of_a_view_smaller_than_the_kernel_takes_the_largest_kernel_that_fits(side):
    x = canvas(2, 3, 24, 24)[:, :, 8 : 8 + side, 8 : 8 + side]
    kernel = max(k for k in range(1, 14, 2) if k // 2 < side)
    found = coloured(x, blur=ALL[:2], sigma=torch.tensor([0.6, 2.0]))
    expected = [
        tv.gaussian_blur(p, [kernel] * 2, [s, s]) for p, s in zip(scale(x), (0.6, 2.0), strict=True)
    ]
    torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-6)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=STEP / 4)


@pytest.mark.parametrize("channels", [1, 3])
def test_solarize_is_torchvision_s_on_every_byte(channels):
    every_byte = (
        torch.arange(256, dtype=torch.uint8)
        .reshape(1, 1, 16, 16)
        .expand(2, channels, -1, -1)
        .contiguous()
    )
    found = coloured(every_byte, solarize=torch.tensor([True, False]))
    assert (found[0] * 255).round().to(torch.uint8).equal(tv.solarize(every_byte[0], 128))
    assert found[1].equal(scale(every_byte)[1])


def test_a_fixed_order_is_that_of_the_names_and_changes_no_other_draw():
    drawn, fixed = (
        Symmetric(order=o).draws(torch.arange(64), 0, 0, range(2), 24, 24)
        for o in ("drawn", "fixed")
    )
    assert (fixed["order"] == torch.arange(4)).all()
    assert (drawn["order"] != torch.arange(4)).any()
    assert all(fixed[name].equal(drawn[name]) for name in drawn.keys() - {"order"})


def test_what_is_not_drawn_leaves_the_image_as_it_is():
    assert coloured(canvas(8)).equal(scale(canvas(8)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_the_views_resampling_is_torchvision_s_on_bytes_and_the_device_s_is_near_it(channels, mode):
    x, boxes = canvas(30, channels, 40, 56), torch.tensor(random_boxes(30, 40, 56, seed=channels))
    flip = torch.arange(30) % 2 == 0
    off = torch.zeros(30, dtype=torch.bool)
    drawn = {
        "box": boxes,
        "flip": flip,
        "jitter": off,
        "grey": off,
        "blur": off,
        "solarize": off,
        "sigma": torch.ones(30),
    }
    drawn |= {
        "factors": torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(30, 4),
        "order": torch.arange(4).expand(30, 4),
    }
    form = ViewFormat((16, 16), mode, 2.0, (0.0,) * channels, (1.0,) * channels)
    found = fused.make(x, {name: value[None] for name, value in drawn.items()}, form)[0]
    for i, box in enumerate(boxes.tolist()):
        expected = tv.resized_crop(x[i], *box, [16, 16], interpolation=MODES[mode], antialias=True)
        expected = tv.horizontal_flip(expected) if flip[i] else expected
        assert (found[i] * 255).round().to(torch.uint8).equal(expected)
    device = crop_resize(scale(x), boxes, 16, flip_B=flip, interpolation=mode)
    torch.testing.assert_close(device, found, rtol=0, atol=2 * STEP)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_is_torchvision_s(channels):
    x = images(3, channels)
    expected = tv.normalize(x, list(MEAN[:channels]), list(STD[:channels]))
    torch.testing.assert_close(
        normalise(x, MEAN[:channels], STD[:channels]), expected, rtol=0, atol=1e-6
    )


def test_scale_takes_every_byte_to_its_share_of_255():
    assert scale(torch.arange(256, dtype=torch.uint8)).tolist() == pytest.approx(
        [b / 255 for b in range(256)]
    )


# --- a whole view ---------------------------------------------------------------------------------


def naive_view(way, x, key, ids, i, size):
    """One sample's view by torchvision alone, from the parameters the view says it draws; is it to
    be solarized?
    """
    p = {name: value[i] for name, value in parameters(way, ids, key, *x.shape[1:]).items()}
    y = tv.resized_crop(
        x, *p["box"].tolist(), [size, size], interpolation=MODES[way.interpolation], antialias=True
    )
    y = scale(tv.horizontal_flip(y) if p["flip"] else y)
    y = jittered_by_torchvision(y, p["factors"].tolist(), p["order"].tolist()) if p["jitter"] else y
    if p["grey"]:
        y = tv.rgb_to_grayscale(y, num_output_channels=y.shape[0])
    if p["blur"]:
        kernel = 2 * math.ceil(3 * way.blur_sigma[1]) + 1
        y = tv.gaussian_blur(y, [kernel, kernel], [float(p["sigma"])] * 2)
    return y, p["solarize"]


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("shape", [(3, 24, 40), (1, 24, 40), (3, 8, 8)])
def test_a_view_is_torchvision_s_operations_in_the_papers_order(name, shape):
    way, ids_B = WAYS[name], torch.arange(40)
    x = canvas(40, *shape)
    for v in range(2):
        for i, found in enumerate(one_view(way, x, ids_B, (0, 0, v))):
            expected, solarized = naive_view(way, x[i], (0, 0, v), ids_B, i, 16)
            if (
                solarized
            ):  # a pixel within the rounding of the threshold may fall on either side of it
                sure = (expected - 128 / 255).abs() > STEP
                expected = torch.where(expected < 128 / 255, expected, 1 - expected)[sure]
                found = found[sure]
            torch.testing.assert_close(found, expected, rtol=0, atol=STEP)


def test_every_operation_of_a_view_happens_and_is_omitted_in_the_samples_tested():
    for v in range(2):
        p = parameters(WAYS["symmetric"], torch.arange(40), (0, 0, v), 24, 40)
        for name in ("flip", "jitter", "grey", "blur", "solarize"):
            assert 0 < int(p[name].sum()) < 40, name


@pytest.mark.parametrize("name", WAYS)
def test_a_sample_s_view_depends_on_no_batch_mate_no_order_and_no_rank(name):
    way, x, ids_B = WAYS[name], canvas(32, 3, 24, 30), torch.arange(32) * 1009 + 5
    whole = views(way, x, ids_B)
    order_B = torch.randperm(32, generator=torch.Generator().manual_seed(4))
    shuffled = views(way, x[order_B], ids_B[order_B])
    halves = [views(way, x[half], ids_B[half]) for half in (slice(0, 16), slice(16, 32))]
    strided = [views(way, x[r::2], ids_B[r::2]) for r in range(2)]
    for v in range(2):
        torch.testing.assert_close(shuffled[v], whole[v][order_B], rtol=0, atol=1e-6)
        torch.testing.assert_close(torch.cat([h[v] for h in halves]), whole[v], rtol=0, atol=1e-6)
        for r in range(2):
            torch.testing.assert_close(strided[r][v], whole[v][r::2], rtol=0, atol=1e-6)
        for i in (0, 7, 31):
            alone = views(way, x[i : i + 1], ids_B[i : i + 1])[v][0]
            torch.testing.assert_close(alone, whole[v][i], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", WAYS)
def test_views_repeat_bit_for_bit_and_leave_the_canvas_alone(name):
    x, ids_B = canvas(8), torch.arange(8)
    before = x.clone()
    first, again = views(WAYS[name], x, ids_B), views(WAYS[name], x, ids_B)
    assert all(a.equal(b) for a, b in zip(first, again, strict=True))
    assert x.equal(before)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_in_bfloat16_are_the_rounded_ones_and_all_are_channels_last(channels):
    x, ids_B, how = (
        canvas(8, channels),
        torch.arange(8),
        {"mean": MEAN[:channels], "std": STD[:channels]},
    )
    exact, rounded = (
        Asymmetric()(x, ids_B, seed=3, epoch=1, size=16, dtype=dtype, **how)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for one, other in zip(exact, rounded, strict=True):
        assert one.bfloat16().equal(other)
        assert one.stride() == other.stride() == (256 * channels, 1, 16 * channels, channels)


def test_views_read_no_global_random_state():
    x, ids_B = canvas(8), torch.arange(8)
    torch.manual_seed(0)
    first = views(Asymmetric(), x, ids_B)
    torch.manual_seed(1)
    assert all(a.equal(b) for a, b in zip(first, views(Asymmetric(), x, ids_B), strict=True))


def test_every_parameter_differs_by_view_epoch_seed_and_sample():
    way, ids_B = Symmetric(solarize=0.5, grey=0.5), torch.arange(64)
    made = [
        parameters(way, ids_B, key, 24, 30) for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    ]
    made.append(parameters(way, ids_B + 64, (0, 0, 0), 24, 30))
    for name in made[0]:
        for one, other in itertools.combinations(made, 2):
            assert not one[name].equal(other[name]), name


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("shape", [(24, 24), (24, 60), (60, 24), (8, 8), (1, 1), (1, 40)])
@pytest.mark.parametrize("name", WAYS)
def test_views_are_finite_and_square_for_any_canvas(name, channels, shape):
    made = views(WAYS[name], canvas(16, channels, *shape), torch.arange(16), size=32)
    assert [v.shape for v in made] == [(16, channels, 32, 32)] * 2
    low, high = (
        torch.tensor([(end - m) / s for m, s in zip(MEAN, STD, strict=True)][:channels])
        for end in (0, 1)
    )
    for v in made:
        assert v.dtype == torch.float32
        assert v.isfinite().all()
        assert (v >= low[:, None, None] - 1e-5).all()
        assert (v <= high[:, None, None] + 1e-5).all()


@pytest.mark.parametrize("n", [1, 3])
def test_as_many_views_as_asked_each_with_draws_of_its_own(n):
    made = views(Symmetric(views=n), canvas(4), torch.arange(4))
    assert len(made) == n
    assert all(not a.equal(b) for a, b in itertools.combinations(made, 2))


@pytest.mark.parametrize(
    ("cut", "channels"),
    [
        (True, 1),
        pytest.param(False, 3, marks=pytest.mark.slow),
        pytest.param(False, 1, marks=pytest.mark.slow),
        pytest.param(True, 3, marks=pytest.mark.slow),
    ],
)
def test_the_graph_for_torch_compile_makes_the_same_views_without_a_break(cut, channels):
    x, ids_B, law = canvas(16, channels, 24, 24), torch.arange(16), Symmetric(solarize=0.3)
    images = [x[:, :, :16, :16], x[:, :, 4:20, 8:24]] if cut else x
    expected = (
        views(law, images, ids_B)
        if not cut
        else law(images, ids_B, seed=3, epoch=1, size=16, mean=MEAN[:channels], std=STD[:channels])
    )
    drawn = law.draws(ids_B, 3, 1, range(2), 24, 24)
    form = ViewFormat((16, 16), "bicubic", 2.0, MEAN[:channels], STD[:channels])
    torch._dynamo.reset()
    graph = torch.compile(fused.graph, fullgraph=True, dynamic=False, backend="aot_eager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "_compiled", lambda: graph)
        made = fused.make_compiled(images, drawn, form)
    for found, view in zip(made, expected, strict=True):
        assert found.stride() == view.stride()
        apart = (found - view).abs()
        # A pixel within the rounding of the resampling may fall on either side of solarization's
        # threshold.
        assert float((apart > 2 * STEP / min(STD)).float().mean()) < 0.002
    assert graph is not fused.graph


# --- in distribution ------------------------------------------------------------------------------


def torchvision_boxes(height, width, law, ratio):
    image = torch.empty(1, height, width)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.tensor(
            [RandomResizedCrop.get_params(image, list(law), list(ratio)) for _ in range(DRAWS)]
        )


@pytest.mark.parametrize(
    ("height", "width", "law", "ratio"),
    [
        (500, 375, (0.08, 1.0), (3 / 4, 4 / 3)),
        (224, 224, (0.2, 1.0), (3 / 4, 4 / 3)),
        (100, 400, (0.5, 1.0), (3 / 4, 4 / 3)),
    ],
)
def test_boxes_follow_torchvision_s_law(height, width, law, ratio):
    theirs = torchvision_boxes(height, width, law, ratio).double()
    ours = parameters(
        Symmetric(crop=law, aspect=ratio), torch.arange(DRAWS), (0, 0, 0), height, width
    )["box"].double()
    what = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "aspect": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "top share": lambda b: b[:, 0] / (height - b[:, 2]).clamp(min=1),
        "left share": lambda b: b[:, 1] / (width - b[:, 3]).clamp(min=1),
    }
    for name, of in what.items():
        assert stats.ks_2samp(of(ours).numpy(), of(theirs).numpy()).pvalue > CHANCE, name


@pytest.mark.parametrize(("height", "width"), [(10, 400), (400, 10), (1, 1)])
def test_where_no_box_fits_the_largest_centred_one_is_torchvision_s(height, width):
    law, ratio = (1.0, 1.0), (3 / 4, 4 / 3)
    way = Symmetric(crop=law, aspect=ratio)
    ours = {
        tuple(b)
        for b in parameters(way, torch.arange(50), (0, 0, 0), height, width)["box"].tolist()
    }
    assert ours == {
        tuple(RandomResizedCrop.get_params(torch.empty(1, height, width), [1.0, 1.0], list(ratio)))
    }


def test_boxes_lie_inside_every_canvas():
    for height, width in itertools.product((1, 2, 3, 8, 50), repeat=2):
        drawn = parameters(
            Symmetric(aspect=(0.5, 2.0)), torch.arange(500), (1, 0, 0), height, width
        )
        top, left, h, w = drawn["box"].unbind(1)
        assert min(top.min(), left.min()) >= 0
        assert min(h.min(), w.min()) >= 1
        assert (top + h).max() <= height
        assert (left + w).max() <= width


def test_boxes_of_images_of_many_sizes_are_those_of_each_size_alone():
    sides = torch.tensor([[24, 40], [7, 90], [500, 375], [1, 1]]).repeat(25, 1)
    ids = torch.arange(100)
    together = parameters(Symmetric(), ids, (0, 0, 0), sides[:, 0], sides[:, 1])["box"]
    for i, (height, width) in enumerate(sides.tolist()):
        assert together[i].equal(
            parameters(Symmetric(), ids[i : i + 1], (0, 0, 0), height, width)["box"][0]
        )


def test_each_number_is_drawn_by_its_name_view_and_sample():
    """The law of draws as one would write it without vectors."""
    way, ids = Asymmetric(), torch.tensor([5, 1 << 40])
    drawn = way.draws(ids, 3, 7, range(2), 24, 24)
    for v in range(2):
        assert drawn["flip"][v].equal(rng.uniform(3, 7, v, "flip", ids) < 0.5)
        sigma = 0.1 + (2.0 - 0.1) * rng.uniform(3, 7, v, "sigma", ids)
        assert drawn["sigma"][v].equal(sigma)
        order = rng.uniform(3, 7, v, "order", ids[:, None], torch.arange(4)[None]).argsort(
            dim=1, stable=True
        )
        assert drawn["order"][v].equal(order)


def test_factors_and_orders_follow_torchvision_s_color_jitter():
    way = Symmetric()
    p = parameters(way, torch.arange(DRAWS), (0, 0, 0), 24, 24)
    law = ColorJitter(way.brightness, way.contrast, way.saturation, way.hue)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        drawn = [
            ColorJitter.get_params(law.brightness, law.contrast, law.saturation, law.hue)
            for _ in range(DRAWS)
        ]
    for o, operation in enumerate(colour.OPERATIONS):
        theirs = [d[1 + o] for d in drawn]
        assert stats.ks_2samp(p["factors"][:, o].numpy(), theirs).pvalue > CHANCE, operation
    every = list(itertools.permutations(range(4)))
    ours, theirs = (
        [tuple(map(int, row)) for row in rows]
        for rows in (p["order"].tolist(), [d[0] for d in drawn])
    )
    assert (
        stats.chi2_contingency([[rows.count(o) for o in every] for rows in (ours, theirs)]).pvalue
        > CHANCE
    )


def test_sigma_is_uniform_over_its_range():
    p = parameters(Symmetric(blur_sigma=(0.1, 2.0)), torch.arange(DRAWS), (0, 0, 0), 24, 24)
    assert stats.kstest(p["sigma"].numpy(), "uniform", (0.1, 1.9)).pvalue > CHANCE


RATES = {
    "symmetric": (
        Symmetric(),
        {"flip": (0.5, 0.5), "jitter": (0.8, 0.8), "grey": (0.2, 0.2), "blur": (0.5, 0.5)},
    ),
    "asymmetric": (
        Asymmetric(),
        {"flip": (0.5, 0.5), "jitter": (0.8, 0.8), "grey": (0.2, 0.2), "blur": (1.0, 0.1)},
    ),
}
SOLARIZE = {"symmetric": (0.0, 0.0), "asymmetric": (0.0, 0.2)}


@pytest.mark.parametrize("name", RATES)
def test_each_view_does_each_thing_as_often_as_the_paper_says(name):
    way, rates = RATES[name]
    for operation, per_view in {**rates, "solarize": SOLARIZE[name]}.items():
        for v, rate in enumerate(per_view):
            times = int(parameters(way, torch.arange(DRAWS), (0, 0, v), 24, 24)[operation].sum())
            if rate in (0.0, 1.0):
                assert times == rate * DRAWS, operation
            else:
                assert stats.binomtest(times, DRAWS, rate).pvalue > CHANCE, operation


def test_what_happens_to_a_sample_is_drawn_independently():
    p = parameters(Symmetric(solarize=0.5, grey=0.5), torch.arange(DRAWS), (0, 0, 0), 64, 64)
    top, left, h, w = p["box"].double().unbind(1)
    rows = {
        name: p[name].double() for name in ("flip", "jitter", "grey", "blur", "solarize", "sigma")
    }
    rows |= {"area": h * w, "aspect": w.log() - h.log()}
    rows |= {"top": top / (64 - h).clamp(min=1), "left": left / (64 - w).clamp(min=1)}
    rows |= {f"factor {o}": p["factors"][:, o].double() for o in range(4)}
    # A box that nearly fills its canvas has nowhere to go, and only some aspects fit: sizes and
    # places of small ones.
    small = h * w < 0.5 * 64 * 64
    for one, other in itertools.combinations(rows, 2):
        apart = stats.pearsonr(rows[one][small].numpy(), rows[other][small].numpy())
        assert apart.pvalue > CHANCE, (one, other)


# --- crops made elsewhere -------------------------------------------------------------------------

PALE = {"jitter": 0.0, "grey": 0.0, "blur": 0.0, "solarize": 0.0}


@pytest.mark.parametrize(
    "way", [Symmetric(), MultiCrop(small=2, small_size=8), Symmetric(**PALE, views=3)]
)
@pytest.mark.parametrize("side", [16, (16, 10)])
def test_crops_made_elsewhere_by_the_law_s_boxes_give_the_views_of_the_canvas(way, side):
    x, ids_B = canvas(6, 3, 24, 30), torch.arange(6)
    sides = {"heights_B": torch.full((6,), 24), "widths_B": torch.full((6,), 30)}
    boxes, sizes = way.boxes(ids_B, seed=3, epoch=1, **sides), way.sizes(side)
    assert len(boxes) == len(sizes) == way.total
    how = {"interpolation": MODES["bicubic"], "antialias": True}
    crops = [
        torch.stack(
            [
                tv.resized_crop(p, *box, list(size), **how)
                for p, box in zip(x, box_B4.tolist(), strict=True)
            ]
        )
        for box_B4, size in zip(boxes, sizes, strict=True)
    ]
    for one, other in zip(
        views(way, x, ids_B, size=side), views(way, crops, ids_B, size=side), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grey", "blur", "solarize"])
@pytest.mark.parametrize(("n", "values"), [(2, (0.1,)), (2, (0.1, 0.2, 0.3)), (3, (0.1, 0.2))])
def test_as_many_chances_as_views_or_one_for_all(name, n, values):
    with pytest.raises(ValueError, match=rf"^{name} has {len(values)} values for {n} views$"):
        Symmetric(views=n, **{name: values})
    assert Symmetric(views=n, **{name: (0.5,) * n})


@pytest.mark.parametrize("policy", [Symmetric(solarize=0.3), MultiCrop(small=3, small_size=8)])
def test_the_views_of_a_batch_are_the_policy_s_for_a_canvas_and_for_crops(policy):
    x, ids = canvas(4), torch.arange(10, 14)
    how = {"size": 16, "mean": MEAN, "std": STD, "seed": 3, "device": torch.device("cpu")}
    made = make(policy, x, ids, 1, **how)
    assert all(map(torch.equal, made, views(policy, x, ids)))
    crops = [canvas(4, height=h, width=w) for h, w in policy.sizes(16)]
    assert all(map(torch.equal, make(policy, crops, ids, 1, **how), views(policy, crops, ids)))


def test_asymmetric_views_are_two_unless_all_chances_are_given():
    with pytest.raises(ValueError, match=r"^blur has 2 values for 3 views$"):
        Asymmetric(views=3)
    assert (
        len(
            views(
                Asymmetric(views=3, blur=0.5, solarize=(0.0, 0.2, 1.0)), canvas(2), torch.arange(2)
            )
        )
        == 3
    )


@pytest.mark.parametrize("name", ["crop", "aspect", "blur_sigma"])
def test_a_range_with_its_larger_value_first_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name} \[0\.9, 0\.5\] has its larger value first$"):
        Symmetric(**{name: (0.9, 0.5)})
    assert Symmetric(**{name: (0.5, 0.5)})


def test_per_view_chances_are_those_of_the_view():
    way = Symmetric(views=3, solarize=(0.0, 1.0, 0.0), grey=(1.0, 0.0, 0.0), blur=(0.0, 0.0, 1.0))
    made = [parameters(way, torch.arange(9), (0, 0, v), 24, 24) for v in range(3)]
    for name, marked in (("solarize", 1), ("grey", 0), ("blur", 2)):
        assert [bool(p[name].all()) for p in made] == [v == marked for v in range(3)]
        assert [bool(p[name].any()) for p in made] == [v == marked for v in range(3)]
