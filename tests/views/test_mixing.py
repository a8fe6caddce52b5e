"""Laws of mixing: mixup's and CutMix's formulas pair by pair, drawn by what the pair is."""

import itertools

import pytest
import torch
from scipy import stats
from scipy.special import polygamma
from torch import Tensor

from lookalike.data.order import share
from lookalike.views.mixing import Mixing, boxes

CHANCE = 1e-5
CLASSES = 5


def batch(n: int = 16, height: int = 12, width: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    view_BCHW = torch.randn(n, 3, height, width, generator=generator)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    return view_BCHW, torch.eye(CLASSES)[labels], torch.arange(n) * 31 + 7


def directly(mixing: Mixing, view, targets, ids, seed, epoch) -> tuple[Tensor, Tensor]:
    """Pair by pair, pixel by pixel of the box."""
    made, mixed = view.clone(), targets.clone()
    height, width = view.shape[2:]
    for a in range(0, len(ids) - 1, 2):
        b = a + 1
        kept, box = mixing.draws(ids[None, a : b + 1], seed, epoch, height, width)
        kept, (top, left, tall, wide) = float(kept[0]), box[0].tolist()
        for one, other in ((a, b), (b, a)):
            made[one] = kept * view[one] + (1 - kept) * view[other]
            for y, x in itertools.product(range(top, top + tall), range(left, left + wide)):
                made[one, :, y, x] = view[other, :, y, x]
            taken = 1 - kept * (1 - tall * wide / (height * width))
            mixed[one] = (1 - taken) * targets[one] + taken * targets[other]
    return made, mixed


WAYS = {
    "mixup": Mixing(mixup=0.4),
    "cutmix": Mixing(cutmix=1.0),
    "either": Mixing(mixup=0.8, cutmix=1.0),
    "seldom": Mixing(mixup=0.8, cutmix=1.0, chance=0.4),
}


@pytest.mark.parametrize("n", [16, 15, 1])
@pytest.mark.parametrize("name", WAYS)
def test_pairs_are_mixed_as_the_papers_formulas_say(name, n):
    view, targets, ids = batch(n)
    before = view.clone(), targets.clone()
    made, mixed = WAYS[name](view, targets, ids, seed=1, epoch=2)
    expected, wanted = directly(WAYS[name], view, targets, ids, 1, 2)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed, wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(n))
    assert view.equal(before[0])
    assert targets.equal(before[1])
    if n > 2:
        assert not made.equal(view)
    if n % 2:
        assert made[-1].equal(view[-1])


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("pieces", [1, 2])
def test_ranks_and_micro_batches_do_not_change_what_is_mixed(name, pieces):
    view, targets, ids = batch(16)
    whole = WAYS[name](view, targets, ids, seed=1, epoch=2)
    rows = torch.arange(16)
    for world in (2, 4):
        for rank in range(world):
            mine = share(rows, rank, world, pieces)
            found = WAYS[name](view[mine], targets[mine], ids[mine], seed=1, epoch=2)
            assert found[0].equal(whole[0][mine])
            assert found[1].equal(whole[1][mine])


def test_a_pair_is_mixed_anew_in_every_epoch_and_by_every_seed():
    view, targets, ids = batch()
    made = [
        WAYS["either"](view, targets, ids, seed=s, epoch=e)[0]
        for s, e in ((0, 0), (0, 1), (1, 0), (0, 0))
    ]
    assert made[0].equal(made[3])
    assert not made[0].equal(made[1])
    assert not made[0].equal(made[2])


@pytest.mark.parametrize("alpha", [0.1, 0.2, 0.8, 1.0, 3.0, 8.0])
def test_shares_follow_the_beta_law(alpha):
    ids_P2 = torch.arange(20_000).view(-1, 2)
    kept, box = Mixing(mixup=alpha).draws(ids_P2, 0, 0, 8, 8)
    low = kept[kept < 0.5].double().numpy()  # near 1 float32 rounds
    assert stats.kstest(low, lambda x: 2 * stats.beta(alpha, alpha).cdf(x)).pvalue > CHANCE
    assert stats.binomtest(len(low), len(kept)).pvalue > CHANCE
    assert not box.any()


