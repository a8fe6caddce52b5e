"""BatchNorm over ranks on a GPU, its kernels written out here in plain torch: what is gathered,
summed and kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from lookalike import comm
from lookalike.nn.batchnorm import GlobalBatchNorm, freeze_running_stats, global_batchnorm


def wide(x_C: Tensor, like: Tensor) -> Tensor:
    return x_C.view(1, -1, *[1] * (like.dim() - 2))


def over(x: Tensor) -> Tensor:
    """The sum of a channel."""
    return x.transpose(0, 1).flatten(1).sum(dim=1)


def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    var_C, mean_C = torch.var_mean(x.transpose(0, 1).flatten(1), dim=1, correction=0)
    return mean_C, (var_C + eps).rsqrt()


def gather_stats(x, means_WC, scales_WC, running_mean, running_var, momentum, eps, rows_W):
    n, w_W1 = rows_W.sum(), rows_W[:, None]
    mean_C = (means_WC * w_W1).sum(dim=0) / n
    vars_WC = scales_WC.pow(-2) - eps
    var_C = ((vars_WC + (means_WC - mean_C).square()) * w_W1).sum(dim=0) / n
    if running_mean is not None:
        running_mean.lerp_(mean_C, momentum)
        running_var.lerp_(var_C * n / (n - 1), momentum)
    return mean_C, (var_C + eps).rsqrt()


def elemt(x, weight, bias, mean_C, scale_C, eps):
    z = (x - wide(mean_C, x)) * wide(scale_C, x)
    z = z if weight is None else z * wide(weight, x)
    return z if bias is None else z + wide(bias, x)


def backward_reduce(grad, x, mean_C, scale_C, weight, input_g, weight_g, bias_g):
    along_C = over(grad * (x - wide(mean_C, x)))
    return (
        over(grad),
        along_C,
        along_C * scale_C if weight_g else None,
        (over(grad) if bias_g else None),
    )


def backward_elemt(grad, x, mean_C, scale_C, weight, plain_C, along_C, rows_W):
    n = rows_W.sum()
    centred = x - wide(mean_C, x)
    found = grad - wide(plain_C / n, x) - centred * wide(scale_C.square() * along_C / n, x)
    return found * wide(scale_C if weight is None else scale_C * weight, x)


KERNELS = {
    "batch_norm_stats": stats,
    "batch_norm_gather_stats_with_counts": gather_stats,
    "batch_norm_elemt": elemt,
    "batch_norm_backward_reduce": backward_reduce,
    "batch_norm_backward_elemt": backward_elemt,
}


@contextmanager
def as_on_a_gpu() -> Iterator[list[str]]:
    """Layers take the kernels' path; what they say to other ranks."""
    said: list[str] = []
    kept = {name: getattr(torch, name) for name in KERNELS}
    asks = GlobalBatchNorm._has_kernels
    told = {name: getattr(comm, name) for name in ("all_sum", "all_rows")}

    def heard(name: str) -> Any:
        return lambda x: said.append(name) or told[name](x)

    GlobalBatchNorm._has_kernels = lambda self, _: self.full and self.momentum is not None
    for name, kernel in KERNELS.items():
        setattr(torch, name, kernel)
    for name in told:
        setattr(comm, name, heard(name))
    try:
        yield said
    finally:
        GlobalBatchNorm._has_kernels = asks
        for place, old in ((torch, kept), (comm, told)):
            for name, value in old.items():
                setattr(place, name, value)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3), BatchNormAct2d(6), nn.BatchNorm2d(6, affine=False)
    ).double()


def images(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch, 3, 8, 8, generator=generator, dtype=torch.float64) * 2 + 1


def trained(cut: list[int], form: str) -> tuple[list[Tensor], dict[str, Tensor], list[str]]:
    """Two steps: outputs, gradients of images and parameters, and the state; what was said in the
    last.
    """
    module, found = network(), []
    if form != "torch":
        module = global_batchnorm(module, full=True)
    memory = torch.channels_last if form == "channels last" else torch.contiguous_format
    x = images(sum(cut)).split(cut)[comm.rank()].contiguous(memory_format=memory)
    with as_on_a_gpu() as said:
        for _ in range(2):
            said.clear()
            module.zero_grad()
            x = x.detach().requires_grad_()
            y = module(x)
            (y.sin() * (1 + y)).square().sum().backward()
            found += [y.detach(), x.grad]
    slopes = {f"{n}.grad": comm.all_sum(p.grad) for n, p in module.named_parameters()}
    return found, slopes | module.state_dict(), said


@pytest.mark.parametrize("form", ["as they come", "channels last"])
@pytest.mark.parametrize("cut", [[4, 4], [2, 6], [1, 5, 3]], ids=str)
def test_the_kernels_path_is_batchnorm_of_the_whole_batch_in_two_collectives(ranks, cut, form):
    wanted, state, _ = trained([sum(cut)], "torch")
    parts = ranks.run(trained, cut, form, world=len(cut))
    for one, together in zip(zip(*(p[0] for p in parts), strict=True), wanted, strict=True):
        torch.testing.assert_close(torch.cat(one), together, rtol=1e-9, atol=1e-10)
    for _, found, _ in parts:
        torch.testing.assert_close(found, state, rtol=1e-9, atol=1e-9)
    assert parts[0][2] == ["all_rows"] * 3 + ["all_sum"] * 3


def timms() -> tuple[list[str], list[bool]]:
    made = timm.create_model("regnety_002", num_classes=0)
    acts = [type(m.act) for m in made.modules() if isinstance(m, BatchNormAct2d)]
    module = global_batchnorm(made, full=True)
    norms = [m for m in module.modules() if isinstance(m, GlobalBatchNorm)]
    return list(module.state_dict()), [
        norm.full and type(norm.act) is act for norm, act in zip(norms, acts, strict=True)
    ]


def test_timms_fused_layers_take_the_kernels_too_and_keep_names_and_activations(ranks):
    names, kept = ranks.run(timms)[0]
    assert names == list(timm.create_model("regnety_002", num_classes=0).state_dict())
    assert len(kept) > 20
    assert all(kept)


def frozen() -> bool:
    norm = global_batchnorm(nn.BatchNorm2d(3), full=True)
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    with as_on_a_gpu(), freeze_running_stats(norm):
        norm(torch.randn(4, 3, 2, 2))
    return all(torch.equal(v, before[k]) for k, v in norm.state_dict().items())


def test_a_second_forward_in_backward_moves_nothing_there_either(ranks):
    assert ranks.run(frozen) == [True, True]


def test_the_kernels_written_out_here_are_torchs_batchnorm():
    x, weight, bias = images(5).requires_grad_(), torch.randn(3).double(), torch.randn(3).double()
    mean_C, scale_C = stats(x, 1e-5)
    y = F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5)
    torch.testing.assert_close(elemt(x, weight, bias, mean_C, scale_C, 1e-5), y)
    grad = torch.randn_like(x)
    (wanted,) = torch.autograd.grad(y, x, grad)
    plain_C, along_C, _, _ = backward_reduce(grad, x, mean_C, scale_C, weight, True, False, False)
    rows = torch.tensor([x.numel() // 3])
    found = backward_elemt(grad, x, mean_C, scale_C, weight, plain_C, along_C, rows)
    torch.testing.assert_close(found, wanted)
