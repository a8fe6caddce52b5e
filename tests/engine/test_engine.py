"""Two engines behind one seam: the same steps at every ZeRO stage, and each reads what the other
saved.
"""

import functools
import gc

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import toy
from lookalike import comm
from lookalike.engine import ENGINES, State, zero
from lookalike.engine.shards import Flat, Split, refuse_unknown
from lookalike.errors import RunError
from lookalike.methods import METHODS
from lookalike.models import Architecture, folder_files, load_backbone
from lookalike.nn.batchnorm import (
    freeze_running_stats,
    global_batchnorm,
    standardize,
)
from lookalike.nn.hooks import Follower, start_step
from lookalike.nn.loss import Loss
from lookalike.nn.numerics import l2_normalize
from lookalike.optim import OPTIMIZERS, Progress, parameter_groups, set_rates
from lookalike.stages.pretrain import pretrain

# Moderate rates: large ones grow the last bit's rounding by an order of magnitude a step, on one
# rank too.
RATES = {
    "adamw": {"lr": 1e-3, "weight_decay": 0.1},
    "sgd": {"lr": 1e-3, "weight_decay": 1e-3},
    "lars": {"lr": 0.02},
}
SAME = 1e-5  # relative, on the loss of every step, in fp32
CUT = "3 with every parameter cut"  # small ones, and here all are small, stay whole otherwise
STAGES = [0, 1, 2, 3, CUT]
METHOD_ARGUMENTS = {
    "moco_v2": {"projector": (16, 8), "queue": 40, "momentum": 0.9},
    "byol": {"projector": (16, 8), "predictor": (16, 8), "momentum": 0.9},
    "swav": {"projector": (16, 8), "prototypes": 10, "frozen_epochs": 0.5},
    "dino": {
        "hidden": 16,
        "bottleneck": 8,
        "prototypes": 12,
        "momentum": 0.9,
        "frozen_epochs": 0.5,
    },
}


class Stranger(nn.Module):
    """Has methods of the hooks' names, of this release and an earlier one, and is none of the
    types.
    """

    def _called(self, *_):
        raise AssertionError("found by its name")

    begin = follow = forget = on_step = stage = write = commit = discard = update = _called


class Frozen(Follower):
    """Fine-tuning's shape: a backbone that is not trained, below a GeM and a head that are.

    Its `update` reads whole weights, and writes into a frozen one and into one that is trained.
    """

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        args = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
        self.backbone = Architecture("resnet18", size=16, channels=1, pool="gem", args=args).build()
        self.head = nn.Linear(self.backbone.dim, 5, bias=False)
        self.stranger = Stranger()
        self.backbone.model.requires_grad_(False)
        self.mean = nn.Parameter(torch.zeros(self.backbone.dim), requires_grad=False)
        self.train()

    def update(self):
        self.head.weight.copy_(l2_normalize(self.head.weight))
        self.mean.copy_(self.head.weight.mean(dim=0))

    def forward(self, views):
        a, b = (standardize(self.head(self.backbone(view))) for view in views)
        return Loss(comm.mean((a - b).square()).sum(), {})


def system(kind: str) -> nn.Module:
    if kind in ("resnet", "vit"):
        return toy.system(kind)
    if kind == "frozen":
        return Frozen()
    torch.manual_seed(0)
    return METHODS[kind](
        toy.system("resnet" if kind == "byol" else "vit").backbone, **METHOD_ARGUMENTS[kind]
    ).train()


@functools.cache
def settle() -> None:
    """DeepSpeed collects garbage at every start of stage 3: not through all that the imports have
    made.
    """
    gc.collect()
    gc.freeze()


def make(
    engine,
    optimizer: str = "adamw",
    kind: str = "resnet",
    accumulate: int = 1,
    prepare=None,
    **options,
):
    """`engine`: plain, or a ZeRO stage."""
    module = global_batchnorm(system(kind))
    if prepare:
        prepare(module)
    made = OPTIMIZERS[optimizer](parameter_groups(module), **RATES[optimizer])
    if engine == "plain":
        return ENGINES["plain"](module, made, accumulate=accumulate, **options)
    settle()
    zero._SMALL = 0 if engine == CUT else 100_000
    return ENGINES["zero"](
        module, made, accumulate=accumulate, stage=3 if engine == CUT else engine, **options
    )


