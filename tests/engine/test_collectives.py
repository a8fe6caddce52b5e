"""What a step says to other ranks, counted: how many collectives of which kind, how many bytes, and
when.
"""

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import toy
from lookalike import comm
from lookalike.engine import ENGINES, State, zero
from lookalike.engine.buckets import cut_up
from lookalike.nn.batchnorm import GlobalBatchNorm, global_batchnorm
from lookalike.optim import OPTIMIZERS, parameter_groups

KINDS = ("all_reduce", "all_gather", "all_gather_single", "all_gather_into_tensor", "broadcast")
# DeepSpeed keeps these for itself at its start.
KEPT = {"all_gather_function": "gather", "reduce_scatter_function": "reduce_scatter"}
SMALL_MB = 0.01  # of which a toy's gradient fills several


class Said(NamedTuple):
    """One collective: how many numbers of which type, on behalf of whom, and whether backward was
    still to come to other parameters.
    """

    kind: str
    numbers: int
    dtype: torch.dtype
    gradient: bool
    waits: bool
    early: bool


class Ear:
    """Hears every collective of torch.distributed while it is entered."""

    def __init__(self, module: nn.Module) -> None:
        self.heard: list[Said] = []
        self.left: set[int] = set()
        self._trained = [p for p in module.parameters() if p.requires_grad]
        self._hooks = [p.register_hook(self._seen(i)) for i, p in enumerate(self._trained)]
        self._old: list[tuple[Any, str, Any]] = []

    def _seen(self, i: int) -> Callable[[Tensor], None]:
        return lambda _: self.left.discard(i)

    def __enter__(self) -> "Ear":
        self.heard, self.left = [], set(range(len(self._trained)))
        import deepspeed.comm.comm

        backend = deepspeed.comm.comm.cdb
        places = [(dist, kind, kind) for kind in KINDS if hasattr(dist, kind)]
        places += [(backend, name, kind) for name, kind in KEPT.items()]
        for place, name, kind in places:
            old = getattr(place, name)
            self._old.append((place, name, old))
            setattr(place, name, functools.partial(self._hear, kind, old))
        return self

    def _hear(self, kind: str, old: Any, *given: Any, **named: Any) -> Any:
        first = next(x for x in (*given, *named.values()) if isinstance(x, Tensor | list))
        x = first if isinstance(first, Tensor) else first[0]
        gradient = named.get("group") is not None and named["group"] is comm.gradient_group()
        waits = not named.get("async_op", False)
        self.heard.append(Said(kind, x.numel(), x.dtype, gradient, waits, bool(self.left)))
        return old(*given, **named)

    def __exit__(self, *_: Any) -> None:
        for place, name, old in self._old:
            setattr(place, name, old)


def made(kind: str, stage: int, accumulate: int = 1, seed: int = 0, **options: Any) -> Any:
    module = global_batchnorm(toy.system(kind, seed))
    optimizer = OPTIMIZERS["sgd"](parameter_groups(module), lr=1e-3)
    options = {"bucket_mb": SMALL_MB, **options}
    return ENGINES["zero"](module, optimizer, accumulate=accumulate, stage=stage, **options)


def a_step(engine: Any, step: int) -> None:
    """As the loop takes it."""
    for micro in range(engine.accumulate):
        views = [
            v.tensor_split(comm.world_size())[comm.rank()] for v in toy.views(10 * step + micro)
        ]
        with comm.rows_known([len(views[0])] * comm.world_size()):
            engine.backward(engine(views).value)
        engine.step()
    engine.follow()


