"""How well k-means finds the classes in the embeddings: normalised mutual information.

NMI as in Musgrave et al., "A Metric Learning Reality Check", ECCV 2020, arXiv 2003.08505: 2 I / (H
+ H'), which is not corrected for chance: it grows with the number of clusters, so compare only over
the same images.
"""

import warnings

import torch
from torch import Tensor

from lookalike.errors import Error
from lookalike.geometry import Distance
from lookalike.scoring.rows import check
from lookalike.scoring.similarity import points


@torch.no_grad()
def nmi(
    embeddings_ND: Tensor,
    labels_N: Tensor,
    *,
    distance: Distance = "cosine",
    iterations: int = 100,
    seed: int = 0,
) -> float:
    """NMI in [0, 1] of the C classes with C clusters by k-means (k-means++ once, `seed`), rows of
    unit length.

    The clusters depend on seed and order of the rows. Time grows with N × C × D; a collapse has one
    cluster and scores 0. Raises Error when the embeddings cannot be scored or there is one class
    only.
    """
    # A second of every start, were it imported with the module.
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import normalized_mutual_info_score

    check(embeddings_ND, "clustering", labels_N)
    classes_C, class_N = torch.unique(labels_N.long(), return_inverse=True)
    if len(classes_C) < 2 or iterations < 1:
        raise Error(
            f"clustering: {len(classes_C)} classes, {iterations} iterations; two classes, one "
            "iteration or more"
        )
    point_ND, _ = points(embeddings_ND, embeddings_ND, distance)
    if bool((point_ND - point_ND[0]).abs().max() < 1e-6):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than classes
        means = KMeans(len(classes_C), n_init=1, max_iter=iterations, random_state=seed)
        cluster_N = means.fit_predict(point_ND.float().cpu().numpy())
    return float(normalized_mutual_info_score(class_N.cpu().numpy(), cluster_N))
