"""comm.rows_known: what ranks know of one another they do not ask, and what they do not know they
cannot take wrongly.
"""

import contextlib
import itertools
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import toy
from lookalike import comm
from lookalike.comm import exchange
from lookalike.data.order import share, shares
from lookalike.errors import RunError
from lookalike.methods import METHODS
from lookalike.metric.objectives import OBJECTIVE, OBJECTIVES, Objective
from lookalike.stages.pretrain import pretrain

REQUIRED = {
    "RankedListLoss": {"margin": 0.4, "Tn": 1.0},
    "WeightedSum": {"parts": [{"objective": "CrossEntropyLoss"}]},
}


@pytest.mark.parametrize(("batch", "accumulate"), [(16, 1), (15, 2), (7, 3)])
def test_shares_are_as_long_as_what_share_gives(batch, accumulate):
    order = SimpleNamespace(batch=batch, accumulate=accumulate)
    parts = torch.arange(batch).tensor_split(accumulate)
    for micro, world, pieces in itertools.product(range(accumulate), (1, 2, 3, 5), (1, 2, 4)):
        long = [len(share(parts[micro], rank, world, pieces)) for rank in range(world)]
        assert shares(order, micro, world, pieces) == long


@contextlib.contextmanager
def asked() -> Iterator[list[int]]:
    """How often ranks asked one another for their rows."""
    original, times = exchange._asked, [0]

    def counted(x: Tensor) -> list[int]:
        times[0] += 1
        return original(x)

    exchange._asked = counted
    try:
        yield times
    finally:
        exchange._asked = original


def by_method(name: str, cut: list[int]) -> list[Tensor]:
    torch.manual_seed(0)
    module = METHODS[name](toy.architecture("vit").build(), **toy.HEADS[name]).train()
    views = [view.split(cut)[comm.rank()] for view in toy.views(0, sum(cut))]
    labels = (torch.arange(sum(cut)) % 3).split(cut)[comm.rank()]
    loss = module(views, labels) if name == "supcon" else module(views)
    loss.value.backward()
    return [loss.value.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


def by_objective(name: str, cut: list[int]) -> list[Tensor]:
    torch.manual_seed(0)
    spec = OBJECTIVE.spec(name, **REQUIRED.get(name, {}))
    objective = Objective(spec, None, num_classes=3, embedding_size=8, seed=5)
    z = torch.randn(sum(cut), 8).split(cut)[comm.rank()].clone().requires_grad_()
    value = objective(z, (torch.arange(sum(cut)) % 3).split(cut)[comm.rank()]).value
    value.backward()
    return [value.detach(), *([] if z.grad is None else [z.grad])]


def known_and_asked(cut: list[int]) -> dict[str, tuple[bool, int, int]]:
    """Of each method and objective: whether known rows change no bit, how often ranks asked then,
    and how often outside.
    """
    warnings.simplefilter("ignore")  # the library's, known in tests/test_metric.py
    found = {}
    calls = [(by_method, name) for name in METHODS] + [(by_objective, name) for name in OBJECTIVES]
    for run, name in calls:
        with asked() as outside:
            wanted = run(name, cut)
        with comm.rows_known(cut):
            run(name, cut)
        with asked() as inside, comm.rows_known(cut):
            got = run(name, cut)
        alike = all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
        found[name] = alike, inside[0], outside[0]
    return found


@pytest.mark.parametrize(
    "cut",
    [
        [3, 5, 4],
        *(pytest.param(cut, marks=pytest.mark.slow) for cut in ([12], [6, 6], [5, 7], [4, 4, 4])),
    ],
    ids=str,
)
def test_known_rows_change_no_bit_of_any_method_or_objective_and_ask_nobody(ranks, cut):
    for found in ranks.run(known_and_asked, cut, world=len(cut)):
        assert found.keys() == {*METHODS, *OBJECTIVES}
        for name, (alike, inside, outside) in found.items():
            assert alike, name
            assert inside == 0, name
            assert outside > 0 or len(cut) == 1, name


def what_is_said(cut: list[int], long: list[int], ragged: bool, confirmed: int = 0) -> Any:
    exchange.forget_rows()
    for _ in range(confirmed):
        with comm.rows_known(cut):
            comm.count(torch.zeros(cut[comm.rank()], 2))
    try:
        with asked() as times, comm.rows_known(cut):
            return comm.count(torch.zeros(long[comm.rank()], 2), ragged=ragged), times[0]
    except RunError as error:
        return str(error)


@pytest.mark.parametrize(
    ("cut", "long"),
    [
        ([2, 2], [3, 3]),  # no multiple
        ([2, 2], [2, 4]),  # multiples, but not the same one
        ([2, 4], [4, 4]),  # as many on each rank, though the images are not
    ],
)
def test_rows_that_are_not_the_images_are_refused_on_all_ranks_or_asked_for(ranks, cut, long):
    for said in ranks.run(what_is_said, cut, long, False):
        assert "ragged=True" in said
    assert ranks.run(what_is_said, cut, long, True) == [(sum(long), 1)] * 2


def test_rows_are_compared_once_and_a_rank_without_any_lets_all_ask(ranks):
    assert ranks.run(what_is_said, [2, 3], [4, 6], False) == [(10, 1)] * 2
    assert ranks.run(what_is_said, [2, 3], [2, 3], False, 1) == [(5, 0)] * 2
    assert ranks.run(what_is_said, [2, 0], [4, 0], False, 1) == [(4, 1)] * 2


def known_outside() -> tuple[int, int]:
    with comm.rows_known([1, 2]), comm.rows_known([3, 4]):
        inner = comm.count(torch.zeros(3 + comm.rank()))
    return inner, comm.count(torch.zeros(5))


def test_outside_of_the_context_all_is_asked(ranks):
    assert ranks.run(known_outside) == [(7, 10)] * 2


def gathered(cut: list[int]) -> tuple[Tensor, Tensor]:
    x = torch.arange(sum(cut) * 2.0).view(-1, 2).split(cut)[comm.rank()].clone().requires_grad_()
    whole = comm.cat(x)
    (whole * torch.arange(len(whole) * 2.0).view(-1, 2)).sum().backward()
    return whole.detach(), x.grad


@pytest.mark.parametrize("cut", [[2, 2], [1, 3], [2, 2, 2]], ids=str)
def test_cat_is_the_same_for_even_rows_which_need_no_padding(ranks, cut):
    parts = ranks.run(gathered, cut, world=len(cut))
    rows = torch.arange(sum(cut) * 2.0).view(-1, 2)
    for whole, _ in parts:
        assert torch.equal(whole, rows)
    assert torch.equal(torch.cat([grad for _, grad in parts]), len(cut) * rows)


def test_every_method_is_here():
    assert toy.HEADS.keys() == METHODS.keys()


def trained(out: str) -> int:
    """How often ranks ask one another in a run of uneven shares, in pieces."""
    words = ["batch=150", "accumulate=2", "micro_batch=25", "epochs=1", "warmup_epochs=0"]
    words += ["health_every=0"]
    recipe = toy.recipe(*(f"pretrain.{word}" for word in words))
    exchange.forget_rows()
    with asked() as times:
        pretrain(recipe, out)
    return times[0]


@pytest.mark.slow
def test_a_training_asks_for_rows_in_its_first_step_alone(ranks, tmp_path):
    """Barlow Twins needs them twice a micro-batch here; later ones have the shapes of the first."""
    assert ranks.run(trained, str(tmp_path / "run")) == [2, 2]
