"""What the steps reported since the last line of the log."""

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch


class Meter:
    """What the steps reported since it was last asked; tensors stay on the device until then."""

    def __init__(self, images: float, earlier: Mapping[str, Any] | None = None) -> None:
        """`images`: how many images of all ranks make one micro-batch; `earlier`: a `state` to go
        on from.
        """
        self.images = images
        self._reset()
        self._earlier: dict[str, list[float]] = dict((earlier or {}).get("means", {}))
        self._noted |= (earlier or {}).get("noted", {})

    def _reset(self) -> None:
        self._parts: dict[str, list[torch.Tensor]] = {"loss": []}
        self._earlier = {}
        self._noted: dict[str, float] = {}
        self._waited, self._since = 0.0, time.monotonic()

    @contextlib.contextmanager
    def timing_data(self) -> Iterator[None]:
        """A context whose time counts as waiting for data."""
        entered = time.monotonic()
        yield
        self._waited += time.monotonic() - entered

    def record(self, values: Mapping[str, float]) -> None:
        """Measurements that were not made at every step; the newest stands in the next values."""
        self._noted |= values

    def add(self, value: torch.Tensor, terms: Mapping[str, torch.Tensor]) -> None:
        """One micro-batch's loss and its terms."""
        for name, part in {"loss": value, **terms}.items():
            self._parts.setdefault(name, []).append(part.detach())

    def drop(self, count: int, newer: int = 0) -> None:
        """Forgets the last `count` micro-batches before the `newer` newest."""
        for parts in self._parts.values():
            del parts[-count - newer : len(parts) - newer]

    @property
    def has_values(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._parts["loss"] or self._earlier.get("loss"))

    def _numbers(self) -> dict[str, list[float]]:
        """Every micro-batch's loss and terms since the last call of `values`, those before a resume
        first.
        """
        fresh = _read({name: parts for name, parts in self._parts.items() if parts})
        return {
            name: self._earlier.get(name, []) + fresh.get(name, [])
            for name in {**self._earlier, **fresh}
        }

    def state(self) -> dict[str, Any]:
        """What the next `values` will be made of, as JSON data: a training that is resumed logs
        what it would have.
        """
        return {"means": self._numbers(), "noted": self._noted}

    def values(self) -> dict[str, float]:
        """Means of loss and terms, images_per_s over all ranks, waiting (share of the time), since
        the last call.
        """
        means = {
            name: float(torch.tensor(each, dtype=torch.float64).mean())
            for name, each in self._numbers().items()
        }
        seconds = max(time.monotonic() - self._since, 1e-9)
        images = self.images * len(self._parts["loss"])
        found = {
            **means,
            **self._noted,
            "images_per_s": images / seconds,
            "waiting": self._waited / seconds,
        }
        self._reset()
        return found


def _read(parts: Mapping[str, Sequence[torch.Tensor]]) -> dict[str, list[float]]:
    """The numbers of tensors without dimension, all read at once from each device."""
    stacked = {name: torch.stack(list(each)) for name, each in parts.items()}
    found: dict[str, list[float]] = {}
    for device in {tensor.device for tensor in stacked.values()}:
        here = {name: tensor for name, tensor in stacked.items() if tensor.device == device}
        values = iter(torch.cat(list(here.values())).tolist())
        found |= {name: [next(values) for _ in tensor] for name, tensor in here.items()}
    return {name: found[name] for name in stacked}
