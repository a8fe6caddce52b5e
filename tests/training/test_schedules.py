"""Laws of schedules: the default is what it was, the others are torch's; what contradicts itself is
refused.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch.optim import lr_scheduler

import toy
from lookalike.errors import RecipeError
from lookalike.experiment import OPTIMIZER, SCHEDULE, Finetune, Training
from lookalike.optim import SCHEDULES, warmup_cosine
from lookalike.recipe import digests
from lookalike.show import show
from lookalike.training import loop

PER_EPOCH = 7
ADAM = OPTIMIZER.spec("adam", lr=1e-3)


def training(name: str = "cosine", epochs: int = 12, **keys) -> Training:
    schedule = SCHEDULE.spec(name, **keys.pop("args", {}))
    return Training(optimizer=ADAM, epochs=epochs, schedule=schedule, **keys)


def rates(settings: Training) -> list[float]:
    return [settings.rate(step, PER_EPOCH) for step in range(settings.epochs * PER_EPOCH)]


def torch_s(steps: int, make) -> list[float]:
    """The rates that torch's scheduler sets, of a base rate of 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def after(optimizer, warmup: int, start: float, then) -> lr_scheduler.SequentialLR:
    first = lr_scheduler.LinearLR(optimizer, start_factor=start, total_iters=warmup)
    return lr_scheduler.SequentialLR(optimizer, [first, then], [warmup])


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 3.0, 12.0])
@pytest.mark.parametrize("final", [0.0, 0.001, 0.3])
def test_the_default_is_the_cosine_of_before_to_the_bit(warmup_epochs, final):
    settings = Training(optimizer=ADAM, epochs=12, warmup_epochs=warmup_epochs, final_lr=final)
    warmup = round(warmup_epochs * PER_EPOCH)
    assert rates(settings) == [
        warmup_cosine(step, steps=84, warmup=warmup, final=final) for step in range(84)
    ]


def test_the_cosine_is_torch_s_between_the_warm_up_and_the_last_step():
    settings = training(warmup_epochs=2.0, final_lr=0.1)
    expected = torch_s(70, lambda o: lr_scheduler.CosineAnnealingLR(o, 69, eta_min=0.1))
    assert rates(settings)[14:] == pytest.approx(expected, rel=1e-9)


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_a_baseline_s_steps_are_torch_s_after_its_warm_up():
    settings = training(
        "steps",
        warmup_epochs=2.0,
        warmup_start=0.1,
        args={"at": (4, 7.5, 9), "factor": 0.2},
    )
    milestones = [round(epoch * PER_EPOCH) - 14 for epoch in (4, 7.5, 9)]
    expected = torch_s(
        84,
        lambda o: after(o, 14, 0.1, lr_scheduler.MultiStepLR(o, milestones, gamma=0.2)),
    )
    assert rates(settings) == pytest.approx(expected, rel=1e-9)
    assert rates(settings)[0] == pytest.approx(0.1)
    assert rates(settings)[14] == 1.0


@pytest.mark.parametrize("final", [0.0, 0.25])
def test_a_line_is_torch_s(final):
    settings = training("linear", warmup_epochs=0.0, final_lr=final)
    expected = torch_s(84, lambda o: lr_scheduler.LinearLR(o, 1.0, final, total_iters=83))
    assert rates(settings) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_a_constant_rate_stays_after_torch_s_warm_up():
    settings = training("constant", warmup_epochs=3.0, warmup_start=0.25)
    expected = torch_s(84, lambda o: after(o, 21, 0.25, lr_scheduler.ConstantLR(o, 1.0)))
    assert rates(settings) == pytest.approx(expected, rel=1e-9)
    assert set(rates(training("constant", warmup_epochs=0.0))) == {1.0}


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_warms_up_alike_and_is_positive_and_at_most_one(name):
    keys = {"args": {"at": (6,)}} if name == "steps" else {}
    settings = training(name, warmup_epochs=2.0, **keys)
    assert rates(settings)[:14] == [(step + 1) / 14 for step in range(14)]
    assert all(0 < rate <= 1 and math.isfinite(rate) for rate in rates(settings))


def test_a_run_has_the_rates_of_its_schedule(tmp_path, monkeypatch):
    """Each step of a training trains at the rate that the section says."""
    seen, given = [], loop.set_rates
    monkeypatch.setattr(loop, "set_rates", lambda *words: seen.append(words[1]) or given(*words))
    recipe = toy.recipe(
        "pretrain.schedule={name: steps, at: [1], factor: 0.5}", "pretrain.warmup_start=0.2"
    )
    from lookalike.stages.pretrain import pretrain

    pretrain(recipe, tmp_path / "run")
    settings = recipe.pretrain
    per_epoch = len(seen) // settings.epochs
    assert seen == [settings.rate(step, per_epoch) for step in range(len(seen))]
    assert seen[0] == pytest.approx(0.2)
    assert seen[-1] == 0.5


REFUSED = {
    "schedule={name: steps, at: [4, 2]}": "schedule.at: 4, 2: let the epochs ascend",
    "schedule={name: steps, at: [2, 2]}": "schedule.at: 2, 2: let the epochs ascend",
    "schedule={name: steps, at: [0.5]}": "schedule.at: epoch 0.5 lies in the warm-up of 1: shorten",
    "schedule={name: steps, at: [3, 9]}": "schedule.at: epoch 9 is never reached in 9: lower it",
    "schedule={name: steps, at: []}": "at",
    "schedule={name: steps, at: [3], factor: 1.5}": "factor",
    "schedule={name: stairs}": "stairs",
    "schedule={name: steps}": "at",
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_schedule_that_contradicts_itself_is_refused(words):
    with pytest.raises(RecipeError, match=REFUSED[words]):
        toy.recipe("pretrain.epochs=9", "pretrain.warmup_epochs=1", f"pretrain.{words}")


def test_a_final_rate_that_no_schedule_goes_to_is_refused():
    with pytest.raises(RecipeError, match="final_lr: schedule constant goes to no rate of its own"):
        toy.recipe("pretrain.schedule=constant", "pretrain.final_lr=0.1")


def test_the_new_keys_left_alone_change_no_digest_and_set_change_it():
    plain = toy.recipe()
    same = toy.recipe("pretrain.schedule={name: cosine}", "pretrain.warmup_start=null")
    assert digests(plain, "pretrain") == digests(same, "pretrain")
    for word in ("schedule=linear", "warmup_start=0.1", "views={name: asymmetric, erase: 0.5}"):
        other = toy.recipe(f"pretrain.{word}")
        assert not set(digests(plain, "pretrain")) & set(digests(other, "pretrain")), word


def test_show_says_the_schedule():
    text = show(toy.recipe("pretrain.schedule={name: steps, at: [1]}", "pretrain.warmup_start=0.1"))
    said = "schedule    times 0.1 at epochs 1, after a warm-up of 0.5 epochs from 0.1 of the rate"
    assert said in text.splitlines()
    assert "schedule    cosine to 0.001 of the rate, after a warm-up of 0.5 epochs" in show(
        toy.recipe()
    )


def test_fine_tuning_has_the_same_keys():
    settings = Finetune(optimizer=ADAM, epochs=4, schedule=SCHEDULE.spec("steps", at=(2,)))
    assert settings.rate(3 * PER_EPOCH, PER_EPOCH) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"schedule\.at"):
        replace(settings, epochs=2)
