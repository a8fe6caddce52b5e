"""How near a gallery's rows are to a query's, as whole numbers, so that what is noise apart is
equally near.

Cosine similarity or Euclidean distance in float64, rounded to steps of `STEP`, far above the
rounding noise of the product and far below what two images differ by. Ranked lists are then ranked
by whole numbers: no sum's order, no library and no chunk decides who comes first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lookalike import comm
from lookalike.errors import Error
from lookalike.geometry import DISTANCES, Distance
from lookalike.scoring.rows import STEP, blocks, check, check_shape

FARTHEST = 2**30 - 2
"""Steps beyond which rows are equally far: twice it and one more is an int32. Cosine needs a
millionth of it.
"""

WIDE = 2**19
"""Numbers of a block that is converted to float64: as such it stays in a processor's cache."""

KEPT = 2**27
"""Numbers of a gallery of which all similarities are asked for that is held in float64."""

SHORTEST = 1e-12
"""What a row's length is divided by at least: a zero row stays zero."""


def is_cosine(distance: Distance) -> bool:
    """Whether it is the cosine. Raises Error for what is neither that nor Euclidean."""
    if distance not in DISTANCES:
        raise Error(f"distance: {distance!r}; pass one of {', '.join(DISTANCES)}")
    return distance == "cosine"


class Frame(NamedTuple):
    """What similarity needs to know of a gallery once: the length of each row, float64 `(N,)`.

    Euclidean: lengths from the mean `(D,)`, in `unit`s, the root mean square distance from it;
    cosine: from 0, in ones.
    """

    length_N: Tensor
    mean_D: Tensor
    unit: Tensor


def frame(x_ND: Tensor, distance: Distance, name: str = "gallery") -> Frame:
    """Measures all rows, block by block. Raises Error, with `name`, where one is NaN or Inf."""
    check_shape(x_ND, name)
    mean_D = torch.zeros(x_ND.shape[1], dtype=torch.float64, device=x_ND.device)
    one = mean_D.new_ones(())
    if is_cosine(distance):
        return Frame(_lengths(x_ND, None, name), mean_D, one)
    for start, x_BD in blocks(x_ND, WIDE):
        sum_D = x_BD.double().sum(0)
        if not bool(sum_D.isfinite().all()):
            refuse_numberless(x_BD, start, name)
        mean_D += sum_D / len(x_ND)
    length_N = _lengths(x_ND, mean_D, name)
    unit = torch.linalg.vector_norm(length_N) / len(x_ND) ** 0.5
    unit = unit.where(unit > 0, one)
    return Frame(length_N.div_(unit), mean_D, unit)


def _lengths(x_ND: Tensor, mean_D: Tensor | None, name: str) -> Tensor:
    parts = []
    for start, x_BD in blocks(x_ND, WIDE):
        row_BD = x_BD.double() if mean_D is None else x_BD.double() - mean_D
        parts.append(torch.linalg.vector_norm(row_BD, dim=1))
        if not bool(parts[-1].isfinite().all()):
            refuse_numberless(x_BD, start, name)
    return torch.cat(parts)


def refuse_numberless(x_BD: Tensor, start: int, name: str) -> None:
    """Raises Error where a row is NaN or Inf."""
    for row in (~x_BD.isfinite().all(1)).nonzero()[:, 0].tolist():
        raise Error(
            f"{name} features: NaN or Inf in row {start + row}; check the weights and the precision"
        )


