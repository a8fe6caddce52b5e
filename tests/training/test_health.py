"""Collapse: an alarm within 200 steps, none on healthy runs; measures as in their papers."""

import pytest
import torch
from torch import nn

import toy
from lookalike import comm
from lookalike.errors import RunError
from lookalike.methods import METHODS
from lookalike.models import Backbone
from lookalike.stages.pretrain import pretrain
from lookalike.training.health import CollapseDetector, measure


def long_toy(*words: str, backbone: str = toy.RESNET):
    return toy.recipe(
        "pretrain.batch=64",
        "pretrain.epochs=10",
        "pretrain.log_every=25",
        *words,
        backbone=backbone,
    )


def constant(backbone: Backbone) -> nn.Module:
    """A method whose projector says the same of every image."""
    module = METHODS["barlow_twins"](backbone, projector=(16, 32), off_diagonal=0.02)
    nn.init.zeros_(module.projector[-1].weight)
    module.projector[-1].weight.requires_grad_(False)
    return module


def test_complete_collapse_raises_the_alarm(tmp_path):
    said = r"step (75|100|125): collapse: all embeddings point one way.*on_collapse: warn"
    with pytest.raises(RunError, match=said):
        pretrain(long_toy("pretrain.on_collapse=stop"), tmp_path / "run", method=constant)


# Large enough for embeddings of more dimensions than one; the toy's sixteen features are copies of
# each other anyway.
SMALL = (
    "{name: resnet18, size: 24, channels: 1, pool: avg, "
    "args: {channels: [16, 32, 64, 128], layers: [1, 1, 1, 1]}}"
)


MILD = "pretrain.views={name: symmetric, crop: [0.5, 1.0], flip: 0.0, grey: 0.0, blur: 0.0}"


def test_dimensional_collapse_raises_the_alarm_within_200_steps(tmp_path):
    method = "pretrain.method={name: barlow_twins, projector: [128, 128], off_diagonal: 0.0}"
    recipe = long_toy("pretrain.on_collapse=stop", method, MILD, backbone=SMALL)
    with pytest.raises(RunError, match=r"step (1\d\d|200): collapse: all dimensions say the same"):
        pretrain(recipe, tmp_path / "run")


def test_a_loss_of_exactly_zero_raises_the_alarm(tmp_path):
    zero = "invariance: 0, variance: 0, covariance: 0"
    method = f"pretrain.method={{name: vicreg, projector: [16, 32], {zero}}}"
    with pytest.raises(RunError, match=r"collapse: the loss is exactly 0.*coefficients"):
        pretrain(
            toy.recipe(method, "pretrain.on_collapse=stop", "pretrain.health_every=1"),
            tmp_path / "run",
        )


HEALTHY = {
    "barlow_twins": "{name: barlow_twins, projector: [64, 64], off_diagonal: 0.01}",
    "vicreg": "{name: vicreg, projector: [64, 64]}",
    "simclr": "{name: simclr, projector: [64, 32], temperature: 0.2}",
    "byol": "{name: byol, projector: [64, 32], predictor: [64, 32], momentum: 0.99}",
    "moco_v3": "{name: moco_v3, projector: [64, 32], predictor: [64, 32], temperature: 0.2}",
}


# Redundancy reduction and a teacher; the others take as long.
QUICK = ("byol",)


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in HEALTHY]
)
@pytest.mark.parametrize(
    ("seed", "backbone"),
    [(0, toy.RESNET), *(pytest.param(s, SMALL, marks=pytest.mark.slow) for s in range(5))],
    ids=["toy", *(f"seed {s}" for s in range(5))],
)
def test_healthy_runs_raise_no_alarm(tmp_path, name, seed, backbone):
    """Warnings are errors in this suite: an alarm would fail here."""
    words = (
        f"pretrain.method={HEALTHY[name]}",
        f"seed={seed}",
        MILD if backbone == SMALL else "pretrain.epochs=5",
    )
    pretrain(long_toy(*words, backbone=backbone), tmp_path / "run")
    measured = {
        "health/std",
        "health/rank",
        "health/alignment",
        "health/uniformity",
        "health/off_diagonal",
    }
    lines = [line for line in toy.lines(tmp_path / "run/metrics.jsonl") if line["step"] % 25 == 0]
    assert len(lines) == (8 if backbone == SMALL else 4)
    assert all(measured <= line.keys() for line in lines)


def test_the_measures_of_health_are_those_of_their_papers():
    z = torch.randn(
        40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 1.0, 0.1, 0.1], dtype=torch.float64))
    other = z + 0.1
    found = measure((z, other))
    u, v = (x / x.norm(dim=1, keepdim=True) for x in (z, other))
    s = torch.linalg.svdvals(u - u.mean(0))
    p = s / s.sum()
    pairs = [
        (-2 * (u[i] - u[j]).square().sum()).exp() for i in range(40) for j in range(40) if i != j
    ]
    c = torch.corrcoef(z.T)
    assert found["health/rank"] == pytest.approx(float((-(p * p.log()).sum()).exp()), rel=1e-6)
    assert found["health/std"] == pytest.approx(
        float(u.std(0, unbiased=False).mean()) * 6**0.5, rel=1e-9
    )
    assert found["health/alignment"] == pytest.approx(
        float((u - v).square().sum(1).mean()), rel=1e-9
    )
    assert found["health/uniformity"] == pytest.approx(
        float(torch.stack(pairs).mean().log()), rel=1e-6
    )
    off = c.square().sum() - c.diagonal().square().sum()
    assert found["health/off_diagonal"] == pytest.approx(float(off) / 30, rel=1e-3)


def test_the_collapse_alarm_needs_three_in_a_row_and_fires_once():
    alarm = CollapseDetector()
    bad = {"health/std": 0.01, "health/off_diagonal": 0.1, "health/rank": 1.0}
    good = {**bad, "health/std": 0.9}
    texts = [alarm.update(values) for values in (bad, bad, good, bad, bad, bad, bad)]
    assert [bool(text) for text in texts] == [False, False, False, False, False, True, False]


def test_health_is_the_same_on_all_ranks(ranks):
    z = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alone = measure((z, z + 0.2))
    for found in ranks.run(measure_part, z):
        assert found == pytest.approx(alone, rel=1e-9)


def measure_part(z: torch.Tensor) -> dict[str, float]:
    mine = z.split([5, 7])[comm.rank()]
    return measure((mine, mine + 0.2))
