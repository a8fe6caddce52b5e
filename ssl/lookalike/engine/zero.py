"""DeepSpeed behind the seam: ZeRO stage 0 and 1 on any number of ranks, with every default that matters written out.

ZeRO: Rajbhandari, Rasley, Ruwase & He, SC 2020, arXiv 1910.02054. The state is saved by parameter name, not in
DeepSpeed's own format (which is a pickle, and tied to the number of ranks): any engine and stage can load it.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lookalike import comm
from lookalike.engine.state import (
    Precision,
    State,
    autocast,
    by_parameter,
    copied,
    follow,
    load_model,
    load_optim,
    model_state,
    optim_state,
)
from lookalike.errors import RunError
from lookalike.optim import is_layerwise
from lookalike.recipe import NonNegative
from lookalike.statistics import still

Stage = Literal[0, 1]


class _Autocast(nn.Module):
    """The module as DeepSpeed sees it. DeepSpeed switches autocast off around its forward: it is entered inside."""

    def __init__(self, inner: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.inner, self.precision = inner, precision

    def forward(self, *inputs: Any) -> Any:
        with autocast(next(self.inner.parameters()).device, self.precision):
            return self.inner(*inputs)


class Zero:
    """DeepSpeed ZeRO, the engine for several ranks; `clip` 0 leaves the gradient alone."""

    def __init__(
        self,
        module: nn.Module,
        optimizer: Optimizer,
        *,
        accumulate: int = 1,
        precision: Precision = "fp32",
        clip: NonNegative = 0.0,
        stage: Stage = 0,
    ) -> None:
        refuse_layerwise(is_layerwise(optimizer), stage)
        deepspeed = _deepspeed()
        self.module, self.optimizer, self.stage = module, optimizer, stage
        comm.spread(module)
        with _calm():
            self._engine, wrapped, *_ = deepspeed.initialize(
                model=_Autocast(module, precision),
                optimizer=optimizer,
                config=_config(accumulate, clip, stage),
            )
        self._sharded = wrapped if stage > 0 else None

    def __call__(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, value: Tensor) -> None:
        with still(self.module):
            self._engine.backward(value)

    def step(self) -> None:
        self._engine.step()

    def follow(self) -> None:
        follow(self.module)

    def save(self) -> State:
        if self._sharded is None:
            return State(model_state(self.module), optim_state(self.module, self.optimizer))
        return State(model_state(self.module), self._collect())

    @torch.no_grad()
    def load(self, state: State) -> None:
        load_model(self.module, state.model)
        if self._sharded is None:
            load_optim(self.module, self.optimizer, state.optim)
        else:
            self._scatter(by_parameter(state.optim))

    def _collect(self) -> dict[str, Tensor]:
        """Each parameter's optimizer state, whole, from the flat shards of all ranks."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        found = {}
        for name, parameter, flat in self._parameters():
            for key, value in self.optimizer.state[flat].items():
                if torch.is_tensor(value) and value.shape == flat.shape:
                    found[f"{name}/{key}"] = copied(safe_get_full_optimizer_state(parameter, key))
                elif value is not None:
                    found[f"{name}/{key}"] = copied(torch.as_tensor(value))
        return found

    def _scatter(self, nested: dict[str, dict[str, Tensor]]) -> None:
        """Cuts each parameter's value and optimizer state into the flat shards again."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for name, _, flat in self._parameters():
            self.optimizer.state[flat] = {
                key: torch.zeros_like(flat) if value.dim() else value.clone()
                for key, value in nested.get(name, {}).items()
            }
        self._link()
        for name, parameter, _ in self._parameters():
            safe_set_full_fp32_param(parameter, parameter.detach().float())
            for key, value in nested.get(name, {}).items():
                if value.dim():
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)

    def _link(self) -> None:
        """DeepSpeed links shards to parameters once, too early where there are several groups: link again."""
        assert self._sharded is not None
        self._sharded._hp_optimizer_states_linked = False
        self._sharded._lazy_init_hp_params_optimizer_state()

    def _parameters(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Name, parameter and the flat fp32 shard of its group on this rank."""
        assert self._sharded is not None
        names = {id(p): n for n, p in self.module.named_parameters()}
        for parameters, flat in zip(
            self._sharded.bit16_groups, self._sharded.single_partition_of_fp32_groups, strict=True
        ):
            yield from ((names[id(p)], p, flat) for p in parameters)


def refuse_layerwise(layerwise: bool, stage: int) -> None:
    """Raises RunError for LARS with sharded optimizer state."""
    if layerwise and stage > 0:
        raise RunError(
            f"engine: LARS needs whole layers, but ZeRO stage {stage} shows it one flat tensor of all of them: "
            "set stage: 0, or take adamw or sgd"
        )


def _config(accumulate: int, clip: float, stage: Stage) -> dict[str, Any]:
    """DeepSpeed clips at 1.0 unless told otherwise; its batch sizes only satisfy its own checks."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "overlap_comm": False},
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        "steps_per_print": 10**12,
        "wall_clock_breakdown": False,
    }


def _deepspeed() -> Any:
    """DeepSpeed, imported only when it is wanted, quiet, and without the operator it would compile on a CPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)
    with _calm():
        try:
            import deepspeed
            import deepspeed.comm
            import deepspeed.ops
        except ImportError as error:
            raise RunError(f"engine: zero needs DeepSpeed, not importable here ({error}): set engine: plain") from error
        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        comm.start(alone=True)
        deepspeed.init_distributed(dist_backend=None, auto_mpi_discovery=False, verbose=False)
    return deepspeed


@contextlib.contextmanager
def _calm() -> Iterator[None]:
    """DeepSpeed warns about torch's deprecations and logs to stdout at start: neither is the user's concern."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)
