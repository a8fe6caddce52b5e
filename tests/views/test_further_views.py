"""Laws of padding, erasing and the policies of fine-tuning; what was drawn before is drawn now."""

import hashlib
import itertools
from dataclasses import fields, replace

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from kornia.augmentation import AugmentationSequential
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomErasing
from torchvision.transforms.functional import erase as torchvision_erase

from lookalike import rng
from lookalike.experiment import VIEW
from lookalike.views import (
    VIEWS,
    Asymmetric,
    Classification,
    MultiCrop,
    Reidentification,
    Symmetric,
)
from lookalike.views.augmentation import FusedView
from lookalike.views.erasing import _masked, erase, erase_boxes
from lookalike.views.fused import in_unit
from lookalike.views.resample import _gathered, shifted

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CHANCE = 1e-5
DRAWS = 10_000
PLAIN = {"views": 1, "crop": "whole", "flip": 0.0, "jitter": 0.0, "grey": 0.0, "blur": 0.0}
EVERYTHING = Symmetric(
    views=2, pad=3, pad_with="reflect", randaugment=2, erase=0.5, erase_with="random"
)


def canvas(batch: int = 8, height: int = 24, width: int = 30) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(batch, 3, height, width, generator=generator) * 255).to(torch.uint8)


def views(policy, x, ids, *, seed=3, epoch=7, size=16):
    return policy(x, ids, seed=seed, epoch=epoch, size=size, mean=MEAN, std=STD)


# --- what was there before ------------------------------------------------------------------------

# Recorded before these keys were there: sha256 of what is drawn, and sums of the views' numbers.
BEFORE = {
    "symmetric": (
        Symmetric(solarize=0.3, channel_drop=0.5),
        ["23cd39bb605ca3b6", "4b7ba6fb86c92485", "7d324fac4a6d323d", "8a1fd4ffd8764a37"],
        [-512.9106, -2033.3848],
    ),
    "asymmetric": (
        Asymmetric(),
        ["23cd39bb605ca3b6", "4b7ba6fb86c92485", "7d324fac4a6d323d", "8a1fd4ffd8764a37"],
        [1052.2048, -307.8663],
    ),
    "multi_crop": (
        MultiCrop(small=2, small_size=8),
        ["a4ae5eec71092cd9", "4b7ba6fb86c92485", "7d324fac4a6d323d", "8a1fd4ffd8764a37"],
        [1166.2458, -306.1774, 116.5202, 415.1267],
    ),
}


def hashed(values: Tensor) -> str:
    return hashlib.sha256(values.double().contiguous().numpy().tobytes()).hexdigest()[:16]


@pytest.mark.parametrize("name", BEFORE)
def test_what_a_policy_drew_before_it_draws_now(name):
    policy, draws, sums = BEFORE[name]
    ids = torch.arange(6) * 1009 + 5
    drawn = policy.draws(ids, 3, 7, range(2), 24, 30)
    assert [hashed(drawn[key]) for key in ("box", "factors", "order", "sigma")] == draws
    assert [float(v.double().sum()) for v in views(policy, canvas(6), ids)] == pytest.approx(
        sums, abs=0.01
    )
    more = replace(policy, pad=4, randaugment=2, erase=0.5)
    found = more.draws(ids, 3, 7, range(2), 24, 30)
    assert all(found[key].equal(value) for key, value in drawn.items())
    assert set(found) - set(drawn) == {
        *("shift", "operations", "strengths"),
        *("erase", "erase_area", "erase_aspect", "erase_place", "erase_word"),
    }


# --- all together ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [EVERYTHING, Classification(erase=0.5), Reidentification(pad=3)])
def test_a_view_depends_on_no_batch_mate_no_order_and_no_rank(policy):
    x, ids = canvas(16), torch.arange(16) * 1009 + 5
    whole = views(policy, x, ids)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(4))
    shuffled = views(policy, x[order], ids[order])
    strided = [views(policy, x[r::2], ids[r::2]) for r in range(2)]
    for v in range(policy.total):
        torch.testing.assert_close(shuffled[v], whole[v][order], rtol=0, atol=2e-5)
        for r in range(2):
            torch.testing.assert_close(strided[r][v], whole[v][r::2], rtol=0, atol=2e-5)
    assert all(map(torch.equal, whole, views(policy, x, ids)))
    torch.manual_seed(5)
    assert all(map(torch.equal, whole, views(policy, x, ids)))


