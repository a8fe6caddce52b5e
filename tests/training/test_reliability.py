"""Faults and what is promised about them: each is injected, then the state is compared, never only
the survival.
"""

import contextlib
import gc
import itertools
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data._utils import signal_handling

import toy
from lookalike import comm
from lookalike.checkpoint import Checkpoints
from lookalike.data.loader import batches
from lookalike.data.order import EpochOrder
from lookalike.data.reader import HostCrops, Reader
from lookalike.data.sources import Digits, Folder
from lookalike.errors import RunError
from lookalike.folder import verify
from lookalike.methods import METHODS
from lookalike.stages import pretrain as stage
from lookalike.stages.pretrain import pretrain
from lookalike.training import loop
from lookalike.training.health import CollapseDetector, measure
from lookalike.training.metrics import Metrics
from lookalike.views import Symmetric

STEPS = 18


@contextlib.contextmanager
def heard() -> Iterator[list[str]]:
    """The texts of all warnings, afterwards."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            yield texts
        finally:
            texts += [str(warning.message) for warning in found]


# ---- R13: steps that are no numbers


def poisoned(steps: set[int], rank: int = 0) -> Callable[..., list[torch.Tensor]]:
    """make_views with NaN in the images of these calls (from 1), on one rank only."""
    calls = itertools.count(1)

    def views(*arguments: Any) -> list[torch.Tensor]:
        made = loop.make_views(*arguments)
        return (
            [v * float("nan") for v in made]
            if next(calls) in steps and comm.rank() == rank
            else made
        )

    return views


def unmoved(monkeypatch, steps: set[int]) -> None:
    """The same steps without an update, though their images are sound."""
    calls = itertools.count(1)
    original = loop.agree
    monkeypatch.setattr(
        loop, "agree", lambda s, n, b, f: original(s, n, b or next(calls) in steps, f)
    )


def test_a_step_that_is_no_number_leaves_no_trace(tmp_path, monkeypatch):
    """Parameters, moments and running statistics are those of a run whose step was simply left
    out.
    """
    with monkeypatch.context() as patch:
        patch.setattr(stage, "make_views", poisoned({4, 5, 12}))
        with heard() as texts:
            pretrain(toy.recipe(), tmp_path / "poisoned")
        assert texts == [
            f"step {k}: loss or gradient is no number: skipped on all ranks" for k in (4, 5, 12)
        ]
    with monkeypatch.context() as patch:
        unmoved(patch, {4, 5, 12})
        with pytest.warns(UserWarning, match="skipped on all ranks"):
            pretrain(toy.recipe(), tmp_path / "left out")
    assert toy.same(toy.tensors(tmp_path / "poisoned"), toy.tensors(tmp_path / "left out"))
    found = toy.lines(tmp_path / "poisoned/metrics.jsonl")
    assert [line["step"] for line in found] == [s for s in range(1, 19) if s not in (4, 5, 12)]
    assert found[-1]["skipped"] == 3


def test_three_in_a_row_go_back_to_the_checkpoint_and_end_as_if_nothing_had_been(
    tmp_path, monkeypatch, whole
):
    monkeypatch.setattr(stage, "make_views", poisoned({12, 13, 14}))
    with heard() as texts:
        pretrain(toy.recipe(), tmp_path / "run")
    assert "step 14: goes back to the checkpoint of step 9" in texts[-1]
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(whole))
    assert [line["step"] for line in toy.lines(tmp_path / "run/metrics.jsonl")] == list(
        range(1, 19)
    )
    about = verify(tmp_path / "run/nonfinite")
    assert [s["step"] for s in about["steps"]] == [11, 12, 13]
    assert all(len(s["samples"]) == 144 for s in about["steps"])


def test_numbers_that_stay_away_stop_the_run_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "make_views", poisoned({12, 13, 14, 15, 16, 17}))
    with (
        heard(),
        pytest.raises(
            RunError,
            match=r"no number at step 12, the third in a row, again.*lower pretrain\.optimizer\.lr",
        ),
    ):
        pretrain(toy.recipe(), tmp_path / "run")
    assert toy.tensors(tmp_path / "run", 9)


def test_what_one_rank_meets_all_ranks_skip_and_go_back_from(ranks, tmp_path):
    ranks.run(train_poisoned, str(tmp_path / "whole"), set())
    ranks.run(train_poisoned, str(tmp_path / "run"), {12, 13, 14})
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(tmp_path / "whole"))


def train_poisoned(out: str, steps: set[int]) -> None:
    original = stage.make_views
    stage.make_views = poisoned(steps, rank=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pretrain(toy.recipe(), out)
    finally:
        stage.make_views = original


# ---- R2: kills


def child(function: Callable[..., None], *arguments: Any) -> Any:
    """A process that has imported everything already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lookalike.pipeline", "deepspeed"])
    process = context.Process(target=function, args=arguments)
    process.start()
    return process


