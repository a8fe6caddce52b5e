"""fp16's loss scale: torch's GradScaler on any engine; an overflow is not trouble, a NaN is."""

import gc

import pytest
import torch
from torch import Tensor

import toy
from lookalike import comm
from lookalike.engine import ENGINES, State, scaler, zero
from lookalike.engine.scaler import FLOOR, START
from lookalike.nn.batchnorm import global_batchnorm
from lookalike.nn.precision import autocast
from lookalike.optim import OPTIMIZERS, parameter_groups
from lookalike.process import fault
from lookalike.process.signals import Stopped
from lookalike.stages.pretrain import pretrain

CPU = torch.device("cpu")


def make(engine="plain", precision="fp16", clip: float = 0.5, late: bool = False, kind="resnet"):
    module = global_batchnorm(toy.system(kind))
    stepping = OPTIMIZERS["sgd"](parameter_groups(module), lr=1e-2)
    how = {"precision": precision, "clip": clip, "late": late}
    if engine == "plain":
        return ENGINES["plain"](module, stepping, **how)
    gc.freeze()
    zero._SMALL = 0
    return ENGINES["zero"](module, stepping, stage=engine, **how)


def share(step: int) -> list[Tensor]:
    return [view.tensor_split(comm.world_size())[comm.rank()] for view in toy.views(step)]


def advance(engine, steps, spoil: float = 1.0) -> list[tuple[bool, bool]]:
    """As the loop does; what was agreed on of each step: skipped, trouble."""
    found = []
    for step in steps:
        loss = engine([view * spoil for view in share(step)]).value
        engine.backward(loss)
        skip, trouble = comm.all_max(engine.broken(loss)).bool()
        found.append((skip.item(), trouble.item()))
        engine.step(*((skip, trouble) if engine.late else found[-1]))
        if engine.late or not skip:
            engine.follow(~skip)
    return found


def scale_of(engine) -> float:
    return engine.values()["loss_scale"]


def set_scale(engine, scale: float) -> None:
    engine._scaler.scale.fill_(scale)


def same(one: State, other: State) -> bool:
    return toy.same(one.model, other.model) and toy.same(one.optim, other.optim)


@pytest.mark.parametrize("late", [False, True])
def test_plain_trains_as_torch_and_its_scaler_do(monkeypatch, late):
    """From a scale that overflows at first, with growth every second good step, clipped or not."""
    clip = 0.0 if late else 0.5
    monkeypatch.setattr(scaler, "INTERVAL", 2)
    engine, module = make(late=late, clip=clip), toy.system()
    set_scale(engine, 2.0**12)
    optimizer = OPTIMIZERS["sgd"](parameter_groups(module), lr=1e-2)
    wanted = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    seen = []
    for step in range(8):
        advance(engine, [step])
        with autocast(CPU, "fp16"):
            loss = module(share(step)).value
        wanted.scale(loss).backward()
        wanted.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(module.parameters(), clip or float("inf"))
        wanted.step(optimizer)
        wanted.update()
        optimizer.zero_grad()
        seen.append(scale_of(engine))
        assert seen[-1] == wanted.get_scale()
    assert min(seen) < 2.0**12
    assert any(b > a for a, b in zip(seen, seen[1:], strict=False))
    for name, p in module.named_parameters():
        assert torch.equal(p, engine.module.get_parameter(name)), name


@pytest.mark.parametrize("late", [False, True])
def test_an_overflow_alone_halves_the_scale_and_is_no_trouble(late):
    engine = make(late=late)
    set_scale(engine, 2.0**8)
    assert advance(engine, [0]) == [(False, False)]
    set_scale(engine, 2.0**40)
    before = engine.save()
    assert advance(engine, [1]) == [(True, False)]
    assert scale_of(engine) == 2.0**39
    after = engine.save()
    changed = {
        name for name in after.optim if not torch.equal(after.optim[name], before.optim[name])
    }
    assert toy.same(after.model, before.model)
    assert changed == {"loss_scale/scale", "loss_scale/good_steps"}


@pytest.mark.parametrize("late", [False, True])
def test_a_loss_of_nan_or_an_overflow_at_the_floor_is_trouble_without_a_trace(late):
    engine = make(late=late)
    set_scale(engine, 2.0**8)
    assert advance(engine, [0]) == [(False, False)]
    before = engine.save()
    assert advance(engine, [1], spoil=float("nan")) == [(True, True)]
    assert same(engine.save(), before)
    with torch.no_grad():
        for p in engine.module.parameters():
            p.register_hook(lambda g: g * float("inf"))
    set_scale(engine, 2.0)
    assert advance(engine, [1, 2]) == [(True, False), (True, True)]
    assert scale_of(engine) == FLOOR


def test_nothing_is_scaled_in_fp32():
    engine = make(precision="fp32")
    advance(engine, [0])
    assert engine.values() == {}
    assert not [name for name in engine.save().optim if "scale" in name]


def test_states_cross_engines_with_and_without_a_scale():
    engine, plain = make(), make(precision="fp32")
    set_scale(engine, 2.0**8)
    assert advance(engine, range(2)) == [(False, False)] * 2
    saved = engine.save()
    again = make()
    again.load(saved)
    advance(engine, range(2, 5))
    advance(again, range(2, 5))
    assert same(engine.save(), again.save())
    plain.load(saved)
    advance(plain, [2])
    again.load(plain.save())
    assert scale_of(again) == START


def at_stage(stage, late: bool) -> tuple[State, list[tuple[bool, bool]], float]:
    engine = make(stage, clip=0.0, late=late, kind="vit")
    set_scale(engine, 2.0**12)
    found = advance(engine, range(6))
    return engine.save(), found, scale_of(engine)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_zero_has_the_bits_of_plain(ranks, stage):
    wanted = at_stage("plain", False)
    (found,) = ranks.run(at_stage, stage, False, world=1)
    assert found[1:] == wanted[1:]
    assert (True, False) in found[1]
    assert (False, False) in found[1]
    assert same(found[0], wanted[0])


@pytest.mark.parametrize("stage", [0, 3])
def test_ranks_agree_on_the_scale(ranks, stage):
    one, two = ranks.run(at_stage, stage, True)
    assert one[1:] == two[1:]
    assert (True, False) in one[1]
    assert same(one[0], two[0])


@pytest.mark.slow
def test_a_training_says_its_scale_and_goes_on_with_it(tmp_path, monkeypatch):
    monkeypatch.setattr(scaler, "START", 2.0**12)
    words = ("pretrain.precision=fp16", "pretrain.epochs=1")
    with toy.heard() as texts:
        pretrain(toy.recipe(*words), tmp_path / "whole")
        with fault.plan("term:rank=0,step=4"), pytest.raises(Stopped):
            pretrain(toy.recipe(*words), tmp_path / "run")
        pretrain(toy.recipe(*words), tmp_path / "run")
    assert not texts
    assert toy.same(toy.tensors(tmp_path / "run", 9), toy.tensors(tmp_path / "whole", 9))
    for run in ("run", "whole"):
        last = toy.lines(tmp_path / run / "metrics.jsonl")[-1]
        assert 1 <= last["loss_scale"] < 2.0**12
        assert 1 <= last["skipped"] < 9