@pytest.mark.parametrize("policy", [EVERYTHING, Classification(erase=0.5), Reidentification(pad=3)])
def test_crops_of_the_host_become_the_views_of_the_canvas(policy):
    x, ids = canvas(8), torch.arange(8)
    sides = {"heights_B": torch.full((8,), 24), "widths_B": torch.full((8,), 30)}
    boxes = policy.boxes(ids, seed=3, epoch=7, **sides)
    how = {"interpolation": tv.InterpolationMode(policy.interpolation), "antialias": True}
    crops = [
        torch.stack(
            [
                tv.resized_crop(image, *box, [16, 16], **how)
                for image, box in zip(x, box_B4.tolist(), strict=True)
            ]
        )
        for box_B4 in boxes
    ]
    for one, other in zip(views(policy, x, ids), views(policy, crops, ids), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5)


def test_every_number_differs_by_view_epoch_seed_and_sample():
    ids = torch.arange(64)
    keys = [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
    made = [
        {k: v[0] for k, v in EVERYTHING.draws(ids, s, e, range(n, n + 1), 24, 30).items()}
        for s, e, n in keys
    ]
    made.append({k: v[0] for k, v in EVERYTHING.draws(ids + 64, 0, 0, range(1), 24, 30).items()})
    for name in ("shift", "operations", "strengths", "erase", "erase_area", "erase_word"):
        for one, other in itertools.combinations(made, 2):
            assert not one[name].equal(other[name]), name


def test_the_policies_have_their_names_and_make_one_view():
    for name, kind in (("classify", Classification), ("reidentify", Reidentification)):
        assert VIEWS[name] is kind
        assert VIEW.spec(name).build() == kind()
        assert len(views(kind(pad=2), canvas(4), torch.arange(4))) == kind().total == 1


def test_a_whole_crop_is_a_plain_resize_of_any_shape():
    x, ids = canvas(4, 24, 40), torch.arange(4)
    (made,) = Symmetric(**PLAIN, interpolation="bilinear")(
        x, ids, seed=0, epoch=0, size=(32, 16), mean=(0.0,) * 3, std=(1.0,) * 3
    )
    expected = tv.resize(x, [32, 16], antialias=True)
    assert (made * 255).round().to(torch.uint8).equal(expected)


# --- padding --------------------------------------------------------------------------------------


@pytest.mark.parametrize("outside", ["zero", "reflect"])
@pytest.mark.parametrize("pad", [1, 5, 15])
def test_a_shift_is_a_padding_cropped_back(outside, pad):
    x = in_unit(canvas(12, 16, 20))
    mode = "constant" if outside == "zero" else "reflect"
    padded = torch.stack([tv.pad(image, [pad] * 4, padding_mode=mode) for image in x])
    generator = torch.Generator().manual_seed(pad)
    shift_N2 = torch.randint(-pad, pad + 1, (12, 2), generator=generator)
    shift_N2[0], shift_N2[1] = -pad, pad
    expected = torch.stack(
        [
            tv.crop(image, pad + down, pad + right, 16, 20)
            for image, (down, right) in zip(padded, shift_N2.tolist(), strict=True)
        ]
    )
    assert shifted(x.clone(), shift_N2, outside).equal(expected)
    assert _gathered(x.clone(), shift_N2, outside).equal(expected)


@pytest.mark.parametrize("outside", ["zero", "reflect"])
@pytest.mark.parametrize("side", [1, 2, 5])
def test_a_padding_wider_than_the_view_goes_on(outside, side):
    x = in_unit(canvas(4, side, side))
    shift_N2 = torch.tensor([[0, 0], [12, -7], [-12, 3], [1, 12]])
    made = shifted(x.clone(), shift_N2, outside)
    assert made[0].equal(x[0])
    assert made.isfinite().all()
    if outside == "zero":
        assert not made[1].any()
    else:
        assert made.min() >= x.min()


def test_shifts_are_even_over_all_places():
    drawn = Symmetric(pad=4).draws(torch.arange(DRAWS), 0, 0, range(1), 24, 24)["shift"][0]
    assert drawn.min() == -4
    assert drawn.max() == 4
    counts = torch.bincount((drawn[:, 0] + 4) * 9 + drawn[:, 1] + 4, minlength=81)
    assert stats.chisquare(counts.numpy()).pvalue > CHANCE


def test_in_kornia_points_follow_the_padding_and_randaugment_is_refused():
    x = torch.zeros(32, 3, 24, 24)
    x[:, :, 9:12, 12:15] = 1
    points = torch.tensor([[[13.0, 10.0]]]).expand(32, 1, 2)
    view = FusedView(Symmetric(**{**PLAIN, "flip": 0.5}, pad=6), 24)
    torch.manual_seed(0)
    made, moved = AugmentationSequential(view, data_keys=["input", "keypoints"])(x, points)
    assert len(set(moved[:, 0, 0].tolist())) > 4
    for image, (column, row) in zip(made, moved[:, 0].round().long().tolist(), strict=True):
        assert image[:, row, column].min() > 0.99
        assert image.sum() == pytest.approx(27, abs=0.01)
    with pytest.raises(ValueError, match=r"^randaugment: boxes and masks cannot follow it"):
        FusedView(Classification(), 16)


# --- erasing --------------------------------------------------------------------------------------


def erased_by(policy: Symmetric, n: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    drawn = policy.draws(torch.arange(n), 0, 0, range(1), 24, 24)
    names = ("erase_area", "erase_aspect", "erase_place")
    return erase_boxes(*(drawn[name][0] for name in names), size)


@pytest.mark.parametrize(
    ("size", "area", "aspect"),
    [((256, 128), (0.02, 0.4), (0.3, 1 / 0.3)), ((20, 90), (0.02, 0.33), (0.3, 3.3))],
)
def test_erased_boxes_follow_torchvision_s_law(size, area, aspect):
    policy = Symmetric(views=1, erase=1.0, erase_area=area, erase_aspect=aspect)
    ours, fits = erased_by(policy, DRAWS, size)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        image = torch.empty(3, *size)
        theirs = torch.tensor(
            [
                RandomErasing.get_params(image, list(area), list(aspect), [0.0])[:4]
                for _ in range(DRAWS // 4)
            ]
        )
    assert fits.all()
    top, left, h, w = ours.unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (top + h <= size[0]) & (left + w <= size[1])).all())
    what = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "height": lambda b: b[:, 2],
        "top": lambda b: b[:, 0] / (size[0] - b[:, 2] + 1),
        "left": lambda b: b[:, 1] / (size[1] - b[:, 3] + 1),
    }
    for name, of in what.items():
        one, other = of(ours.double()).numpy(), of(theirs.double()).numpy()
        assert stats.ks_2samp(one, other).pvalue > CHANCE, name


