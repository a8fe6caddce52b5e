"""Pooling, heads and what is trained: against loops, hand-written tables and timm's own, on one
rank and on two.
"""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lookalike
import toy
from lookalike import optim
from lookalike.errors import BackboneError, Error, RunError
from lookalike.evaluation.features import embedder, extract
from lookalike.experiment import Export
from lookalike.folder import write_folder
from lookalike.metric.finetune_module import FinetuneModule
from lookalike.metric.objectives import OBJECTIVE, Objective
from lookalike.models import Architecture, Backbone, folder_files, layers, load_backbone, repooled
from lookalike.models.embedding import Embedding, embedding_files
from lookalike.optim import LrScale, Progress
from lookalike.process import fault
from lookalike.process.signals import Stopped
from lookalike.recipe import from_text
from lookalike.scoring import retrieval
from lookalike.show import show
from lookalike.stages import export as room

RESNET = Architecture("resnet18", 32, args={"channels": [8, 8, 16, 16], "layers": [1, 2, 1, 1]})
SWIN = Architecture(
    "swin_tiny_patch4_window7_224",
    32,
    args={"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
)
# A class token and four registers before 16 patches.
VIT = Architecture(
    "vit_small_patch14_reg4_dinov2",
    16,
    args={"embed_dim": 24, "depth": 3, "num_heads": 2, "patch_size": 4},
)
POOLS = {
    "vit": ("token", "avg", "max", "gem", "cls_gem"),
    "resnet": ("avg", "max", "gem"),
    "swin": ("avg", "gem"),
}
EACH = [(name, pool) for name, pools in POOLS.items() for pool in pools]
NAMED = {"vit": VIT, "resnet": RESNET, "swin": SWIN}


def stirred(module: nn.Module, seed: int = 0) -> Any:
    """Every number moved, running statistics too, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator))
    return module.eval()


def built(name: str, pool: str | None = None) -> Backbone:
    torch.manual_seed(0)
    return stirred(replace(NAMED[name], pool=pool).build())


def images(a: Architecture, batch: int = 2) -> Tensor:
    shape = (batch, a.channels, a.size, a.size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(5))


# --- pooling --------------------------------------------------------------------------------------


def pooled(rows: list[list[float]], how: str, p: float = 3.0) -> list[float]:
    """One image's places, a row of D numbers each, number by number."""
    columns = list(zip(*rows, strict=True))
    if how == "avg":
        return [sum(column) / len(column) for column in columns]
    if how == "max":
        return [max(column) for column in columns]
    return [(sum(max(v, 1e-6) ** p for v in column) / len(column)) ** (1 / p) for column in columns]


def by_hand(backbone: Backbone, x: Tensor, how: str) -> Tensor:
    """From timm's unpooled features, which have not seen a norm that follows the pooling."""
    h = backbone.model.forward_features(x).detach()
    if how == "token":
        return h[:, 0]
    if h.dim() == 4:
        h = (
            h.flatten(1, 2)
            if backbone.architecture.name.startswith("swin")
            else h.flatten(2).transpose(1, 2)
        )
    places = h[:, 5:] if "vit" in backbone.architecture.name else h
    kind = "gem" if how == "cls_gem" else how
    p = float(backbone.gem.p.detach()) if backbone.gem else 3.0
    found = torch.tensor([pooled(rows, kind, p) for rows in places.tolist()])
    if how in ("avg", "max"):
        found = getattr(backbone.model, "fc_norm", nn.Identity())(found)
    return torch.cat([h[:, 0], found], dim=1) if how == "cls_gem" else found


@pytest.mark.parametrize(("name", "pool"), EACH)
def test_every_pooling_is_that_of_a_loop_over_places_without_prefix_tokens(name, pool):
    backbone = built(name, pool)
    x = images(backbone.architecture)
    torch.testing.assert_close(backbone(x), by_hand(backbone, x, pool), rtol=1e-4, atol=1e-5)
    assert (
        backbone.dim
        == backbone(x).shape[1]
        == (48 if pool == "cls_gem" else {"resnet": 16}.get(name, 24))
    )


@pytest.mark.parametrize("name", ["resnet", "swin"])
def test_what_has_no_class_token_cannot_be_pooled_by_it(name):
    for make in (
        lambda: replace(NAMED[name], pool="cls_gem").build(),
        lambda: repooled(built(name), "cls_gem"),
    ):
        with pytest.raises(
            BackboneError, match=r"backbone\.pool: cls_gem: \w+ has no class token: take gem"
        ):
            make()


@pytest.mark.parametrize(("name", "pool"), EACH)
def test_a_backbone_pooled_anew_has_the_same_weights_and_comes_back(name, pool):
    for before in POOLS[name]:
        one = built(name, before)
        other = repooled(one, pool)
        back = repooled(other, before)
        assert toy.same(dict(back.model.state_dict()), dict(one.model.state_dict()))
        assert (other is one) == (before == pool)
        assert not other.training
        x = images(one.architecture)
        torch.testing.assert_close(other(x), by_hand(other, x, pool), rtol=1e-4, atol=1e-5)
        numbers = [
            sorted(t.double().sum().item() for t in b.model.state_dict().values())
            for b in (one, other)
        ]
        assert numbers[0] == numbers[1]
        if one.gem and other.gem:
            assert torch.equal(one.gem.p, other.gem.p)


HEADS: dict[str, dict[str, Any]] = {
    "linear": {"dim": 6},
    "none": {"dim": None},
    "batchnorm": {"dim": 6, "batchnorm": True},
    "batchnorm alone, lengths kept": {"dim": None, "batchnorm": True, "distance": "euclidean"},
    "none, lengths kept": {"dim": None, "distance": "euclidean"},
}


# In every suite each pooling once and each head with both kinds of network.
SOME = [(*EACH[k], list(HEADS)[k % len(HEADS)]) for k in range(len(EACH))]
ALL_OF_THEM = [
    pytest.param(name, pool, head, marks=() if (name, pool, head) in SOME else pytest.mark.slow)
    for head in HEADS
    for name, pool in EACH
]


@pytest.mark.parametrize(("name", "pool", "head"), ALL_OF_THEM)
def test_a_folder_holds_every_pooling_and_head_and_timm_has_the_trunk_s_bits(
    name, pool, head, tmp_path
):
    model = stirred(Embedding(built(name, pool), **HEADS[head]))
    write_folder(tmp_path / "x", embedding_files(model))
    loaded, x = lookalike.load_model(tmp_path / "x"), images(model.architecture)
    assert (loaded.distance, loaded.dim, loaded.norm) == (model.distance, model.dim, None)
    if model.norm is None:
        assert torch.equal(loaded(x), model(x))
        assert embedding_files(loaded) == embedding_files(model)
    else:
        torch.testing.assert_close(loaded(x), model(x), rtol=1e-4, atol=1e-5)
    write_folder(tmp_path / "y", embedding_files(loaded))
    assert torch.equal(lookalike.load_model(tmp_path / "y")(x), loaded(x))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'x'}", pretrained=True).eval()
    assert torch.equal(theirs(x), model.backbone.model(x))
    write_folder(tmp_path / "b", folder_files(model.backbone))
    assert torch.equal(load_backbone(tmp_path / "b")(x), model.backbone(x))


