"""The native kernel of views: torch's resampling bit for bit, the torch form within rounding, the
same bits however it was compiled, called and shared; and what happens where it is not there.
"""

import os
import random
import stat
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from lookalike.training import inputs
from lookalike.views import Asymmetric, Classification, Symmetric, compiling, fused, native
from lookalike.views.form import ViewFormat

FORM = ViewFormat((9, 7), "bicubic", 2.0, (0.5, 0.4, 0.3), (0.2, 0.3, 0.1))
SIDES = (2, 3, 7, 16, 17, 33)


def canvas(batch=6, channels=3, height=24, width=30):
    made = torch.Generator().manual_seed(5)
    return torch.randint(256, (batch, channels, height, width), dtype=torch.uint8, generator=made)


def views(policy, x, size=16, **how):
    count = len(x if isinstance(x, torch.Tensor) else x[0])
    how = {"ids_B": torch.arange(count), "seed": 3, "epoch": 1, "size": size} | how
    channels = (x if isinstance(x, torch.Tensor) else x[0]).shape[1]
    return torch.stack(policy(x, mean=[0.4] * channels, std=[0.25] * channels, **how))


def plain(boxes_B4, flips_B):
    """Draws, flat, of views that are cut, resized and flipped only."""
    n = len(boxes_B4)
    never = torch.zeros(n, dtype=torch.bool)
    drawn = dict.fromkeys(("jitter", "grey", "blur", "solarize"), never)
    drawn |= {"box": boxes_B4, "flip": flips_B, "factors": torch.ones(n, 4)}
    drawn |= {"order": torch.arange(4).expand(n, 4), "sigma": torch.ones(n)}
    return {name: value[None] for name, value in drawn.items()}


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_resampling_has_the_bits_of_torch_s_antialiased_bytes(by_native, mode, channels):
    draw = random.Random(channels)
    for _ in range(40):
        height, width, size = draw.choice(SIDES), draw.choice(SIDES), (draw.choice(SIDES),) * 2
        tall, wide = draw.randint(1, height), draw.randint(1, width)
        top, left = draw.randint(0, height - tall), draw.randint(0, width - wide)
        x, mirrored = canvas(1, channels, height, width), bool(draw.randint(0, 1))
        form = ViewFormat(size, mode, 1.0, [0.0] * channels, [1.0] * channels)
        drawn = plain(torch.tensor([[top, left, tall, wide]]), torch.tensor([mirrored]))
        made = native.make(x, fused.flat(drawn, channels, size), form)[0]
        cut = x[:, :, top : top + tall, left : left + wide]
        right = F.interpolate(cut, size, mode=mode, antialias=True).float().div(255)
        assert torch.equal(made, right.flip(3) if mirrored else right)


def some_policy(draw):
    def chance():
        return draw.choice([0.0, 0.5, 1.0])

    return Symmetric(
        views=draw.randint(1, 3),
        crop=draw.choice(["whole", (0.001, 1.0), (0.9, 1.0)]),
        interpolation=draw.choice(["bilinear", "bicubic"]),
        jitter=chance(),
        hue=draw.choice([0.0, 0.1, 0.5]),
        contrast=draw.choice([0.0, 0.4]),
        order=draw.choice(["drawn", "fixed"]),
        grey=chance(),
        blur=chance(),
        blur_sigma=draw.choice([(0.1, 2.0), (3.0, 20.0), (0.01, 0.02)]),
        solarize=draw.choice([0.0, 0.0, 0.5]),
        channel_drop=chance(),
        pad=draw.choice([0, 0, 3]),
        randaugment=draw.choice([0, 0, 2]),
        erase=chance(),
        erase_with=draw.choice(["random", "mean", "zero"]),
    )


@pytest.mark.parametrize("seed", range(6))
def test_any_views_are_those_of_torch_s_form(by_native, monkeypatch, seed):
    """Within rounding, but for pixels at a threshold, which rounding takes to its other side."""
    draw, differing, numbers = random.Random(seed), 0, 0
    for _ in range(12):
        policy, size = some_policy(draw), (draw.choice(SIDES), draw.choice(SIDES))
        channels, kind = draw.choice([1, 2, 3, 3, 3, 5]), draw.choice(["bytes", "floats", "crops"])
        x = canvas(draw.randint(1, 3), channels, draw.choice(SIDES), draw.choice(SIDES))
        x = x.float() / 255 if kind == "floats" else x
        x = [canvas(2, channels, *size)] * policy.views if kind == "crops" else x
        monkeypatch.setenv(native.SWITCH, "1")
        made = views(policy, x, size)
        monkeypatch.setenv(native.SWITCH, "0")
        right = views(policy, x, size)
        assert made[0].stride() == right[0].stride()
        far = (made - right).abs() > 1e-5
        assert policy.solarize or policy.randaugment or not far.any(), (policy, size, x)
        differing, numbers = differing + int(far.sum()), numbers + far.numel()
    assert differing < 1e-3 * numbers


