"""The shell: what goes wrong is one clear line and exit code 2, and nothing is lost."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

import children
import toy
from lookalike import cli
from lookalike.errors import Error
from lookalike.stages.pretrain import pretrain

FOUND = "data: 1,797 images in 10 classes (train 1,438, test 359)\n"
TRAINING_ONLY = ("pretrain.epochs=1", "probe=null", "finetune=null", "evaluate=null", "export=null")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("trained") / "run"
    pretrain(toy.recipe("pretrain.epochs=1"), run)
    return run


def call(capsys, *words: str) -> tuple[int, str, str]:
    """Exit code, what was printed, what was complained of."""
    code = cli.guarded(lambda: cli.app([str(w) for w in words], standalone_mode=False))
    out, err = capsys.readouterr()
    return code, out, err


def refused(capsys, pattern: str, *words) -> None:
    code, _, err = call(capsys, *words)
    assert code == 2
    assert err.count("\n") == 1, err
    assert err.startswith("lookalike: ")
    assert "Traceback" not in err
    assert re.search(pattern, err), err


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("pretrain.method.off_diagnal=1", r'off_diagnal: unknown, did you mean "off_diagonal"\?'),
        ("pretrain.optimizer.lr=-1", r"pretrain\.optimizer\.lr: -1 must be greater than 0"),
        ("pretrain.epochs=ten", r'pretrain\.epochs: "ten" is not a whole number'),
        ("backbone.name=resnet81", r'timm has no model "resnet81", did you mean "resnet\d+'),
        ("pretrain.warmup_epochs=9", r"warmup_epochs 9 is longer than epochs 2"),
        ("pretrain.accumulate=5", r"batch 144 does not divide into accumulate: 5"),
        ("data=fotos", r'data: .*"fotos".*"(digits|folder|idx)"'),
        ("backbone.channels=3", r"backbone\.channels: 3, but data digits gives 1"),
        (
            "data={name: folder, path: nowhere, channels: 1}",
            r"nowhere: .*(no such|does not exist|missing)",
        ),
        ("data={name: idx, path: nowhere}", r"nowhere"),
        ("pretrain.batch=5000", r"1438 images are fewer than one batch of 5000"),
        ("pretrain.clip=-1", r"clip: -1 must be at least 0"),
    ],
)
def test_a_wrong_value_is_one_line_and_exit_2(capsys, tmp_path, override, pattern):
    recipe = toy.write(tmp_path / "r.yaml")
    refused(capsys, pattern, "pretrain", recipe, override, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_misspelt_key_in_the_file_has_its_line_and_column(capsys, tmp_path):
    recipe = toy.write(tmp_path / "r.yaml")
    recipe.write_text(recipe.read_text().replace("off_diagonal", "off_diagnal"))
    refused(capsys, r"r\.yaml:6:\d+: pretrain\.method\.off_diagnal: unknown", "show", recipe)


def test_every_problem_of_a_recipe_is_told_at_once(capsys, tmp_path):
    recipe = toy.write(tmp_path / "r.yaml")
    code, _, err = call(
        capsys, "show", recipe, "pretrain.batch=0", "probe.k=no", "export.onyx=true"
    )
    assert code == 2
    assert len(err.splitlines()) == 3


@pytest.mark.parametrize("name", ["missing.yaml", "folder"])
def test_a_recipe_that_cannot_be_read_is_named(capsys, tmp_path, name):
    (tmp_path / "folder").mkdir()
    refused(capsys, re.escape(name), "show", tmp_path / name)


def test_lars_with_zero_stage_1_is_refused_before_anything_starts(capsys, tmp_path):
    recipe = toy.write(tmp_path / "r.yaml")
    words = ("pretrain.optimizer={name: lars, lr: 0.1}", "pretrain.engine={name: zero, stage: 1}")
    refused(
        capsys, "lars needs whole layers", "pretrain", recipe, *words, "--out", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()


def test_a_patch_that_does_not_divide_the_size_is_refused_with_sizes_that_do(capsys, tmp_path):
    recipe = toy.write(tmp_path / "r.yaml", backbone=toy.VIT)
    words = ("pretrain", recipe, "backbone.size=20", "--out", tmp_path / "run")
    refused(capsys, r"patches of 8 pixels, which do not divide size 20: take size 16 or 24", *words)


@pytest.mark.parametrize("content", [{}, {"notes.txt": b"hello"}], ids=["empty", "no images"])
def test_a_folder_without_images_is_refused(capsys, tmp_path, content):
    (tmp_path / "photos").mkdir()
    for name, data in content.items():
        (tmp_path / "photos" / name).write_bytes(data)
    recipe = toy.write(tmp_path / "r.yaml")
    data = f"data={{name: folder, path: {tmp_path / 'photos'}, channels: 1, canvas: 16}}"
    refused(capsys, r"photos: .*\.jpg", "pretrain", recipe, data, "--out", tmp_path / "run")


def test_a_backbone_folder_with_a_flipped_byte_is_refused_and_left_alone(capsys, tmp_path, trained):
    folder = tmp_path / "backbone"
    shutil.copytree(trained / "backbone", folder)
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-9] ^= 4
    (folder / "model.safetensors").write_bytes(content)
    recipe = toy.write(tmp_path / "r.yaml")
    for verb in ("probe", "export", "finetune", "evaluate"):
        words = (verb, recipe, "--model", folder, "--out", tmp_path / verb)
        refused(capsys, r"model\.safetensors: its content changed.*sha256", *words)
    assert (folder / "model.safetensors").read_bytes() == bytes(content)


def test_a_folder_that_is_no_backbone_is_refused(capsys, tmp_path):
    recipe = toy.write(tmp_path / "r.yaml")
    refused(
        capsys,
        "no such folder",
        "probe",
        recipe,
        "--model",
        tmp_path / "x",
        "--out",
        tmp_path / "run",
    )
    (tmp_path / "x").mkdir()
    refused(
        capsys,
        "manifest.json: missing",
        "probe",
        recipe,
        "--model",
        tmp_path / "x",
        "--out",
        tmp_path / "run",
    )


def test_corrupt_images_among_good_ones_are_replaced_and_listed(capsys, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(60):
        pixels = torch.randint(0, 255, (24, 20, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(photos / f"{i:02d}.jpg")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and then nothing")
    (photos / "page.png").write_text("<html>not found</html>")
    recipe = toy.write(tmp_path / "r.yaml")
    data = f"data={{name: folder, path: {photos}, channels: 1, canvas: 16, test_fraction: 0}}"
    words = (data, "pretrain.batch=31", "pretrain.workers=1")
    code, _, err = call(capsys, "pretrain", recipe, *words, "--out", tmp_path / "run")
    assert code == 0
    assert re.fullmatch(r"data: \d of 16 images looked at cannot be read, first .*\n", err), err
    bad = toy.lines(tmp_path / "run" / "bad_samples.jsonl")
    assert sorted(Path(line["path"]).name for line in bad) == ["broken.jpg", "page.png"]
    assert toy.lines(tmp_path / "run" / "metrics.jsonl")[-1]["bad_samples"] == 2
    refused(capsys, "test set", "probe", recipe, *words, "--out", tmp_path / "run")
    words = (data.replace("test_fraction: 0", "test_fraction: 0.5"), *words[1:])
    refused(
        capsys,
        "labels",
        "probe",
        recipe,
        *words,
        "--model",
        tmp_path / "run" / "backbone",
        "--out",
        tmp_path / "p",
    )


def test_show_tells_what_will_happen(capsys, tmp_path):
    code, out, _ = call(capsys, "show", toy.write(tmp_path / "r.yaml"))
    assert code == 0
    for pattern in (
        r"data +1438 images of 1×8×8, 10 classes",
        r"backbone +resnet18: \(B, 1, 16, 16\) -> \(B, 16\), [\d,]+ parameters",
        r"steps +18 = 2 epochs × 9 of 144",
        r"group +weights: \d+ tensors, [\d,]+ parameters, lr 0\.002, weight decay 0\.05",
        r"group +biases and norms: .*weight decay 0",
        r"memory +\d+ MiB",
        r"flip: 0\.5",
    ):
        assert re.search(pattern, out), pattern


def test_the_schema_is_json(capsys):
    code, out, _ = call(capsys, "schema")
    assert code == 0
    assert json.loads(out)["properties"].keys() >= {
        "data",
        "backbone",
        "pretrain",
        "probe",
        "finetune",
    }


def test_debug_shows_the_traceback_and_else_none(capsys, tmp_path):
    _, _, err = call(capsys, "--debug", "show", tmp_path / "missing.yaml")
    assert "Traceback" in err
    _, _, err = call(capsys, "show", tmp_path / "missing.yaml")
    assert "Traceback" not in err


def test_a_defect_of_ours_is_not_dressed_up_as_the_users(capsys, monkeypatch):
    def broken() -> None:
        raise KeyError("ours")

    assert cli.guarded(broken) == 1
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"lookalike: KeyError: 'ours' at test_cli.py:\d+: a defect of lookalike, please .*\n", err
    )
    monkeypatch.setenv("LOOKALIKE_DEBUG", "1")
    assert cli.guarded(broken) == 1
    assert "Traceback" in capsys.readouterr().err
    assert issubclass(Error, Exception)


ENVIRONMENTS = [
    ("WORLD_SIZE", "abc"),
    ("WORLD_SIZE", "0"),
    ("RANK", "x"),
    ("RANK", "1"),
    ("LOCAL_RANK", "zz"),
    ("LOOKALIKE_TIMEOUT", "junk"),
    ("LOOKALIKE_FAULT", "junk"),
]


@pytest.mark.parametrize("verb", ["run", "check"])
@pytest.mark.parametrize(("name", "value"), ENVIRONMENTS)
def test_an_environment_that_makes_no_sense_is_named(
    capsys, monkeypatch, tmp_path, name, value, verb
):
    monkeypatch.setenv(name, value)
    refused(
        capsys,
        rf"environment: {name}=",
        verb,
        toy.write(tmp_path / "r.yaml"),
        "--out",
        tmp_path / "r",
    )
    assert not (tmp_path / "r").exists()


def test_ranks_without_a_place_to_meet_are_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for verb in ("run", "check"):
        words = (verb, toy.write(tmp_path / "r.yaml"), "--out", tmp_path / "r")
        refused(capsys, "environment: RANK, MASTER_ADDR, MASTER_PORT not set", *words)


def test_check_takes_what_run_takes_and_leaves_nothing(capsys, tmp_path):
    recipe = toy.write(tmp_path / "r.yaml")
    words = (
        "check",
        recipe,
        "pretrain.epochs=1",
        "--out",
        tmp_path / "new" / "run",
        "--accept-changes",
    )
    assert call(capsys, *words) == (0, FOUND, "")
    assert [path.name for path in tmp_path.iterdir()] == ["r.yaml"]
    refused(capsys, "--out DIR is missing", "check", recipe)


def test_check_judges_a_run_folder_as_run_does(capsys, tmp_path, trained):
    recipe = toy.write(tmp_path / "r.yaml")
    strange, file = tmp_path / "strange", tmp_path / "file"
    strange.mkdir()
    (strange / "letter.txt").write_text("mine")
    file.write_text("mine")
    for out, epochs in ((strange, 2), (file, 2), (trained, 3)):
        words = (recipe, f"pretrain.epochs={epochs}", "--out", out)
        told = [call(capsys, verb, *words) for verb in ("check", "run")]
        assert told[0] == told[1]
        assert told[0][0] == 2
        assert "choose another --out" in told[0][2]
    (tmp_path / "empty").mkdir()
    for out, epochs in ((trained, 1), (tmp_path / "empty", 2)):
        assert call(capsys, "check", recipe, f"pretrain.epochs={epochs}", "--out", out) == (
            0,
            FOUND,
            "",
        )
    words = ("check", recipe, "pretrain.epochs=3", "--accept-changes", "--out", trained)
    assert call(capsys, *words) == (0, FOUND, "")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no /proc")
def test_check_refuses_a_folder_that_nobody_can_make(capsys, tmp_path):
    recipe = toy.write(tmp_path / "r.yaml")
    refused(capsys, "/proc/nope/run: cannot be written", "check", recipe, "--out", "/proc/nope/run")


@pytest.mark.parametrize(
    ("overrides", "pattern"),
    [
        (["pretrain.micro_batch=1"], r"pretrain\.micro_batch: 1 images for 2 ranks: raise it"),
        (["pretrain.batch=2", "pretrain.accumulate=1"], None),
        (
            ["pretrain.batch=4", "pretrain.accumulate=4"],
            r"a micro-batch of one image has no statistics",
        ),
        (
            ["pretrain.engine=plain"],
            r"pretrain\.engine: plain trains in one process, not on 2 ranks",
        ),
        (
            ["finetune.classes_per_batch=1", "finetune.per_class=1"],
            r"finetune\..*1 images a batch for 2 ranks|at least",
        ),
        (
            ["pretrain.method={name: w_mse, projector: [16, 4], slice_size: 4}"],
            r"slice_size 4 cannot whiten",
        ),
    ],
)
def test_check_refuses_what_the_ranks_would_refuse(capsys, tmp_path, overrides, pattern):
    words = (
        "check",
        toy.write(tmp_path / "r.yaml"),
        *overrides,
        "--ranks",
        2,
        "--out",
        tmp_path / "run",
    )
    if pattern:
        refused(capsys, pattern, *words)
    else:
        assert call(capsys, *words) == (0, FOUND, "")
        refused(capsys, r"pretrain\.batch: 2 images for 3 ranks: raise it", *words, "--ranks", 3)


@pytest.mark.slow
def test_a_reader_who_goes_away_stops_no_training(tmp_path):
    recipe = toy.write(tmp_path / "r.yaml")
    options = f"{' '.join(TRAINING_ONLY)} --out {tmp_path / 'run'}"
    words = f"{sys.executable} -m lookalike run {recipe} {options} | true"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    assert (tmp_path / "run/backbone/manifest.json").exists()


LOCAL = str(Path(__file__).parent.parent / "launch" / "local.sh")


@pytest.mark.slow  # in the suite process/test_launch.py starts it, and stops it halfway
def test_the_launcher_trains_one_recipe_on_two_processes(tmp_path):
    recipe = toy.write(tmp_path / "r.yaml")
    words = [LOCAL, "2", str(recipe), *TRAINING_ONLY, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    manifest = json.loads(
        (tmp_path / "run" / "checkpoints" / "step_00000009" / "manifest.json").read_text()
    )
    assert manifest["world"] == 2
    assert (tmp_path / "run" / "backbone" / "model.safetensors").exists()
    assert done.stdout.count("results:") == 1


@pytest.mark.parametrize("words", [[], ["2"], ["two", "r.yaml"], ["0", "r.yaml"]])
def test_the_launcher_refuses_what_it_does_not_understand(words):
    done = subprocess.run([LOCAL, *words], capture_output=True, text=True, timeout=20)
    assert done.returncode == 2
    assert "launch/local.sh" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_run_saves_and_leaves_on_a_signal_and_the_same_command_goes_on(tmp_path, number):
    recipe = toy.write(tmp_path / "r.yaml")
    words = ["pretrain", str(recipe), "pretrain.epochs=200", "--out", str(tmp_path / "run")]
    program = children.Program(children.CLI, *words)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while (
        not (metrics.exists() and metrics.read_text().count("\n") >= 3)
        and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    program.send_signal(number)
    code, _, err = program.wait()
    assert code == 128 + number
    said = r"after step (\d+) of 1800, saved: the same command goes on"
    step = int(re.search(said, err).group(1))
    assert (tmp_path / "run" / "checkpoints" / f"step_{step:08d}" / "manifest.json").exists()
    assert err.count("\n") == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_outside_training_is_told_and_gives_its_code(name):
    code = (
        "import os, signal, sys, lookalike.cli as cli, lookalike.experiment as p;"
        f"p.recipe_schema = lambda: os.kill(os.getpid(), signal.{name}); cli.main()"
    )
    done = children.run(code, "schema")
    assert done.returncode == 128 + getattr(signal, name)
    assert done.stderr == f"lookalike: stopped by {name}: the same command goes on\n"


def test_the_same_signal_again_while_a_stopped_run_leaves_changes_nothing():
    """As from a launcher, which hands a signal on while the ranks have already agreed to stop."""
    script = (
        "import atexit, os, signal, sys\n"
        "import lookalike.cli as cli, lookalike.experiment as p, lookalike.process.signals as s\n"
        "def again(): os.kill(os.getpid(), signal.SIGTERM)\n"
        "def train():\n"
        "    with s.Signals() as signals: again()\n"
        "    again()\n"
        "    raise s.Stopped(signals.caught, 3, 9)\n"
        "p.recipe_schema = train; cli._leave = again; atexit.register(again)\n"
        "sys.argv = ['lookalike', 'schema']; cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert (
        done.stderr == "lookalike: stopped by SIGTERM after step 3 of 9, saved: "
        "the same command goes on from there\n"
    )
