"""The papers' protocols: what is trained, chosen and scored, on any number of ranks, and after a
kill.
"""

import json
import math
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lookalike
import toy
from lookalike import comm, rng
from lookalike.data.images import ArrayImages, subset
from lookalike.data.order import EpochOrder
from lookalike.data.sources import Digits
from lookalike.errors import Error
from lookalike.evaluation.features import Features
from lookalike.evaluation.protocols import PROTOCOLS, Numbers, Subject
from lookalike.evaluation.protocols import training as module
from lookalike.evaluation.protocols.attentive import Attentive, Attentives, heads_for
from lookalike.evaluation.protocols.sgd import DinoV2, Linears, Mae, MoCo, Sgd
from lookalike.evaluation.protocols.training import shown
from lookalike.experiment import PROTOCOL
from lookalike.models import Architecture
from lookalike.models.taps import Tap, tapped
from lookalike.runs import Run
from lookalike.scoring.linear import split
from lookalike.stages import probe as stage
from lookalike.views import Symmetric, make, normalise, resize_crop, scale

VIT = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
NUMBERS = Numbers((1e-2,), 0.25, 30, 64, 0, "fp32", 7)
NOT_ASKED = Features(torch.empty(0, 1), torch.empty(0), 0, torch.empty(0))
SGD = Sgd(epochs=3, batch=50, lr=(0.01, 1.0, 30.0), crop=(0.4, 1.0), weight_decay=1e-4)
FEATURES = Sgd(epochs=2, batch=30, lr=(0.3, 3.0), blocks=(1, 2), tokens=("token", "mean"))
BATCHNORM = Mae(epochs=3, batch=50, lr=(20.0, 300.0), warmup_epochs=1, tokens=("pool",))
ATTENTIVE = Attentive(epochs=2, batch=50, lr=(1e-3, 1e-2, 5e-2), heads=3)
ALL = {"sgd": SGD, "features": FEATURES, "mae": BATCHNORM, "attentive": ATTENTIVE}


def backbone():
    torch.manual_seed(0)
    return Architecture("vit_tiny_patch16_224", size=16, channels=1, args=VIT).build().eval()


@cache
def digits():
    return Digits().split("train"), Digits().split("test")


def subject(folder=None, tap=Tap()) -> Subject:  # noqa: B008 (immutable)
    train, test = digits()
    sets = subset(train, range(170)), subset(test, range(90))
    return Subject((NOT_ASKED, NOT_ASKED), sets, tapped(backbone(), tap), NUMBERS, folder)


@pytest.fixture(scope="module")
def found():
    """Of each protocol, without a break, on one rank."""
    torch.set_num_threads(1)
    return {name: keys.score(subject()) for name, keys in ALL.items()}


