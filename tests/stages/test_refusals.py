"""What cannot be done is refused before the first step: by `check` and `run` in the same one line,
which names the place and the remedy, and nothing is trained.
"""

import re
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lookalike
import toy
from lookalike.data import readable
from lookalike.data.images import (
    Annotations,
    ArrayImages,
    FileImages,
    Pairs,
    Reading,
    subset,
)
from lookalike.errors import DataError, Error, RunError
from lookalike.evaluation import tasks
from lookalike.experiment import Experiment
from lookalike.geometry import PixelFormat
from lookalike.metric.objectives import MINER, OBJECTIVE, Objective
from lookalike.pipeline import check
from lookalike.process import fault
from lookalike.runs import Run
from lookalike.training import early
from lookalike.training.bad_samples import BadSamples

FEW = {"train/a": 6, "train/b": 6, "test/a": 3, "test/b": 3}
OTHERS = {"train/a": 6, "train/b": 6, "test/c": 3, "test/d": 3}
ONE_EACH = {"train/a": 1, "train/b": 1, "train/c": 1, "test/a": 1, "test/b": 1}
ONE_CLASS = {"train/a": 6, "test/a": 4}
FLAT = {"train": 6, "test": 3}


class Reached(Exception):
    """A run has come to its first step."""


def stop(step: int) -> None:
    raise Reached


def images(root: Path, counts: dict[str, int]) -> Path:
    """So many grey images of noise in each folder."""
    random = np.random.default_rng(0)
    for folder, count in counts.items():
        (root / folder).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    return root


def recipe(data: str, *words: str) -> Experiment:
    """Pretraining on such data and nothing after it, but for what the words ask."""
    bare = ["probe=null", "finetune=null", "evaluate=null", "export=null"]
    later = [word.partition("=")[0].partition(".")[0] for word in words]
    bare = [word for word in bare if word.partition("=")[0] not in later]
    small = [f"data={data}", "pretrain.batch=4", "pretrain.epochs=1", "pretrain.workers=0"]
    return toy.recipe(*small, *bare, *words)


def folder(root: Path, counts: dict[str, int], labels: str = "auto") -> str:
    return f"{{name: folder, path: '{images(root, counts)}', channels: 1, labels: {labels}}}"


def told(made: Experiment, out: Path) -> list[str]:
    """What `check` says, and `run`; nothing where a run comes to its first step."""
    words = []
    with fault.plan(stop):
        for verb in (lambda: check(Run(made, out)), lambda: lookalike.run(made, out)):
            try:
                verb()
                words.append("")
            except Reached:
                words.append("")
            except Error as error:
                words.append(str(error))
    return words


def refused(made: Experiment, out: Path) -> str:
    """The one line in which both refuse; nothing of a training is left."""
    checked, ran = told(made, out)
    assert checked == ran
    assert ran, "is not refused"
    assert "\n" not in ran
    assert not list(out.rglob("step_*"))
    assert not list(out.rglob("metrics.jsonl"))
    return ran


