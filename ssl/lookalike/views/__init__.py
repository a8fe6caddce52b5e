"""From a canvas (B, C, H, W) of raw pixels to V normalised float views on the device; the one room
for kornia.

Every parameter of every view is a pure function of (seed, epoch, sample, view): VIEWS lists the
augmentation policies by name.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from lookalike import rng
from lookalike.geometry import BYTES, PixelFormat, sides
from lookalike.recipe import SINCE_0_2, Count, Fraction, Positive, Share, Size
from lookalike.views import fused, randaugment
from lookalike.views.erasing import ErasedWith
from lookalike.views.form import Draws, ViewFormat
from lookalike.views.fused import channels_last
from lookalike.views.resample import (
    ATTEMPTS,
    Interpolation,
    Outside,
    below,
    between,
    crop_boxes,
    log_between,
    resize_crop,
)
from lookalike.views.send import constant

__all__ = [
    "VIEWS",
    "Asymmetric",
    "Classification",
    "MultiCrop",
    "Reidentification",
    "Symmetric",
    "make",
    "normalise",
    "resize_crop",
    "scale",
    "taken",
]

HueStrength = Annotated[float, Field(ge=0, le=0.5)]
PerView = Fraction | tuple[Fraction, ...]
Magnitude = Annotated[float, Field(ge=0, le=randaugment.LEVELS)]
Crop = tuple[Share, Share] | Literal["whole"]
Range = tuple[Positive, Positive]
# How many numbers each purpose takes; a purpose of one has no coordinate of its own for them.
_ONCE = ("top", "left", "flip", "jitter", "grey", "blur", "sigma", "solarize", "drop", "channel")
_MANY = {"area": ATTEMPTS, "aspect": ATTEMPTS, "order": 4, "factors": 4}


def _uniforms(
    ids_B: Tensor, seed: int, epoch: int, views: range, more: Mapping[str, int]
) -> dict[str, Tensor]:
    """Numbers in [0, 1), (V, B) or (V, B, n) a purpose: draw.uniform(seed, epoch, view, purpose,
    sample[, k]); `more`: so many each for further purposes.
    """
    view_V11, many = _views_V11(views, ids_B), {**_MANY, **more}
    words = torch.tensor([rng.tag(name) for name in _ONCE], device=ids_B.device)
    found = dict(
        zip(_ONCE, rng.uniform(seed, epoch, view_V11, words[:, None], ids_B).unbind(1), strict=True)
    )
    words = torch.tensor(
        [rng.tag(name) for name, n in many.items() for _ in range(n)], device=ids_B.device
    )
    k = torch.tensor([k for n in many.values() for k in range(n)], device=ids_B.device)
    many_VBK = rng.uniform(seed, epoch, view_V11, words, ids_B[:, None], k)
    return found | dict(zip(many, torch.split(many_VBK, list(many.values()), dim=-1), strict=True))


def _views_V11(views: range, like: Tensor) -> Tensor:
    return torch.tensor(list(views), device=like.device)[:, None, None]


def _named(like: Tensor) -> Tensor:
    return torch.arange(like.shape[-1], device=like.device).expand(like.shape)


@dataclass(frozen=True, kw_only=True)
class Symmetric:
    """Views that all follow one augmentation policy (SimCLR, arXiv 2002.05709, appendix A), without
    solarization.

    `order`: of brightness, contrast, saturation and hue, drawn for each image (torchvision) or as
    they are named; saturation, hue and `grey` are for images of three channels, the others for any
    number; `channel_drop`: how often one channel, drawn anew for each view, is black at last, where
    there are several; `compile`: by torch.compile, as one fixed graph (needs Triton, on a CPU a C++
    compiler); otherwise as suits the device, on CUDA three kernels, compiled once for all shapes.

    `crop`: the share of the area that is cut, or `whole` for all of the image, resized whatever its
    shape; `pad`: so many pixels around the resized view (`pad_with` black or the mirrored image),
    from which a frame of its own size is cut; `randaugment`: how many of RandAugment's 14
    operations each view goes through (arXiv 1909.13719; before any jitter), `magnitude`: how
    strongly, of 30; `erase`: how often a rectangle is erased (random erasing, arXiv 1708.04896), at
    last of all, `erase_area`: its share of the view, `erase_aspect`: its height by its width,
    `erase_with`: random numbers for each pixel, the mean that normalises, or black.
    """

    views: Count = 2
    crop: Crop = (0.08, 1.0)
    aspect: Range = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: Fraction = 0.5
    jitter: Fraction = 0.8
    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.2
    hue: HueStrength = 0.1
    order: Literal["drawn", "fixed"] = "drawn"
    grey: PerView = 0.2
    blur: PerView = 0.5
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    solarize: PerView = 0.0
    compile: bool = False
    channel_drop: Annotated[PerView, SINCE_0_2] = 0.0
    pad: Annotated[int, Field(ge=0, le=4096), SINCE_0_2] = 0
    pad_with: Annotated[Outside, SINCE_0_2] = "zero"
    randaugment: Annotated[int, Field(ge=0, le=16), SINCE_0_2] = 0
    magnitude: Annotated[Magnitude, SINCE_0_2] = 9.0
    erase: Annotated[PerView, SINCE_0_2] = 0.0
    erase_area: Annotated[tuple[Share, Share], SINCE_0_2] = (0.02, 0.33)
    erase_aspect: Annotated[Range, SINCE_0_2] = (0.3, 3.3)
    erase_with: Annotated[ErasedWith, SINCE_0_2] = "random"

    def __post_init__(self) -> None:
        for name in ("grey", "blur", "solarize", "channel_drop", "erase"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and len(value) != self.views:
                raise ValueError(f"{name} has {len(value)} values for {self.views} views")
        for name in ("crop", "aspect", "blur_sigma", "erase_area", "erase_aspect"):
            value = getattr(self, name)
            if value != "whole" and value[0] > value[1]:
                raise ValueError(f"{name} [{value[0]}, {value[1]}] has its larger value first")
        for name in ("pad", "randaugment", "erase"):
            if self.compile and getattr(self, name):
                raise ValueError(
                    f"compile: {name} has no place in one fixed graph: delete one of the two"
                )

    @property
    def total(self) -> int:
        """How many views of each image are made."""
        return self.views

    def __call__(
        self,
        images: Tensor | Sequence[Tensor],
        ids_B: Tensor,
        *,
        seed: int,
        epoch: int,
        size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
        fill: Sequence[float] | None = None,
    ) -> list[Tensor]:
        """uint8, or floats in [0, 1], (B, C, H, W) on the device and int64 ids_B on the host -> V
        views (B, C, *size) of `dtype`; `fill`: what stands for the mean, by default `mean`.

        Instead of one canvas V crops (B, C, *size) may come, already cut by `boxes`.
        """
        first = images if isinstance(images, Tensor) else images[0]
        draws = self.draws(ids_B, seed, epoch, range(self.views), *first.shape[2:])
        return self._plan(images, draws, self.form(size, mean, std, dtype, fill))

    def form(
        self,
        size: Size,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
        fill: Sequence[float] | None = None,
    ) -> ViewFormat:
        """What the views are besides what is drawn for them."""
        return ViewFormat(
            sides(size),
            self.interpolation,
            self.blur_sigma[1],
            mean,
            std,
            dtype,
            self.pad_with,
            self.erase_with,
            fill,
        )

    @property
    def _plan(self) -> Callable[[Tensor | Sequence[Tensor], Draws, ViewFormat], list[Tensor]]:
        return fused.make_compiled if self.compile else fused.make

    def draws(
        self,
        ids_B: Tensor,
        seed: int,
        epoch: int,
        views: range,
        height: int | Tensor,
        width: int | Tensor,
    ) -> dict[str, Tensor]:
        """What is drawn for each sample of each view, (V, B, …) each, on the device of ids_B.

        box (4: top, left, height, width, of images of that height and width, numbers or (B,)),
        flip, jitter, factors (4), order (4), grey, blur, sigma, solarize; where channels are
        dropped drop, channel (a share of their number); see `_more`.
        """
        u = _uniforms(ids_B, seed, epoch, views, self._numbers)

        def happens(name: str, chance: PerView) -> Tensor:
            chances = [chance if isinstance(chance, float | int) else chance[v] for v in views]
            return (
                u[name] < torch.tensor(chances, dtype=torch.float32, device=ids_B.device)[:, None]
            )

        strength_4 = torch.tensor(
            [self.brightness, self.contrast, self.saturation, self.hue], device=ids_B.device
        )
        centre_4 = torch.tensor([1.0, 1.0, 1.0, 0.0], device=ids_B.device)
        low, high = self.blur_sigma
        dropped = {"drop": happens("drop", self.channel_drop), "channel": u["channel"]}
        further = self._more(u)
        if self.erase:
            u["erase"] = u["erase"][..., 0]
            further |= {
                "erase": happens("erase", self.erase),
                "erase_word": rng.bits(
                    seed, epoch, _views_V11(views, ids_B)[:, 0], "erased pixels", ids_B
                ),
            }
        return (
            further
            | (dropped if self.channel_drop else {})
            | {
                "box": self._boxes(u, height, width),
                "flip": happens("flip", self.flip),
                "jitter": happens("jitter", self.jitter),
                "factors": centre_4 + strength_4 * (2 * u["factors"] - 1),
                "order": u["order"].argsort(dim=-1, stable=True)
                if self.order == "drawn"
                else _named(u["order"]),
                "grey": happens("grey", self.grey),
                "blur": happens("blur", self.blur),
                "sigma": low + (high - low) * u["sigma"],
                "solarize": happens("solarize", self.solarize),
            }
        )

    @property
    def _numbers(self) -> dict[str, int]:
        """How many numbers are drawn, for each purpose that not every policy has."""
        erasing = {"erase_area": ATTEMPTS, "erase_aspect": ATTEMPTS, "erase_place": 2, "erase": 1}
        augmenting = {"operation": self.randaugment, "sign": self.randaugment}
        return (
            ({"pad": 2} if self.pad else {})
            | (augmenting if self.randaugment else {})
            | (erasing if self.erase else {})
        )

    def _more(self, u: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of padding: shift (2: down, right). Of RandAugment: operations, strengths (n). Of what is
        erased: erase_area, erase_aspect (of each attempt), erase_place (2).
        """
        found = {}
        if self.pad:
            choices = torch.tensor(2 * self.pad + 1, device=u["pad"].device)
            found["shift"] = below(u["pad"], choices) - self.pad
        if self.randaugment:
            kinds = torch.tensor(len(randaugment.OPERATIONS), device=u["sign"].device)
            found["operations"] = below(u["operation"], kinds)
            share = self.magnitude / randaugment.LEVELS
            found["strengths"] = torch.where(u["sign"] < 0.5, -share, share)
        if self.erase:
            found["erase_area"] = between(u["erase_area"], *self.erase_area)
            found["erase_aspect"] = log_between(u["erase_aspect"], *self.erase_aspect)
            found["erase_place"] = u["erase_place"]
        return found

    def _boxes(self, u: Mapping[str, Tensor], height: int | Tensor, width: int | Tensor) -> Tensor:
        """(V, B, 4): what is cut of each image."""
        if self.crop != "whole":
            area, aspect, top, left = (u[name] for name in ("area", "aspect", "top", "left"))
            return crop_boxes(area, aspect, top, left, height, width, self.crop, self.aspect)
        like = u["top"]
        tall, wide = (
            torch.as_tensor(side, device=like.device).long().expand(like.shape)
            for side in (height, width)
        )
        return torch.stack([torch.zeros_like(tall), torch.zeros_like(wide), tall, wide], dim=-1)

    def sizes(self, size: Size) -> list[tuple[int, int]]:
        """Height and width of each view where the large ones have `size`."""
        return [sides(size)] * self.views

    def each(
        self, ids_B: Tensor, *, seed: int, epoch: int, heights_B: Tensor, widths_B: Tensor
    ) -> list[dict[str, Tensor]]:
        """All that `draws` names, of each view in turn, (B, …), for images of these heights and
        widths.
        """
        drawn = self.draws(ids_B, seed, epoch, range(self.views), heights_B, widths_B)
        return [{name: value[v] for name, value in drawn.items()} for v in range(self.views)]

    def boxes(
        self, ids_B: Tensor, *, seed: int, epoch: int, heights_B: Tensor, widths_B: Tensor
    ) -> list[Tensor]:
        """What each view cuts from images of these sides: int64 (B, 4), top, left, height, width,
        per view.
        """
        every = self.each(ids_B, seed=seed, epoch=epoch, heights_B=heights_B, widths_B=widths_B)
        return [drawn["box"] for drawn in every]


