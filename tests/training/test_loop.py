"""The loop: stopped and resumed is uninterrupted, bit for bit; ranks change nothing; broken
checkpoints are found.
"""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import children
import toy
from lookalike import comm
from lookalike.checkpoint import Checkpoints
from lookalike.errors import DataError, RecipeError, RunError
from lookalike.folder import verify
from lookalike.process import fault
from lookalike.process.signals import Stopped
from lookalike.stages.pretrain import pretrain
from lookalike.training.bad_samples import BadSamples

STEPS = 18
EVERY_STEP = ("pretrain.keep=100",)


@pytest.mark.parametrize(
    "step", [1, 9, 11, *(pytest.param(s, marks=pytest.mark.slow) for s in (7, 17))]
)
def test_stopped_and_resumed_is_uninterrupted_bit_for_bit(tmp_path, whole, step):
    run = tmp_path / "run"
    said = rf"SIGTERM after step {step} of {STEPS}, saved"
    with fault.plan(f"term:rank=0,step={step}"), pytest.raises(Stopped, match=said):
        pretrain(toy.recipe(), run)
    assert not (run / "backbone").exists()
    torch.manual_seed(999)
    pretrain(toy.recipe(), run)
    assert toy.same(toy.tensors(run), toy.tensors(whole))
    assert toy.curve(run) == toy.curve(whole)
    assert load_file(run / "backbone/model.safetensors").keys()
    assert (run / "backbone/model.safetensors").read_bytes() == (
        whole / "backbone/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(("kind", "number"), [("int", signal.SIGINT), ("usr1", signal.SIGUSR1)])
def test_other_signals_stop_as_cleanly(tmp_path, kind, number):
    with fault.plan(f"{kind}:rank=0,step=2"), pytest.raises(Stopped) as stop:
        pretrain(toy.recipe(), tmp_path / "run")
    assert stop.value.number == number
    assert toy.tensors(tmp_path / "run", 2)
    assert signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler)


def test_the_same_seed_twice_gives_the_same_bits_and_another_does_not(tmp_path, whole):
    pretrain(toy.recipe(), tmp_path / "again")
    pretrain(toy.recipe("seed=4"), tmp_path / "other")
    assert toy.same(toy.tensors(tmp_path / "again"), toy.tensors(whole))
    assert not toy.same(toy.tensors(tmp_path / "other"), toy.tensors(whole))


def test_dropout_masks_after_a_resume_are_those_of_the_uninterrupted_run(tmp_path):
    recipe = ["backbone.args={drop_path_rate: 0.5, channels: [8, 8, 16, 16], layers: [1, 2, 1, 1]}"]
    pretrain(toy.recipe(*recipe), tmp_path / "whole")
    with fault.plan("term:rank=0,step=5"), pytest.raises(Stopped):
        pretrain(toy.recipe(*recipe), tmp_path / "cut")
    torch.rand(17)
    pretrain(toy.recipe(*recipe), tmp_path / "cut")
    assert toy.same(toy.tensors(tmp_path / "cut"), toy.tensors(tmp_path / "whole"))


def test_a_finished_run_is_not_trained_again(whole):
    before = toy.marks(whole / "backbone", whole / "checkpoints")
    assert pretrain(toy.recipe(), whole) == whole / "backbone"
    assert toy.marks(whole / "backbone", whole / "checkpoints") == before


@pytest.mark.parametrize(
    ("backbone", "optimizer"),
    [
        (toy.VIT, "{name: adamw, lr: 5e-4}"),
        # In every suite the micro-batches below have both kinds of network.
        pytest.param(toy.RESNET, "{name: lars, lr: 0.05, bias_lr: 0.0012}", marks=pytest.mark.slow),
    ],
    ids=["without batch statistics", "with"],
)
def test_two_processes_have_the_loss_curve_of_one_over_20_steps(
    ranks, tmp_path, backbone, optimizer
):
    """Each by its paper's optimizer, at a rate and a seed where so small a network does not
    multiply rounding tenfold a step: with batch statistics it often does, also where one process is
    compared with itself.
    """
    changes = ("pretrain.epochs=3", f"pretrain.optimizer={optimizer}", "seed=4")
    pretrain(toy.recipe(*changes, backbone=backbone), tmp_path / "one")
    ranks.run(run_toy, changes, backbone, str(tmp_path / "two"))
    one, two = toy.curve(tmp_path / "one"), toy.curve(tmp_path / "two")
    assert len(one) == 27
    for (_, a), (_, b) in zip(one[:20], two[:20], strict=True):
        assert b == pytest.approx(a, rel=1e-5)


def run_toy(changes, backbone: str, out: str) -> None:
    pretrain(toy.recipe(*changes, backbone=backbone), out)


def test_accumulation_trains_on_the_same_samples(tmp_path, whole):
    pretrain(toy.recipe("pretrain.accumulate=3"), tmp_path / "run")
    assert [s for s, _ in toy.curve(tmp_path / "run")] == [s for s, _ in toy.curve(whole)]
    assert not toy.same(toy.tensors(tmp_path / "run"), toy.tensors(whole))


