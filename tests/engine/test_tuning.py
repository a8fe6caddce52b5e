"""Options that pay: what is compiled and how often, how weights lie, what is recomputed; numbers
and names stay, and afterwards all is as before.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

import toy
from lookalike import comm
from lookalike.engine import speed, tuning
from lookalike.engine.plain import Plain
from lookalike.engine.speed import Speed, lacking
from lookalike.engine.tuning import (
    compiled,
    is_convolutional,
    lay_channels_last,
    networks,
    prepared,
    tuned,
    wants_channels_last,
)
from lookalike.errors import RecipeError
from lookalike.experiment import Pretrain
from lookalike.methods import METHODS
from lookalike.models import Architecture, Backbone
from lookalike.nn.precision import rounded
from lookalike.stages.pretrain import pretrain

# Networks of each: backbone, projector, predictor, and the teacher's.
COMPILED = {"byol": 5, "moco_v2": 4, "moco_v3": 5, "tico": 4, "nnclr": 3, "simsiam": 3, "dino": 4}
# torch's compiler, of itself, where warnings are errors.
traced = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
CUDA, CPU = torch.device("cuda"), torch.device("cpu")
FAST = [("simclr", "resnet"), ("dino", "vit")]
slow = pytest.mark.slow


def make(name: str, kind: str = "resnet", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return METHODS[name](toy.architecture(kind).build(), **toy.HEADS[name]).train()


def inputs(name: str) -> tuple[Any, ...]:
    views = toy.views(0, 12)
    more = [view[..., 4:12, 4:12] for view in views] if METHODS[name].more_views else []
    labels = (torch.arange(12) % 3,) if name == "supcon" else ()
    return ([*views, *more], *labels)


def steps(
    module: nn.Module, given: tuple[Any, ...], precision: Any = "fp32", **how: Any
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Two steps of an engine: losses, and the state after them."""
    optimizer = torch.optim.SGD((p for p in module.parameters() if p.requires_grad), 0.05)
    engine, losses = Plain(module, optimizer, precision=precision, **how), []
    for _ in range(2):
        loss = engine(*given).value
        engine.backward(loss)
        engine.step()
        engine.follow()
        losses.append(loss.detach())
    engine.close()
    return losses, {name: t.clone() for name, t in module.state_dict().items()}


def counted(
    module: nn.Module, given: tuple[Any, ...], backend: str = "eager", **how: Any
) -> tuple[list[Tensor], dict[str, Tensor], int]:
    """The same compiled; and how many graphs that took, breaks within them none."""
    counters.clear()
    counter = CompileCounterWithBackend(backend)
    with compiled(module, True, counter):
        losses, state = steps(module, given, **how)
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert not counters["recompile_limit"]
    return losses, state, counter.frame_count


@traced
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param(name, kind, marks=[] if (name, kind) in FAST else slow)
        for name in METHODS
        for kind in ("resnet", "vit")
    ],
)
def test_a_compiled_method_is_one_graph_a_network_and_size(name, kind):
    """In two steps, without a break in any; with the numbers and the names of the other."""
    module, given = make(name, kind), inputs(name)
    losses, state = steps(copy.deepcopy(module), given)
    found, after, graphs = counted(module, given)
    assert len(networks(module)) == COMPILED.get(name, 2)
    assert graphs == len(networks(module)) + METHODS[name].more_views
    assert list(after) == list(state)
    for one, other in zip([*found, *after.values()], [*losses, *state.values()], strict=True):
        assert torch.equal(one, other)
    assert all(part._compiled_call_impl is None for part in module.modules())


@traced
@pytest.mark.parametrize(
    ("how", "kind"),
    [
        ("pieces", "vit"),
        pytest.param("pieces", "resnet", marks=slow),
        ("checkpoint_activations", "vit"),
    ],
)
def test_a_compiled_network_may_run_again_in_backward(how, kind):
    module, given = make("simclr", kind), inputs("simclr")
    keys = {how: True} if how == "checkpoint_activations" else {}
    module.backbone.pieces = 1 if keys else 2
    losses, state = steps(copy.deepcopy(module), given, **keys)
    found, after, _ = counted(module, given, **keys)
    assert all(map(torch.equal, [*found, *after.values()], [*losses, *state.values()]))


