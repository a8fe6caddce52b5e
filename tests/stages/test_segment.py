"""Segmentation from end to end: it learns what there is, on any number of ranks, and goes on."""

import json
from pathlib import Path

import pytest
import torch

import lookalike
from lookalike import comm
from lookalike.checkpoint.kept import kept
from lookalike.errors import BackboneError, DataError, RecipeError, RunError
from lookalike.evaluation import segmentation
from lookalike.experiment import Experiment
from lookalike.models import Architecture
from lookalike.recipe import from_text
from lookalike.runs import Run
from lookalike.stages import segment as stage
from squares import drawn, squares, write_image, write_mask

ARGS = {"patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
TEXT = """
data: {{name: masks, path: '{path}', canvas: 32}}
backbone: {{name: vit_tiny_patch16_224, size: 32, args: {args}}}
segment:
  data: {{name: masks, path: '{path}', canvas: 32}}
  epochs: 6
  batch: 8
  lrs: [0.001, 0.03]
  workers: 0
  baselines: false
  examples: 0
"""


def recipe(path: Path, *words: str) -> Experiment:
    return from_text(TEXT.format(path=path, args=json.dumps(ARGS)), "toy.yaml", words, Experiment)


def backbone():
    torch.manual_seed(0)
    return Architecture("vit_tiny_patch16_224", size=32, args=ARGS).build()


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def scores(toy, tmp_path_factory):
    """Of the toy, with its run folder."""
    out = tmp_path_factory.mktemp("run") / "run"
    words = ("segment.baselines=true", "segment.examples=3", "segment.clusters=3")
    return lookalike.segment(backbone(), recipe(toy, *words), out), out


def test_squares_are_found_by_their_colour(scores):
    found, out = scores
    assert found["miou"] > 0.9
    assert found["pixel_accuracy"] > found["miou"]
    assert set(found["iou"]) == {"0", "1", "2", "3"}
    assert found["miou"] == pytest.approx(sum(found["iou"].values()) / 4)
    assert found["lr"] == 0.03
    assert found["dropped"] == 0
    assert "untrained/miou" in found
    assert found["pixels/miou"] > 0.9
    assert json.loads((out / "segment.json").read_text()) == found
    assert "2 test images" not in found["protocol"]
    assert "8 test images" in found["protocol"]


def test_what_images_do_not_tell_is_not_found(tmp_path):
    path = squares(tmp_path, random=True)
    assert lookalike.segment(backbone(), recipe(path, "segment.epochs=3"))["miou"] < 0.5


def test_the_page_shows_test_images_and_loads_nothing(scores):
    page = (scores[1] / "segment.html").read_text()
    assert page.count('class="strip segments"') == 3
    assert "groups of patches" in page
    assert f"{100 * scores[0]['miou']:.2f} %" in page
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert page.count("<img") == 12


def test_another_model_stands_beside_the_runs_own(scores, toy):
    found, out = scores
    again = lookalike.segment(
        backbone(), recipe(toy, "segment.epochs=1", "segment.lrs=[0.01]"), out, name="other"
    )
    held = json.loads((out / "segment.json").read_text())
    assert held.pop("others") == {"other": again}
    assert held == found
    assert again["held_out"] == {}


def test_a_network_of_ones_own_and_half_precision(toy):
    class Mean(torch.nn.Module):
        def forward_features(self, x):
            return torch.nn.functional.avg_pool2d(x, 4)

        def forward(self, x):
            return x.mean((2, 3))

    words = ("segment.epochs=3", "segment.lrs=[0.1]", "segment.batch=4")
    own = lookalike.Backbone.of(Mean(), size=32)
    whole = lookalike.segment(own, recipe(toy, *words, "segment.baselines=true"))
    assert whole["miou"] > 0.8
    assert "untrained/miou" not in whole
    half = lookalike.segment(own, recipe(toy, *words, "segment.precision=bf16"))
    assert half["miou"] == pytest.approx(whole["miou"], abs=0.02)


def segmented(path: Path, out: Path | None):
    """What a rank gives; of the page's number of ranks."""
    torch.set_num_threads(1)
    return lookalike.segment(backbone(), recipe(path, "segment.batch=6"), out)


def test_ranks_share_the_images_and_give_the_same_numbers(toy, tmp_path, ranks):
    alone = segmented(toy, tmp_path / "one")
    for both in ranks.run(segmented, toy, tmp_path / "two"):
        assert both["iou"] == alone["iou"]  # of whole numbers of pixels
        assert both == alone
    one, two = (next((tmp_path / name / "segment").iterdir()) for name in ("one", "two"))
    heads = [kept(file).tensors for file in (one, two)]
    for name in ("weight", "first", "second", "mean", "std"):
        assert torch.allclose(heads[0][name], heads[1][name], rtol=1e-9, atol=1e-12)


def test_a_killed_one_goes_on_with_the_same_bytes(toy, tmp_path, monkeypatch):
    lookalike.segment(backbone(), recipe(toy), tmp_path / "whole")
    epochs, real = [], segmentation._epoch

    def killed(*args):
        epochs.append(args[4])
        if len(epochs) == 4:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(segmentation, "_epoch", killed)
    with pytest.raises(KeyboardInterrupt):
        lookalike.segment(backbone(), recipe(toy), tmp_path / "cut")
    lookalike.segment(backbone(), recipe(toy), tmp_path / "cut")
    assert epochs == [0, 1, 2, 3, 3, 4, 5]
    files = [
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*") if path.suffix}
        for name in ("whole", "cut")
    ]
    assert len(files[0]) == 3  # scores, heads, recipe
    assert files[0] == files[1]


def test_a_damaged_state_is_made_again(toy, tmp_path, capsys):
    first = lookalike.segment(backbone(), recipe(toy, "segment.epochs=1"), tmp_path / "r")
    state = next((tmp_path / "r" / "segment").iterdir())
    state.write_bytes(state.read_bytes()[:100])
    assert lookalike.segment(backbone(), recipe(toy, "segment.epochs=1"), tmp_path / "r") == first
    assert "computed anew" in capsys.readouterr().err


def test_unreadable_images_are_counted(tmp_path):
    path = squares(tmp_path, train=10, test=4)
    (path / "images" / "train" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_mask(path / "masks" / "val" / "1001.png", drawn(1, 40)[1])
    found = lookalike.segment(backbone(), recipe(path, "segment.epochs=1", "segment.batch=2"))
    assert found["dropped"] == 2


def test_a_number_that_is_no_class_ends_it_in_one_line(tmp_path):
    path = squares(tmp_path, train=4, test=2)
    with pytest.raises(DataError, match="but there are 3 classes"):
        lookalike.segment(backbone(), recipe(path, "segment.data.classes=3"))


def test_what_cannot_be_segmented_is_refused_before(tmp_path, toy):
    architecture = backbone().architecture
    one = squares(tmp_path / "one", train=2, test=1)
    for split in ("train", "val"):
        for mask in (one / "masks" / split).iterdir():
            write_mask(mask, drawn(0)[1] * 0 + 2)
    with pytest.raises(DataError, match="show only the class 2: check ignore"):
        stage.job(Run(recipe(one)), architecture)
    with pytest.raises(DataError, match="show no class"):
        stage.job(Run(recipe(one, "segment.data.ignore=2", "segment.data.classes=4")), architecture)
    with pytest.raises(RecipeError, match="digits has no masks: take masks"):
        stage.job(Run(recipe(toy, "segment.data={name: digits}")), architecture)
    grey = Architecture("vit_tiny_patch16_224", size=32, channels=1, args=ARGS)
    with pytest.raises(RecipeError, match="3 channels, but the backbone takes 1"):
        stage.job(Run(recipe(toy)), grey)
    with pytest.raises(BackboneError, match=r"lower segment\.blocks"):
        stage.job(Run(recipe(toy, "segment.blocks=7")), architecture)
    write_image(tmp_path / "bare" / "a.png", drawn(0)[0])
    with pytest.raises(DataError, match="no folders of images and masks"):
        stage.job(Run(recipe(tmp_path / "bare")), architecture)


def test_check_says_the_same_and_a_whole_run_has_it(toy, tmp_path):
    from lookalike import pipeline

    torch.manual_seed(0)
    text = TEXT.format(path=toy, args=json.dumps(ARGS)) + (
        "pretrain: {method: {name: barlow_twins, projector: [8, 8], off_diagonal: 0.02}, "
        "optimizer: {name: adamw, lr: 0.001}, epochs: 1, warmup_epochs: 0, batch: 8, workers: 0}\n"
    )
    whole = from_text(text, "toy.yaml", ("segment.epochs=1",), Experiment)
    checked = Run(whole, tmp_path / "run")
    pipeline.check(checked)
    assert "segment.data: 32 images without labels (train 24, test 8)" in checked.told()
    out = lookalike.run(whole, tmp_path / "run")
    assert json.loads((out / "segment.json").read_text())["miou"] > 0.2
    assert json.loads((out / "data.json").read_text())["segment.data"]["sets"]["test"]
    assert comm.world_size() == 1


def test_heads_are_not_for_files_in_the_way(toy, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        lookalike.segment(backbone(), recipe(toy), tmp_path / "file" / "run")
