"""Laws of export: onnxruntime computes what the model computes, checks that fail do fail, folders
load everywhere.
"""

import json
import re
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from onnx import numpy_helper
from safetensors.torch import load, save

import children
import toy
from lookalike.errors import BackboneError, RunError
from lookalike.experiment import Export
from lookalike.folder import MANIFEST, verify, write_folder
from lookalike.geometry import sides
from lookalike.models import Architecture, Backbone, card, folder_files, register_cifar_stems
from lookalike.models.embedding import HEAD, Embedding, embedding_files, load_model
from lookalike.recipe import from_text
from lookalike.stages import export as room

RESNET = Architecture("resnet18", 32, args={"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]})
CIFAR = replace(
    RESNET, stem="cifar", size=16, pool="gem", mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3), crop=0.875
)
GREY_VIT = Architecture(
    "vit_tiny_patch16_224",
    16,
    channels=1,
    pool="avg",
    args={"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 4},
)
ARCHITECTURES = {
    "cnn": CIFAR,
    "vit": GREY_VIT,
    "tall": replace(GREY_VIT, size=(24, 12)),
    "embedding": RESNET,
}
OPSET = room.Export().opset
TOLERANCE = room.Export().tolerance


def made(name, seed=0):
    torch.manual_seed(seed)
    model = Backbone(ARCHITECTURES[name])
    if name == "embedding":
        model = Embedding(model, 12)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def files(model):
    return embedding_files(model) if isinstance(model, Embedding) else folder_files(model)


def facts(model):
    about = {"method": "barlow_twins", "epochs": 3, "data": {"kind": "folder", "images": 12}}
    return card.facts(model.architecture, model.dim, about)


@pytest.fixture(scope="module")
def exported():
    """Each model and its ONNX bytes; made once, never changed."""
    models = {name: made(name) for name in ARCHITECTURES}
    return {name: (model, room.to_onnx(model, OPSET)) for name, model in models.items()}


def read(text):
    """A recipe of nothing but an export section."""
    return from_text(text, "export.yaml", (), toy.sections(export=Export))


@pytest.fixture(scope="module")
def recipe():
    return read("export: {onnx: false}\n")


def onnx_session(content):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def images(architecture, batch):
    """Other images than the check's own, black and white ones among them."""
    shape = (batch, architecture.channels, *sides(architecture.size))
    x = torch.rand(shape, generator=torch.Generator().manual_seed(77 + batch))
    x[0, :, 0], x[0, :, 1] = 0, 1
    return x


# --- ONNX -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_onnxruntime_gives_the_model_s_features_of_images_normalised_by_hand(exported, name, batch):
    model, content = exported[name]
    x = images(model.architecture, batch)
    mean, std = model.architecture.normalisation()
    by_hand = np.stack([(x[:, c].numpy() - mean[c]) / std[c] for c in range(x.shape[1])], axis=1)
    with torch.no_grad():
        expected = model(torch.from_numpy(by_hand.astype(np.float32)))
    (found,) = onnx_session(content).run(["features"], {"images": x.numpy()})
    assert found.shape == expected.shape == (batch, model.dim)
    assert float(np.abs(found - expected.numpy()).max()) <= TOLERANCE * float(expected.abs().max())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_check_reports_the_error_it_measured(exported, name):
    model, content = exported[name]
    assert 0 <= room.check_onnx(model, content, TOLERANCE) <= TOLERANCE


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_graph_says_what_it_takes(exported, name):
    model, content = exported[name]
    a, props = (
        model.architecture,
        {p.key: json.loads(p.value) for p in onnx.load_from_string(content).metadata_props},
    )
    mean, std = a.normalisation()
    assert props == {
        "input": "0..1",
        "size": list(a.size) if isinstance(a.size, tuple) else a.size,
        "channels": a.channels,
        "mean": list(mean),
        "std": list(std),
        "crop": a.crop,
    }
    session = onnx_session(content)
    assert session.get_modelmeta().custom_metadata_map["size"] == json.dumps(a.size)
    (taken,), (given,) = session.get_inputs(), session.get_outputs()
    assert (taken.name, given.name) == ("images", "features")
    assert taken.shape[1:] == [a.channels, *sides(a.size)]
    assert isinstance(taken.shape[0], str)  # a name: any batch size


def test_the_graph_holds_its_weights_and_its_opset(exported):
    for model, content in exported.values():
        graph = onnx.load_from_string(content)
        assert [o.version for o in graph.opset_import if o.domain in ("", "ai.onnx")] == [OPSET]
        assert not any(t.external_data for t in graph.graph.initializer)
        numbers = sum(int(np.prod(t.dims)) for t in graph.graph.initializer)
        # Norms may be folded into the convolutions before them, nothing else goes.
        assert numbers >= 0.9 * sum(p.numel() for p in model.parameters() if p.ndim > 1)


def tampered(content, change):
    graph = onnx.load_from_string(content)
    floats = [
        t
        for t in graph.graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1
    ]
    largest = max(floats, key=lambda t: np.prod(t.dims))
    largest.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(largest)), largest.name))
    return graph.SerializeToString()


