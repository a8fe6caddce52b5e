"""Attentive classifiers: the attention is torch's, and the steps are AdamW's."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from lookalike.scoring import attention as module
from lookalike.scoring.attention import Adam, Attention

CPU = torch.device("cpu")
WIDTH, CLASSES, HEADS, RATES = 12, 5, 3, (1e-3, 1e-1)


def made(adam=Adam(), rates=RATES):  # noqa: B008 (immutable)
    return Attention(WIDTH, CLASSES, HEADS, rates, adam, seed=3, device=CPU)


def doubled(attention):
    """In float64: where a gradient is near 0, Adam makes much of its rounding."""
    for held in (attention.parameters, attention.first, attention.second):
        held |= {name: tensor.double() for name, tensor in held.items()}
    attention.rates_K = torch.tensor(RATES, dtype=torch.float64)
    return attention


def batches(count=8, rows=6, places=4):
    generator = torch.Generator().manual_seed(5)
    for step in range(count):
        x_BPD = torch.randn(rows, places, WIDTH, generator=generator)
        labels_B = torch.randint(CLASSES, (rows,), generator=generator)
        share_KB = 9 * torch.rand(len(RATES), rows, generator=generator) / rows
        yield x_BPD, labels_B, share_KB, 1 - step / count


def naive(x_BPD, query_D, key_DD, value_DD, weight_CD, bias_C):
    """With keys and values of every patch, by torch's own attention."""
    rows, places, width = x_BPD.shape

    def heads(y, n):
        return y.reshape(rows, n, HEADS, width // HEADS).transpose(1, 2)

    query = heads(query_D.expand(rows, 1, width), 1)
    keys, values = heads(x_BPD @ key_DD.T, places), heads(x_BPD @ value_DD.T, places)
    found = F.scaled_dot_product_attention(query, keys, values)
    return found.transpose(1, 2).reshape(rows, width) @ weight_CD.T + bias_C


def test_it_is_the_attention_of_torch():
    attention = made()
    generator = torch.Generator().manual_seed(1)
    for p in attention.parameters.values():
        p.copy_(torch.randn(p.shape, generator=generator))
    for x_BPD, *_ in batches(2):
        for k, logits_BC in enumerate(attention.logits(x_BPD)):
            expected = naive(x_BPD, *(p[k] for p in attention.parameters.values()))
            torch.testing.assert_close(logits_BC, expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(attention.one(x_BPD, k)[0].argmax(1), logits_BC.argmax(1))


def test_it_is_multi_head_attention_without_an_output_layer():
    attention = made()
    query_D, key_DD, value_DD, weight_CD, bias_C = (p[0] for p in attention.parameters.values())
    x_BPD = next(batches(1))[0]
    x_PBD, eye_DD = x_BPD.transpose(0, 1), torch.eye(WIDTH)
    found, _ = F.multi_head_attention_forward(
        *(query_D.expand(1, len(x_BPD), WIDTH), x_PBD, x_PBD, WIDTH, HEADS, None, None, None, None),
        *(False, 0.0, eye_DD, None),
        use_separate_proj_weight=True,
        q_proj_weight=eye_DD,
        k_proj_weight=key_DD,
        v_proj_weight=value_DD,
        need_weights=False,
    )
    expected = found[0] @ weight_CD.T + bias_C
    torch.testing.assert_close(attention.one(x_BPD, 0)[0], expected)


@pytest.mark.parametrize("adam", [Adam(), Adam(weight_decay=0.0, clip=0.0), Adam(clip=0.05)])
def test_each_classifier_is_trained_as_torchs_adamw_trains_it_alone(adam):
    attention = doubled(made(adam))
    for x_BPD, labels_B, share_KB, factor in batches():
        attention.step(x_BPD.double(), labels_B, share_KB, factor)
    for k, rate in enumerate(RATES):
        leaves = [p[0].double().requires_grad_() for p in made(adam).parameters.values()]
        optimizer = torch.optim.AdamW(leaves, lr=rate, weight_decay=adam.weight_decay)
        for x_BPD, labels_B, share_KB, factor in batches():
            optimizer.zero_grad()
            loss_B = F.cross_entropy(naive(x_BPD.double(), *leaves), labels_B, reduction="none")
            (loss_B * share_KB[k]).sum().backward()
            if adam.clip:
                torch.nn.utils.clip_grad_norm_(leaves, adam.clip)
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
        for p, leaf in zip(attention.parameters.values(), leaves, strict=True):
            torch.testing.assert_close(p[k], leaf.detach(), rtol=1e-7, atol=1e-9)


def test_memory_changes_nothing():
    every, parts = doubled(made()), doubled(made())
    for x_BPD, *rest in batches():
        every.step(x_BPD.double(), *rest)
        with patch.object(module, "ELEMENTS", 1):  # one at a time
            parts.step(x_BPD.double(), *rest)
    for name, tensor in every.state().items():
        torch.testing.assert_close(parts.state()[name], tensor, rtol=1e-7, atol=1e-9)
