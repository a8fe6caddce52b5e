"""Where the host would wait for a number of the device, objectives are computed from masks: the
same values, gradients and memories as from lists.
"""

import pytest
import torch
from pytorch_metric_learning import losses, reducers
from test_objective_ranks import CASES, D, build
from torch import Tensor

from lookalike.metric import sizes
from lookalike.metric.hinges import quadruplet_hinges, triplet_hinges
from lookalike.metric.memory import Memory, MemorySettings
from lookalike.metric.n_pair import pairs
from lookalike.metric.objectives import OBJECTIVE, OWN, Objective
from lookalike.metric.pair_masks import Masks, classes, listed, masks, reducer_of
from lookalike.nn.hooks import follow, start_step
from lookalike.optim import Progress

OURS = [case for case in CASES if CASES[case][0] in {kind.__name__ for kind in OWN}]
LABELS = {
    "even": lambda: torch.arange(24) % 4,
    "any": lambda: torch.randint(4, (24,)),
    "one class": lambda: torch.ones(24, dtype=torch.int64),
    "two classes": lambda: torch.arange(24) % 2,
    "hardly any pairs": lambda: torch.tensor([0, 0, 1, 2, 3, 3, 3, *range(2**61, 2**61 + 9)]),
}


@pytest.fixture
def hidden(monkeypatch):
    """Call it, and no number of a CPU is looked at from there on."""
    return lambda: monkeypatch.setattr(sizes, "seen", lambda _: False)


def trained(case: str, kind: str) -> list[Tensor]:
    """Values and gradients of three steps, what the objective holds after them."""
    objective, found = build(case).train(), []
    for step in range(3):
        torch.manual_seed(step)
        labels = LABELS[kind]()
        z = torch.randn(len(labels), D, dtype=torch.float64).requires_grad_()
        start_step(objective, Progress(step, 3, float(step)))
        loss = objective(z, labels)
        objective.zero_grad()
        loss.value.backward()
        follow(objective)
        found += [loss.value.detach(), z.grad, *loss.terms.values()]
        found += [p.grad for p in objective.parameters() if p.grad is not None]
    return [*found, *objective.state_dict().values()]


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (case, kind)
        for case in OURS
        for kind in LABELS
        if (CASES[case][0], kind) != ("CrossEntropyLoss", "hardly any pairs")  # it knows four
    ],
)
def test_masks_and_lists_are_one_loss(case, kind, hidden):
    wanted = trained(case, kind)
    hidden()
    torch.testing.assert_close(trained(case, kind), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_quadruplets_are_counted_alike_from_keys_and_from_a_table(seed, hidden):
    """Distances of few values, so that many are equal; references of their own; masks of a
    miner's.
    """
    torch.manual_seed(seed)
    y_B, y_R = torch.randint(5, (14,)), torch.randint(2, 7, (9,))
    y_B, y_R = classes(y_B, y_B if seed % 2 else y_R)
    chosen = masks(None, y_B, y_R)
    d_BR = torch.randint(4, (len(y_B), len(y_R))).double() / 2
    if seed > 3:
        kept = torch.rand_like(d_BR) < 0.5
        chosen = Masks(chosen.positive_BR & kept, chosen.negative_BR & kept)
    given = (d_BR, y_B, y_R, chosen.positive_BR, chosen.negative_BR, 0.5)
    wanted = quadruplet_hinges(*given)
    triplets = [triplet_hinges(d_BR, *chosen[:2], 0.5, semihard=how) for how in (False, True)]
    assert wanted.number > wanted.active > 0
    hidden()
    for found, known in (
        (quadruplet_hinges(*given), wanted),
        *((triplet_hinges(d_BR, *chosen[:2], 0.5, semihard=h), triplets[h]) for h in (False, True)),
    ):
        torch.testing.assert_close(found, known, rtol=1e-12, atol=0)


def test_pairs_too_many_have_no_round(hidden):
    labels = torch.tensor([3, 1, 3, 1, 1, 3, 3, 9])
    wanted = pairs(labels)
    hidden()
    found = pairs(labels)
    real = found[2] >= 0
    assert [x[real].tolist() for x in found] == [x.tolist() for x in wanted]
    assert len(real) == 4 > real.sum()


def test_a_reference_of_no_class_is_nothing_of_anyone():
    y_B, y_R = torch.tensor([0, 1]), torch.tensor([1, sizes.NO_CLASS])
    chosen = masks(None, y_B, y_R)
    assert chosen.positive_BR.tolist() == [[False, False], [True, False]]
    assert chosen.negative_BR.tolist() == [[True, False], [False, False]]


def test_what_a_memory_holds_is_what_was_written_and_room_without_class():
    memory = Memory(5, 2)
    for n in (0, 3, 4):
        memory.stage(torch.randn(n, 2), torch.arange(n))
        memory.commit()
        (rows_FD, labels_F), (rows_QD, labels_Q) = memory.filled(), memory.held()
        written = labels_Q != sizes.NO_CLASS
        assert torch.equal(rows_QD[written], rows_FD)
        assert torch.equal(labels_Q[written], labels_F)
        assert len(labels_Q) == 5


def test_the_librarys_losses_see_only_what_was_written(hidden):
    """They know no reference without a class."""
    hidden()
    objective = Objective(
        OBJECTIVE.spec("NTXentLoss"),
        None,
        num_classes=4,
        embedding_size=D,
        memory=MemorySettings(size=30),
    ).double()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 6, D, generator=generator, dtype=torch.float64)
    y = torch.arange(6) % 3
    objective(z[0], y)
    follow(objective)
    old, new = (torch.nn.functional.normalize(x, dim=1) for x in z)
    loss = losses.NTXentLoss()
    wanted = loss(new, y) + loss(new, y, None, old, y.clone())
    torch.testing.assert_close(objective(z[1], y).value, wanted)


def test_another_reducer_gets_the_list(hidden):
    x, mask = torch.tensor([[0.0, 2.0], [3.0, 4.0]]), torch.tensor([[True, True], [True, False]])
    assert listed(x, mask, "pos_pair", reducers.MeanReducer())["losses"].tolist() == [0, 2, 3]
    hidden()
    mean = listed(x, mask, "pos_pair", reducers.MeanReducer())
    assert (float(mean["losses"]), mean["reduction_type"]) == (
        pytest.approx(5 / 3),
        "already_reduced",
    )
    found = listed(x, mask, "pos_pair", reducers.AvgNonZeroReducer())
    assert found["losses"].tolist() == [0, 2, 3]
    assert [index.tolist() for index in found["indices"]] == [[0, 0, 1], [0, 1, 0]]
    several = reducers.MultipleReducers({"pos_loss": reducers.SumReducer()})
    assert isinstance(reducer_of(several, "pos_loss"), reducers.SumReducer)
    assert reducer_of(several, "other") is several
