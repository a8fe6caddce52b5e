"""What a backbone is worth, told without labels: features of the train images, and of several views
of some of them, measured as in `scoring.quality`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lookalike import comm, views
from lookalike.data.images import Images, subset
from lookalike.data.loader import in_order
from lookalike.geometry import sides
from lookalike.models import Architecture
from lookalike.scoring import quality
from lookalike.scoring.blocks import dealt

IMAGES, VIEWS = 1000, 10
"""LiDAR's, and alignment's: the paper has 1,000 images and 50 views."""
TOGETHER = 8
"""Images whose views go through the model at once."""


class Viewed(NamedTuple):
    """What makes views: an augmentation policy, and its seed."""

    policy: Any
    seed: int


def measured(
    features_ND: Tensor,
    images: Images,
    model: nn.Module,
    architecture: Architecture,
    viewed: Viewed,
) -> tuple[dict[str, float], dict[str, Any]]:
    """`rankme`, `alpha_req`, `uniformity`, and by views `lidar` and `alignment`, and in words how
    each was measured. All ranks call it, and get the same.
    """
    found = quality.spectrum(features_ND, viewed.seed)
    rows, width = features_ND.shape
    looked = min(rows, quality.ROWS if width <= quality.WIDEST else quality.WIDEST)
    scores = {"rankme": quality.rankme(found)}
    told = {"rankme": {"images": looked}, "uniformity": {"images": min(rows, quality.PAIRED)}}
    if (alpha := quality.alpha_req(found)) is not None:
        scores["alpha_req"], told["alpha_req"] = alpha, {"images": looked}
    scores["uniformity"] = quality.uniformity(features_ND, viewed.seed)
    seen_NQD = of_views(model, architecture, images, viewed)
    by_views = {"images": len(seen_NQD), "views": seen_NQD.shape[1]}
    if width <= quality.WIDEST and len(seen_NQD) > 1:
        scores["lidar"], told["lidar"] = quality.lidar(seen_NQD), by_views
    if len(seen_NQD):
        scores["alignment"], told["alignment"] = quality.alignment(seen_NQD), by_views
    return scores, told


@torch.inference_mode()
def of_views(
    model: nn.Module, architecture: Architecture, images: Images, viewed: Viewed
) -> Tensor:
    """Features (N, Q, D) of `VIEWS` large views of up to `IMAGES` images, float32, in the order of
    the images, on every rank; those that cannot be read are left out.
    """
    ids_N = quality.sample(len(images), IMAGES, viewed.seed)
    rows, kept = [], []
    for block in dealt(len(ids_N), TOGETHER):
        mine_B = ids_N[block]
        for places, canvas_BCHW in in_order(subset(images, mine_B), TOGETHER):
            made = _views(canvas_BCHW, mine_B[places], architecture, images, viewed)
            seen = torch.stack([model(view_BCHW).float() for view_BCHW in made], 1)
            rows.append(seen)
            kept.append(mine_B[places])
    width = int(comm.all_max(torch.tensor(rows[0].shape[2] if rows else 0)))
    empty = torch.zeros(0, VIEWS, width, device=comm.device())
    seen_NQD = comm.cat(torch.cat([empty, *rows]))
    kept_N = comm.cat(torch.cat([ids_N[:0], *kept]).to(comm.device()))
    return seen_NQD[kept_N.argsort()]


def _views(
    canvas_BCHW: Tensor,
    ids_B: Tensor,
    architecture: Architecture,
    images: Images,
    viewed: Viewed,
) -> Sequence[Tensor]:
    """`VIEWS` views of full size, of as many epochs as it takes."""
    mean, std = architecture.normalisation()
    size, made = sides(architecture.size), list[Tensor]()
    for epoch in range(VIEWS):
        fresh = views.make(
            viewed.policy,
            canvas_BCHW,
            ids_B,
            epoch,
            size=architecture.size,
            mean=mean,
            std=std,
            seed=viewed.seed,
            device=comm.device(),
            form=images.form,
        )
        made += [view for view in fresh if tuple(view.shape[2:]) == tuple(size)]
        if len(made) >= VIEWS:
            break
    return made[:VIEWS]
