"""Measures without labels: the papers' formulas written out, their known limits, any number of
ranks.
"""

import numpy as np
import pytest
import scipy.linalg
import torch

from lookalike.scoring import quality


def features(rows: int = 500, width: int = 32) -> torch.Tensor:
    """A decaying spectrum, off centre."""
    generator = torch.Generator().manual_seed(3)
    scale_D = torch.arange(1, width + 1).float() ** -0.7
    return torch.randn(rows, width, generator=generator) * scale_D + 0.3


def entropy_rank(values):
    p = values / values.sum() + 1e-7
    return np.exp(-(p * np.log(p)).sum())


@pytest.mark.parametrize(("rows", "width"), [(500, 32), (20, 50)])
def test_rankme_is_of_the_singular_values(rows, width):
    x_ND = features(rows, width)
    singular = np.linalg.svd(x_ND.double().numpy(), compute_uv=False)
    assert quality.rankme(quality.spectrum(x_ND)) == pytest.approx(entropy_rank(singular), rel=1e-6)


def test_an_isotropic_cloud_has_full_rank_and_a_collapse_rank_one():
    noise_ND = torch.randn(20_000, 16, generator=torch.Generator().manual_seed(0))
    assert quality.rankme(quality.spectrum(noise_ND)) == pytest.approx(16, rel=1e-3)
    line_ND = noise_ND[:500, :1] * torch.randn(1, 16)
    assert quality.rankme(quality.spectrum(line_ND)) == pytest.approx(1, abs=1e-3)
    assert quality.effective_rank(torch.zeros(4)) == 1.0


def test_alpha_req_is_the_weighted_fit_and_knows_a_power_law():
    x_ND = features(800, 64)
    found = quality.spectrum(x_ND)
    variance = np.linalg.eigvalsh(np.cov(x_ND.double().numpy().T, bias=True))[::-1]
    j = np.arange(11, 51)
    weights = np.sqrt(1 / j)[:, None]
    design = np.stack([-np.log(j), np.ones(len(j))], 1)
    fit = np.linalg.lstsq(design * weights, np.log(variance[10:50]) * weights[:, 0])[0]
    assert quality.alpha_req(found) == pytest.approx(fit[0], rel=1e-8)
    law = quality.Spectrum(torch.ones(200), torch.arange(1, 201).double() ** -1.37)
    assert quality.alpha_req(law) == pytest.approx(1.37, rel=1e-10)
    short = quality.Spectrum(torch.ones(5), torch.arange(1, 6).double() ** -0.5)
    assert quality.alpha_req(short) == pytest.approx(0.5, rel=1e-10)
    assert quality.alpha_req(quality.Spectrum(torch.ones(1), torch.ones(1).double())) is None


def test_uniformity_is_the_mean_over_all_pairs():
    x_ND = features(700, 8)
    unit = x_ND.double().numpy()
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    apart = ((unit[:, None] - unit[None]) ** 2).sum(-1)[np.triu_indices(len(unit), 1)]
    assert quality.uniformity(x_ND) == pytest.approx(np.log(np.exp(-2 * apart).mean()), rel=1e-10)
    assert quality.uniformity(torch.ones(9, 4)) == pytest.approx(0, abs=1e-12)


def views(images: int = 60, many: int = 4, width: int = 10) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    centre = torch.randn(images, 1, width, generator=generator) * torch.arange(1, width + 1) / width
    return centre + 0.3 * torch.randn(images, many, width, generator=generator)


def test_alignment_is_the_mean_over_pairs_of_views():
    unit = torch.nn.functional.normalize(views().double(), dim=2)
    pairs = [(a, b) for a in range(4) for b in range(a)]
    apart = [(unit[:, a] - unit[:, b]).square().sum(1).mean() for a, b in pairs]
    assert quality.alignment(views()) == pytest.approx(float(sum(apart) / len(apart)), rel=1e-10)


@pytest.mark.parametrize("images", [60, 7])
def test_lidar_is_of_the_generalised_eigenvalues(images):
    x = views(images).double().numpy()
    mean = x.mean(1)
    between = np.cov(mean.T, bias=True)
    within = np.cov((x - mean[:, None]).reshape(-1, 10).T, bias=True) + 1e-4 * np.eye(10)
    found = scipy.linalg.eigh(between, within, eigvals_only=True).clip(0)
    found = np.sort(found)[::-1][: min(images, 10)]
    assert quality.lidar(views(images)) == pytest.approx(entropy_rank(found), rel=1e-6)


def test_views_that_tell_images_apart_in_one_direction_have_lidar_one():
    noise_NQD = 1e-2 * torch.randn(200, 5, 6, generator=torch.Generator().manual_seed(0))
    noise_NQD[..., 0] += 1000 * torch.arange(200)[:, None]
    assert quality.lidar(noise_NQD) == pytest.approx(1, abs=1e-3)


def test_a_sample_is_drawn_by_the_seed_and_in_order():
    assert quality.sample(5, 9, 0).tolist() == [0, 1, 2, 3, 4]
    one, other = quality.sample(1000, 50, 0), quality.sample(1000, 50, 1)
    assert one.tolist() == sorted(set(one.tolist()))
    assert len(one) == 50
    assert one.tolist() != other.tolist()


def _all(x_ND):
    found = quality.spectrum(x_ND)
    return [quality.rankme(found), quality.alpha_req(found), quality.uniformity(x_ND)]


def test_four_ranks_find_what_one_does(ranks):
    x_ND = features(5000, 24)
    for found in ranks.run(_all, x_ND, world=4):
        assert found == pytest.approx(_all(x_ND), rel=1e-9)
