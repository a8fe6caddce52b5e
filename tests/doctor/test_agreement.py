"""Ranks that are about to train differently are refused before the first step, on every rank with
the same line.
"""

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

import toy
from lookalike import comm
from lookalike.doctor import agreement
from lookalike.errors import Error
from lookalike.pipeline import run
from lookalike.runs import Run
from lookalike.stages.finetune import finetune
from lookalike.stages.pretrain import pretrain


def started(stage: str, out: str, words: list[list[str]], accept: list[bool]) -> str:
    """What a rank that is given its own words is told."""
    own = toy.recipe(*words[comm.rank()])
    try:
        if stage == "run":
            run(own, out, accept_changes=accept[comm.rank()])
        elif stage == "pretrain":
            pretrain(own, out, accept_changes=accept[comm.rank()])
        else:
            finetune(toy.architecture().build(), own, out)
    except Error as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize("stage", ["run", "pretrain", "finetune"])
@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["pretrain.optimizer.lr=0.1"], "pretrain.optimizer.lr is 0.1, on rank 0 0.002"),
        (["pretrain.batch=64"], "pretrain.batch is 64, on rank 0 144"),
        (
            ["seed=4", "pretrain.epochs=3"],
            "seed is 4, on rank 0 3, pretrain.epochs is 3, on rank 0 2",
        ),
        (
            ["data.test_fraction=0.3"],
            "data.test_fraction is 0.3, on rank 0 0.2, train images: data is",
        ),
        (["finetune=null"], "finetune.optimizer.name is absent, on rank 0 adamw"),
    ],
)
def test_another_recipe_on_one_rank_is_refused_on_all(ranks, tmp_path, stage, words, shown):
    if stage == "finetune" and words == ["finetune=null"]:
        words, shown = ["finetune.dim=8"], "finetune.dim is 8, on rank 0 16"
    told = ranks.run(started, stage, str(tmp_path / "run"), [[], words], [False, False])
    assert len(set(told)) == 1
    assert told[0].startswith("ranks differ: rank 1 (")
    assert shown in told[0]
    assert "\n" not in told[0]
    assert not (tmp_path / "run").exists()


def test_ranks_that_accept_changes_and_ranks_that_do_not_are_refused(ranks, tmp_path):
    told = ranks.run(started, "pretrain", str(tmp_path / "run"), [[], []], [False, True])
    assert len(set(told)) == 1
    assert "accept_changes is True, on rank 0 False" in told[0]


def images(path: Path) -> Path:
    for split, count in (("train", 24), ("test", 4)):
        (path / split).mkdir(parents=True)
        for i in range(count):
            values = torch.randint(
                0, 256, (12, 12), generator=torch.Generator().manual_seed(i), dtype=torch.uint8
            )
            Image.fromarray(values.numpy()).save(path / split / f"{i:02}.bmp")
    return path


SPOIL = {
    "fewer": (
        lambda p: [(p / f"train/{i:02}.bmp").unlink() for i in range(3)],
        "train images: images is 21, on rank 0 24",
    ),
    "overwritten": (
        lambda p: shutil.copy(p / "train/01.bmp", p / "train/02.bmp"),
        "train images: content is",
    ),
    "gone": (lambda p: shutil.rmtree(p), "train images is "),
}


def on_own_copy(out: str, folders: list[str]) -> str:
    """The same relative path leads each rank to another copy, as local disks do."""
    import os

    os.chdir(folders[comm.rank()])
    small = (
        "pretrain.batch=8",
        "pretrain.epochs=1",
        "pretrain.workers=0",
        "probe=null",
        "finetune=null",
        "evaluate=null",
    )
    own = toy.recipe("data={name: folder, path: p, canvas: 16, channels: 1}", *small)
    try:
        pretrain(own, out)
    except Error as error:
        return str(error)
    return "trained"


@pytest.mark.parametrize("kind", [*SPOIL, "same"])
def test_other_images_on_one_rank_are_refused_on_all(ranks, tmp_path, kind):
    for name in ("one", "two"):
        images(tmp_path / name / "p")
    spoil, shown = SPOIL.get(kind, (lambda p: None, "trained"))
    spoil(tmp_path / "two" / "p")
    told = ranks.run(
        on_own_copy, str(tmp_path / "run"), [str(tmp_path / "one"), str(tmp_path / "two")]
    )
    assert len(set(told)) == 1
    assert shown in told[0]
    assert (tmp_path / "run/backbone").exists() == (kind == "same")


IMAGES = Run(toy.recipe()).images


@pytest.mark.parametrize("what", ["lookalike", "torch", "timm", "python"])
def test_another_version_on_one_rank_is_named(monkeypatch, what):
    """Every fact of a rank is compared; here with one that another rank would tell."""
    mine = {"host": "a\x1b", "facts": agreement.facts(toy.recipe(), IMAGES, {})}
    theirs = {"host": "b\x1b", "facts": {**mine["facts"], what: "0.0.1"}}
    monkeypatch.setattr(comm, "world_size", lambda: 2)
    monkeypatch.setattr(comm, "broadcast_object", lambda value: value)
    monkeypatch.setattr(comm, "gather_objects", lambda value: [mine, theirs])
    with pytest.raises(
        Error,
        match=rf"^ranks differ: rank 1 \(b\\x1b\): {what} is 0.0.1, "
        r"on rank 0 \S+.*: give every rank",
    ):
        agreement.agree(toy.recipe(), IMAGES)
    many = [mine, *[{"host": "c", "facts": {}}] * 500]
    monkeypatch.setattr(comm, "gather_objects", lambda value: many)
    with pytest.raises(Error, match=r"; … and 492 ranks more: ") as caught:
        agreement.agree(toy.recipe(), IMAGES)
    assert len(str(caught.value)) < 4000


def test_what_was_agreed_on_is_not_compared_again(monkeypatch):
    """`run` agrees on more words than the stages that follow it in the same process."""
    recipe = toy.recipe("seed=77")
    compared = []
    monkeypatch.setattr(comm, "world_size", lambda: 2)
    monkeypatch.setattr(comm, "gather_objects", lambda value: [value, value])
    monkeypatch.setattr(agreement, "facts", lambda *_: compared.append(1) or {})
    for words in (
        {"method": "x", "accept_changes": True},
        {"accept_changes": True},
        {},
        {"accept_changes": False},
    ):
        agreement.agree(recipe, IMAGES, **words)
    assert len(compared) == 2
