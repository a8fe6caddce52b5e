"""Laws of group means and of bootstrap intervals."""

import math

import pytest
import torch

from lookalike.errors import Error
from lookalike.scoring import breakdown, retrieval
from lookalike.scoring.bootstrap import intervals


def queries(count=300, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = {
        "map": torch.rand(count, generator=generator).double(),
        "hit": torch.rand(count, generator=generator) < 0.7,
    }
    return {name: value.double() for name, value in values.items()}, torch.randint(
        5, (count,), generator=generator
    )


def test_groups_equal_a_loop_and_add_up_to_the_whole():
    values, groups_Q = queries()
    found = breakdown.by_group(values, groups_Q * 7 + 2**53)
    assert list(found) == [2**53 + 7 * g for g in range(5)]
    for g in range(5):
        own_Q = groups_Q == g
        one = found[2**53 + 7 * g]
        assert one["queries"] == int(own_Q.sum())
        assert one["map"] == pytest.approx(float(values["map"][own_Q].mean()), abs=1e-12)
    whole = sum(one["map"] * one["queries"] for one in found.values()) / 300
    assert whole == pytest.approx(float(values["map"].mean()), abs=1e-12)


def test_the_macro_mean_counts_every_group_the_same():
    values, groups_Q = {"map": torch.tensor([1.0, 1.0, 1.0, 0.0])}, torch.tensor([4, 4, 4, 9])
    assert breakdown.macro(values, groups_Q) == {"map": 0.5}


def test_retrieval_by_class():
    rows_ND, labels_N = torch.eye(4)[torch.tensor([0, 0, 1, 2, 3])], torch.tensor([3, 3, 5, 5, 8])
    found = retrieval.each(rows_ND, labels_N)
    by_class = breakdown.by_group(found.values, labels_N[found.row_Q])
    assert (by_class[3]["map"], by_class[5]["recall@1"]) == (1, 0)
    assert list(by_class) == [3, 5]


def test_intervals_are_the_quantiles_of_resampled_means():
    values, _ = queries(40)
    found = intervals(values, draws=500, seed=3, level=0.9)
    generator, means = torch.Generator().manual_seed(3), []
    for _ in range(500):
        rows = torch.randint(40, (40,), generator=generator).tolist()
        means.append(sum(float(values["map"][row]) for row in rows) / 40)
    wanted = torch.tensor(means, dtype=torch.float64).quantile(
        torch.tensor([0.05, 0.95], dtype=torch.float64)
    )
    assert found["map"] == pytest.approx(tuple(wanted.tolist()), abs=1e-12)


def test_the_width_is_that_of_the_normal_law():
    generator = torch.Generator().manual_seed(1)
    value_Q = torch.randn(2000, generator=generator).double()
    low, high = intervals({"x": value_Q}, draws=2000)["x"]
    assert high - low == pytest.approx(2 * 1.96 * float(value_Q.std()) / math.sqrt(2000), rel=0.1)
    assert low < float(value_Q.mean()) < high


def test_an_interval_covers_the_truth_as_often_as_it_says():
    generator = torch.Generator().manual_seed(2)
    covered = 0
    for seed in range(200):
        low, high = intervals(
            {"x": torch.randn(60, generator=generator).exp()}, draws=300, seed=seed, level=0.9
        )["x"]
        covered += low <= math.exp(0.5) <= high
    assert 0.8 < covered / 200 < 0.95


def test_the_same_seed_gives_the_same_interval():
    values, groups_Q = queries()
    assert intervals(values, groups_Q, draws=50) == intervals(values, groups_Q, draws=50)
    assert intervals(values, draws=50) != intervals(values, draws=50, seed=1)


def test_queries_that_depend_on_each_other_need_their_groups():
    classes_Q = torch.arange(20).repeat_interleave(50)
    value_Q = torch.rand(20, generator=torch.Generator().manual_seed(0))[classes_Q]
    narrow, wide = intervals({"x": value_Q}), intervals({"x": value_Q}, classes_Q)
    ratio = (wide["x"][1] - wide["x"][0]) / (narrow["x"][1] - narrow["x"][0])
    assert ratio == pytest.approx(math.sqrt(50), rel=0.15)


def test_groups_of_one_are_the_queries():
    values, _ = queries()
    assert intervals(values, torch.arange(300), draws=50) == intervals(values, draws=50)


def test_a_constant_has_no_width():
    assert intervals({"x": torch.ones(5)}, torch.tensor([0, 0, 1, 1, 1]), draws=20) == {"x": (1, 1)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": {}}, "0 measures"),
        ({"level": 1.0}, "level 1.0"),
        ({"draws": 1}, "draws 1"),
        ({"values": {"x": torch.ones(0)}}, "one per query"),
        ({"groups_Q": torch.arange(3)}, "one per query"),
        ({"groups_Q": torch.ones(4)}, "whole numbers"),
        ({"values": {"x": torch.ones(4), "y": torch.ones(5)}}, "one per query"),
        ({"values": {"x": torch.tensor([1, 2, 3, math.nan])}}, "NaN or Inf"),
    ],
)
def test_values_that_cannot_be_resampled_are_refused(change, message):
    with pytest.raises(Error, match=message):
        intervals(**({"values": {"x": torch.ones(4)}} | change))
