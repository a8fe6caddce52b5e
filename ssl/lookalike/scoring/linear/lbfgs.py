"""L-BFGS on a convex function of a matrix, in float64; its gradient may be as coarse as float32
products are.
"""

from collections import deque
from collections.abc import Callable, Sequence

from torch import Tensor

Point = tuple[float, Tensor]
Slope = Callable[[Tensor], Point]


def direction(gradient_CE: Tensor, memory: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Descent from the last steps s and gradient changes y; Nocedal and Wright 2006, algorithm
    7.4.
    """
    d_CE, shares = -gradient_CE, []
    for s_CE, y_CE in reversed(memory):
        shares.append((s_CE * d_CE).sum() / (s_CE * y_CE).sum())
        d_CE = d_CE - shares[-1] * y_CE
    if memory:
        s_CE, y_CE = memory[-1]
        d_CE = d_CE * ((s_CE * y_CE).sum() / y_CE.square().sum())
    for (s_CE, y_CE), share in zip(memory, reversed(shares), strict=True):
        d_CE = d_CE + s_CE * (share - (y_CE * d_CE).sum() / (s_CE * y_CE).sum())
    return d_CE


def _walk(slope: Slope, z_CE: Tensor, here: Point, d_CE: Tensor) -> tuple[Tensor, Point] | None:
    """Go along `d_CE` until most of the slope is gone; None if 20 trials do not get there.

    The slope decides: the loss is convex, so the slope only rises; near the minimum the loss is all
    noise.
    """
    first = float((here[1] * d_CE).sum())
    low, high, t = 0.0, float("inf"), 1.0
    for _ in range(20):
        new_CE = z_CE + t * d_CE
        there = slope(new_CE)
        now = float((there[1] * d_CE).sum())
        if not now <= -first / 2 or there[0] > here[0] + 1e-6 * (1 + abs(here[0])):
            high = t
        elif now < 0.9 * first:
            low = t
        else:
            return new_CE, there
        t = 2 * t if high == float("inf") else (low + high) / 2
    return None


def minimise(
    slope: Slope, z_CE: Tensor, here: Point, iterations: int, tolerance: float
) -> tuple[Tensor, bool]:
    """L-BFGS with 10 remembered steps from `z_CE`, where `slope` gave `here`; and whether every
    entry of the gradient came within `tolerance`.

    Where the memory leads nowhere it is forgotten once; where the gradient alone does not, rounding
    ends it.
    """
    memory: deque[tuple[Tensor, Tensor]] = deque(maxlen=10)
    for _ in range(iterations):
        if float(here[1].abs().max()) <= tolerance:
            break
        walked = _walk(slope, z_CE, here, direction(here[1], memory))
        if walked is None and not memory:
            break
        if walked is None:
            memory.clear()
            continue
        memory.append((walked[0] - z_CE, walked[1][1] - here[1]))
        z_CE, here = walked
    return z_CE, float(here[1].abs().max()) <= tolerance
