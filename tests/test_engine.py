"""Two engines behind one seam: the same steps, and each reads what the other saved."""

import pytest
import torch
from torch import Tensor

import toy
from lookalike import comm
from lookalike.engine import ENGINES, State
from lookalike.errors import RunError
from lookalike.optim import OPTIMIZERS, parameter_groups, set_rates
from lookalike.statistics import global_batchnorm

# Moderate rates: large ones grow the last bit's rounding by an order of magnitude a step, on one rank too.
RATES = {"adamw": {"lr": 1e-3, "weight_decay": 0.1}, "sgd": {"lr": 1e-3, "weight_decay": 1e-3}, "lars": {"lr": 0.02}}
SAME = 1e-5  # relative, on the loss of every step, in fp32


def make(engine: str, optimizer: str = "adamw", kind: str = "resnet", accumulate: int = 1, **options):
    module = global_batchnorm(toy.system(kind))
    made = OPTIMIZERS[optimizer](parameter_groups(module), **RATES[optimizer])
    return ENGINES[engine](module, made, accumulate=accumulate, **options)


def share(view: Tensor) -> Tensor:
    return view.tensor_split(comm.world_size())[comm.rank()]


def advance(engine, first: int, last: int) -> list[float]:
    """Trains the steps [first, last); the loss of each micro-batch."""
    losses = []
    for step in range(first, last):
        set_rates(engine.optimizer, 1 / (1 + step))
        for micro in range(engine_accumulation(engine)):
            loss = engine([share(view) for view in toy.views(step * 10 + micro)])
            engine.backward(loss.value)
            engine.step()
            losses.append(loss.value.item())
    return losses


def engine_accumulation(engine) -> int:
    return getattr(engine, "accumulate", None) or engine._engine.gradient_accumulation_steps()


def train(engine: str, steps: int, *how, options: dict | None = None) -> tuple[list[float], State]:
    made = make(engine, *how, **(options or {}))
    return advance(made, 0, steps), made.save()


def close(found: State, wanted: State, rtol: float) -> None:
    for group, other in zip(found, wanted, strict=True):
        assert group.keys() == other.keys()
        largest = max(float(tensor.abs().max()) for tensor in other.values())
        for name in group:
            # A bias before a BatchNorm has no gradient but rounding: its own size is no measure of it.
            scale = max(float(other[name].abs().max()), 1e-3 * largest)
            torch.testing.assert_close(group[name], other[name], atol=rtol * scale, rtol=0, msg=f"{name} differs")


# Not AdamW on a ViT: the biases of its keys have no gradient but rounding, which Adam scales up to whole steps.
CASES = [
    ("adamw", "resnet", 1, {}, 0),
    ("adamw", "resnet", 1, {}, 1),
    ("sgd", "vit", 2, {"clip": 0.5}, 0),
    ("sgd", "vit", 2, {"clip": 0.5}, 1),
    ("sgd", "resnet", 2, {}, 1),
    ("lars", "resnet", 1, {}, 0),
]


@pytest.mark.parametrize(("optimizer", "kind", "accumulate", "options", "stage"), CASES)
def test_zero_equals_plain_step_by_step_on_one_rank(ranks, optimizer, kind, accumulate, options, stage):
    losses, state = train("plain", 5, optimizer, kind, accumulate, options=options)
    ((found, other),) = ranks.run(train_zero, optimizer, kind, accumulate, {**options, "stage": stage}, world=1)
    assert found == pytest.approx(losses, rel=SAME)
    close(other, state, rtol=1e-4)


@pytest.mark.parametrize(("optimizer", "kind", "accumulate", "options", "stage"), CASES)
def test_zero_on_two_ranks_trains_as_plain_does_on_one(ranks, optimizer, kind, accumulate, options, stage):
    losses, state = train("plain", 5, optimizer, kind, accumulate, options=options)
    parts = ranks.run(train_zero, optimizer, kind, accumulate, {**options, "stage": stage})
    for found, other in parts:
        assert found == pytest.approx(losses, rel=SAME)
        assert other.model.keys() == state.model.keys()
        assert other.optim.keys() == state.optim.keys()


