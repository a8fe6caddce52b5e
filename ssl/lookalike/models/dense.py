"""Features of patches: what a backbone knows at each place of an image, before it pools."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike.errors import BackboneError
from lookalike.geometry import sides
from lookalike.models.backbone import Architecture, Backbone, Own
from lookalike.models.sketch import plain_sketch


def dense(backbone: Backbone, x_BCHW: Tensor, blocks: int = 1) -> Tensor:
    """Normalised images -> features (B, D, h, w) of the last `blocks` blocks, beside one another.

    Of a transformer its patches, without prefix tokens and after its last norm, as DINOv2's dense
    tasks take them (Oquab et al., arXiv 2304.07193, section 7.4); of a convolutional network the
    maps of its last stages, brought to the sides of the largest. Raises BackboneError where there
    are no places, or not so many blocks.
    """
    maps = _maps(backbone, x_BCHW, blocks)
    h, w = max((tuple(x.shape[2:]) for x in maps), key=lambda side: side[0] * side[1])
    same = [
        x if x.shape[2:] == (h, w) else F.interpolate(x, (h, w), mode="bilinear", antialias=False)
        for x in maps
    ]
    return torch.cat(same, 1)


def patches(architecture: Architecture, blocks: int = 1) -> tuple[int, int, int] | None:
    """(D, h, w) of its dense features, without memory; None for a network that only its owner can
    make, or that computes nothing without memory. Raises BackboneError where it has none.
    """
    if isinstance(architecture, Own) or architecture.folder:
        return None
    try:
        return dense_shape(plain_sketch(architecture), blocks)
    except BackboneError as error:
        if isinstance(error.__cause__, NotImplementedError) or "meta" in str(error.__cause__ or ""):
            return None
        raise


@torch.no_grad()
def dense_shape(backbone: Backbone, blocks: int = 1) -> tuple[int, int, int]:
    """(D, h, w) by an image of zeros. Raises BackboneError where there are no places."""
    architecture = backbone.architecture
    device = next((p.device for p in backbone.parameters()), None)
    was = backbone.training
    backbone.eval()
    zeros_1CHW = torch.zeros(1, architecture.channels, *sides(architecture.size), device=device)
    try:
        found_1Dhw = dense(backbone, zeros_1CHW, blocks)
    except BackboneError:
        raise
    except Exception as error:  # whatever timm's forward meets at this size
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        name = f"{architecture.name} at size {architecture.size}"
        raise BackboneError(f"backbone: {name}: no features of patches: {reason}") from error
    finally:
        backbone.train(was)
    _, dim, h, w = found_1Dhw.shape
    if h * w < 2:
        raise BackboneError(
            f"backbone: {architecture.name} sees size {architecture.size} as one patch: take a "
            "larger size"
        )
    return dim, h, w


def _maps(backbone: Backbone, x_BCHW: Tensor, blocks: int) -> list[Tensor]:
    """(B, D, h, w) of each of the last blocks."""
    model: Any = backbone.model
    name = backbone.architecture.name
    if not hasattr(model, "forward_intermediates"):
        if blocks == 1 and hasattr(model, "forward_features"):
            return [_as_map(backbone, model.forward_features(x_BCHW), x_BCHW)]
        raise BackboneError(
            f"backbone: {name} gives no features of "
            f"{'patches: it has no forward_features' if blocks == 1 else 'several blocks'}"
        )
    how = {"norm": True, "output_fmt": "NCHW", "intermediates_only": True}
    try:
        found: list[Tensor] = model.forward_intermediates(x_BCHW, indices=blocks, **how)
    except (AssertionError, IndexError, ValueError) as error:
        raise BackboneError(
            f"backbone: {name} has no {blocks} blocks of features: lower segment.blocks"
        ) from error
    if any(x.dim() != 4 for x in found):
        raise BackboneError(f"backbone: {name} gives no features of patches: take another")
    return found


def _as_map(backbone: Backbone, found: Any, x_BCHW: Tensor) -> Tensor:
    """What a network of one's own gives before it pools, as (B, D, h, w); a row of tokens is a grid
    of the image's shape.
    """
    name, model = backbone.architecture.name, backbone.model
    if not isinstance(found, Tensor) or found.dim() not in (3, 4):
        raise BackboneError(f"backbone: {name} gives no features of patches: take another")
    if found.dim() == 4:
        last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        return found.permute(0, 3, 1, 2) if last else found
    places_BND = found[:, getattr(model, "num_prefix_tokens", 0) :]
    count, (rows, columns) = places_BND.shape[1], x_BCHW.shape[2:]
    h = max(1, round((count * rows / columns) ** 0.5))
    if count % h:
        raise BackboneError(f"backbone: {name}: its {count} tokens are no grid of {rows}x{columns}")
    return places_BND.transpose(1, 2).reshape(len(places_BND), -1, h, count // h)


def frozen(backbone: nn.Module) -> nn.Module:
    """In eval mode, without gradients."""
    return backbone.eval().requires_grad_(False)