FINETUNE = (
    "finetune.classes_per_batch=2",
    "finetune.per_class=2",
    "finetune.warmup_epochs=0",
    "finetune.held_out=0",
)
BY_SOURCE: dict[str, tuple[dict[str, int], tuple[str, ...], str]] = {
    "a probe of classes of one image": (
        ONE_EACH,
        ("pretrain.batch=2", "probe.k=1"),
        "data: each of the 3 classes has one train image, and the probe .*: give some class two",
    ),
    "a probe of one class": (
        {"train/a": 6, "train/b": 0, "test/a": 4},
        ("probe.k=1", "data.labels=folders"),
        "data: all 6 train images are of one class, and probe tells classes apart: give two",
    ),
    "a probe of other classes than it learns": (
        OTHERS,
        ("probe.k=1",),
        "data: no test image is of a class that the train images have, so probe could only score "
        "0: give both sets the same classes, or remove it",
    ),
    "a probe without labels": (FLAT, ("probe.k=1",), "data: no labels, which probe.* need"),
    "kNN of one class": (
        ONE_CLASS,
        ("pretrain.knn_every_epochs=1", "data.labels=folders"),
        "data: all 6 train images are of one class, and knn_every_epochs .*: give two or more, or "
        "set it to 0",
    ),
    "kNN of other classes": (
        OTHERS,
        ("pretrain.knn_every_epochs=1",),
        "data: no test image is of a class .*, so knn_every_epochs could only score 0",
    ),
    "kNN without labels": (FLAT, ("pretrain.knn_every_epochs=1",), "data: no labels, which knn_"),
    "a batch above the images": (
        FEW,
        ("pretrain.batch=16",),
        r"pretrain\.batch: 12 images are fewer than one batch of 16: lower it",
    ),
    "one image at a time, which has no statistics": (
        FEW,
        ("pretrain.micro_batch=1",),
        r"pretrain\.micro_batch: one image at a time: Expected more than 1 value .*: raise it",
    ),
    "retrieval without a match": (
        {"train/a": 6, "train/b": 6, "test/a": 1, "test/b": 1},
        ("evaluate.intervals=0",),
        "data: none of 2 queries has another image of its class in the gallery: give two or more",
    ),
    "retrieval of one class": (
        ONE_CLASS,
        ("evaluate.intervals=0", "data.labels=folders"),
        "data: all images are of one class, so every answer is right: give two or more classes",
    ),
    "re-identification without cameras": (
        FEW,
        ("evaluate.task=reidentification",),
        r"evaluate\.task: reidentification needs cameras, .*: add them",
    ),
    "verification without pairs": (
        FEW,
        ("evaluate.task=verification",),
        r"evaluate\.task: verification needs pairs, .*: take data that lists pairs",
    ),
    "more classes a batch than there are": (
        FEW,
        (*FINETUNE, "finetune.classes_per_batch=3"),
        r"finetune\.classes_per_batch: 3 classes a batch, but only 2 are trained on: lower it",
    ),
    "classes of one image, which have no positive": (
        ONE_EACH,
        ("pretrain.batch=2", *FINETUNE),
        r"finetune\.classes_per_batch: 2 classes a batch, but only 0 have two images: lower it",
    ),
    "no class left to be held out": (
        FEW,
        (*FINETUNE, "finetune.held_out=0.5"),
        r"finetune\.held_out: 0\.5 of 2 classes leaves fewer than 2 on one side: change it",
    ),
    "only one class to train on": (
        ONE_CLASS,
        (*FINETUNE, "data.labels=folders"),
        "data: only one class to train on: fine-tuning needs two",
    ),
    "triplets of classes of which one image comes": (
        FEW,
        (*FINETUNE, "finetune.per_class=1", "finetune.objective=TripletMarginLoss"),
        r"finetune\.per_class: 1, but TripletMarginLoss learns nothing from a batch without two of "
        "one class: raise it",
    ),
    "triplets of one class": (
        FEW,
        (*FINETUNE, "finetune.classes_per_batch=1", "finetune.objective=TripletMarginLoss"),
        r"finetune\.classes_per_batch: 1, but TripletMarginLoss learns nothing from a batch "
        "without two of different classes: raise it",
    ),
    "a batch of one image": (
        FEW,
        (*FINETUNE, "finetune.classes_per_batch=1", "finetune.per_class=1"),
        r"finetune\.per_class: one image at a time: Expected more than 1 value .*: raise it",
    ),
    "a miner that takes no such batch": (
        FEW,
        (*FINETUNE, "finetune.miner=EmbeddingsAlreadyPackagedAsTriplets"),
        r"finetune\.objective: FaceNetLoss: AssertionError",
    ),
    "distinct cameras without cameras": (
        FEW,
        (*FINETUNE, "finetune.cameras=distinct"),
        r"finetune\.cameras: distinct, but these images name no cameras: remove it",
    ),
    "an estimator of classes of one image": (
        ONE_EACH,
        ("pretrain.batch=2", "finetune={estimator: {name: rca}, held_out: 0}"),
        r"finetune\.estimator: rca: RCA: every class has one row: give two or more",
    ),
    "an estimator without a fold to choose by": (
        FEW,
        ("finetune={estimator: {name: csml, folds: 1}, held_out: 0}",),
        r"finetune\.estimator: csml: CSML: no fold has pairs .*: give more rows",
    ),
}


@pytest.mark.parametrize("case", BY_SOURCE)
def test_what_the_data_does_not_allow_is_refused_in_one_line(tmp_path, case):
    counts, words, pattern = BY_SOURCE[case]
    made = recipe(folder(tmp_path / "data", counts), *words)
    line = refused(made, tmp_path / "run")
    assert re.search(pattern, line), line
    assert not (tmp_path / "run").exists()


