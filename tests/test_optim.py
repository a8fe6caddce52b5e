"""Laws of groups, optimizers and schedules: against loops from the papers and against torch's
own.
"""

import math

import pytest
import torch
from torch import nn

from lookalike import optim
from lookalike.errors import RunError
from lookalike.models import Architecture

SMALL = {"channels": [8, 16, 24, 32], "layers": [1, 1, 1, 1]}
VIT = {"embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 4}
SWIN = {"embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4}
ARCHITECTURES = {
    "resnet": Architecture("resnet18", 16, args=SMALL),
    "resnet gem": Architecture("resnet18", 16, pool="gem", args=SMALL),
    "vit": Architecture("vit_tiny_patch16_224", 16, args=VIT),
    "swin": Architecture("swin_tiny_patch4_window7_224", 32, args=SWIN),
}


def ids(parameters):
    return sorted(id(p) for p in parameters)


def by_name(groups):
    return {group["name"]: group["params"] for group in groups}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_hold_each_trainable_parameter_exactly_once(name):
    model = ARCHITECTURES[name].build()
    groups = optim.parameter_groups(model)
    assert ids(p for group in groups for p in group["params"]) == ids(model.parameters())
    assert [group["name"] for group in groups] == ["weights", "biases and norms"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_vectors_are_never_decayed(name):
    groups = by_name(optim.parameter_groups(ARCHITECTURES[name].build()))
    assert all(p.ndim > 1 for p in groups["weights"])


def test_a_resnet_decays_its_kernels_and_nothing_else():
    model = ARCHITECTURES["resnet gem"].build()
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert ids(by_name(optim.parameter_groups(model))["weights"]) == ids(kernels)


def test_a_vit_spares_its_positions_and_class_token_at_any_depth():
    model = ARCHITECTURES["vit"].build()
    spared = {id(model.model.pos_embed), id(model.model.cls_token)}
    for module in (
        model,
        nn.Sequential(nn.ModuleDict({"deep": model}).deep, nn.Linear(48, 2)),
        model.model,
    ):
        groups = by_name(optim.parameter_groups(module))
        assert spared <= {id(p) for p in groups["biases and norms"]}
        assert id(model.model.blocks[0].attn.qkv.weight) in {id(p) for p in groups["weights"]}


def test_a_swin_spares_its_position_tables():
    model = ARCHITECTURES["swin"].build()
    tables = [p for n, p in model.named_parameters() if "relative_position_bias_table" in n]
    assert tables
    assert {id(p) for p in tables} <= {
        id(p) for p in by_name(optim.parameter_groups(model))["biases and norms"]
    }


def test_frozen_parameters_are_in_no_group():
    model = ARCHITECTURES["resnet"].build()
    for p in model.model.layer1.parameters():
        p.requires_grad_(False)
    held = ids(p for group in optim.parameter_groups(model) for p in group["params"])
    assert held == ids(p for p in model.parameters() if p.requires_grad)


def test_tied_weights_are_held_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    groups = by_name(optim.parameter_groups(model))
    assert ids(groups["weights"]) == [id(model[0].weight)]
    assert ids(groups["biases and norms"]) == ids([model[0].bias, model[2].bias])


def test_a_tied_parameter_is_spared_when_any_of_its_names_is():
    class Table(nn.Module):
        def __init__(self, table):
            super().__init__()
            self.table = table

        def no_weight_decay(self):
            return {"table"}

    first, last = nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False)
    groups = by_name(optim.parameter_groups(nn.ModuleList([first, Table(first.weight), last])))
    assert ids(groups["biases and norms"]) == [id(first.weight)]
    assert ids(groups["weights"]) == [id(last.weight)]


class Hinted(optim.ParameterHints, nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(2, 2, bias=False) for _ in range(3))

    def lr_scales(self):
        return {"a.weight": optim.LrScale(0.5, 2.0)}

    def constant_lr(self):
        return {"b.weight"}

    def no_weight_decay(self):
        return {"c.weight"}


@pytest.mark.parametrize("deep", [False, True])
def test_hints_are_of_a_modules_own_names(deep):
    module = Hinted()
    groups = by_name(optim.parameter_groups(nn.Sequential(module) if deep else module))
    assert {name: ids(held) for name, held in groups.items()} == {
        "biases and norms": [id(module.c.weight)],
        "weights, rate × 0.5, from epoch 2": [id(module.a.weight)],
        "weights, constant rate": [id(module.b.weight)],
    }


def test_rates_are_asked_of_parameter_hints_only():
    class Stranger(nn.Linear):
        def called(self):
            raise AssertionError("found by its name")

        lr_scales = constant_lr = called

    assert by_name(optim.parameter_groups(Stranger(2, 2))).keys() == {"weights", "biases and norms"}


def test_without_hints_nothing_is_otherwise():
    hints = optim.ParameterHints()
    assert not hints.lr_scales()
    assert not hints.constant_lr()
    assert not hints.no_weight_decay()


def test_an_empty_group_is_left_out():
    assert [g["name"] for g in optim.parameter_groups(nn.BatchNorm1d(3))] == ["biases and norms"]


def test_nothing_to_train_is_refused():
    frozen = nn.Linear(3, 3).requires_grad_(False)
    with pytest.raises(
        RunError, match=r"no parameter is trainable: unfreeze the backbone or give it a head"
    ):
        optim.parameter_groups(frozen)


# --- optimizers -----------------------------------------------------------------------------------


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.LayerNorm(5), nn.Linear(5, 2)).double()


def gradients(model, steps):
    generator = torch.Generator().manual_seed(9)
    return [
        {
            n: torch.randn(p.shape, generator=generator, dtype=torch.float64)
            for n, p in model.named_parameters()
        }
        for _ in range(steps)
    ]


def walked(optimizer, model, steps=6, factors=None):
    for step, gradient in enumerate(gradients(model, steps)):
        if factors:
            optim.set_rates(optimizer, factors[step])
        for name, p in model.named_parameters():
            p.grad = gradient[name]
        optimizer.step()
    return {n: p.detach() for n, p in model.named_parameters()}


def loop_lars(model, lr, bias_lr, momentum, trust, decay, steps=6):
    """You, Gitman & Ginsburg, algorithm 1, one parameter and one number at a time."""
    values = {n: p.detach().flatten().tolist() for n, p in model.named_parameters()}
    matrix = {n: p.ndim > 1 for n, p in model.named_parameters()}
    speed = {n: [0.0] * len(v) for n, v in values.items()}
    for gradient in gradients(model, steps):
        for name, w in values.items():
            g = gradient[name].flatten().tolist()
            rate = bias_lr
            if matrix[name]:
                local = trust * math.hypot(*w) / (math.hypot(*g) + decay * math.hypot(*w))
                g, rate = [local * (gi + decay * wi) for gi, wi in zip(g, w, strict=True)], lr
            speed[name] = [momentum * v + rate * gi for v, gi in zip(speed[name], g, strict=True)]
            values[name] = [wi - v for wi, v in zip(w, speed[name], strict=True)]
    return {n: torch.tensor(v, dtype=torch.float64) for n, v in values.items()}


@pytest.mark.parametrize(("decay", "momentum"), [(1e-6, 0.9), (0.1, 0.9), (0.0, 0.9), (0.1, 0.0)])
def test_lars_adapts_matrices_and_steps_vectors_by_plain_momentum(decay, momentum):
    model = net()
    expected = loop_lars(model, 0.5, 0.01, momentum, 0.02, decay)
    groups = optim.parameter_groups(model)
    optimizer = optim.lars(
        groups, lr=0.5, bias_lr=0.01, momentum=momentum, trust=0.02, weight_decay=decay
    )
    # timm adds 1e-8 to the denominator and follows the same path in another order of rounding.
    for name, found in walked(optimizer, model).items():
        torch.testing.assert_close(found.flatten(), expected[name], rtol=1e-6, atol=1e-9, msg=name)


def test_lars_does_not_stick_at_a_weight_of_zero():
    model = net()
    nn.init.zeros_(model[3].weight)
    walked(optim.lars(optim.parameter_groups(model), lr=0.5), model)
    assert (model[3].weight != 0).all()


OURS_AND_TORCH = {
    "sgd": (
        lambda groups: optim.sgd(
            groups, lr=0.1, bias_lr=0.02, momentum=0.8, nesterov=True, weight_decay=0.01
        ),
        lambda groups: torch.optim.SGD(groups, momentum=0.8, nesterov=True),
        (0.1, 0.02, 0.01),
    ),
    "adamw": (
        lambda groups: optim.adamw(groups, lr=0.1, betas=(0.7, 0.9), eps=1e-6, weight_decay=0.3),
        lambda groups: torch.optim.AdamW(groups, betas=(0.7, 0.9), eps=1e-6),
        (0.1, 0.1, 0.3),
    ),
    "adam": (
        lambda groups: optim.adam(groups, lr=0.1, betas=(0.7, 0.9), eps=1e-6, weight_decay=0.3),
        lambda groups: torch.optim.Adam(groups, betas=(0.7, 0.9), eps=1e-6),
        (0.1, 0.1, 0.3),
    ),
}


@pytest.mark.parametrize("name", OURS_AND_TORCH)
def test_optimizer_equals_torch_s_with_vectors_undecayed(name):
    ours, reference, (lr, bias_lr, decay) = OURS_AND_TORCH[name]
    one, other = net(), net()
    matrices = [p for p in other.parameters() if p.ndim > 1]
    vectors = [p for p in other.parameters() if p.ndim <= 1]
    torch_s = reference(
        [
            {"params": matrices, "lr": lr, "weight_decay": decay},
            {"params": vectors, "lr": bias_lr, "weight_decay": 0.0},
        ]
    )
    expected = walked(torch_s, other)
    for key, found in walked(ours(optim.parameter_groups(one)), one).items():
        assert found.equal(expected[key]), key


def test_only_lars_must_see_whole_layers():
    made = {
        name: make(optim.parameter_groups(net()), lr=0.1) for name, make in optim.OPTIMIZERS.items()
    }
    assert {name: optim.is_layerwise(o) for name, o in made.items()} == {
        "sgd": False,
        "adam": False,
        "adamw": False,
        "lars": True,
    }


# --- rates ----------------------------------------------------------------------------------------

SCHEDULES = [
    (100, 10, 0.0),
    (100, 0, 0.0),
    (57, 5, 0.002),
    (1000, 1, 0.1),
    (10, 9, 0.5),
    (3, 1, 0.0),
]


@pytest.mark.parametrize(("steps", "warmup", "final"), SCHEDULES)
def test_schedule_climbs_by_equal_steps_then_falls_along_half_a_cosine(steps, warmup, final):
    for step in range(steps):
        if step < warmup:
            expected = (step + 1) / warmup
        elif warmup < steps - 1:
            angle = math.pi * (step - warmup) / (steps - 1 - warmup)
            expected = final + (1 - final) * (1 + math.cos(angle)) / 2
        else:
            expected = 1.0
        found = optim.warmup_cosine(step, steps=steps, warmup=warmup, final=final)
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_schedule_at_the_points_one_can_name():
    at = lambda step: optim.warmup_cosine(step, steps=21, warmup=10, final=0.2)  # noqa: E731
    assert [at(0), at(4), at(9), at(10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert at(15) == pytest.approx(0.6)
    assert at(20) == pytest.approx(0.2)


@pytest.mark.parametrize(("steps", "warmup", "final"), [s for s in SCHEDULES if s[1] < s[0] - 1])
def test_schedule_rises_then_falls_and_ends_at_final(steps, warmup, final):
    rates = [optim.warmup_cosine(s, steps=steps, warmup=warmup, final=final) for s in range(steps)]
    assert rates[: warmup + 1] == sorted(rates[: warmup + 1])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(final, abs=1e-15)
    assert all(rate > 0 for rate in rates[:-1])


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 1), (2, 2), (5, 5)])
def test_runs_too_short_for_a_cosine_keep_a_rate_above_zero(steps, warmup):
    rates = [optim.warmup_cosine(s, steps=steps, warmup=warmup, final=0.0) for s in range(steps)]
    assert all(0 < rate <= 1 for rate in rates)