@pytest.mark.parametrize("by", ["mean", "zero"])
def test_a_box_is_erased_as_torchvision_erases_it(by):
    x, fill = in_unit(canvas(10)), (0.1, 0.5, 0.9)
    policy = Symmetric(views=1, erase=0.6)
    box_N4, fits_N = erased_by(policy, 10, (24, 30))
    on_N = policy.draws(torch.arange(10), 0, 0, range(1), 24, 24)["erase"][0] & fits_N
    assert 0 < int(on_N.sum()) < 10
    value = torch.tensor(fill if by == "mean" else (0.0, 0.0, 0.0))[:, None, None]
    expected = torch.stack(
        [
            torchvision_erase(image, *box, value) if on else image
            for image, box, on in zip(x, box_N4.tolist(), on_N.tolist(), strict=True)
        ]
    )
    words = torch.zeros(10, dtype=torch.long)
    assert erase(x.clone(), on_N, box_N4, words, by, fill).equal(expected)


@pytest.mark.parametrize("by", ["mean", "zero", "random"])
def test_a_device_erases_what_the_host_erases(by):
    box_N4, _ = erased_by(Symmetric(views=1, erase=1.0), 10, (24, 30))
    on_N, word_N = torch.arange(10) % 3 != 0, rng.bits("words", torch.arange(10))
    here = erase(in_unit(canvas(10)), on_N, box_N4, word_N, by, MEAN)
    rows = torch.nonzero(on_N).flatten()
    there = _masked(in_unit(canvas(10)), rows, box_N4[rows], word_N[rows], by, MEAN)
    assert here.equal(there)


