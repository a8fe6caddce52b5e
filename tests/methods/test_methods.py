"""The same laws for every method as a whole: ranks, micro-batches, teachers and queues, state,
learning.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import toy
from lookalike import comm
from lookalike.errors import RecipeError
from lookalike.methods import METHODS
from lookalike.models import Backbone
from lookalike.nn.batchnorm import freeze_running_stats, global_batchnorm
from lookalike.nn.hooks import Deferred, discard, follow, start_step
from lookalike.nn.loss import Loss
from lookalike.nn.method import Method
from lookalike.nn.queue import Queue
from lookalike.nn.teacher import Teacher
from lookalike.optim import Progress
from lookalike.stages.pretrain import build_method

every_method = pytest.mark.parametrize("name", METHODS)


def make(name: str, kind: str = "resnet", seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return METHODS[name](toy.architecture(kind).build(), **toy.HEADS[name]).train()


def inputs(
    name: str, step: int, batch: int = 16, dtype: torch.dtype = torch.float32, small: bool = True
) -> tuple[Any, ...]:
    """What the method takes: views, of which the methods that take more get small ones; labels."""
    views = [view.to(dtype) for view in toy.views(step, batch)]
    if METHODS[name].more_views and small:
        views += [view[..., 4:12, 4:12] for view in views]
    return (views, torch.arange(batch) % 3) if name == "supcon" else (views,)


def part(given: tuple[Any, ...], cut: list[int]) -> tuple[Any, ...]:
    """This rank's rows of the inputs."""
    views = [view.split(cut)[comm.rank()] for view in given[0]]
    return (views, *(labels.split(cut)[comm.rank()] for labels in given[1:]))


def backward(module: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradient, averaged over ranks as an engine does."""
    loss = module(*given).value
    with freeze_running_stats(module):
        loss.backward()
    gradient = {
        n: comm.all_sum(p.grad) / comm.world_size()
        for n, p in module.named_parameters()
        if p.requires_grad
    }
    return loss.detach(), gradient


def two_steps(
    name: str, kind: str, cut: list[int]
) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Losses of two steps of gradient descent in fp64, the second step's gradient, the buffers
    after it.
    """
    module = global_batchnorm(make(name, kind).double())
    losses = []
    for step in range(2):
        module.zero_grad()
        start_step(module, Progress(step, 10, step / 2))
        loss, gradient = backward(module, part(inputs(name, step, sum(cut), torch.float64), cut))
        with torch.no_grad():
            for n, p in module.named_parameters():
                if n in gradient:
                    p -= 0.1 * gradient[n]
        follow(module)
        losses.append(loss)
    return losses, gradient, dict(module.named_buffers())


# On four ranks in every suite: a queue, prototypes in balance, whitening by slices; on two each
# kind of method. The gradient of all on ranks is in test_losses.py.
ON_FOUR = ("moco_v2", "swav", "w_mse")
ON_TWO = ("barlow_twins", "simclr", "byol", "dino", "nnclr", "tico", "supcon")


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        pytest.param(
            name,
            cut,
            marks=()
            if (name, cut)
            in [(name, [5, 11]) for name in ON_TWO] + [(name, [3, 6, 5, 2]) for name in ON_FOUR]
            else pytest.mark.slow,
        )
        for name in METHODS
        for cut in ([5, 11], [3, 6, 5, 2], [8, 8], [4, 4, 4, 4])
    ],
    ids=str,
)
def test_a_method_trains_on_ranks_as_in_one_process(ranks, name, cut):
    """Backbone and heads with batch statistics, teacher, queue and centre included, in fp64."""
    losses, gradient, buffers = two_steps(name, "resnet", [16])
    largest = max(float(g.abs().max()) for g in gradient.values())
    for other, found, held in ranks.run(two_steps, name, "resnet", cut, world=len(cut)):
        torch.testing.assert_close(other, losses, rtol=1e-9, atol=0)
        assert found.keys() == gradient.keys()
        for n in gradient:
            torch.testing.assert_close(found[n], gradient[n], rtol=1e-9, atol=1e-9 * largest, msg=n)
        for n in buffers:
            torch.testing.assert_close(held[n], buffers[n], rtol=1e-9, atol=1e-12, msg=n)