def save_for_ever(folder: str, tell: Connection) -> None:
    checkpoints = Checkpoints(Path(folder), 2)
    found = checkpoints.newest({})
    first = found.step + 1 if found else 1
    for step in itertools.count(first):
        value = torch.full((200_000,), float(step))
        checkpoints.save(step, {"model": {"x": value}, "optim": {"x/y": value}}, {})
        tell.send(step)


def test_thirty_kills_of_a_saver_lose_nothing_that_was_acknowledged(tmp_path):
    chance, acknowledged = random.Random(0), 0
    for _ in range(30):
        here, there = multiprocessing.get_context("forkserver").Pipe()
        process = child(save_for_ever, str(tmp_path), there)
        assert here.poll(60)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join(20)
        there.close()
        with contextlib.suppress(EOFError):
            while here.poll():
                acknowledged = here.recv()
        found = Checkpoints(tmp_path, 2).newest({})
        assert found.step >= acknowledged
        assert bool((found.tensors["model"]["x"] == found.step).all())
    assert acknowledged > 30


# ---- R3: signals in the middle of a save; R6: saves that fail


def test_a_signal_during_a_save_ends_the_run_with_everything_saved(tmp_path, monkeypatch):
    original = Checkpoints.save

    def slow(self, step, *arguments):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
        return original(self, step, *arguments)

    monkeypatch.setattr(Checkpoints, "save", slow)
    with pytest.raises(loop.Stopped, match="SIGTERM"):
        pretrain(toy.recipe(), tmp_path / "run")
    steps = {int(f.name[5:]) for f in (tmp_path / "run/checkpoints").glob("step_*")}
    assert 9 in steps
    assert max(steps) in (9, 10, 11, 12)
    for step in steps:
        assert toy.tensors(tmp_path / "run", step)


def failing(monkeypatch, times: Iterator[bool]) -> None:
    original = Checkpoints.save

    def save(self, *arguments):
        if next(times):
            raise RunError("disk: cannot be written: No space left on device")
        return original(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save", save)


def test_a_save_that_fails_stops_no_training(tmp_path, monkeypatch, whole):
    failing(monkeypatch, iter([True, True, False]))
    with heard() as texts:
        pretrain(toy.recipe("pretrain.epochs=3", "pretrain.warmup_epochs=0.5"), tmp_path / "run")
    assert texts == ["disk: cannot be written: No space left on device; training goes on"] * 2
    assert toy.tensors(tmp_path / "run", 27)


def test_three_saves_that_fail_in_a_row_stop_it(tmp_path, monkeypatch):
    failing(monkeypatch, iter([False, *[True] * 9]))
    with (
        heard(),
        pytest.raises(RunError, match="No space left on device; 3 saves in a row have failed"),
    ):
        pretrain(toy.recipe("pretrain.epochs=9"), tmp_path / "run")
    assert toy.tensors(tmp_path / "run", 9)


def test_a_last_save_that_fails_is_no_success(tmp_path, monkeypatch):
    failing(monkeypatch, iter([False, True]))
    with pytest.raises(RunError, match="No space left"):
        pretrain(toy.recipe(), tmp_path / "run")
    assert not (tmp_path / "run/backbone").exists()


def save_with_little_space(folder: str, limit: int, tell: Connection) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    checkpoints = Checkpoints(Path(folder), 2)
    checkpoints.save(1, {"model": {"x": torch.zeros(100)}, "optim": {}}, {})
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        checkpoints.save(2, {"model": {"x": torch.zeros(10_000)}, "optim": {}}, {})
        tell.send("saved")
    except RunError as error:
        tell.send(str(error))


@pytest.mark.parametrize("limit", [0, 1, 1000, 39_999])
def test_a_disk_that_fills_up_at_any_byte_leaves_the_checkpoint_before(tmp_path, limit):
    here, there = multiprocessing.get_context("forkserver").Pipe()
    process = child(save_with_little_space, str(tmp_path), limit, there)
    assert here.poll(60)
    assert "cannot be written: File too large: free space" in here.recv()
    process.join(20)
    assert Checkpoints(tmp_path, 2).newest({}).step == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest.json", "step_00000001"]


# ---- R4, R5: what lies in the run folder


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "flipped first byte": lambda p: p.write_bytes(
        bytes([p.read_bytes()[0] ^ 1]) + p.read_bytes()[1:]
    ),
    "flipped last byte": lambda p: p.write_bytes(
        p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 128])
    ),
    "one byte short": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "one byte long": lambda p: p.write_bytes(p.read_bytes() + b"\0"),
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "empty": lambda p: p.write_bytes(b""),
    "missing": lambda p: p.unlink(),
    "a folder": lambda p: (p.unlink(), p.mkdir()),
    "a link": lambda p: (p.rename(p.with_suffix(".moved")), p.symlink_to(p.with_suffix(".moved"))),
    "zeros": lambda p: p.write_bytes(bytes(p.stat().st_size)),
}