@dataclass(frozen=True, kw_only=True)
class Asymmetric(Symmetric):
    """The two views of BYOL and Barlow Twins (arXiv 2006.07733, table 6): blur 1 / .1, solarization
    0 / .2.
    """

    blur: PerView = (1.0, 0.1)
    solarize: PerView = (0.0, 0.2)


@dataclass(frozen=True, kw_only=True)
class MultiCrop(Asymmetric):
    """Two large views by the asymmetric policy, then `small` ones of `small_size` pixels (SwAV,
    arXiv 2006.09882; with DINO's numbers, arXiv 2104.14294).
    """

    crop: Crop = (0.4, 1.0)
    small: Count = 8
    small_size: Size = 96
    small_crop: tuple[Share, Share] = (0.05, 0.4)
    small_blur: Fraction = 0.5
    small_solarize: Fraction = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.views != 2:
            raise ValueError(f"views: {self.views}, but multi_crop makes 2 large ones: set small")
        if self.small_crop[0] > self.small_crop[1]:
            raise ValueError(f"small_crop {list(self.small_crop)} has its larger value first")

    @property
    def total(self) -> int:
        """How many views of each image are made."""
        return self.views + self.small

    def __call__(
        self,
        images: Tensor | Sequence[Tensor],
        ids_B: Tensor,
        *,
        seed: int,
        epoch: int,
        size: Size,
        **how: Any,
    ) -> list[Tensor]:
        """As Symmetric; the small views follow the large ones."""
        large, small = (images, images) if isinstance(images, Tensor) else (images[:2], images[2:])
        law, parts = self._small(), []
        for policy, part, views, side in (
            (self, large, range(self.views), size),
            (law, small, range(self.views, self.total), self.small_size),
        ):
            first = part if isinstance(part, Tensor) else part[0]
            draws = policy.draws(ids_B, seed, epoch, views, *first.shape[2:])
            parts.append((part, draws, policy.form(side, **how)))
        if self.compile:
            return [view for part in parts for view in fused.make_compiled(*part)]
        return fused.make_several(parts)

    def sizes(self, size: Size) -> list[tuple[int, int]]:
        """As Symmetric; the small views follow the large ones."""
        return super().sizes(size) + [sides(self.small_size)] * self.small

    def each(
        self, ids_B: Tensor, *, seed: int, epoch: int, heights_B: Tensor, widths_B: Tensor
    ) -> list[dict[str, Tensor]]:
        """As Symmetric; the small views follow the large ones."""
        large = super().each(ids_B, seed=seed, epoch=epoch, heights_B=heights_B, widths_B=widths_B)
        drawn = self._small().draws(
            ids_B, seed, epoch, range(self.views, self.total), heights_B, widths_B
        )
        return large + [
            {name: value[v] for name, value in drawn.items()} for v in range(self.small)
        ]

    def _small(self) -> Symmetric:
        """The policy of the small views."""
        shared = {f.name: getattr(self, f.name) for f in fields(Symmetric)}
        own = {
            "views": self.small,
            "crop": self.small_crop,
            "blur": self.small_blur,
            "solarize": self.small_solarize,
        }
        for name in ("grey", "channel_drop", "erase"):
            value = getattr(self, name)
            own[name] = value if isinstance(value, float | int) else value[0]
        return Symmetric(**{**shared, **own})


