"""DINO: small views predict a slow teacher's centred and sharpened view of the large ones.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, arXiv
2104.14294, equations 1 to 4 and algorithm 1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lookalike import comm
from lookalike.models import Backbone
from lookalike.nn.heads import Prototypes
from lookalike.nn.hooks import Deferred, Scheduled
from lookalike.nn.loss import Loss
from lookalike.nn.method import Method
from lookalike.nn.multicrop import each_size
from lookalike.nn.numerics import at_least_fp32, exact, l2_normalize
from lookalike.nn.teacher import Teacher
from lookalike.optim import Progress
from lookalike.recipe import Count, Fraction, NonNegative, Positive, Width


@exact
def dino_loss(
    students: Sequence[Tensor],
    teachers: Sequence[Tensor],
    centre_K: Tensor,
    temperature: float,
    teacher_temperature: float,
) -> Loss:
    """Equation 3 over every pair of a teacher's view and another student's view, averaged over
    pairs and rows.

    students: (B, K) logits of each view; teachers: (B, K) of the first two, without gradient; this
    rank's rows. Terms: `entropy` of the teacher's mean prediction and `sharpness`, its mean entropy
    a row, in nats: the one near 0, or the other near log K, is collapse.
    """
    logs = [F.log_softmax(s_BK / temperature, dim=1) for s_BK in students]
    targets = [
        F.softmax((t_BK - centre_K.to(t_BK.dtype)) / teacher_temperature, dim=1).detach()
        for t_BK in teachers
    ]
    value = students[0].new_zeros(())
    for t, target_BK in enumerate(targets):
        for s, log_BK in enumerate(logs):
            if s != t:
                value = value - comm.mean((target_BK * log_BK).sum(dim=1))
    mean_K = comm.mean(targets[0])
    terms = {
        "entropy": torch.special.entr(mean_K).sum(),
        "sharpness": comm.mean(torch.special.entr(targets[0]).sum(dim=1)),
    }
    return Loss(value / (len(teachers) * (len(students) - 1)), terms)


class Centre(Deferred):
    """The running mean of the teacher's logits over all ranks (equation 4); moved by `commit`, as a
    Queue.
    """

    mean_K: Tensor

    def __init__(self, width: int, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean_K", torch.zeros(width))

    @torch.no_grad()
    def put(self, teachers: Sequence[Tensor]) -> None:
        """Stages the mean of the teacher's logits of a batch, this rank's rows."""
        if self.training:
            self.stage(comm.mean(torch.cat(list(teachers))))

    def write(self, mean_K: Tensor) -> None:
        """Moves the centre towards that mean."""
        self.mean_K.lerp_(mean_K.to(self.mean_K.dtype), 1 - self.momentum)


class Head(nn.Module):
    """Three linear layers with GELU, rows of unit length, then prototypes of unit length: (B, D) ->
    (B, K).
    """

    def __init__(self, dim: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        widths = [dim, hidden, hidden, bottleneck]
        layers: list[nn.Module] = []
        for d_in, d_out in zip(widths, widths[1:], strict=False):
            linear = nn.Linear(d_in, d_out)
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            layers += [linear, nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.prototypes = Prototypes(bottleneck, prototypes)

    def forward(self, h_BD: Tensor) -> Tensor:
        """Features to logits, the last product in fp32."""
        z_BD = self.mlp(h_BD)
        with torch.autocast(h_BD.device.type, enabled=False):
            logits_BK: Tensor = self.prototypes(l2_normalize(at_least_fp32(z_BD)))
            return logits_BK


class DINO(Scheduled, Method):
    """DINO (arXiv 2104.14294): a head of prototypes and a teacher; two large views and any number
    of small ones.
    """

    n_views = 2
    more_views = True

    def __init__(
        self,
        backbone: Backbone,
        *,
        hidden: Width = 2048,
        bottleneck: Width = 256,
        prototypes: Count = 65536,
        temperature: Positive = 0.1,
        teacher_temperature: Positive = 0.04,
        final_teacher_temperature: Positive = 0.07,
        teacher_warmup_epochs: NonNegative = 30.0,
        centre_momentum: Fraction = 0.9,
        momentum: Fraction = 0.996,
        final_momentum: Fraction = 1.0,
        frozen_epochs: NonNegative = 1.0,
    ) -> None:
        """`frozen_epochs`: how long the prototypes stay put; the teacher's temperature rises
        linearly.
        """
        super().__init__()
        self.backbone = backbone
        self.head = Head(backbone.dim, hidden, bottleneck, prototypes)
        self.teacher = Teacher(backbone, self.head, momentum=momentum, final=final_momentum)
        self.centre = Centre(prototypes, centre_momentum)
        self.temperature, self.frozen_epochs = temperature, frozen_epochs
        self.rising = (teacher_temperature, final_teacher_temperature, teacher_warmup_epochs)
        self.teacher_temperature = teacher_temperature

    def on_step(self, progress: Progress) -> None:
        """Sets the teacher's temperature; holds the prototypes in the first epochs."""
        low, high, epochs = self.rising
        self.teacher_temperature = low + (high - low) * min(
            1.0, progress.epoch / epochs if epochs else 1.0
        )
        self.head.prototypes.frozen = progress.epoch < self.frozen_epochs

    def forward(self, views: Sequence[Tensor]) -> Loss:
        """V views (B, C, H, W), the first two large, of the same images -> the loss over the batch
        of all ranks.
        """
        h_VBD = each_size(self.backbone, views)
        students = self.head(torch.cat(h_VBD)).chunk(len(views))
        teachers = each_size(self.teacher, views[:2])
        loss = dino_loss(
            students, teachers, self.centre.mean_K, self.temperature, self.teacher_temperature
        )
        self.centre.put(teachers)
        return loss._replace(embeddings=(h_VBD[0].detach(), h_VBD[1].detach()))