@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "manifest.json"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damage_is_found_before_a_tensor_is_used(tmp_path, whole, file, kind):
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    DAMAGE[kind](tmp_path / "checkpoints" / f"step_{STEPS:08d}" / file)
    with pytest.warns(UserWarning, match=rf"{file.split('.')[0]}.*going on from step_00000009"):
        assert Checkpoints(tmp_path / "checkpoints", 2).newest({}).step == 9


@pytest.mark.parametrize("kind", ["missing", "empty", "dangling", "a lie"])
def test_the_hint_is_never_believed(tmp_path, whole, kind):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "backbone")
    hint = run / "checkpoints/latest.json"
    hint.unlink()
    if kind == "empty":
        hint.write_text("")
    elif kind == "dangling":
        hint.symlink_to("nowhere")
    elif kind == "a lie":
        hint.write_text(json.dumps({"step": 0, "folder": "step_00000000"}))
    pretrain(toy.recipe(), run)
    assert toy.same(toy.tensors(run), toy.tensors(whole))
    assert len(toy.lines(run / "metrics.jsonl")) == STEPS


def test_a_checkpoint_of_the_first_format_still_loads(tmp_path):
    """Written when the format was made, and kept: what reads it today must read it for ever."""
    shutil.copytree(Path(__file__).parent / "fixtures/format1", tmp_path / "checkpoints")
    found = Checkpoints(tmp_path / "checkpoints", 2).newest({"batch": 4})
    assert found.step == 7
    assert found.tensors["model"]["layer.weight"].tolist() == [[0.0, 1.0], [2.0, 3.0]]
    assert found.tensors["optim"]["layer.weight/exp_avg"].tolist() == [[0.5, 0.5], [0.5, 0.5]]


def test_a_checkpoint_of_a_later_format_is_refused_clearly(tmp_path):
    shutil.copytree(Path(__file__).parent / "fixtures/format1", tmp_path / "checkpoints")
    manifest = tmp_path / "checkpoints/step_00000007/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(RunError, match="format 2, this version reads 1: update lookalike"):
        Checkpoints(tmp_path / "checkpoints", 2).newest({})


def test_a_later_format_is_refused_and_not_passed_over(tmp_path, whole):
    shutil.copytree(whole / "checkpoints", tmp_path / "checkpoints")
    manifest = tmp_path / f"checkpoints/step_{STEPS:08d}/manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(RunError, match="format 2, this version reads 1: update lookalike"):
        Checkpoints(tmp_path / "checkpoints", 2).newest({})
    assert manifest.exists()


@pytest.mark.parametrize("keep", [1, 2])
def test_a_broken_checkpoint_takes_no_whole_one_s_place(tmp_path, whole, keep):
    """The broken ones lie at later steps than what is saved next; a stray file and a rogue name do
    too.
    """
    folder = tmp_path / "checkpoints"
    shutil.copytree(whole / "checkpoints", folder)
    (folder / f"step_{STEPS:08d}/model.safetensors").write_bytes(b"torn")
    (folder / "step_99999999999999999999").mkdir()
    (folder / "step_00000099").write_text("stray")
    checkpoints = Checkpoints(folder, keep)
    with heard() as texts:
        found = checkpoints.newest({})
    assert found.step == 9
    assert len(texts) == 3
    checkpoints.save(11, found.tensors, {})
    assert [f.name for f in sorted(folder.glob("step_*"))] == [
        f"step_{s:08d}" for s in (9, 11)[-keep:]
    ]
    assert Checkpoints(folder, keep).newest({}).step == 11
    assert (folder / f"damaged.step_{STEPS:08d}/model.safetensors").read_bytes() == b"torn"