def heard(
    kind: str, stage: int, accumulate: int = 1, **options: Any
) -> tuple[list[Said], int, int]:
    """What the third step says; how many layers of BatchNorm a forward passes, how many numbers the
    gradient has.
    """
    engine = made(kind, stage, accumulate, **options)
    norms = [m for m in engine.module.modules() if isinstance(m, GlobalBatchNorm)]
    trained = sum(
        getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters() if p.requires_grad
    )
    ear = Ear(engine.module)
    a_step(engine, 0), a_step(engine, 1)
    with ear:
        a_step(engine, 2)
    engine.close()
    return ear.heard, len(norms), trained


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_step_at_stage_0_says_what_it_must_and_begins_while_backward_runs(ranks, kind):
    (said, norms, trained), (other, _, _) = ranks.run(heard, kind, 0)
    assert said == other
    counted = collections.Counter(one.kind for one in said if not one.gradient)
    # Every layer sees two views; a sum of the values, one of their squares, one of both slopes. The
    # loss standardizes each view without a layer: as much again. Its own sums are the same few
    # for any network.
    passes = 2 * norms + 2
    assert counted.keys() <= {"all_reduce", "all_gather_single", "all_gather_into_tensor"}
    assert 3 * passes <= counted.total() <= 3 * passes + 8
    assert not [one for one in said if one.dtype == torch.int64], "rows are asked for"
    sent = [one for one in said if one.gradient]
    assert sum(one.numbers for one in sent) == trained
    assert len(sent) > 2
    assert all(one.kind == "all_reduce" and not one.waits for one in sent)
    assert sum(one.early for one in sent) >= len(sent) - 2, "sent after backward"


def test_two_micro_batches_send_the_gradient_once(ranks):
    (once, _, trained), _ = ranks.run(heard, "vit", 0)
    (twice, _, _), _ = ranks.run(heard, "vit", 0, 2)
    sent = [one.numbers for one in twice if one.gradient]
    assert sent == [one.numbers for one in once if one.gradient]
    assert sum(sent) == trained


def heard_with(options: list[dict[str, Any]]) -> list[Any]:
    return [heard(**how)[0::2] for how in options]


def test_stages_1_to_3_send_in_backward_and_ask_for_nothing(ranks):
    how = [{"kind": "vit", "stage": stage} for stage in (1, 2, 3)]
    (one, trained), (two, _), (three, _) = ranks.run(heard_with, how)[0]
    for said in (one, two, three):
        assert not [s for s in said if s.dtype == torch.int64]
    for said in (one, two):
        large = [s for s in said if s.kind == "all_reduce" and s.numbers > 500]
        assert sum(s.numbers for s in large) >= trained
        assert large[0].early, "sent after backward"
    scattered = [s for s in three if s.kind == "reduce_scatter"]
    assert scattered[0].early, "sent after backward"
    # small parameters stay whole: one gather brings them all back, and nobody takes a norm
    assert sum(s.kind == "gather" for s in three) == 1
    assert not [s for s in three if s.dtype == torch.float64]


def test_bf16_sends_half_as_much_at_every_stage(ranks):
    how = [{"kind": "vit", "stage": s, "communicate": "bf16"} for s in (0, 1, 2, 3)]
    for said, trained in ranks.run(heard_with, how)[0]:
        # A reduce-scatter names what stays on a rank, one of two parts.
        sent = [s.numbers * (1 + (s.kind == "reduce_scatter")) for s in said if is_half(s)]
        assert sum(sent) >= trained
        whole = [s for s in said if not is_half(s) and s.kind in ("all_reduce", "reduce_scatter")]
        assert max(s.numbers for s in whole) < 100


def is_half(said: Said) -> bool:
    return said.dtype == torch.bfloat16