def share(view: Tensor) -> Tensor:
    return view.tensor_split(comm.world_size())[comm.rank()]


def advance(engine, first: int, last: int, skip=()) -> list[float]:
    """Trains the steps [first, last) as the loop does; the loss of each micro-batch of steps that
    are not skipped.
    """
    losses = []
    for step in range(first, last):
        set_rates(engine.optimizer, 1 / (1 + step))
        start_step(engine.module, Progress(step, 6, step / 2))
        found = []
        for micro in range(engine.accumulate):
            loss = engine([share(view) for view in toy.views(step * 10 + micro)])
            engine.backward(loss.value)
            engine.step(step in skip)
            found.append(loss.value.item())
        if step not in skip:
            engine.follow()
            losses += found
    return losses


def train(engine, steps: int, *how, **options) -> tuple[list[float], State]:
    made = make(engine, *how, **options)
    return advance(made, 0, steps), made.save()


@functools.cache
def plain(steps: int, optimizer: str, kind: str = "resnet", accumulate: int = 1, clip: float = 0.0):
    return train("plain", steps, optimizer, kind, accumulate, clip=clip)


def equal(found: State, wanted: State) -> str:
    """The first name at which two states differ in a bit, or nothing."""
    for group, other in zip(found, wanted, strict=True):
        if group.keys() != other.keys():
            return f"other names: {sorted(group.keys() ^ other.keys())[:3]}"
        for name in group:
            if group[name].dtype != other[name].dtype or not torch.equal(group[name], other[name]):
                return name
    return ""


def close(found: State, wanted: State, rtol: float) -> None:
    for group, other in zip(found, wanted, strict=True):
        assert group.keys() == other.keys()
        largest = max((float(tensor.abs().max()) for tensor in other.values()), default=0.0)
        for name in group:
            # A bias before a BatchNorm has no gradient but rounding: its own size is no measure of
            # it.
            scale = max(float(other[name].abs().max()), 1e-3 * largest)
            torch.testing.assert_close(
                group[name], other[name], atol=rtol * scale, rtol=0, msg=f"{name} differs"
            )


# Not AdamW on a ViT: the biases of its keys have no gradient but rounding, which Adam scales up to
# whole steps.
CASES = {
    "adamw": ("adamw", "resnet", 1, 0.0),
    "sgd, clipped, in two": ("sgd", "vit", 2, 0.5),
    "sgd, in two": ("sgd", "resnet", 2, 0.0),
    "lars": ("lars", "resnet", 1, 0.0),
    "moco_v2, a teacher and a queue": ("sgd", "moco_v2", 2, 0.0),
    "byol, a teacher": ("sgd", "byol", 1, 0.0),
    "dino, a teacher and a centre": ("sgd", "dino", 1, 1.0),
    "swav, prototypes": ("sgd", "swav", 1, 0.0),
    "a frozen backbone": ("adamw", "frozen", 1, 0.0),
}


# Two processes on one core wait for each other at every exchange: not everything at every stage.
SOME = ["adamw", "moco_v2, a teacher and a queue", "a frozen backbone"]
ON_ONE = {0: list(CASES), 1: SOME, 2: list(CASES), 3: SOME, CUT: [*SOME, "swav, prototypes"]}
ON_TWO = {
    0: ["lars", "adamw"],
    1: ["sgd, clipped, in two", "byol, a teacher"],
    2: ["sgd, in two", "swav, prototypes"],
    3: ["sgd, clipped, in two"],
    CUT: ["dino, a teacher and a centre", "a frozen backbone"],
}
CROSSED = [0, 1, 2, CUT]


def train_cases(stage, names) -> dict[str, tuple[list[float], State]]:
    chosen = {name: CASES[name] for name in names if name != "lars" or stage == 0}
    return {name: train(stage, 3, *case[:3], clip=case[3]) for name, case in chosen.items()}


# In every suite one rank at 0, 2 and 3 with all cut, two ranks at 0, 1, 2 and 3 with all cut.
SLOW = pytest.mark.slow
BY_ONE = [s if s in (0, 2, CUT) else pytest.param(s, marks=SLOW) for s in STAGES]
BY_TWO = [s if s != 3 else pytest.param(s, marks=SLOW) for s in STAGES]


