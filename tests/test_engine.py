"""Two engines behind one seam: the same steps at every ZeRO stage, and each reads what the other saved."""

import functools
import gc

import pytest
import torch
from torch import Tensor, nn

import toy
from lookalike import comm
from lookalike.backbones import Architecture
from lookalike.blocks import Loss
from lookalike.engine import ENGINES, State, zero
from lookalike.methods import METHODS
from lookalike.optim import OPTIMIZERS, Moment, parameter_groups, set_rates
from lookalike.statistics import global_batchnorm, standardize

# Moderate rates: large ones grow the last bit's rounding by an order of magnitude a step, on one rank too.
RATES = {"adamw": {"lr": 1e-3, "weight_decay": 0.1}, "sgd": {"lr": 1e-3, "weight_decay": 1e-3}, "lars": {"lr": 0.02}}
SAME = 1e-5  # relative, on the loss of every step, in fp32
CUT = "3 with every parameter cut"  # small ones, and here all are small, stay whole otherwise
STAGES = [0, 1, 2, 3, CUT]
METHOD_ARGUMENTS = {
    "moco_v2": {"projector": (16, 8), "queue": 40, "momentum": 0.9},
    "byol": {"projector": (16, 8), "predictor": (16, 8), "momentum": 0.9},
    "swav": {"projector": (16, 8), "prototypes": 10, "frozen_epochs": 0.5},
    "dino": {"hidden": 16, "bottleneck": 8, "prototypes": 12, "momentum": 0.9, "frozen_epochs": 0.5},
}


