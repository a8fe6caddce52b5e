"""The stage `classify`: its folder, its scores, its export, a kill, few labels, and what it
refuses.
"""

import csv
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

import lookalike
import toy
from lookalike.data.reading import canvas_for
from lookalike.errors import BackboneError, DataError, Error, RecipeError, RunError
from lookalike.models import Architecture, load_backbone, register_cifar_stems
from lookalike.models.classifier import (
    Classifier,
    load_classifier,
    save_classifier,
    timm_layer,
    write_classifier,
)
from lookalike.models.embedding import load_model, open_model
from lookalike.pipeline import check
from lookalike.process import fault
from lookalike.process.signals import Stopped
from lookalike.runs import Run
from lookalike.show import show
from lookalike.stages.classify import classify, job
from lookalike.stages.predict import predict

SMALL = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
TINY_VIT = {"embed_dim": 24, "depth": 1, "num_heads": 2, "patch_size": 8}
KINDS = {
    "resnet": Architecture("resnet18", 16, channels=1, args=SMALL),
    "cifar": Architecture("resnet18", 16, stem="cifar", args=SMALL),
    "vit": Architecture("vit_tiny_patch16_224", 16, args=TINY_VIT),
    "vit_avg": Architecture("vit_tiny_patch16_224", 16, pool="avg", args=TINY_VIT),
    "gem": Architecture("resnet18", 16, pool="gem", args=SMALL),
}
NAMES = ("plain", "two\nlines\tand a tab", "\udcff stray", "ü 中")


def stirred(kind: str) -> Classifier:
    torch.manual_seed(0)
    model = Classifier(KINDS[kind].build(), NAMES)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def images(a: Architecture, batch: int = 3) -> torch.Tensor:
    return torch.rand(batch, a.channels, 16, 16, generator=torch.Generator().manual_seed(4))


# --- the folder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_folder_gives_the_same_bits_and_names_through_timm(tmp_path, kind):
    model, folder = stirred(kind), tmp_path / "m"
    model.temperature = 1.5
    save_classifier(folder, model, {"method": "classification"})
    x = images(model.architecture)
    found = load_model(folder)
    assert isinstance(found, Classifier)
    assert (found.classes, found.temperature, found.multi_label) == (NAMES, 1.5, False)
    assert torch.equal(found(x), model(x))
    assert torch.equal(load_backbone(folder)(x), model.backbone(x))
    assert torch.equal(open_model(folder, None)(x), model.backbone(x))
    register_cifar_stems()
    made = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert made.pretrained_cfg["label_names"] == list(NAMES)
    if kind == "gem":
        assert (folder / "classifier.safetensors").exists()
        return
    assert made.num_classes == made.pretrained_cfg["num_classes"] == 4
    assert torch.equal(made(x), model(x))
    layer = made.pretrained_cfg["classifier"]
    assert timm_layer(model) == layer
    assert torch.equal(made.get_classifier().weight, model.head.weight)
    fresh = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=2).eval()
    assert fresh(x).shape == (3, 2)
    made.reset_classifier(0)
    torch.testing.assert_close(made(x), model.backbone(x))


def test_any_layer_is_written_over_any_backbone_that_it_fits(tmp_path):
    backbone = KINDS["vit"].build().eval()
    weight_CD, bias_C = torch.randn(3, backbone.dim), torch.randn(3)
    before = torch.get_rng_state()
    write_classifier(tmp_path / "m", backbone, weight_CD, bias_C, "abc", {"method": "linear"})
    assert torch.equal(before, torch.get_rng_state())
    found, x = load_classifier(tmp_path / "m"), images(KINDS["vit"])
    torch.testing.assert_close(found(x), backbone(x) @ weight_CD.T + bias_C)
    text = (tmp_path / "m/README.md").read_text()
    assert "pipeline_tag: image-classification" in text
    assert "logits of 3 classes" in text
    with pytest.raises(BackboneError, match=r"a layer of \(3, 24\) for 2 classes"):
        write_classifier(tmp_path / "n", backbone, weight_CD, bias_C, "ab", {})


