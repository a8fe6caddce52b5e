"""An EXIF orientation is undone, in little memory."""

from torch import Tensor

FLIPS = {2: (2,), 3: (1, 2), 4: (1,), 6: (2,), 7: (1, 2), 8: (1,)}
"""By orientation, which sides (C, H, W) are then mirrored; of 5 and above they are exchanged before
that.
"""

_STRIP = 1 << 18  # pixels that are moved at a time


def upright(x_CHW: Tensor, turn: int) -> Tensor:
    """Undoes an EXIF orientation (CIPA DC-008, section 4.6.4 A: Orientation); a large image in
    place.
    """
    if turn >= 5:
        x_CHW = x_CHW.transpose(1, 2)
    sides = FLIPS.get(turn, ())
    if x_CHW.numel() <= 12 * _STRIP:
        return x_CHW.flip(sides) if sides else x_CHW
    for side in sides:
        _mirror(x_CHW, side)
    return x_CHW


def _mirror(x_CHW: Tensor, side: int) -> None:
    """Reverses that dimension in place, some rows of memory at a time."""
    outer = max((1, 2), key=x_CHW.stride)
    rows_first = x_CHW.movedim(outer, 0)
    step = max(1, _STRIP // max(1, rows_first[0].numel()))
    if side != outer:
        for start in range(0, len(rows_first), step):
            rows = rows_first[start : start + step]
            rows.copy_(rows.flip(2))
        return
    for start in range(0, len(rows_first) // 2, step):
        end = min(start + step, len(rows_first) // 2)
        head, tail = (
            rows_first[start:end],
            rows_first[len(rows_first) - end : len(rows_first) - start],
        )
        kept = head.flip(0)
        head.copy_(tail.flip(0))
        tail.copy_(kept)
