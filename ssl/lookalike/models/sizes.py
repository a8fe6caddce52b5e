"""One backbone for images of several sizes, as multi-crop makes them: timm's positions and windows
are made for one size, unless they are asked to follow the image.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from lookalike.errors import BackboneError
from lookalike.models.backbone import Architecture, Backbone, Own
from lookalike.models.sketch import plain_sketch
from lookalike.recipe import Size

# What timm calls it: its ViTs and Swins now, its Swins in earlier releases.
_OFFERED = ({"dynamic_img_size": True}, {"strict_img_size": False})
_ANY = "resnet50, convnext_tiny, vit_small_patch16_224 and swin_tiny_patch4_window7_224 take them"


def for_sizes(backbone: Backbone, sizes: Sequence[Size]) -> Backbone:
    """A backbone that takes images of all these sizes: itself where it does, else the same weights
    in a model that timm lets follow the size. The stream of random numbers stays where it was.

    Raises BackboneError where there is none, with the names of models that do.
    """
    try:
        return _tried(backbone, sizes)
    except BackboneError as error:
        problem = error
    if isinstance(backbone.architecture, Own):
        raise problem
    for more in _OFFERED:
        args = {**more, **backbone.architecture.args}
        architecture = replace(backbone.architecture, args=args, pretrained=False, weights=None)
        if args != backbone.architecture.args and _takes(architecture, sizes):
            return _moved(backbone, architecture)
    raise problem if "patches of" in str(problem) else BackboneError(f"{problem}; {_ANY}")


def _tried(backbone: Backbone, sizes: Sequence[Size]) -> Backbone:
    """Itself. Raises BackboneError where it cannot take an image of one of the sizes."""
    for size in sizes:
        if (width := backbone.dry_run(size)) != backbone.dim:
            name = backbone.architecture.name
            raise BackboneError(
                f"backbone: {name} gives {width} features at size {size}, else {backbone.dim}"
            )
    return backbone


def _takes(architecture: Architecture, sizes: Sequence[Size]) -> bool:
    """Whether timm has a model of these arguments that does, found without memory."""
    try:
        drawn = plain_sketch(architecture)
        with torch.device(next(drawn.parameters()).device):
            _tried(drawn, sizes)
    except BackboneError:
        return False
    return True


def _moved(backbone: Backbone, architecture: Architecture) -> Backbone:
    """The weights in a model of other arguments."""
    with torch.random.fork_rng(devices=[]):
        made = Backbone(architecture, backbone.dim)
    made.load_state_dict(backbone.state_dict())
    made.architecture = replace(backbone.architecture, args=architecture.args)
    made.taken, made.pieces = backbone.taken, backbone.pieces
    return made.train(backbone.training)
