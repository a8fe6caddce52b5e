"""Laws of the balanced order: classes equally often, every image of a class before any again, and
the same on any ranks from any cut.
"""

from collections import Counter

import pytest
import torch
from scipy import stats

from lookalike.data.order import BalancedOrder, share
from lookalike.errors import DataError

COUNTS = [1, 2, 7, 40, 53]
LABELS = torch.arange(len(COUNTS)).repeat_interleave(torch.tensor(COUNTS)) * 10 - 4
SHUFFLED = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(0))]


def drawn(order: BalancedOrder, steps: int) -> list[int]:
    return [i for _, ids in order.micro_batches(0, steps) for i in ids.tolist()]


@pytest.mark.parametrize("batch", [1, 3, 5, 16, 103])
def test_no_class_ever_comes_more_than_once_more_than_another(batch):
    order = BalancedOrder(SHUFFLED, batch, 1, 4)
    assert order.steps_per_epoch == 103 // batch
    seen = Counter(dict.fromkeys(SHUFFLED.unique().tolist(), 0))
    for sample in drawn(order, max(3, 300 // batch)):
        seen[int(SHUFFLED[sample])] += 1
        assert max(seen.values()) - min(seen.values()) <= 1


@pytest.mark.parametrize("batch", [1, 16])
def test_every_image_of_a_class_comes_before_any_comes_again_across_epochs(batch):
    order = BalancedOrder(SHUFFLED, batch, 1, 4)
    seen = Counter(dict.fromkeys(range(103), 0))
    for sample in drawn(order, 800 // batch):
        seen[sample] += 1
        mates = torch.nonzero(SHUFFLED[sample] == SHUFFLED).flatten().tolist()
        assert max(seen[m] for m in mates) - min(seen[m] for m in mates) <= 1
    assert min(seen.values()) > 0


def test_images_of_a_class_are_shuffled_anew_each_time():
    order = BalancedOrder(torch.zeros(8, dtype=torch.long), 8, 1, 0)
    rounds = [tuple(order.ids(epoch, 0).tolist()) for epoch in range(50)]
    assert all(sorted(r) == list(range(8)) for r in rounds)
    assert len(set(rounds)) == 50
    places = torch.zeros(8, 8)
    for epoch in range(2000):
        places[torch.arange(8), order.ids(epoch, 0)] += 1
    assert stats.chi2_contingency(places.numpy()).pvalue > 1e-5


@pytest.mark.parametrize("accumulate", [1, 4])
def test_any_world_from_any_cut_sees_the_same_batches(accumulate):
    def steps(world: int, first: int) -> list[list[int]]:
        order = BalancedOrder(SHUFFLED, 20, accumulate, 4)
        return [
            torch.cat([share(micro, rank, world) for rank in range(world)]).tolist()
            for _, micro in order.micro_batches(first, 12)
        ]

    wanted = steps(1, 0)
    for world in (2, 3, 4):
        assert steps(world, 0) == wanted
    for cut in (1, 5, 7, 11):
        assert steps(1, cut) == wanted[cut * accumulate :]


def test_a_sample_that_comes_again_in_its_epoch_is_drawn_as_another_view():
    order = BalancedOrder(SHUFFLED, 20, 2, 4)
    coordinates = [number for number, _ in order.micro_batches(3, 8)]
    assert coordinates == [3, 3, 4, 4, 5, 5, 6, 6, 7, 7]


def test_seeds_differ_and_fewer_images_than_a_batch_are_refused():
    one, other = (drawn(BalancedOrder(SHUFFLED, 20, 1, seed), 5) for seed in (0, 1))
    assert one != other
    assert one == drawn(BalancedOrder(SHUFFLED, 20, 1, 0), 5)
    with pytest.raises(DataError, match="103 images are fewer than one batch of 104"):
        BalancedOrder(SHUFFLED, 104, 1, 0)
