"""Which features of a backbone are looked at: those of its last blocks, and how their tokens become
one vector.

Blocks are those of timm's `forward_intermediates`: a transformer's blocks; of a convolutional
network, Swin and the like their stages. The network's last norm is applied to every block's tokens,
as in DINOv2's linear evaluation (arXiv 2304.07193, dinov2/eval/linear.py) and timm's
`get_intermediate_layers(norm=True)`; where a network norms after it has pooled (`fc_norm`), to what
was pooled. A stage before the last is taken as it is.
"""

import hashlib
import inspect
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from lookalike.errors import BackboneError
from lookalike.geometry import Distance, sides
from lookalike.models import hub
from lookalike.models.backbone import Architecture, Backbone, Own
from lookalike.models.card import weights_digest
from lookalike.models.cifar import register_cifar_stems

Tokens = Literal["pool", "token", "mean", "cls_mean"]


class Tap(NamedTuple):
    """`layer`: of which block the last features are, -1 the last; `blocks`: of how many blocks up
    to that one, beside one another; `tokens`: how those of a block become a vector.

    `pool` as the backbone has it (of a stage before the last the mean over its places); `token` the
    class token; `mean` the mean of the patches; `cls_mean` the class tokens of all these blocks,
    and beside them the mean of the last one's patches (DINOv2).
    """

    layer: int = -1
    blocks: int = 1
    tokens: Tokens = "pool"


class Tapped(nn.Module):
    """Images (B, C, H, W), normalised, to the features (B, `dim`) of a tap."""

    def __init__(self, backbone: Backbone, tap: Tap) -> None:
        super().__init__()
        self.backbone, self.tap, self.architecture = backbone, tap, backbone.architecture
        self.dim = widths(backbone, [tap])[0]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, dim)."""
        return features(self.backbone, x_BCHW, [self.tap])[0]

    @property
    def distance(self) -> Distance:
        """How its features are compared: as the backbone's."""
        return self.backbone.distance


def tapped(backbone: Backbone, tap: Tap) -> nn.Module:
    """A module from images to these features, with the backbone's `architecture`, `distance` and
    its own `dim`; the backbone itself where nothing else is asked for. Raises BackboneError.
    """
    if tap == Tap():
        return backbone
    _refuse(backbone.architecture, backbone.model, tap)
    return Tapped(backbone, tap).train(backbone.training)


def untapped(model: nn.Module) -> tuple[nn.Module, Tap]:
    """The backbone below a module of `tapped`, and its tap."""
    return (model.backbone, model.tap) if isinstance(model, Tapped) else (model, Tap())


def tap_digest(backbone: Backbone, tap: Tap) -> str:
    """A word that stands for these features of these weights: `weights_digest` where nothing else
    than the backbone's own is asked for.
    """
    known = weights_digest(backbone)
    return known if tap == Tap() else hashlib.sha256(f"{known} {tuple(tap)}".encode()).hexdigest()


def refuse_tap(architecture: Architecture, tap: Tap) -> None:
    """Raises BackboneError where such a network has no such features; without its weights, and what
    only its repository tells is left to `tapped`.
    """
    if tap == Tap() or architecture.folder or hub.is_hub(architecture.name):
        return
    if isinstance(architecture, Own):
        raise BackboneError(_own(architecture.name))
    _refuse(architecture, _empty(architecture), tap)


def _empty(architecture: Architecture) -> nn.Module:
    """The network without memory for its weights. Raises BackboneError when timm does not make
    it.
    """
    register_cifar_stems()
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return Backbone(replace(architecture, pretrained=False, weights=None), dim=0).model


def _own(name: str, keys: str = "layer, blocks and tokens look") -> str:
    return (
        f"probe: {keys} into timm's networks, and {name} is a module of your own: leave "
        f"{'it' if keys.endswith('looks') else 'them'} out"
    )


def _refuse(architecture: Architecture, model: nn.Module, tap: Tap) -> None:
    name = architecture.name
    if isinstance(architecture, Own):
        raise BackboneError(_own(name))
    if not hasattr(model, "forward_intermediates"):
        raise BackboneError(
            f"probe: timm's {name} does not show the features of its blocks: leave layer, blocks "
            "and tokens out"
        )
    depth, asked = depth_of(model), tap.blocks - 1 - tap.layer
    if asked > depth:
        raise BackboneError(
            f"probe: layer {tap.layer} with blocks {tap.blocks} reaches {asked} blocks back, "
            f"and {name} has {depth}: lower them"
        )
    if tap.tokens in ("token", "cls_mean") and not _has_class_token(model):
        raise BackboneError(
            f"probe.tokens: {tap.tokens}: {name} has no class token: take mean or pool"
        )


def depth_of(model: Any) -> int:
    """How many blocks timm shows of it."""
    return len(model.feature_info)


def _has_class_token(model: Any) -> bool:
    there = getattr(model, "cls_token", None) is not None
    return there and _shows_prefix(model) and getattr(model, "num_prefix_tokens", 0) > 0


def _shows_prefix(model: Any) -> bool:
    return "return_prefix_tokens" in inspect.signature(model.forward_intermediates).parameters


class _Block(NamedTuple):
    """What one block gives: tokens before the patches (B, R, D), R 0 where there are none, and
    patches (B, P, D), both normed.
    """

    prefix_BRD: Tensor
    patches_BPD: Tensor