def in_pieces(name: str, kind: str, pieces: int) -> tuple[Tensor, dict[str, Tensor], nn.Module]:
    module = make(name, kind).double()
    for each in module.modules():
        if isinstance(each, Backbone):
            each.pieces = pieces
    # No small views: timm resamples their position embedding in fp32.
    return *backward(module, inputs(name, 0, 16, torch.float64, small=False)), module


@pytest.mark.parametrize("pieces", [4, 8])
@every_method
def test_micro_batches_give_the_gradient_of_the_whole_batch(name, pieces):
    """Exactly so for a backbone without batch statistics; the heads' statistics are the whole
    batch's anyway.
    """
    loss, gradient, _ = in_pieces(name, "vit", 1)
    other, found, _ = in_pieces(name, "vit", pieces)
    torch.testing.assert_close(other, loss, rtol=1e-12, atol=0)
    largest = max(float(g.abs().max()) for g in gradient.values())
    for n in gradient:
        torch.testing.assert_close(found[n], gradient[n], rtol=1e-9, atol=1e-12 * largest, msg=n)


def test_micro_batches_keep_the_activations_of_one_of_them():
    """What autograd holds between forward and backward, in bytes, beside the views themselves."""

    def held(pieces: int) -> int:
        module = make("simclr", "vit")
        module.backbone.pieces = pieces
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            module(*inputs("simclr", 0, 64))
        return sum(sizes.values())

    assert held(8) < held(1) / 4