def noisy(weights):
    return weights * (1 + 0.02 * np.random.default_rng(0).standard_normal(weights.shape)).astype(
        np.float32
    )


def poisoned(weights):
    weights = weights.copy()
    weights.flat[0] = np.nan
    return weights


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "change",
    [noisy, lambda w: w[::-1].copy(), lambda w: 0 * w, poisoned],
    ids=["noise", "reversed", "zeros", "one nan"],
)
def test_a_graph_that_computes_something_else_is_refused(exported, name, change):
    model, content = exported[name]
    with pytest.raises(
        BackboneError,
        match=r"^export: onnxruntime's features are off by .* of the largest, more than 1e-04",
    ):
        room.check_onnx(model, tampered(content, change), TOLERANCE)


def test_the_graph_of_other_weights_is_refused(exported):
    with pytest.raises(BackboneError, match=r"onnxruntime's features are off by"):
        room.check_onnx(made("cnn", seed=1), exported["cnn"][1], TOLERANCE)


def test_an_error_is_measured_against_the_largest_feature(exported):
    """Feature i of batch b is wrong by a known amount: the check must say exactly its share of the
    largest.
    """
    model, content = exported["embedding"]
    graph = onnx.load_from_string(content)
    bias = numpy_helper.from_array(np.full(model.dim, 0.25, np.float32), "shift")
    graph.graph.initializer.append(bias)
    graph.graph.node[-1].output[0] = "unshifted"
    graph.graph.node.append(onnx.helper.make_node("Add", ["unshifted", "shift"], ["features"]))
    with torch.no_grad():
        wrapped = room.WithNormalisation(model, RESNET)
        smallest = min(float(wrapped(room.example(RESNET, b)).abs().max()) for b in room.BATCHES)
    shifted = graph.SerializeToString()
    share = 0.25 / smallest
    assert room.check_onnx(model, shifted, 1.01 * share) == pytest.approx(share, rel=1e-3)
    with pytest.raises(
        BackboneError, match=rf"off by {share:.1e} of the largest, more than {0.99 * share:.0e}$"
    ):
        room.check_onnx(model, shifted, 0.99 * share)


def test_missing_onnx_is_refused_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        BackboneError,
        match=r"export\.onnx: onnxscript is not installed: "
        r"pip install 'lookalike\[onnx\]' or set export\.onnx=false",
    ):
        room.to_onnx(made("cnn"), OPSET)


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture(params=ARCHITECTURES)
def trained(request, tmp_path):
    """A trained model and its folder."""
    model = made(request.param)
    card.write_model(tmp_path / "trained", files(model), facts(model))
    return model, tmp_path / "trained"