ALLOWED: dict[str, tuple[dict[str, int], tuple[str, ...]]] = {
    "a probe of two images a class": (FEW, ("probe.max_iterations=5",)),
    "a probe of a class of two beside ones of one": (
        {"train/a": 2, "train/b": 1, "train/c": 1, "test/a": 1},
        ("probe.k=1",),
    ),
    "a k above the train images": (FEW, ("probe.k=500",)),
    "one image at a time without BatchNorm": (
        FEW,
        ("pretrain.micro_batch=1", f"backbone={toy.VIT}"),
    ),
    "a classifier of one image a class": (
        FEW,
        (*FINETUNE, "finetune.per_class=1", "finetune.objective=ArcFaceLoss"),
    ),
    "a memory of one image a class": (
        FEW,
        (*FINETUNE, "finetune.per_class=1", "finetune.memory={size: 8}"),
    ),
    "a batch as large as the set": (FEW, ("pretrain.batch=12",)),
}


@pytest.mark.parametrize("case", ALLOWED)
def test_what_can_be_done_is_not_refused(tmp_path, case):
    counts, words = ALLOWED[case]
    made = recipe(folder(tmp_path / "data", counts), *words)
    assert told(made, tmp_path / "run") == ["", ""]


def test_a_k_above_the_train_images_is_said(tmp_path, capsys):
    made = recipe(folder(tmp_path / "data", FEW), "probe={}")
    check(Run(made, tmp_path / "run"))
    assert "probe.k: 20, but there are 12 train images: all of them vote" in capsys.readouterr().err


def test_queries_that_only_their_own_camera_has_seen_are_refused(tmp_path):
    rows = [f"train/a/{i}.png,{i % 2},0,train,," for i in range(6)]
    rows += [f"test/a/{i}.png,{i % 2},{i % 2},test,{i < 2},{i >= 2}" for i in range(4)]
    images(tmp_path, {"train/a": 6, "test/a": 4})
    head = "path,label,camera,split,is_query,is_gallery"
    (tmp_path / "t.csv").write_text("\n".join([head, *rows]).lower())
    data = f"{{name: manifest, path: '{tmp_path / 't.csv'}', channels: 1}}"
    line = refused(recipe(data, "evaluate={}"), tmp_path / "run")
    assert "none of 2 queries has another image of its class of another camera" in line


def in_memory(count: int = 4, **known: Any) -> ArrayImages:
    return ArrayImages(torch.zeros(count, 1, 4, 4, dtype=torch.uint8), Annotations(**known))


@pytest.mark.parametrize(("same", "word"), [((True, True), "the same"), ((False, False), "diff")])
def test_pairs_of_one_kind_are_refused_before_there_are_embeddings(same, word):
    pairs = Pairs(torch.tensor([[0, 1], [2, 3]]), torch.tensor(same), torch.zeros(2).long())
    with pytest.raises(DataError, match=f"all 2 pairs are of {word}.*: list pairs of both"):
        tasks.refuse_unanswerable(in_memory(pairs=pairs), "verification")


def test_a_camera_that_is_not_known_is_refused_before_there_are_embeddings():
    known = {"labels": torch.tensor([0, 0, 1, 1]), "cameras": torch.tensor([0, 1, -1, 0])}
    with pytest.raises(DataError, match=r"1 of 4 images name no camera.*: name all"):
        tasks.refuse_unanswerable(in_memory(**known), "reidentification")


# Images of which none can be read.

Spoil = Callable[[Path], Any]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