def test_micro_batches_of_a_backbone_with_batch_statistics_are_counted_once():
    """Its BatchNorms see the pieces one after another; running forward again in backward moves
    nothing.
    """
    _, _, module = in_pieces("barlow_twins", "resnet", 4)
    counts = {
        int(b) for n, b in module.backbone.named_buffers() if n.endswith("num_batches_tracked")
    }
    assert counts == {2 * 4}
    by_hand = make("barlow_twins").double()
    for view in inputs("barlow_twins", 0, 16, torch.float64)[0]:
        for piece in view.split(4):
            by_hand.backbone(piece)
    for (n, a), (_, b) in zip(
        module.backbone.named_buffers(), by_hand.backbone.named_buffers(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14, msg=n)


@pytest.mark.parametrize(
    "name", [n for n in METHODS if any(isinstance(m, Teacher) for m in make(n).modules())]
)
def test_a_teacher_is_the_moving_average_and_is_never_trained(name):
    module = make(name)
    teacher = module.teacher
    students = [module.backbone, module.head if name == "dino" else module.projector]
    optimizer = torch.optim.SGD((p for p in module.parameters() if p.requires_grad), lr=0.5)
    wanted = [p.clone() for p in teacher.parameters()]
    own = [p for student in students for p in student.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), own, strict=True))
    for step in range(3):
        teacher.on_step(Progress(step, 5, 0.0))
        module(*inputs(name, step)).value.backward()
        optimizer.step()
        optimizer.zero_grad()
        assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), wanted, strict=True))
        follow(module)
        momentum = teacher.now
        wanted = [
            momentum * w + (1 - momentum) * p.detach() for w, p in zip(wanted, own, strict=True)
        ]
        for a, b in zip(teacher.parameters(), wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
            assert a.grad is None
            assert not a.requires_grad
        wanted = [p.clone() for p in teacher.parameters()]
    assert any(not torch.equal(a, b) for a, b in zip(teacher.parameters(), own, strict=True))


def test_the_momentum_of_a_teacher_ends_at_its_final_value():
    teacher = Teacher(nn.Linear(2, 2), momentum=0.9, final=1.0)
    seen = []
    for step in range(11):
        teacher.on_step(Progress(step, 11, 0.0))
        seen.append(teacher.now)
    assert seen[0] == pytest.approx(0.9)
    assert seen[5] == pytest.approx(0.95)
    assert seen[10] == 1.0
    assert seen == sorted(seen)


def test_a_queue_holds_the_newest_rows_in_their_order_and_only_after_a_good_step():
    queue, wanted = Queue(5, 2), []
    for step in range(4):
        rows = torch.arange(6.0).reshape(3, 2) + 10 * step
        queue.put(rows + 1000)
        queue.discard()
        queue.put(rows)
        before = queue.rows_QD.clone()
        assert torch.equal(queue.rows_QD, before)
        queue.commit()
        wanted += rows.tolist()
    assert sorted(queue.rows_QD.tolist()) == sorted(wanted[-5:])
    assert int(queue.written) == 12
    queue.eval().put(torch.zeros(3, 2))
    queue.commit()
    assert int(queue.written) == 12


def test_a_batch_longer_than_the_queue_leaves_its_last_rows():
    queue = Queue(4, 1)
    queue.put(torch.arange(11.0)[:, None])
    queue.commit()
    assert sorted(queue.rows_QD.flatten().tolist()) == [7, 8, 9, 10]


@every_method
def test_a_method_comes_back_from_its_state(name):
    module, other = make(name), make(name, seed=1)
    module(*inputs(name, 0)).value.backward()
    follow(module)
    other.load_state_dict(module.state_dict())
    found = module(*inputs(name, 1)), other(*inputs(name, 1))
    assert torch.equal(found[0].value, found[1].value)
    assert all(
        isinstance(loss, Loss) and loss.terms and len(loss.embeddings) >= 1 for loss in found
    )


@every_method
def test_thirty_steps_reduce_the_loss(name):
    """Of the same views; the mean of the first three against that of the last three."""
    module = make(name)
    optimizer = torch.optim.AdamW((p for p in module.parameters() if p.requires_grad), lr=1e-3)
    losses = []
    for step in range(30):
        start_step(module, Progress(step, 30, 1.0 + step / 30))
        loss = module(*inputs(name, 5, 32)).value
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        follow(module)
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("name", ["dino", "swav"])
def test_frozen_prototypes_have_a_gradient_of_zeros(name):
    module = make(name)
    prototypes = module.head.prototypes if name == "dino" else module.prototypes
    for frozen in (True, False):
        prototypes.frozen = frozen
        module.zero_grad()
        module(*inputs(name, 0)).value.backward()
        assert bool((prototypes.weight.grad == 0).all()) == frozen


def test_the_temperature_of_dinos_teacher_rises_over_its_first_epochs():
    module = make("dino")
    found = []
    for epoch in (0, 15, 30, 99):
        module.on_step(Progress(0, 10, float(epoch)))
        found.append(module.teacher_temperature)
    assert found == pytest.approx([0.04, 0.055, 0.07, 0.07])


def test_dinos_centre_is_the_running_mean_of_the_teachers_logits():
    module = make("dino")
    views = inputs("dino", 0)[0]
    with torch.no_grad():
        logits = module.teacher.copies[1](module.teacher.copies[0](torch.cat(views[:2])))
    fresh = make("dino")
    fresh(views)
    assert not fresh.centre.mean_K.any()
    follow(fresh)
    torch.testing.assert_close(fresh.centre.mean_K, 0.1 * logits.mean(0), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("accumulate", [1, 2, 5])
def test_ticos_covariance_after_micro_batches_is_that_of_as_many_steps(accumulate):
    """Against a loop that knows neither stage nor commit: one outer product a row, in fp64."""
    module, beta, wanted = (
        make("tico").double(),
        toy.HEADS["tico"]["beta"],
        torch.zeros(8, 8).double(),
    )
    for step in range(2):
        before, covariances = module.past_DD.clone(), []
        for micro in range(accumulate):
            (views,) = inputs("tico", 10 * step + micro, 16, torch.float64)
            rows = module(views).embeddings[0]
            covariances.append(sum(torch.outer(z, z) / z.dot(z) for z in rows) / len(rows))
            assert torch.equal(module.past_DD, before)
        follow(module)
        for covariance in covariances:
            wanted = beta * wanted + (1 - beta) * covariance
        torch.testing.assert_close(module.past_DD, wanted, rtol=1e-12, atol=1e-15)


def test_ticos_micro_batches_all_see_the_past_of_before_the_step():
    """Then the gradient of a step does not hang on the order of its micro-batches."""
    module = make("tico").double()
    module.past_DD.copy_(torch.eye(8))
    given = [inputs("tico", micro, 16, torch.float64) for micro in range(2)]
    first = [module(*each).value for each in given]
    discard(module)
    second = [module(*each).value for each in reversed(given)]
    torch.testing.assert_close(first, second[::-1], rtol=1e-12, atol=0)


def test_the_slices_of_w_mse_are_a_pure_function_of_the_runs_seed_and_the_step():
    module, given = make("w_mse").eval(), inputs("w_mse", 0)
    values = {}
    for seed, step in ((0, 0), (0, 1), (1, 0), (1, 1)):
        start_step(module, Progress(step, 9, 0.0, seed))
        values[seed, step] = module(*given).value.item()
        assert module(*given).value.item() == values[seed, step]
    assert len(set(values.values())) == 4


@every_method
def test_a_method_says_by_type_what_it_is(name):
    kind = METHODS[name]
    assert issubclass(kind, Method)
    assert (kind.needs_labels, kind.more_views) == (name == "supcon", name in ("dino", "swav"))
    assert isinstance(make(name).backbone, Backbone)


@every_method
def test_a_skipped_step_leaves_no_bit_of_what_is_deferred(name):
    """Of two micro-batches. What BatchNorms have moved the engine puts back: here they keep
    nothing.
    """
    module = make(name, "vit")
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    deferred = [part for part in module.modules() if isinstance(part, Deferred)]
    before = {n: t.clone() for n, t in module.state_dict().items()}
    for skip in (True, False):
        for micro in range(2):
            module(*inputs(name, micro, small=False))
        assert toy.same(module.state_dict(), before)
        if skip:
            discard(module)
        for part in deferred:
            part.commit()
        assert toy.same(module.state_dict(), before) == (skip or not deferred)


def test_simsiams_predictor_keeps_its_rate():
    from lookalike.optim import OPTIMIZERS, parameter_groups, set_rates

    module = make("simsiam")
    optimizer = OPTIMIZERS["sgd"](parameter_groups(module), lr=0.1)
    set_rates(optimizer, 0.5)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert {rate[id(p)] for p in module.predictor.parameters()} == {0.1}
    assert {rate[id(p)] for p in module.backbone.parameters()} == {0.05}


def test_a_slice_too_small_to_whiten_is_refused():
    with pytest.raises(ValueError, match="slice_size 4 cannot whiten 4 dimensions"):
        METHODS["w_mse"](toy.architecture().build(), projector=(16, 4), slice_size=4)


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (
            "{name: byol, projector: [64, 32], predictor: [64, 16]}",
            "predictor ends 16 wide and projector 32",
        ),
        (
            "{name: moco_v3, projector: [64, 32], predictor: [16]}",
            "predictor ends 16 wide and projector 32",
        ),
        (
            "{name: nnclr, projector: [64, 32], predictor: [64, 16]}",
            "predictor ends 16 wide and projector 32",
        ),
        (
            "{name: w_mse, projector: [64, 32], slice_size: 32}",
            "slice_size 32 cannot whiten 32 dimensions",
        ),
        ("{name: w_mse, shrink: 1.01}", "1"),
        *(
            (f"{{name: {name}, projector: []}}", "projector")
            for name in ("byol", "moco_v2", "simsiam", "swav", "tico")
        ),
    ],
)
def test_heads_that_do_not_fit_are_refused_with_their_place(method, reason):
    with pytest.raises(RecipeError, match=r"pretrain\.method") as caught:
        build_method(toy.recipe(f"pretrain.method={method}"))
    assert reason in str(caught.value)
