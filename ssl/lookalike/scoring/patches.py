"""Patches in groups: k-means over the features of a few images, to be looked at.

As in Hamilton et al., "Unsupervised Semantic Segmentation by Distilling Feature Correspondences",
ICLR 2022, arXiv 2203.08414: what a frozen backbone takes for alike shows as one group.
"""

import warnings

import torch
from torch import Tensor

from lookalike.errors import Error

MOST = 1 << 16
"""So many patches decide the groups, evenly taken of all."""


def groups(x_BDhw: Tensor, count: int, seed: int) -> Tensor:
    """The group of each patch, int64 (B, h, w), the largest first: k-means++ of unit-length
    features, once, by `seed`. Raises Error for fewer patches than groups, NaN or Inf.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    rows_ND = torch.nn.functional.normalize(x_BDhw.permute(0, 2, 3, 1).flatten(0, 2).float(), dim=1)
    if len(rows_ND) < count or not bool(rows_ND.isfinite().all()):
        raise Error(f"patches: {len(rows_ND)} in {count} groups: NaN or Inf, or too few")
    step = -(-len(rows_ND) // MOST)
    means = KMeans(count, n_init=1, max_iter=50, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different patches than groups
        means.fit(rows_ND[::step].cpu().numpy())
    found_N = torch.from_numpy(means.predict(rows_ND.cpu().numpy())).long()
    order = found_N.bincount(minlength=count).argsort(descending=True, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(count)
    _, _, h, w = x_BDhw.shape
    return place[found_N].view(-1, h, w)
