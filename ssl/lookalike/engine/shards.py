"""Where the tensors of a training lie at each ZeRO stage, and how they come together by name.

`Whole`: every rank holds everything (stage 0). `Flat`: the optimizer's state is one flat shard a
group (stages 1 and 2). `Split`: the parameters too (stage 3). All of DeepSpeed's private names are
in this file.
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lookalike import comm
from lookalike.engine.state import (
    State,
    by_parameter,
    copied,
    counter,
    load_model,
    load_optim,
    misfit,
    model_state,
    optim_state,
)
from lookalike.errors import RunError
from lookalike.nn.hooks import Deferred, Follower, Good, follow_one, followers, update

Group = tuple[Sequence[nn.Parameter], Tensor]
_FLAT = (
    "bit16_groups",
    "single_partition_of_fp32_groups",
    "_hp_optimizer_states_linked",
    "_lazy_init_hp_params_optimizer_state",
)
_ASKS = "is_invalid_grad_norm"
_SPLIT = (
    "fp16_groups",
    "fp32_partitioned_groups_flat",
    "persistent_parameters",
    "_get_norm_groups",
)


class Layout(Protocol):
    """What the engine asks of it; every method is called by all ranks alike."""

    def save(self) -> State:
        """Copies of everything, whole, on the CPU."""

    def load(self, state: State) -> None:
        """Takes back what `save` gave, at any stage and on any number of ranks."""

    def follow(self, good: Good = True) -> None:
        """Commits and updates every module that moves after a good step, where it was one."""

    def restore(self) -> None:
        """Makes the module a plain one again."""


class Whole:
    """Stage 0: every rank holds everything."""

    def __init__(self, module: nn.Module, optimizer: Optimizer) -> None:
        self.module, self.optimizer = module, optimizer
        self._followers = followers(module)

    def save(self) -> State:
        return State(model_state(self.module), optim_state(self.module, self.optimizer))

    def load(self, state: State) -> None:
        load_model(self.module, state.model)
        load_optim(self.module, self.optimizer, state.optim)

    def follow(self, good: Good = True) -> None:
        for part in self._followers:
            follow_one(part, good)

    def restore(self) -> None:
        pass


class Flat:
    """Stages 1 and 2: whole parameters; each rank holds a shard of each group's flat weights and
    optimizer state.
    """

    names: tuple[str, ...] = _FLAT

    def __init__(
        self, module: nn.Module, optimizer: Optimizer, deepspeed: Any, sharded: Any
    ) -> None:
        refuse_unknown(sharded, self.names, deepspeed.__version__)
        self.module, self.optimizer = module, optimizer
        self._tools, self._zero, self._sharded = deepspeed.utils, deepspeed.zero, sharded
        self._name = {id(p): name for name, p in module.named_parameters()}
        self._followers = followers(module)

    def save(self) -> State:
        return State(model_state(self.module), self._collect())

    def load(self, state: State) -> None:
        load_model(self.module, state.model)
        self._refresh(self.module)
        self._scatter(by_parameter(state.optim))

    def follow(self, good: Good = True) -> None:
        for part in self._followers:
            follow_one(part, good)
            if isinstance(part, Follower):
                self._refresh(part)

    def restore(self) -> None:
        pass

    def _refresh(self, part: nn.Module) -> None:
        """The optimizer moves a copy of the weights: it takes what was written into those of
        `part`.
        """
        for parameter in part.parameters():
            if parameter.requires_grad:
                self._tools.safe_set_full_fp32_param(parameter, parameter.detach().float())

    def _groups(self) -> Iterator[Group]:
        """The parameters of each group, and the shard of its flat weights that this rank's
        optimizer moves.
        """
        yield from zip(
            self._sharded.bit16_groups, self._sharded.single_partition_of_fp32_groups, strict=True
        )

    def _collect(self) -> dict[str, Tensor]:
        """Each parameter's optimizer state, whole, one tensor at a time."""
        self._link()
        found = {}
        for parameters, flat in self._groups():
            for parameter in parameters:
                name = self._name[id(parameter)]
                for key, value in self.optimizer.state.get(flat, {}).items():
                    if torch.is_tensor(value) and value.shape == flat.shape:
                        value = self._tools.safe_get_full_optimizer_state(parameter, key)
                    if value is not None:
                        found[f"{name}/{key}"] = copied(torch.as_tensor(value))
        return found

    def _scatter(self, nested: dict[str, dict[str, Tensor]]) -> None:
        """Cuts each parameter's optimizer state into the flat shards again; what has none begins
        with zeros.
        """
        self.optimizer.state.clear()
        for parameters, flat in self._groups():
            known = [nested[self._name[id(p)]] for p in parameters if self._name[id(p)] in nested]
            first = known[0] if known else {}
            for key, value in first.items():
                self.optimizer.state[flat][key] = (
                    torch.zeros_like(flat) if value.dim() else counter(self.optimizer, value, flat)
                )
        self._link()
        for parameters, _ in self._groups():
            for parameter in parameters:
                for key, value in nested.get(self._name[id(parameter)], {}).items():
                    if value.dim():
                        self._put(parameter, value, key)

    def _put(self, parameter: nn.Parameter, value: Tensor, key: str) -> None:
        self._tools.safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)

    def _link(self) -> None:
        """DeepSpeed links shards to parameters once, too early where there are several groups: link
        again.
        """
        self._sharded._hp_optimizer_states_linked = False
        self._sharded._lazy_init_hp_params_optimizer_state()


