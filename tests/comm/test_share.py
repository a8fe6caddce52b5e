"""Shared work: every item is somebody's, once, whatever the number of ranks."""

import itertools

import pytest
import torch

from lookalike import comm
from lookalike.comm import share


def on_each(monkeypatch, world, function, items):
    """What each of so many ranks takes of the items."""
    monkeypatch.setattr(share, "world_size", lambda: world)
    found = []
    for rank in range(world):
        monkeypatch.setattr(share, "rank", lambda rank=rank: rank)
        found.append(list(function(items)))
    return found


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (3, 3), (10, 3), (10, 1), (2, 9)])
def test_ranges_cover_all_in_order_and_only_the_last_is_shorter(count, size):
    parts = comm.cut(count, size)
    assert list(itertools.chain(*parts)) == list(range(count))
    assert all(len(part) == size for part in parts[:-1])
    assert all(0 < len(part) <= size for part in parts)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 4, 6, 13])
def test_consecutive_items_lie_in_order_as_many_on_each_rank(monkeypatch, world, count):
    found = on_each(monkeypatch, world, comm.consecutive, range(count))
    assert list(itertools.chain(*found)) == list(range(count))
    assert found == [part.tolist() for part in torch.arange(count).tensor_split(world)]
    as_list = on_each(monkeypatch, world, comm.consecutive, list(range(count)))
    assert as_list == found


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("count", [0, 1, 4, 6, 13])
def test_ranks_take_turns(monkeypatch, world, count):
    found = on_each(monkeypatch, world, comm.in_turn, range(count))
    turns = itertools.zip_longest(*found)
    assert [item for turn in turns for item in turn if item is not None] == list(range(count))
