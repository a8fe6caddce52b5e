"""What it costs to train all learning rates at once, beside the forms that the papers' codes have.

    python benchmarks/protocols.py linear [ROUNDS]     13 heads, stacked / 13 nn.Linear, torch's SGD
    python benchmarks/protocols.py attentive [ROUNDS]  4 probes without / with every patch's keys
                                                       and values
    python benchmarks/protocols.py pass [ROUNDS]       13 rates at once / one, with a ViT-S at 224
                                                       pixels below, its images 8 at a time

Processor time of a training step on one thread, both sides in turn; printed last: the median of the
rounds' ratios, with quartiles.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike.models import Architecture
from lookalike.models.taps import Tap, features
from lookalike.scoring.attention import Adam, Attention
from lookalike.scoring.heads import Descent, Heads

CPU = torch.device("cpu")
RATES = [0.04 * 1.8**k for k in range(13)]
ROWS, WIDTH, CLASSES = 256, 384, 1000
PATCHES, HEADS, FEW = 196, 6, [1e-4, 3e-4, 1e-3, 3e-3]


def stacked(rates: list[float]) -> Callable[[Tensor, Tensor], None]:
    """A step of ours."""
    heads = Heads(WIDTH, CLASSES, rates, Descent(), seed=0, device=CPU)
    share_KN = torch.full((len(rates), ROWS), 1 / ROWS)
    return lambda x_ND, labels_N: heads.step(x_ND, labels_N, share_KN, 1.0)


def separate() -> Callable[[Tensor, Tensor], None]:
    """A module for each rate, one optimizer with a group for each (dinov2/eval/linear.py)."""
    linears = [nn.Linear(WIDTH, CLASSES) for _ in RATES]
    groups = [
        {"params": one.parameters(), "lr": lr} for one, lr in zip(linears, RATES, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9)

    def step(x_ND: Tensor, labels_N: Tensor) -> None:
        optimizer.zero_grad()
        torch.stack([F.cross_entropy(one(x_ND), labels_N) for one in linears]).sum().backward()
        optimizer.step()

    return step


def attending() -> Callable[[Tensor, Tensor], None]:
    """A step of ours."""
    attention = Attention(WIDTH, CLASSES, HEADS, FEW, Adam(clip=0.0), seed=0, device=CPU)
    share_KB = torch.full((len(FEW), 32), 1 / 32)
    return lambda x_BPD, labels_B: attention.step(x_BPD, labels_B, share_KB, 1.0)


class Plain(nn.Module):
    """Keys and values of every patch."""

    def __init__(self) -> None:
        super().__init__()
        self.query_D = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.key, self.value = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.linear = nn.Linear(WIDTH, CLASSES)

    def forward(self, x_BPD: Tensor) -> Tensor:
        """(B, C)."""

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(2, (HEADS, -1)).transpose(1, 2)

        query = heads(self.query_D.expand(len(x_BPD), 1, -1))
        found = F.scaled_dot_product_attention(
            query, heads(self.key(x_BPD)), heads(self.value(x_BPD))
        )
        logits: Tensor = self.linear(found.transpose(1, 2).flatten(1))
        return logits


def plainly() -> Callable[[Tensor, Tensor], None]:
    """A module for each rate, AdamW."""
    models = [Plain() for _ in FEW]
    groups = [{"params": one.parameters(), "lr": lr} for one, lr in zip(models, FEW, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.1)

    def step(x_BPD: Tensor, labels_B: Tensor) -> None:
        optimizer.zero_grad()
        torch.stack([F.cross_entropy(one(x_BPD), labels_B) for one in models]).sum().backward()
        optimizer.step()

    return step


def through(rates: list[float]) -> Callable[[Tensor, Tensor], None]:
    """A thirty-second of the step of a batch of 256: the backbone on 8 images, and a thirty-second
    of the heads' step.
    """
    backbone, step = Architecture("vit_small_patch16_224").build().eval(), stacked(rates)
    x_ND = torch.randn(ROWS, WIDTH)

    def whole(x_BCHW: Tensor, labels_N: Tensor) -> None:
        with torch.no_grad():
            features(backbone, x_BCHW, [Tap()])
        began = time.process_time()
        step(x_ND, labels_N)
        whole.extra = -(time.process_time() - began) * 31 / 32  # type: ignore[attr-defined]

    return whole


def seconds(step: Callable[[Tensor, Tensor], None], x: Tensor, labels: Tensor) -> float:
    """Processor time of one step."""
    began = time.process_time()
    step(x, labels)
    return time.process_time() - began + float(getattr(step, "extra", 0.0))


def sides(kind: str) -> Iterator[tuple[Callable[[Tensor, Tensor], None], Tensor, Tensor]]:
    """The peer's, then ours: a step, and what it is given."""
    if kind == "linear":
        given = torch.randn(ROWS, WIDTH), torch.randint(CLASSES, (ROWS,))
        yield from ((step, *given) for step in (separate(), stacked(RATES)))
    elif kind == "attentive":
        given = torch.randn(32, PATCHES, WIDTH), torch.randint(CLASSES, (32,))
        yield from ((step, *given) for step in (plainly(), attending()))
    else:
        given = torch.randn(8, 3, 224, 224), torch.randint(CLASSES, (ROWS,))
        yield from ((step, *given) for step in (through(RATES), through(RATES[:1])))


def main(kind: str, rounds: int) -> None:
    """Alternates, and prints."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    both = list(sides(kind))
    for side in both:
        seconds(*side)
    found = [[seconds(*side) for side in both] for _ in range(rounds)]
    peer, ours = (statistics.median(column) for column in zip(*found, strict=True))
    low, middle, high = statistics.quantiles([a / b for a, b in found], n=4)
    print(f"{kind}: {1e3 * peer:.1f} ms and {1e3 * ours:.1f} ms")
    print(f"ratio {middle:.2f} ({low:.2f} to {high:.2f}), {rounds} rounds")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9)