def _blocks(backbone: Backbone, x_BCHW: Tensor, layers: Sequence[int]) -> tuple[Any, list[_Block]]:
    """The network's own last features, and the blocks `layers`, which count from the end."""
    model: Any = backbone.model
    there = sorted({depth_of(model) + layer for layer in layers})
    how: dict[str, Any] = {"indices": there, "norm": True, "output_fmt": "NCHW"}
    if _shows_prefix(model):
        how |= {"return_prefix_tokens": True, "output_fmt": "NLC"}
    final, found = model.forward_intermediates(x_BCHW, **how)
    by_layer = {index: _parts(one) for index, one in zip(there, found, strict=True)}
    return final, [by_layer[depth_of(model) + layer] for layer in layers]


def _parts(found: Any) -> _Block:
    """timm gives (patches, prefix), patches alone, or a map (B, D, H, W)."""
    patches, prefix = found if isinstance(found, tuple) else (found, None)
    if patches.dim() == 4:
        patches = patches.flatten(2).transpose(1, 2)
    return _Block(patches[:, :0] if prefix is None else prefix, patches)


def features(backbone: nn.Module, x_BCHW: Tensor, taps: Sequence[Tap]) -> list[Tensor]:
    """(B, D_t) of each tap, the network run once; with the backbone's own features alone it is
    called as it is.
    """
    if set(taps) == {Tap()}:
        h_BD = backbone(x_BCHW)
        return [h_BD] * len(taps)
    assert isinstance(backbone, Backbone)
    layers = sorted({layer for tap in taps for layer in _layers(tap)})
    final, found = _blocks(backbone, x_BCHW, layers)
    blocks = dict(zip(layers, found, strict=True))
    return [_vector(backbone, tap, blocks, final) for tap in taps]


def _layers(tap: Tap) -> range:
    return range(tap.layer - tap.blocks + 1, tap.layer + 1)


def _vector(backbone: Backbone, tap: Tap, blocks: dict[int, _Block], final: Any) -> Tensor:
    parts = [_of_block(backbone, tap.tokens, layer, blocks, final) for layer in _layers(tap)]
    if tap.tokens == "cls_mean":
        parts.append(_normed(backbone, blocks[tap.layer].patches_BPD.mean(dim=1)))
    return torch.cat(parts, dim=1)


def _of_block(
    backbone: Backbone, tokens: Tokens, layer: int, blocks: dict[int, _Block], final: Any
) -> Tensor:
    block = blocks[layer]
    if tokens in ("token", "cls_mean"):
        return _normed(backbone, block.prefix_BRD[:, 0])
    if tokens == "mean":
        return _normed(backbone, block.patches_BPD.mean(dim=1))
    if layer == -1:
        return backbone.pooled(final)
    if _shows_prefix(backbone.model):
        return backbone.pooled(torch.cat(block, dim=1))
    return block.patches_BPD.mean(dim=1)


def _normed(backbone: Backbone, x_BD: Tensor) -> Tensor:
    """By the norm that a network keeps for pooled features; nothing is done where it has none."""
    norm = getattr(backbone.model, "fc_norm", None)
    normed: Tensor = x_BD if norm is None or not _shows_prefix(backbone.model) else norm(x_BD)
    return normed


def patches(backbone: nn.Module, x_BCHW: Tensor, tap: Tap) -> Tensor:
    """(B, P, D): the patches, or places of a feature map, of the tap's block; of several blocks
    their mean (AIM, arXiv 2401.08541, section 5).
    """
    assert isinstance(backbone, Backbone)
    _, found = _blocks(backbone, x_BCHW, list(_layers(tap)))
    if len(found) == 1:
        return found[0].patches_BPD
    return torch.stack([block.patches_BPD for block in found]).mean(dim=0)


def refuse_patches(architecture: Architecture, tap: Tap) -> None:
    """Raises BackboneError where such a network shows no patches, as far as its name tells."""
    if isinstance(architecture, Own):
        raise BackboneError(_own(architecture.name, "attentive looks"))
    if architecture.folder or hub.is_hub(architecture.name):
        return
    model = _empty(architecture)
    if not hasattr(model, "forward_intermediates"):
        raise BackboneError(
            f"probe.protocols: attentive: timm's {architecture.name} shows neither patches nor a "
            "feature map: leave it out"
        )
    _refuse(architecture, model, tap)


def widths(backbone: nn.Module, taps: Sequence[Tap]) -> list[int]:
    """D_t of each tap, by an image of zeros."""
    return [x_1D.shape[1] for x_1D in _zeros(backbone, lambda x: features(backbone, x, taps))]


def patch_shape(backbone: nn.Module, tap: Tap) -> tuple[int, int]:
    """How many patches there are, and their width, by an image of zeros. Raises BackboneError where
    blocks of several shapes were to be averaged.
    """
    (x_1PD,) = _zeros(backbone, lambda x: [patches(backbone, x, tap)])
    return x_1PD.shape[1], x_1PD.shape[2]


@torch.no_grad()
def _zeros(backbone: Any, function: Any) -> list[Tensor]:
    architecture = backbone.architecture
    device = next((p.device for p in backbone.parameters()), None)
    was = backbone.training
    backbone.eval()
    try:
        shape = (1, architecture.channels, *sides(architecture.size))
        found: list[Tensor] = function(torch.zeros(shape, device=device))
    except Exception as error:  # whatever timm's forward meets is the recipe's doing
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BackboneError(
            f"probe: {architecture.name} does not show such features: {reason}"
        ) from error
    finally:
        backbone.train(was)
    return found
