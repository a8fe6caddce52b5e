"""Views on an accelerator are those of the torch form; they cost few launches, one copy, no wait.

Triton's kernels run in its interpreter, in a process of their own.
"""

import os
import subprocess
import sys
from pathlib import Path

import interpreted
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lookalike.views import VIEWS, device, fused, normalise, send
from lookalike.views.form import ViewFormat

CASES = interpreted.cases()
# Normalised units; what rounding moves across solarization's threshold is told by its share.
CLOSE, JUMPS = 2e-5, 0.002
ALIASES = {
    *("select", "slice", "unsqueeze", "expand", "view", "permute", "transpose", "split"),
    *("empty", "empty_like", "unbind", "t", "alias", "_unsafe_view", "squeeze", "detach"),
}
KNOWN = {"seed": 0, "mean": (0.5,) * 3, "std": (0.2,) * 3}


def near(made, wanted):
    return bool(((made - wanted).abs() > CLOSE).float().mean() <= JUMPS)


@pytest.fixture(scope="module")
def kernels(tmp_path_factory):
    """What Triton's kernels make of every case."""
    target = tmp_path_factory.mktemp("interpreted") / "views.pt"
    subprocess.run(
        [sys.executable, "-W", "error", interpreted.__file__, str(target)],
        check=True,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )
    return torch.load(target, weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_views_by_triton_are_those_of_torch(name, kernels):
    part = interpreted.given(**CASES[name])
    wanted = interpreted.oracle(*part)
    assert kernels[name].shape == wanted.shape
    assert near(kernels[name], wanted)


def test_a_view_by_triton_depends_on_no_batch_mate_and_no_order(kernels):
    assert torch.equal(kernels["canvas, apart"], kernels["canvas"])


@pytest.mark.parametrize("name", CASES)
def test_views_without_triton_are_those_of_torch(name):
    part = interpreted.given(**CASES[name])
    made = device.by_torch([part])
    assert all(view.stride(1) == 1 and view.dtype == torch.float32 for view in made)
    assert near(torch.cat(made), interpreted.oracle(*part))


class Operators(TorchDispatchMode):
    """The names of the operators that do work, since the last copy to a device."""

    def __init__(self):
        super().__init__()
        self.copies, self.names = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition("::")[2].partition(".")[0]
        if name not in ALIASES:
            self.names.append(name)
        return function(*args, **(kwargs or {}))


def on_a_device(monkeypatch, form, count):
    """Lets CPU tensors go the way of a device's; `count` hears of each copy."""

    def parts(parts):
        return [
            device.Part(images, fused.flat(draws, 3, form.sides), form)
            for images, draws, form in parts
        ]

    def counted(tensors, there):
        found = send.send_all(tensors, there)
        count.copies += 1
        count.names.clear()
        return found

    monkeypatch.setattr(fused, "make_several", lambda given: form(parts(given)))
    monkeypatch.setattr(fused, "make", lambda *given: form(parts([given])))
    monkeypatch.setattr(device, "send_all", counted)


@pytest.mark.parametrize(
    ("name", "kernels", "operators"),
    [("symmetric", 3, 73), ("asymmetric", 3, 73), ("multi_crop", 6, 146)],
)
@pytest.mark.parametrize("way", ["kernels", "torch"])
def test_views_cost_one_copy_and_few_launches(name, kernels, operators, way, monkeypatch):
    """Of which Triton's are the only ones after the copy; the number of views is no part of it."""
    count, launched = Operators(), []
    monkeypatch.setattr(device, "launch", lambda name, *how, **more: launched.append(name))
    on_a_device(monkeypatch, getattr(device, f"by_{way}"), count)
    policy = VIEWS[name](**({"small_size": 8} if name == "multi_crop" else {}))
    canvas = torch.randint(0, 256, (8, 3, 12, 12)).byte()
    policy(canvas, torch.arange(8), epoch=0, size=9, **KNOWN)
    launched.clear()
    count.copies = 0
    with count:
        views = policy(canvas, torch.arange(8), epoch=1, size=9, **KNOWN)
    assert [view.shape[2] for view in views] == [side for side, _ in policy.sizes(9)]
    assert count.copies == 1
    if way == "kernels":
        assert launched == ["cut", "tint", "finish"] * (kernels // 3)
        assert count.names == []
    else:
        assert len(count.names) <= operators


def test_crops_of_the_host_are_one_launch_each_before_the_two_of_all(monkeypatch):
    launched = []
    monkeypatch.setattr(device, "launch", lambda name, *how, **more: launched.append(name))
    device.by_kernels([interpreted.given(**CASES["solarize"])])
    assert launched == ["cut", "cut", "tint", "finish"]


@pytest.mark.parametrize("name", ["symmetric", "asymmetric", "multi_crop"])
@pytest.mark.parametrize("cut", [True, False])
def test_views_on_a_pretended_device_stay_on_it_and_ask_it_nothing(name, cut):
    """A read of the device, or two devices in one operation, is an error there."""
    policy = VIEWS[name](**({"small": 2, "small_size": 8} if name == "multi_crop" else {}))
    shapes = [(12, 11)] if cut else policy.sizes(9)[:2]
    drawn = policy.draws(torch.arange(4), 0, 0, range(2), 12, 11)
    form = policy.form(9, KNOWN["mean"], KNOWN["std"], torch.bfloat16)
    with FakeTensorMode(allow_non_fake_inputs=True):
        images = [torch.empty(4, 3, *side, dtype=torch.uint8, device="cuda") for side in shapes]
        views = fused.make(images[0] if cut else images, drawn, form)
        for view in views:
            assert (view.device.type, view.dtype, view.stride(1)) == ("cuda", torch.bfloat16, 1)
            assert view.shape == (4, 3, 9, 9)
        plain = normalise(torch.empty(2, 3, 8, 8, device="cuda"), *list(KNOWN.values())[1:])
        assert plain.device.type == "cuda"


def test_tensors_of_any_type_and_shape_go_in_one_piece():
    sent = [
        torch.tensor(True),
        torch.arange(5),
        torch.rand(3, 2, 2),
        torch.zeros(0, 4),
        torch.rand(7).double(),
        torch.arange(6, dtype=torch.int32).view(2, 3).T,
    ]
    there = send.send_all(sent, torch.device("cpu"))
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(sent, there, strict=True))
    assert len({x.untyped_storage().data_ptr() for x in there}) == 1
    assert there[0].untyped_storage().data_ptr() != sent[0].untyped_storage().data_ptr()


def test_a_constant_lies_on_its_device_once_and_nothing_pretended_is_kept():
    values, cpu = (0.25, 7.0, 3.0), torch.device("cpu")
    with FakeTensorMode():
        assert type(send.constant(values, cpu)) is not Tensor
    kept = send.constant(values, cpu)
    assert type(kept) is Tensor
    assert kept.tolist() == list(values)
    assert send.constant(list(values), cpu) is kept
    assert send.constant(values, cpu, torch.float64) is not kept
    with FakeTensorMode():
        assert type(send.constant(values, cpu)) is not Tensor


def test_a_filling_of_nought_is_black_and_of_the_mean_is_the_mean():
    mean, std = (0.5, 0.25, 0.125), (1.0, 1.0, 1.0)
    for by, wanted in (("zero", (0.0,)), ("mean", mean), ("random", mean)):
        form = ViewFormat((4, 4), "bicubic", 1.0, mean, std, erase_with=by)
        assert device._levels(form)[2] == wanted


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 80, 90])
def test_the_kernels_compile_for_gpus_that_are_not_here(capability, tmp_path):
    script = Path(interpreted.__file__).with_name("compiled.py")
    subprocess.run(
        [sys.executable, str(script), str(capability)],
        check=True,
        env=os.environ | {"TRITON_CACHE_DIR": str(tmp_path)},
    )
