"""The host looks at a step one step late, and nothing else changes: the same bits, the same log,
the same rollback.
"""

import functools
import warnings

import pytest

import toy
from lookalike.engine import Plain, Zero
from lookalike.process import fault
from lookalike.process.signals import Stopped
from lookalike.stages.pretrain import pretrain
from lookalike.training import loop

ENGINES = {"plain": Plain, "zero": Zero}
LONG = ("pretrain.log_every=6", "pretrain.health_every=9")


def late_ones(monkeypatch) -> None:
    """Every engine that the loop makes is late."""

    def make(settings, module, accumulate=1):
        name = settings.engine.name if settings.engine else "plain"
        arguments = settings.engine.args if settings.engine else {}
        if loop.comm.world_size() > 1:
            name = "zero"
        return functools.partial(ENGINES[name], late=True)(
            module,
            loop.make_optimizer(settings, module),
            accumulate=accumulate,
            precision=settings.precision,
            clip=settings.clip,
            **arguments,
        )

    monkeypatch.setattr(loop, "make_engine", make)


@pytest.fixture
def late(monkeypatch):
    late_ones(monkeypatch)


def entries(run) -> list[dict]:
    """The log without what the clock says."""
    return [
        {k: v for k, v in line.items() if k not in ("images_per_s", "waiting")}
        for line in toy.lines(run / "metrics.jsonl")
    ]


def test_late_is_as_ever(tmp_path, whole, late):
    pretrain(toy.recipe(), tmp_path / "run")
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(whole))
    assert entries(tmp_path / "run") == entries(whole)


def trained(out, *faults, words=LONG) -> list[str]:
    with fault.plan(*faults), toy.heard() as texts:
        pretrain(toy.recipe(*words), out)
    return texts


@pytest.mark.parametrize("accumulate", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_bad_steps_are_left_out_and_told_as_ever(tmp_path, monkeypatch, accumulate):
    """Seen late, they leave no trace, nor do their losses in the means of the log."""
    words = (*LONG, f"pretrain.accumulate={accumulate}")
    bad = ("nan:rank=0,step=4,steps=2;nan:rank=0,step=8;nan:rank=0,step=17",)
    wanted = trained(tmp_path / "ever", *bad, words=words)
    late_ones(monkeypatch)
    assert trained(tmp_path / "late", *bad, words=words) == wanted
    assert len(wanted) == 4
    assert toy.same(toy.tensors(tmp_path / "late"), toy.tensors(tmp_path / "ever"))
    assert entries(tmp_path / "late") == entries(tmp_path / "ever")


def test_the_third_bad_step_in_a_row_goes_back_from_where_it_did(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    wanted = trained(tmp_path / "ever", toy.once_nan(tmp_path / "a"))
    late_ones(monkeypatch)
    assert trained(tmp_path / "late", toy.once_nan(tmp_path / "b")) == [
        text.replace(str(tmp_path / "ever"), str(tmp_path / "late")) for text in wanted
    ]
    assert toy.same(toy.tensors(tmp_path / "late"), toy.tensors(tmp_path / "ever"))
    assert entries(tmp_path / "late") == entries(tmp_path / "ever")
    names = ("model", "optim")
    for file in [f"nonfinite/{name}.safetensors" for name in names]:
        assert (tmp_path / "late" / file).read_bytes() == (tmp_path / "ever" / file).read_bytes()


@pytest.mark.parametrize("step", [3, 8])
def test_a_stop_at_a_step_not_yet_looked_at_goes_on_bit_equal(tmp_path, late, step):
    """The step after that of the signal is bad, or that of the signal is: both are settled."""
    bad = "nan:rank=0,step=4;nan:rank=0,step=8"
    trained(tmp_path / "whole", bad)
    with pytest.raises(Stopped, match=f"after step {step + 1} of 18"):
        trained(tmp_path / "run", bad, f"term:rank=0,step={step}")
    trained(tmp_path / "run", bad)
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(tmp_path / "whole"))
    assert entries(tmp_path / "run") == entries(tmp_path / "whole")


def test_ranks_agree_late_on_what_one_of_them_met(ranks, tmp_path):
    ranks.run(two, str(tmp_path / "ever"), False)
    ranks.run(two, str(tmp_path / "late"), True)
    assert toy.same(toy.tensors(tmp_path / "late"), toy.tensors(tmp_path / "ever"))
    assert entries(tmp_path / "late") == entries(tmp_path / "ever")


def two(out: str, late: bool) -> None:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if late:
            late_ones(patch)
        bad = "nan:rank=1,step=4;nan:rank=0,step=6;nan:rank=1,step=12,steps=3,once={}"
        with fault.plan(bad.format(f"{out}.nan")):
            pretrain(toy.recipe(*LONG), out)
