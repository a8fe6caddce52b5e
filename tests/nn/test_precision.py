"""In what a training computes: losses and their products in fp32 whatever the network does, in
their backward too, for every method and objective; and what a GPU has, by its capability.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import toy
from lookalike import comm
from lookalike.engine import speed
from lookalike.engine.plain import Plain
from lookalike.engine.speed import settled
from lookalike.engine.tuning import networks
from lookalike.experiment import Pretrain
from lookalike.methods import METHODS
from lookalike.metric.objectives import OBJECTIVE, OBJECTIVES, Objective
from lookalike.models import Backbone
from lookalike.nn import precision as precisions
from lookalike.nn.heads import mlp
from lookalike.nn.loss import Loss
from lookalike.nn.numerics import exact
from lookalike.nn.precision import (
    autocast,
    by_tensor_cores,
    computed,
    fastest,
    products,
    remark,
    rounded,
    unsupported,
)

REQUIRED: dict[str, dict[str, Any]] = {
    "RankedListLoss": {"margin": 0.4, "Tn": 1.0},
    "WeightedSum": {"parts": [{"objective": "CrossEntropyLoss"}]},
}
CUDA, CPU, MPS = (torch.device(kind) for kind in ("cuda", "cpu", "mps"))
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "linear")
# What only moves numbers, or brings them to another type.
MOVES = ("_to_copy", "view", "t", "detach", "cat", "split", "slice", "clone", "copy_", "alias")


class System(nn.Module):
    """A head and an objective, as fine-tuning has them."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.head = mlp([12, 16, 8])
        spec = OBJECTIVE.spec(name, **REQUIRED.get(name, {}))
        self.objective = Objective(spec, None, num_classes=4, embedding_size=8)

    def forward(self, x_BD: Tensor, labels_B: Tensor) -> Loss:
        loss: Loss = self.objective(self.head(x_BD), labels_B)
        return loss