class Bank:
    """A gallery, `(N, D)`, perhaps half precision or mapped from a file, which is never copied
    whole: a block at a time is brought to float64, or to the device.
    """

    def __init__(self, x_ND: Tensor, distance: Distance, known: Frame | None = None) -> None:
        check_shape(x_ND, "gallery")
        self.x_ND, self.cosine, self.distance = x_ND, is_cosine(distance), distance
        self.known = known

    def __len__(self) -> int:
        return len(self.x_ND)

    @cached_property
    def frame(self) -> Frame:
        """What was known, or is measured now, where the rows lie."""
        return self.known or frame(self.x_ND, self.distance)

    @cached_property
    def device(self) -> torch.device:
        """Where products are made."""
        return self.x_ND.device if self.x_ND.device.type != "cpu" else comm.exact_device()

    @cached_property
    def there(self) -> Tensor:
        """The rows on the device, where half of its free memory holds them; else where they lie."""
        if self.device.type == "cpu" or self.x_ND.device == self.device:
            return self.x_ND
        free, _ = torch.cuda.mem_get_info(self.device)
        fits = self.x_ND.numel() * self.x_ND.element_size() < free // 2
        return self.x_ND.to(self.device) if fits else self.x_ND

    @cached_property
    def frame_there(self) -> Frame:
        """The frame on the device."""
        return Frame(*(part.to(self.device) for part in self.frame))

    def placed(self, x_BD: Tensor) -> Tensor:
        """Rows of any set as float64 on the device: on the unit sphere (zero rows stay zero), or in
        the frame.
        """
        row_BD = x_BD.to(self.device, torch.float64, copy=True)
        if self.cosine:
            length_B1 = torch.linalg.vector_norm(row_BD, dim=1, keepdim=True)
            return row_BD.div_(length_B1.clamp_min_(SHORTEST))
        return row_BD.sub_(self.frame_there.mean_D).div_(self.frame_there.unit)

    def rows(self, row_P: Tensor) -> Tensor:
        """Some rows of the gallery, float64 `(P, D)` on the device."""
        return self.there[row_P.to(self.there.device)].to(self.device).double()

    def measured(self, from_BD: Tensor, row_BK: Tensor) -> Tensor:
        """How near K rows are to each placed one, in whole steps, int64 `(B, K)`: the definition.

        Each pair is summed by itself: its bits depend on no other, nor on the block.
        """
        out_BK = torch.empty_like(row_BK)
        width = from_BD.shape[1]
        many = max(1, min(row_BK.shape[1], WIDE // width))
        for b, part_BK in blocks(row_BK, max(many, WIDE // width)):
            part_B1D = from_BD[b : b + len(part_BK), None]
            for k, row_Bk in enumerate(torch.split(part_BK, many, dim=1)):
                near_Bk = in_steps(self._near(part_B1D, row_Bk))
                out_BK[b : b + len(part_BK), k * many : k * many + row_Bk.shape[1]] = near_Bk
        return out_BK

    def _near(self, from_B1D: Tensor, row_Bk: Tensor) -> Tensor:
        """Similarity of pairs, `(B, k)`."""
        to_BkD = self.rows(row_Bk.flatten()).view(*row_Bk.shape, -1)
        if self.cosine:
            length_Bk = self.frame_there.length_N[row_Bk].clamp_min_(SHORTEST)
            return to_BkD.mul_(from_B1D).sum(2).div_(length_Bk)
        to_BkD.sub_(self.frame_there.mean_D).div_(self.frame_there.unit)
        return to_BkD.sub_(from_B1D).square_().sum(2).sqrt_().neg_()

    def similarity(self, steps: Tensor) -> Tensor:
        """Steps as cosine similarity, or Euclidean distance, float64."""
        near = steps.double().mul_(STEP)
        return near if self.cosine else near.mul_(-self.frame.unit.to(near.device)).abs_()


def nearness_to(bank: Bank) -> Callable[[Tensor], Tensor]:
    """How near all rows of the gallery are to some of a query set, int32 `(B, N)`: placed rows
    `(B, D)` → whole steps.

    The gallery is held in float64 where that takes at most `KEPT` numbers.
    """
    if bank.x_ND.numel() <= KEPT:
        to_ND = bank.placed(bank.there)
        return lambda from_BD: nearness(from_BD, to_ND, bank.distance)

    def near(from_BD: Tensor) -> Tensor:
        out_BN = torch.empty(len(from_BD), len(bank), dtype=torch.int32, device=from_BD.device)
        for start, x_nD in blocks(bank.there, WIDE):
            near_Bn = nearness(from_BD, bank.placed(x_nD), bank.distance)
            out_BN[:, start : start + len(x_nD)] = near_Bn
        return out_BN

    return near


def in_steps(near: Tensor) -> Tensor:
    """Similarity in whole `STEP`s, int64; float64 is rounded in place."""
    return near.div_(STEP).round_().clamp_min_(-FARTHEST).long()


def points(query_QD: Tensor, gallery_ND: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    """Float64 rows of queries and gallery; one tensor where they are one.

    Cosine: of unit length, zero rows stay zero. Euclidean: centred on the gallery's mean, in units
    of its root mean square distance from it. Raises Error when one is not a full matrix of numbers
    or the widths differ.
    """
    check(query_QD, "query")
    check(gallery_ND, "gallery")
    refuse_widths(query_QD, gallery_ND)
    to_ND = gallery_ND.double()
    to_ND = to_ND.clone() if to_ND is gallery_ND else to_ND
    from_QD = to_ND if query_QD is gallery_ND else query_QD.double().clone()
    if is_cosine(distance):
        for x in (to_ND,) if from_QD is to_ND else (to_ND, from_QD):
            x.div_(torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp_min(SHORTEST))
        return from_QD, to_ND
    mean_D = to_ND.mean(0)
    to_ND.sub_(mean_D)
    spread = torch.linalg.vector_norm(to_ND) / len(to_ND) ** 0.5
    spread = spread.where(spread > 0, 1)
    to_ND.div_(spread)
    return (to_ND if from_QD is to_ND else from_QD.sub_(mean_D).div_(spread)), to_ND


def refuse_widths(query_QD: Tensor, gallery_ND: Tensor) -> None:
    """Raises Error where queries and gallery differ in width."""
    if query_QD.shape[1] != gallery_ND.shape[1]:
        widths = f"{query_QD.shape[1]} of the queries, {gallery_ND.shape[1]} of the gallery"
        raise Error(f"features: width {widths}; use one model for both")


def nearness(from_BD: Tensor, to_ND: Tensor, distance: Distance) -> Tensor:
    """Cosine similarity or negated Euclidean distance of rows made by `points`, in whole `STEP`s,
    int32 `(B, N)`.
    """
    near_BN = from_BD @ to_ND.T if distance == "cosine" else squares(from_BD, to_ND).sqrt_().neg_()
    return near_BN.div_(STEP).round_().clamp_min_(-FARTHEST).int()


def squares(a_BD: Tensor, b_ND: Tensor) -> Tensor:
    """Squared Euclidean distances, `(B, N)`, never below 0."""
    d_BN = (a_BD @ b_ND.T).mul_(-2)
    return (
        d_BN.add_(a_BD.square().sum(1)[:, None])
        .add_(torch.linalg.vector_norm(b_ND, dim=1).square())
        .clamp_min_(0)
    )


def of_distances(distance_QN: Tensor) -> Tensor:
    """Negated distances of one's own making, in whole millionths of the largest, int32 `(Q, N)`.

    Raises Error when they are not a full matrix of finite numbers of at least 0.
    """
    if distance_QN.ndim != 2 or 0 in distance_QN.shape:
        raise Error(
            f"distances: shape {tuple(distance_QN.shape)}; pass a full (queries, gallery) matrix"
        )
    if not bool(distance_QN.isfinite().all()) or float(distance_QN.min()) < 0:
        raise Error("distances: some are NaN, Inf or below 0; pass distances, not similarities")
    largest = float(distance_QN.max()) or 1.0
    return distance_QN.to(torch.float64, copy=True).div_(-largest * STEP).round_().int()


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 and no bfloat16 within a product, whatever the process has chosen."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)