@dataclass(frozen=True, kw_only=True)
class Classification(Symmetric):
    """One view for training a classifier: random resized crop, flip, RandAugment(2, 9) and, of a
    quarter of the views, a rectangle erased (timm's recipe of DeiT, arXiv 2012.12877, table 9, with
    the magnitudes of arXiv 1909.13719).
    """

    views: Count = 1
    jitter: Fraction = 0.0
    grey: PerView = 0.0
    blur: PerView = 0.0
    randaugment: Annotated[int, Field(ge=0, le=16), SINCE_0_2] = 2
    erase: Annotated[PerView, SINCE_0_2] = 0.25


@dataclass(frozen=True, kw_only=True)
class Reidentification(Symmetric):
    """One view for re-identification (BoT, arXiv 1903.07071, sections 2 and 3.2): the whole image
    resized, flipped, padded by 10 black pixels and cropped back, of a half of the views a rectangle
    of .02 to .4 erased to the mean.
    """

    views: Count = 1
    crop: Crop = "whole"
    interpolation: Interpolation = "bilinear"
    jitter: Fraction = 0.0
    grey: PerView = 0.0
    blur: PerView = 0.0
    pad: Annotated[int, Field(ge=0, le=4096), SINCE_0_2] = 10
    erase: Annotated[PerView, SINCE_0_2] = 0.5
    erase_area: Annotated[tuple[Share, Share], SINCE_0_2] = (0.02, 0.4)
    erase_aspect: Annotated[Range, SINCE_0_2] = (0.3, 1 / 0.3)
    erase_with: Annotated[ErasedWith, SINCE_0_2] = "mean"


