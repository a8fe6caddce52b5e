"""Laws of the average of weights: its formula, on good steps only, resumed and on any engine the
same.
"""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import toy
from lookalike.engine import ENGINES
from lookalike.errors import RecipeError
from lookalike.models import card
from lookalike.models.embedding import open_model
from lookalike.nn.ema import Averaged
from lookalike.nn.hooks import follow, start_step
from lookalike.nn.loss import Loss
from lookalike.optim import OPTIMIZERS, Progress, parameter_groups
from lookalike.recipe import digests
from lookalike.stages import finetune

DECAY = 0.8


class System(nn.Module):
    """A network and its average beside it."""

    def __init__(self, decay: float = DECAY) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))
        self.model[2].bias.requires_grad_(False)
        self.average = Averaged(self.model, decay)

    def forward(self, x: Tensor) -> Loss:
        z = self.model(x)
        return Loss(z.square().mean(), {}, [z])


def trained(steps: int, decay: float = DECAY, engine: str = "plain", skipped=(), **how):
    """A system after some steps, and its weights after each good one, the first before any."""
    system = System(decay)
    optimizer = OPTIMIZERS["sgd"](parameter_groups(system), lr=0.5)
    made = ENGINES[engine](system, optimizer, **how)
    generator = torch.Generator().manual_seed(1)
    past = [[p.detach().clone() for p in system.model.parameters()]]
    for step in range(steps):
        start_step(system, Progress(step, steps, step / 3))
        x = torch.randn(8, 4, generator=generator)
        made.backward(made(x).value)
        made.step(skip=step in skipped)
        if step not in skipped:
            made.follow()
            past.append([p.detach().clone() for p in system.model.parameters()])
    return system, made, past


def averaged(past: list[list[Tensor]], decay: Callable[[int], float]) -> list[Tensor]:
    """By the formula, in float64."""
    found = [p.double() for p in past[0]]
    for step, weights in enumerate(past[1:]):
        d = decay(step)
        found = [d * a + (1 - d) * w.double() for a, w in zip(found, weights, strict=True)]
    return found


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.999])
def test_the_average_follows_its_formula(decay):
    system, _, past = trained(12, decay)
    expected = averaged(past, lambda step: min(decay, (1 + step) / (10 + step)))
    own = [e for e, p in zip(expected, system.model.parameters(), strict=True) if p.requires_grad]
    assert len(system.average.values) == len(own) == 5
    for value, wanted in zip(system.average.values, own, strict=True):
        torch.testing.assert_close(value.double(), wanted, rtol=0, atol=1e-6)


def test_put_gives_the_module_its_averages_and_leaves_statistics_and_the_frozen_alone():
    system, _, _ = trained(6)
    before = copy.deepcopy(system.model.state_dict())
    values = [value.clone() for value in system.average.values]
    system.average.put()
    after = system.model.state_dict()
    moved = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    # The first bias has no gradient: BatchNorm takes it away.
    assert moved - {"0.bias"} == {"0.weight", "1.weight", "1.bias", "2.weight"}
    own = [p for p in system.model.parameters() if p.requires_grad]
    assert all(map(torch.equal, own, values))


def test_a_skipped_step_leaves_no_trace():
    system, made, _ = trained(5)
    before = [value.clone() for value in system.average.values]
    made.backward(made(torch.randn(8, 4)).value)
    made.step(skip=True)
    assert all(map(torch.equal, system.average.values, before))


def test_it_is_not_trained_and_counts_in_no_group():
    system = System()
    grouped = [p for group in parameter_groups(system) for p in group["params"]]
    assert len(grouped) == 5
    assert not any(value.requires_grad for value in system.average.values)


def test_the_state_holds_it_and_a_resumed_training_ends_with_the_same_bits():
    whole, _, _ = trained(8)
    _, made, _ = trained(4)
    state = made.save()
    assert sum(name.startswith("average.") for name in state.model) == 5
    again, second, _ = trained(0)
    second.load(state)
    generator = torch.Generator().manual_seed(1)
    torch.randn(4, 8, 4, generator=generator)
    for step in range(4, 8):
        start_step(again, Progress(step, 8, step / 3))
        second.backward(second(torch.randn(8, 4, generator=generator)).value)
        second.step()
        second.follow()
    for one, other in zip(again.average.values, whole.average.values, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def on_ranks(stage: int) -> tuple[list[Tensor], list[Tensor]]:
    """The averages after training on these ranks, each with the same images, and what is put."""
    system, made, _ = trained(6, engine="zero", stage=stage)
    made.close()
    values = [value.detach().clone() for value in system.average.values]
    system.average.put()
    return values, [p.detach().clone() for p in system.model.parameters() if p.requires_grad]


@pytest.mark.parametrize("stage", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 2)), 3])
def test_the_average_on_two_ranks_is_that_of_one_process(ranks, stage):
    system, _, _ = trained(6)
    for values, put in ranks.run(on_ranks, stage, world=2):
        assert all(map(torch.equal, values, put))
        for one, other in zip(values, system.average.values, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_follow_finds_it():
    system = System(0.5)
    with torch.no_grad():
        for p in system.model.parameters():
            p.add_(1)
    start_step(system, Progress(100, 200, 1.0))
    before = [value.clone() for value in system.average.values]
    follow(system)
    for value, old in zip(system.average.values, before, strict=True):
        torch.testing.assert_close(value, old + 0.5)


# --- in fine-tuning -------------------------------------------------------------------------------

SHORT = ("pretrain.epochs=1", "finetune.epochs=2", "finetune.warmup_epochs=0")


def embedded(folder) -> Tensor:
    model = open_model(folder, None)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_fine_tuning_keeps_the_average(tmp_path, whole):
    found = {}
    for ema in ("null", "0.0", "0.9"):
        recipe = toy.recipe(*SHORT, f"finetune.ema={ema}")
        found[ema] = embedded(
            finetune.finetune(whole / "backbone", recipe, tmp_path / f"run {ema}")
        )
    assert found["null"].equal(found["0.0"])  # the average of the last step alone
    assert not found["null"].equal(found["0.9"])
    again = finetune.finetune(
        whole / "backbone", toy.recipe(*SHORT, "finetune.ema=0.9"), tmp_path / "run 0.9"
    )
    assert embedded(again).equal(found["0.9"])
    assert card.read(again)["method"]


def test_the_key_left_alone_changes_no_digest():
    plain = toy.recipe()
    assert digests(plain, "finetune") == digests(toy.recipe("finetune.ema=null"), "finetune")
    averaged_one = digests(toy.recipe("finetune.ema=0.9"), "finetune")
    assert not set(averaged_one) & set(digests(plain, "finetune"))
    with pytest.raises(RecipeError, match="ema"):
        toy.recipe("finetune.ema=1.0")