SPOILT: dict[str, tuple[Spoil, str]] = {
    "cut short": (cut_short, "image"),
    "text": (lambda path: path.write_text("<html>404 not found</html>"), "not a|cannot identify"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "a link to nothing": (lambda path: (path.unlink(), path.symlink_to("gone")), "No such file"),
}


@pytest.mark.filterwarnings("ignore:.*no file .*they count as bad images")
@pytest.mark.parametrize("kind", SPOILT)
def test_a_set_of_which_no_image_can_be_read_is_refused_with_the_first_reason(tmp_path, kind):
    spoil, why = SPOILT[kind]
    data = folder(tmp_path / "data", {"train": 9, "test": 2})
    names = [f"train/{i}.png" for i in range(9)]
    table = "\n".join(["path,split", *(f"{name},train" for name in names), "test/0.png,test"])
    (tmp_path / "data/t.csv").write_text(table)
    for name in names:
        spoil(tmp_path / "data" / name)
    data = f"{{name: manifest, path: '{tmp_path / 'data/t.csv'}', channels: 1}}"
    line = refused(recipe(data, "pretrain.batch=2"), tmp_path / "run")
    begin = "data: none of the 9 images looked at can be read, first .*0.png: "
    assert re.search(begin + f".*({why}).*: give files that can", line), line
    assert not (tmp_path / "run").exists()


def test_some_that_cannot_be_read_are_said_and_trained_without(tmp_path, capsys):
    data = folder(tmp_path / "data", {"train": 40, "test": 2})
    for i in range(1, 40):
        cut_short(tmp_path / "data/train" / f"{i}.png")
    (tmp_path / "data/train/0.png").rename(tmp_path / "data/train/00.png")
    assert told(recipe(data), tmp_path / "run") == ["", ""]
    line = "data: 15 of 16 images looked at cannot be read, first "
    assert capsys.readouterr().err.count(line) == 2


def test_evaluation_looks_at_what_it_scores(tmp_path):
    data = folder(tmp_path / "data", FEW)
    for path in (tmp_path / "data/test").rglob("*.png"):
        cut_short(path)
    assert told(recipe(data), tmp_path / "run") == ["", ""]
    for stage in ("probe.k=1", "evaluate.intervals=0"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        line = refused(recipe(data, stage), tmp_path / "run")
        assert "none of the 6 images looked at can be read, first" in line


def test_each_stage_alone_refuses_a_set_that_cannot_be_read(tmp_path):
    words = ["probe.k=1", *FINETUNE, "evaluate.intervals=0"]
    made = recipe(folder(tmp_path / "data", FEW), *words)
    backbone = toy.architecture().build()
    for path in (tmp_path / "data").rglob("*.png"):
        cut_short(path)
    for stage in (
        lambda: lookalike.pretrain(made, tmp_path / "run"),
        lambda: lookalike.probe(backbone, made),
        lambda: lookalike.finetune(backbone, made, tmp_path / "run"),
        lambda: lookalike.evaluate(backbone, made),
    ):
        with pytest.raises(DataError, match="images looked at can be read, first"):
            stage()
    assert not (tmp_path / "run").exists()


class Counted(FileImages):
    """Counts what is read."""

    number = 0

    def read(self, i: int, out_CHW: torch.Tensor | None = None) -> torch.Tensor:
        self.number += 1
        return super().read(i, out_CHW)


def test_at_most_sixteen_images_are_looked_at_from_the_first_to_the_last(tmp_path):
    images(tmp_path, {"": 40} if not tmp_path.exists() else {"set": 40})
    paths = sorted(f"{i}.png" for i in range(40))
    many = Counted(tmp_path / "set", paths, Reading((12, 12), PixelFormat(1)))
    assert readable.look(many) == ("", "")
    assert many.number == readable.LOOKED_AT == 16
    for end in (paths[0], paths[-1]):
        cut_short(tmp_path / "set" / end)
    assert readable.look(many)[1].startswith("data: 2 of 16 images looked at cannot be read")


def looks(folder: str) -> tuple[str, int]:
    """On a rank: what a look at a broken set says, and how many images were read."""
    broken = Counted(folder, [f"{i}.png" for i in range(4)], Reading((12, 12), PixelFormat(1)))
    run = Run(toy.recipe())
    try:
        run.look(broken)
    except DataError as error:
        return str(error), broken.number
    return "", broken.number


def test_one_rank_looks_and_all_refuse(tmp_path, ranks):
    for path in (images(tmp_path, {"set": 4}) / "set").iterdir():
        cut_short(path)
    (first, read), (second, none) = ranks.run(looks, str(tmp_path / "set"), world=2)
    assert first == second
    assert "none of the 4 images looked at can be read" in first
    assert (read, none) == (4, 0)


def test_a_set_is_looked_at_once_whatever_stages_read_it(tmp_path):
    images(tmp_path, {"set": 4})
    paths = [f"{i}.png" for i in range(4)]
    many = Counted(tmp_path / "set", paths, Reading((12, 12), PixelFormat(1)))
    run = Run(toy.recipe())
    run.look(many, subset(many, [1, 2]))
    run.look(many)
    assert many.number == 4


def test_images_in_memory_are_not_looked_at(monkeypatch):
    monkeypatch.setattr(ArrayImages, "read", lambda *_: pytest.fail("read"))
    assert readable.look(in_memory()) == ("", "")


# Folders, disks and limits.


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("export/backbone", ["export.onnx=false"]),
        ("export/embedding", ["export.onnx=false", *FINETUNE]),
        ("finetune/embedding", [*FINETUNE]),
        ("backbone", []),
    ],
)
def test_what_lookalike_did_not_write_is_refused_before_it_would_be_replaced(
    tmp_path, target, words
):
    made = recipe(folder(tmp_path / "data", FEW), *words)
    out = tmp_path / "run"
    (out / target).mkdir(parents=True)
    (out / "recipe.yaml").write_text(made.text())
    (out / target / "notes.txt").write_text("mine")
    line = refused(made, out)
    assert line.startswith(str(out / target))
    assert re.search("holds notes.txt, which lookalike did not write|not a folder that", line)