def by_hand(lr: float, seen_N: torch.Tensor) -> nn.Linear:
    """Sgd's training with one rate, of the rows `seen_N`, in plain torch."""
    images, model = subject().images[0], backbone()
    linear = nn.Linear(model.dim, 10)
    generator = torch.Generator().manual_seed(rng.seed(7, "linear heads"))
    linear.weight.data = torch.randn(10, model.dim, generator=generator) * 0.01
    nn.init.zeros_(linear.bias)
    optimizer = torch.optim.SGD(linear.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
    policy = Symmetric(views=1, crop=(0.4, 1.0), flip=0.5, jitter=0, grey=0, blur=0)
    mean, std = model.architecture.normalisation()
    order = EpochOrder(170, 50, 1, 7)
    for epoch in range(3):
        for step in range(3):
            ids_N = order.ids(epoch, step)
            canvas_NCHW = torch.stack([images.read(int(i)) for i in ids_N])
            how = {"size": 16, "mean": mean, "std": std, "seed": 7, "device": torch.device("cpu")}
            (view_NCHW,) = make(policy, canvas_NCHW, ids_N, epoch, **how)
            with torch.no_grad():
                h_ND = model(view_NCHW)
            there_N = torch.isin(ids_N, seen_N)
            optimizer.zero_grad()
            F.cross_entropy(linear(h_ND)[there_N], images.labels[ids_N[there_N]]).backward()
            optimizer.step()
            schedule.step()
    return linear


def top1(linear: nn.Linear, images, rows) -> float:
    model = backbone()
    canvas = torch.stack([images.read(int(i)) for i in rows])
    x = normalise(resize_crop(scale(canvas), 16), *model.architecture.normalisation())
    with torch.no_grad():
        return (linear(model(x)).argmax(1) == images.labels[rows]).double().mean().item()


def test_every_rate_is_trained_as_alone_in_plain_torch_and_the_best_held_out_is_scored(found):
    train, test = subject().images
    fit_rows, held_rows = split(train.labels, 0.25, 7)
    held_out = {lr: top1(by_hand(lr, fit_rows), train, held_rows) for lr in SGD.lr}
    best = max(held_out, key=held_out.get)
    assert len(set(held_out.values())) == 3
    final = by_hand(best, torch.arange(170))
    scores, head = found["sgd"].scores, found["sgd"].head
    torch.testing.assert_close(head.weight_CD, final.weight.data, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(head.bias_C, final.bias.data, rtol=1e-4, atol=1e-5)
    assert scores == {
        "sgd/top1": pytest.approx(top1(final, test, torch.arange(90))),
        "sgd/top5": scores["sgd/top5"],
        "sgd/lr": best,
        "sgd/held_out_top1": pytest.approx(held_out[best]),
        "sgd/lr_edge": best != 1.0,
    }
    assert scores["sgd/top1"] <= scores["sgd/top5"] < 1
    assert found["sgd"].protocol["sgd"]["chosen on"] == "0.25 of each class of train"


def on_ranks(name: str):
    found = ALL[name].score(subject())
    return found.scores, found.head and list(found.head[:4])


@pytest.mark.parametrize(("name", "world"), [*((name, 2) for name in ALL), ("sgd", 4)])
def test_on_any_number_of_ranks_alike(name, world, ranks, found):
    """50 and 30 rows, 6 and 4 classifiers, do not divide evenly."""
    head = found[name].head
    assert (head is None) == (name in ("features", "attentive"))
    for scores, other in ranks.run(on_ranks, name, world=world):
        assert scores == pytest.approx(found[name].scores, abs=1e-6)
        if head is not None:
            for one, same in zip(other, head[:4], strict=True):
                torch.testing.assert_close(one, same, rtol=1e-5, atol=1e-6)


def few_on_ranks(name: str):
    given = subject()
    few = subset(given.images[0], range(30)), subset(given.images[1], range(3))
    return replace(ALL[name], epochs=1, batch=3).score(replace(given, images=few)).scores


@pytest.mark.parametrize("name", ["sgd", "attentive"])
def test_a_rank_may_have_nothing_to_do(name, ranks):
    """3 images for 4 ranks."""
    found = few_on_ranks(name)
    assert ranks.run(few_on_ranks, name, world=4) == [pytest.approx(found, abs=1e-6)] * 4


class Killed(Exception):
    pass


def killed_at(step: int, learner: type, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The learner's `step` dies at its call number `step`; how often it is called from then on."""
    real, calls = learner.step, []

    def counted(self, *args):
        calls.append(1)
        if len(calls) == step:
            raise Killed
        real(self, *args)

    monkeypatch.setattr(learner, "step", counted)
    return calls


@pytest.mark.parametrize(("name", "learner", "at"), [("sgd", Linears, 8), ("mae", Linears, 5)])
def test_a_killed_one_goes_on_with_the_same_bytes(name, learner, at, found, tmp_path, monkeypatch):
    calls = killed_at(at, learner, monkeypatch)
    with pytest.raises(Killed):
        ALL[name].score(subject(tmp_path))
    (path,) = tmp_path.iterdir()
    done = (at - 1) // 3 * 3
    again = ALL[name].score(subject(tmp_path))
    assert len(calls) - at == 9 - done
    assert again.scores == found[name].scores
    for one, other in zip(again.head or (), found[name].head or (), strict=True):
        assert one is True or torch.equal(one, other)
    assert not path.exists()


def test_a_killed_attentive_probe_goes_on_too(found, tmp_path, monkeypatch):
    outcomes, real = [], module.learn

    def watched(*args):
        outcomes.append(real(*args))
        return outcomes[-1]

    monkeypatch.setattr("lookalike.evaluation.protocols.attentive.learn", watched)
    ATTENTIVE.score(subject())
    calls = killed_at(5, Attentives, monkeypatch)
    with pytest.raises(Killed):
        ATTENTIVE.score(subject(tmp_path))
    again = ATTENTIVE.score(subject(tmp_path))
    assert len(calls) == 5 + 3
    assert again.scores == found["attentive"].scores
    first, last = (outcome.learner.state() for outcome in outcomes)
    assert all(torch.equal(first[name], last[name]) for name in first)


def test_other_keys_weights_taps_or_images_begin_anew(tmp_path, monkeypatch):
    killed_at(4, Linears, monkeypatch)
    with pytest.raises(Killed):
        SGD.score(subject(tmp_path))
    given = subject(tmp_path)
    with torch.no_grad():
        other = tapped(backbone(), Tap())
        next(other.parameters()).add_(1)
    fewer = subset(given.images[0], range(150)), given.images[1]
    for keys, changed in (
        (replace(SGD, weight_decay=0.0), given),
        (SGD, subject(tmp_path, Tap(-2))),
        (SGD, replace(given, model=other)),
        (SGD, replace(given, images=fewer)),
        (SGD, replace(given, numbers=NUMBERS._replace(seed=8))),
    ):
        assert module.kept(module.Kept(changed, keys, "sgd").path) is None
    assert module.kept(module.Kept(given, SGD, "sgd").path).about == {"epochs": 1}


def test_a_damaged_file_is_not_believed(found, tmp_path, monkeypatch, capsys):
    killed_at(4, Linears, monkeypatch)
    with pytest.raises(Killed):
        SGD.score(subject(tmp_path))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])
    assert SGD.score(subject(tmp_path)).scores == found["sgd"].scores
    assert "computed anew" in capsys.readouterr().err


@pytest.mark.parametrize("name", ALL)
def test_what_is_chosen_knows_nothing_of_test_labels(name, found):
    given = subject()
    train, test = given.images
    shuffled = test.annotations._replace(labels=(test.labels + 3) % 10)
    pixels = torch.stack([test.read(i) for i in range(len(test))])
    other = replace(given, images=(train, ArrayImages(pixels, shuffled)))
    scores, head = ALL[name].score(other), found[name].head
    chosen = [key for key in scores.scores if not key.endswith(("top1", "top5"))]
    chosen.append(f"{ALL[name].title}/held_out_top1")
    assert [scores.scores[key] for key in chosen] == [found[name].scores[key] for key in chosen]
    top = f"{ALL[name].title}/top1"
    assert scores.scores[top] != found[name].scores[top]
    if head is not None:
        assert torch.equal(scores.head.weight_CD, head.weight_CD)


def test_held_out_images_never_move_what_is_chosen_by_them():
    given = subject()
    train = given.images[0]
    held_rows = split(train.labels, 0.25, 7)[1]
    pixels = torch.stack([train.read(i) for i in range(len(train))])
    pixels[held_rows] = pixels[held_rows].flip(2)
    other = replace(given, images=(ArrayImages(pixels, train.annotations), given.images[1]))
    states = []
    for one in (given, other):
        learner = Linears(one.model, [Tap()], SGD, 10, 0)
        fits_N = torch.ones(170, dtype=torch.bool).index_fill(0, held_rows, False)
        kept = module.Kept(one, SGD, "sgd")
        module._train(one, SGD, learner, train.labels, fits_N, "sgd", kept)
        states.append(learner.state()["0.weight_KCD"])
    assert torch.equal(states[0][:3], states[1][:3])
    assert not torch.equal(states[0][3:], states[1][3:])


def test_one_rate_is_trained_on_all_of_train_and_nothing_is_chosen():
    alone = replace(SGD, lr=1.0).score(subject())
    assert set(alone.scores) == {"sgd/top1", "sgd/top5", "sgd/lr"}
    final = by_hand(1.0, torch.arange(170))
    torch.testing.assert_close(alone.head.weight_CD, final.weight.data, rtol=1e-4, atol=1e-5)
    assert alone.protocol["sgd"]["chosen on"] == "nothing is chosen"


def test_the_features_of_a_tap_are_those_that_are_trained_on(found):
    of_tap = replace(SGD, lr=1.0).score(subject(tap=Tap(-2, 1, "mean")))
    of_key = replace(SGD, lr=1.0, tokens=("mean",)).score(subject(tap=Tap(-2)))
    assert of_tap.scores == of_key.scores
    assert of_key.head is None
    assert of_tap.head is not None
    assert found["features"].scores["sgd/blocks"] in (1, 2)
    assert found["features"].scores["sgd/tokens"] in ("token", "mean")


def test_features_are_chosen_by_what_each_alone_reaches_held_out(found):
    alone = {
        (blocks, kind): replace(FEATURES, blocks=(blocks,), tokens=(kind,)).score(subject()).scores
        for blocks in FEATURES.blocks
        for kind in FEATURES.tokens
    }
    best = max(alone, key=lambda one: alone[one]["sgd/held_out_top1"])
    expected = alone[best] | {"sgd/blocks": best[0], "sgd/tokens": best[1]}
    assert found["features"].scores == expected
    assert len({scores["sgd/held_out_top1"] for scores in alone.values()}) > 2


def test_the_rates_fall_as_the_papers_have_it():
    moco = [30 * MoCo().factor(step, 10) for step in (0, 599, 600, 799, 800, 999)]
    assert moco == pytest.approx([30, 30, 3, 3, 0.3, 0.3])
    mae = Mae()
    assert [mae.factor(step, 4) for step in (0, 39, 40)] == pytest.approx([1 / 40, 1, 1])
    assert mae.factor(200, 4) == pytest.approx(0.5)
    assert [min(DinoV2().lr), max(DinoV2().lr), len(DinoV2().lr)] == [4e-5, 0.4, 13]


def test_half_precision_moves_the_scores_a_little_only(found):
    given = subject()
    half = SGD.score(replace(given, numbers=NUMBERS._replace(precision="bf16")))
    assert half.scores["sgd/top1"] == pytest.approx(found["sgd"].scores["sgd/top1"], abs=0.1)
    assert not torch.equal(half.head.weight_CD, found["sgd"].head.weight_CD)


def test_an_unreadable_image_counts_with_the_label_of_what_took_its_place(tmp_path, monkeypatch):
    for part in ("train", "test"):
        for label in ("a", "b"):
            made = toy.folder_of_images(tmp_path / "made" / part / label, 12)
            shutil.copytree(made / "train", tmp_path / "data" / part / label)
    for name in (*(f"train/a/0{n}" for n in range(2, 8)), "test/b/05"):
        (tmp_path / "data" / f"{name}.png").write_bytes(b"nothing")
    data = f"data={{name: folder, path: '{tmp_path / 'data'}', canvas: 16, channels: 1}}"
    protocol = "probe.protocols=[{name: sgd, epochs: 2, batch: 8, lr: 0.1}]"
    recipe = toy.recipe(data, protocol, "probe.workers=0", "probe.baselines=false", "probe.k=1")
    train = stage.job(Run(recipe, None), toy.architecture()).sets[0]
    seen, learnt = [], []
    for batch in module._batches(train, EpochOrder(24, 8, 1, 3), 0, 6, NUMBERS):
        seen.append(shown(batch))
        assert [bad.sample for bad in batch.bad] == batch.ids_B[seen[-1] != batch.ids_B].tolist()
    real = Linears.step

    def step(self, looked, labels_B, *rest):
        learnt.append(labels_B)
        real(self, looked, labels_B, *rest)

    monkeypatch.setattr(Linears, "step", step)
    scores = lookalike.probe(toy.architecture("resnet").build().eval(), recipe)
    assert torch.equal(torch.cat(learnt), train.labels[torch.cat(seen)])
    orders = [EpochOrder(24, 8, 1, 3).ids(epoch, step) for epoch in range(2) for step in range(3)]
    assert not torch.equal(torch.cat(learnt), train.labels[torch.cat(orders)])
    assert scores["sgd/top1"] * 23 == pytest.approx(round(scores["sgd/top1"] * 23))
    assert scores["dropped"] == 7


def test_a_protocol_that_stands_twice_is_refused():
    words = "probe.protocols=[{name: sgd, batch: 9}, {name: sgd, batch: 8}]"
    with pytest.raises(Error, match=r"toy.yaml:13:1: probe: protocols: sgd stands twice"):
        toy.recipe(words)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("{name: dinov2, batch: 2000}", "dinov2: 1438 train images are fewer than one batch of 2"),
        ("moco", None),
        ("{name: dinov2, batch: 99}", "probe.tokens: token: resnet18 has no class token"),
        ("{name: sgd, blocks: [9]}", "layer -1 with blocks 9 reaches 9 blocks back, and resnet18"),
        ("{name: attentive, batch: 1439}", "attentive: 1438 train images are fewer than one batch"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_done(word, said):
    recipe = toy.recipe(f"probe.protocols=[lbfgs, {word}]")
    run = Run(recipe, None)
    if said is None:
        stage.job(run, toy.architecture())
        return
    with pytest.raises(Error, match=said) as error:
        stage.job(run, toy.architecture())
    assert str(error.value).startswith("probe")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"name": "mae", "epochs": 5}, "warmup_epochs 10 is longer than epochs 5"),
        ({"name": "sgd", "crop": [0.9, 0.2]}, "has its larger value first"),
        ({"name": "sgd", "lr": []}, "lr"),
        ({"name": "attentive", "lr": 0}, "lr"),
    ],
)
def test_keys_that_make_no_sense_are_refused(keys, said):
    with pytest.raises(Error, match=said):
        toy.recipe(f"probe.protocols=[{json.dumps(keys)}]")


