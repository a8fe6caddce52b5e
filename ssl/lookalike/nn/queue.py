"""A queue of earlier embeddings, the same on all ranks."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lookalike import comm
from lookalike.nn.hooks import Deferred


class Queue(Deferred):
    """The last `size` rows of all ranks, alike on all of them; starts with random unit rows (MoCo,
    arXiv 1911.05722).

    `put` only stages; `commit`, after a good step, writes: a step that is skipped leaves no trace.
    """

    rows_QD: Tensor
    written: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows_QD", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def put(self, z_BD: Tensor) -> None:
        """Stages this rank's rows of a batch."""
        if self.training:
            self.stage(comm.cat(z_BD.detach()))

    def write(self, rows_ND: Tensor) -> None:
        """Over the oldest rows; the order is that of the batch, the same on all ranks."""
        size, n = len(self.rows_QD), len(rows_ND)
        places = (self.written + torch.arange(n, device=rows_ND.device)) % size
        self.rows_QD.index_copy_(0, places[-size:], rows_ND[-size:].to(self.rows_QD.dtype))
        self.written += n
