"""The order at any scale: a bijection, the same on any ranks, workers and cuts, at a cost that n
does not change.
"""

import time
from itertools import pairwise

import pytest
import torch

from lookalike import rng
from lookalike.data import order as room
from lookalike.data.images import ArrayImages
from lookalike.data.loader import batches
from lookalike.data.order import EpochOrder, Windows, order_of, share

WORLDS = (1, 2, 3, 4, 6, 8, 12)
SIZES = torch.tensor([7, 1, 30, 12, 0, 25, 18, 10])
LAWS = {
    "sorted": None,
    "computed": None,
    "windows": Windows(SIZES, 40),
    "one window": Windows(SIZES, 10**6),
}


@pytest.fixture(params=LAWS)
def policy(request, monkeypatch) -> Windows | None:
    if request.param == "computed":
        monkeypatch.setattr(room, "SORTED", 0)
    return LAWS[request.param]


def steps(order: EpochOrder, world: int, first: int, last: int) -> list[list[int]]:
    return [
        torch.cat([share(micro, rank, world) for rank in range(world)]).tolist()
        for _, micro in order.micro_batches(first, last)
    ]


@pytest.mark.parametrize("accumulate", [1, 5])
def test_any_world_from_any_cut_sees_the_same_batches(policy, accumulate):
    order = EpochOrder(103, 20, accumulate, 4, policy)
    wanted = steps(order, 1, 0, 12)
    for world in WORLDS:
        for cut in (0, 1, 5, 11):
            assert (
                steps(EpochOrder(103, 20, accumulate, 4, policy), world, cut, 12)
                == wanted[cut * accumulate :]
            )


def test_an_epoch_holds_each_sample_once(policy):
    for batch in (1, 20, 103):
        order, seen = EpochOrder(103, batch, 1, 4, policy), []
        for epoch in range(3):
            seen.append(
                [i for step in range(103 // batch) for i in order.ids(epoch, step).tolist()]
            )
            assert len(set(seen[-1])) == len(seen[-1]) == 103 // batch * batch
            assert set(seen[-1]) <= set(range(103))
        assert len(set(map(tuple, seen))) == 3


def test_workers_do_not_change_the_order(policy, monkeypatch):
    images = ArrayImages(torch.zeros(103, 1, 1, 1, dtype=torch.uint8))
    order = EpochOrder(103, 20, 2, 1, policy)

    def ids(workers: int, world: int) -> list[list[list[int]]]:
        how = {"first_step": 3, "last_step": 7, "world": world, "workers": workers, "pin": False}
        return [
            [b.ids_B.tolist() for b in batches(images, order, rank=r, **how)] for r in range(world)
        ]

    assert ids(0, 1) == ids(1, 1) == ids(4, 1)
    assert ids(0, 2) == ids(2, 2)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 9, 100, 1000, 4097, 65536])
def test_computed_place_by_place_it_is_a_permutation(n):
    whole = rng.permutation_at(torch.arange(n), n, 3, "order")
    assert sorted(whole.tolist()) == list(range(n))
    some = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:50]
    assert torch.equal(rng.permutation_at(some, n, 3, "order"), whole[some])


def test_the_computed_permutation_is_that_of_a_feistel_network_in_plain_integers():
    n, bits, low = 700, 10, 5

    def once(x: int) -> int:
        left, right = x >> low, x % 2**low
        for number in range(8):
            key = int(rng.bits(9, number))
            if number % 2:
                right ^= int(rng.bits(key, left)) % 2**low
            else:
                left ^= int(rng.bits(key, right)) % 2 ** (bits - low)
        return left << low | right

    for x in range(0, n, 13):
        y = once(x)
        while y >= n:
            y = once(y)
        assert rng.permutation_at(torch.tensor([x]), n, 9).tolist() == [y]


def chi_square(counts: torch.Tensor) -> float:
    wanted = counts.double().mean()
    return float(((counts - wanted) ** 2 / wanted).sum())


def test_computed_places_are_uniform():
    """Where three places go over 1,000 seeds, and how far neighbours end up from each other."""
    n, trials = 1000, 1000
    made = torch.stack(
        [rng.permutation_at(torch.tensor([0, 1, 999]), n, s, "order", 0) for s in range(trials)]
    )
    for column in range(3):
        # 100 cells: chi-square has mean 99 and standard deviation 14.
        assert chi_square((made[:, column] // 10).bincount(minlength=100)) < 99 + 5 * 14
    assert chi_square(((made[:, 1] - made[:, 0]) % n // 10).bincount(minlength=100)) < 99 + 5 * 14


def test_many_places_of_one_permutation_are_spread_evenly():
    n = 10**9
    found = rng.permutation_at(torch.arange(100_000), n, 1, "order", 0)
    assert chi_square((found // 10**7).bincount(minlength=100)) < 99 + 5 * 14
    assert chi_square((found % 100).bincount(minlength=100)) < 99 + 5 * 14
    together = torch.corrcoef(torch.stack([found[:-1], found[1:]]).double())[0, 1]
    assert abs(together) < 5 / 100_000**0.5


def test_a_billion_samples_cost_no_more_than_a_batch():
    order = EpochOrder(10**9, 4096, 1, 0)
    began = time.process_time()
    last = order.ids(5, order.steps_per_epoch - 1)
    assert time.process_time() - began < 1
    assert last.unique().numel() == 4096


def test_windows_follow_the_runs():
    """Independent: the runs in an order, laid end to end, cut into windows; each window holds its
    own samples.
    """
    first = SIZES.cumsum(0) - SIZES
    for epoch in range(4):
        runs = rng.permutation(len(SIZES), 6, "runs", epoch).tolist()
        laid = [int(first[run]) + k for run in runs for k in range(int(SIZES[run]))]
        found = Windows(SIZES, 40).at(torch.arange(103), 6, epoch).tolist()
        for start in (0, 40, 80):
            assert sorted(found[start : start + 40]) == sorted(laid[start : start + 40])
            assert found[start : start + 40] != laid[start : start + 40]


def test_a_step_of_windows_touches_few_runs():
    windows, n = Windows(torch.full((500,), 100), 1000), 50_000
    order = EpochOrder(n, 64, 1, 0, windows)
    touched = [set((order.ids(0, step) // 100).tolist()) for step in range(order.steps_per_epoch)]
    held = [a | b for a, b in pairwise(touched)]
    assert max(map(len, held)) <= 22  # two windows, and a run that lies in both
    assert len(set().union(*touched)) == 500


def test_images_in_runs_choose_the_windows():
    images = ArrayImages(torch.zeros(103, 1, 1, 1, dtype=torch.uint8))
    assert order_of(images, 20, 1, 0).windows is None
    images.windows = LAWS["windows"]
    assert order_of(images, 20, 1, 0).windows is LAWS["windows"]


def test_up_to_four_million_the_order_is_the_sorted_permutation():
    assert room.SORTED >= 4_000_000  # resumed runs of earlier versions depend on it
    assert (
        EpochOrder(300, 300, 1, 7).ids(2, 0).tolist()
        == rng.permutation(300, 7, "order", 2).tolist()
    )