class Frozen(nn.Module):
    """Fine-tuning's shape: a backbone that is not trained, below a GeM and a head that are."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        args = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
        self.backbone = Architecture("resnet18", size=16, channels=1, pool="gem", args=args).build()
        self.head = nn.Linear(self.backbone.dim, 5, bias=False)
        self.backbone.model.requires_grad_(False)
        self.train()

    def forward(self, views):
        a, b = (standardize(self.head(self.backbone(view))) for view in views)
        return Loss(comm.mean((a - b).square()).sum(), {})


def system(kind: str) -> nn.Module:
    if kind in ("resnet", "vit"):
        return toy.system(kind)
    if kind == "frozen":
        return Frozen()
    torch.manual_seed(0)
    return METHODS[kind](toy.system("resnet" if kind == "byol" else "vit").backbone, **METHOD_ARGUMENTS[kind]).train()


@functools.cache
def settle() -> None:
    """DeepSpeed collects garbage at every start of stage 3: not through all that the imports have made."""
    gc.collect()
    gc.freeze()


def make(engine, optimizer: str = "adamw", kind: str = "resnet", accumulate: int = 1, prepare=None, **options):
    """`engine`: plain, or a ZeRO stage."""
    module = global_batchnorm(system(kind))
    if prepare:
        prepare(module)
    made = OPTIMIZERS[optimizer](parameter_groups(module), **RATES[optimizer])
    if engine == "plain":
        return ENGINES["plain"](module, made, accumulate=accumulate, **options)
    settle()
    zero._SMALL = 0 if engine == CUT else 100_000
    return ENGINES["zero"](module, made, accumulate=accumulate, stage=3 if engine == CUT else engine, **options)


def share(view: Tensor) -> Tensor:
    return view.tensor_split(comm.world_size())[comm.rank()]


def advance(engine, first: int, last: int, skip=()) -> list[float]:
    """Trains the steps [first, last) as the loop does; the loss of each micro-batch of steps that are not skipped."""
    losses = []
    for step in range(first, last):
        set_rates(engine.optimizer, 1 / (1 + step))
        for part in engine.module.modules():
            if callable(getattr(part, "begin", None)):
                part.begin(Moment(step, 6, step / 2))
        found = []
        for micro in range(engine.accumulate):
            loss = engine([share(view) for view in toy.views(step * 10 + micro)])
            engine.backward(loss.value)
            engine.step(step in skip)
            found.append(loss.value.item())
        if step not in skip:
            engine.follow()
            losses += found
    return losses


def train(engine, steps: int, *how, **options) -> tuple[list[float], State]:
    made = make(engine, *how, **options)
    return advance(made, 0, steps), made.save()


@functools.cache
def plain(steps: int, optimizer: str, kind: str = "resnet", accumulate: int = 1, clip: float = 0.0):
    return train("plain", steps, optimizer, kind, accumulate, clip=clip)


def equal(found: State, wanted: State) -> str:
    """The first name at which two states differ in a bit, or nothing."""
    for group, other in zip(found, wanted, strict=True):
        if group.keys() != other.keys():
            return f"other names: {sorted(group.keys() ^ other.keys())[:3]}"
        for name in group:
            if group[name].dtype != other[name].dtype or not torch.equal(group[name], other[name]):
                return name
    return ""


def close(found: State, wanted: State, rtol: float) -> None:
    for group, other in zip(found, wanted, strict=True):
        assert group.keys() == other.keys()
        largest = max((float(tensor.abs().max()) for tensor in other.values()), default=0.0)
        for name in group:
            # A bias before a BatchNorm has no gradient but rounding: its own size is no measure of it.
            scale = max(float(other[name].abs().max()), 1e-3 * largest)
            torch.testing.assert_close(group[name], other[name], atol=rtol * scale, rtol=0, msg=f"{name} differs")


# Not AdamW on a ViT: the biases of its keys have no gradient but rounding, which Adam scales up to whole steps.
CASES = {
    "adamw": ("adamw", "resnet", 1, 0.0),
    "sgd, clipped, in two": ("sgd", "vit", 2, 0.5),
    "sgd, in two": ("sgd", "resnet", 2, 0.0),
    "lars": ("lars", "resnet", 1, 0.0),
    "moco_v2, a teacher and a queue": ("sgd", "moco_v2", 2, 0.0),
    "byol, a teacher": ("sgd", "byol", 1, 0.0),
    "dino, a teacher and a centre": ("sgd", "dino", 1, 1.0),
    "swav, prototypes": ("sgd", "swav", 1, 0.0),
    "a frozen backbone": ("adamw", "frozen", 1, 0.0),
}


# Two processes on one core wait for each other at every exchange: not everything at every stage.
ON_TWO = {
    0: ["lars", "moco_v2, a teacher and a queue"],
    1: ["adamw", "sgd, clipped, in two", "byol, a teacher"],
    2: ["sgd, in two", "dino, a teacher and a centre", "swav, prototypes"],
    3: ["sgd, clipped, in two", "moco_v2, a teacher and a queue"],
    CUT: ["dino, a teacher and a centre", "a frozen backbone"],
}


def train_cases(stage, names) -> dict[str, tuple[list[float], State]]:
    chosen = {name: CASES[name] for name in names if name != "lars" or stage == 0}
    return {name: train(stage, 4, *case[:3], clip=case[3]) for name, case in chosen.items()}


@pytest.mark.parametrize("stage", STAGES)
def test_one_rank_at_any_stage_has_the_bits_of_plain(ranks, stage):
    (found,) = ranks.run(train_cases, stage, list(CASES), world=1)
    for name, (losses, state) in found.items():
        wanted = plain(4, *CASES[name])
        if CASES[name][3]:  # DeepSpeed adds up the gradient's norm in another order
            assert losses == pytest.approx(wanted[0], rel=SAME), name
            close(state, wanted[1], rtol=1e-4)
        else:
            assert losses == wanted[0], name
            assert not equal(state, wanted[1]), name


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_at_any_stage_train_as_plain_does_on_one(ranks, stage):
    one, two = ranks.run(train_cases, stage, ON_TWO[stage])
    for name, (losses, state) in one.items():
        wanted = plain(4, *CASES[name])
        assert losses == pytest.approx(wanted[0], rel=SAME), name
        assert state.optim.keys() == wanted[1].optim.keys()
        close(State(state.model, {}), State(wanted[1].model, {}), rtol=2e-3)
        assert losses == two[name][0], name
        assert not equal(two[name][1], state), name


def loaded_and_saved(stages, states) -> str:
    """What any stage saves of what it has loaded: the same bits, or the first name that differs."""
    for stage in stages:
        for kind, optimizer, state in states:
            engine = make(stage, optimizer, kind)
            engine.load(state)
            if name := equal(engine.save(), state):
                return f"{kind} at stage {stage}: {name}"
    return ""


@pytest.mark.parametrize("world", [1, 2])
def test_what_is_loaded_is_saved_again_bit_for_bit_at_every_stage(ranks, world):
    states = [(kind, optimizer, plain(4, optimizer, kind)[1]) for kind, optimizer in STATES]
    assert not any(ranks.run(loaded_and_saved, STAGES, states, world=world))


STATES = [("byol", "sgd"), ("moco_v2", "adamw"), ("frozen", "adamw")]


def go_on(stage, optimizer: str, states) -> list[list[float]]:
    """The losses of steps 3 and 4 after each of the states of step 3."""
    found = []
    for state in states:
        engine = make(stage, optimizer, "moco_v2")
        engine.load(state)
        found.append(advance(engine, 3, 5))
    return found


def write(stage, optimizer: str) -> State:
    return train(stage, 3, optimizer, "moco_v2")[1]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_any_stage_and_world_goes_on_from_what_any_other_saved(ranks, optimizer):
    """Each reader gets what plain, another stage on one rank and a third one on two ranks have written."""
    wanted = plain(5, optimizer, "moco_v2")[0][3:]
    alone = [ranks.run(write, stage, optimizer, world=1)[0] for stage in STAGES]
    by_two = [ranks.run(write, stage, optimizer)[0] for stage in STAGES]
    for world in (1, 2):
        for place, stage in enumerate(STAGES):
            written = [plain(3, optimizer, "moco_v2")[1], alone[place - 1], by_two[place - 2]]
            for found in ranks.run(go_on, stage, optimizer, written, world=world):
                assert found == [pytest.approx(wanted, rel=SAME)] * 3, (stage, world)
    assert go_on("plain", optimizer, alone + by_two) == [pytest.approx(wanted, rel=SAME)] * 10


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_comes_back_to_the_same_bits_at_the_same_world(ranks, stage):
    assert ranks.run(same_bits, stage) == ["", ""]


def same_bits(stage) -> str:
    first = make(stage, "adamw", "moco_v2")
    advance(first, 0, 2)
    state = first.save()
    losses, after = advance(first, 2, 4), first.save()
    second = make(stage, "adamw", "moco_v2")
    second.load(state)
    return "other losses" if advance(second, 2, 4) != losses else equal(second.save(), after)
