"""The next batch on its way to the GPU while this one is trained on."""

from collections.abc import Generator
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import Tensor

Pixels = Tensor | list[Tensor]
Mark = TypeVar("Mark")


class Pixelled(Protocol):
    """A tuple by names with pixels among them, as `loader.Batch`."""

    @property
    def pixels(self) -> Any: ...
    def _replace(self, *, pixels: Any) -> Self: ...


B = TypeVar("B", bound=Pixelled)


class Copies(Protocol[Mark]):
    """How pixels reach a device behind the back of what runs there."""

    def start(self, pixels: Pixels) -> tuple[Pixels, Mark]:
        """Begins the copy; returns where it goes and a mark of its end."""

    def use(self, pixels: Pixels, mark: Mark) -> None:
        """Lets the device's work from here on wait for the copy; the host does not."""

    def wait(self, mark: Mark) -> None:
        """Holds the host until the copy has ended."""


def prefetch(batches: Generator[B, None, None], device: torch.device) -> Generator[B, None, None]:
    """The same batches, their pixels on the device, one copied ahead; on a CPU as they are."""
    if device.type != "cuda":
        return batches
    return ahead(batches, SideStream(device))


def ahead(batches: Generator[B, None, None], copies: Copies[Any]) -> Generator[B, None, None]:
    """Begins the copy of batch i + 1 before batch i is handed out.

    A batch on the host stays valid until the next but one is asked for, so its copy has to end
    before that.
    """
    coming: list[tuple[B, Any]] = []
    ended: list[Any] = []
    try:
        for batch in batches:
            pixels, mark = copies.start(batch.pixels)
            coming.append((batch._replace(pixels=pixels), mark))
            if len(coming) == 2:
                yield _hand_out(coming, ended, copies)
                copies.wait(ended.pop())
        while coming:
            yield _hand_out(coming, ended, copies)
    finally:
        for mark in [*ended, *(mark for _, mark in coming)]:
            copies.wait(mark)
        batches.close()


def _hand_out(coming: list[tuple[B, Any]], ended: list[Any], copies: Copies[Any]) -> B:
    batch, mark = coming.pop(0)
    ended.append(mark)
    copies.use(batch.pixels, mark)
    return batch


class SideStream:
    """Copies on a CUDA stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def start(self, pixels: Pixels) -> tuple[Pixels, torch.cuda.Event]:
        """From pinned memory the host goes on at once."""
        with torch.cuda.stream(self._stream):
            moved = [part.to(self._device, non_blocking=True) for part in _parts(pixels)]
            return (moved[0] if isinstance(pixels, Tensor) else moved), self._stream.record_event()

    def use(self, pixels: Pixels, mark: torch.cuda.Event) -> None:
        """The memory came from the side stream: it must not be given away while this one reads
        it.
        """
        here = torch.cuda.current_stream(self._device)
        here.wait_event(mark)
        for part in _parts(pixels):
            part.record_stream(here)

    def wait(self, mark: torch.cuda.Event) -> None:
        """Usually it has ended long ago."""
        mark.synchronize()


def _parts(pixels: Pixels) -> list[Tensor]:
    return [pixels] if isinstance(pixels, Tensor) else pixels
