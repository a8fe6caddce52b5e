"""How deep each parameter of a backbone lies, by timm's own grouping: its stem, its blocks in
order, what follows them.

A block is the finest that timm names: a transformer block, a residual block, a ConvNeXt block. A
last norm follows the blocks, as in BEiT (arXiv 2106.08254); timm would count it as part of the last
one.
"""

import re
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from timm.models import group_parameters

from lookalike.errors import BackboneError
from lookalike.models.backbone import Backbone, Own

_END = "~"  # what no pattern of timm's matches


def layers(backbone: Backbone) -> tuple[dict[str, int], int]:
    """The layer of each parameter by name, and n: 0 the stem, 1 to n the blocks, n + 1 what
    follows, pooling too.

    A module of one's own that tells none is one block. Raises BackboneError where timm does not
    say.
    """
    matcher: Any = getattr(backbone.model, "group_matcher", None)
    if matcher is None and isinstance(backbone.architecture, Own):
        return {name: 1 for name, _ in backbone.named_parameters()}, 1
    if not callable(matcher):
        name = backbone.architecture.name
        raise BackboneError(
            f"backbone: timm does not say which blocks {name} has: train all of it, or the head "
            "alone"
        )
    named = [*backbone.model.named_parameters(), (_END, None)]
    asked = SimpleNamespace(named_parameters=lambda: named)
    found: dict[str, int] = group_parameters(
        asked, _without_ends(matcher(coarse=False)), reverse=True
    )
    last = found.pop(_END)
    pooling = (
        {}
        if backbone.gem is None
        else {f"gem.{name}": last for name, _ in backbone.gem.named_parameters()}
    )
    return {**{f"model.{name}": layer for name, layer in found.items()}, **pooling}, last - 1


def _without_ends(matcher: Any) -> Any:
    """timm's patterns, less those that add something unnumbered to the last block."""
    if not isinstance(matcher, Mapping):
        return matcher
    kept: dict[str, Any] = {}
    for name, patterns in matcher.items():
        several = isinstance(patterns, list | tuple)
        kept[name] = (
            [p for p in patterns if p[1] is None or re.compile(p[0]).groups]
            if several
            else patterns
        )
    return kept