def gradients(stage: int, communicate: str, cut: list[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """Of each parameter the averaged gradient, and the mean of the ranks' absolute ones."""
    engine = made("vit", stage, communicate=communicate)
    own: dict[str, Tensor] = {}
    for name, p in engine.module.named_parameters():
        p.register_hook(functools.partial(lambda n, g: own.__setitem__(n, g.clone()), name))
    views = [v.split(cut)[comm.rank()] for v in toy.views(0, sum(cut))]
    engine.backward(engine(views).value)
    found = {
        n: (p.grad.clone(), comm.all_sum(own[n].abs()) / len(cut))
        for n, p in engine.module.named_parameters()
    }
    engine.step()
    engine.close()
    return found


@pytest.mark.parametrize("cut", [[8, 8], pytest.param([7, 5, 4], marks=pytest.mark.slow)], ids=str)
def test_the_gradient_in_bf16_is_that_in_fp32_within_its_bound(ranks, cut):
    """A rank's gradient is rounded once, and each of at most W - 1 sums: by 2⁻⁸ each time, of no
    more than the sum of the absolute gradients. So the mean is off by less than W · 2⁻⁸ of their
    mean, and all ranks have the same.
    """
    wanted = ranks.run(gradients, 0, "fp32", cut, world=len(cut))[0]
    first, *others = ranks.run(gradients, 0, "bf16", cut, world=len(cut))
    moved = 0
    for name, (found, most) in first.items():
        bound = len(cut) * 2.0**-8 * most * 1.01 + 1e-30
        assert ((found - wanted[name][0]).abs() <= bound).all(), name
        moved += int((found != wanted[name][0]).sum())
        assert all(torch.equal(other[name][0], found) for other in others)
    assert moved > 0


def alone(communicate: str) -> State:
    engine = made("vit", 0, communicate=communicate)
    a_step(engine, 0)
    state = engine.save()
    engine.close()
    return state


def test_one_rank_sends_nothing_and_rounds_nothing(ranks):
    (half,), (full,) = (ranks.run(alone, how, world=1) for how in ("bf16", "fp32"))
    assert all(torch.equal(half.model[name], full.model[name]) for name in full.model)


class Partly(nn.Module):
    """Parameters that no rank, one rank, and every rank uses; one is frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.all = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)
        self.none = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.deep = nn.Conv2d(2, 3, 2).to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        y = self.frozen(self.all(x))
        y = y + self.deep(x[:, :2, None, None].expand(-1, -1, 2, 2)).sum()
        return self.first(y).square().sum() if comm.rank() == 0 else y.square().sum()


def of_parts(by_buckets: bool, accumulate: int, steps: int = 2) -> list[dict[str, Tensor]]:
    """The gradients of each step as the optimizer finds them: by our buckets, or by DeepSpeed's own
    all-reduce after backward.
    """
    module = Partly()
    engine = ENGINES["zero"](
        module,
        torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1),
        accumulate=accumulate,
        bucket_mb=0.0001,
    )
    if not by_buckets:
        engine._buckets.close()
        engine._engine.enable_backward_allreduce = True
    found = []
    for step in range(steps):
        for micro in range(accumulate):
            torch.manual_seed(10 * step + micro + 100 * comm.rank())
            engine.backward(engine(torch.randn(3, 4)))
            if micro == accumulate - 1:
                found.append(
                    {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
                )
            engine.step()
    engine.close()
    return found


@pytest.mark.parametrize("accumulate", [1, 2])
def test_buckets_have_the_bits_of_deepspeeds_own_reduction(ranks, accumulate):
    """Of parameters unused on one rank or on all, frozen, or not laid out in rows, too."""
    theirs = ranks.run(of_parts, False, accumulate)
    ours = ranks.run(of_parts, True, accumulate)
    for step, other in zip([*ours[0], *ours[1]], [*theirs[0], *theirs[1]], strict=True):
        assert step.keys() == other.keys()
        assert "none.weight" in step
        assert "frozen.weight" not in step
        for name in step:
            assert torch.equal(step[name], other[name]), name
    assert ours[0][0]["first.weight"].abs().sum() > 0
    assert torch.equal(ours[0][0]["first.weight"], ours[1][0]["first.weight"])


def test_buckets_go_from_the_last_parameter_to_the_first_and_begin_small():
    parameters = [nn.Parameter(torch.zeros(2**17)) for _ in range(9)]  # half a MiB each
    parameters.insert(4, nn.Parameter(torch.zeros(8, dtype=torch.float64)))
    found = cut_up(parameters, 1.5)
    flat = [p for bucket in found for p in bucket]
    assert all(a is b for a, b in zip(flat, reversed(parameters), strict=True))
    assert [len(bucket) for bucket in found] == [2, 3, 1, 3, 1]


def overlapped(stage: int, overlap: bool) -> State:
    """Two steps with DeepSpeed's overlap_comm on and off."""
    original = zero._zero_config
    zero._zero_config = lambda *how: original(*how) | {"overlap_comm": overlap}
    try:
        engine = made("resnet", stage, 2)
    finally:
        zero._zero_config = original
    a_step(engine, 0), a_step(engine, 1)
    state = engine.save()
    engine.close()
    return state


@pytest.mark.parametrize("stage", [1, 2, pytest.param(3, marks=pytest.mark.slow)])
def test_overlap_changes_no_bit(ranks, stage):
    with_it, without = (ranks.run(overlapped, stage, on)[0] for on in (True, False))
    for name in with_it.model:
        assert torch.equal(with_it.model[name], without.model[name]), name