@pytest.mark.parametrize("alpha", [1.0, 3.0, 8.0])
def test_shares_have_the_beta_law_s_spread(alpha):
    """The variance of a logit of Beta(α, α) is twice the trigamma function of α."""
    ids_P2 = torch.arange(40_000).view(-1, 2)
    kept = Mixing(mixup=alpha).draws(ids_P2, 0, 0, 8, 8)[0].double().clamp(1e-7, 1 - 1e-7)
    assert kept.logit().var().item() == pytest.approx(2 * polygamma(1, alpha), rel=0.04)


def test_a_pair_is_known_by_both_of_its_samples():
    mixing = Mixing(mixup=0.8, cutmix=1.0, chance=0.7)
    first, others = torch.full((256,), 3), torch.arange(256) + 10
    for pair in ((first, others), (others, first)):
        kept, box = mixing.draws(torch.stack(pair, dim=1), 0, 0, 64, 64)
        assert 60 < len(kept.unique()) < 256
        assert len(box.unique(dim=0)) > 60


def test_boxes_have_the_image_s_shape_and_lie_evenly_before_they_are_cut():
    n = 10_000
    kept = torch.linspace(0, 1, n)
    generator = torch.Generator().manual_seed(0)
    row, column = torch.rand(2, n, generator=generator)
    top, left, tall, wide = boxes(kept, row, column, 64, 32).unbind(1)
    assert bool(((top >= 0) & (left >= 0) & (top + tall <= 64) & (left + wide <= 32)).all())
    inner = (top > 0) & (left > 0) & (top + tall < 64) & (left + wide < 32)
    half = (64 * (1 - kept).sqrt()).long() // 2
    assert (tall == 2 * half)[inner].all()
    assert ((tall - 2 * wide).abs() <= 2)[inner].all()
    assert stats.kstest(((top + half)[inner & (half == 0)] / 64).numpy(), "uniform").pvalue > CHANCE


def test_each_thing_happens_as_often_as_asked():
    ids_P2 = torch.arange(20_000).view(-1, 2)
    kept, box = Mixing(mixup=0.8, cutmix=1.0, chance=0.6, switch=0.3).draws(ids_P2, 0, 0, 64, 64)
    cut, mixed = (box[:, 2] * box[:, 3] > 0), kept < 1
    assert not (cut & mixed).any()
    assert stats.binomtest(int(mixed.sum()), 10_000, 0.6 * 0.7).pvalue > CHANCE
    # Some boxes are empty: of λ near 1, which CutMix's uniform law makes rare.
    assert int(cut.sum()) == pytest.approx(10_000 * 0.6 * 0.3, rel=0.08)


def test_nothing_asked_for_is_nothing_done_and_bfloat16_stays_that():
    view, targets, ids = batch()
    assert Mixing()(view, targets, ids, seed=0, epoch=0)[0] is view
    made, _ = Mixing(mixup=0.4)(view.bfloat16(), targets, ids, seed=0, epoch=0)
    exact, _ = Mixing(mixup=0.4)(view.bfloat16().float(), targets, ids, seed=0, epoch=0)
    assert made.equal(exact.bfloat16())


@pytest.mark.parametrize("channels", [1, 3])
def test_views_stay_channels_last(channels):
    view, targets, ids = batch()
    last = view[:, :channels].contiguous(memory_format=torch.channels_last)
    last = last.as_strided(last.shape, (120 * channels, 1, 10 * channels, channels))
    made, _ = WAYS["either"](last, targets, ids, seed=0, epoch=0)
    assert made.stride() == last.stride()
    assert made.equal(WAYS["either"](view[:, :channels], targets, ids, seed=0, epoch=0)[0])