def method(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    views = toy.views(0, 12)
    more = [view[..., 4:12, 4:12] for view in views] if METHODS[name].more_views else []
    labels = (torch.arange(12) % 3,) if name == "supcon" else ()
    made = METHODS[name](toy.architecture("vit").build(), **toy.HEADS[name]).train()
    return made, ([*views, *more], *labels)


def objective(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    torch.manual_seed(0)
    return System(name).train(), (torch.randn(24, 12), torch.arange(24) * 7 % 4)


MADE = [*((method, name) for name in METHODS), *((objective, name) for name in OBJECTIVES)]
every = pytest.mark.parametrize(
    ("make", "name"), MADE, ids=lambda part: getattr(part, "__name__", part)
)


class Watch(TorchDispatchMode):
    """Each operation: its name, whether a network asked for it, in which type it gave numbers, and
    whether tf32 was allowed.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inside, self.seen = 0, []
        self.borders: set[Any] = set()
        self.losses: set[Any] = set()
        for part in {*networks(module), *(p for p in module.modules() if isinstance(p, Backbone))}:
            part.register_forward_pre_hook(self._enter)
            part.register_forward_hook(self._leave)

    def _enter(self, *_: Any) -> None:
        self.inside += 1

    def _leave(self, part: Any, given: Any, made: Tensor) -> None:
        self.inside -= 1
        if made.grad_fn is not None:
            self.borders.add(made.grad_fn)

    def of_loss(self, value: Tensor) -> None:
        """Marks the nodes of the graph down to what the networks gave."""
        coming = [value.grad_fn]
        while coming:
            node = coming.pop()
            if node is None or node in self.losses or node in self.borders:
                continue
            self.losses.add(node)
            coming += [before for before, _ in node.next_functions]

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        node = torch._C._current_autograd_node()
        loss = node in self.losses if node is not None else not self.inside
        first = found[0] if isinstance(found, tuple | list) and found else found
        kind = first.dtype if isinstance(first, Tensor) else None
        self.seen.append((function._schema.name.split("::")[1], loss, kind, rounded()[0]))
        return found


def step(module: nn.Module, given: tuple[Any, ...], device: torch.device, how: Any) -> Watch:
    """A forward as an engine has it, and a backward."""
    watch = Watch(module)
    with watch:
        with autocast(device, how):
            loss = module(*given)
        watch.of_loss(loss.value)
        with products(device, how):
            loss.value.backward()
    assert loss.value.dtype == torch.float32
    assert loss.value.isfinite()
    return watch


@pytest.fixture(autouse=True)
def flags() -> Iterator[None]:
    """torch's switches are as before when a step has ended."""
    before = rounded()
    yield
    assert rounded() == before


@every
@pytest.mark.filterwarnings("ignore")  # the library's, known in tests/metric/test_metric.py
def test_no_tensor_core_rounds_a_loss_nor_its_gradient(make, name, monkeypatch):
    """The flag is read when a kernel runs: it is off for each product of a loss, forward and
    backward, and on for each of the network.
    """
    watch = step(*make(name), CUDA, "tf32")
    known = [(loss, flag) for op, loss, _, flag in watch.seen if op in PRODUCTS]
    assert {flag for loss, flag in known if loss} <= {False}
    assert {flag for loss, flag in known if not loss} == {True}


@every
@pytest.mark.filterwarnings("ignore")  # the library's, known in tests/metric/test_metric.py
@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_losses_are_computed_in_fp32_under_autocast(make, name, half):
    watch = step(*make(name), CPU, half)
    kinds = {kind for op, loss, kind, _ in watch.seen if op in PRODUCTS and not loss}
    assert precisions.half(half) in kinds
    wrong = {op for op, loss, kind, _ in watch.seen if loss and kind == precisions.half(half)}
    assert wrong <= set(MOVES)


def test_between_exact_parts_the_network_is_rounded_and_the_numbers_are_the_same():
    """Two losses with a network between them, by the flag at each node and against plain torch."""
    weight_DD, x_BD = torch.randn(2, 6, 6, requires_grad=True), torch.randn(4, 6)
    gram = exact(lambda z_BD, more: {"value": (z_BD @ z_BD.T).square().sum(), "more": more})

    def whole(marked: Any) -> Tensor:
        h_BD = (x_BD @ weight_DD[0]).tanh()
        one = marked(h_BD, [1, h_BD])
        return one["value"] + marked(one["more"][1] @ weight_DD[1], None)["value"]

    def seen(marked: Any) -> tuple[list[bool], Tensor]:
        watch = Watch(nn.Module())
        with products(CUDA, "tf32"), watch:
            weight_DD.grad = None
            whole(marked).backward()
        assert weight_DD.grad is not None
        return [flag for op, _, _, flag in watch.seen if op == "mm"], weight_DD.grad

    found, gradient = seen(gram)
    assert found == [True, False, True, False, False, False, True, True, False, False, True]
    plain, expected = seen(gram.__wrapped__)
    assert set(plain) == {True}
    torch.testing.assert_close(gradient, expected)


def test_nothing_is_added_where_nothing_is_rounded():
    x_BD = torch.randn(3, 4, requires_grad=True)
    assert type(exact(torch.sum)(x_BD).grad_fn).__name__ == "SumBackward0"


@pytest.mark.parametrize(
    ("gpu", "capability", "cores", "auto"),
    [
        ("P100", (6, 0), (), "fp32"),
        ("V100", (7, 0), ("fp16",), "fp16"),
        ("T4", (7, 5), ("fp16",), "fp16"),
        ("A100", (8, 0), ("fp16", "bf16", "tf32"), "bf16"),
        ("RTX 4090", (8, 9), ("fp16", "bf16", "tf32"), "bf16"),
        ("H100", (9, 0), ("fp16", "bf16", "tf32"), "bf16"),
        ("B200", (10, 0), ("fp16", "bf16", "tf32"), "bf16"),
    ],
)
def test_what_a_gpu_has_follows_from_its_capability(gpu, capability, cores, auto, monkeypatch):
    assert by_tensor_cores(capability) == cores
    assert fastest(capability) == auto
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert computed("auto", CUDA) == auto
    assert computed("tf32", CUDA) == "tf32"
    for asked in ("bf16", "fp16", "tf32"):
        said = remark(asked, CUDA)
        assert bool(said) == (asked not in cores)
        assert "\n" not in said
    assert remark("auto", CUDA) == remark("fp32", CUDA) == ""


def test_what_a_device_does_with_a_precision_is_said_in_a_line():
    assert unsupported("bf16", (7, 0)) == (
        "precision: bf16 is emulated, slower than fp32 on a GPU of compute capability 7.0: auto "
        "takes fp16"
    )
    for device in (CPU, MPS):
        assert computed("auto", device) == computed("tf32", device) == "fp32"
        assert "tf32 changes nothing" in remark("tf32", device)
        assert remark("fp32", device) == ""
    assert computed("fp16", MPS) == "fp16"
    with products(CPU, "tf32"):
        assert rounded()[0] is False


def test_auto_is_what_all_ranks_have_and_is_said(monkeypatch, capsys):
    settings = toy.recipe("pretrain.precision=auto").section(Pretrain)
    assert settled("pretrain", settings).precision == "fp32"
    assert capsys.readouterr().out == "pretrain: precision: auto is fp32 on a CPU\n"
    monkeypatch.setattr(comm, "gather_objects", lambda _: ["bf16", "fp16", "bf16"])
    assert settled("pretrain", settings).precision == "fp16"
    fixed = toy.recipe().section(Pretrain)
    assert settled("pretrain", fixed) is fixed


def test_remarks_name_the_key():
    settings = toy.recipe("pretrain.precision=tf32").section(Pretrain)
    assert list(speed.remarks("toy.yaml: pretrain", settings)) == [
        "toy.yaml: pretrain.precision: tf32 changes nothing on a CPU, it computes in fp32"
    ]


def test_an_engine_rounds_what_the_network_computes(monkeypatch):
    """Forward and backward are the engine's; its optimizer's step is exact."""
    monkeypatch.setattr(precisions, "computed", lambda *_: "tf32")
    module, given = method("simclr")
    engine, watch = Plain(module, torch.optim.SGD(module.parameters(), 0.1)), Watch(module)
    with watch:
        loss = engine(*given)
        watch.of_loss(loss.value)
        engine.backward(loss.value)
        before = len(watch.seen)
        engine.step()
    known = {(loss, flag) for op, loss, _, flag in watch.seen if op in PRODUCTS}
    assert known == {(True, False), (False, True)}
    assert {flag for *_, flag in watch.seen[before:]} == {False}


def test_a_state_of_one_precision_goes_on_in_another():
    """As `auto` may become another on the next GPU: what is kept is fp32."""
    states = []
    for how in ("bf16", "fp32"):
        module, given = method("byol")
        optimizer = torch.optim.AdamW((p for p in module.parameters() if p.requires_grad), 1e-3)
        engine = Plain(module, optimizer, precision=how)
        if states:
            engine.load(states[0])
        else:
            engine.backward(engine(*given).value)
            engine.step()
        states.append(engine.save())
        engine.backward(engine(*given).value)
    one, other = states
    assert {t.dtype for t in one.model.values()} <= {torch.float32, torch.int64}
    assert one.model.keys() == other.model.keys()
    assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)


def test_batchnorm_counts_in_fp32_under_autocast():
    """Of maps in bf16 the running mean is that of their exact sum, which bf16 has 8 bits of."""
    norm, x_BCHW = nn.BatchNorm2d(3, momentum=1.0), 100 + torch.randn(64, 3, 8, 8)
    half_BCHW = x_BCHW.bfloat16()
    with autocast(CPU, "bf16"):
        norm(half_BCHW)
    assert norm.running_mean is not None
    expected_C = half_BCHW.double().mean(dim=(0, 2, 3)).float()
    torch.testing.assert_close(norm.running_mean, expected_C, rtol=1e-6, atol=1e-5)
