"""Classifiers that attend to the patches of a frozen network, trained at once: one learned query a
head, cross-attention, a linear layer.

The attentive probe of AIM (El-Nouby et al., ICML 2024, arXiv 2401.08541, section 5; in form also
CAE's, arXiv 2202.03026): keys and values are linear in the patches, without bias; of head h,
a = softmax(q_h · k_p / √E) over the patches p, and its output Σ_p a_p v_p; the heads' outputs side
by side go through a linear layer. As q is not of the image, q_h · k_p = (K_hᵀ q_h) · x_p, and
Σ a_p V_h x_p = V_h Σ a_p x_p: neither keys nor values of the patches are ever made, and a patch
costs H · D instead of D².
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike import comm

ELEMENTS = 2**26
"""So many numbers of activations are in memory at once, of some heads for one batch."""


class Adam(NamedTuple):
    """AdamW (Loshchilov & Hutter, arXiv 1711.05101) with a bound on the norm of each classifier's
    gradient, 0 for none.
    """

    weight_decay: float = 0.1
    clip: float = 3.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8


def _scores(
    x_BPD: Tensor,
    heads: int,
    query_KD: Tensor,
    key_KDD: Tensor,
    value_KDD: Tensor,
    weight_KCD: Tensor,
    bias_KC: Tensor,
) -> Tensor:
    """(K, B, C) of K classifiers of so many heads."""
    width = x_BPD.shape[2]
    split = (len(query_KD), heads, width // heads)
    query_KHD = torch.einsum("khe,khed->khd", query_KD.view(split), key_KDD.view(*split, width))
    match_KBHP = torch.einsum("bpd,khd->kbhp", x_BPD, query_KHD / math.sqrt(split[2]))
    seen_KBHD = torch.einsum("kbhp,bpd->kbhd", match_KBHP.softmax(dim=3), x_BPD)
    found_KBHE = torch.einsum("kbhd,khed->kbhe", seen_KBHD, value_KDD.view(*split, width))
    return torch.einsum("kbd,kcd->kbc", found_KBHE.flatten(2), weight_KCD) + bias_KC[:, None]


class Attention:
    """K classifiers of C classes with H heads of width E = D / H each."""

    def __init__(
        self,
        width: int,
        classes: int,
        heads: int,
        rates: Sequence[float],
        adam: Adam,
        *,
        seed: int,
        device: torch.device,
    ) -> None:
        self.rates_K = torch.tensor(list(rates), device=device)
        self.heads, self.adam, self.steps = heads, adam, 0
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int, std: float) -> Tensor:
            made = torch.randn(*shape, generator=generator) * std
            return made.to(device).repeat(len(rates), *[1] * len(shape))

        spread = 1 / math.sqrt(3 * width)  # as nn.Linear's uniform weights
        self.parameters = {
            "query_KD": normal(width, std=0.02),
            "key_KDD": normal(width, width, std=spread),
            "value_KDD": normal(width, width, std=spread),
            "weight_KCD": normal(classes, width, std=0.01),
            "bias_KC": normal(classes, std=0.0),
        }
        self.first = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.second = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    def state(self) -> dict[str, Tensor]:
        """All that changes but the number of steps, which is the training's."""
        kinds = {"": self.parameters, "first.": self.first, "second.": self.second}
        return {
            prefix + name: tensor
            for prefix, tensors in kinds.items()
            for name, tensor in tensors.items()
        }

    @torch.no_grad()
    def logits(self, x_BPD: Tensor) -> Iterator[Tensor]:
        """(B, C) of each classifier in turn."""
        for part in self.parts(x_BPD):
            yield from _scores(x_BPD, self.heads, *(p[part] for p in self.parameters.values()))

    @torch.no_grad()
    def one(self, x_BPD: Tensor, number: int) -> Tensor:
        """(1, B, C) of one classifier."""
        part = slice(number, number + 1)
        return _scores(x_BPD, self.heads, *(p[part] for p in self.parameters.values()))

    def parts(self, x_BPD: Tensor) -> Iterator[slice]:
        """Which classifiers fit into memory together."""
        rows, places, width = x_BPD.shape
        each = rows * (2 * self.heads * places + self.heads * width + self._classes) + 1
        step = max(1, ELEMENTS // each)
        return (slice(k, k + step) for k in range(0, len(self.rates_K), step))

    @property
    def _classes(self) -> int:
        return self.parameters["bias_KC"].shape[1]

    def step(self, x_BPD: Tensor, labels_B: Tensor, share_KB: Tensor, factor: float) -> None:
        """One step of every classifier, on Σ share_kb · cross-entropy over all ranks' rows, at its
        rate × `factor`.
        """
        self.steps += 1
        for part in self.parts(x_BPD):
            own = [p[part].detach().requires_grad_() for p in self.parameters.values()]
            with torch.enable_grad():
                logits_kBC = _scores(x_BPD, self.heads, *own)
                labels_R = labels_B.repeat(len(logits_kBC))
                each_R = F.cross_entropy(logits_kBC.flatten(0, 1), labels_R, reduction="none")
                found = torch.autograd.grad((each_R * share_KB[part].flatten()).sum(), own)
            slopes = [comm.all_sum(slope) for slope in found]
            self._move(part, dict(zip(self.parameters, slopes, strict=True)), factor)

    @torch.no_grad()
    def _move(self, part: slice, slopes: dict[str, Tensor], factor: float) -> None:
        shrink_k = self._shrink(slopes)
        (beta1, beta2), rates_k = self.adam.betas, self.rates_K[part] * factor
        for name, slope in slopes.items():
            alone = (-1, *[1] * (slope.dim() - 1))
            rate = rates_k.view(alone)
            slope *= shrink_k.view(alone)
            parameter, first, second = (
                held[name][part] for held in (self.parameters, self.first, self.second)
            )
            first.lerp_(slope, 1 - beta1)
            second.mul_(beta2).addcmul_(slope, slope, value=1 - beta2)
            scale = (second / (1 - beta2**self.steps)).sqrt_().add_(self.adam.eps)
            parameter.mul_(1 - rate * self.adam.weight_decay)
            parameter.sub_(first / scale * (rate / (1 - beta1**self.steps)))

    def _shrink(self, slopes: dict[str, Tensor]) -> Tensor:
        """(k,): by what each classifier's gradient is multiplied."""
        norm_k = torch.stack([s.flatten(1).square().sum(dim=1) for s in slopes.values()]).sum(0)
        if not self.adam.clip:
            return torch.ones_like(norm_k)
        return (self.adam.clip / (norm_k.sqrt() + 1e-6)).clamp_max(1.0)