def whole_gradient(kind: str, cut: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient of the whole method in fp64, averaged over ranks as an engine does."""
    module = global_batchnorm(toy.system(kind).double())
    views = [view.double().split(cut)[comm.rank()] for view in toy.views(0)]
    loss = module(views).value
    loss.backward()
    gradient = [comm.together(p.grad) / comm.world_size() for p in module.parameters() if p.grad is not None]
    return loss.detach(), gradient


@pytest.mark.parametrize("cut", [[8, 8], [5, 11]], ids=["even", "uneven"])
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_gradient_of_a_whole_method_on_two_ranks_is_that_of_one_process(ranks, kind, cut):
    loss, gradient = whole_gradient(kind, [16])
    scale = max(float(g.abs().max()) for g in gradient)
    for found, other in ranks.run(whole_gradient, kind, cut):
        torch.testing.assert_close(found, loss, rtol=1e-9, atol=0)
        for a, b in zip(other, gradient, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * scale)


def train_zero(optimizer, kind, accumulate, options) -> tuple[list[float], State]:
    return train("zero", 5, optimizer, kind, accumulate, options=options)


def test_clipping_is_off_unless_asked_for(ranks):
    """DeepSpeed alone would clip at norm 1; this system's gradient is longer than that."""
    free, _ = train("plain", 4, "sgd")
    clipped, _ = train("plain", 4, "sgd", options={"clip": 0.01})
    assert free[-1] != pytest.approx(clipped[-1], rel=1e-3)
    ((found, _),) = ranks.run(train_zero_4, world=1)
    assert found == pytest.approx(free, rel=SAME)


def train_zero_4() -> tuple[list[float], State]:
    return train("zero", 4, "sgd")


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("stage", [0, 1])
def test_zero_goes_on_from_what_plain_saved(ranks, optimizer, world, stage):
    plain = make("plain", optimizer)
    advance(plain, 0, 3)
    state = plain.save()
    wanted = advance(plain, 3, 6)
    for found, _ in ranks.run(go_on, optimizer, stage, state, world=world):
        assert found == pytest.approx(wanted, rel=SAME)


def go_on(optimizer: str, stage: int, state: State) -> tuple[list[float], State]:
    engine = make("zero", optimizer, stage=stage)
    engine.load(state)
    return advance(engine, 3, 6), engine.save()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stage", [0, 1])
def test_plain_goes_on_from_what_zero_saved_on_two_ranks(ranks, optimizer, stage):
    wanted, state = ranks.run(stop_and_go, optimizer, stage)[0]
    plain = make("plain", optimizer)
    plain.load(state)
    assert advance(plain, 3, 6) == pytest.approx(wanted, rel=SAME)


def stop_and_go(optimizer: str, stage: int) -> tuple[list[float], State]:
    engine = make("zero", optimizer, stage=stage)
    advance(engine, 0, 3)
    state = engine.save()
    return advance(engine, 3, 6), state


@pytest.mark.parametrize("stage", [0, 1])
def test_zero_comes_back_to_the_same_bits_at_the_same_world(ranks, stage):
    for good in ranks.run(same_bits, stage):
        assert good


def same_bits(stage: int) -> bool:
    first = make("zero", "adamw", stage=stage)
    advance(first, 0, 3)
    state = first.save()
    losses, after = advance(first, 3, 5), first.save()
    second = make("zero", "adamw", stage=stage)
    second.load(state)
    same = advance(second, 3, 5) == losses
    other = second.save()
    return same and all(torch.equal(a[k], b[k]) for a, b in zip(after, other, strict=True) for k in a)


def test_a_saved_state_does_not_follow_later_steps():
    engine = make("plain")
    advance(engine, 0, 1)
    state = engine.save()
    before = {name: tensor.clone() for name, tensor in state.model.items()}
    advance(engine, 1, 2)
    assert all(torch.equal(before[name], state.model[name]) for name in before)
    assert any(not torch.equal(before[name], engine.save().model[name]) for name in before)


def test_lars_with_sharded_state_is_refused_with_the_reason(ranks):
    for text in ranks.run(refusal):
        assert "LARS needs whole layers" in text
        assert "stage: 0" in text


def refusal() -> str:
    try:
        make("zero", "lars", stage=1)
    except RunError as error:
        return str(error)
    return "accepted"


def test_plain_refuses_several_ranks(ranks):
    for text in ranks.run(plain_refusal):
        assert "zero" in text


def plain_refusal() -> str:
    try:
        make("plain")
    except RunError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize("engine", ["plain", "zero"])
def test_bf16_keeps_parameters_and_loss_in_fp32(ranks, engine):
    ((dtypes, losses),) = ranks.run(in_bf16, engine, world=1)
    exact, _ = train("plain", 2)
    assert dtypes == {torch.float32, torch.int64}
    assert losses[0] == pytest.approx(exact[0], rel=0.05)
    assert losses != exact


def in_bf16(engine: str):
    losses, state = train(engine, 2, "adamw", "resnet", 1, options={"precision": "bf16"})
    return {tensor.dtype for tensor in state.model.values()}, losses