def test_an_exported_folder_is_whole_and_gives_the_model_back_bit_for_bit(
    trained, tmp_path, recipe
):
    model, source = trained
    out = room.export(source, recipe, tmp_path / "out", {"knn": 0.5})
    assert set(verify(out)["files"]) == {*files(model), "card.json", "README.md"}
    loaded = load_model(out)
    assert type(loaded) is type(model)
    assert not loaded.training
    assert toy.same_weights(loaded, model)
    x = images(model.architecture, 2)
    with torch.no_grad():
        assert loaded(x).equal(model(x))


def test_timm_loads_an_exported_folder(trained, tmp_path, recipe):
    model, source = trained
    out = room.export(source, recipe, tmp_path / "out")
    register_cifar_stems()
    backbone = getattr(model, "backbone", model)
    theirs = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    x = images(model.architecture, 2)
    with torch.no_grad():
        assert theirs(x).equal(backbone.model(x))


def test_an_export_with_onnx_holds_a_graph_that_agrees(tmp_path):
    model = made("embedding")
    card.write_model(tmp_path / "trained", files(model), facts(model))
    out = room.export(tmp_path / "trained", read("export: {}\n"), tmp_path / "out")
    assert "model.onnx" in verify(out)["files"]
    told = json.loads((out / "card.json").read_bytes())["onnx"]
    assert told["batches"] == [1, 2, 5]
    assert told["worst_relative_error"] == room.check_onnx(
        model, (out / "model.onnx").read_bytes(), TOLERANCE
    )


def test_a_folder_from_which_timm_computes_something_else_is_refused(tmp_path):
    write_folder(tmp_path / "x", folder_files(made("cnn", seed=1)))
    with pytest.raises(
        BackboneError,
        match=r"^export: timm computes other features from what was written than the tr",
    ):
        room.check_timm(made("cnn"), tmp_path / "x")


