"""From a batch of the loader to views on this rank's device."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

from lookalike import comm, views
from lookalike.log import say
from lookalike.models import Architecture
from lookalike.views import native


def on_device(
    policy: Callable[..., list[Tensor]], architecture: Architecture, seed: int
) -> Callable[..., list[Tensor]]:
    """A function of (pixels, ids_B, epoch): the V views (B, C, H, W) as the architecture takes
    them, by an augmentation policy. To be called by all ranks.
    """
    one_form()
    mean, std = architecture.normalisation()
    known: dict[str, Any] = {"size": architecture.size, "form": architecture.form}
    known |= {"mean": mean, "std": std, "seed": seed, "device": comm.device()}
    return partial(views.make, policy, **known)


def one_form() -> None:
    """All ranks make views by the native kernel, or none does: one that lacks it is told of."""
    native.refuse("")
    if comm.world_size() == 1 or comm.device().type != "cpu":
        return
    told = comm.gather_objects((native.mark(), native.found().why))
    if len({mark for mark, _ in told}) == 1:
        return
    lacking = next((rank for rank, (mark, _) in enumerate(told) if not mark), 0)
    why = told[lacking][1] or "ranks have kernels of different versions"
    native.refuse(f"rank {lacking}: {why}")
    if comm.rank() == 0:
        say(f"views: by torch's form on all ranks, for rank {lacking} has no native kernel: {why}")


def made_by() -> str:
    """What makes a training's views, whose last bits it decides."""
    if comm.device().type != "cpu":
        return comm.device().type
    return "native" if native.available() else "torch"


def tell_of_another(about: Mapping[str, Any]) -> None:
    """Says that a checkpoint's views were made by something else: what goes on differs in last
    bits.
    """
    earlier, now = about.get("views", made_by()), made_by()
    if earlier != now and comm.rank() == 0:
        say(
            f"views: made by {now} from here on, before by {earlier}: equal but for the last bits "
            "(docs/views.md)"
        )
