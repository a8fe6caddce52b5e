"""Sets of more bits and more channels go the whole way: pretraining, probe, fine-tuning, search,
export, ONNX.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from PIL import Image

from lookalike import pipeline
from lookalike.data import glimpse
from lookalike.data.images import FileImages, Reading
from lookalike.errors import DataError
from lookalike.evaluation.features import cache_key
from lookalike.experiment import load_recipe
from lookalike.geometry import BYTES, PixelFormat
from lookalike.models.card import read
from lookalike.models.embedding import load_model
from lookalike.runs import Run
from lookalike.search.results import query, report
from lookalike.stages import evaluate, pretrain, preview, probe
from lookalike.stages.search import open_search
from lookalike.views import resize_crop

BANDS, XRAYS = "bands", "xrays"
CHANNELS = {BANDS: 5, XRAYS: 1}
SIDE = 18  # the canvas of views of 16


def images(folder: Path, kind: str) -> dict[Path, np.ndarray]:
    """Raw values (H, W, C), uint16, of three classes that differ in their waves; and the files."""
    generator, found = np.random.default_rng(2), {}
    for c in range(3):
        for i in range(10):
            inner = folder / ("train" if i < 7 else "test") / f"c{c}"
            inner.mkdir(parents=True, exist_ok=True)
            wave = np.sin(np.arange(SIDE) / (1 + c) + generator.uniform(0, 6))
            bands = np.linspace(0.4, 1, CHANNELS[kind])
            values = (2000 + 1900 * wave[:, None, None] * bands) * np.ones((1, SIDE, 1))
            raw = (values + generator.normal(0, 30, values.shape)).clip(0, 4095).astype(np.uint16)
            found[path := inner / f"{i}.{'tif' if kind == BANDS else 'png'}"] = raw
            write(path, raw)
    return found


def write(path: Path, raw: np.ndarray) -> None:
    """A TIFF of n bands, or a PNG of 16 bits."""
    if path.suffix == ".tif":
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(path, raw, planarconfig="contig", photometric="minisblack")
    else:
        Image.fromarray(raw[:, :, 0]).save(path)


RECIPE = """
seed: 1
data: {{name: folder, path: {folder}, channels: {channels}, range: {range}}}
backbone: {{name: resnet18, size: 16, channels: {channels}, args: {{channels: [8, 8, 8, 8]}}}}
pretrain:
  method: {{name: barlow_twins, projector: [16, 16]}}
  batch: 8
  epochs: 1
  warmup_epochs: 0
  optimizer: {{name: adamw, lr: 1.0e-3}}
  views: {{name: asymmetric, channel_drop: 0.5}}
  crop_on: {crop_on}
  workers: 0
probe: {{max_iterations: 40, grid: [1.0, 10.0], k: 3, workers: 0}}
finetune:
  optimizer: {{name: adamw, lr: 1.0e-3}}
  epochs: 1
  classes_per_batch: 2
  per_class: 2
  dim: 8
  held_out: 0
  workers: 0