@pytest.mark.parametrize("stage", BY_ONE)
def test_one_rank_at_any_stage_has_the_bits_of_plain(ranks, stage):
    (found,) = ranks.run(train_cases, stage, ON_ONE[stage], world=1)
    for name, (losses, state) in found.items():
        wanted = plain(3, *CASES[name])
        if CASES[name][3]:  # DeepSpeed adds up the gradient's norm in another order
            assert losses == pytest.approx(wanted[0], rel=SAME), name
            close(state, wanted[1], rtol=1e-4)
        else:
            assert losses == wanted[0], name
            assert not equal(state, wanted[1]), name


@pytest.mark.parametrize("stage", BY_TWO)
def test_two_ranks_at_any_stage_train_as_plain_does_on_one(ranks, stage):
    one, two = ranks.run(train_cases, stage, ON_TWO[stage])
    for name, (losses, state) in one.items():
        wanted = plain(3, *CASES[name])
        assert losses == pytest.approx(wanted[0], rel=SAME), name
        assert state.optim.keys() == wanted[1].optim.keys()
        close(State(state.model, {}), State(wanted[1].model, {}), rtol=2e-3)
        assert losses == two[name][0], name
        assert not equal(two[name][1], state), name


def test_two_ranks_have_the_same_bits_at_every_stage_teacher_and_queue_included(ranks):
    wanted, *others = ranks.run(train_stages)[0]
    assert wanted[0] == pytest.approx(plain(3, "adamw", "moco_v2")[0], rel=SAME)
    assert {"teacher.copies.0.model.cls_token", "queue.rows_QD", "queue.written"} <= wanted[
        1
    ].model.keys()
    for losses, state in others:
        assert losses == wanted[0]
        assert not equal(state, wanted[1])


def train_stages() -> list[tuple[list[float], State]]:
    return [train(stage, 3, "adamw", "moco_v2") for stage in STAGES]


@pytest.mark.parametrize("stage", [1, 2, CUT])
def test_two_ranks_share_what_the_stage_promises_to_share(ranks, stage):
    whole = sum(
        tensor.numel() for tensor in plain(1, "adamw", "vit")[1].optim.values() if tensor.dim()
    )
    for moments, present in ranks.run(held, stage):
        assert moments <= whole / 2 + 64
        assert (present == 0) == (stage == CUT)


def held(stage) -> tuple[int, int]:
    """The numbers of optimizer state, and of parameters, that lie on this rank between steps."""
    engine = make(stage, "adamw", "vit")
    advance(engine, 0, 1)
    states = [
        t
        for state in engine.optimizer.state.values()
        for t in state.values()
        if torch.is_tensor(t) and t.dim()
    ]
    return sum(t.numel() for t in states), sum(p.numel() for p in engine.module.parameters())