@pytest.mark.parametrize(
    "backbone",
    [toy.VIT, pytest.param(toy.RESNET, marks=pytest.mark.slow)],
    ids=["without batch statistics", "with"],
)
def test_micro_batches_train_alike_on_any_number_of_ranks(ranks, tmp_path, backbone):
    """Every rank takes its part of every micro-batch: also a BatchNorm in the backbone sees the
    same images.
    """
    changes = (
        "pretrain.micro_batch=36",
        "pretrain.epochs=1",
        "pretrain.optimizer={name: lars, lr: 0.2, bias_lr: 0.0048}",
    )
    pretrain(toy.recipe(*changes, backbone=backbone), tmp_path / "one")
    ranks.run(run_toy, changes, backbone, str(tmp_path / "two"))
    assert [loss for _, loss in toy.curve(tmp_path / "two")] == pytest.approx(
        [loss for _, loss in toy.curve(tmp_path / "one")], rel=1e-5
    )
    if backbone == toy.VIT:
        pretrain(toy.recipe(*changes[1:], backbone=backbone), tmp_path / "whole")
        assert [loss for _, loss in toy.curve(tmp_path / "whole")] == pytest.approx(
            [loss for _, loss in toy.curve(tmp_path / "one")], rel=1e-5
        )


def test_a_micro_batch_that_does_not_divide_the_batch_is_refused():
    with pytest.raises(
        RecipeError, match=r"batch 144 / accumulate does not divide into micro_batch 50"
    ):
        toy.recipe("pretrain.micro_batch=50")


def test_views_that_the_method_does_not_compare_are_refused():
    with pytest.raises(
        RecipeError, match=r"views: 3 of each image, but BarlowTwins compares 2: set views.views: 2"
    ):
        toy.recipe("pretrain.views={name: symmetric, views: 3}")
    toy.recipe(
        "pretrain.views={name: multi_crop, small: 2, small_size: 8}", "pretrain.method={name: swav}"
    )


def test_knn_of_the_backbone_is_logged_and_changes_nothing(ranks, tmp_path, whole):
    pretrain(toy.recipe("pretrain.knn_every_epochs=1"), tmp_path / "run")
    assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(whole))
    found = [
        line["knn20/top1"]
        for line in toy.lines(tmp_path / "run/metrics.jsonl")
        if "knn20/top1" in line
    ]
    assert len(found) == 2
    assert all(0.1 < value <= 1 for value in found)


@pytest.mark.parametrize(
    "method", ["{name: dino, hidden: 16, bottleneck: 8, prototypes: 12}", "{name: supcon}"]
)
def test_methods_with_small_views_or_labels_train_from_a_recipe(tmp_path, method):
    views = (
        "pretrain.views={name: multi_crop, small: 2, small_size: 8}"
        if "dino" in method
        else "seed=3"
    )
    pretrain(toy.recipe(f"pretrain.method={method}", views, "pretrain.epochs=1"), tmp_path / "run")
    assert len(toy.curve(tmp_path / "run")) == 9


def damage(folder: Path, kind: str) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    if kind == "flipped byte":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif kind == "cut":
        path.write_bytes(content[:-1])
    elif kind == "missing":
        path.unlink()
    elif kind == "empty manifest":
        (folder / "manifest.json").write_text("")
    else:
        (folder / "manifest.json").write_text('{"format": 1, "files": {"../x": {}}}')


DAMAGES = ["flipped byte", "cut", "missing", "empty manifest", "manifest that leaves its folder"]


@pytest.mark.parametrize(
    "kind",
    # Each kind, by Checkpoints alone: checkpoint/test_checkpoints.py.
    [k if k == "flipped byte" else pytest.param(k, marks=pytest.mark.slow) for k in DAMAGES],
)
def test_a_broken_checkpoint_is_passed_over_with_a_warning(tmp_path, whole, kind):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "backbone")
    damage(run / "checkpoints" / f"step_{STEPS:08d}", kind)
    with pytest.warns(UserWarning, match=rf"step_{STEPS:08d}.*going on from step_00000009"):
        pretrain(toy.recipe(), run)
    assert toy.same(toy.tensors(run), toy.tensors(whole))


def test_a_run_whose_checkpoints_are_all_broken_does_not_start_anew(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "backbone")
    for folder in (run / "checkpoints").glob("step_*"):
        damage(folder, "flipped byte")
    with pytest.raises(
        RunError, match=r"model\.safetensors: its content changed.*no whole checkpoint is left"
    ):
        pretrain(toy.recipe(), run)


def test_two_ranks_decide_alike_about_a_broken_checkpoint(ranks, tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    damage(run / "checkpoints" / f"step_{STEPS:08d}", "cut")
    assert ranks.run(newest, str(run)) == [9, 9]


def newest(run: str) -> int:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Checkpoints(Path(run) / "checkpoints", 2).newest({})
    return found.step


def test_a_leftover_of_a_killed_save_is_never_loaded(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.copytree(
        run / "checkpoints" / f"step_{STEPS:08d}", run / "checkpoints" / ".tmp-step_00000099-1"
    )
    assert Checkpoints(run / "checkpoints", 2).newest({}).step == STEPS


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ("pretrain.batch=100", r"pretrain\.batch: 144 -> 100"),
        ("seed=9", "seed: 3 -> 9"),
        ("backbone.pool=max", r'backbone\.pool: "avg" -> "max"'),
    ],
)
def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(whole, change, shown):
    with pytest.raises(RunError, match=shown):
        pretrain(toy.recipe(change), whole)
    verify(whole / "backbone")