def test_past_the_last_step_the_rate_stays_final():
    assert optim.warmup_cosine(500, steps=100, warmup=10, final=0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_set_rates_multiplies_each_base_rate_and_forgets_the_last_factor(name):
    optimizer = optim.OPTIMIZERS[name](optim.parameter_groups(net()), lr=0.4, bias_lr=0.1)
    for factor in (0.5, 0.25, 1.0):
        expected = {"weights": 0.4 * factor, "biases and norms": 0.1 * factor}
        assert optim.set_rates(optimizer, factor) == expected
        assert {g["name"]: g["lr"] for g in optimizer.param_groups} == expected


def test_without_a_bias_rate_both_groups_share_one():
    optimizer = optim.sgd(optim.parameter_groups(net()), lr=0.4)
    assert set(optim.set_rates(optimizer, 1.0).values()) == {0.4}


def test_a_bias_rate_of_zero_freezes_the_vectors_only():
    model, before = net(), {n: p.detach().clone() for n, p in net().named_parameters()}
    after = walked(optim.sgd(optim.parameter_groups(model), lr=0.1, bias_lr=0.0), model)
    assert {n for n in before if before[n].equal(after[n])} == {
        n for n, p in before.items() if p.ndim == 1
    }


@pytest.mark.parametrize(("limit", "expected"), [(1.0, 1.0), (100.0, 5.0), (0.0, 5.0)])
def test_clip_shortens_long_gradients_keeps_their_direction_and_zero_means_never(limit, expected):
    p, q = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    p.grad, q.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optim.clip([p, q], limit)
    assert math.hypot(p.grad.item(), q.grad.item()) == pytest.approx(expected, rel=1e-5)
    assert p.grad.item() / q.grad.item() == pytest.approx(0.75)
