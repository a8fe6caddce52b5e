"""From a uint8 canvas (B, C, H, W) to V normalised float views on the device; the one room for kornia.

Every parameter of every view is a pure function of (seed, epoch, sample, view): VIEWS lists the laws by name.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from lookalike import draw
from lookalike.recipe import Count, Fraction, Positive, Share
from lookalike.views import colour
from lookalike.views.resample import Interpolation, crop_resize, draw_boxes, resize_crop

__all__ = ["VIEWS", "Asymmetric", "MultiCrop", "Symmetric", "normalise", "resize_crop", "scale"]

HueStrength = Annotated[float, Field(ge=0, le=0.5)]
PerView = Fraction | tuple[Fraction, ...]


@dataclass(frozen=True, kw_only=True)
class Symmetric:
    """Views that all follow one law (SimCLR, arXiv 2002.05709, appendix A); no solarization."""

    views: Count = 2
    crop: tuple[Share, Share] = (0.08, 1.0)
    aspect: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bicubic"
    flip: Fraction = 0.5
    jitter: Fraction = 0.8
    brightness: Fraction = 0.4
    contrast: Fraction = 0.4
    saturation: Fraction = 0.2
    hue: HueStrength = 0.1
    grey: PerView = 0.2
    blur: PerView = 0.5
    blur_sigma: tuple[Positive, Positive] = (0.1, 2.0)
    solarize: PerView = 0.0

    def __post_init__(self) -> None:
        for name in ("grey", "blur", "solarize"):
            value = getattr(self, name)
            if isinstance(value, Sequence) and len(value) != self.views:
                raise ValueError(f"{name} has {len(value)} values for {self.views} views")
        for name in ("crop", "aspect", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} [{low}, {high}] has its larger value first")

    @property
    def total(self) -> int:
        """How many views of each picture are made."""
        return self.views

    def sizes(self, size: int) -> list[int]:
        """The side of each view where the large ones have `size` pixels."""
        return [size] * self.views

    def boxes(self, ids_B: Tensor, *, seed: int, epoch: int, heights_B: Tensor, widths_B: Tensor) -> list[Tensor]:
        """What each view cuts from pictures of these sides: int64 (B, 4), top, left, height, width, per view."""
        keys = [(seed, epoch, v) for v in range(self.views)]
        return [draw_boxes(ids_B, key, heights_B, widths_B, self.crop, self.aspect) for key in keys]

    def __call__(
        self,
        canvas_BCHW: Tensor | list[Tensor],
        ids_B: Tensor,
        *,
        seed: int,
        epoch: int,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> list[Tensor]:
        """uint8 (B, C, H, W) on the device and int64 ids_B on the host -> V float views (B, C, size, size).

        In place of one canvas for all views, a list with the crops of each: `boxes` resized to `sizes`.
        """
        given = list(_given(canvas_BCHW, self.views))
        made = (self.view(x, ids_B, (seed, epoch, v), size, cut) for v, (x, cut) in enumerate(given))
        return [normalise(view, mean, std) for view in made]

    def view(self, x_BCHW: Tensor, ids_B: Tensor, key: tuple[int, int, int], size: int, cut: bool = False) -> Tensor:
        """One view in [0, 1], before normalisation; key = (seed, epoch, view). `cut`: x_BCHW is its crop already."""
        p = self.parameters(ids_B, key, x_BCHW.shape[2], x_BCHW.shape[3])
        if cut:
            x = torch.where(p["flip"].to(x_BCHW.device)[:, None, None, None], x_BCHW.flip(3), x_BCHW)
        else:
            x = crop_resize(x_BCHW, p["box"], size, flip_B=p["flip"], interpolation=self.interpolation)
        x = colour.jitter(x, p["jitter"], p["factors"], p["order"])
        x = colour.grey(x, p["grey"])
        x = colour.blur(x, p["blur"], p["sigma"], self.blur_sigma[1])
        return colour.solarize(x, p["solarize"])

    def parameters(self, ids_B: Tensor, key: tuple[int, int, int], height: int, width: int) -> dict[str, Tensor]:
        """What is drawn for each sample of one view: box, flip, jitter, factors, order, grey, blur, sigma, solarize."""

        def happens(name: str, chance: PerView) -> Tensor:
            return draw.uniform(*key, name, ids_B) < (chance if isinstance(chance, float | int) else chance[key[2]])

        low, high = self.blur_sigma
        return {
            "box": draw_boxes(ids_B, key, height, width, self.crop, self.aspect),
            "flip": happens("flip", self.flip),
            "jitter": happens("jitter", self.jitter),
            "factors": self._factors(ids_B, key),
            "order": draw.uniform(*key, "order", ids_B[:, None], torch.arange(4)[None]).argsort(dim=1, stable=True),
            "grey": happens("grey", self.grey),
            "blur": happens("blur", self.blur),
            "sigma": low + (high - low) * draw.uniform(*key, "sigma", ids_B),
            "solarize": happens("solarize", self.solarize),
        }

    def _factors(self, ids_B: Tensor, key: tuple[int, int, int]) -> Tensor:
        """(B, 4): factors in 1 ± strength for brightness, contrast and saturation, turns in ± hue."""
        strength_4 = torch.tensor([self.brightness, self.contrast, self.saturation, self.hue])
        centre_4 = torch.tensor([1.0, 1.0, 1.0, 0.0])
        return centre_4 + strength_4 * (2 * draw.uniform(*key, "factors", ids_B[:, None], torch.arange(4)[None]) - 1)


@dataclass(frozen=True, kw_only=True)
class Asymmetric(Symmetric):
    """The two views of BYOL and Barlow Twins (arXiv 2006.07733, table 6): blur 1 / .1, solarization 0 / .2."""

    blur: PerView = (1.0, 0.1)
    solarize: PerView = (0.0, 0.2)


@dataclass(frozen=True, kw_only=True)
class MultiCrop(Asymmetric):
    """Two large views by the asymmetric law, then `small` ones of `small_size` pixels (SwAV, arXiv 2006.09882; with
    DINO's numbers, arXiv 2104.14294).
    """

    crop: tuple[Share, Share] = (0.4, 1.0)
    small: Count = 8
    small_size: Count = 96
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
        """How many views of each picture are made."""
        return self.views + self.small

    def sizes(self, size: int) -> list[int]:
        """As Symmetric; the small views follow the large ones."""
        return super().sizes(size) + [self.small_size] * self.small

    def boxes(self, ids_B: Tensor, *, seed: int, epoch: int, heights_B: Tensor, widths_B: Tensor) -> list[Tensor]:
        """As Symmetric; the small views follow the large ones."""
        large = super().boxes(ids_B, seed=seed, epoch=epoch, heights_B=heights_B, widths_B=widths_B)
        keys = [(seed, epoch, v) for v in range(self.views, self.total)]
        return large + [draw_boxes(ids_B, key, heights_B, widths_B, self.small_crop, self.aspect) for key in keys]

    def __call__(
        self, canvas_BCHW: Tensor | list[Tensor], ids_B: Tensor, *, seed: int, epoch: int, size: int, **how: Any
    ) -> list[Tensor]:
        """As Symmetric; the small views follow the large ones."""
        made = super().__call__(canvas_BCHW, ids_B, seed=seed, epoch=epoch, size=size, **how)
        law, given = self._small(), list(_given(canvas_BCHW, self.total))
        for v, (x_BCHW, cut) in enumerate(given[self.views :], self.views):
            view = law.view(x_BCHW, ids_B, (seed, epoch, v), self.small_size, cut)
            made.append(normalise(view, how["mean"], how["std"]))
        return made

    def _small(self) -> Symmetric:
        """The law of the small views."""
        shared = {f.name: getattr(self, f.name) for f in fields(Symmetric)}
        own = {"views": self.small, "crop": self.small_crop, "blur": self.small_blur, "solarize": self.small_solarize}
        grey = self.grey if isinstance(self.grey, float | int) else self.grey[0]
        return Symmetric(**{**shared, **own, "grey": grey})


VIEWS: dict[str, Any] = {"asymmetric": Asymmetric, "multi_crop": MultiCrop, "symmetric": Symmetric}


def _given(pixels: Tensor | list[Tensor], views: int) -> Iterator[tuple[Tensor, bool]]:
    """For each view its picture in [0, 1], and whether that is cut already."""
    if isinstance(pixels, Tensor):
        yield from [(scale(pixels), False)] * views
    else:
        yield from ((scale(crop_BCHW), True) for crop_BCHW in pixels[:views])


def scale(canvas_BCHW: Tensor) -> Tensor:
    """uint8 0 … 255 to float32 0 … 1."""
    return canvas_BCHW.to(torch.float32) / 255


def normalise(x_BCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std of each channel, laid out channels-last: convolutions follow it, and run faster."""
    mean_C11, std_C11 = (torch.tensor(v, device=x_BCHW.device, dtype=x_BCHW.dtype)[:, None, None] for v in (mean, std))
    return channels_last((x_BCHW - mean_C11) / std_C11)


def channels_last(x_BCHW: Tensor) -> Tensor:
    """The same values, channels-last also where there is one channel, which torch would not tell from contiguous."""
    x_BCHW = x_BCHW.contiguous(memory_format=torch.channels_last)
    _, c, h, w = x_BCHW.shape
    return x_BCHW.as_strided(x_BCHW.shape, (c * h * w, 1, c * w, c))