@traced
@slow
@pytest.mark.parametrize(("kind", "precision"), [("resnet", "fp32"), ("vit", "bf16")])
def test_what_the_compiler_makes_is_equal_to_rounding(kind, precision):
    """Of two steps: 1e-5 of the loss in fp32, a bf16 step's rounding in bf16."""
    module, given = make("simclr", kind), inputs("simclr")
    losses, _ = steps(copy.deepcopy(module), given, precision)
    with tuned(module, Speed(compile=True)):
        found, _ = steps(module, given, precision)
    near = {"fp32": 1e-5, "bf16": 3e-2}[precision]
    torch.testing.assert_close(found, losses, rtol=near, atol=near)


def on_ranks(compile_it: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
    module, (views,) = make("simclr"), inputs("simclr")
    made = prepared(module, Speed())
    own = [view.chunk(2)[comm.rank()] for view in views]
    with compiled(made, True, "eager") if compile_it else contextlib.nullcontext():
        losses = []
        for _ in range(2):
            loss = made(own).value
            loss.backward()
            losses.append(loss.detach())
    return losses, {name: p.grad for name, p in made.named_parameters()}


@slow
def test_batchnorm_over_ranks_stays_outside_of_the_graphs(ranks):
    for (losses, gradient), (found, after) in zip(
        ranks.run(on_ranks, False), ranks.run(on_ranks, True), strict=True
    ):
        assert all(map(torch.equal, [*found, *after.values()], [*losses, *gradient.values()]))


@traced
def test_what_a_cuda_graph_gives_is_copied_before_anyone_keeps_it():
    """A backend whose output is overwritten by the next call, as the memory of a graph is."""
    kept = torch.zeros(2, 3)

    def replayed(graph: Any, _: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            kept.copy_(graph(*args)[0].detach())
            return (kept,)

        return call

    part = nn.Sequential(nn.Linear(3, 3))
    with torch.no_grad():
        given = torch.stack([torch.eye(3)[:2], torch.ones(2, 3)])
        expected = [part(x) for x in given]
        part.compile(backend=replayed)
        tuning._copy_out(part)
        found = [part(x) for x in given]
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (("engine={name: zero, stage: 3}",), "compile: ZeRO stage 3 gathers parameters inside"),
        (("micro_batch=48",), "but micro_batch runs the network again in backward: remove that"),
        (
            ("engine={name: plain, checkpoint_activations: true}",),
            "but engine.checkpoint_activations runs the network again in backward: remove that",
        ),
        (
            ("compile=true", "engine={name: plain, checkpoint_activations: true}"),
            "a compiled BatchNorm moves its statistics, but engine.checkpoint_activations runs",
        ),
    ],
)
def test_what_cannot_be_had_together_is_refused_in_a_line(words, refused, tmp_path):
    words = [f"pretrain.{word}" for word in ("compile=reduce-overhead", *words)]  # the last counts
    with pytest.raises(RecipeError, match=refused) as caught:
        pretrain(toy.recipe(*words), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("toy.yaml: pretrain.compile: ")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_without_a_compiler_the_first_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(
        RecipeError, match=r"^toy.yaml: pretrain.compile: torch.compile needs a comp"
    ):
        pretrain(toy.recipe("pretrain.compile=true"), tmp_path / "run")
    assert "g++ is not there: install it, set CXX" in lacking("cpu")
    monkeypatch.setenv("CXX", "/nowhere/cc -m64")
    assert "/nowhere/cc is not there" in lacking("cpu")
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda _: None)
    assert "pip install triton" in lacking("cuda")
    assert "not relied on for mps" in lacking("mps")


def test_where_there_is_no_cuda_graph_a_line_says_so():
    settings = toy.recipe("pretrain.compile=reduce-overhead").section(Pretrain)
    (said,) = speed.remarks("toy.yaml: pretrain", settings)
    assert (
        said == "toy.yaml: pretrain.compile: reduce-overhead needs a CUDA GPU: here it is as true"
    )


# ---- layout