def test_little_room_for_checkpoints_is_said(tmp_path, monkeypatch, capsys):
    made = recipe(folder(tmp_path / "data", FEW))
    check(Run(made, tmp_path / "run"))
    assert "free" not in capsys.readouterr().err
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 10**4, 10**4)
    monkeypatch.setattr(early.shutil, "disk_usage", lambda _: usage)
    check(Run(made, tmp_path / "run"))
    line = capsys.readouterr().err
    assert "0.0 GB free, 3 checkpoints take about" in line
    assert "make room, or lower pretrain.keep" in line


def test_a_checkpoint_is_as_large_as_is_said(tmp_path):
    made = toy.recipe("pretrain.epochs=1", "pretrain.batch=1438", "probe=null")
    lookalike.pretrain(made, tmp_path / "run")
    (there,) = (tmp_path / "run/checkpoints").glob("step_*")
    written = sum(path.stat().st_size for path in there.glob("*.safetensors"))
    module = lookalike.pipeline.plan(Run(made)).pretrain.work.module
    said = early.checkpoint_bytes(module, "adamw")
    assert said == pytest.approx(written, rel=0.2)


@pytest.mark.parametrize("section", ["pretrain", "finetune"])
def test_the_limit_of_bad_images_names_its_key(tmp_path, section):
    bad = BadSamples(tmp_path / "bad.jsonl", 100, 0, f"{section}.max_bad")
    with pytest.raises(DataError, match=rf"101 images .*the 100 allowed.*raise {section}\.max_bad"):
        bad.check(101)


def test_a_large_file_is_refused_by_the_key_that_allows_it(tmp_path):
    path = images(tmp_path, {"train": 1}) / "train/0.png"
    with path.open("r+b") as file:
        file.truncate(201_000_000)  # sparse
    small, large = (
        FileImages(path.parent, ["0.png"], Reading((12, 12), PixelFormat(1), "crop", most))
        for most in (None, 10_000_000)
    )
    assert "more than the 200000000 allowed: data.max_pixels allows more" in readable.look(small)[0]
    assert large.most_bytes == 320_000_000


# An objective knows of which batches it learns.

CLASSIFIERS = ("ArcFaceLoss", "CrossEntropyLoss")  # the second with a BatchNorm of its own


@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("name", ["TripletMarginLoss", "FaceNetLoss", "NTXentLoss", *CLASSIFIERS])
def test_learns_says_whether_a_batch_moves_an_embedding(name, memory):
    from lookalike.metric.memory import MemorySettings

    def made() -> Objective:
        torch.manual_seed(0)
        settings = MemorySettings(size=4) if memory and name not in CLASSIFIERS else None
        return Objective(
            OBJECTIVE.spec(name), None, num_classes=4, embedding_size=8, memory=settings
        )

    objective, before = made(), made().state_dict()
    classifies = name in CLASSIFIERS
    assert objective.learns(4, 2)
    assert objective.learns(4, 1) == (classifies or memory)
    assert objective.learns(1, 4) == (classifies or memory)
    assert toy.same(objective.state_dict(), before)
    assert not any(getattr(part, "_staged", ()) for part in objective.modules())


def test_a_part_that_takes_no_such_batch_is_refused_with_its_own_words():
    miner = MINER.spec("EmbeddingsAlreadyPackagedAsTriplets")
    objective = Objective(
        OBJECTIVE.spec("TripletMarginLoss"), miner, num_classes=4, embedding_size=8
    )
    with pytest.raises(RunError, match=r"finetune\.objective: TripletMarginLoss: AssertionError"):
        objective.learns(2, 2)
