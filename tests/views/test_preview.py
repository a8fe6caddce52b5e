"""Laws of a preview: what it shows is what the run would train on, and it names what was drawn."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

import toy
from lookalike.cli import app
from lookalike.data import Digits
from lookalike.data.loader import batches
from lookalike.data.order import EpochOrder, order_of
from lookalike.data.pack import Packing, pack
from lookalike.errors import RecipeError
from lookalike.pipeline import draw as preview
from lookalike.runs import Run
from lookalike.stages import finetune
from lookalike.stages.preview import describe
from lookalike.views import Symmetric, fused
from lookalike.views.randaugment import OPERATIONS

SIDE = torch.tensor([24])
MULTI = (
    "pretrain={method: dino, views: {name: multi_crop, small: 2, small_size: 8}, batch: 8, epochs: "
    "1, "
    "warmup_epochs: 0, optimizer: {name: adamw, lr: 1e-3}}"
)


def images(html: str) -> list[np.ndarray]:
    found = re.findall(r'base64,([^"]+)"', html)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for data in found]


@pytest.mark.parametrize("crop_on", ["device", "host"])
def test_the_page_shows_the_first_images_of_the_epoch_with_the_views_of_the_run(tmp_path, crop_on):
    recipe = toy.recipe(f"pretrain.crop_on={crop_on}")
    lines = preview(recipe, tmp_path / "a.html", images=3, epoch=1)
    settings, train = recipe.pretrain, Digits().split("train")
    order, policy = EpochOrder(len(train), settings.batch, 1, 3), settings.views.build()
    step = order.steps_per_epoch
    how = {
        "first_step": step,
        "last_step": step + 1,
        "rank": 0,
        "world": 1,
        "workers": 0,
        "pin": False,
    }
    (batch,) = batches(train, order, **how, host_crops=settings.host_crops(policy, 16))
    views = policy(batch.pixels, batch.ids_B, seed=3, epoch=1, size=16, mean=[0.0], std=[1.0])
    shown = images((tmp_path / "a.html").read_text())
    assert len(shown) == 3 * 3
    for b, i in enumerate(batch.ids_B[:3].tolist()):
        assert lines[3 * b] == f"{i} {train.name(i)}"
        wanted = [
            train.read(i)[0].numpy(),
            *((view[b, 0] * 255).round().byte().numpy() for view in views),
        ]
        for tile, image in zip(shown[3 * b : 3 * b + 3], wanted, strict=True):
            times = len(tile) // len(image)
            assert np.array_equal(tile[::times, ::times, 0], image)


def test_images_in_windows_come_in_the_order_of_the_run(tmp_path):
    pack(Digits(), tmp_path / "shards", Packing(shard_samples=500), workers=0)
    recipe = toy.recipe(
        f"data={{name: shards, path: {tmp_path}/shards, channels: 1, shuffle: window, window: 100}}"
    )
    lines = preview(recipe, tmp_path / "a.png", images=8, epoch=2)
    order = order_of(recipe.data.build().split("train", 16), 144, 1, 3)
    assert order.windows is not None
    assert [int(line.split()[0]) for line in lines if not line.startswith(" ")] == order.ids(2, 0)[
        :8
    ].tolist()


def test_the_sheet_holds_a_row_a_image_with_small_views_beside_the_large(tmp_path):
    preview(toy.recipe(MULTI), tmp_path / "a.png", images=5)
    with Image.open(tmp_path / "a.png") as sheet:
        # Canvas 8, views 16, small ones 8 pixels: all enlarged to 96, four of white between.
        assert sheet.size == (5 * 100 + 4, 5 * 100 + 4)


def test_the_words_say_what_happens_in_its_order():
    drawn = {
        "box": torch.tensor([[1, 2, 3, 4]]),
        "flip": torch.tensor([True]),
        "jitter": torch.tensor([True]),
        "order": torch.tensor([[3, 0, 2, 1]]),
        "factors": torch.tensor([[1.25, 0.5, 0.75, -0.1]]),
        "grey": torch.tensor([True]),
        "blur": torch.tensor([True]),
        "sigma": torch.tensor([1.5]),
        "solarize": torch.tensor([True]),
    }
    colours = "hue -0.10, brightness 1.25, saturation 0.75, contrast 0.50, grey"
    assert describe(drawn, 0, 3) == f"crop 3×4 at 1,2, flip, {colours}, blur σ 1.50, solarize"
    assert "brightness 1.25, contrast 0.50, blur" in describe(drawn, 0, 1)
    nothing = {name: torch.zeros_like(value) for name, value in drawn.items()}
    assert describe(nothing, 0, 3) == "crop 0×0 at 0,0"


def test_the_words_say_what_is_moved_augmented_and_erased():
    policy = Symmetric(
        views=1,
        jitter=0.0,
        blur=0.0,
        grey=0.0,
        flip=0.0,
        pad=3,
        randaugment=2,
        erase=1.0,
    )
    drawn = policy.each(torch.arange(1), seed=0, epoch=0, heights_B=SIDE, widths_B=SIDE)[0]
    drawn |= {
        "shift": torch.tensor([[2, -1]]),
        "operations": torch.tensor([[OPERATIONS.index("rotate"), OPERATIONS.index("equalize")]]),
        "strengths": torch.tensor([[-0.3, 0.3]]),
    }
    top, left, height, width = fused.erased_boxes(drawn, (16, 16))[0][0].tolist()
    words = describe(drawn, 0, 3, (16, 16)).split(", ")
    assert words[1:] == [
        "moved by -2,+1",
        "rotate -9",
        "equalize",
        f"erased {height}×{width} at {top},{left}",
    ]


def test_without_pretraining_it_shows_the_views_of_fine_tuning(tmp_path):
    words = ("pretrain=null", "probe=null", "backbone={name: resnet18, size: [24, 12], pool: avg,")
    tuned = toy.recipe(
        *words[:2],
        words[2] + " channels: 1, pretrained: true}",
        "finetune.views={name: reidentify, pad: 2, erase: 1.0}",
    )
    lines = preview(tuned, tmp_path / "a.html", images=4, epoch=1)
    assert len(lines) == 8
    assert all("moved by" in line and "erased" in line for line in lines[1::2])
    order = finetune.job(Run(tuned), Run(tuned).backbone(published=False)).order
    assert [int(line.split()[0]) for line in lines[::2]] == order.ids(1, 0)[:4].tolist()
    # What is erased is the mean that normalises, grey, in every tile.
    tiles = images((tmp_path / "a.html").read_text())
    assert all((tile == 128).any() for tile in tiles[1::2])


def test_names_of_files_are_text_in_the_page(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(8):
        name = f"<script>alert({i})<&.png"
        Image.fromarray(np.full((9, 9, 3), 20 * i, np.uint8)).save(tmp_path / "photos" / name)
    words = (
        f"data={{name: folder, path: {tmp_path}/photos, test_fraction: 0}}",
        "backbone.channels=3",
    )
    preview(
        toy.recipe(*words, "pretrain.batch=8", "probe=null", "finetune=null", "evaluate=null"),
        tmp_path / "a.html",
    )
    html = (tmp_path / "a.html").read_text()
    assert "<script>" not in html
    assert "&lt;script&gt;alert(3)&lt;&amp;.png" in html


def test_what_cannot_be_shown_is_refused_in_one_line(tmp_path):
    with pytest.raises(RecipeError, match=r"pretrain: not there.*add the section"):
        preview(toy.recipe("pretrain=null", "finetune=null"), tmp_path / "a.html")
    with pytest.raises(RecipeError, match=r"a\.jpg: a preview is a \.png or an \.html"):
        preview(toy.recipe(), tmp_path / "a.jpg")
    assert list(tmp_path.iterdir()) == []


def test_the_verb_writes_and_says_where(tmp_path, capsys):
    words = [
        "preview",
        "recipes/quickstart.yaml",
        "--out",
        str(tmp_path / "q.png"),
        "--images",
        "2",
    ]
    app(words, standalone_mode=False)
    said = capsys.readouterr().out
    assert said.count("view 0: crop") == 2
    assert said.endswith(f"written to {tmp_path}/q.png\n")