class Layout(TorchDispatchMode):
    """What a forward and backward copy from one layout to another, and what their convolutions
    read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copies: list[str] = []
        self.read: list[bool] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        name = function._schema.name
        maps = [x for x in args if isinstance(x, Tensor) and x.dim() == 4]
        if "convolution" in name or "batch_norm" in name:
            self.read += [last(x) for x in maps]
        elif (
            isinstance(found, Tensor) and maps and found.dim() == 4 and last(found) != last(maps[0])
        ):
            self.copies.append(name)
        return found


def last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def backbone(name: str = "resnet50", size: int = 32, **args: Any) -> Backbone:
    torch.manual_seed(0)
    return Architecture(name=name, size=size, args=args).build()


def resnet() -> Backbone:
    return backbone(channels=[8, 8, 16, 16], layers=[1, 1, 1, 1])


def passed(network: nn.Module, x_BCHW: Tensor) -> Layout:
    seen = Layout()
    with seen:
        network(x_BCHW).square().sum().backward()
    return seen


def test_channels_last_is_end_to_end():
    """No map of a ResNet is copied to another layout, forward or backward, and every convolution
    and BatchNorm reads and gets them so; without it weights are not.
    """
    x_BCHW = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    network = resnet().train()
    before = passed(copy.deepcopy(network), x_BCHW)
    assert not all(before.read)
    lay_channels_last(network)
    seen = passed(network, x_BCHW)
    assert len(seen.read) > 60
    assert all(seen.read)
    assert seen.copies == []


def test_channels_last_changes_no_name_no_shape_and_no_file():
    network = resnet()
    other = copy.deepcopy(network)
    lay_channels_last(network)
    assert network.files() == other.files()
    assert list(network.state_dict()) == list(other.state_dict())
    weight = network.model.layer1[0].conv2.weight
    assert last(weight)
    assert not weight.is_contiguous()
    assert isinstance(weight, nn.Parameter)


@slow
def test_a_run_is_the_same_in_another_layout(tmp_path):
    """To rounding, and its files are; the key is free, so it is finished for who leaves it out."""
    words = ["pretrain.epochs=1", "pretrain.warmup_epochs=0", "pretrain.views={name: symmetric}"]
    plain = pretrain(toy.recipe(*words), tmp_path / "plain")
    lasting = pretrain(toy.recipe(*words, "pretrain.channels_last=true"), tmp_path / "last")
    found = toy.tensors(tmp_path / "last", 9)
    for name, one in toy.tensors(tmp_path / "plain", 9).items():
        torch.testing.assert_close(found[name], one, rtol=1e-2, atol=1e-2)
    assert pretrain(toy.recipe(*words), tmp_path / "last") == lasting
    assert sorted(p.name for p in plain.iterdir()) == sorted(p.name for p in lasting.iterdir())


def test_by_default_it_is_for_convolutions_on_tensor_cores(monkeypatch):
    convolutional, attentive = resnet(), backbone("vit_tiny_patch16_224", size=32, depth=1)
    assert is_convolutional(convolutional)
    assert not is_convolutional(attentive)
    both = nn.ModuleList([convolutional, attentive])
    for settings, device, wanted in [
        (Speed(), CPU, []),
        (Speed(precision="bf16"), CPU, []),
        (Speed(), CUDA, []),
        (Speed(precision="bf16"), CUDA, [convolutional]),
        (Speed(precision="tf32"), CUDA, [convolutional]),
        (Speed(precision="bf16", channels_last=False), CUDA, []),
        (Speed(channels_last=True), CPU, [convolutional, attentive]),
    ]:
        assert wants_channels_last(both, settings, device) == wanted


# ---- torch's switches


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = rounded(), torch.backends.cudnn.benchmark
    yield
    assert (rounded(), torch.backends.cudnn.benchmark) == before


def test_switches_are_set_for_a_training_and_put_back(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    module = nn.Linear(2, 2)
    with contextlib.suppress(KeyError), tuned(module, Speed(), CUDA):
        assert rounded() == (False, False)
        assert torch.backends.cudnn.benchmark
        raise KeyError
    assert rounded() == (False, True)
    with tuned(module, Speed(), CPU):
        assert rounded() == (False, True)
        assert not torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with tuned(module, Speed(), CUDA):
        assert not torch.backends.cudnn.benchmark
