"""An exponential moving average (EMA) of a module's weights beside it, to be put in their place
when the training has ended (Polyak & Juditsky 1992; as in timm and arXiv 1905.11946).
"""

import torch
from torch import Tensor, nn

from lookalike.nn.hooks import Follower, Scheduled
from lookalike.optim import Progress


class Averaged(Scheduled, Follower):
    """The average of the trained parameters of a module, which it stands beside in a larger one.

    After each good step each moves towards its parameter by 1 - decay, at step n (from 0) no slower
    than 9 / (10 + n), so that a short training is averaged over its own length (TensorFlow's
    `ExponentialMovingAverage`). What is not averaged (buffers, such as BatchNorm's statistics, and
    frozen parameters) is the module's own. A skipped step leaves no trace. The average is part of
    the state that a checkpoint keeps.
    """

    elementwise = True

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay, self.now = decay, decay
        trained = [p for p in module.parameters() if p.requires_grad]
        self.values = nn.ParameterList(
            nn.Parameter(p.detach().clone(), requires_grad=False) for p in trained
        )
        self._module = (module,)  # in a tuple, so that it is not registered a second time

    def on_step(self, progress: Progress) -> None:
        """Sets the decay of this step."""
        self.now = min(self.decay, (1 + progress.step) / (10 + progress.step))

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average of each parameter."""
        theirs = [p.detach() for p in self._trained()]
        torch._foreach_lerp_(list(self.values), theirs, 1.0 - self.now)

    @torch.no_grad()
    def put(self) -> None:
        """The module's parameters become their averages: once, after the training's last step."""
        for parameter, value in zip(self._trained(), self.values, strict=True):
            parameter.copy_(value)

    def _trained(self) -> list[Tensor]:
        return [p for p in self._module[0].parameters() if p.requires_grad]
