"""A finished stage knows what it was made of: data, labels, recipe, steps. Ways back are named in
each refusal.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import toy
from lookalike.data.images import FileImages, Reading, subset
from lookalike.data.images.files import FILES
from lookalike.data.manifest import Manifest
from lookalike.data.pack import Packing, pack
from lookalike.data.passport import passport
from lookalike.data.sources import Folder
from lookalike.errors import DataError, RunError
from lookalike.evaluation.features import cache_key
from lookalike.geometry import PixelFormat
from lookalike.models import card
from lookalike.pipeline import check
from lookalike.process import fault
from lookalike.process.signals import Stopped
from lookalike.runs import Run
from lookalike.stages.evaluate import evaluate
from lookalike.stages.finetune import finetune
from lookalike.stages.pretrain import pretrain
from lookalike.stages.probe import probe


def draw(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = torch.randint(
        0, 256, (12, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )
    Image.fromarray(values.numpy()).save(path)


def folder(path: Path, classes: str = "012345", each: int = 6, suffix: str = "png") -> Path:
    for split in ("train", "test"):
        for name in classes:
            for i in range(each):
                draw(
                    path / split / f"m{name}" / f"{i}.{suffix}",
                    1000 * ord(name) + 100 * (split == "test") + i,
                )
    return path


def recipe(path: Path, *words: str):
    data = f"data={{name: folder, path: '{path}', canvas: 16, channels: 1}}"
    small = (
        "pretrain.batch=12",
        "pretrain.epochs=1",
        "pretrain.workers=0",
        "probe.workers=0",
        "evaluate.workers=0",
    )
    tuned = (
        "finetune.classes_per_batch=2",
        "finetune.per_class=3",
        "finetune.workers=0",
        "evaluate.examples=0",
    )
    return toy.recipe(data, *small, *tuned, "probe.baselines=false", *words)


@pytest.fixture
def trained(tmp_path) -> Path:
    """A run folder `run` beside its images `p`: pretrained and fine-tuned."""
    folder(tmp_path / "p")
    pretrain(recipe(tmp_path / "p"), tmp_path / "run")
    finetune(tmp_path / "run/backbone", recipe(tmp_path / "p"), tmp_path / "run")
    return tmp_path


def warned(work) -> list[str]:
    """The texts of the warnings that a call gives."""
    with toy.heard() as texts:
        work()
    return texts


READING = Reading(8, PixelFormat(3))
CHANGES = {
    "added": lambda p: draw(p / "train/m0/zz.png", 5),
    "removed": lambda p: (p / "train/m3/2.png").unlink(),
    "new classes": lambda p: folder(p, "abcd"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_finished_backbone_of_other_images_is_refused_unless_asked_for(trained, kind):
    wanted = recipe(trained / "p")
    before = (trained / "run/backbone/card.json").read_bytes()
    assert warned(lambda: pretrain(wanted, trained / "run")) == []
    CHANGES[kind](trained / "p")
    with pytest.raises(
        RunError,
        match=r"backbone: was trained on other images \(.*images: 36 -> .*--accept-changes",
    ):
        pretrain(wanted, trained / "run")
    assert any(
        "was pretrained on other images" in t
        for t in warned(lambda: probe(trained / "run/backbone", wanted, trained / "run"))
    )
    found = warned(lambda: pretrain(wanted, trained / "run", accept_changes=True))
    assert len(found) == 1
    assert "stays as it is" in found[0]
    assert (trained / "run/backbone/card.json").read_bytes() == before


def test_an_embedding_is_never_scored_on_classes_that_it_has_seen(trained):
    wanted, run = recipe(trained / "p"), trained / "run"
    embedding = run / "finetune/embedding"
    before = (embedding / "manifest.json").read_bytes()
    evaluate(embedding, wanted, run, name="fine-tuned")
    finetune(run / "backbone", wanted, run)
    assert (embedding / "manifest.json").read_bytes() == before
    folder(trained / "p", "abcd")
    with pytest.raises(
        RunError, match=r"fine-tuned on other images or classes.*run its finetune stage again"
    ):
        evaluate(embedding, wanted, run, name="fine-tuned")
    finetune(run / "backbone", wanted, run)
    assert (run / "finetune.1/embedding/manifest.json").read_bytes() == before
    assert card.read(embedding)["classes"] == 5
    evaluate(embedding, wanted, run, name="fine-tuned")


def test_labels_that_change_without_the_images_are_seen(tmp_path):
    for i in range(24):
        draw(tmp_path / f"p/{i:02}.png", i)

    def table(shift: int) -> None:
        rows = [
            f"{i:02}.png,{(i + shift) % 24 // 4},{'train' if i % 2 else 'test'}" for i in range(24)
        ]
        (tmp_path / "p/m.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")

    data = f"data={{name: manifest, path: '{tmp_path}/p/m.csv', canvas: 16, channels: 1}}"
    wanted = recipe(tmp_path, data, "pretrain.batch=4")
    table(0)
    pretrain(wanted, tmp_path / "run")
    finetune(tmp_path / "run/backbone", wanted, tmp_path / "run")
    table(4)
    assert warned(lambda: pretrain(wanted, tmp_path / "run")) == []  # which learns from no label
    finetune(tmp_path / "run/backbone", wanted, tmp_path / "run")
    assert (tmp_path / "run/finetune.1").exists()


def overwritten(path: Path) -> None:
    """Another image of the same bytes, at another time."""
    data = bytearray(path.read_bytes())
    data[-40:] = bytes(255 - value for value in data[-40:])
    path.write_bytes(data)


def test_an_image_overwritten_by_one_of_the_same_size_is_seen_by_kept_features_and_a_resume(
    tmp_path,
):
    images = folder(tmp_path / "p", suffix="bmp")
    wanted = recipe(images)
    pretrain(wanted, tmp_path / "run")
    backbone = tmp_path / "run/backbone"
    first = probe(backbone, wanted, tmp_path / "run")
    assert probe(backbone, wanted, tmp_path / "run") == first
    kept = set((tmp_path / "run/features").iterdir())
    overwritten(images / "test/m2/1.bmp")
    probe(backbone, wanted, tmp_path / "run")
    assert len(set((tmp_path / "run/features").iterdir()) - kept) == 1
    overwritten(images / "train/m2/1.bmp")
    with pytest.raises(RunError, match=r"trained on other images \(content: "):
        pretrain(wanted, tmp_path / "run")
    shutil.rmtree(backbone)
    with pytest.raises(RunError, match=r"was trained on something else \(content: "):
        pretrain(wanted, tmp_path / "run")


def test_a_copy_of_the_images_is_no_change_and_its_new_times_are_said(trained):
    for path in (trained / "p").rglob("*.png"):
        path.write_bytes(path.read_bytes())
    (found,) = warned(lambda: pretrain(recipe(trained / "p"), trained / "run"))
    assert "have other mtimes" in found
    shutil.rmtree(trained / "run/backbone")
    (found,) = warned(lambda: pretrain(recipe(trained / "p"), trained / "run"))
    assert "have other mtimes" in found


def test_what_a_passport_sees(tmp_path):
    """All files of up to `FILES`, of more only that somebody wrote to them."""
    paths = [f"{i:04}.bmp" for i in range(FILES + 100)]
    for name in paths:
        (tmp_path / name).write_bytes(b"BM" + name.encode() * 20_000)
    few, many = (FileImages(tmp_path, paths[:n], READING) for n in (FILES, len(paths)))
    before = passport(few)
    assert passport(subset(few, [1, 2]))["content"] == before["content"]
    for at in (0, 70_000, 140_000):  # of 180,002 bytes
        data = bytearray((tmp_path / paths[5]).read_bytes())
        data[at : at + 20_000] = bytes(20_000)
        (tmp_path / paths[5]).write_bytes(data)
        after = passport(FileImages(tmp_path, paths[:FILES], READING))
        assert {key for key in after if after[key] != before[key]} >= {"times"}
        before = after
    looked_into = set(np.linspace(0, len(paths) - 1, FILES).astype(int).tolist())
    seen, unseen = passport(many), tmp_path / paths[min(set(range(len(paths))) - looked_into)]
    unseen.write_bytes(bytes(unseen.stat().st_size))
    after = passport(FileImages(tmp_path, paths, READING))
    assert {key for key in after if after[key] != seen[key]} == {"times"}
    assert cache_key(many) != cache_key(FileImages(tmp_path, paths, READING))


# ---- steps


def test_fewer_steps_than_are_done_are_refused(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = {
        p.relative_to(run): p.read_bytes()
        for p in run.rglob("*")
        if p.is_file() and "tensorboard" not in str(p)
    }
    with (
        pytest.warns(UserWarning, match="another recipe"),
        pytest.raises(RunError, match="18 steps are done, the recipe asks for 9"),
    ):
        pretrain(toy.recipe("pretrain.epochs=1"), run, accept_changes=True)
    with (
        pytest.warns(UserWarning, match="another recipe"),
        pytest.raises(
            RunError,
            match=r"all 18 steps are done, "
            r"no step would train on the change \(pretrain.optimizer.lr",
        ),
    ):
        pretrain(toy.recipe("pretrain.optimizer.lr=1e-4"), run, accept_changes=True)
    after = {
        p.relative_to(run): p.read_bytes()
        for p in run.rglob("*")
        if p.is_file() and "tensorboard" not in str(p)
    }
    assert {**after, Path(".lock"): b""} == {**before, Path(".lock"): b""}


def test_a_key_that_changes_nothing_of_what_is_trained_is_no_reason_to_refuse(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    pretrain(toy.recipe("pretrain.log_every=5"), run)
    assert (run / "backbone/model.safetensors").read_bytes() == (
        whole / "backbone/model.safetensors"
    ).read_bytes()


# ---- ways back


def spoil_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "x").write_text("dear")


SPOILT = {
    "gone": lambda p: p.unlink(),
    "empty": lambda p: p.write_bytes(b""),
    "truncated": lambda p: p.write_bytes(p.read_bytes()[:61]),
    "not UTF-8": lambda p: p.write_bytes(b"\xff\xfe" + p.read_bytes()),
    "no mapping": lambda p: p.write_text("- 1\n"),
    "a folder": spoil_directory,
    "a dangling link": lambda p: (p.unlink(), p.symlink_to("nowhere")),
}


@pytest.mark.parametrize(
    ("kind", "finished"),
    [
        (next(iter(SPOILT)), False),
        *((kind, True) for kind in list(SPOILT)[:2]),
        *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in list(SPOILT)[2:]),
    ],
)
def test_whole_checkpoints_go_on_without_their_recipe_when_asked(tmp_path, whole, kind, finished):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    if not finished:
        shutil.rmtree(run / "backbone")
    SPOILT[kind](run / "recipe.yaml")
    with pytest.raises(RunError, match=r"recipe.yaml: .*--accept-changes"):
        pretrain(toy.recipe(), run)
    with pytest.warns(UserWarning, match=r"recipe.yaml: .*writes it anew"):
        pretrain(toy.recipe("pretrain.epochs=3"), run, accept_changes=True)
    assert toy.tensors(run, 27)
    assert "epochs: 3" in (run / "recipe.yaml").read_text()
    pretrain(toy.recipe("pretrain.epochs=3"), run)
    assert kind != "a folder" or (run / "damaged.recipe.yaml/x").read_text() == "dear"


def test_a_damaged_backbone_names_the_way_back(tmp_path, whole):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "backbone/model.safetensors").write_bytes(b"torn")
    with pytest.raises(
        RunError, match=r"or remove .*backbone: the same command makes it again, bit for bit"
    ):
        pretrain(toy.recipe(), run)
    shutil.rmtree(run / "backbone")
    pretrain(toy.recipe(), run)
    assert (run / "backbone/model.safetensors").read_bytes() == (
        whole / "backbone/model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("text", [b"{", b"\xff", b"[1]", b'{"others": 3}', b"[" * 100_000])
def test_scores_that_cannot_be_read_are_set_aside_and_that_is_said(tmp_path, whole, capsys, text):
    (tmp_path / "probe.json").write_bytes(text)
    (tmp_path / "evaluate.json").write_bytes(text)
    wanted = toy.recipe("probe.baselines=false", "evaluate.examples=0", "probe.max_iterations=2")
    probe(whole / "backbone", wanted, tmp_path, name="x")
    assert "probe.json: could not be read, is now damaged.probe.json" in capsys.readouterr().err
    assert (tmp_path / "damaged.probe.json").read_bytes() == text
    assert set(json.loads((tmp_path / "probe.json").read_bytes())) == {"others"}
    evaluate(whole / "backbone", wanted, tmp_path, name="x")
    if text != b'{"others": 3}':
        assert (tmp_path / "damaged.evaluate.json").read_bytes() == text


# ---- what a second attack found


def table(path: Path, shift: int) -> None:
    rows = [f"{i:02}.png,{(i + shift) % 24 // 4},{'train' if i % 2 else 'test'}" for i in range(24)]
    (path / "m.csv").write_text("path,label,split\n" + "\n".join(rows) + "\n")


@pytest.fixture
def listed(tmp_path) -> Path:
    for i in range(24):
        draw(tmp_path / f"p/{i:02}.png", i)
    table(tmp_path / "p", 0)
    return tmp_path / "p"


def test_a_method_that_learns_from_labels_knows_them(listed, tmp_path):
    data = f"data={{name: manifest, path: '{listed}/m.csv', canvas: 16, channels: 1}}"
    wanted = recipe(
        listed, data, "pretrain.batch=4", "pretrain.method={name: supcon, projector: [16, 16]}"
    )
    pretrain(wanted, tmp_path / "run")
    pretrain(wanted, tmp_path / "run")
    table(listed, 4)
    with pytest.raises(RunError, match=r"was trained on other images \(labels: "):
        pretrain(wanted, tmp_path / "run")
    shutil.rmtree(tmp_path / "run/backbone")
    with pytest.raises(RunError, match=r"was trained on something else \(labels: "):
        pretrain(wanted, tmp_path / "run")


@pytest.mark.parametrize("change", ["labels", "images"])
def test_shards_of_other_labels_or_images_are_not_taken_for_new(listed, tmp_path, change):
    source = Manifest(str(listed / "m.csv"), channels=1)
    pack(source, tmp_path / "shards", Packing(), 0)
    pack(source, tmp_path / "shards", Packing(), 0)
    if change == "labels":
        table(listed, 4)
    else:
        (listed / "03.png").write_bytes((listed / "03.png").read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match="holds shards of other images, labels or options"):
        pack(Manifest(str(listed / "m.csv"), channels=1), tmp_path / "shards", Packing(), 0)


def test_an_earlier_release_s_shards_go_on(listed, tmp_path):
    source = Manifest(str(listed / "m.csv"), channels=1)
    pack(source, tmp_path / "shards", Packing(), 0)
    plan = json.loads((tmp_path / "shards/pack.json").read_text())
    plan["data"] = {split: marks["data"] for split, marks in plan["data"].items()}
    (tmp_path / "shards/pack.json").write_text(json.dumps(plan))
    pack(source, tmp_path / "shards", Packing(), 0)


def test_features_know_how_large_an_image_may_be(listed):
    few, many = (
        Folder(str(listed), channels=1, max_pixels=most).split("train") for most in (10, None)
    )
    assert cache_key(few) != cache_key(many)


def test_check_refuses_what_a_resume_would_refuse(trained):
    wanted, run = recipe(trained / "p"), trained / "run"
    check(Run(wanted, run))
    CHANGES["added"](trained / "p")
    for _ in range(2):
        with pytest.raises(RunError) as refused:
            check(Run(wanted, run))
        with pytest.raises(RunError) as told:
            pretrain(wanted, run)
        assert "--accept-changes" in str(refused.value)
        assert ("other images" in str(refused.value)) == ("other images" in str(told.value))
        shutil.rmtree(run / "backbone", ignore_errors=True)
    (trained / "p/train/m0/zz.png").unlink()
    check(Run(wanted, run))
    longer = recipe(trained / "p", "pretrain.epochs=2", "pretrain.warmup_epochs=0.5")
    check(Run(longer, run, accept_changes=True))
    warned(lambda: pretrain(longer, run, accept_changes=True))
    with pytest.raises(RunError, match="6 steps are done, the recipe asks for 3"):
        check(Run(wanted, run, accept_changes=True))


def test_fine_tuning_goes_on_with_other_images_when_asked(trained):
    wanted, run = recipe(trained / "p", "finetune.epochs=4"), trained / "run"
    shutil.rmtree(run / "finetune")
    with fault.plan("term:rank=0,step=3"), pytest.raises(Stopped):
        finetune(run / "backbone", wanted, run)
    CHANGES["removed"](trained / "p")
    draw(trained / "p/train/m0/zz.png", 5)
    with pytest.raises(RunError, match=r"was trained on something else.*--accept-changes"):
        finetune(run / "backbone", wanted, run)
    with pytest.warns(UserWarning, match="goes on with something else"):
        finetune(run / "backbone", wanted, run, accept_changes=True)
