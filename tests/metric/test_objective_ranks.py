"""Every objective over ranks: loss, gradient and what it owns are those of one process on the whole
batch.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from lookalike import comm
from lookalike.metric.memory import MemorySettings
from lookalike.metric.objectives import MINER, OBJECTIVE, OBJECTIVES, Objective
from lookalike.nn.hooks import Deferred, discard, follow, start_step
from lookalike.optim import Progress

B, D = 24, 8
CUTS = {2: [10, 14], 4: [6, 1, 9, 8]}
SUM = [
    {"objective": "CrossEntropyLoss"},
    {"objective": "TripletMarginLoss", "miner": "BatchHardMiner", "weight": 0.5},
    {"objective": {"name": "ConstellationLoss", "negatives": "random", "k": 2}},
]
REQUIRED = {"RankedListLoss": {"margin": 0.4, "Tn": 1.0}, "WeightedSum": {"parts": SUM}}
# Name, arguments, miner, memory; everything below the plain names depends on chance, on a miner or
# on the past.
CASES: dict[str, tuple[str, dict[str, Any], str | None, bool]] = {
    **{name: (name, REQUIRED.get(name, {}), None, False) for name in OBJECTIVES},
    "quadruplet all": ("QuadrupletLoss", {"form": "all", "adaptive": True}, None, False),
    "constellation random": ("ConstellationLoss", {"negatives": "random", "k": 2}, None, False),
    "constellation all": ("ConstellationLoss", {"negatives": "all"}, None, False),
    "csml sum": ("CSMLLoss", {"form": "sum"}, None, False),
    "random triplets": (
        "TripletMarginLoss",
        {"triplets_per_anchor": 3, "margin": 2.0},
        None,
        False,
    ),
    "distance-weighted": ("TripletMarginLoss", {"margin": 2.0}, "DistanceWeightedMiner", False),
    "histogram miner": ("ContrastiveLoss", {}, "UniformHistogramMiner", False),
    "batch-hard": ("QuadrupletLoss", {}, "BatchHardMiner", False),
    **{
        f"{name} with memory": (name, REQUIRED.get(name, {}), None, True)
        for name in (
            "FaceNetLoss",
            "QuadrupletLoss",
            "ConstellationLoss",
            "CSMLLoss",
            "BarlowTwinsLoss",
            "MultiSimilarityLoss",
            "WeightedSum",
        )
    },
}


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, D, generator=generator, dtype=torch.float64), torch.arange(B) * 7 % 4


def build(case: str) -> Objective:
    name, arguments, miner, memory = CASES[case]
    torch.manual_seed(1)
    objective = Objective(
        OBJECTIVE.spec(name, **arguments),
        MINER.spec(miner) if miner else None,
        num_classes=4,
        embedding_size=D,
        seed=5,
        memory=MemorySettings(size=30) if memory else None,
    )
    return objective.double()


def trained(
    case: str, cut: list[int], steps: int = 2
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Losses, gradients of this rank's rows and of the objective's parameters, and its state, over
    two steps.
    """
    objective, world = build(case), comm.world_size()
    values, gradients, own = [], [], []
    for step in range(steps):
        torch.manual_seed(100 + comm.rank())  # as the loop does: dropout differs on every rank
        start_step(objective, Progress(step, steps, float(step)))
        z, labels = (part.split(cut if world > 1 else [B])[comm.rank()] for part in batch(step))
        z = z.clone().requires_grad_()
        found = objective(z, labels)
        objective.zero_grad()
        found.value.backward()
        follow(objective)
        values += [found.value.detach(), *(found.terms[name] for name in sorted(found.terms))]
        gradients.append(z.grad / world)
        own += [comm.all_sum(p.grad) / world for p in objective.parameters() if p.grad is not None]
    return values, gradients, own, [t.detach() for t in objective.state_dict().values()]


def every_case(cut: list[int], names: list[str]) -> dict[str, Any]:
    import warnings

    warnings.simplefilter("ignore")  # the library's, known in tests/test_metric.py
    return {name: trained(name, cut) for name in names}


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return every_case([], list(CASES))


@pytest.fixture(
    scope="module",
    params=[pytest.param(2, marks=pytest.mark.slow), 4],
    ids=lambda world: f"{world} ranks",
)
def split(request, ranks) -> list[dict[str, Any]]:
    return ranks.run(every_case, CUTS[request.param], list(CASES), world=request.param)


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_over_ranks_are_those_of_the_whole_batch(case, whole, split):
    values, gradients, own, state = whole[case]
    # Some of the library's losses compute parts of themselves in fp32.
    rtol = 1e-6
    for found in split:
        torch.testing.assert_close(found[case][0], values, rtol=rtol, atol=0)
        torch.testing.assert_close(found[case][2], own, rtol=rtol, atol=1e-12)
        torch.testing.assert_close(found[case][3], state, rtol=rtol, atol=1e-12)
    for step, gradient in enumerate(gradients):
        joined = torch.cat([found[case][1][step] for found in split])
        assert gradient.norm() > 0
        assert float((joined - gradient).norm() / gradient.norm()) < 1e-6


@pytest.mark.parametrize("case", ["constellation random", "random triplets", "distance-weighted"])
def test_another_step_draws_otherwise_and_the_same_step_alike(case):
    objective = build(case)
    z, labels = batch(0)

    def value(step: int) -> float:
        start_step(objective, Progress(step, 9, 0.0))
        return float(objective(z, labels).value)

    assert value(0) == value(0)
    assert value(0) != value(1)


@pytest.mark.filterwarnings("ignore")  # the library's, known in tests/metric/test_metric.py
@pytest.mark.parametrize("case", [case for case in CASES if case != "P2SGradLoss"])
def test_a_skipped_step_leaves_no_bit_of_what_is_deferred(case):
    """The library's P2SGradLoss is left out: its forward gives its weights length one, again and
    again.
    """
    objective = build(case)
    deferred = [part for part in objective.modules() if isinstance(part, Deferred)]
    before = {n: t.clone() for n, t in objective.state_dict().items()}
    for skip in (True, False):
        for step in range(2):
            objective(*batch(step))
        if skip:
            discard(objective)
        for part in deferred:
            part.commit()
        same = all(torch.equal(t, before[n]) for n, t in objective.state_dict().items())
        assert same == (skip or not deferred)


def test_drawing_leaves_the_training_s_own_generator_where_it_was():
    objective, (z, labels) = build("random triplets"), batch(0)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    objective(z, labels)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_row_that_is_no_number_on_one_rank_makes_the_loss_nan_on_all(ranks):
    assert all(ranks.run(bad_on_rank_one))


def bad_on_rank_one() -> bool:
    objective, (z, labels) = build("TripletMarginLoss"), batch(0)
    z, labels = (part.split(CUTS[2])[comm.rank()] for part in (z, labels))
    if comm.rank() == 1:
        z = z.index_fill(0, torch.tensor([2]), torch.nan)
    return bool(objective(z, labels).value.isnan())
