"""Laws of the normalised mutual information of clusters and classes."""

import math

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from lookalike.errors import Error
from lookalike.geometry import DISTANCES
from lookalike.scoring import clustering


def blobs(spread, classes=6, rows=30):
    generator = torch.Generator().manual_seed(0)
    labels_N = torch.arange(classes).repeat_interleave(rows)
    return 5 * torch.eye(classes)[labels_N] + spread * torch.randn(
        len(labels_N), classes, generator=generator
    ), labels_N


@pytest.mark.parametrize("distance", DISTANCES)
def test_clear_classes_are_found_and_noise_is_not(distance):
    assert clustering.nmi(*blobs(0.01), distance=distance) == pytest.approx(1, abs=1e-12)
    assert 0.2 < clustering.nmi(*blobs(3.0), distance=distance) < 0.9
    noise_ND, labels_N = (
        torch.randn(180, 6, generator=torch.Generator().manual_seed(1)),
        blobs(1)[1],
    )
    assert clustering.nmi(noise_ND, labels_N, distance=distance) < 0.15


def test_it_is_two_i_over_the_sum_of_entropies():
    classes, clusters = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 1]
    n = len(classes)

    def entropy(names):
        return -sum(names.count(name) / n * math.log(names.count(name) / n) for name in set(names))

    joint = list(zip(classes, clusters, strict=True))
    mutual = entropy(classes) + entropy(clusters) - entropy(joint)
    wanted = 2 * mutual / (entropy(classes) + entropy(clusters))
    assert normalized_mutual_info_score(classes, clusters) == pytest.approx(wanted, abs=1e-12)


def test_the_names_of_the_classes_and_the_length_of_the_rows_do_not_matter():
    rows_ND, labels_N = blobs(2.0)
    wanted = clustering.nmi(rows_ND, labels_N)
    assert clustering.nmi(rows_ND, labels_N.roll(9) * 3 + 2**53) != wanted
    assert clustering.nmi(rows_ND, (labels_N + 1) * 3 + 2**53) == wanted
    assert clustering.nmi(rows_ND * 8, labels_N) == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("distance", DISTANCES)
def test_collapse_scores_zero(distance):
    assert clustering.nmi(torch.ones(20, 4), torch.arange(20) % 4, distance=distance) == 0
    few_ND = torch.eye(2)[torch.arange(20) % 2]
    assert clustering.nmi(few_ND, torch.arange(20) // 5, distance=distance) < 0.1


@pytest.mark.parametrize(
    ("embeddings_ND", "labels_N", "message"),
    [
        (torch.ones(4, 2), torch.zeros(4).long(), "1 classes"),
        (torch.full((4, 2), math.nan), torch.arange(4), "NaN or Inf in 4 rows"),
        (torch.ones(4, 2), torch.arange(3), "clustering labels: shape"),
    ],
)
def test_what_cannot_be_clustered_is_refused(embeddings_ND, labels_N, message):
    with pytest.raises(Error, match=message):
        clustering.nmi(embeddings_ND, labels_N)
