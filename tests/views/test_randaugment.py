"""Laws of RandAugment: each operation is torchvision's, each image has its own, drawn evenly."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from scipy import stats
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandAugment

from lookalike.views import Classification, Symmetric, randaugment
from lookalike.views.fused import in_unit
from lookalike.views.randaugment import LEVELS, OPERATIONS, SIGNED

HEIGHT, WIDTH = 40, 56
FILL = (0.2, 0.4, 0.6)
STRENGTHS = [0.0, 0.1, 0.3, -0.3, 0.7, -0.95, 1.0, -1.0]
CHANCE = 1e-5


def canvas(batch: int = 8, channels: int = 3) -> Tensor:
    """Smooth images with a little noise and a flat one, uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch, channels, 5, 7, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear") * 200
    x = x + 30 * torch.rand(x.shape, generator=generator)
    x[-1] = 77
    return x.round().to(torch.uint8)


def by_ours(x: Tensor, name: str, strengths: list[float]) -> Tensor:
    operation_N1 = torch.full((len(x), 1), OPERATIONS.index(name))
    fill = FILL[: x.shape[1]]
    return randaugment.augmented(in_unit(x), operation_N1, torch.tensor(strengths)[:, None], fill)


def by_torchvision(x: Tensor, name: str, strength: float) -> Tensor:
    """Its operation on the bytes of one image, by its list of ranges."""
    channels, height, width = x.shape
    how = {
        "interpolation": InterpolationMode.BILINEAR,
        "fill": [255 * value for value in FILL[:channels]],
    }

    def shear(across: float, along: float) -> Tensor:
        angles = [math.degrees(math.atan(0.3 * value)) for value in (across, along)]
        return tv.affine(x, 0.0, [0, 0], 1.0, angles, center=[0, 0], **how)

    def move(right: float, down: float) -> Tensor:
        by = [int(150 / 331 * width * right), int(150 / 331 * height * down)]
        return tv.affine(x, 0.0, by, 1.0, [0.0, 0.0], **how)

    factor = 1 + 0.9 * strength
    return {
        "identity": lambda: x,
        "shear_x": lambda: shear(strength, 0),
        "shear_y": lambda: shear(0, strength),
        "translate_x": lambda: move(strength, 0),
        "translate_y": lambda: move(0, strength),
        "rotate": lambda: tv.rotate(x, 30 * strength, **how),
        "brightness": lambda: tv.adjust_brightness(x, factor),
        "color": lambda: tv.adjust_saturation(x, factor),
        "contrast": lambda: tv.adjust_contrast(x, factor),
        "sharpness": lambda: tv.adjust_sharpness(x, factor),
        "posterize": lambda: tv.posterize(x, 8 - round(4 * abs(strength))),
        "solarize": lambda: tv.solarize(x, 255 * (1 - abs(strength))),
        "autocontrast": lambda: tv.autocontrast(x),
        "equalize": lambda: tv.equalize(x),
    }[name]()


def half_covered(name: str, strengths: list[float]) -> Tensor:
    """(N, 1, H, W): where a pixel comes in part from outside; torchvision counts the image's part
    twice there, so that such a pixel is darker than either.
    """
    white = torch.full((len(strengths), 1, HEIGHT, WIDTH), 255, dtype=torch.uint8)
    operation_N1 = torch.full((len(white), 1), OPERATIONS.index(name))
    share = randaugment.augmented(
        in_unit(white), operation_N1, torch.tensor(strengths)[:, None], (0.0,)
    )
    return (share > 0.005) & (share < 0.995)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_is_torchvision_s_on_bytes_with_each_image_s_own_strength(name, channels):
    x = canvas(len(STRENGTHS), channels)
    found = 255 * by_ours(x, name, STRENGTHS)
    expected = torch.stack(
        [by_torchvision(image, name, s) for image, s in zip(x, STRENGTHS, strict=True)]
    )
    apart = (found - expected.float()).abs()
    if name in randaugment.GEOMETRIC:
        edge = half_covered(name, STRENGTHS)
        assert edge.float().mean() < 0.05
        apart = apart * ~edge
    assert apart.max() <= 2
    if name not in ("identity", "autocontrast") and not (name == "color" and channels == 1):
        assert (found - 255 * in_unit(x)).abs().max() > 10


