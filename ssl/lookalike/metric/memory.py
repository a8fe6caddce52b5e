"""Cross-batch memory: a batch is compared with the embeddings of the last steps too.

Wang, Zhang, Huang & Scott, "Cross-batch memory for embedding learning", CVPR 2020, arXiv
1912.06798, algorithm 1. pytorch-metric-learning's saves neither where it writes nor how full it is,
and knows losses by their names.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lookalike.metric import sizes
from lookalike.nn.hooks import Deferred, Scheduled
from lookalike.optim import Progress
from lookalike.recipe import Count, Index, NonNegative


@dataclass(frozen=True, kw_only=True)
class MemorySettings:
    """Cross-batch memory (Wang 2020, arXiv 1912.06798): `weight` times the loss against the last
    `size` embeddings.

    It begins to fill after `warmup_steps`, when embeddings drift slowly.
    """

    size: Count = 1024
    warmup_steps: Index = 0
    weight: NonNegative = 1.0


class Memory(Scheduled, Deferred):
    """The last `size` embeddings of all ranks with their classes, in one order on all; without
    gradient.

    Rows, classes and the number ever written are buffers, so a resumed run goes on where it was.
    `put` only stages; `commit`, after a good step, writes.
    """

    rows_QD: Tensor
    labels_Q: Tensor
    written: Tensor

    def __init__(self, size: int, dim: int, warmup_steps: int = 0) -> None:
        super().__init__()
        self.register_buffer("rows_QD", torch.zeros(size, dim))
        self.register_buffer("labels_Q", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.warmup_steps, self.step = warmup_steps, 0

    def on_step(self, progress: Progress) -> None:
        """Tells it the step."""
        self.step = progress.step

    def filled(self) -> tuple[Tensor, Tensor]:
        """(F, D) and (F,): what was written and not yet overwritten, F from 0 to `size`."""
        count = min(int(self.written), len(self.rows_QD))
        return self.rows_QD[:count], self.labels_Q[:count]

    def held(self) -> tuple[Tensor, Tensor]:
        """(Q, D) and (Q,): all there is room for; what was not written has no class
        (`sizes.NO_CLASS`).

        Nobody waits for a device to say how much was written.
        """
        place_Q = torch.arange(len(self.labels_Q), device=self.labels_Q.device)
        return self.rows_QD, self.labels_Q.masked_fill(place_Q >= self.written, sizes.NO_CLASS)

    def put(self, z_ND: Tensor, labels_N: Tensor) -> None:
        """Stages the rows of a batch of all ranks; nothing during warm-up."""
        if self.step >= self.warmup_steps:
            self.stage(z_ND, labels_N)

    def write(self, rows_ND: Tensor, labels_N: Tensor) -> None:
        """Over the oldest rows."""
        size, n = len(self.rows_QD), len(rows_ND)
        places = ((self.written + torch.arange(n, device=rows_ND.device)) % size)[-size:]
        self.rows_QD.index_copy_(0, places, rows_ND[-size:].to(self.rows_QD.dtype))
        self.labels_Q.index_copy_(0, places, labels_N[-size:].to(self.labels_Q))
        self.written += n