def test_other_data_under_the_same_recipe_is_refused(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "backbone")
    for manifest in (run / "checkpoints").glob("step_*/manifest.json"):
        manifest.write_text(manifest.read_text().replace('"data": "', '"data": "0'))
    with pytest.raises(RunError, match="was trained on something else"):
        pretrain(toy.recipe(), run)


def test_a_used_folder_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(RunError, match="holds files but no run of lookalike"):
        pretrain(toy.recipe(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_nan_loss_before_the_first_checkpoint_stops_the_run(tmp_path):
    with (
        pytest.warns(UserWarning, match="skipped on all ranks"),
        pytest.raises(
            RunError,
            match=r"NaN or Inf at step 4, the third in a row, before anything was saved: lower",
        ),
    ):
        pretrain(
            toy.recipe("pretrain.optimizer.lr=1e30", "pretrain.warmup_epochs=0"), tmp_path / "run"
        )


def test_metrics_hold_every_part_and_a_failing_board_stops_nothing(tmp_path, monkeypatch):
    class Broken:
        def __init__(self, *_, **__):
            raise OSError("no board today")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter", Broken)
    with pytest.warns(UserWarning, match="TensorBoard stopped"):
        pretrain(toy.recipe("pretrain.epochs=1"), tmp_path / "run")
    found = toy.lines(tmp_path / "run/metrics.jsonl")
    assert len(found) == 9
    parts = {
        "step",
        "loss",
        "on_diagonal",
        "off_diagonal",
        "images_per_s",
        "waiting",
        "lr",
        "bad_samples",
        "skipped",
    }
    assert all(parts == line.keys() for line in found)
    rates = [line["lr"] for line in found]
    assert rates[0] < rates[3]
    assert rates[-1] < rates[4]


def test_too_many_bad_images_stop_the_run_and_are_listed_once(tmp_path):
    bad = BadSamples(tmp_path / "bad.jsonl", limit=2)
    Record = __import__("collections").namedtuple("Record", "sample path reason")
    assert bad.add([Record(1, "a", "x"), Record(1, "a", "x"), Record(2, "b", "y")]) == 2
    bad.check(2)
    again = BadSamples(tmp_path / "bad.jsonl", limit=2)
    assert again.add([Record(2, "b", "y"), Record(3, "c", "z")]) == 1
    with pytest.raises(DataError, match=r"3 images could not be read, more than the 2 allowed"):
        again.check(1)
    assert [
        json.loads(line)["sample"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()
    ] == [1, 2, 3]


def test_nan_weights_are_never_saved(tmp_path):
    """The loss of a step is from before its update, so only the weights tell."""
    words = ("pretrain.optimizer.lr=1e30", "pretrain.warmup_epochs=0", "pretrain.log_every=1000")
    with (
        pytest.warns(UserWarning, match="skipped on all ranks"),
        pytest.raises(RunError, match="is NaN or Inf at step 4"),
    ):
        pretrain(toy.recipe(*words), tmp_path / "run")
    assert not list((tmp_path / "run/checkpoints").glob("step_*"))


def test_a_second_run_in_one_folder_is_refused(tmp_path):
    open_it = (
        "import toy; from pathlib import Path; from lookalike.checkpoint import open_run\n"
        f"open_run(Path({str(tmp_path / 'run')!r}), toy.recipe())"
    )
    holder = children.Program(f"{open_it}\nprint('held', flush=True); import time; time.sleep(99)")
    assert holder.printed("held")
    assert "another run writes here" in children.run(open_it).stderr
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert children.run(open_it) == (0, "", "")


def test_a_folder_in_which_nothing_was_trained_takes_another_recipe(tmp_path):
    with pytest.raises(DataError, match="fewer than one batch"):
        pretrain(toy.recipe("pretrain.batch=5000"), tmp_path / "run")
    pretrain(toy.recipe("pretrain.epochs=1"), tmp_path / "run")
    assert (tmp_path / "run/backbone").exists()


@pytest.mark.parametrize(
    "change", [{"step": 10**9}, {"step": -1}, {"step": "x"}, {"step": None}, {"files": {}}], ids=str
)
def test_a_manifest_that_is_not_its_folders_is_passed_over(tmp_path, whole, change):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = run / "checkpoints" / f"step_{STEPS:08d}" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.warns(
        UserWarning, match="does not belong to step_00000018; going on from step_00000009"
    ):
        assert Checkpoints(run / "checkpoints", 2).newest({}).step == 9


def test_a_manifest_that_is_a_pipe_is_refused_and_not_waited_for(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder/manifest.json")
    with pytest.raises(RunError, match=r"manifest\.json: missing or unreadable"):
        verify(tmp_path / "folder")


def test_one_process_is_a_world_of_one():
    assert comm.world_size() == 1