VIEWS: dict[str, Any] = {
    "asymmetric": Asymmetric,
    "classify": Classification,
    "multi_crop": MultiCrop,
    "reidentify": Reidentification,
    "symmetric": Symmetric,
}


def make(
    policy: Callable[..., list[Tensor]],
    pixels: Tensor | Sequence[Tensor],
    ids_B: Tensor,
    epoch: int,
    *,
    size: Size,
    mean: Sequence[float],
    std: Sequence[float],
    seed: int,
    device: torch.device,
    form: PixelFormat = BYTES,
) -> list[Tensor]:
    """The views of a batch on `device`, by the policy: V of (B, C, *its sides), normalised.

    `pixels`: canvases (B, C, H, W) of `form`, or one (B, C, *its sides) for each view that the host
    has cut; ids_B: int64, on the host.
    """
    if isinstance(pixels, Tensor):
        there: Tensor | list[Tensor] = pixels.to(device)
    else:
        there = [crops.to(device) for crops in pixels]
    known = {"size": size, "mean": mean, "std": std}
    return policy(taken(there, form), ids_B, seed=seed, epoch=epoch, **known)


def taken(pixels: Tensor | Sequence[Tensor], form: PixelFormat) -> Tensor | Sequence[Tensor]:
    """Canvases or crops of `form` as policies take them: bytes as they are, else floats in
    [0, 1].
    """
    if form.plain:
        return pixels
    if isinstance(pixels, Tensor):
        return scale(pixels, form)
    return [scale(crops, form) for crops in pixels]


def scale(canvas_BCHW: Tensor, form: PixelFormat = BYTES) -> Tensor:
    """Raw pixels of `form` to float32 0 … 1, what is outside its range clamped."""
    if canvas_BCHW.dtype != form.dtype:
        raise ValueError(f"pixels of {canvas_BCHW.dtype}, not of {form.depth}")
    x_BCHW = canvas_BCHW.to(torch.float32)
    if form.plain:
        return x_BCHW / 255
    low, high = form.ends
    return ((x_BCHW - low) / (high - low)).clamp_(0, 1)


def normalise(x_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std of each channel, laid out channels-last: convolutions follow it, and run
    faster.
    """
    mean_C11, std_C11 = (
        constant(v, x_BCHW.device, x_BCHW.dtype)[:, None, None] for v in (mean, std)
    )
    return channels_last((x_BCHW - mean_C11) / std_C11)
