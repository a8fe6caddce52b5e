"""DeepSpeed behind the seam: ZeRO stages 0 to 3 on any number of ranks, with every default that
matters written out.

ZeRO: Rajbhandari, Rasley, Ruwase & He, SC 2020, arXiv 1910.02054. The state is saved by parameter
name, not in DeepSpeed's own format (which is a pickle, and tied to the number of ranks): any engine
and stage can load it.
"""

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lookalike import comm
from lookalike.engine.activations import checkpoint_activations as checkpoint_backbone
from lookalike.engine.buckets import Buckets, Communicate
from lookalike.engine.guard import Guard
from lookalike.engine.scaler import scaler_for
from lookalike.engine.shards import Flat, Layout, Split, Whole, already_sent, spare, unasked
from lookalike.engine.state import State, with_scale
from lookalike.engine.verdict import is_late, maybe_skipped
from lookalike.errors import RunError
from lookalike.nn.hooks import Good
from lookalike.nn.precision import Precision, autocast, products
from lookalike.optim import Progress, is_layerwise
from lookalike.recipe import SINCE_0_2, NonNegative, Positive

Stage = Literal[0, 1, 2, 3]
# numbers that are gathered at a time; DeepSpeed's 500 million would hold 2 GB of each GPU
_BUCKET = 50_000_000
# numbers of a parameter that stage 3 still keeps whole on every rank between steps
_SMALL = 100_000


