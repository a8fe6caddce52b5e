"""Models of any number of channels, which know how a raw file becomes their input."""

import json
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn

from lookalike.errors import BackboneError, RecipeError
from lookalike.experiment import load_recipe
from lookalike.geometry import PixelFormat
from lookalike.models import Architecture, Backbone, load_backbone, open_backbone
from lookalike.models.card import facts, text, weights_digest, write_model
from lookalike.models.embedding import Embedding, load_model

SMALL = {"channels": [8, 8, 8, 8]}
FIVE = PixelFormat(5, "uint16", (0.0, 4095.0))


def five(form: PixelFormat = FIVE) -> Backbone:
    return Backbone(Architecture("resnet18", size=16, channels=5, args=SMALL).reading(form))


def written(backbone, folder):
    card = facts(backbone.architecture, backbone.dim, {})
    write_model(folder, backbone.files(), card)
    return folder


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
def test_a_folder_of_any_channels_comes_back_to_the_bit_and_timm_has_the_same(tmp_path, channels):
    backbone = Backbone(Architecture("resnet18", size=32, channels=channels, args=SMALL)).eval()
    mean, std = backbone.architecture.normalisation()
    assert len(mean) == len(std) == channels
    assert channels == 3 or set(mean + std) == {0.5}
    x = torch.rand(2, channels, 32, 32)
    loaded = load_backbone(written(backbone, tmp_path / "folder"))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(loaded(x), backbone(x))
        assert torch.equal(theirs(x), backbone(x))


def test_a_folder_says_how_a_raw_file_becomes_its_input(tmp_path):
    backbone = five()
    folder = written(backbone, tmp_path / "folder")
    assert load_backbone(folder).architecture.form == FIVE
    wide = PixelFormat(5, "float32", (-1e6, 1e9))  # more than any size of a model
    assert load_backbone(written(five(wide), tmp_path / "wide")).architecture.form == wide
    card = json.loads((folder / "card.json").read_text())
    assert card["input"]["depth"] == "uint16"
    assert card["input"]["range"] == [0.0, 4095.0]
    assert "16-bit values 0 … 4095 become 0 … 1." in (folder / "README.md").read_text()
    write_model(tmp_path / "head", Embedding(backbone, 7).files(), card)
    assert load_model(tmp_path / "head").architecture.form == FIVE
    kept = PixelFormat(4, "uint8", None, "keep")
    transparent = Architecture("resnet18", size=16, channels=4).reading(kept)
    assert "8-bit values 0 … 255 become 0 … 1, transparency stays a channel" in text(
        facts(transparent, 1, {})
    )


def test_bytes_are_written_as_ever_and_earlier_folders_load(tmp_path):
    backbone = five(PixelFormat(5))
    ours = backbone.architecture.config(backbone.dim)["lookalike"]
    assert not {"depth", "range", "alpha"} & ours.keys()
    assert not {"depth", "range", "alpha"} & facts(backbone.architecture, 1, {})["input"].keys()
    assert "depth" not in repr(backbone.architecture)
    assert load_backbone(written(backbone, tmp_path / "folder")).architecture.form == PixelFormat(5)


def test_the_digest_of_a_model_is_of_its_input_too():
    torch.manual_seed(0)
    backbone, found = five(PixelFormat(5)), set()
    forms = [PixelFormat(5), PixelFormat(5, "uint16"), FIVE, PixelFormat(5, alpha="keep")]
    for form in forms:
        backbone.architecture = backbone.architecture.reading(form)
        found.add(weights_digest(backbone))
    assert len(found) == len(forms)


@pytest.mark.parametrize(
    ("range_", "said"),
    [
        ([5.0, 1.0], "two finite numbers"),
        ([0.0, float("nan")], "two finite numbers"),
        ([0.0, float("inf")], "two finite numbers"),
        ([0.0], "range"),
        ("x" * 10_000, "range"),
        ([[[]]] * 1000, "range"),
    ],
)
def test_a_range_of_a_strangers_folder_is_a_range_or_refused(tmp_path, range_, said):
    files = five().files()
    config = json.loads(files["config.json"])
    config["lookalike"]["range"] = range_
    files["config.json"] = json.dumps(config).encode()
    write_model(tmp_path / "x", files, facts(five().architecture, 1, {}))
    with pytest.raises(BackboneError, match=said) as caught:
        load_backbone(tmp_path / "x")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_no_recipe_gives_depth_range_or_alpha_to_a_backbone(tmp_path):
    path = tmp_path / "r.yaml"
    for key in ("depth: uint16", "range: [0, 1]", "alpha: keep"):
        path.write_text(f"data: digits\nbackbone: {{name: resnet18, channels: 1, {key}}}\n")
        with pytest.raises(RecipeError, match=rf"backbone.{key.split(':')[0]}: unknown"):
            load_recipe(path)
    path.write_text("data: digits\nbackbone: {name: resnet18, channels: 1}\n")
    assert "depth" not in load_recipe(path).text().split("backbone")[1]


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 7])
def test_the_first_layer_of_a_published_model_adapts_as_timm_has_it(monkeypatch, channels):
    torch.manual_seed(1)
    published = timm.create_model("resnet18", num_classes=1000)
    state = {name: value.clone() for name, value in published.state_dict().items()}

    def load(model, *_, **__):
        return {name: value.clone() for name, value in state.items()}

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", load)
    monkeypatch.setattr("lookalike.models.hub.published", lambda name: {})
    like = Architecture("resnet34", size=32, channels=channels).reading(
        PixelFormat(channels, "uint16", (0.0, 4095.0))
    )
    opened = open_backbone("resnet18", like)
    assert opened.architecture.form == like.form
    weight = opened.model.conv1.weight
    assert weight.shape == (64, channels, 7, 7)
    three = state["conv1.weight"]
    if channels == 1:
        wanted = three.sum(dim=1, keepdim=True)
    else:
        repeated = three.repeat(1, -(-channels // 3), 1, 1)[:, :channels]
        wanted = repeated * (3 / channels)
    assert torch.allclose(weight, wanted)
    direct = Backbone(replace(like, name="resnet18", pretrained=True))
    assert torch.equal(direct.model.conv1.weight, weight)


class Net(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3)

    def forward(self, x):
        return self.first(x).mean(dim=(2, 3))


def test_a_network_of_ones_own_takes_any_channels_and_tells_its_input(tmp_path):
    backbone = Backbone.of(Net(5), size=16, channels=5, depth="uint16", range=(0.0, 4095.0))
    assert backbone.architecture.form == FIVE
    loaded = load_backbone(written(backbone, tmp_path / "own"), Net(5))
    assert loaded.architecture.form == FIVE
    wrapped = open_backbone(Net(5), backbone.architecture)
    assert wrapped.architecture.form == FIVE
    plain = Backbone.of(Net(5), size=16, channels=5)
    assert set(plain.architecture.config(6)["lookalike"]) == {
        "size", "channels", "crop", "mean", "std"
    }  # fmt: skip
    with pytest.raises(BackboneError, match="channels"):
        Backbone.of(Net(5), size=16, channels=4)
