"""What happens around a step: each hook is found by its type, and by nothing else."""

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from pytorch_metric_learning import losses
from torch import Tensor, nn

import lookalike
import toy
from lookalike.engine import ENGINES
from lookalike.metric.objectives import OBJECTIVE, Objective
from lookalike.nn.hooks import Deferred, Follower, Scheduled, discard, follow, start_step
from lookalike.nn.method import Method
from lookalike.optim import OPTIMIZERS, Progress, parameter_groups
from lookalike.stages.pretrain import pretrain

HOOKS = ("begin", "follow", "forget", "on_step", "stage", "write", "commit", "discard", "update")
HINTS = ("affine", "lr_scales", "constant_lr")


class Sums(Scheduled, Deferred, Follower):
    """Every hook in one module: a buffer of sums, a weight that counts good steps."""

    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2))
        self.count = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.seen: list[Progress] = []

    def on_step(self, progress: Progress) -> None:
        self.seen.append(progress)

    def write(self, first: Tensor, second: Tensor) -> None:
        self.total.mul_(2).add_(torch.stack([first, second]))

    def update(self) -> None:
        self.count += 1


def test_what_is_staged_is_written_in_order_at_commit_and_only_once():
    part = Sums()
    for value in (1.0, 10.0):
        part.stage(torch.tensor(value), torch.tensor(-value))
    assert part.total.tolist() == [0, 0]
    follow(nn.Sequential(part))
    assert part.total.tolist() == [12, -12]
    follow(nn.Sequential(part))
    assert part.total.tolist() == [12, -12]
    assert part.count.item() == 2


def test_what_is_discarded_is_never_written():
    part = Sums()
    part.stage(torch.ones(()), torch.ones(()))
    discard(nn.Sequential(part))
    part.commit()
    assert not part.total.any()
    assert not part.count.any()


def test_nothing_is_staged_in_evaluation_and_no_graph_is_kept():
    part, x = Sums(), torch.ones((), requires_grad=True)
    part.eval().stage(x, x)
    part.commit()
    assert not part.total.any()
    part.train().stage(2 * x, x)
    assert not any(tensor.requires_grad for tensor in part._staged[0])
    part.commit()
    assert part.total.tolist() == [2, 1]


def test_every_scheduled_module_hears_where_the_training_stands():
    parts, progress = nn.Sequential(Sums(), nn.Sequential(Sums())), Progress(3, 9, 0.5, 7)
    start_step(parts, progress)
    assert parts[0].seen == parts[1][0].seen == [progress]


def test_a_base_without_its_hook_says_so():
    for call in (lambda: Scheduled().on_step(Progress(0, 1, 0.0)), lambda: Follower().update()):
        with pytest.raises(NotImplementedError):
            call()


def spoil(patch: pytest.MonkeyPatch, kind: type) -> None:
    """Gives somebody else's class methods of our names."""

    def called(*_: object) -> None:
        raise AssertionError("found by its name")

    for name in (*HOOKS, *HINTS):
        patch.setattr(kind, name, called, raising=False)
    patch.setattr(kind, "unnormalised", True, raising=False)
    patch.setattr(kind, "elementwise", True, raising=False)


def test_a_timm_model_with_methods_of_our_names_is_trained_as_ever(monkeypatch, tmp_path, whole):
    recipe = toy.recipe()
    spoil(monkeypatch, timm.models.resnet.ResNet)
    spoil(monkeypatch, nn.BatchNorm1d)
    assert toy.same(toy.tensors(pretrain(recipe, tmp_path / "run").parent), toy.tensors(whole))


def test_a_skipped_step_asks_no_stranger_either(monkeypatch):
    spoil(monkeypatch, timm.models.resnet.ResNet)
    module = toy.system()
    engine = ENGINES["plain"](module, OPTIMIZERS["sgd"](parameter_groups(module), lr=0.1))
    for skip in (True, False):
        engine.backward(engine(toy.views(0)).value)
        engine.step(skip)
        engine.follow()


def test_a_loss_of_the_library_with_methods_of_our_names_is_the_librarys(monkeypatch):
    z, labels = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3

    def value() -> Tensor:
        objective = Objective(
            OBJECTIVE.spec("ContrastiveLoss"), None, num_classes=3, embedding_size=5
        ).double()
        start_step(objective, Progress(0, 9, 0.0))
        found = objective(z, labels).value
        follow(objective)
        discard(objective)
        assert objective.affine() is None
        return found

    wanted = value()
    spoil(monkeypatch, losses.ContrastiveLoss)
    assert torch.equal(value(), wanted)


def ours(kind: type = nn.Module) -> Iterator[type]:
    """Every module class of the package, however deep it descends."""
    for child in kind.__subclasses__():
        if child.__module__.startswith("lookalike."):
            yield child
        yield from ours(child)


def test_every_class_with_a_hooks_name_is_of_its_type():
    for found in pkgutil.walk_packages(lookalike.__path__, "lookalike."):
        if not found.name.endswith("__main__"):
            importlib.import_module(found.name)
    kinds = set(ours())
    names = {kind.__name__ for kind in kinds if issubclass(kind, Deferred)}
    deferring = {"Queue", "Memory", "Centre", "Running", "TiCo", "DynamicSoftMarginLoss"}
    assert names == {"Deferred", *deferring}
    for kind in kinds:
        assert not {"begin", "follow", "forget"} & set(dir(kind)), kind
        for name, base in {
            **dict.fromkeys(("stage", "write", "commit", "discard"), Deferred),
            "update": Follower,
            "on_step": Scheduled,
        }.items():
            assert not callable(getattr(kind, name, None)) or issubclass(kind, base), (kind, name)
        if issubclass(kind, Deferred) and kind is not Deferred:
            own = vars(kind)
            assert "write" in own or {"commit", "discard"} <= own.keys(), kind
    assert {kind for kind in kinds if hasattr(kind, "n_views")} == set(ours(Method)) | {Method}


def test_no_hook_is_looked_up_by_its_name():
    names = {*HOOKS, *HINTS, "constant_rate", "paces", "unnormalised", "elementwise"}
    for path in Path(lookalike.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in (
                "getattr",
                "hasattr",
            ):
                asked = node.args[1]
                assert not (isinstance(asked, ast.Constant) and asked.value in names), path