class _Autocast(nn.Module):
    """The module as DeepSpeed sees it. DeepSpeed switches autocast off around its forward: it is
    entered inside.
    """

    def __init__(self, inner: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.inner, self.precision = inner, precision

    def forward(self, *inputs: Any) -> Any:
        with autocast(next(self.inner.parameters()).device, self.precision):
            return self.inner(*inputs)


class Zero:
    """DeepSpeed ZeRO, the engine for several ranks; `clip` 0 leaves the gradient alone.

    `stage`: what is cut over the ranks: 0 nothing, 1 the optimizer's state, 2 the gradient too, 3
    the parameters too; `checkpoint_activations`: the backbone's activations are computed again in
    backward, not kept; `communicate`: as what gradients cross the ranks, bf16 is half as much and
    rounds each sum to 8 bits; `bucket_mb`: how many MiB of gradient are sent at a time while
    backward still runs.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        accumulate: int = 1,
        precision: Precision = "fp32",
        clip: NonNegative = 0.0,
        stage: Stage = 0,
        checkpoint_activations: bool = False,
        communicate: Annotated[Communicate, SINCE_0_2] = "fp32",
        bucket_mb: Annotated[Positive, SINCE_0_2] = 25.0,
        late: bool | None = None,
    ) -> None:
        refuse_layerwise(is_layerwise(optimizer), stage)
        refuse_shapeless(module)
        if checkpoint_activations:
            checkpoint_backbone(module)
        deepspeed = _deepspeed()
        self.module, self.optimizer, self.stage = module, optimizer, stage
        self.accumulate, self.precision = accumulate, precision
        comm.broadcast_module(module)
        device = next(module.parameters()).device
        self.late = is_late(late, device)
        self._scaler = scaler_for(precision, device)
        self._guard = Guard(module, whole=stage == 0, scaler=self._scaler)
        self._switch = Switch(optimizer)
        sent: Communicate = communicate if comm.world_size() > 1 else "fp32"
        with _calm(), already_sent(deepspeed):
            self._engine, wrapped, *_ = deepspeed.initialize(
                model=_Autocast(module, precision),
                optimizer=optimizer,
                config=_config(accumulate, clip, stage, sent, bucket_mb),
            )
        self._buckets: Buckets | None = None
        if stage == 0 and comm.world_size() > 1:
            self._engine.enable_backward_allreduce = False
            self._buckets = Buckets(module, bucket_mb, communicate)
        self._layout: Layout = Whole(module, optimizer)
        if stage > 0:
            self._layout = (Split if stage == 3 else Flat)(module, optimizer, deepspeed, wrapped)
        if stage == 3:
            spare(wrapped, clip)
        self._sharded = wrapped

    def start(self, progress: Progress) -> None:
        self._guard.start(progress)

    def __call__(self, *inputs: Any) -> Any:
        self._guard.begin()
        return self._engine(*inputs)

    def backward(self, value: Tensor) -> None:
        last = self._engine.is_gradient_accumulation_boundary()
        rounding = products(value.device, self.precision)
        with self._guard.still(), rounding, self._averaging(last):
            self._engine.backward(self._guard.scaled(value))

    @contextlib.contextmanager
    def _averaging(self, last: bool) -> Iterator[None]:
        """While entered, stage 0's gradients cross the ranks as they come; other stages do so by
        themselves.
        """
        if self._buckets is not None:
            self._buckets.begin(last)
        yield
        if self._buckets is not None:
            self._buckets.end()

    def finite(self) -> Tensor:
        return self._guard.finite()

    def broken(self, value: Tensor) -> Tensor:
        return self._guard.broken(self.finite(), value)

    def step(self, skip: bool | Tensor = False, trouble: bool | Tensor | None = None) -> None:
        last = self._engine.is_gradient_accumulation_boundary()
        if last:
            self._guard.unscale()
        with self._switch.off(skip), self._unasked():
            self._engine.step()
        if last:
            self._guard.end(skip, skip if trouble is None else trouble)

    def _unasked(self) -> contextlib.AbstractContextManager[None]:
        ask = self.stage == 0 or not self.late
        return contextlib.nullcontext() if ask else unasked(self._sharded)

    def follow(self, good: Good = True) -> None:
        with torch.no_grad():
            self._layout.follow(good)

    def values(self) -> dict[str, float]:
        return {} if self._scaler is None else {"loss_scale": float(self._scaler.scale)}

    def save(self) -> State:
        return with_scale(self._layout.save(), self._scaler)

    @torch.no_grad()
    def load(self, state: State) -> None:
        self._layout.load(state)
        if self._scaler is not None:
            self._scaler.load(state.optim)

    def close(self) -> None:
        self._guard.close()
        if self._buckets is not None:
            self._buckets.close()
        self._layout.restore()
        self._switch.close()
        self._engine.destroy()


class Switch:
    """Stands before an optimizer's `step`: while off, DeepSpeed counts and clears as ever, but
    nothing is moved; a boolean on the device may say so.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer, self._skip = optimizer, cast(bool | Tensor, False)
        step = optimizer.step

        @functools.wraps(step)
        def guarded(*arguments: Any, **named: Any) -> Any:
            if self._skip is True:
                return None
            with maybe_skipped(optimizer, self._skip):
                return step(*arguments, **named)

        optimizer.step = guarded  # type: ignore[method-assign]

    @contextlib.contextmanager
    def off(self, wanted: bool | Tensor) -> Iterator[None]:
        """While entered, `step` does nothing, if that is wanted."""
        self._skip = wanted
        try:
            yield
        finally:
            self._skip = False

    def close(self) -> None:
        """The optimizer has its own `step` again."""
        vars(self._optimizer).pop("step", None)


def refuse_layerwise(layerwise: bool, stage: int) -> None:
    """Raises RunError for LARS with sharded optimizer state."""
    if layerwise and stage > 0:
        raise RunError(
            f"engine: LARS needs whole layers, but ZeRO stage {stage} shows it one flat tensor of "
            "all of them: "
            "set stage: 0, or take adamw or sgd"
        )


def refuse_shapeless(module: nn.Module) -> None:
    """Raises RunError for a parameter of no dimension, which DeepSpeed cannot send to other
    ranks.
    """
    for name, parameter in module.named_parameters():
        if parameter.dim() == 0:
            raise RunError(
                f"engine: {name} has no dimension, which DeepSpeed cannot send: make it of shape "
                "(1,)"
            )


def _config(
    accumulate: int, clip: float, stage: Stage, communicate: Communicate, bucket_mb: float
) -> dict[str, Any]:
    """DeepSpeed clips at 1.0 unless told otherwise; its batch sizes only satisfy its own checks."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": _zero_config(clip, stage, bucket_mb),
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "torch_autocast": {"enabled": False},
        "prescale_gradients": False,
        "gradient_predivide_factor": 1.0,
        "communication_data_type": communicate,
        "steps_per_print": 10**12,
        "wall_clock_breakdown": False,
        "memory_breakdown": False,
        "dump_state": False,
    }


def _zero_config(clip: float, stage: Stage, bucket_mb: float) -> dict[str, Any]:
    """Gradients cross in buckets, on a stream of their own, while backward runs: a bucket larger
    than the gradient would be sent after it.

    Without the norm, stages 1 and 2 neither wait for the device nor skip a step behind the loop's
    back. A bucket of several ranks' shards is summed on all of them, twice the bytes of a sum for
    each owner, but in one collective and not in W, each of which would hold the host. At stage 3
    DeepSpeed would put a function of its own in the place of torch's `linear`, for the whole
    process.
    """
    found: dict[str, Any] = {
        "stage": stage,
        "overlap_comm": True,
        "contiguous_gradients": True,
        "reduce_scatter": True,
        "use_multi_rank_bucket_allreduce": True,
        "reduce_bucket_size": round(bucket_mb * 2**18),
        "allgather_partitions": True,
        "allgather_bucket_size": _BUCKET,
        "round_robin_gradients": False,
        "ignore_unused_parameters": True,
    }
    if stage in (1, 2):
        found["compute_grad_norm"] = clip > 0
    if stage == 3:
        found |= {
            "sub_group_size": 1_000_000_000,
            "stage3_prefetch_bucket_size": _BUCKET,
            "stage3_param_persistence_threshold": _SMALL,
            "stage3_max_live_parameters": 1_000_000_000,
            "stage3_max_reuse_distance": 1_000_000_000,
            "memory_efficient_linear": False,
        }
    return found


def _deepspeed() -> Any:
    """DeepSpeed, imported only when it is wanted, quiet, and without the operator it would compile
    on a CPU.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)
    if (index := comm.device().index) is not None:
        # By this name DeepSpeed takes its GPU among those that the rank sees: see comm/devices.py.
        os.environ["LOCAL_RANK"] = str(index)
    with _calm():
        try:
            import deepspeed
            import deepspeed.comm
            import deepspeed.ops
        except ImportError as error:
            raise RunError(
                f"engine: zero needs DeepSpeed, not importable here ({error}): set engine: plain"
            ) from error
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        comm.start(alone=True)
        deepspeed.init_distributed(dist_backend=None, auto_mpi_discovery=False, verbose=False)
    return deepspeed


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """DeepSpeed warns about torch's deprecations and logs to stdout at start: neither is the user's
    concern.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)