def spoil(folder: Path, change) -> None:
    """Changes config.json, and its sum in the manifest with it."""
    from lookalike.folder import write_folder

    config = json.loads((folder / "config.json").read_bytes())
    change(config)
    names = [p.name for p in folder.iterdir() if p.name != "manifest.json"]
    files = {name: (folder / name).read_bytes() for name in names}
    files["config.json"] = json.dumps(config).encode()
    write_folder(folder, files)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c["label_names"].pop(), r"does not fit its 3 classes"),
        (lambda c: c.pop("label_names"), r"label_names: a list of texts wanted"),
        (lambda c: c["classifier"].update(temperature=0), r"temperature"),
        (lambda c: c["classifier"].update(more=1), r"unknown 'more'"),
        (lambda c: c["classifier"].update(layer="head.x"), r"do not fit config.json"),
    ],
    ids=["names", "none", "temperature", "more", "layer"],
)
def test_a_folder_that_does_not_fit_itself_is_refused(tmp_path, change, text):
    save_classifier(tmp_path / "m", stirred("vit"), {})
    spoil(tmp_path / "m", change)
    with pytest.raises(BackboneError, match=text) as told:
        load_classifier(tmp_path / "m")
    assert "\n" not in str(told.value)


# --- the stage ------------------------------------------------------------------------------------

SECTION = (
    "classify={{optimizer: {{name: adamw, lr: 3e-3}}, epochs: {epochs}, warmup_epochs: 0, "
    "batch: 72, views: {{name: symmetric, views: 1, flip: 0, jitter: 0, grey: 0, blur: 0, "
    "crop: [0.8, 1.0]}}, log_every: 1{more}}}"
)


def recipe(more: str = "", *words: str, epochs: int = 2):
    """Digits through a tiny ViT: 19 steps an epoch."""
    more = f", {more}" if more else ""
    return toy.recipe(SECTION.format(epochs=epochs, more=more), *words, backbone=toy.VIT)


def backbone():
    torch.manual_seed(0)
    return toy.architecture("vit").build().eval()


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    run = tmp_path_factory.mktemp("classify") / "run"
    classify(backbone(), recipe("held_out: 0.1, ema: 0.9"), run)
    return run


def test_it_learns_and_its_scores_are_those_of_its_folder(whole):
    found = json.loads((whole / "classify.json").read_text())
    made = recipe()
    test = Run(made).images("test", 16)
    model = load_classifier(whole / "classify/classifier")
    from lookalike.evaluation.features import embedder, extract

    logits = extract(embedder(model, model.architecture), test).x_ND
    right = float((logits.argmax(dim=1) == test.labels).double().mean())
    assert found["top1"] == pytest.approx(right, abs=1e-12)
    assert right > 0.3
    assert model.temperature == found["temperature"] != 1
    assert found["nll"] < found["uncalibrated"]["nll"]
    assert model.classes == tuple(map(str, range(10)))
    rows = list(csv.reader((whole / "classify/confusion.csv").read_text().splitlines()))
    counts = np.array([[int(n) for n in row[1:]] for row in rows[1:]])
    assert counts.sum() == len(test)
    assert counts.trace() / counts.sum() == pytest.approx(right)


def test_the_folder_holds_the_average_of_the_weights(whole):
    last = sorted((whole / "classify/checkpoints").glob("step_*"))[-1].name
    held = toy.tensors(whole / "classify", int(last.removeprefix("step_")))
    model = load_classifier(whole / "classify/classifier")
    averaged = [held[f"model:average.values.{n}"] for n in range(len(list(model.parameters())))]
    mine = list(model.parameters())
    assert len(averaged) == len(mine) > 10
    assert all(torch.equal(a, b) for a, b in zip(averaged, mine, strict=True))
    assert not torch.equal(held["model:model.head.weight"], model.head.weight)