def test_what_is_not_coloured_has_the_same_bits(by_native, monkeypatch):
    policy = Symmetric(jitter=0.0, grey=0.0, blur=0.0, solarize=0.5, erase=0.5)
    made = views(policy, canvas())
    monkeypatch.setenv(native.SWITCH, "0")
    assert torch.equal(made, views(policy, canvas()))


def test_bits_depend_on_no_batch_mate_order_or_thread(by_native):
    policy, x = Asymmetric(erase=0.5), canvas(40)
    whole = views(policy, x)
    torch.set_num_threads(3)
    assert torch.equal(views(policy, x), whole)
    order = torch.arange(39, -1, -1)
    assert torch.equal(views(policy, x[order], ids_B=order)[:, order], whole)
    assert torch.equal(views(policy, x[7:8], ids_B=torch.tensor([7])), whole[:, 7:8])


def test_bits_are_the_same_however_it_is_compiled(by_native, tmp_path, monkeypatch):
    """Without any instructions of a processor's own, without optimisation."""
    policy, x = Asymmetric(erase=0.5), canvas(12)
    whole = views(policy, x)
    path = compiling.build(tmp_path, "-O0", compiling.PLAIN, "-DLOOKALIKE_PORTABLE")
    other = native.loaded(path)
    monkeypatch.setattr(native, "_beside", lambda: other)
    assert torch.equal(views(policy, x), whole)


def test_bfloat16_is_the_nearest_to_the_float(by_native):
    made = views(Asymmetric(), canvas(), dtype=torch.bfloat16)
    assert made.dtype == torch.bfloat16
    assert torch.equal(made, views(Asymmetric(), canvas()).to(torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_are_made_of_the_float(by_native, dtype):
    assert torch.equal(
        views(Asymmetric(), canvas(), dtype=dtype), views(Asymmetric(), canvas()).to(dtype)
    )


def test_a_process_forked_after_threads_makes_the_same(by_native, monkeypatch):
    """Torch's own threads, which no fork survives, stay out of it."""
    x = canvas(40)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    whole = views(Asymmetric(), x)
    here, there = os.pipe()
    with warnings.catch_warnings(action="ignore"):  # Python 3.12 warns of forks beside threads
        child = os.fork()
    if child == 0:
        same = b"0"
        try:
            same = b"1" if torch.equal(views(Asymmetric(), x), whole) else b"0"
        finally:
            os.write(there, same)
            os._exit(0)
    os.close(there)
    assert os.read(here, 1) == b"1"
    os.close(here)
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    "box", [(0, 0, 25, 4), (-1, 0, 4, 4), (0, 27, 4, 4), (0, 0, 0, 4), (0, 2**62, 4, 2**62)]
)
def test_a_box_outside_its_image_is_refused(by_native, box):
    drawn = plain(torch.tensor([box]), torch.tensor([False]))
    with pytest.raises(ValueError, match="a box that does not lie in its image"):
        native.make(canvas(1), fused.flat(drawn, 3, FORM.sides), FORM)


def test_images_that_are_not_as_the_draws_say_are_refused(by_native):
    drawn = plain(torch.tensor([[0, 0, 4, 4]] * 4), torch.zeros(4, dtype=torch.bool))
    drawn = fused.flat(drawn, 3, FORM.sides)
    fitting = torch.zeros(2, 3, *FORM.sides)
    for crops in (
        [fitting, fitting[:, :, :-1]],
        [fitting],
        [fitting, fitting.to(torch.uint8)],
        [canvas(2), canvas(2)],
    ):
        with pytest.raises(ValueError, match="views: "):
            native.make(crops, drawn, FORM)
    short = {**drawn, "flip": drawn["flip"][:2]}
    with pytest.raises(ValueError, match="views: "):
        native.write(torch.empty(4, *FORM.sides, 3), canvas(2), short, FORM)


def test_what_is_damaged_of_another_version_or_missing_is_not_loaded(
    by_native, tmp_path, monkeypatch
):
    path = compiling.build(tmp_path, "-O0", compiling.PLAIN)
    assert native.loaded(path).library is not None
    library, bad = path.read_bytes(), tmp_path / "bad.library"
    for damaged in (library[:-1], library[:5000], b"", library[:4000] + b"x" + library[4001:]):
        bad.write_bytes(damaged)
        assert "damaged or of another version: python -m" in native.loaded(bad).why
    nothing = b"no library"
    bad.write_bytes(nothing + compiling.seal(nothing))
    assert "cannot be loaded" in native.loaded(bad).why
    assert native.loaded(tmp_path / "none").why == "not compiled: python -m lookalike.views.build"
    monkeypatch.setattr(compiling, "FLAGS", (*compiling.FLAGS, "-g"))
    assert "another version" in native.loaded(path).why


def test_one_that_lies_there_in_vain_is_said_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "SOURCE", tmp_path / "native.c")
    (tmp_path / "native.c").write_text("another source")
    (tmp_path / compiling.name()).write_bytes(b"of an earlier version")
    native._beside.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"torch's form is used, .* of another version"):
            kernel = native._beside.__wrapped__()
    finally:
        native._beside.cache_clear()
    assert kernel.library is None


