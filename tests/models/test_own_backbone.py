"""A network of one's own goes where timm's go: saved, loaded, scored, trained, exported."""

import json

import numpy as np
import pytest
import torch
from torch import nn

import lookalike
import toy
from lookalike.errors import BackboneError
from lookalike.evaluation.features import embedder, extract
from lookalike.folder import write_folder
from lookalike.folder.manifest import MANIFEST
from lookalike.models import card, layers, load_backbone, open_backbone, repooled
from lookalike.models.embedding import Embedding, load_model, open_model
from lookalike.stages import export as export_stage


class Net(nn.Module):
    """Three layers, with a BatchNorm's statistics."""

    def __init__(self, width: int = 8, channels: int = 1) -> None:
        super().__init__()
        self.dim = 2 * width
        self.first = nn.Conv2d(channels, width, 3, 2, 1)
        self.norm = nn.BatchNorm2d(width)
        self.second = nn.Conv2d(width, 2 * width, 3, 2, 1)

    def forward(self, x_BCHW):
        return self.second(self.norm(self.first(x_BCHW)).relu()).mean(dim=(2, 3))


class Layered(Net):
    """The same, which tells its layers as timm's models do."""

    def group_matcher(self, coarse=False):
        return {"stem": r"^first|^norm", "blocks": [(r"^second", None)]}


def stirred(seed: int = 0, kind: type[Net] = Net, **how) -> lookalike.Backbone:
    torch.manual_seed(seed)
    made = lookalike.Backbone.of(kind(**how), size=16, channels=1, mean=(0.4,), std=(0.3,))
    made.train()(torch.randn(8, 1, 16, 16))
    return made.eval()