def kept(run: Path) -> dict[str, bytes]:
    """What a run ends with."""
    names = [f"classify/classifier/{n}" for n in ("model.safetensors", "config.json", "card.json")]
    names += ["classify.json", "classify/confusion.csv"]
    return {name: (run / name).read_bytes() for name in names}


def test_killed_it_goes_on_and_ends_with_the_same_bytes(tmp_path, whole):
    wanted = recipe("held_out: 0.1, ema: 0.9")
    for step in (7, 25):
        with fault.plan(f"term:rank=0,step={step}"), pytest.raises(Stopped):
            classify(backbone(), wanted, tmp_path / "run")
    classify(backbone(), wanted, tmp_path / "run")
    assert kept(tmp_path / "run") == kept(whole)
    assert toy.curve(tmp_path / "run/classify") == toy.curve(whole / "classify")
    before = toy.marks(tmp_path / "run/classify/classifier")
    (tmp_path / "run/classify.json").unlink()
    classify(backbone(), wanted, tmp_path / "run")
    assert toy.marks(tmp_path / "run/classify/classifier") == before
    assert kept(tmp_path / "run") == kept(whole)


def on_ranks(out: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lookalike.checkpoint.run.lock", lambda out: None)
        made = "mixing: {mixup: 0.4}, engine: {name: zero}"
        classify(backbone(), recipe(made, epochs=1), out)


def test_two_ranks_learn_what_one_learns(ranks, tmp_path):
    """Mixed pairs too: every step's loss, and the weights, to rounding."""
    made = recipe("mixing: {mixup: 0.4}", epochs=1)
    classify(backbone(), made, tmp_path / "one")
    ranks.run(on_ranks, str(tmp_path / "two"))
    one, two = (toy.curve(tmp_path / name / "classify") for name in ("one", "two"))
    assert len(one) == 19
    for (_, a), (_, b) in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    models = [load_classifier(tmp_path / name / "classify/classifier") for name in ("one", "two")]
    for a, b in zip(*(m.state_dict().values() for m in models), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_another_recipe_begins_anew_and_free_keys_do_not(tmp_path, whole, capsys):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    classify(backbone(), recipe("held_out: 0.1, ema: 0.9, intervals: 0"), run)
    assert "intervals" not in json.loads((run / "classify.json").read_text())
    assert not (run / "classify.1").exists()
    classify(backbone(), recipe(epochs=1), run)
    assert "is now classify.1" in capsys.readouterr().out
    assert json.loads((run / "classify.json").read_text())["temperature_of"].startswith("not fit")


def test_few_labels_and_an_untrained_network_are_trained_beside_it(tmp_path):
    more = "few: {shots: [3], draws: 2}, few_epochs: 1, baseline: untrained"
    made, run = recipe(more, epochs=1), tmp_path / "run"
    with fault.plan("term:rank=0,step=20"):  # of the main one there are 19, of each other fewer
        classify(backbone(), made, run)
    found = json.loads((run / "classify.json").read_text())["few"]
    assert list(found) == ["all labels", "3-shot"]
    few = found["3-shot"]
    assert few["images"] == 30
    paths = [run / f"classify/{u}few/3-shot/{d}" for u in ("", "untrained/") for d in (0, 1)]
    held = [json.loads((path / "scores.json").read_text())["scores"]["top1"] for path in paths]
    assert few["top1"]["draws"] + few["untrained"]["top1"]["draws"] == held
    low, high = few["top1"]["interval"]
    half = 12.706204736 * abs(held[0] - held[1]) / 2  # Student's, of one degree of freedom
    assert (high - low) / 2 == pytest.approx(half, rel=1e-6)
    differences = few["difference"]["top1"]["draws"]
    assert differences == pytest.approx([held[0] - held[2], held[1] - held[3]])
    assert not any((path / "checkpoints").exists() for path in paths)
    marks = toy.marks(run / "classify")
    classify(backbone(), made, run)
    changed = {
        path.name for path, mark in toy.marks(run / "classify").items() if marks[path] != mark
    }
    assert changed <= {"confusion.csv"}


# --- refusals -------------------------------------------------------------------------------------

REFUSED = {
    "batch: 71, mixing: {mixup: 0.4}": (RecipeError, r"classify\.mixing: pairs .* batch of 71"),
    "train_blocks: 3": (RunError, r"classify\.train_blocks: 3, but vit_tiny.* has 1"),
    "class_weights: [1, 2]": (DataError, r"classify\.class_weights: 2 numbers for 10 classes"),
    "multi_label: true": (DataError, r"classify\.multi_label: true, but"),
    "batch: 2000": (DataError, r"fewer than one batch of 2000"),
    "engine: {name: plain}": (RecipeError, r"classify\.engine: plain trains in one process"),
}
UNREADABLE = {
    "train_blocks: 0, layer_decay: 0.5": r"layer_decay: the backbone is not trained",
    "head_epochs: 9": r"head_epochs 9 is longer than epochs 2",
    "accumulate: 5": r"batch 72 does not divide into accumulate: 5",
    "classify.views={name: symmetric}": r"views: 2 of each image, but a classifier learns from one",
    "multi_label: true, sampling: balanced": r"sampling: balanced needs one label",
    "few_epochs: 3": r"few_epochs: there is no few",
}


@pytest.mark.parametrize("more", REFUSED)
def test_what_cannot_be_trained_is_refused_before_anything_is_done(tmp_path, more):
    kind, text = REFUSED[more]
    words = more.split(", ", 1)[1] if more.startswith("batch: 71") else more
    batch = ["classify.batch=71"] if more.startswith("batch: 71") else []
    if more == "batch: 2000":
        words, batch = "", ["classify.batch=2000"]
    made = recipe(words, *batch, "data.test_fraction=0.2")
    run = Run(made, tmp_path / "run", ranks=2 if "engine" in more else 1)
    with pytest.raises(kind, match=text) as told:
        job(run, backbone())
    assert "\n" not in str(told.value)
    with pytest.raises(kind, match=text):
        check(Run(made, tmp_path / "run", ranks=2 if "engine" in more else 1))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", UNREADABLE)
def test_what_makes_no_sense_is_no_recipe(more):
    words = ("", more) if more.startswith("classify.") else (more,)
    with pytest.raises(RecipeError, match=UNREADABLE[more]):
        recipe(*words)


def test_show_says_what_will_be_trained():
    text = show(recipe("few: {shots: [1], draws: 2}, train_blocks: 0"))
    assert "classify    10 classes, one label an image: 1438 images to learn from" in text
    assert "trainings   2 more" in text
    assert "frozen" in text


# --- several labels -------------------------------------------------------------------------------


def table(folder: Path, separator: str = "|") -> str:
    """Images that are bright above, below, both or neither, in files that a table lists."""
    folder.mkdir()
    lines = ["path,label,split"]
    for i in range(48):
        above, below = i % 2, i // 2 % 2
        grey = np.full((16, 16), 40 + i, np.uint8)
        grey[:8] += 120 * above
        grey[8:] += 120 * below
        Image.fromarray(grey).save(folder / f"{i}.png")
        words = [word for word, has in (("above", above), ("below", below)) if has]
        lines.append(f"{i}.png,{separator.join(words)},{'test' if i % 3 == 0 else 'train'}")
    (folder / "table.csv").write_text("\n".join(lines))
    return str(folder / "table.csv")


def test_several_labels_an_image_are_learned_by_sigmoids(tmp_path):
    data = f"data={{name: manifest, path: '{table(tmp_path / 'p')}', separator: '|', channels: 1}}"
    more = "multi_label: true, batch: 16, workers: 0, class_weights: balanced, held_out: 0.2"
    section = f"classify={{optimizer: {{name: adamw, lr: 1e-2}}, epochs: 12, {more}, views: "
    section += "{name: symmetric, views: 1, crop: [0.9, 1.0], jitter: 0, blur: 0, grey: 0}}"
    made = toy.recipe(data, section, "finetune=null", "evaluate=null", backbone=toy.VIT)
    folder = classify(backbone(), made, tmp_path / "run")
    found = json.loads((tmp_path / "run/classify.json").read_text())
    assert found["map"] > 0.9
    assert found["per_class"]["class"] == ["above", "below"]
    assert found["per_class"]["images"] == [8, 8]
    (line,) = predict(folder, [str(tmp_path / "p/3.png")], top=2, as_json=True)
    told = {c["class"]: c["probability"] for c in json.loads(line)["classes"]}
    assert set(told) == {"above", "below"}
    assert sum(told.values()) > 1.2  # both are there


# --- export and predict ---------------------------------------------------------------------------


@pytest.mark.parametrize("softmax", [pytest.param(False, marks=pytest.mark.slow), True])
def test_onnxruntime_gives_the_same_logits_or_probabilities_and_the_names(tmp_path, softmax):
    model = stirred("resnet")
    model.temperature = 2.0
    save_classifier(tmp_path / "m", model, {"method": "classification"})
    made = recipe("", f"export={{softmax: {str(softmax).lower()}}}")
    out = lookalike.export(tmp_path / "m", made, tmp_path / "out")
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    x = images(model.architecture)
    (given,) = session.get_outputs()
    assert given.name == ("probabilities" if softmax else "logits")
    (found,) = session.run(None, {"images": x.numpy()})
    with torch.no_grad():
        logits = model((x - 0.5) / 0.5)
    wanted = (logits / 2).softmax(dim=1) if softmax else logits
    assert np.abs(found - wanted.numpy()).max() <= 1e-4 * float(wanted.abs().max())
    held = session.get_modelmeta().custom_metadata_map
    assert json.loads(held["classes"]) == list(NAMES)
    assert json.loads(held["temperature"]) == 2.0
    again = load_classifier(out)
    assert torch.equal(again(x), model(x))
    assert again.classes == NAMES


HOSTILE = ("a b.png", "line\nbreak.png", "tab\there.png", os.fsdecode(b"stray\xff.png"), "-x.png")


@pytest.fixture
def classifier(tmp_path) -> Path:
    save_classifier(tmp_path / "m", stirred("resnet"), {})
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, name in enumerate(HOSTILE):
        noise = np.random.default_rng(i).integers(0, 255, (20, 16), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "x.png")
        (folder / "x.png").rename(folder / name)
    return tmp_path


def by_hand(model: Classifier, path: Path) -> torch.Tensor:
    from lookalike.data.images import FileImages, Reading
    from lookalike.evaluation.features import embedder

    reading = Reading(canvas_for(16), model.architecture.form)
    canvas = FileImages(str(path.parent), [path.name], reading).read(0)[None]
    with torch.no_grad():
        return embedder(model, model.architecture)(canvas).softmax(dim=1)[0]


def test_predict_prints_a_line_a_class_whatever_the_names(classifier):
    folder = classifier / "photos"
    lines = [
        each
        for text in predict(classifier / "m", [str(folder)], top=2)
        for each in text.split("\n")
    ]
    assert len(lines) == 2 * len(HOSTILE)
    assert all(line.isprintable() for text in lines for line in text.split("\t"))
    assert {len(line.split("\t")) for line in lines} == {3}
    told = list(predict(classifier / "m", [str(folder)], top=4, as_json=True))
    model = load_classifier(classifier / "m")
    for line in told:
        found = json.loads(line)
        wanted = by_hand(model, Path(found["path"]))
        probabilities = {c["class"]: c["probability"] for c in found["classes"]}
        assert probabilities == pytest.approx(
            dict(zip(NAMES, wanted.tolist(), strict=True)), rel=1e-4
        )
        assert math.isclose(sum(probabilities.values()), 1, rel_tol=1e-5)
    assert {Path(json.loads(line)["path"]).name for line in told} == set(HOSTILE)


def test_what_cannot_be_read_is_said_and_the_rest_is_answered(classifier, capsys):
    folder = classifier / "photos"
    (folder / "bad.png").write_bytes(b"no image")
    named = [
        str(folder / "a b.png"),
        str(folder / "bad.png"),
        str(folder / "gone.png"),
        str(folder / "-x.png"),
    ]
    answered = []
    with pytest.raises(DataError, match="2 of 4 images could not be read"):
        answered.extend(predict(classifier / "m", named))
    assert [line.split("\t")[0] for line in answered] == [named[0], named[3]]
    said = capsys.readouterr().err
    assert "bad.png" in said
    assert "gone.png" in said


def test_paths_on_stdin_are_answered_as_they_come(classifier, monkeypatch):
    folder = classifier / "photos"
    reader, writer = os.pipe()
    with os.fdopen(reader) as stream:
        monkeypatch.setattr("sys.stdin", stream)
        lines = predict(classifier / "m", ["-"])
        for name in ("a b.png", "-x.png"):
            os.write(writer, os.fsencode(folder / name) + b"\n")
            assert next(lines).startswith(str(folder / name))  # before the next one is written
        os.close(writer)
        assert list(lines) == []


def test_a_folder_without_classes_has_no_answers(classifier, tmp_path):
    lookalike.export(classifier / "m", recipe("", "export={onnx: false}"), tmp_path / "out")
    assert list(predict(tmp_path / "out", [str(classifier / "photos/a b.png")]))
    from lookalike.models import card, folder_files

    made = backbone()
    card.write_model(tmp_path / "b", folder_files(made), card.facts(made.architecture, 24, {}))
    with pytest.raises(BackboneError, match=r"a model without classes: .* `lookalike classify`"):
        predict(tmp_path / "b", ["x.png"])
    with pytest.raises(Error, match="--top 0"):
        predict(classifier / "m", ["x.png"], top=0)


class Mine(torch.nn.Module):
    """A network of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(256, 12)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        return self.layer(x_BCHW.flatten(1)).relu()


def test_a_module_of_ones_own_becomes_a_classifier(tmp_path):
    torch.manual_seed(0)
    folder = classify(Mine(), recipe(epochs=1), tmp_path / "run")
    model = load_classifier(folder, Mine())
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 10)
    assert (folder / "classifier.safetensors").exists()
    with pytest.raises(BackboneError, match="pass the module"):
        load_classifier(folder)
    with pytest.raises(RecipeError, match=r"classify\.baseline: untrained, but .*Mine"):
        job(Run(recipe("baseline: untrained", epochs=1)), open_model(Mine(), KINDS["resnet"]))


def test_a_whole_run_exports_the_classifier_with_its_scores(tmp_path):
    words = ("probe=null", "finetune=null", "evaluate=null", "export.onnx=false")
    made = recipe("train_blocks: 0, class_weights: balanced, sampling: balanced", *words, epochs=1)
    run = lookalike.run(made, tmp_path / "run")
    exported = run / "export/classifier"
    card = json.loads((exported / "card.json").read_text())
    scores = json.loads((run / "classify.json").read_text())
    assert card["scores"]["top1"] == scores["top1"]
    assert f"| top1 | {scores['top1']:.4f} |" in (exported / "README.md").read_text()
    held, bare = load_classifier(exported), load_backbone(run / "backbone")
    assert toy.same_weights(held.backbone, bare)
    assert load_model(run / "classify/classifier").classes == held.classes