@pytest.mark.parametrize("policy", [Asymmetric(), Classification()])
def test_without_it_views_are_torch_s(by_native, monkeypatch, policy):
    made = views(policy, canvas())
    monkeypatch.setenv(native.SWITCH, "0")
    right = views(policy, canvas())
    monkeypatch.delenv(native.SWITCH)
    monkeypatch.setattr(native, "_beside", lambda: native.Kernel(None, "not compiled"))
    assert not native.available()
    assert torch.equal(views(policy, canvas()), right)
    assert policy.randaugment or not torch.equal(made, right)


def test_no_compiler_and_a_failing_one_are_said(tmp_path, monkeypatch):
    monkeypatch.setenv("CC", "/bin/false")
    with pytest.raises(OSError, match="/bin/false failed: it ends with 1"):
        compiling.build(tmp_path)
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OSError, match="no C compiler"):
        compiling.build(tmp_path)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(OSError, match="not made for win32"):
        compiling.build(tmp_path)
    assert not list(tmp_path.iterdir())


def lacking(which: int) -> bool:
    """Whether a rank makes views by the kernel, where one cannot."""
    rank = int(os.environ["RANK"])
    native.refuse("")
    found = native.Kernel(None, "not compiled") if rank == which else native.Kernel("a library", "")
    there, native._beside = native._beside, lambda: found  # type: ignore[assignment]
    try:
        inputs.one_form()
        return native.available()
    finally:
        native._beside = there
        native.refuse("")


def test_ranks_make_views_by_it_all_or_none(ranks, capfd):
    os.environ.pop(native.SWITCH, None)
    assert ranks.run(lacking, 1) == [False, False]
    assert ranks.run(lacking, 2) == [True, True]


def test_a_resume_by_another_form_is_told(monkeypatch, capsys):
    monkeypatch.setattr(inputs, "made_by", lambda: "torch")
    for about in ({}, {"views": "torch"}):
        inputs.tell_of_another(about)
    assert capsys.readouterr().out == ""
    inputs.tell_of_another({"views": "native"})
    assert "views: made by torch from here on, before by native" in capsys.readouterr().out


class _Hook:
    def __init__(self, root: Path) -> None:
        self.root, self.target_name, self.said = str(root), "wheel", []
        self.app = types.SimpleNamespace(display_warning=self.said.append)


def hook_of(root: Path, monkeypatch: pytest.MonkeyPatch) -> type:
    """The build hook on hatchling's face alone, which need not be there."""
    face = types.ModuleType("interface")
    face.BuildHookInterface = _Hook  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hatchling.builders.hooks.plugin.interface", face)
    found: dict[str, type] = {"__name__": "hatch_build"}  # type: ignore[dict-item]
    exec((root / "hatch_build.py").read_text(), found)
    return found["NativeViews"]


def test_a_wheel_has_the_library_and_its_platform_or_neither(tmp_path, monkeypatch):
    root = Path(__file__).parents[2]
    monkeypatch.delenv(native.SWITCH, raising=False)
    compiler = tmp_path / "cc"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho made > "$2"\n')
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(compiler))
    hook, data = hook_of(root, monkeypatch)(root), {"force_include": {}}
    hook.initialize("standard", data)
    (path, place), *more = data["force_include"].items()
    assert not more
    assert place == f"lookalike/views/{compiling.name()}"
    assert Path(path).read_bytes().startswith(b"made")
    assert data["tag"].startswith("py3-none-")
    assert data["tag"] != "py3-none-any"
    assert data["pure_python"] is False
    hook.finalize("standard", data, "")
    assert not Path(path).exists()
    monkeypatch.setenv("CC", "/bin/false")
    hook, data = hook_of(root, monkeypatch)(root), {"force_include": {}}
    hook.initialize("standard", data)
    assert data == {"force_include": {}}
    assert "views in torch's form" in hook.said[0]