def test_attentive_heads_divide_the_width():
    assert [heads_for(width, None) for width in (24, 192, 384, 512, 100)] == [1, 3, 6, 8, 1]
    with pytest.raises(Error, match="5 heads do not divide 24 dimensions"):
        heads_for(24, 5)
    with pytest.raises(Error, match="5 heads do not divide"):
        Attentive(epochs=1, batch=50, heads=5).score(subject())


def test_feature_maps_count_as_patches():
    torch.manual_seed(0)
    given = replace(subject(), model=toy.architecture("resnet").build().eval())
    keys = Attentive(epochs=8, batch=30, lr=5e-2, crop=(1.0, 1.0), flip=0.0)
    assert keys.score(given).scores["attentive/top1"] > 0.25


def test_the_protocol_is_told_beside_the_scores(found):
    for name, one in found.items():
        (told,) = json.loads(json.dumps(one.protocol)).values()
        assert told["epochs"] == ALL[name].epochs
        assert told["learning rates"] == list(ALL[name].rates)
        assert "arXiv" in told["as in"] or "ours" in told["as in"]


def test_every_protocol_is_a_choice_of_recipes():
    for name in PROTOCOLS:
        made = PROTOCOL.spec(name).build()
        assert getattr(made, "title", name) == name


def test_the_stage_scores_by_all_of_them(tmp_path, capsys):
    few = "epochs: 3, batch: 64, crop: [0.8, 1], flip: 0"
    words = (
        f"probe.protocols=[lbfgs, {{name: sgd, lr: 1.0, {few}}}, {{name: attentive, {few}}}]",
        "probe.baselines=[pixels]",
        "probe.blocks=2",
    )
    recipe = toy.recipe("data={name: digits, test_fraction: 0.7}", *words)
    scores = lookalike.probe(backbone(), recipe, tmp_path)
    for name in ("linear", "sgd", "attentive"):
        assert 0.15 < scores[f"{name}/top1"] <= scores[f"{name}/top5"] <= 1
    assert "pixels/linear/top1" in scores
    assert "pixels/sgd/top1" not in scores
    assert not list(tmp_path.glob("probe-*"))


def test_few_images_are_one_batch():
    given = subject()
    few = replace(given, images=(subset(given.images[0], range(30)), given.images[1]))
    assert math.isfinite(SGD.score(few).scores["sgd/top1"])
    assert comm.world_size() == 1
