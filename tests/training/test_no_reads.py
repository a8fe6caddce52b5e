"""In a step the host asks the device nothing: no scalar is read, no tensor's size depends on data.

Counted on a CPU: whatever an engine, a method or an optimizer does there to a tensor it would do on
a GPU. Random draws, batches and what ranks agree on are the host's, and stand outside.
"""

import collections
import gc

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import toy
from lookalike import rng
from lookalike.engine import ENGINES, zero
from lookalike.methods import METHODS
from lookalike.metric import sizes
from lookalike.metric.memory import MemorySettings
from lookalike.metric.objectives import OBJECTIVE, OWN, Objective
from lookalike.optim import OPTIMIZERS, Progress, parameter_groups, set_rates
from lookalike.training.verdict import Verdicts

CUT = "3 with every parameter cut"
ASKING = {"tolist", "item", "numpy", "__bool__", "__int__", "__float__", "__index__"}
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "_unique",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "is_nonzero",
    "masked_select",
    "equal",
}


class Reads(TorchDispatchMode):
    """Counts what a GPU would have to be waited for, by the operator's name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = [i for i in args[1] if i is not None] if name in ("index", "index_put_") else []
        if name in WAITING or any(m.dtype in (torch.bool, torch.uint8) for m in masks):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Asks(TorchFunctionMode):
    """Counts what does not pass the dispatcher on a CPU."""

    def __init__(self, found: collections.Counter) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ASKING:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


def engine_of(module, engine="plain", optimizer: str = "adamw", **options):
    made = OPTIMIZERS[optimizer](parameter_groups(module), lr=1e-3)
    for group in made.param_groups:
        group["fused"] = True
    if engine == "plain":
        return ENGINES["plain"](module, made, late=True, **options)
    gc.freeze()
    zero._SMALL = 0 if engine == CUT else 100_000
    stage = 3 if engine == CUT else engine
    return ENGINES["zero"](module, made, stage=stage, late=True, **options)


def reads(engine, inputs, steps: int = 3) -> dict[str, int]:
    """Of the last of a few steps as the loop takes them, one of them bad."""
    verdicts, counted = Verdicts(late=True), Reads()
    for step in range(steps):
        counted.found.clear()
        set_rates(engine.optimizer, 1.0)
        with counted, Asks(counted.found):
            engine.start(Progress(step, steps, step / 2))
            loss = engine(*inputs(step))
            engine.backward(loss.value)
            broken = engine.broken(loss.value)
        decision = verdicts.decide(step + 1, broken, False, 0, 0)
        with counted, Asks(counted.found):
            engine.step(*decision)
            engine.follow(decision.good)
        assert len(list(verdicts.known(settle=False))) == (step > 0)
    return dict(counted.found)


def views(name: str, step: int):
    found = toy.views(step)
    if METHODS[name].more_views:
        found += [view[..., 4:12, 4:12] for view in found]
    return (found, torch.arange(16) % 3) if name == "supcon" else (found,)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_of_a_method_reads_nothing(name):
    torch.manual_seed(0)
    module = METHODS[name](toy.architecture().build(), **toy.HEADS[name]).train()
    assert reads(engine_of(module, clip=1.0), lambda step: views(name, step)) == {}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_of_an_optimizer_and_of_the_scaler_reads_nothing(optimizer, precision):
    torch.manual_seed(0)
    module = METHODS["moco_v2"](toy.architecture().build(), **toy.HEADS["moco_v2"]).train()
    engine = engine_of(module, "plain", optimizer, precision=precision, accumulate=1)
    assert reads(engine, lambda step: views("moco_v2", step)) == {}


def zero_reads(stage) -> dict[str, int]:
    torch.manual_seed(0)
    module = METHODS["moco_v2"](toy.architecture().build(), **toy.HEADS["moco_v2"]).train()
    engine = engine_of(module, stage, precision="fp16", clip=1.0)
    return reads(engine, lambda step: views("moco_v2", step))


@pytest.mark.parametrize("stage", [0, 1, 2, 3, CUT])
def test_a_step_of_zero_reads_nothing(ranks, stage):
    assert ranks.run(zero_reads, stage, world=1) == [{}]


# These compare a row with no other row of the past.
ALONE = {"MultiClassNPairLoss", "CrossEntropyLoss"}


class Tuned(nn.Module):
    """A linear map and an objective on top."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.map, self.objective = nn.Linear(8, 8), objective

    def forward(self, x_BD, labels_B):
        return self.objective(self.map(x_BD), labels_B)


def own_step(name: str, monkeypatch, memory: MemorySettings | None = None) -> dict[str, int]:
    """What a step with one of our objectives reads where a number of the device is a wait."""
    monkeypatch.setattr(sizes, "seen", lambda _: False)
    monkeypatch.setattr(rng, "seed", lambda *_: 5)  # a draw of the host
    torch.manual_seed(0)
    objective = Objective(
        OBJECTIVE.spec(name), None, num_classes=4, embedding_size=8, memory=memory
    )
    engine = engine_of(Tuned(objective).train())
    return reads(engine, lambda step: (torch.randn(24, 8), torch.arange(24) * 7 % 4))


@pytest.mark.parametrize("name", [kind.__name__ for kind in OWN])
def test_a_step_of_an_objective_of_ours_reads_nothing(name, monkeypatch):
    """And the engine around it with any objective: of the library's, all is their own."""
    assert own_step(name, monkeypatch) == {}


@pytest.mark.parametrize("name", [kind.__name__ for kind in OWN if kind.__name__ not in ALONE])
def test_nor_does_one_that_looks_back_at_a_memory(name, monkeypatch):
    assert own_step(name, monkeypatch, MemorySettings(size=40)) == {}


def test_on_a_cpu_lists_are_made():
    """Where a number costs no wait, less is computed."""
    torch.manual_seed(0)
    objective = Objective(OBJECTIVE.spec("FaceNetLoss"), None, num_classes=4, embedding_size=8)
    counted = Reads()
    with counted, Asks(counted.found):
        objective(torch.randn(24, 8), torch.arange(24) % 4)
    assert counted.found


def test_the_counter_counts():
    counted = Reads()
    x = torch.randn(4)
    with counted, Asks(counted.found):
        _ = bool(x.sum() > 0), x[x > 0], x.nonzero(), x.tolist(), float(x[0]), torch.unique(x)
    assert sum(counted.found.values()) >= 6