def whole_gradient(kind: str, cut: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradient of the whole method in fp64, averaged over ranks as an engine does."""
    module = global_batchnorm(toy.system(kind).double())
    views = [view.double().split(cut)[comm.rank()] for view in toy.views(0)]
    loss = module(views).value
    loss.backward()
    gradient = [
        comm.all_sum(p.grad) / comm.world_size() for p in module.parameters() if p.grad is not None
    ]
    return loss.detach(), gradient


@pytest.mark.parametrize("cut", [[8, 8], [5, 11]], ids=["even", "uneven"])
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_gradient_of_a_whole_method_on_two_ranks_is_that_of_one_process(ranks, kind, cut):
    loss, gradient = whole_gradient(kind, [16])
    scale = max(float(g.abs().max()) for g in gradient)
    for found, other in ranks.run(whole_gradient, kind, cut):
        torch.testing.assert_close(found, loss, rtol=1e-9, atol=0)
        for a, b in zip(other, gradient, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12 * scale)


def test_clipping_is_off_unless_asked_for():
    """DeepSpeed alone would clip at norm 1: that the cases above are not clipped must show."""
    free, _ = plain(4, "sgd")
    clipped, _ = train("plain", 4, "sgd", clip=0.01)
    assert free[-1] != pytest.approx(clipped[-1], rel=1e-3)


STATES = [("byol", "sgd"), ("frozen", "adamw"), ("moco_v2", "adamw")]


@pytest.mark.parametrize(("world", "chosen"), [(1, STATES), (2, STATES[:2])])
def test_what_is_loaded_is_saved_again_bit_for_bit_at_every_stage(ranks, world, chosen):
    states = [(kind, optimizer, plain(3, optimizer, kind)[1]) for kind, optimizer in chosen]
    assert not any(ranks.run(loaded_and_saved, CROSSED, states, world=world))


def loaded_and_saved(stages, states) -> str:
    """What any stage saves of what it has loaded: the same bits, or the first name that differs."""
    for stage in stages:
        for kind, optimizer, state in states:
            engine = make(stage, optimizer, kind)
            engine.load(state)
            if name := equal(engine.save(), state):
                return f"{kind} at stage {stage}: {name}"
    return ""


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.slow)])
def test_any_stage_and_world_goes_on_from_what_any_other_saved(ranks, optimizer):
    """Every reader gets what another stage, on the other number of ranks, has written."""
    wanted = plain(5, optimizer, "moco_v2")[0][3:]
    alone = [ranks.run(write, stage, optimizer, world=1)[0] for stage in CROSSED]
    by_two = [ranks.run(write, stage, optimizer)[0] for stage in CROSSED]
    for world, written in ((1, by_two), (2, [plain(3, optimizer, "moco_v2")[1], *alone[1:]])):
        for place, stage in enumerate(CROSSED):
            for (found,) in ranks.run(go_on, stage, optimizer, [written[place - 1]], world=world):
                assert found == pytest.approx(wanted, rel=SAME), (stage, world)
    assert go_on("plain", optimizer, alone + by_two) == [pytest.approx(wanted, rel=SAME)] * 8


def write(stage, optimizer: str) -> State:
    return train(stage, 3, optimizer, "moco_v2")[1]


def go_on(stage, optimizer: str, states) -> list[list[float]]:
    """The losses of steps 3 and 4 after each of the states of step 3."""
    found = []
    for state in states:
        engine = make(stage, optimizer, "moco_v2")
        engine.load(state)
        found.append(advance(engine, 3, 5))
    return found


@pytest.mark.parametrize("stage", CROSSED)
def test_every_stage_comes_back_to_the_same_bits_at_the_same_world(ranks, stage):
    assert ranks.run(same_bits, stage, "lars" if stage == 0 else "adamw") == ["", ""]


def same_bits(stage, optimizer) -> str:
    first = make(stage, optimizer, "moco_v2")
    advance(first, 0, 1)
    state = first.save()
    losses, after = advance(first, 1, 3), first.save()
    second = make(stage, optimizer, "moco_v2")
    second.load(state)
    return "other losses" if advance(second, 1, 3) != losses else equal(second.save(), after)


def test_a_checkpoint_of_another_model_is_refused_by_name_at_every_stage(ranks):
    state = plain(1, "adamw", "vit")[1]
    (found,) = ranks.run(misfits, state, world=1)
    assert len(found) == 2 * len(CROSSED)
    for text in found:
        assert text.startswith("backbone.model.")
    assert "is missing in the checkpoint" in found[0]
    assert "has shape (3,), not (24,)" in found[1]


def misfits(state) -> list[str]:
    bias = "backbone.model.patch_embed.proj.bias"
    lost = {name: tensor for name, tensor in state.model.items() if name != bias}
    found = []
    for stage in CROSSED:
        engine = make(stage, "adamw", "vit")
        for model in (lost, {**lost, bias: torch.zeros(3)}):
            with pytest.raises(RunError) as error:
                engine.load(State(model, {}))
            found.append(str(error.value))
    return found


def test_a_saved_state_does_not_follow_later_steps():
    engine = make("plain")
    advance(engine, 0, 1)
    state = engine.save()
    before = {name: tensor.clone() for name, tensor in state.model.items()}
    advance(engine, 1, 2)
    assert all(torch.equal(before[name], state.model[name]) for name in before)
    assert any(not torch.equal(before[name], engine.save().model[name]) for name in before)


class Spoiler:
    """Makes one rank's gradient of one parameter a NaN on demand."""

    def __init__(self, rank: int) -> None:
        self.rank, self.active = rank, False

    def __call__(self, module: nn.Module) -> None:
        module.backbone.model.patch_embed.proj.weight.register_hook(self.spoil)

    def spoil(self, gradient: Tensor) -> Tensor:
        return gradient * float("nan") if self.active and comm.rank() == self.rank else gradient


@pytest.mark.parametrize(
    ("stage", "clip"), [("plain", 0.0), (0, 0.5), (1, 0.5), (2, 0.0), (CUT, 0.0)]
)
def test_a_skipped_step_leaves_no_trace(ranks, stage, clip):
    """A NaN on the last rank, in the first of two micro-batches: seen there alone, or at last in
    the mean of all where every rank holds that; skipped by all.
    """
    found = [skipped(stage, clip)] if stage == "plain" else ranks.run(skipped, stage, clip)
    for rank, (verdicts, trace, losses, after) in enumerate(found):
        sound = rank < len(found) - 1
        assert verdicts == [True, True, sound, sound and stage != 0, True, True]
        assert trace == ["", ""]
        assert losses[0] == losses[1]
        assert not after


def skipped(stage, clip):
    spoiler = Spoiler(comm.world_size() - 1)
    first = make(stage, "adamw", "moco_v2", 2, prepare=spoiler, clip=clip)
    traces = []
    for active, step in (
        (True, 7),
        (False, 8),
    ):  # before the first good step, and of finite numbers
        before, spoiler.active = first.save(), active
        advance(first, step, step + 1, skip=[step])
        traces.append(equal(first.save(), before))
    spoiler.active, verdicts = False, []
    losses = advance(first, 0, 1)
    for active in (False, True, False):
        engine = first
        for micro in range(2):
            spoiler.active = active and micro == 0
            engine.backward(engine([share(view) for view in toy.views(90 + micro)]).value)
            verdicts.append(bool(engine.finite()))
            engine.step(skip=True)
    losses += advance(first, 1, 3)
    second = make(stage, "adamw", "moco_v2", 2, clip=clip)
    unhurt = advance(second, 0, 3)
    return verdicts, traces, (losses, unhurt), equal(first.save(), second.save())


def test_the_optimizer_is_itself_again_after_the_training(ranks):
    assert ranks.run(switched, world=1) == [(False, True)]


def switched() -> tuple[bool, bool]:
    engine = make(0)
    before = "step" not in vars(engine.optimizer)
    engine.close()
    return before, "step" not in vars(engine.optimizer)


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_activation_checkpoints_change_no_bit(ranks, kind):
    (found,) = ranks.run(checkpointed, kind, [0, 2, CUT], world=1)
    once = checkpointed(kind, ["plain"], on=False)[0][2]
    for losses, state, calls in [checkpointed(kind, ["plain"])[0], *found]:
        assert calls == 2 * once
        assert losses == plain(3, "sgd", kind)[0]
        assert not equal(state, plain(3, "sgd", kind)[1])


@pytest.mark.parametrize(("kind", "stage"), [("resnet", 0), ("vit", CUT)])
def test_activation_checkpoints_change_no_bit_on_two_ranks(ranks, kind, stage):
    for same in ranks.run(checkpointed_or_not, kind, stage):
        assert same


def checkpointed_or_not(kind: str, stage) -> bool:
    (losses, state, _), (wanted, other) = (
        checkpointed(kind, [stage])[0],
        train(stage, 3, "sgd", kind),
    )
    return losses == wanted and not equal(state, other)


def checkpointed(kind: str, stages, on: bool = True):
    """Losses, state, and how often a layer ran."""
    found = []
    for stage in stages:
        engine = make(stage, "sgd", kind, checkpoint_activations=on)
        model = engine.module.backbone.model
        layers, calls = model.blocks if kind == "vit" else model.layer1, []
        layers[0].register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        losses = advance(engine, 0, 3)
        found.append((losses, engine.save(), len(calls)))
    return found


def test_activation_checkpoints_that_timm_does_not_have_are_refused():
    def forget_how(module: nn.Module) -> None:
        module.backbone.model.set_grad_checkpointing = None

    with pytest.raises(
        RunError,
        match=r"checkpoint_activations: timm has none for resnet18: remove it, or take micro",
    ):
        make("plain", prepare=forget_how, checkpoint_activations=True)
    with pytest.raises(RunError, match="no backbone is in training"):
        make("plain", kind="frozen", checkpoint_activations=True)


@pytest.mark.parametrize("stage", [0, 2, 3, CUT])
def test_a_closed_engine_leaves_a_plain_module_with_the_trained_weights(ranks, stage):
    for state, files, features, plainly in ranks.run(closed, stage):
        model = toy.system("vit")
        model.load_state_dict(state.model)
        assert files == folder_files(model.backbone)
        assert torch.equal(features, model.eval().backbone(toy.views(0)[0]))
        assert plainly


def closed(stage):
    engine = make(stage, "adamw", "vit")
    advance(engine, 0, 2)
    state = engine.save()
    engine.close()
    module = engine.module.eval()
    with torch.no_grad():
        features = module.backbone(toy.views(0)[0])
    plainly = all(type(p) is nn.Parameter and p.device.type == "cpu" for p in module.parameters())
    return (
        state,
        folder_files(module.backbone),
        features,
        plainly and not module.backbone._forward_hooks,
    )


def test_a_whole_run_at_any_stage_ends_in_the_backbone_folder_of_plain(ranks, tmp_path):
    pretrained("plain", tmp_path / "plain")
    wanted = (tmp_path / "plain/backbone/model.safetensors").read_bytes()
    for stage in (1, CUT):
        ranks.run(pretrained, stage, tmp_path / str(stage), world=1)
        assert (tmp_path / str(stage) / "backbone/model.safetensors").read_bytes() == wanted
    ranks.run(pretrained, CUT, tmp_path / "two")
    model, by_two = (
        load_backbone(tmp_path / run / "backbone").state_dict() for run in ("plain", "two")
    )
    close(State(by_two, {}), State(model, {}), rtol=2e-3)


def pretrained(stage, out) -> None:
    settle()
    zero._SMALL = 0 if stage == CUT else 100_000
    engine = (
        "plain" if stage == "plain" else f"{{name: zero, stage: {3 if stage == CUT else stage}}}"
    )
    optimizer = "pretrain.optimizer={name: sgd, lr: 1e-3}"
    changes = (
        f"pretrain.engine={engine}",
        optimizer,
        "pretrain.epochs=1",
        "pretrain.warmup_epochs=0",
    )
    pretrain(toy.recipe(*changes, backbone=toy.VIT), out)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_lars_with_sharded_state_is_refused_with_the_reason(stage):
    with pytest.raises(
        RunError, match=rf"LARS needs whole layers, but ZeRO stage {stage}.*set stage: 0"
    ):
        make(stage, "lars")


def test_a_parameter_without_dimension_is_refused_by_name():
    def shapeless(module: nn.Module) -> None:
        module.temperature = nn.Parameter(torch.tensor(1.0))

    with pytest.raises(RunError, match=r"temperature has no dimension.*make it of shape \(1,\)"):
        make(0, prepare=shapeless)


@pytest.mark.parametrize("layout", [Flat, Split])
def test_a_deepspeed_of_other_names_is_refused_at_the_start(layout):
    with pytest.raises(
        RunError, match=rf"DeepSpeed 9.9 has no {layout.names[0]} any more.*install deepspeed>=0.19"
    ):
        refuse_unknown(object(), layout.names, "9.9")


def test_plain_refuses_several_ranks(ranks):
    for text in ranks.run(plain_refusal):
        assert "zero" in text


def plain_refusal() -> str:
    try:
        make("plain")
    except RunError as error:
        return str(error)
    return "accepted"


@pytest.mark.parametrize("engine", ["plain", *STAGES])
def test_bf16_keeps_parameters_teacher_and_loss_in_fp32(ranks, engine):
    (found,) = ranks.run(in_bf16, engine, world=1)
    exact, _ = plain(2, "sgd", "moco_v2")
    assert found[0] == {torch.float32, torch.int64}
    assert found[1] == [torch.float32] * 2
    assert found[2] == pytest.approx(exact, rel=0.05)
    assert found[2] != exact


def in_bf16(engine):
    made = make(engine, "sgd", "moco_v2", precision="bf16")
    types = []
    made.module.register_forward_hook(lambda _module, _inputs, loss: types.append(loss.value.dtype))
    losses = advance(made, 0, 2)
    return {tensor.dtype for tensor in made.save().model.values()}, types, losses


def test_a_second_forward_in_backward_moves_no_running_statistics_and_keeps_what_the_first_kept():
    norm = nn.BatchNorm1d(3, momentum=None)
    x_BC = torch.randn(4, 3, requires_grad=True)
    y_BC = checkpoint(norm, x_BC, use_reentrant=False)
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    with freeze_running_stats(norm):
        y_BC.square().sum().backward()
    assert before["num_batches_tracked"] == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    norm(x_BC)
    assert norm.num_batches_tracked == 2