def test_a_refused_change_leaves_the_run_as_it_was(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "backbone")
    other = toy.recipe("pretrain.method.projector=[16, 16]", "pretrain.epochs=3")
    misfit = rf"checkpoints: step {STEPS} does not fit the recipe's model: projector"
    with (
        pytest.warns(UserWarning, match="goes on with another recipe"),
        pytest.raises(RunError, match=misfit),
    ):
        pretrain(other, run, accept_changes=True)
    assert (run / "recipe.yaml").read_bytes() == (whole / "recipe.yaml").read_bytes()
    pretrain(toy.recipe(), run)
    shutil.rmtree(run / "backbone")
    with pytest.warns(UserWarning, match="goes on with another recipe"):
        pretrain(
            toy.recipe("pretrain.optimizer.lr=1e-3", "pretrain.epochs=3"), run, accept_changes=True
        )
    assert "lr: 0.001" in (run / "recipe.yaml").read_text()


def test_another_engine_goes_on_without_being_told_to_and_another_precision_does_not(
    tmp_path, whole
):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "backbone")
    pretrain(toy.recipe("pretrain.engine={name: plain}"), run)
    with pytest.raises(RunError, match=r"made by another recipe \(pretrain\.engine\.precision"):
        pretrain(toy.recipe("pretrain.engine={name: plain, precision: bf16}"), run)


def mine(backbone):
    """A method of a user's own."""
    return METHODS["barlow_twins"](backbone, projector=[16, 32])


def test_a_run_of_a_method_of_one_s_own_says_so_and_no_other_goes_on_with_it(tmp_path):
    pretrain(toy.recipe("pretrain.epochs=1"), tmp_path / "run", method=mine)
    card = json.loads((tmp_path / "run/backbone/card.json").read_text())
    assert card["method"].endswith("test_reliability.mine")
    with pytest.raises(
        RunError, match=r"was trained on something else \(method: .*test_reliability\.mine"
    ):
        pretrain(toy.recipe("pretrain.epochs=1"), tmp_path / "run")


# ---- R7, R18: ranks and workers


def test_workers_change_no_bit(tmp_path, whole):
    pretrain(toy.recipe("pretrain.workers=2"), tmp_path / "run")
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(whole))


def stop_at(monkeypatch, step: int) -> None:
    """SIGTERM while that step is trained."""
    calls = itertools.count(1)
    original = loop.begin

    def begin(*arguments):
        if next(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(loop, "begin", begin)


@pytest.mark.parametrize(
    ("worlds", "stages"), [((1, 2), (0, 0)), ((2, 1), (0, 0)), ((2, 2), (2, 0)), ((2, 1), (1, 3))]
)
def test_a_run_goes_on_with_other_ranks_and_at_another_stage(ranks, tmp_path, worlds, stages):
    """A ViT, on which rounding does not grow: every step's loss within 1e-6 of the one
    process's.
    """
    pretrain(toy.recipe(ADAMW, backbone=toy.VIT), tmp_path / "whole")
    run, stops = str(tmp_path / "run"), (7, None)
    for world, stage_number, stop in zip(worlds, stages, stops, strict=True):
        ranks.run(part_of_a_run, run, stage_number, stop, world=world)
    one, two = (toy.lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "run"))
    assert [line["step"] for line in two] == list(range(1, STEPS + 1))
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-6)


ADAMW = "pretrain.optimizer={name: adamw, lr: 5e-4}"


def part_of_a_run(out: str, stage_number: int, stop: int | None) -> None:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if stop:
            stop_at(patch, stop)
        patch.setattr("lookalike.checkpoint.compare._FREE", {"engine"})
        patch.setattr(
            "lookalike.checkpoint.run.lock", lambda out: None
        )  # the ranks of earlier groups still live
        engine = f"pretrain.engine={{name: zero, stage: {stage_number}}}"
        try:
            pretrain(toy.recipe(ADAMW, engine, backbone=toy.VIT), out)
        except loop.Stopped:
            assert stop