def test_random_pixels_are_uniform_and_of_each_image_s_own():
    policy = Symmetric(**PLAIN, erase=1.0, erase_area=(0.5, 0.9), erase_with="random")
    ids = torch.arange(64)
    drawn = policy.draws(ids, 0, 0, range(1), 24, 24)
    box_N4, fits_N = erased_by(policy, 64, (24, 24))
    x = torch.full((64, 3, 24, 24), 2.0)
    made = erase(x, fits_N, box_N4, drawn["erase_word"][0], "random", MEAN)
    new = made[made < 2]
    assert len(new) == int((3 * box_N4[fits_N, 2] * box_N4[fits_N, 3]).sum())
    assert len(new.unique()) > 0.9 * len(new)
    assert stats.kstest(new.numpy(), "uniform").pvalue > CHANCE


def test_the_mean_is_nought_after_normalisation_and_the_last_of_all():
    policy = Symmetric(**{**PLAIN, "jitter": 1.0}, erase=1.0, erase_with="mean")
    (made,) = views(policy, canvas(16), torch.arange(16), size=24)
    box_N4, fits_N = erased_by_views(policy, 16, 24)
    assert fits_N.all()
    for view, (top, left, h, w) in zip(made, box_N4.tolist(), strict=True):
        assert not view[:, top : top + h, left : left + w].any()
        assert int((view == 0).all(dim=0).sum()) == h * w


def erased_by_views(policy: Symmetric, n: int, side: int) -> tuple[Tensor, Tensor]:
    drawn = policy.draws(torch.arange(n), 3, 7, range(1), 24, 30)
    names = ("erase_area", "erase_aspect", "erase_place")
    return erase_boxes(*(drawn[name][0] for name in names), (side, side))


def test_views_are_erased_as_often_as_asked_each_by_its_own_chance():
    policy = Symmetric(views=3, erase=(0.0, 0.25, 1.0))
    drawn = policy.draws(torch.arange(DRAWS), 0, 0, range(3), 24, 24)["erase"].sum(dim=1)
    assert drawn[0] == 0
    assert drawn[2] == DRAWS
    assert stats.binomtest(int(drawn[1]), DRAWS, 0.25).pvalue > CHANCE


def test_where_no_box_fits_nothing_is_erased():
    area_A, aspect_A = torch.full((2, 10), 0.9), torch.tensor([[1.0] * 10, [8.0] * 10])
    _, fits = erase_boxes(area_A, aspect_A, torch.zeros(2, 2), (12, 12))
    assert fits.tolist() == [True, False]
    assert not erase_boxes(area_A, aspect_A, torch.zeros(2, 2), (1, 1))[1].any()
    # Nor all of the view.
    assert not erase_boxes(torch.ones(2, 10), torch.ones(2, 10), torch.zeros(2, 2), (9, 9))[1].any()


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pad", "randaugment", "erase"])
def test_a_fixed_graph_refuses_what_has_no_place_in_it(name):
    with pytest.raises(ValueError, match=rf"^compile: {name} has no place in one fixed graph"):
        Symmetric(compile=True, **{name: 1})


def test_ranges_and_numbers_of_chances_are_checked():
    with pytest.raises(ValueError, match=r"^erase_area \[0\.4, 0\.1\] has its larger value first"):
        Symmetric(erase_area=(0.4, 0.1))
    with pytest.raises(ValueError, match=r"^erase has 3 values for 2 views$"):
        Symmetric(erase=(0.1, 0.2, 0.3))


def test_every_key_of_a_policy_is_the_same_key_in_all():
    known = {f.name: f.type for f in fields(Symmetric)}
    for policy in VIEWS.values():
        own = {f.name for f in fields(policy)} - set(known)
        assert all(name.startswith("small") for name in own)
