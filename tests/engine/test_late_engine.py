"""A bad step that only the device knows of leaves no trace: the bits are those of an engine that
was told by the host, at every stage, on every rank, with fused optimizers too.
"""

import gc

import pytest
import torch
from torch import Tensor

import toy
from lookalike import comm
from lookalike.engine import ENGINES, State, zero
from lookalike.methods import METHODS
from lookalike.nn.batchnorm import global_batchnorm
from lookalike.optim import OPTIMIZERS, Progress, parameter_groups, set_rates

CUT = "3 with every parameter cut"
BAD = (0, 2, 3)  # the first step, when moments do not exist, and two in a row
STEPS = 5
RATES = {"sgd": {"lr": 1e-2}, "adamw": {"lr": 1e-3}, "adam": {"lr": 1e-3}, "lars": {"lr": 0.02}}
METHOD_ARGUMENTS = {
    "moco_v2": {"projector": (16, 8), "queue": 40, "momentum": 0.9},
    "byol": {"projector": (16, 8), "predictor": (16, 8), "momentum": 0.9},
    "tico": {"projector": (16, 8), "momentum": 0.9},
    "dino": {"hidden": 16, "bottleneck": 8, "prototypes": 12, "momentum": 0.9},
}


def make(kind: str, engine, optimizer: str, fused: bool, late: bool, **options):
    torch.manual_seed(0)
    made = METHODS[kind](toy.architecture("resnet").build(), **METHOD_ARGUMENTS[kind])
    module = global_batchnorm(made.train())
    stepping = OPTIMIZERS[optimizer](parameter_groups(module), **RATES[optimizer])
    for group in stepping.param_groups:
        group["fused"] = fused or None
    if engine == "plain":
        return ENGINES["plain"](module, stepping, late=late, **options)
    gc.freeze()
    zero._SMALL = 0 if engine == CUT else 100_000
    stage = 3 if engine == CUT else engine
    return ENGINES["zero"](module, stepping, stage=stage, late=late, **options)


def views(step: int, bad: bool) -> list[Tensor]:
    """This rank's; NaN on the last rank alone."""
    found = [v.tensor_split(comm.world_size())[comm.rank()] for v in toy.views(step)]
    return (
        [v * float("nan") for v in found] if bad and comm.rank() + 1 == comm.world_size() else found
    )


def train(engine, bad=BAD, first: int = 0, last: int = STEPS) -> State:
    """As the loop does; the late engine is never told by the host."""
    for step in range(first, last):
        set_rates(engine.optimizer, 1 / (1 + step))
        engine.start(Progress(step, STEPS, step / 2))
        for micro in range(engine.accumulate):
            if micro:
                engine.step()
            loss = engine(views(10 * step + micro, step in bad)).value
            engine.backward(loss)
        flags = comm.all_max(engine.broken(loss))
        skip, trouble = flags.bool()
        assert skip.item() == trouble.item() == (step in bad)
        if not engine.late:
            skip, trouble = skip.item(), trouble.item()
        engine.step(skip, trouble)
        if skip is not True:
            engine.follow(~skip if engine.late else True)
    return engine.save()


def differing(found: State, wanted: State) -> list[str]:
    names = [
        f"{n} is there or not" for a, b in zip(found, wanted, strict=True) for n in a.keys() ^ b
    ]
    return names + [
        name
        for a, b in zip(found, wanted, strict=True)
        for name in a.keys() & b.keys()
        if not torch.equal(a[name], b[name])
    ]


CASES = [
    ("moco_v2", "adamw", False, 2),
    ("byol", "sgd", True, 1),
    ("tico", "adamw", True, 1),
    ("dino", "sgd", False, 1),
]


def both_ways(engine, cases) -> list[list[str]]:
    found = []
    for kind, optimizer, fused, accumulate in cases:
        how = (kind, engine, optimizer, fused)
        one, other = (
            train(make(*how, late, accumulate=accumulate, clip=1.0)) for late in (True, False)
        )
        found.append(differing(one, other))
    return found


def test_a_bad_step_leaves_no_trace_in_one_process():
    more = [("byol", "lars", False, 1), ("byol", "lars", True, 1), ("moco_v2", "adam", True, 1)]
    assert not any(both_ways("plain", [*CASES, *more]))


@pytest.mark.parametrize(
    "stage", [0, 1, 3, *(pytest.param(stage, marks=pytest.mark.slow) for stage in (2, CUT))]
)
def test_a_bad_step_on_one_rank_leaves_no_trace_on_any(ranks, stage):
    cases = CASES[:2] if stage in (0, 1, CUT) else CASES[2:3]
    assert ranks.run(both_ways, stage, cases) == [[[]] * len(cases)] * 2


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "lars"])
@pytest.mark.parametrize("fused", [False, True])
def test_bad_steps_are_as_if_they_had_not_been(optimizer, fused):
    """Parameters, moments, counters, queue, teacher and running statistics are those of a training
    that never saw them, and a training without any has the bits of the host's way.
    """
    late = make("moco_v2", "plain", optimizer, fused, True)
    before = train(late, bad=(), last=2)
    assert not differing(train(late, bad=(2, 3, 4), first=2), before)
    assert not differing(
        before, train(make("moco_v2", "plain", optimizer, fused, False), (), last=2)
    )