def test_a_device_translates_as_the_host_does():
    x = canvas(len(STRENGTHS))
    for name in ("translate_x", "translate_y"):
        operation_N = torch.full((len(x),), OPERATIONS.index(name))
        matrix_N23 = randaugment.matrices(operation_N, torch.tensor(STRENGTHS), (HEIGHT, WIDTH))
        there = randaugment.warp(in_unit(x), matrix_N23, torch.tensor(FILL)[:, None, None])
        torch.testing.assert_close(by_ours(x, name, STRENGTHS), there, rtol=0, atol=1e-4)


def test_the_ranges_are_those_of_torchvision_s_list_at_every_level():
    levels = RandAugment(num_magnitude_bins=LEVELS + 1)._augmentation_space(LEVELS + 1, (331, 331))
    assert [name.lower() for name in levels] == [name.replace("_", "") for name in OPERATIONS]
    assert {name.lower() for name, (_, signed) in levels.items() if signed} == {
        name.replace("_", "") for name in SIGNED
    }
    for name, most in (("ShearX", 0.3), ("TranslateY", 150), ("Rotate", 30), ("Sharpness", 0.9)):
        assert levels[name][0][-1].item() == pytest.approx(most)
    bits = [8 - round(4 * level / LEVELS) for level in range(LEVELS + 1)]
    assert levels["Posterize"][0].tolist() == bits


def test_operations_of_an_image_follow_one_another_and_touch_no_other_image():
    x = canvas(6)
    generator = torch.Generator().manual_seed(1)
    operation_NK = torch.randint(len(OPERATIONS), (6, 3), generator=generator)
    strength_NK = 2 * torch.rand(6, 3, generator=generator) - 1
    together = randaugment.augmented(in_unit(x), operation_NK, strength_NK, FILL)
    for i in range(6):
        one = in_unit(x[i : i + 1])
        for k in range(3):
            part = (slice(i, i + 1), slice(k, k + 1))
            one = randaugment.augmented(one, operation_NK[part], strength_NK[part], FILL)
        torch.testing.assert_close(together[i], one[0], rtol=0, atol=1e-5)


def test_operations_and_signs_are_drawn_evenly_and_independently():
    drawn = Classification(randaugment=2, magnitude=12).draws(
        torch.arange(10_000), 0, 0, range(1), 24, 24
    )
    operation_NK, strength_NK = drawn["operations"][0], drawn["strengths"][0]
    counts = torch.stack([torch.bincount(o, minlength=14) for o in operation_NK.unbind(1)])
    assert all(stats.chisquare(row.numpy()).pvalue > CHANCE for row in counts)
    pairs = torch.bincount(operation_NK[:, 0] * 14 + operation_NK[:, 1], minlength=196)
    assert stats.chi2_contingency(pairs.view(14, 14).numpy()).pvalue > CHANCE
    assert strength_NK.abs().unique().tolist() == pytest.approx([12 / LEVELS])
    assert stats.binomtest(int((strength_NK > 0).sum()), 20_000).pvalue > CHANCE
    signed = torch.bincount(operation_NK[:, 0] * 2 + (strength_NK[:, 0] > 0), minlength=28)
    assert stats.chi2_contingency(signed.view(14, 2).numpy()).pvalue > CHANCE


def test_what_leaves_the_view_makes_room_for_the_mean_that_normalises():
    x, ids = torch.full((64, 3, 24, 24), 255, dtype=torch.uint8), torch.arange(64)
    policy = Symmetric(views=1, jitter=0.0, grey=0.0, blur=0.0, randaugment=1, magnitude=30)
    how = {"seed": 0, "epoch": 0, "size": 24, "mean": (0.5, 0.4, 0.3), "std": (0.25, 0.25, 0.25)}
    (made,) = policy(x, ids, **how)
    drawn = policy.draws(ids, 0, 0, range(1), 24, 24)["operations"][0, :, 0]
    moved = torch.isin(drawn, torch.tensor([OPERATIONS.index("translate_x")]))
    assert 0 < int(moved.sum()) < 64
    empty = made[moved].abs().amax(dim=1) < 1e-3
    assert empty.float().mean().item() == pytest.approx(int(150 / 331 * 24) / 24)


def test_nothing_is_changed_by_magnitude_nought_but_what_has_none():
    x, keep = canvas(8), ("posterize", "solarize", "autocontrast", "equalize")
    for name in OPERATIONS:
        if name not in keep:
            found = by_ours(x, name, [0.0] * 8)
            torch.testing.assert_close(found, in_unit(x), rtol=0, atol=1e-4, msg=name)