class Split(Flat):
    """Stage 3: each rank holds a shard of every parameter, frozen ones too; whole ones come and go
    in forward.
    """

    names = _SPLIT

    def save(self) -> State:
        model = {
            name: copied(t)
            for name, t in self.module.state_dict().items()
            if name not in self._parameters()
        }
        for name, parameter in self._parameters().items():
            with self._gathered([parameter]):
                model[name] = copied(parameter)
        self._persist()
        return State(model, self._collect())

    def load(self, state: State) -> None:
        parameters, own = self._parameters(), self.module.state_dict(keep_vars=True)
        shapes = {name: getattr(tensor, "ds_shape", tensor.shape) for name, tensor in own.items()}
        if problem := misfit(shapes, state.model):
            raise RunError(problem)
        for name, tensor in own.items():
            if name not in parameters:
                tensor.copy_(state.model[name])
        for name, parameter in parameters.items():
            with self._gathered([parameter], write=True):
                parameter.data.copy_(state.model[name])
        self._refresh(self.module)
        self._persist()
        self._scatter(by_parameter(state.optim))

    def follow(self, good: Good = True) -> None:
        for part in self._followers:
            if isinstance(part, Deferred):
                part.commit(good)
            if isinstance(part, Follower):
                self._update(part, good)

    def _update(self, part: Follower, good: Good) -> None:
        """Shows it whole parameters, or their shards where these suffice."""
        own = list(part.parameters())
        if not own:
            update(part, good)
        elif part.elementwise:
            self._update_shards(part, own, good)
        else:
            with self._gathered(list(self.module.parameters()), write=True):
                update(part, good)
            self._refresh(part)
            self._persist()

    def restore(self) -> None:
        """Plain parameters, whole, on the CPU: the model need not fit on one GPU."""
        plain = {}
        for parameter in self._parameters().values():
            with self._gathered([parameter]):
                plain[id(parameter)] = nn.Parameter(copied(parameter), parameter.requires_grad)
        for part in self.module.modules():
            part._parameters = {
                n: p if p is None else plain[id(p)] for n, p in part._parameters.items()
            }
            part.__dict__.pop("_original_parameters", None)
        self.module.to("cpu")

    def _refresh(self, part: nn.Module) -> None:
        for parameter in part.parameters():
            if parameter.requires_grad:
                shard = parameter.ds_tensor.detach()  # type: ignore[attr-defined]
                self._tools.safe_set_local_fp32_param(parameter, shard)

    def _update_shards(self, part: Follower, own: Sequence[nn.Parameter], good: Good) -> None:
        """Shows each parameter's shard in its place: what works number by number needs no more."""
        shown = [(p, p.data) for p in self.module.parameters()]
        try:
            for parameter, _ in shown:
                parameter.data = parameter.ds_tensor.data  # type: ignore[attr-defined]
            update(part, good)
        finally:
            for parameter, data in shown:
                parameter.data = data
        present = [p for p in own if p.data.numel() == p.ds_numel]  # type: ignore[attr-defined]
        if present:
            present[0].partition(present)  # type: ignore[attr-defined]
            present[0].all_gather(present)  # type: ignore[attr-defined]

    def _parameters(self) -> dict[str, nn.Parameter]:
        return dict(self.module.named_parameters())

    def _gathered(self, parameters: Sequence[nn.Parameter], write: bool = False) -> Any:
        """Whole parameters while entered; with `write`, what every rank has written into them alike
        stays.
        """
        return self._zero.GatheredParameters(parameters, modifier_rank=0 if write else None)

    def _persist(self) -> None:
        """Gathering has put away the small parameters that DeepSpeed keeps whole between steps:
        bring them back.
        """
        small = self._sharded.persistent_parameters
        if small:
            small[0].all_gather(small)

    def _groups(self) -> Iterator[Group]:
        yield from zip(
            self._sharded.fp16_groups, self._sharded.fp32_partitioned_groups_flat, strict=True
        )

    def _put(self, parameter: nn.Parameter, value: Tensor, key: str) -> None:
        """The last rank's shard is padded: DeepSpeed's own setter of whole tensors would run over
        their end.
        """
        shard = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        mine = torch.zeros(shard, dtype=value.dtype, device=parameter.device)
        start = shard * comm.rank()
        rows = value.flatten()[start : start + shard]
        mine[: len(rows)] = rows.to(mine.device)
        self._tools.safe_set_local_optimizer_state(parameter, mine, key)

    def _link(self) -> None:
        """Nothing is linked at this stage."""