def images(batch: int = 5):
    return torch.randn(batch, 1, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def folder(tmp_path):
    made = stirred()
    facts = card.facts(made.architecture, made.dim, {"method": "simclr"})
    card.write_model(tmp_path / "own", made.files(), facts)
    return tmp_path / "own"


def test_a_module_is_a_backbone_of_its_own_width_and_keeps_its_mode():
    net = Net().eval()
    made = lookalike.Backbone.of(net, size=(16, 12), channels=1)
    assert (made.dim, made.model, made.training, net.training) == (16, net, False, False)
    assert made.architecture.name == f"{__name__}.Net"
    assert made.architecture.normalisation() == ((0.5,), (0.5,))
    assert (made.distance, made.trunk, made.fresh()) == ("cosine", made, None)
    x = images()
    assert torch.equal(made(x), net(x))
    assert lookalike.Backbone.of(Net(), size=16, channels=1).training


def test_a_part_of_a_batch_after_another_gives_the_gradient_of_all(folder):
    whole, parts = (load_backbone(folder, Net()).train() for _ in range(2))
    for made in (whole, parts):
        made.model.norm.eval()
    parts.pieces = 3
    for made in (whole, parts):
        made(images()).square().sum().backward()
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_a_folder_gives_the_same_bits_to_a_module_of_the_caller_s(folder):
    made, net = stirred(), Net()
    loaded = lookalike.load_backbone(folder, module=net)
    assert (loaded.model, loaded.training, loaded.dim) == (net, False, 16)
    assert loaded.architecture == made.architecture
    assert torch.equal(loaded(images()), made(images()))
    assert loaded.files() == made.files()
    assert card.weights_digest(loaded) == card.weights_digest(made)


def test_the_class_in_the_folder_says_who_it_was_and_nothing_more(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["class"] == f"{__name__}.Net"
    with pytest.raises(
        BackboneError, match=r"config\.json: the weights of .*Net, which is not"
    ) as e:
        load_backbone(folder)
    assert "load_backbone(folder, module=Net(…))" in str(e.value)
    assert "\n" not in str(e.value)
    renamed = type("Renamed", (Net,), {})
    assert torch.equal(load_backbone(folder, renamed())(images()), stirred()(images()))


def test_a_module_is_not_for_timm_s_folders(tmp_path):
    write_folder(tmp_path / "timm", toy.architecture().build().files())
    with pytest.raises(BackboneError, match=r"timm's resnet18: load it without a module"):
        load_backbone(tmp_path / "timm", Net())


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (lambda: Net(width=4), "first.weight: shape (8, 1, 3, 3) instead of (4, 1, 3, 3)"),
        (lambda: Net(channels=3), "first.weight: shape (8, 1, 3, 3) instead of (8, 3, 3, 3)"),
        (lambda: Net().double(), "first.weight: float32 instead of float64"),
        (lambda: nn.Sequential(nn.Conv2d(1, 8, 3)), "0.bias is missing"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_and_left_as_it_was(folder, module, problem):
    wrong = module()
    before = {name: value.clone() for name, value in wrong.state_dict().items()}
    with pytest.raises(BackboneError) as error:
        load_backbone(folder, wrong)
    assert problem in str(error.value)
    assert "model.safetensors: does not fit the module" in str(error.value)
    assert "\n" not in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in wrong.state_dict().items())


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_flipped_byte_is_found(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[-3] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(BackboneError, match=rf"{name}: .*restore it or write the folder again"):
        load_backbone(folder, Net())


@pytest.mark.parametrize(
    "change",
    [
        {"class": 3},
        {"class": "a" * 201},
        {"class": "a\nb"},
        {"class": ""},
        {"lookalike": {}},
        {"lookalike": {"size": 1e9, "channels": 1, "crop": 1.0, "mean": [0.5], "std": [0.5]}},
        {"lookalike": {"size": 16, "channels": 2, "crop": 1.0, "mean": [0.5], "std": [0.5]}},
        {"lookalike": {"size": 16, "channels": 1, "crop": 1.0, "mean": [0.5], "std": [0.0]}},
        {"lookalike": {"size": 16, "channels": 1, "crop": 1.0, "mean": [0.5], "std": [1], "x": 1}},
        {"lookalike": [1]},
    ],
)
def test_a_config_that_says_something_else_is_refused(tmp_path, change):
    files = stirred().files()
    config = json.loads(files["config.json"]) | change
    write_folder(tmp_path / "x", files | {"config.json": json.dumps(config).encode()})
    with pytest.raises(BackboneError, match=r"config\.json: not a backbone of lookalike"):
        load_backbone(tmp_path / "x", Net())


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    made = stirred()
    with torch.no_grad():
        made.model.second.bias[0] = torch.nan
    write_folder(tmp_path / "x", made.files())
    with pytest.raises(BackboneError, match=r"second\.bias: holds NaN or infinity"):
        load_backbone(tmp_path / "x", Net())


class Wrong(Net):
    def __init__(self, gives):
        super().__init__()
        self.gives = gives

    def forward(self, x_BCHW):
        return self.gives(super().forward(x_BCHW))


@pytest.mark.parametrize(
    ("module", "how", "message"),
    [
        (Wrong(lambda h: h[:, None]), {}, r"features of shape \(1, 1, 16\), not \(B, D\)"),
        (Wrong(lambda h: (h, h)), {}, r"features of shape tuple, not \(B, D\)"),
        (Wrong(lambda h: h[:, :3]), {}, r"says dim 16, but gives 3 features: correct it"),
        (Net(channels=3), {}, r"Net at size 16, args \{\}: Given groups=1.*expected"),
        (Net(), {"mean": (0.1, 0.2)}, r"Net: mean has 2 values for 1 channels"),
        (Net(), {"size": 10**6}, r"size 1000000: at most 3584 pixels a side"),
    ],
)
def test_a_module_that_is_no_backbone_is_refused(module, how, message):
    with pytest.raises(BackboneError, match=message):
        lookalike.Backbone.of(module, **{"size": 16, "channels": 1, **how})


def test_a_state_that_is_no_tensor_is_not_saved():
    class Odd(Net):
        def get_extra_state(self):
            return {"seen": 3}

        def set_extra_state(self, state): ...

    made = lookalike.Backbone.of(Odd(), size=16, channels=1)
    with pytest.raises(BackboneError, match=r"_extra_state of its state is no tensor"):
        made.files()


def test_every_stage_opens_a_module_for_the_images_of_the_recipe():
    like = toy.architecture()
    for opened in (open_backbone(Net(), like), open_model(Net(), like)):
        assert (opened.architecture.size, opened.architecture.channels) == (like.size, 1)
    made = stirred()
    assert open_model(made, like) is open_backbone(made, like) is made
    with pytest.raises(
        BackboneError, match=r"Net is not timm's: say what it takes by Backbone\.of"
    ):
        open_model(Net(), None)


def test_layers_are_those_it_tells_or_one_block():
    one, blocks = layers(stirred())
    assert (set(one.values()), blocks) == ({1}, 1)
    assert set(one) == {name for name, _ in stirred().named_parameters()}
    told, blocks = layers(stirred(kind=Layered))
    assert (blocks, told["model.first.weight"], told["model.second.weight"]) == (1, 0, 1)


def test_another_pooling_is_not_ours_to_give():
    made = stirred()
    assert repooled(made, None) is made
    with pytest.raises(BackboneError, match=r"pool: gem: .*Net pools by itself: leave pool out"):
        repooled(made, "gem")


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_an_embedding_on_it_comes_back(tmp_path, distance):
    model = Embedding(stirred(), 4, distance=distance).eval()
    write_folder(tmp_path / "x", model.files())
    loaded = lookalike.load_model(tmp_path / "x", module=Net())
    assert (loaded.distance, loaded.dim) == (distance, 4)
    assert torch.equal(loaded(images()), model(images()))


RECIPE = ("probe.baselines=true", "evaluate={examples: 0, intervals: 0}", "export={onnx: false}")


def test_it_is_probed_and_evaluated(folder):
    model, recipe = load_backbone(folder, Net()), toy.recipe(*RECIPE)
    scores = lookalike.probe(model, recipe)
    assert {name for name in scores if name.startswith("pixels/")}
    assert not {name for name in scores if name.startswith("untrained/")}
    assert 0 < scores["linear/top1"] <= 1
    assert 0 < lookalike.evaluate(model, recipe)["recall@1"] <= 1


def test_features_of_a_loaded_one_are_the_saved_one_s(folder):
    test = toy.recipe().data.build().split("test", 16)
    one, other = stirred(), load_backbone(folder, Net())
    found = [extract(embedder(made, made.architecture), test).x_ND for made in (one, other)]
    assert torch.equal(*found)


def test_export_asks_onnxruntime_and_not_timm(folder, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    recipe = toy.recipe("export={onnx: true}")
    done = lookalike.export(folder, recipe, tmp_path / "out", module=Net())
    assert "Net is not timm's: timm is not asked to load it" in capsys.readouterr().out
    import onnxruntime

    session = onnxruntime.InferenceSession((done / "model.onnx").read_bytes())
    x = torch.rand(3, 1, 16, 16)
    (found,) = session.run(None, {"images": x.numpy()})
    assert np.allclose(found, load_model(done, Net())((x - 0.4) / 0.3).detach(), atol=1e-5)
    facts = card.read(done)
    assert (facts["module"], facts["pool"]) == (f"{__name__}.Net", "its own")
    text = (done / "README.md").read_text()
    assert "library_name: lookalike" in text
    assert "timm.create_model" not in text
    assert f"# `{__name__}.Net`" in text
    assert (done / MANIFEST).exists()
    assert export_stage.check_timm(stirred(), done) is None


def test_it_is_pretrained_by_any_method_and_stays_finished(tmp_path):
    recipe, run = toy.recipe("pretrain.epochs=1"), tmp_path / "run"
    torch.manual_seed(0)
    net = Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    done = lookalike.pretrain(recipe, run, backbone=net)
    trained = load_backbone(done, Net())
    assert any(not torch.equal(before[name], value) for name, value in net.state_dict().items())
    x = torch.rand(2, 1, 16, 16)
    assert torch.equal(trained(x), open_backbone(net, recipe.backbone).cpu().eval()(x))
    files = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    assert lookalike.pretrain(recipe, run, backbone=Net()) == done
    assert {path: path.stat().st_mtime_ns for path in done.iterdir()} == files