def test_a_spoilt_folder_is_not_exported(trained, tmp_path, recipe):
    _, source = trained
    (source / "model.safetensors").write_bytes(b"")
    with pytest.raises(BackboneError, match=r"model\.safetensors: 0 bytes instead of"):
        room.export(source, recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def tree(folder):
    """Everything below a folder, to the byte."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.rglob("*"))
    }


@pytest.fixture(params=[False, True], ids=["first", "again"])
def place(request, tmp_path, recipe):
    """Where to export to: a folder that is not there yet, or that holds an earlier export; and what
    is there.
    """
    (tmp_path / "exports").mkdir()
    if request.param:
        card.write_model(tmp_path / "earlier", files(made("vit")), facts(made("vit")))
        room.export(tmp_path / "earlier", recipe, tmp_path / "exports" / "out")
    return tmp_path / "exports" / "out", tree(tmp_path / "exports")


def unchanged(place):
    return tree(place[0].parent) == place[1]


def spoilt(folder, name, change):
    """A model's folder with one tensor changed, and its manifest to match."""
    model = made("embedding")
    with torch.no_grad():
        change(model.state_dict()[name])
    write_folder(folder, files(model))
    return folder


@pytest.mark.parametrize(
    ("name", "file"),
    [("backbone.model.layer1.0.bn1.running_mean", "model"), ("head.weight", "head")],
)
@pytest.mark.parametrize("text", ["export: {}\n", "export: {onnx: false}\n"])
def test_weights_that_are_not_numbers_are_refused_by_name_and_nothing_stays(
    name, file, text, place, tmp_path
):
    source = spoilt(tmp_path / "nan", name, lambda tensor: tensor.fill_(torch.nan))
    tensor = re.escape(name.removeprefix("backbone.model.").removeprefix("head."))
    with pytest.raises(
        BackboneError, match=rf"{file}\.safetensors: .*: {tensor}: holds NaN or infinity: export it"
    ):
        room.export(source, read(text), place[0])
    assert unchanged(place)


@pytest.mark.parametrize("text", ["export: {}\n", "export: {onnx: false}\n"])
def test_a_model_whose_features_overflow_is_refused_with_the_reason_and_nothing_stays(
    text, place, tmp_path
):
    source = spoilt(
        tmp_path / "huge", "backbone.model.conv1.weight", lambda tensor: tensor.fill_(3e38)
    )
    with pytest.raises(
        BackboneError, match=r"^export: the model's features of random images are NaN or infinite"
    ):
        room.export(source, read(text), place[0])
    assert unchanged(place)


def test_what_timm_would_compute_otherwise_never_appears(trained, place, recipe, monkeypatch):
    _, source = trained
    create = timm.create_model

    def other(name, **how):
        model = create(name, **how)
        if str(name).startswith("local-dir:"):
            with torch.no_grad():
                next(model.parameters()).mul_(1.5)
        return model

    monkeypatch.setattr(timm, "create_model", other)
    with pytest.raises(
        BackboneError, match=r"^export: timm computes other features from what was written"
    ):
        room.export(source, recipe, place[0])
    assert unchanged(place)


def test_what_timm_cannot_load_never_appears_and_the_message_says_so(
    trained, place, recipe, monkeypatch
):
    _, source = trained
    create = timm.create_model

    def failing(name, **how):
        if str(name).startswith("local-dir:"):
            raise RuntimeError("no\nsuch\x1b[31mthing")
        return create(name, **how)

    monkeypatch.setattr(timm, "create_model", failing)
    with pytest.raises(
        BackboneError,
        match=r"^export: timm cannot load what was written \(no such\\x1b\[31mthing\): a",
    ):
        room.export(source, recipe, place[0])
    assert unchanged(place)


def test_a_graph_that_differs_leaves_nothing(place, tmp_path):
    card.write_model(tmp_path / "x", files(made("vit")), facts(made("vit")))
    with pytest.raises(
        BackboneError, match=r"onnxruntime's features are off by .*, more than 0e\+00"
    ):
        room.export(tmp_path / "x", read("export: {tolerance: 0}\n"), place[0])
    assert unchanged(place)


def test_a_model_that_gives_zeros_is_exported_with_an_error_of_zero():
    model = Backbone(RESNET).eval()
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.zero_()
    assert room.check_onnx(model, room.to_onnx(model, OPSET), TOLERANCE) == 0


def test_a_place_that_is_another_s_is_refused_before_anything_is_opened(
    trained, tmp_path, recipe, monkeypatch
):
    monkeypatch.setattr(room, "load_model", None)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_bytes(b"years of work")
    with pytest.raises(
        RunError,
        match=r"mine: holds thesis\.tex, which lookalike did not write there: move it away",
    ):
        room.export(trained[1], recipe, tmp_path / "mine")
    with pytest.raises(
        RunError, match=r"thesis\.tex: cannot be written \(.*thesis\.tex is a file\): choose"
    ):
        room.export(trained[1], recipe, tmp_path / "mine" / "thesis.tex" / "x")
    assert (tmp_path / "mine" / "thesis.tex").read_bytes() == b"years of work"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "1"), pytest.param({"ORT_DISABLE_TELEMETRY": "0"}, "0", marks=pytest.mark.slow)],
)
def test_to_look_for_onnx_does_not_start_onnxruntime(given, wanted):
    script = (
        "import os, sys\nfrom lookalike.stages.export import onnx_at_hand, _onnxruntime\n"
        "onnx_at_hand()\nassert 'onnxruntime' not in sys.modules\n"
        "_onnxruntime()\nprint('onnxruntime' in sys.modules, os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    done = children.run(script, **{"ORT_DISABLE_TELEMETRY": None, **given})
    assert done.stdout.split() == ["True", wanted], done.stderr


@pytest.mark.parametrize(
    "content", [None, b"{}", b"[1]", b'{"input": 3, "architecture": 4, "features": "x"}']
)
def test_a_card_that_is_missing_or_wrong_does_not_keep_a_model_from_its_export(
    content, tmp_path, recipe
):
    write_folder(
        tmp_path / "x", {**files(made("cnn")), **({"card.json": content} if content else {})}
    )
    out = room.export(tmp_path / "x", recipe, tmp_path / "out")
    found = json.loads((out / "card.json").read_text())
    assert (found["architecture"], found["features"], found["input"]["size"]) == (
        "resnet18_cifar",
        32,
        16,
    )
    assert "gives 32 features" in (out / "README.md").read_text()


EVIL = "<script>alert(1)</script>\n---\nlicense: evil\n---\n# Mine\x1b[31m\u202e | `x` [a](http://evil.example)"
FOREIGN = {
    "texts": dict.fromkeys(
        ("method", "recipe", "data", "licence", "distance", "architecture", "pool", EVIL), EVIL
    ),
    "lists": {
        key: [[[EVIL]]]
        for key in ("method", "epochs", "data", "versions", "scores", "input", "onnx")
    },
    "mappings": {
        key: {EVIL: EVIL}
        for key in ("method", "epochs", "data", "versions", "scores", "input", "features")
    },
    "long": {"method": "x" * 10_000, "data": "y" * 201, "versions": {"timm": "z" * 10_000}},
    "numbers": {
        "method": 1e400,
        "epochs": float("nan"),
        "classes": -float("inf"),
        "rows": 10**30,
        "data": None,
    },
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_another_s_card_says_stays_text_and_only_what_is_known_goes_along(
    what, tmp_path, recipe
):
    write_folder(
        tmp_path / "x", {**files(made("vit")), "card.json": json.dumps(FOREIGN[what]).encode()}
    )
    out = room.export(tmp_path / "x", recipe, tmp_path / "out")

    def refuse(constant):
        raise AssertionError(constant)

    told = json.loads((out / "card.json").read_text(), parse_constant=refuse)
    plain = {
        key: value for key, value in told.items() if key not in ("input", "versions", "scores")
    }
    assert plain == {
        "architecture": GREY_VIT.name,
        "features": 48,
        "pool": "avg",
        "licence": "Apache-2.0",
    }
    assert told["scores"] == {}
    assert "evil" not in json.dumps(told)
    readme = (out / "README.md").read_text()
    assert front_matter(readme)["license"] == "apache-2.0"
    assert "evil" not in readme
    assert len(readme) < 1000


def test_what_a_card_of_ours_says_goes_along(trained, tmp_path, recipe):
    _, source = trained
    known = {
        "method": "Ürsatz v2",
        "epochs": 7,
        "data": "ab12",
        "classes": 5,
        "times": "3f",
        "versions": {"timm": "9.9"},
    }
    before = {**json.loads((source / "card.json").read_text()), **known}
    kept = {p.name: p.read_bytes() for p in source.iterdir() if p.name != MANIFEST}
    write_folder(source, {**kept, "card.json": json.dumps(before).encode()})
    told = json.loads((room.export(source, recipe, tmp_path / "out") / "card.json").read_text())
    assert {key: told[key] for key in known} == known


def test_each_value_in_the_readme_is_one_line_in_which_nothing_is_markup():
    about = {
        "method": EVIL,
        "epochs": [EVIL],
        "data": {EVIL: EVIL},
        "recipe": "`" * 9,
        "scores": {EVIL: 0.5, "b": "x"},
    }
    text = card.text(card.facts(GREY_VIT, 48, about))
    assert front_matter(text)["license"] == "apache-2.0"
    assert text.count("\n---\n") == 1
    assert all(line.isprintable() for line in text.splitlines())
    assert "# vit_tiny_patch16_224, trained with lookalike\n" in text
    rows = [line for line in text.splitlines() if "script" in line or "evil" in line]
    assert len(rows) == 4
    for line in rows:
        start, code, *rest = re.split(r"(?<!\\)`", line)
        assert start in ("- method: ", "- epochs: ", "- data: ", "| ")
        assert "script" in code
        assert "|" not in code.replace("\\|", "")
        assert rest in ([""], [" | 0.5000 |"])
    assert "- recipe: `'''''''''`" in text


@pytest.mark.parametrize("scores", [3, [1.0], "x", None, {}, {"a": 1}])
def test_scores_that_are_none_make_no_table(scores):
    assert "| score |" not in card.text(card.facts(GREY_VIT, 48, {"scores": scores}))


# --- embedding ------------------------------------------------------------------------------------


def test_an_embedding_is_the_linear_head_of_its_backbone_on_the_unit_sphere():
    model = made("embedding")
    x = images(RESNET, 5)
    with torch.no_grad():
        z_BD = model.backbone(x) @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(model(x), z_BD / z_BD.square().sum(1, keepdim=True).sqrt())
        torch.testing.assert_close(F.normalize(model(x)), model(x))


UNFIT = r"the head does not fit its backbone of 32 features: "
BAD_HEADS = {
    "other width": (
        {"weight": torch.zeros(12, 31), "bias": torch.zeros(12)},
        UNFIT + r"weight: shape \(12, 31\) instead of \(12, 32\)",
    ),
    "other bias": (
        {"weight": torch.zeros(12, 32), "bias": torch.zeros(11)},
        UNFIT + r"weight: shape \(12, 32\) instead of \(11, 32\)",
    ),
    "scalar bias": (
        {"weight": torch.zeros(1, 32), "bias": torch.zeros(())},
        UNFIT + r"bias: shape \(\) instead of \(1,\)",
    ),
    "no width": (
        {"weight": torch.zeros(0, 32), "bias": torch.zeros(0)},
        UNFIT + r"weight: shape \(0, 32\) instead of \(1, 32\)",
    ),
    "huge bias": (
        {"weight": torch.zeros(12, 32), "bias": torch.zeros(10**7)},
        UNFIT + r"weight: shape \(12, 32\) instead of \(10000000, 32\)",
    ),
    "no bias": ({"weight": torch.zeros(12, 32)}, UNFIT + "bias is missing"),
    "no weight": ({"bias": torch.zeros(12)}, UNFIT + "weight is missing"),
    "one more": (
        {"weight": torch.zeros(12, 32), "bias": torch.zeros(12), "scale": torch.zeros(1)},
        UNFIT + "scale is not the model's",
    ),
    "half": (
        {"weight": torch.zeros(12, 32).half(), "bias": torch.zeros(12)},
        UNFIT + "weight: float16 instead of float32",
    ),
    "bytes": (
        {"weight": torch.zeros(12, 32), "bias": torch.zeros(12, dtype=torch.int8)},
        UNFIT + "bias: int8 instead of float32",
    ),
    "unit of numbers": (
        {"weight": torch.zeros(12, 32), "bias": torch.zeros(12), "unit": torch.zeros(())},
        UNFIT + "unit: float32 instead of bool",
    ),
    "units": (
        {
            "weight": torch.zeros(12, 32),
            "bias": torch.zeros(12),
            "unit": torch.zeros(2, dtype=torch.bool),
        },
        UNFIT + r"unit: shape \(2,\) instead of \(\)",
    ),
    "not a number": (
        {"weight": torch.zeros(12, 32), "bias": torch.full((12,), torch.nan)},
        UNFIT + "bias: holds NaN or infinity",
    ),
    "no safetensors": (None, r"not a safetensors file \(.*\)"),
}


@pytest.mark.parametrize("what", BAD_HEADS)
def test_a_head_that_does_not_fit_is_refused_though_the_manifest_is_right(tmp_path, what):
    tensors = BAD_HEADS[what][0]
    head = save(tensors) if tensors else b"not a safetensors file"
    write_folder(tmp_path / "x", {**embedding_files(made("embedding")), HEAD: head})
    with pytest.raises(
        BackboneError, match=rf"head\.safetensors: {BAD_HEADS[what][1]}: export it again$"
    ):
        load_model(tmp_path / "x")


def test_a_head_that_is_not_in_the_manifest_is_not_read(tmp_path):
    write_folder(tmp_path / "x", folder_files(made("embedding").backbone))
    (tmp_path / "x" / HEAD).write_bytes(b"stray")
    assert isinstance(load_model(tmp_path / "x"), Backbone)


def test_a_flipped_bit_in_the_head_is_refused(tmp_path):
    write_folder(tmp_path / "x", embedding_files(made("embedding")))
    content = bytearray((tmp_path / "x" / HEAD).read_bytes())
    content[-1] ^= 1
    (tmp_path / "x" / HEAD).write_bytes(content)
    with pytest.raises(BackboneError, match=r"head\.safetensors: its content changed"):
        load_model(tmp_path / "x")


def test_the_head_s_file_holds_weight_and_bias(tmp_path):
    model = made("embedding")
    tensors = load(embedding_files(model)[HEAD])
    assert tensors.keys() == {"weight", "bias"}
    assert tensors["weight"].equal(model.head.weight)


# --- cards ----------------------------------------------------------------------------------------


def front_matter(text):
    return yaml.safe_load(re.match(r"\A---\n(.*?)\n---\n", text, re.DOTALL).group(1))


def test_the_card_tells_machines_and_people_what_the_model_is(trained, tmp_path, recipe):
    model, source = trained
    out = room.export(source, recipe, tmp_path / "out", {"knn": 0.51236, "probe": 0.75})
    told = json.loads((out / "card.json").read_bytes())
    a = model.architecture
    mean, std = a.normalisation()
    assert told["architecture"] == a.timm_name
    assert told["features"] == model.dim
    assert told["input"] == {
        "channels": a.channels,
        "size": list(a.size) if isinstance(a.size, tuple) else a.size,
        "crop": a.crop,
        "mean": list(mean),
        "std": list(std),
    }
    assert (told["method"], told["epochs"], told["licence"]) == ("barlow_twins", 3, "Apache-2.0")
    assert told["versions"].keys() == {"python", "lookalike", "torch", "timm"}
    assert told["scores"] == {"knn": 0.51236, "probe": 0.75}
    readme = (out / "README.md").read_text()
    assert front_matter(readme) == {
        "license": "apache-2.0",
        "library_name": "timm",
        "pipeline_tag": "image-feature-extraction",
    }
    assert "Licence: Apache-2.0, the weights too." in readme
    assert "| knn | 0.5124 |" in readme
    assert ("register_cifar_stems()" in readme) == a.timm_name.endswith("_cifar")
    assert str(tmp_path) not in readme


def test_the_card_s_python_loads_the_model(trained, tmp_path, recipe):
    model, source = trained
    out = room.export(source, recipe, tmp_path / "out")
    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(code.replace("PATH/TO/THIS/FOLDER", str(out)), names)
    assert toy.same_weights(names["model"], getattr(model, "backbone", model).model)


def test_a_model_is_done_when_its_card_says_so_and_its_files_are_whole(tmp_path):
    model = made("cnn")
    assert not card.is_done(tmp_path / "x", {"epochs": 3})
    card.write_model(tmp_path / "x", files(model), facts(model))
    assert card.is_done(tmp_path / "x", {"epochs": 3, "method": "barlow_twins"})
    assert not card.is_done(tmp_path / "x", {"epochs": 4})
    assert not card.is_done(tmp_path / "x", {"seed": 1})


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_folder_without_a_card_has_no_facts(tmp_path, content):
    if content is not None:
        (tmp_path / "card.json").write_bytes(content)
    assert card.read(tmp_path) == {}


def test_the_digest_stands_for_architecture_and_weights():
    models = [made("cnn"), made("cnn", seed=1), made("vit"), made("embedding")]
    digests = [card.weights_digest(m) for m in models]
    assert len(set(digests)) == len(models)
    assert card.weights_digest(made("cnn")) == digests[0]
    with torch.no_grad():
        models[0].gem.p.add_(1)
    assert card.weights_digest(models[0]) != digests[0]
    twin = made("embedding")
    twin.distance = "euclidean"  # the same weights, other vectors
    assert card.weights_digest(twin) != card.weights_digest(made("embedding"))


def test_the_manifest_is_not_among_its_own_files(tmp_path):
    model = made("cnn")
    card.write_model(tmp_path / "x", files(model), facts(model))
    assert MANIFEST not in verify(tmp_path / "x")["files"]