evaluate: {{workers: 0, intervals: 0, examples: 2}}
export: {{}}
"""
WAYS = {BANDS: ("[0, 4095]", "device"), XRAYS: ("{percentiles: [0, 100]}", "host")}


@pytest.fixture(scope="module", params=[pytest.param(BANDS, marks=pytest.mark.slow), XRAYS])
def way(request, tmp_path_factory):
    """Kind, folder of all, recipe, raw values by file; the whole recipe was run into `run`."""
    home = tmp_path_factory.mktemp(request.param)
    raw = images(home / "set", request.param)
    ends, crop_on = WAYS[request.param]
    text = RECIPE.format(
        folder=home / "set", channels=CHANNELS[request.param], range=ends, crop_on=crop_on
    )
    (home / "r.yaml").write_text(text)
    recipe = load_recipe(home / "r.yaml")
    pipeline.check(Run(recipe, home / "run"))
    assert not (home / "run").exists()
    pipeline.run(recipe, home / "run")
    return request.param, home, recipe, raw


def range_of(home: Path) -> tuple[float, float]:
    return load_model(home / "run" / "backbone").architecture.range


def test_every_stage_has_scores_and_the_models_say_what_they_take(way):
    kind, home, _, raw = way
    scores = json.loads((home / "run" / "probe.json").read_text())
    assert {"linear/top1", "pixels/linear/top1", "untrained/linear/top1"} <= scores.keys()
    assert scores["pixels/linear/top1"] > 0.5  # values arrived: the classes are easy
    assert scores["dropped"] == 0
    folders = [home / "run" / name for name in ("backbone", "export/backbone", "export/embedding")]
    values = np.stack(list(raw.values()))
    for folder in folders:
        form = load_model(folder).architecture.form
        assert (form.channels, form.depth) == (CHANNELS[kind], "uint16")
        low, high = form.range
        assert kind == XRAYS or (low, high) == (0.0, 4095.0)
        assert values.min() <= low < high <= values.max() or kind == BANDS
        told = (folder / "README.md").read_text()
        assert f"16-bit values {low:g} … {high:g} become 0 … 1" in told
        assert read(folder)["input"]["range"] == [low, high]
    assert "examples" not in scores
    assert (home / "run" / "evaluate.html").stat().st_size > 2000


def test_percentiles_are_measured_once_and_stand_in_the_runs_recipe(way, monkeypatch):
    kind, home, *_ = way
    told = load_recipe(home / "run" / "recipe.yaml").data.args["measured"]
    assert told == (None if kind == BANDS else range_of(home))
    monkeypatch.setattr(glimpse, "measured", lambda *_: pytest.fail("measured again"))
    before = (home / "run" / "recipe.yaml").read_bytes()
    for source in (home / "r.yaml", home / "run" / "recipe.yaml"):  # nothing is refused
        later = load_recipe(source, ["probe=null", "evaluate=null", "export=null"])
        pipeline.run(later, home / "run")
    assert load_recipe(home / "run" / "recipe.yaml").data.args["measured"] == told
    (home / "run" / "recipe.yaml").write_bytes(before)


def test_timm_and_onnxruntime_compute_what_search_says_of_raw_files(way):
    kind, home, _, raw = way
    export, (low, high) = home / "run" / "export" / "embedding", range_of(home)
    index = open_search(home / "index", str(home / "set"), str(export))
    scaled = np.stack([raw[Path(index.path(row))] for row in range(len(index))]).astype(np.float64)
    x = torch.from_numpy(((scaled - low) / (high - low)).clip(0, 1)).permute(0, 3, 1, 2).float()
    seen = resize_crop(x, 16).numpy()
    session = onnxruntime.InferenceSession(export / "model.onnx")
    assert session.get_inputs()[0].shape[1:] == [CHANNELS[kind], 16, 16]
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["depth"]) == "uint16"
    assert json.loads(known["range"]) == [low, high]
    (features,) = session.run(None, {"images": seen})
    assert np.abs(features - index.x_ND.numpy()).max() < 1e-4
    model = load_model(export)
    mean, std = (torch.tensor(v)[:, None, None] for v in model.architecture.normalisation())
    theirs = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    with torch.no_grad():
        normal = (torch.from_numpy(seen) - mean) / std
        assert torch.equal(theirs(normal), model.backbone(normal))


def test_a_query_file_is_read_as_the_model_reads(way):
    _, home, recipe, raw = way
    index = open_search(
        home / "index2", str(home / "r.yaml"), str(home / "run" / "export/embedding")
    )
    assert len(index) == len(raw)
    paths = [str(path) for path in list(raw)[::7]]
    answers = list(query(index, paths, k=2))
    for path, answer in zip(paths, answers, strict=True):
        assert index.path(answer.rows[0]) == path
        assert answer.near[0] == pytest.approx(1, abs=1e-5)
    report(index, answers, show=home / "answers.html")
    report(index, answers, show=home / "answers.png")
    shown = np.asarray(Image.open(home / "answers.png"))
    assert shown.std() > 20
    assert recipe.data.args["depth"] == "auto"


def test_a_preview_shows_what_people_can_see(way):
    _, home, recipe, _ = way
    lines = pipeline.draw(recipe, home / "p.png", images=4)
    assert any("no channel" in line for line in lines) == (recipe.backbone.channels > 1)
    assert np.asarray(Image.open(home / "p.png")).std() > 20
    preview.refuse(home / "p.png")


def test_another_range_than_the_models_is_refused_and_none_is_taken_from_it(way, monkeypatch):
    _, home, recipe, _ = way
    monkeypatch.setattr(glimpse, "depth_of", lambda *_: pytest.fail("the model says it"))
    folder = ["probe=null", "evaluate=null", "export=null"]
    text = (home / "r.yaml").read_text().split("pretrain:")
    later = "finetune:" + text[1].split("finetune:")[1]
    named = text[0].split("backbone:")[0] + f"backbone: {{folder: {home}/run/backbone}}\n" + later
    (home / "f.yaml").write_text(named)
    opened = load_recipe(home / "f.yaml", [*folder, "data.range=null"])
    assert Run(opened).images("train").form.range == range_of(home)
    with pytest.raises(DataError, match=r"data\.range: \[0\.0, 7\.0\], but the model takes"):
        pipeline.check(
            Run(load_recipe(home / "f.yaml", [*folder, "data.range=[0, 7]"]), home / "n")
        )
    with pytest.raises(DataError, match=r"data\.depth: uint8, but the model takes uint16"):
        pipeline.check(Run(load_recipe(home / "f.yaml", [*folder, "data.depth=uint8"]), home / "n"))
    scores = probe.probe(
        home / "run" / "backbone", load_recipe(home / "r.yaml", ["data.range=null"])
    )
    own = json.loads((home / "run" / "probe.json").read_text())
    assert scores["linear/top1"] == own["linear/top1"]
    found = evaluate.evaluate(home / "run" / "finetune" / "embedding", recipe)
    assert (
        found["map@r"]
        == json.loads((home / "run" / "evaluate.json").read_text())["fine-tuned"]["map@r"]
    )


def test_a_network_of_ones_own_is_told_what_its_images_are(way):
    kind, home, *_ = way

    class Own(torch.nn.Module):
        dim = 4

        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(CHANNELS[kind], 4, 3)

        def forward(self, x):
            return self.first(x).mean(dim=(2, 3))

    recipe = load_recipe(home / "r.yaml")
    folder = pretrain.pretrain(recipe, home / "own", backbone=Own())
    assert load_model(folder, Own()).architecture.range == range_of(home)


def test_kept_features_are_those_of_one_form(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    forms = [BYTES._replace(channels=1), PixelFormat(1, "uint16"), PixelFormat(1, alpha="keep")]
    forms += [PixelFormat(1, "uint16", (0.0, 9.0)), PixelFormat(1, "uint8", (0.0, 9.0))]
    keys = {cache_key(FileImages(tmp_path, ["a.png"], Reading(8, form))) for form in forms}
    assert len(keys) == len(forms)
    assert sorted(len(key) for key in keys) == [6, 7, 7, 7, 7]  # bytes have the key they had


def test_another_recipe_does_not_take_what_a_run_measured(way):
    kind, home, _, _ = way
    if kind == BANDS:
        return
    same = Run(load_recipe(home / "r.yaml"), home / "run").experiment
    assert same.data.args["measured"] == range_of(home)
    for change in ("data.range={percentiles: [5, 95]}", "data.canvas=20", "data.range=[0, 9]"):
        other = Run(load_recipe(home / "r.yaml", [change]), home / "run").experiment
        assert other.data.args["measured"] is None