@pytest.mark.parametrize("on", ["device", "host"])
def test_files_give_the_same_bits_with_workers_and_after_a_stop(tmp_path, monkeypatch, on):
    """R1, R7 and R18 of images in files, wherever their crops are made."""
    images, words = folder_of_images(tmp_path / "images"), (f"pretrain.crop_on={on}",)
    pretrain(on_folder(images, *words), tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(loop.Stopped):
            pretrain(on_folder(images, *words, "pretrain.workers=2"), tmp_path / "run")
    pretrain(on_folder(images, *words, "pretrain.workers=1"), tmp_path / "run")
    assert toy.same(toy.tensors(tmp_path / "run", 10), toy.tensors(tmp_path / "whole", 10))


# ---- R9: images that are none


def spoilt(path: Path) -> Path:
    """Good images, and one of each kind of trouble; the good names come first and are alike in both
    folders.
    """
    from PIL import Image
    from test_decode import bad_files, bombs, save

    folder_of_images(path)
    tools = path.parent / "tools"
    tools.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    unusual = path / "train"
    save(unusual / "u_exif6.jpg", values, exif=exif)
    Image.fromarray(values).convert("CMYK").save(unusual / "u_cmyk.jpg")
    save(unusual / "u_deep.png", values[..., 0].astype(np.uint16) * 257)
    frames = [Image.fromarray(values + i) for i in range(3)]
    frames[0].save(unusual / "u_moving.gif", save_all=True, append_images=frames[1:])
    wanted = ("empty.jpg", "html.jpg", "short.jpg", "short.png", "flipped.png", "garbage.jpg")
    bad = {name: data for name, (data, _) in bad_files(tools).items() if name in wanted}
    bad |= {f"bomb_{name}": bombs()[name] for name in ("a.png", "a.jpg", "a.gif", "a.webp")}
    for name, data in bad.items():
        (path / "train" / f"z_{name}").write_bytes(data)
    (path / "train" / "z_gone.png").symlink_to(path / "train" / "00.png")
    return path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("on", ["device", "host"])
def test_images_that_are_none_are_replaced_counted_and_listed(tmp_path, on, workers):
    images = spoilt(tmp_path / "images")
    recipe = on_folder(images, f"pretrain.crop_on={on}", f"pretrain.workers={workers}")
    source = recipe.values["data"].build().split("train", 16)
    bad = {source.name(i) for i in range(len(source)) if "/z_" in source.name(i)}
    assert len(bad) == 11
    (images / "train/z_gone.png").unlink()  # after it was listed: split() has seen it
    host_crops = HostCrops(recipe.values["pretrain"].views.build(), 16) if on == "host" else None
    order, sizes, listed = EpochOrder(len(source), 11, 1, 3), set(), {}
    rows: dict[int, torch.Tensor] = {}
    span = {
        "first_step": 0,
        "last_step": order.steps_per_epoch,
        "rank": 0,
        "world": 1,
        "pin": False,
    }
    for batch in batches(source, order, **span, workers=workers, host_crops=host_crops):
        part = batch.pixels if host_crops is None else batch.pixels[1]
        sizes.add(len(part))
        listed |= {record.sample: record for record in batch.bad}
        rows |= {i: part[row].clone() for row, i in enumerate(batch.ids_B.tolist())}
    assert sizes == {11}
    assert {record.path for record in listed.values()} == bad & {source.name(i) for i in rows}
    assert len(listed) > 5
    assert all(record.reason and record.replacement not in listed for record in listed.values())
    reader = Reader(source, order.seed, host_crops)
    for i, row in rows.items():
        alone = [torch.empty(1, *shape, dtype=torch.uint8) for shape in reader.shapes]
        again = reader.fill(0, [i], alone)
        assert torch.equal(alone[-1][0], row)
        assert again == ([listed[i]] if i in listed else [])


# ---- R8: what was trained on has changed


def folder_of_images(path: Path, count: int = 40) -> Path:
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for split, most in (("train", count), ("test", 2)):
        (path / split).mkdir(parents=True)
        for i in range(most):
            values = torch.randint(0, 256, (12, 12), generator=generator, dtype=torch.uint8)
            Image.fromarray(values.numpy()).save(path / split / f"{i:02}.png")
    return path


def on_folder(path: Path, *words: str):
    data = f"data={{name: folder, path: '{path}', canvas: 16, channels: 1}}"
    return toy.recipe(data, "pretrain.batch=8", "pretrain.epochs=2", "pretrain.workers=0", *words)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "added": lambda p: shutil.copy(p / "train/00.png", p / "train/zz.png"),
    "removed": lambda p: (p / "train/07.png").unlink(),
    "replaced": lambda p: (p / "train/07.png").write_bytes(
        (p / "train/07.png").read_bytes() + b"more"
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_other_images_are_refused_with_a_difference_unless_asked_for(tmp_path, monkeypatch, kind):
    images = folder_of_images(tmp_path / "images")
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(loop.Stopped):
            pretrain(on_folder(images), tmp_path / "run")
    CHANGES[kind](images)
    shown = "data: " if kind == "replaced" else r"images: 40 -> (41|39)"
    with pytest.raises(
        RunError, match=rf"was trained on something else \(.*{shown}.*--accept-changes"
    ):
        pretrain(on_folder(images), tmp_path / "run")
    with heard() as texts:
        pretrain(on_folder(images), tmp_path / "run", accept_changes=True)
    assert "goes on with something else" in texts[0]
    assert toy.lines(tmp_path / "run/metrics.jsonl")[-1]["step"] >= 8


def test_another_batch_is_refused_unless_asked_for(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        with pytest.raises(loop.Stopped):
            pretrain(toy.recipe(), tmp_path / "run")
    with pytest.raises(RunError, match=r"pretrain\.batch: 144 -> 72.*--accept-changes"):
        pretrain(toy.recipe("pretrain.batch=72"), tmp_path / "run")
    with heard() as texts:
        pretrain(toy.recipe("pretrain.batch=72"), tmp_path / "run", accept_changes=True)
    assert "batch: 144 -> 72" in texts[0]
    assert [line["step"] for line in toy.lines(tmp_path / "run/metrics.jsonl")] == list(
        range(1, 39)
    )


# ---- R11: a loader process dies


@pytest.mark.parametrize("before", [False, True])
def test_a_dead_loader_process_is_named_with_its_samples_and_the_run_resumes(
    tmp_path, monkeypatch, whole, before
):
    """`before`: another loader of the process has left its handler of dead children."""
    if before:
        monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
        signal_handling._set_SIGCHLD_handler()
    original = Reader.fill

    def dies(self, epoch, ids, parts):
        if 77 in ids:
            os._exit(9)
        return original(self, epoch, ids, parts)

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(Reader, "fill", dies)
        said = r"a loader process died.*worker \d of 2, process \d+, while reading"
        with pytest.raises(RunError, match=said) as caught:
            pretrain(toy.recipe("pretrain.workers=2"), tmp_path / "run")
    assert time.monotonic() - began < 30
    named = str(caught.value).partition("samples ")[2].partition(":")[0].split(" or ")
    order = EpochOrder(len(Digits().split("train")), 144, 1, 3)
    (deadly,) = [ids.tolist() for _, ids in order.micro_batches(0, 9) if 77 in ids]
    assert ", ".join(map(str, deadly[:8])) + ", …" in named
    assert len(named) <= 2
    pretrain(toy.recipe("pretrain.workers=2"), tmp_path / "run")
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(whole))


# ---- R19: long runs


def resident() -> int:
    """KiB of anonymous and shared memory of this process and its children; pages that fork shares
    count twice, which does not change when one of the two writes to them.
    """
    return sum(
        int(line.split()[1])
        for process in (os.getpid(), *(p.pid for p in multiprocessing.active_children()))
        for line in Path(f"/proc/{process}/status").read_text().splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    )


def slope(measured: list[tuple[int, int]]) -> float:
    """MB per 1,000 steps, least squares."""
    steps, kib = np.array(measured, dtype=float).T
    return float(np.polyfit(steps / 1000, kib / 1024, 1)[0])


@pytest.mark.parametrize(("on", "workers"), [("device", 0), ("host", 2)])
def test_two_thousand_batches_leave_memory_and_descriptors_as_they_were(tmp_path, on, workers):
    """Images in files, bad ones among them."""
    images = spoilt(tmp_path / "images")
    source = Folder(str(images), canvas=16, channels=1).split("train")
    host_crops = HostCrops(Symmetric(), 16) if on == "host" else None
    order, measured, opened = EpochOrder(len(source), 2, 1, 3), [], set()
    span = {
        "first_step": 0,
        "last_step": 2000,
        "rank": 0,
        "world": 1,
        "workers": workers,
        "pin": False,
    }
    for step, _ in enumerate(batches(source, order, **span, host_crops=host_crops)):
        if step >= 400 and step % 100 == 0:
            gc.collect()
            measured.append((step, resident()))
            opened.add(len(list(Path("/proc/self/fd").iterdir())))
    assert slope(measured) < 1
    assert len(opened) == 1


@pytest.mark.slow
def test_two_thousand_steps_leave_memory_and_descriptors_as_they_were(tmp_path, monkeypatch):
    measured, opened = [], []
    original, calls = loop.begin, itertools.count()

    def begin(*arguments):
        if (step := next(calls)) >= 400 and step % 100 == 0:
            gc.collect()
            measured.append((step, resident()))
            opened.append(len(list(Path("/proc/self/fd").iterdir())))
        return original(*arguments)

    monkeypatch.setattr(loop, "begin", begin)
    words = (
        "pretrain.batch=4",
        "pretrain.epochs=6",
        "pretrain.log_every=100",
        "pretrain.save_every_epochs=99",
    )
    tiny = toy.RESNET.replace("16, 16], layers", "8, 8], layers").replace("size: 16", "size: 8")
    pretrain(toy.recipe(*words, "pretrain.workers=1", backbone=tiny), tmp_path / "run")
    assert len(measured) == 18
    assert slope(measured) < 1
    # A thread that logs may have a file open for a moment; what leaks stays open.
    assert min(opened[-6:]) == min(opened[:6])


# ---- R14: collapse


def long_toy(*words: str, backbone: str = toy.RESNET):
    return toy.recipe(
        "pretrain.batch=64",
        "pretrain.epochs=10",
        "pretrain.log_every=25",
        *words,
        backbone=backbone,
    )


def dead_end(module) -> None:
    """A projector that says the same of every image."""
    torch.nn.init.zeros_(module.projector[-1].weight)
    module.projector[-1].weight.requires_grad_(False)


def test_a_constant_projector_raises_the_alarm(tmp_path, monkeypatch):
    original = stage.make_method

    def make(recipe, method=None):
        module = original(recipe, method)
        dead_end(module)
        return module

    monkeypatch.setattr(stage, "make_method", make)
    with pytest.raises(
        RunError,
        match=r"step (75|100|125): collapse: all embeddings point one way.*on_collapse: warn",
    ):
        pretrain(long_toy("pretrain.on_collapse=stop"), tmp_path / "run")


# Large enough for embeddings of more dimensions than one; the toy's sixteen features are copies of
# each other anyway.
SMALL = "{name: resnet18, size: 24, channels: 1, pool: avg, args: {channels: [16, 32, 64, 128], layers: [1, 1, 1, 1]}}"
MILD = "pretrain.views={name: symmetric, crop: [0.5, 1.0], flip: 0.0, grey: 0.0, blur: 0.0}"


def test_dimensions_that_copy_each_other_raise_the_alarm_within_200_steps(tmp_path):
    method = "pretrain.method={name: barlow_twins, projector: [128, 128], off_diagonal: 0.0}"
    recipe = long_toy("pretrain.on_collapse=stop", method, MILD, backbone=SMALL)
    with pytest.raises(RunError, match=r"step (1\d\d|200): collapse: all dimensions say the same"):
        pretrain(recipe, tmp_path / "run")


def test_a_loss_of_exactly_nothing_raises_the_alarm(tmp_path):
    method = "pretrain.method={name: vicreg, projector: [16, 32], invariance: 0, variance: 0, covariance: 0}"
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


@pytest.mark.parametrize("name", HEALTHY)
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


def test_the_alarm_waits_for_three_in_a_row_and_rings_once():
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


def test_tensorboard_forgets_the_steps_that_a_training_goes_back_over(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Metrics(tmp_path, 0) as metrics:
        for step in range(1, 6):
            metrics.write(step, {"loss": float(step)})
        metrics.cut(2)
        metrics.write(3, {"loss": 30.0})
    with Metrics(tmp_path, 3) as metrics:
        metrics.write(4, {"loss": 40.0})
    board = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    expected = [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0)]
    assert [(event.step, event.value) for event in board.Scalars("loss")] == expected
    assert toy.curve(tmp_path) == expected
