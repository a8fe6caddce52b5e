"""Fault injection: what is asked for happens on its rank, in its step, and as often as was said."""

import signal

import pytest
import torch

from lookalike.errors import RunError
from lookalike.process import fault

WRONG = [
    "kill",
    "kill:rank=1",
    "burn:rank=0,step=1",
    "kill:rank=x,step=1",
    "kill:step=1,rank=0",
    "kill:rank=0,step=1,steps=2",
    "nan:rank=0,step=1,steps=0",
    "nan:rank=0,step=1;",
    "nan:rank=0,step=1;burn:rank=0,step=1",
]


def nan_steps(last: int) -> list[int]:
    """The steps, from 1 to `last`, whose inputs become NaN."""
    spoiled = []
    for step in range(1, last + 1):
        fault.inject(step)
        if fault.spoiled(torch.ones(2)).isnan().all():
            spoiled.append(step)
    return spoiled


@pytest.mark.parametrize("text", WRONG)
def test_an_unknown_fault_is_refused(monkeypatch, text):
    monkeypatch.setenv(fault.NAME, text)
    said = r"environment: LOOKALIKE_FAULT=.* is not a valid fault: unset it, or write kill:rank=1"
    with pytest.raises(RunError, match=said):
        fault.refuse_unknown()
    with pytest.raises(RunError, match=said), fault.plan(text):
        pytest.fail("planned")


def test_the_variable_warns_once_and_a_plan_does_not(monkeypatch):
    text = "raise:rank=0,step=99"
    with fault.plan(text):
        fault.inject(1)
    monkeypatch.setenv(fault.NAME, text)
    with pytest.warns(UserWarning, match=f"{text} is set: this run is meant to fail"):
        fault.inject(1)
    fault.inject(2)


def test_without_a_fault_nothing_happens(monkeypatch):
    monkeypatch.delenv(fault.NAME, raising=False)
    fault.inject(1)
    inputs = ([torch.ones(2)], 3)
    assert fault.spoiled(inputs) is inputs


def test_a_fault_with_a_marker_happens_once(tmp_path):
    with fault.plan(f"raise:rank=0,step=3,once={tmp_path / 'marker'}"):
        fault.inject(2)
        assert not (tmp_path / "marker").exists()
        with pytest.raises(RuntimeError, match="raised on rank 0 at step 3, as asked"):
            fault.inject(3)
        fault.inject(3)


def test_a_fault_of_another_rank_does_not_happen():
    with fault.plan("raise:rank=1,step=1;nan:rank=1,step=1"):
        assert nan_steps(2) == []


def test_nan_lasts_as_many_steps_as_asked_for_and_comes_again_unless_marked(tmp_path):
    with fault.plan("nan:rank=0,step=2,steps=3", "nan:rank=0,step=7"):
        assert nan_steps(8) == nan_steps(8) == [2, 3, 4, 7]
    with fault.plan(f"nan:rank=0,step=2,steps=3,once={tmp_path / 'marker'}"):
        assert [nan_steps(8), nan_steps(8)] == [[2, 3, 4], []]
    assert nan_steps(8) == []


def test_nan_spares_integers_and_keeps_the_structure_of_the_inputs():
    labels_N = torch.arange(3)
    with fault.plan("nan:rank=0,step=1"):
        fault.inject(1)
        views, labels, more = fault.spoiled(([torch.ones(3, 2), torch.zeros(1)], labels_N, None))
    assert isinstance(views, list)
    assert all(view.isnan().all() for view in views)
    assert labels is labels_N
    assert more is None


@pytest.mark.parametrize("kind", ["term", "int", "usr1"])
def test_signals_reach_the_process_itself(kind):
    number, caught = signal.Signals[f"SIG{kind.upper()}"], []
    before = signal.signal(number, lambda number, _: caught.append(number))
    try:
        with fault.plan(f"{kind}:rank=0,step=2"):
            fault.inject(1)
            assert not caught
            fault.inject(2)
    finally:
        signal.signal(number, before)
    assert caught == [number]


def test_a_function_is_called_with_every_step_and_plans_nest():
    outer, inner = [], []
    with fault.plan(outer.append):
        fault.inject(1)
        with fault.plan(inner.append):
            fault.inject(2)
        fault.inject(3)
    fault.inject(4)
    assert (outer, inner) == ([1, 2, 3], [2])
