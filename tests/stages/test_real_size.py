"""What comes after pretraining, at the size that each recipe has: its backbone and pixels, on a
handful of images.

Recipes that differ in their pretraining alone share what comes after it, and one of them is tried
for all.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lookalike
from lookalike.experiment import load_recipe
from lookalike.models import card, folder_files
from lookalike.pipeline import bare, draw
from lookalike.recipe import Recipe, digest
from lookalike.runs import Run
from lookalike.scoring import knn, linear
from lookalike.search import results
from lookalike.show import show
from lookalike.stages.search import open_search
from lookalike.training.health import measure
from miniatures import image, trainable_cub, trainable_lfw, trainable_market, trainable_sop

RECIPES = Path(__file__).parents[2] / "recipes"
FASHION = Path("/usr/share/datasets/fashion-mnist")
PUBLISHED = {
    "cub": trainable_cub,
    "sop": trainable_sop,
    "market1501": trainable_market,
    "lfw": trainable_lfw,
}
AFTER = ("backbone", "probe", "finetune", "evaluate", "export")
# This one runs in every suite, narrower: the default probe of an ImageNet recipe, and a ViT.
QUICK = {"dino_vit_small_imagenet"}


def imagenet(root: Path) -> Iterator[str]:
    """Two classes; sides as photographs have them."""
    for split, count in (("train", 4), ("val", 2)):
        for one in range(2):
            for k in range(count):
                image(root / split / f"n{one:08d}" / f"{k}.jpg", one, 500, 376)
    yield f"data.path={root}"
    yield from ("probe.max_iterations=20", "data.labels=folders")
    yield from ("pretrain.batch=4", "pretrain.accumulate=1", "pretrain.micro_batch=null")


def maker(name: str):
    kind = name.split("_")[0]
    return PUBLISHED.get(kind, None if kind in ("digits", "quickstart", "fashion") else imagenet)


def groups() -> dict[str, list[str]]:
    """The recipes by the first of those that are alike in what comes after pretraining."""
    found: dict[str, list[str]] = {}
    keys: dict[str, str] = {}
    for path in sorted(RECIPES.glob("*.yaml")):
        recipe = load_recipe(path)
        key = digest(recipe, *AFTER) + recipe.data.name
        found.setdefault(keys.setdefault(key, path.stem), []).append(path.stem)
    return found


GROUPS = groups()


def small(recipe: Path, root: Path, graph: bool = True) -> Recipe:
    """The recipe on a handful of images: fewer a batch, one epoch, everything else its own."""
    make = maker(recipe.stem)
    words = list(make(root)) if make else []
    values = load_recipe(recipe)
    if not values.probe:
        words = [word for word in words if not word.startswith("probe")]
    if values.finetune and not values.finetune.estimator:
        words += ["finetune.epochs=1", "finetune.warmup_epochs=0", "finetune.workers=0"]
        words += ["finetune.schedule=cosine"]
        words += ["finetune.classes_per_batch=2", "finetune.per_class=2"]
        words += ["finetune.head_epochs=0"] if values.finetune.head_epochs else []
    if values.evaluate and recipe.stem.startswith("lfw"):
        words += ["evaluate.fars=[0.2]"]
    if not graph:  # the quick form: a ViT of as many tokens, a fourth as wide
        words += ["backbone.name=vit_tiny_patch16_224"]
        words += ["export.onnx=false"] if values.export else []
    return load_recipe(recipe, dict.fromkeys(words))


@pytest.mark.filterwarnings("ignore:.*where the published set has")
@pytest.mark.parametrize(
    ("name", "graph"),
    [
        *((name, False) for name in QUICK),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in GROUPS),
    ],
)
def test_what_follows_pretraining_ends_at_its_real_size(name, graph, tmp_path, capsys):
    """`graph`: with its ONNX, which takes as long as all the rest."""
    torch.set_num_threads(2)
    if name == "fashion_mnist" and not FASHION.exists():
        pytest.skip("apt-get install dataset-fashion-mnist")
    recipe = small(RECIPES / f"{name}.yaml", tmp_path / "images", graph)
    run = tmp_path / "run"
    values = recipe
    assert "backbone" in show(recipe)
    backbone = bare(Run(recipe), None)
    card.write_model(
        run / "backbone",
        folder_files(backbone),
        card.facts(backbone.architecture, backbone.dim, {}),
    )
    if values.pretrain:
        draw(recipe, tmp_path / "views.html", images=2)
        assert 0 < (tmp_path / "views.html").stat().st_size < 20e6
    if values.probe:
        scores = lookalike.probe(run / "backbone", recipe, run)
        held = json.loads((run / "probe.json").read_text())
        assert {name: held[name] for name in scores} == json.loads(json.dumps(scores))
        assert {"linear/top1", "untrained/linear/top1", "pixels/linear/top1"} <= scores.keys()
    (run / "probe.json").unlink(missing_ok=True)
    if values.finetune:
        (run / "recipe.yaml").write_text(recipe.text())
        assert lookalike.finetune(run / "backbone", recipe, run) == run / "finetune/embedding"
    if values.evaluate:
        own = run / "finetune/embedding" if values.finetune else run / "backbone"
        assert lookalike.evaluate(own, recipe, run)["task"] in (
            "retrieval",
            "reidentification",
            "verification",
        )
        assert (run / "evaluate.html").stat().st_size < 20e6
    if values.export:
        files = {
            p.name
            for p in lookalike.export(run / "backbone", recipe, tmp_path / "export").iterdir()
        }
        assert {"model.safetensors", "card.json", "model.onnx"} - {
            "" if values.export.onnx else "model.onnx"
        } <= files
    if maker(name):
        index = open_search(tmp_path / "index", str(tmp_path / "images"), str(run / "backbone"))
        first = index.path(0)
        (answer,) = results.query(index, [first], k=3)
        assert answer.rows[0] == 0
        assert answer.near[0] == pytest.approx(1, abs=1e-3)


def test_every_recipe_is_tried_for_itself_or_by_one_that_is_alike_after_pretraining():
    assert {name for names in GROUPS.values() for name in names} == {
        p.stem for p in RECIPES.glob("*.yaml")
    }
    assert set(GROUPS) >= QUICK


# ---- at the size of ImageNet, counted where it cannot be run here


@pytest.mark.parametrize("name", sorted({name for names in GROUPS.values() for name in names}))
def test_the_measures_of_health_take_little_of_any_recipe_s_embeddings(name):
    """Of a batch as wide as the recipe's projector makes it, in tensors that are never as large as
    D × D.
    """
    pretrain = load_recipe(RECIPES / f"{name}.yaml").pretrain
    if pretrain is None:
        return
    widths = [pretrain.method.args.get(key) for key in ("projector", "head", "dim")]
    width = next((w[-1] if isinstance(w, tuple | list) else w for w in widths if w), 2048)
    rows = min(pretrain.batch // pretrain.accumulate, 512)
    largest = Largest()
    with largest:
        found = measure([torch.randn(rows, width, generator=torch.Generator().manual_seed(0))] * 2)
    assert found["health/std"] == pytest.approx(1, abs=0.1)
    assert largest.numbers <= 4 * max(rows * width, 512 * 512)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """The most numbers that any tensor made meanwhile held."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else (made,):
            if isinstance(tensor, torch.Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return made


def test_a_linear_probe_of_more_dimensions_than_images_holds_no_matrix_of_dimensions():
    """The raw pixels of a 256-pixel canvas were 196,608 wide: D × D in double are 288 GiB."""
    generator, labels_N = torch.Generator().manual_seed(0), torch.arange(60) % 3
    x_ND = torch.randn(60, 196_608, generator=generator) + labels_N[:, None]
    largest = Largest()
    with largest:
        found = linear.probe(
            x_ND[:48], labels_N[:48], x_ND[48:], labels_N[48:], grid=(1e-2,), max_iterations=20
        )
    assert found["top1"] == 1
    assert largest.numbers <= x_ND.numel()


def test_knn_of_imagenet_s_rows_holds_few_of_them_at_once():
    """1,281,167 rows, 1,000 classes, of small width: what is held beside them is below 2 GiB."""
    rows, labels_N = 1_281_167, torch.arange(1_281_167) % 1000
    angle_N = labels_N * (2 * torch.pi / 1000)
    bank_ND = torch.stack([angle_N.cos(), angle_N.sin()], dim=1)
    largest = Largest()
    with largest:
        found = knn.accuracy(bank_ND, labels_N, bank_ND[:40], labels_N[:40], k=20)
    assert found == {"top1": 1.0, "top5": 1.0}
    assert largest.numbers * 8 < 2**31
    assert largest.numbers >= rows
