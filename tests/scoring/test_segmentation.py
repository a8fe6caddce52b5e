"""mIoU, logits of pixels and heads, against formulas written out."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lookalike.errors import Error
from lookalike.scoring.patches import groups
from lookalike.scoring.segheads import Heads, gradients, pieces, predicted, rate
from lookalike.scoring.segmentation import confusion, overlap, pixel_logits


def random(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def masks(seed, classes, *shape):
    return torch.randint(-1, classes, shape, generator=torch.Generator().manual_seed(seed))


def test_miou_is_the_direct_one():
    guess, truth = masks(0, 5, 3, 17, 19).clamp(min=0), masks(1, 4, 3, 17, 19)
    found = overlap(confusion(guess, truth, 5))
    known = (truth >= 0).numpy()
    g, t = guess.numpy()[known], truth.numpy()[known]
    direct = [((g == c) & (t == c)).sum() / ((g == c) | (t == c)).sum() for c in range(4)]
    assert np.allclose(found.iou_C[:4].numpy(), direct)
    assert found.iou_C[4].isnan()  # guessed, but in no mask
    assert found.miou == pytest.approx(np.mean(direct))
    assert found.accuracy == pytest.approx((g == t).mean())


def test_the_order_of_images_changes_nothing():
    guess, truth = masks(2, 3, 6, 8, 8).clamp(min=0), masks(3, 3, 6, 8, 8)
    parts = sum(confusion(guess[i : i + 1], truth[i : i + 1], 3) for i in (5, 0, 3, 1, 4, 2))
    assert torch.equal(parts, confusion(guess, truth, 3))


def test_without_classes_there_is_no_score():
    with pytest.raises(Error, match="no pixel has a class"):
        overlap(torch.zeros(3, 3, dtype=torch.int64))


def test_logits_are_bilinear_between_patches():
    """Against the definition: half-pixel centres, edges held."""
    x, w, b = random(4, 2, 3, 2, 3), random(5, 4, 3), random(6, 4)
    low = torch.einsum("bdhw,cd->bchw", x, w) + b[None, :, None, None]
    found = pixel_logits(x, w, b, (7, 10))
    for i in range(7):
        for j in range(10):
            y, z = (i + 0.5) * 2 / 7 - 0.5, (j + 0.5) * 3 / 10 - 0.5
            y, z = max(y, 0.0), max(z, 0.0)
            y0, z0 = int(y), int(z)
            y1, z1 = min(y0 + 1, 1), min(z0 + 1, 2)
            fy, fz = y - y0, z - z0
            top = low[..., y0, z0] * (1 - fz) + low[..., y0, z1] * fz
            bottom = low[..., y1, z0] * (1 - fz) + low[..., y1, z1] * fz
            assert torch.allclose(found[..., i, j], top * (1 - fy) + bottom * fy, atol=1e-5)


def heads_of(seed, k, classes, dim):
    heads = Heads.zeros(k, classes, dim, torch.device("cpu"))
    heads.weight_KCE += random(seed, k, classes, dim + 1).double()
    return heads


def test_gradients_are_torchs_of_the_mean_over_known_pixels():
    heads, x, truth = heads_of(7, 1, 4, 3), random(8, 5, 3, 2, 2), masks(9, 4, 5, 6, 6)
    grad_KCE, loss_K = gradients(heads, x, truth)
    layer = torch.nn.Conv2d(3, 4, 1).double()
    with torch.no_grad():
        layer.weight.copy_(heads.weight_KCE[0, :, :3, None, None])
        layer.bias.copy_(heads.weight_KCE[0, :, 3])
    up = F.interpolate(layer(x.double()), (6, 6), mode="bilinear")
    loss = F.cross_entropy(up, truth, ignore_index=-1)
    loss.backward()
    count = int((truth >= 0).sum())
    assert float(loss_K[0]) / count == pytest.approx(float(loss.detach()), rel=1e-5)
    expected = torch.cat([layer.weight.grad[:, :, 0, 0], layer.bias.grad[:, None]], 1)
    assert torch.allclose(grad_KCE[0] / count, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rule", ["adamw", "sgd"])
def test_steps_are_torchs(rule):
    heads = heads_of(10, 1, 3, 4)
    weight = heads.weight_KCE[0, :, :-1].clone().requires_grad_()
    bias = heads.weight_KCE[0, :, -1].clone().requires_grad_()
    groups_ = [{"params": [weight], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}]
    torchs = (
        torch.optim.AdamW(groups_, lr=0.05)
        if rule == "adamw"
        else torch.optim.SGD(groups_, lr=0.05, momentum=0.9)
    )
    for step in range(4):
        grad = random(11 + step, 1, 3, 5).double()
        weight.grad, bias.grad = grad[0, :, :-1].clone(), grad[0, :, -1].clone()
        torchs.step()
        heads.step(grad, [0.05], 0.1, rule)
    assert torch.allclose(heads.weight_KCE[0, :, :-1], weight, rtol=1e-9)
    assert torch.allclose(heads.weight_KCE[0, :, -1], bias, rtol=1e-9)


def test_heads_learned_together_are_those_learned_alone():
    x, truth, rates = random(20, 4, 3, 4, 4), masks(21, 3, 4, 8, 8), (0.01, 0.3)

    def learned(some):
        heads = Heads.zeros(len(some), 3, 3, torch.device("cpu"))
        for step in range(5):
            grad, _ = gradients(heads, x, truth)
            heads.step(grad / 100, [rate(step, 5) * r for r in some], 1e-4, "adamw")
        return heads

    both = learned(rates)
    for k, one in enumerate(rates):
        assert torch.equal(both.weight_KCE[k], learned((one,)).weight_KCE[0])


def test_few_images_at_a_time_are_the_same(monkeypatch):
    heads, x, truth = heads_of(22, 2, 3, 4), random(23, 6, 4, 3, 3), masks(24, 3, 6, 9, 9)
    at_once = gradients(heads, x, truth)[0]
    monkeypatch.setattr("lookalike.scoring.segheads.ROOM", 3 * 9 * 9)
    assert len(list(pieces(x, truth, 3))) == 6
    assert torch.allclose(gradients(heads, x, truth)[0], at_once, rtol=1e-5, atol=1e-6)


def test_predictions_are_the_largest_logits():
    heads, x = heads_of(25, 2, 3, 4), random(26, 2, 4, 3, 3)
    weight_CD, bias_C = heads.of(1)
    assert torch.equal(
        predicted(heads, 1, x, (6, 6)), pixel_logits(x, weight_CD, bias_C, (6, 6)).argmax(1)
    )


def test_the_rate_rises_and_ends_at_zero():
    rates = [rate(step, 100) for step in range(100)]
    assert rates.index(max(rates)) in (4, 5)
    assert rates[0] < max(rates)
    assert rates[-1] == pytest.approx(0.01)


def test_groups_are_of_like_patches_the_largest_first():
    kind = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 1], [2, 1, 1, 0]])
    x = F.one_hot(kind, 3).permute(2, 0, 1)[None].float() + 0.01 * random(27, 1, 3, 3, 4)
    found = groups(x, 3, seed=0)[0]
    sizes = found.flatten().bincount()
    assert sizes.tolist() == [7, 4, 1]
    assert all(len(found[kind == c].unique()) == 1 for c in range(3))
    assert torch.equal(found, groups(x, 3, seed=0)[0])
