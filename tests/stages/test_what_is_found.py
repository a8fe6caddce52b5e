"""Every run says once which images it found and what it left out, the whole list lies in its
folder; and nothing is held out for a test that no stage asks for.
"""

import json
import shutil
from pathlib import Path

import torch
from PIL import Image

import lookalike
import toy
from lookalike import cli, comm
from lookalike.data import Manifest, Shards
from lookalike.data.pack import Packing, pack
from lookalike.folder import write_file
from lookalike.runs import Run, begun_with
from lookalike.show import show
from lookalike.stages.evaluate import evaluate
from lookalike.stages.pretrain import pretrain

ONLY = ("probe=null", "finetune=null", "evaluate=null", "export=null")
COUNT = 20


def images(root: Path, *paths: str) -> Path:
    """Grey noise under these names; by default twenty without a class."""
    draw = torch.Generator().manual_seed(0)
    for path in paths or [f"{i:02}.png" for i in range(COUNT)]:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(0, 256, (12, 12), generator=draw, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(root / path)
    return root


CLASSES = [f"{c}/{i}.png" for c in ("ant", "bee") for i in range(COUNT // 2)]


def recipe(root: Path, *words: str):
    return toy.on_folder(root, "pretrain.batch=4", *words)


def test_of_labelled_images_the_test_set_stays_unseen_for_a_later_score(tmp_path):
    root = images(tmp_path / "in", *CLASSES)
    run = Run(recipe(root, *ONLY))
    train = run.images("train")
    assert len(train) == len(Run(recipe(root, *ONLY, "probe={}")).images("train")) < COUNT
    held = COUNT - len(train)
    (line,) = run.told()
    said = f"data: {COUNT} images in 2 classes (train {len(train)}, test {held} for no stage)"
    assert line.startswith(said)


def test_nothing_is_held_out_unless_a_stage_asks_for_it(tmp_path):
    root = images(tmp_path / "in")
    assert len(Run(recipe(root, *ONLY)).images("train")) == COUNT
    for section in ("probe={}", "pretrain.knn_every_epochs=1", "evaluate={}"):
        run = Run(recipe(root, *ONLY, section))
        train, test = run.images("train"), run.images("test")
        assert len(train) + len(test) == COUNT > len(train)
    tuned = "finetune={optimizer: {name: adamw, lr: 1e-3}}"
    assert len(Run(recipe(root, *ONLY, tuned)).images("train")) == len(train)
    elsewhere = f"evaluate={{data: {{name: folder, path: '{root}', channels: 1}}}}"
    assert len(Run(recipe(root, *ONLY, elsewhere)).images("train")) == COUNT


def test_of_a_table_and_of_shards_nothing_is_held_out_either(tmp_path):
    root = images(tmp_path / "in")
    rows = "".join(f"{i:02}.png\n" for i in range(COUNT))
    write_file(root / "t.csv", f"path\n{rows}".encode())
    pack(
        lookalike.load_recipe(toy.write(tmp_path / "r.yaml")).data.build(),
        tmp_path / "s",
        Packing(),
        0,
    )
    for source in (Manifest(str(root / "t.csv")), Shards(str(tmp_path / "s/*.tar"), channels=1)):
        sets = [source.split(name) for name in ("train", "test", "all")]
        assert len(sets[0]) + len(sets[1]) == len(sets[2]) > len(sets[0])
    write_file(root / "t.csv", b"path,split\n00.png,train\n01.png,test\n")
    assert len(Manifest(str(root / "t.csv")).split("all")) == 1


def test_a_run_that_was_begun_with_less_goes_on_with_that_to_the_same_bits(tmp_path):
    """As a release before this law began it, or a recipe that had a stage more."""
    root, run = images(tmp_path / "in"), tmp_path / "run"
    short = ("pretrain.keep=9", "finetune=null", "evaluate=null", "export=null")
    pretrain(recipe(root, *short), run)  # which has a probe
    held = Run(recipe(root, *short)).images("train")
    assert begun_with(run) == len(held) < COUNT
    newest = sorted((run / "checkpoints").glob("step_*"))[-1]
    wanted, step = toy.tensors(run, int(newest.name[5:])), int(newest.name[5:])
    assert len(Run(recipe(root, *short, "probe=null"), run).images("train")) == len(held)
    before = (run / "backbone/model.safetensors").read_bytes()
    shutil.rmtree(newest)
    shutil.rmtree(run / "backbone")
    pretrain(recipe(root, *short, "probe=null"), run)
    assert toy.same(toy.tensors(run, step), wanted)
    assert (run / "backbone/model.safetensors").read_bytes() == before
    assert pretrain(recipe(root, *short, "probe=null"), run).exists()  # finished, and known


def test_how_many_images_a_run_began_with_is_read_as_0_1_0_wrote_it():
    fixtures = Path(__file__).parents[1] / "fixtures"
    assert begun_with(fixtures / "run-0.1.0") == begun_with(fixtures / "run-0.1.0-finished") == 1438
    assert begun_with(fixtures) is None


def test_a_run_says_it_once_and_writes_the_whole_list(tmp_path, capsys):
    root = images(tmp_path / "in", *(f"train/{name}" for name in CLASSES), "test/ant/0.png")
    (root / "train/ant/notes.txt").write_text("x")
    (root / "train/bee/loop").symlink_to("..")
    out, made = tmp_path / "run", recipe(root, *ONLY)
    line = (
        f"data: 21 images in 2 classes (train {COUNT}, test 1 for no stage); 1 class of train is "
        "not in test (bee); left out 2: 1 × .txt (train/ant/notes.txt), 1 × folder seen before "
        f"(train/bee/loop)"
    )
    lookalike.run(made, out)
    said = capsys.readouterr().out.splitlines()
    assert [each for each in said if each.startswith("data:")] == [f"{line}: see {out}/data.json"]
    assert f"  {out / 'data.json'}  which images were found, and what was left out" in said
    whole = json.loads((out / "data.json").read_bytes())
    assert whole["data"]["left_out"] == {
        ".txt": {"number": 1, "names": ["train/ant/notes.txt"]},
        "folder seen before": {"number": 1, "names": ["train/bee/loop"]},
    }
    assert whole["data"]["sets"]["train"]["images_of"] == {"ant": COUNT // 2, "bee": COUNT // 2}
    assert [each for each in show(made).splitlines() if each.startswith("data: ")] == [line]
    path = tmp_path / "r.yaml"
    path.write_text(made.text())
    words = ["check", str(path), "--out", str(out)]
    assert cli.guarded(lambda: cli.app(words, standalone_mode=False)) == 0
    assert capsys.readouterr() == (f"{line}\n", "")


def test_other_ranks_say_nothing(tmp_path, capsys, monkeypatch):
    run = Run(recipe(images(tmp_path / "in"), *ONLY), tmp_path / "run")
    run.images("train")
    monkeypatch.setattr(comm, "rank", lambda: 1)
    run.claim()
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "run").exists()


def test_the_data_of_an_evaluation_has_a_line_of_its_own(tmp_path, capsys):
    root = images(
        tmp_path / "in", *(f"test/{name}" for name in CLASSES), "train/cow/0.png", "train/dog/0.png"
    )
    data = f"{{name: folder, path: '{root}', channels: 1, canvas: 16}}"
    torch.manual_seed(0)
    backbone = toy.architecture().build()
    made = toy.recipe(
        "probe=null", "finetune=null", "export=null", f"evaluate={{data: {data}, examples: 0}}"
    )
    evaluate(backbone, made, tmp_path / "run")
    told = capsys.readouterr()
    assert told.err.splitlines()[0] == f"evaluate.data: {COUNT} images in 2 classes (test {COUNT})"
    run = Run(made)
    run.images("train"), run.images("test", of=made.evaluate.data)
    assert run.told() == [
        "data: 1,438 images in 10 classes (train 1,438)",
        f"evaluate.data: {COUNT} images in 2 classes (test {COUNT})",
    ]