# --- heads ----------------------------------------------------------------------------------------


def test_without_a_linear_layer_the_features_are_the_embedding_without_unit_of_their_lengths():
    backbone, x = built("resnet", "avg"), images(RESNET, 3)
    assert torch.equal(Embedding(backbone, None, distance="euclidean")(x), backbone(x))
    assert torch.equal(Embedding(backbone, None)(x), F.normalize(backbone(x), dim=1))
    assert Embedding(backbone, None).dim == 16


def test_a_batchnorm_in_training_standardises_the_batch():
    model = Embedding(built("resnet", "avg"), 5, batchnorm=True, distance="euclidean").train()
    z = model(images(RESNET, 7))
    torch.testing.assert_close(z.mean(dim=0), torch.zeros(5), atol=1e-4, rtol=0)
    h = model.head(model.backbone(images(RESNET, 7)))
    torch.testing.assert_close(
        z, (h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt(), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("objective", ["CrossEntropyLoss", "CSMLLoss"])
@pytest.mark.parametrize("dim", [6, None])
def test_batchnorm_then_what_the_objective_folds_are_one_linear_layer(objective, dim):
    """Computed apart, in fp64: the layer, the BatchNorm by its running statistics, then the neck's
    or A's map.
    """
    model = stirred(
        Embedding(built("resnet", "avg"), dim, batchnorm=True, distance="euclidean"), seed=3
    )
    owner = Objective(OBJECTIVE.spec(objective), None, num_classes=4, embedding_size=model.dim)
    weight, bias = stirred(owner, seed=4).affine()
    x, norm = images(RESNET, 9), copy.deepcopy(model.norm).double()
    h = model.backbone(x).double()
    z = h if dim is None else h @ model.head.weight.double().T + model.head.bias.double()
    z = (z - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(model(x).double(), z, rtol=1e-5, atol=1e-5)
    model.fold(weight, bias)
    assert model.norm is None
    wanted = (z @ weight.double().T + bias.double()).detach()
    torch.testing.assert_close(
        model(x).double(), wanted, rtol=0, atol=1e-6 * float(wanted.abs().max())
    )


# --- layers and rates -----------------------------------------------------------------------------

# What follows the last block counts 0.
DEPTHS = {
    "vit": {
        "model.cls_token": 4,
        "model.reg_token": 4,
        "model.pos_embed": 4,
        "model.patch_embed.proj.weight": 4,
        "model.blocks.0.attn.qkv.weight": 3,
        "model.blocks.1.mlp.fc1.bias": 2,
        "model.blocks.2.norm1.weight": 1,
        "model.blocks.2.ls2.gamma": 1,
        "model.norm.weight": 0,
        "gem.p": 0,
    },
    "resnet": {
        "model.conv1.weight": 6,
        "model.bn1.bias": 6,
        "model.layer1.0.conv1.weight": 5,
        "model.layer2.0.downsample.1.weight": 4,
        "model.layer2.1.conv2.weight": 3,
        "model.layer3.0.bn1.weight": 2,
        "model.layer4.0.conv2.weight": 1,
        "gem.p": 0,
    },
    "swin": {
        "model.patch_embed.proj.weight": 3,
        "model.layers.0.blocks.0.attn.qkv.weight": 2,
        "model.layers.1.downsample.norm.weight": 1,
        "model.layers.1.blocks.0.mlp.fc2.weight": 1,
        "model.norm.bias": 0,
    },
}


def tuning(name: str, objective: str = "ProxyAnchorLoss", **how: Any) -> FinetuneModule:
    backbone = built(name, "gem")
    owner = Objective(OBJECTIVE.spec(objective), None, num_classes=4, embedding_size=6)
    return FinetuneModule(Embedding(backbone, 6, batchnorm=True), owner, **how).train()


@pytest.mark.parametrize("name", DEPTHS)
def test_rates_decay_by_a_table_from_the_head_down(name):
    system = tuning(name, layer_decay=0.5, proxy_lr_factor=100)
    optimizer = optim.adamw(
        optim.parameter_groups(system), lr=0.01, bias_lr=0.004, weight_decay=0.3
    )
    found = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    named = dict(system.named_parameters())
    assert sorted(found) == sorted(id(p) for p in named.values())
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(named)
    exempt = system.model.backbone.model.no_weight_decay() if name != "resnet" else set()
    for short, power in {
        **{f"model.backbone.{n}": d for n, d in DEPTHS[name].items()},
        "model.head.bias": 0,
    }.items():
        group = found[id(named[short])]
        vector = named[short].ndim <= 1 or short.removeprefix("model.backbone.model.") in exempt
        assert group["lr"] == group["base_lr"] == (0.004 if vector else 0.01) * 0.5**power, short
        assert group["weight_decay"] == (0.0 if vector else 0.3), short
    depth, blocks = layers(system.model.backbone)
    assert depth.keys() == dict(system.model.backbone.named_parameters()).keys()
    assert set(depth.values()) == set(range(blocks + 2))
    assert {g["base_lr"] for g in optimizer.param_groups if g["scale"] == 100} == {1.0}
    assert [n for n, p in named.items() if found[id(p)]["scale"] == 100] == [
        "objective.terms.0.loss.proxies"
    ]
    assert len({g["name"] for g in optimizer.param_groups}) == len(optimizer.param_groups)


def test_without_any_of_it_there_are_the_two_groups_of_ever():
    groups = optim.parameter_groups(tuning("vit"))
    assert [(g["name"], g["scale"], g["starts"]) for g in groups] == [
        ("weights", 1, 0),
        ("biases and norms", 1, 0),
    ]


def test_a_group_that_starts_later_has_no_rate_before():
    system = tuning("vit", head_epochs=1.5)
    optimizer = optim.sgd(optim.parameter_groups(system), lr=0.1)
    for epoch, wanted in ((0.0, 0.0), (1.4, 0.0), (1.5, 0.05), (7.0, 0.05)):
        rates = optim.set_rates(optimizer, 0.5, epoch)
        assert rates == {
            "weights": 0.05,
            "biases and norms": 0.05,
            "weights, from epoch 1.5": wanted,
            "biases and norms, from epoch 1.5": wanted,
        }
        assert {g["name"]: g["lr"] for g in optimizer.param_groups} == rates
    assert system.lr_scales()["model.backbone.model.pos_embed"] == LrScale(1.0, 1.5)


@pytest.mark.parametrize(
    ("name", "blocks", "first"),
    [
        ("resnet", 1, "layer4.0"),
        ("resnet", 4, "layer2.0"),
        ("resnet", 5, "layer1.0"),
        ("vit", 1, "blocks.2"),
        ("vit", 3, "blocks.0"),
        ("swin", 1, "layers.1"),
    ],
)
def test_the_last_blocks_and_what_follows_are_trained(name, blocks, first):
    backbone = tuning(name, train_blocks=blocks).model.backbone
    names = [n for n, _ in backbone.model.named_parameters()]
    order = [
        n for n in names if not n.startswith(("cls_", "reg_", "pos_", "patch_", "conv1", "bn1"))
    ]
    start = next(i for i, n in enumerate(order) if n.startswith(first))
    trained = [n for n, p in backbone.model.named_parameters() if p.requires_grad]
    assert trained == order[start:]
    assert backbone.gem.p.requires_grad
    for part_name, part in backbone.model.named_modules():
        below = list(part.parameters())
        if below:
            assert part.training == any(p.requires_grad for p in below), part_name


def test_more_blocks_than_there_are_and_models_that_do_not_say_are_refused(monkeypatch):
    with pytest.raises(
        RunError, match=r"finetune\.train_blocks: 6, but resnet18 has 5: lower it, or leave it out"
    ):
        tuning("resnet", train_blocks=6)
    monkeypatch.setattr(timm.models.resnet.ResNet, "group_matcher", None)
    tuning("resnet", train_blocks=0)
    for how in ({"train_blocks": 1}, {"layer_decay": 0.5}):
        with pytest.raises(
            BackboneError, match=r"backbone: timm does not say which blocks resnet18 has: train all"
        ):
            tuning("resnet", **how).lr_scales()


def test_the_backbone_rests_for_the_first_epochs_then_trains():
    system = tuning("resnet", head_epochs=1.0)
    norms = [m for m in system.model.backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    for epoch, resting in ((0.0, True), (0.9, True), (1.0, False), (0.5, True)):
        system.on_step(Progress(0, 10, epoch))
        assert {norm.training for norm in norms} == {not resting}
        assert system.model.norm.training
    assert not any(m.training for m in system.eval().modules())


# --- in a training --------------------------------------------------------------------------------

CNN_WORDS = ("finetune.epochs=2", "finetune.save_every_epochs=1", "finetune.warmup_epochs=0.2")
ALL = (
    *CNN_WORDS,
    "finetune.objective=ProxyAnchorLoss",
    "finetune.pool=cls_gem",
    "finetune.batchnorm=true",
    "finetune.layer_decay=0.5",
    "finetune.head_epochs=0.5",
    "finetune.proxy_lr_factor=10",
    "finetune.dim=6",
    "finetune.per_class=30",
)


def steps(run: Path) -> list[int]:
    return sorted(int(folder.name.split("_")[1]) for folder in run.glob("checkpoints/step_*"))


def start(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = toy.architecture(kind).build().state_dict()
    return {f"model:model.backbone.{name}": tensor.clone() for name, tensor in state.items()}


def moved(run: Path, step: int, kind: str = "resnet") -> set[str]:
    """The backbone's parameters and buffers that are not what they were at the start."""
    found, before = toy.tensors(run, step), start(kind)
    return {
        n.removeprefix("model:model.backbone.model.")
        for n, t in before.items()
        if not torch.equal(found[n], t)
    }


def test_frozen_blocks_and_their_statistics_keep_their_bits(tmp_path):
    run = toy.tuned(tmp_path, *CNN_WORDS, "finetune.train_blocks=2", kind="resnet")
    every = {name.removeprefix("model:model.backbone.model.") for name in start("resnet")}
    assert moved(run, steps(run)[-1]) == {n for n in every if n.startswith(("layer3", "layer4"))}
    assert any(n.endswith("running_mean") for n in moved(run, steps(run)[-1]))
    held = toy.tensors(run, steps(run)[-1])
    assert not [n for n in held if n.startswith("optim:model.backbone.model.layer2")]


def test_frozen_batchnorms_keep_their_bits_and_all_else_is_trained(tmp_path):
    run = toy.tuned(tmp_path, *CNN_WORDS, "finetune.freeze_batchnorm=true", kind="resnet")
    every = {name.removeprefix("model:model.backbone.model.") for name in start("resnet")}
    norms = {n.rpartition(".")[0] for n in every if n.endswith("running_mean")}
    assert moved(run, steps(run)[-1]) == {n for n in every if n.rpartition(".")[0] not in norms}


def test_the_head_alone_leaves_the_backbone_its_bits(tmp_path):
    run = toy.tuned(
        tmp_path, *CNN_WORDS, "finetune.train_blocks=0", "finetune.batchnorm=true", kind="resnet"
    )
    assert not moved(run, steps(run)[-1])
    model, x = lookalike.load_model(run / "embedding"), torch.rand(3, 1, 16, 16)
    torch.manual_seed(0)
    assert torch.equal(model.backbone(x), toy.architecture("resnet").build().eval()(x))


def test_the_backbone_waits_bit_for_bit_then_moves(tmp_path):
    run = toy.tuned(tmp_path, *CNN_WORDS, "finetune.head_epochs=1", kind="resnet")
    first, last = steps(run)
    assert not moved(run, first)
    every = {name.removeprefix("model:model.backbone.model.") for name in start("resnet")}
    assert moved(run, last) == every
    head = [toy.tensors(run, step)["model:model.head.weight"] for step in (first, last)]
    assert not torch.equal(*head)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return toy.tuned(tmp_path_factory.mktemp("whole"), *ALL)


def test_the_folder_computes_what_was_trained(whole):
    """From the checkpoint by hand: cls_gem, the head, and the BatchNorm by its running
    statistics.
    """
    held = {
        n.removeprefix("model:model."): t for n, t in toy.tensors(whole, steps(whole)[-1]).items()
    }
    model, x = lookalike.load_model(whole / "embedding"), torch.rand(5, 1, 16, 16)
    assert model.architecture.pool == "cls_gem"
    assert (model.backbone.dim, model.dim) == (48, 6)
    assert toy.same(
        {n: t for n, t in model.state_dict().items() if n.startswith("backbone.")},
        {n: t for n, t in held.items() if n.startswith("backbone.")},
    )
    z = F.linear(model.backbone(x), held["head.weight"], held["head.bias"])
    z = F.batch_norm(
        z, *(held[f"norm.{n}"] for n in ("running_mean", "running_var", "weight", "bias"))
    )
    torch.testing.assert_close(model(x), F.normalize(z, dim=1), rtol=1e-4, atol=1e-5)
    card = json.loads((whole / "embedding/card.json").read_text())
    assert (card["pool"], card["features"], card["distance"]) == ("cls_gem", 6, "cosine")


def test_stopped_and_resumed_it_goes_on_bit_for_bit(tmp_path, whole):
    """Stopped while the backbone waits, and again after."""
    for step in (3, 9):
        with fault.plan(f"term:rank=0,step={step}"), pytest.raises(Stopped):
            toy.tuned(tmp_path, *ALL)
    run = toy.tuned(tmp_path, *ALL)
    assert toy.curve(run) == toy.curve(whole)
    assert toy.same(toy.tensors(run, steps(run)[-1]), toy.tensors(whole, steps(whole)[-1]))


def at_stages(out: str, stages: list[int]) -> bool:
    for stage in stages:
        toy.tuned(Path(out) / str(stage), *ALL, f"finetune.engine={{name: zero, stage: {stage}}}")
    return True


def test_one_rank_at_the_first_and_last_stage_has_the_bits_of_plain(tmp_path, ranks, whole):
    ranks.run(at_stages, str(tmp_path), [0, 3], world=1)  # 1, 2: engine/test_engine.py
    for stage in (0, 3):
        run = tmp_path / str(stage) / "finetune"
        assert toy.curve(run) == toy.curve(whole)
        assert toy.same(toy.tensors(run, steps(run)[-1]), toy.tensors(whole, steps(whole)[-1]))


def test_two_ranks_train_what_one_does(tmp_path, ranks, whole):
    ranks.run(at_stages, str(tmp_path), [3])
    for stage in (3,):
        run = tmp_path / str(stage) / "finetune"
        found, wanted = dict(toy.curve(run)), dict(toy.curve(whole))
        assert found.keys() == wanted.keys()
        assert [found[s] for s in range(1, 6)] == pytest.approx(
            [wanted[s] for s in range(1, 6)], rel=1e-5
        )
        one, two = toy.tensors(whole, steps(whole)[-1]), toy.tensors(run, steps(run)[-1])
        assert one.keys() == two.keys()
        for name in (
            "model.norm.running_mean",
            "model.norm.running_var",
            "objective.terms.0.loss.proxies",
        ):
            torch.testing.assert_close(
                two[f"model:{name}"], one[f"model:{name}"], rtol=1e-2, atol=1e-3
            )


@pytest.mark.parametrize("estimated", [False, True])
def test_vectors_that_keep_their_lengths_are_scored_by_euclidean_distance(tmp_path, estimated):
    words = ("finetune.unit=false", "finetune.dim=null", "finetune.pool=max")
    if estimated:
        words = ("finetune={estimator: {name: rca, n_components: 4}, pool: max}",)
    run = toy.tuned(tmp_path, *words, kind="resnet")
    recipe = toy.recipe(*words)
    found, model, images = (
        lookalike.evaluate(run / "embedding", recipe),
        lookalike.load_model(run / "embedding"),
        toy.scored(recipe),
    )
    x_ND, labels_N, *_ = extract(embedder(model, model.architecture), images)
    assert found["protocol"]["nearness"] == "euclidean"
    for distance in ("euclidean", "cosine"):
        expected = retrieval.scores(x_ND, labels_N, distance=distance)
        assert (found["map"] == pytest.approx(expected["map"], abs=1e-9)) is (
            distance == "euclidean"
        )
    assert lookalike.load_model(run / "embedding").architecture.pool == "max"


# --- refusals and show ----------------------------------------------------------------------------

REFUSED = {
    "finetune.pool=cls_gem": r"backbone\.pool: cls_gem: resnet18 has no class token: take gem",
    "finetune.train_blocks=5": r"finetune\.train_blocks: 5, but resnet18 has 4",
    "finetune.dim=null finetune.train_blocks=0": (
        r"no parameter is trainable: unfreeze the backbone or give it a head"
    ),
    "finetune.train_blocks=0 "
    "finetune.layer_decay=0.5": r"layer_decay: the backbone is not trained \(train_blocks: 0\)",
    "finetune.train_blocks=0 "
    "finetune.head_epochs=1": r"head_epochs: the backbone is not trained \(train_blocks: 0\)",
    "finetune.head_epochs=3": r"head_epochs 3 is longer than epochs 1: lower it",
    "finetune.layer_decay=0": r"finetune\.layer_decay: 0 must be greater than 0",
    "finetune={estimator: {name: rca}, batchnorm: true}": r"batchnorm: not for an estimator",
}


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_is_refused_before_anything_is_trained(words, tmp_path):
    parts = [words] if words.startswith("finetune={") else words.split()
    with pytest.raises(Error, match=REFUSED[words]):
        lookalike.run(toy.recipe(*parts), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_show_says_what_fine_tuning_will_do():
    words = (
        "pretrain=null",
        "backbone.pretrained=true",
        "finetune.layer_decay=0.5",
        "finetune.train_blocks=1",
        "finetune.epochs=3",
    )
    lines = show(toy.recipe(*words)).splitlines()
    text = "\n".join(lines[lines.index("") :])
    assert "finetune    FaceNetLoss: 721 images of 5 classes, 179 of others to score" in text
    assert "embedding   (B, 16) -> (B, 16)" in text
    assert "steps       66 = 3 epochs × 22 of 32 images" in text
    model = toy.architecture("resnet").build().model
    kernels = [p.numel() for p in model.layer4.parameters() if p.ndim > 1]
    group = (
        f"weights, rate × 0.5: {len(kernels)} tensors, {sum(kernels):,} parameters, "
        "lr 0.0005, weight decay 0.05"
    )
    assert f"group       {group}" in text
    assert "group       weights: 1 tensors, 256 parameters, lr 0.001, weight decay 0.05" in text
    frozen = [p for n, p in model.named_parameters() if not n.startswith("layer4")]
    assert (
        f"frozen      {len(frozen)} tensors, {sum(p.numel() for p in frozen):,} parameters" in text
    )
    both = show(toy.recipe())
    assert both.count("\ngroup ") == 4
    assert "finetune    rca on features (B, 16)" in show(toy.recipe("finetune={estimator: rca}"))


# --- export ---------------------------------------------------------------------------------------

EXPORTED = [
    ("vit", "cls_gem", "batchnorm"),
    pytest.param("vit", "max", "none", marks=pytest.mark.slow),
    ("resnet", "max", "none, lengths kept"),
]


def exported(folder: Path, text: str = "export: {}\n") -> Path:
    return room.export(
        folder,
        from_text(text, "export.yaml", (), toy.sections(export=Export)),
        folder.parent / "out",
    )


@pytest.mark.parametrize(("name", "pool", "head"), EXPORTED)
def test_onnxruntime_gives_what_was_trained_from_a_folder_without_a_card(
    name, pool, head, tmp_path
):
    model = stirred(Embedding(built(name, pool), **HEADS[head]))
    write_folder(tmp_path / "x", embedding_files(model))
    out = exported(tmp_path / "x")
    session = onnxruntime.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    mean, std = (torch.tensor(v)[:, None, None] for v in model.architecture.normalisation())
    for batch in (1, 2, 5):
        x = images(model.architecture, batch)
        (found,) = session.run(None, {"images": x.numpy()})
        np.testing.assert_allclose(
            found, model((x - mean) / std).detach().numpy(), rtol=1e-4, atol=1e-4
        )
        if model.distance == "cosine":
            np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    card = json.loads((out / "card.json").read_text())
    assert card["input"]["size"] == model.architecture.size
    assert (card["features"], card["pool"]) == (model.dim, pool)