@contextlib.contextmanager
def unasked(sharded: Any) -> Iterator[None]:
    """While entered, DeepSpeed does not wait for the device to ask whether the gradient's norm is a
    number, to skip a step behind the engine's back: the guard knows.
    """
    room: Any = sys.modules[type(sharded).__module__]
    asks = getattr(room, _ASKS, None)
    setattr(room, _ASKS, lambda norm: False)
    try:
        yield
    finally:
        setattr(room, _ASKS, asks)


@contextlib.contextmanager
def already_sent(deepspeed: Any) -> Iterator[None]:
    """While entered, DeepSpeed starts without sending the first rank's parameters once more, one by
    one, which it refuses for those that lie channels last.
    """
    kind = deepspeed.DeepSpeedEngine
    original = kind._broadcast_model
    kind._broadcast_model = lambda _: None
    try:
        yield
    finally:
        kind._broadcast_model = original


def spare(sharded: Any, clip: float) -> None:
    """What stage 3 need not do at the end of a step: gather its small parameters one by one, and,
    where nothing is clipped, take a norm: two sums over ranks, for which the host waits.
    """
    if clip == 0:
        sharded._get_norm_groups = lambda: [torch.zeros(())]
    small = sharded.persistent_parameters
    if small:
        one_by_one, together = small[0].all_gather, small[0].all_gather_coalesced

        def all_gather(param_list: Any = None, **how: Any) -> Any:
            away = all(p.ds_status.name == "NOT_AVAILABLE" for p in small)
            if param_list is not small or how or not away:
                return one_by_one(param_list, **how)
            return together(small).wait()

        small[0].all_gather = all_gather


def refuse_unknown(sharded: Any, names: Sequence[str], version: str) -> None:
    """Raises RunError when DeepSpeed's optimizer is not built as the one this file was written
    for.
    """
    missing = [name for name in names if not hasattr(sharded, name)]
    if missing:
        raise RunError(
            f"engine: DeepSpeed {version} has no {missing[0]} any more, which checkpoints need: "
            "install deepspeed>=0.19,<0.20"
        )
