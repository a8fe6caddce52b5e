"""No method reads a number of its device, or mixes devices: shown on devices without numbers."""

import pytest
import torch
from test_methods import every_method, inputs, make
from torch import Tensor, nn

import pretend
from lookalike.methods.supcon import supcon_loss
from lookalike.models import Architecture
from lookalike.models.sketch import plain_sketch
from lookalike.nn.hooks import follow
from lookalike.optim import OPTIMIZERS, parameter_groups


@every_method
def test_a_step_reads_nothing_of_a_device_without_numbers(name):
    module, given = make(name), inputs(name, 0)
    with pretend.device("meta") as device:
        pretend.place(module, device)
        loss = module(*pretend.moved(given, device)).value
        loss.backward()
        for optimizer in OPTIMIZERS.values():
            optimizer(parameter_groups(module), lr=0.1).step()
        follow(module)
    assert loss.shape == ()
    assert {p.device.type for p in module.parameters()} == {"meta"}


@every_method
def test_a_loss_stays_on_a_gpu_that_is_made_up(name):
    """Its backward needs a real one: torch's engine asks for the GPU's context."""
    module, given = make(name), inputs(name, 0)
    with pretend.device("cuda") as device:
        pretend.place(module, device)
        found = module(*pretend.moved(given, device))
        made = [found.value, *found.terms.values()]
        assert {value.device.type for value in made if isinstance(value, Tensor)} == {"cuda"}
        follow(module)


class Reads(nn.Module):
    """Asks in Python."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Mixes(nn.Module):
    """Adds a vector of the host's."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(3, device="cpu")


@pytest.mark.parametrize("kind", ["meta", "cuda"])
def test_the_made_up_devices_refuse_a_read(kind):
    with (
        pretend.device(kind) as device,
        pytest.raises(Exception, match=r"meta|scalar_dense"),
    ):
        Reads()(torch.empty(3, device=device))


def test_the_made_up_gpu_refuses_a_tensor_of_the_host():
    with pretend.device("cuda") as device, pytest.raises(RuntimeError, match="devices"):
        Mixes()(torch.empty(3, device=device))


def test_supcon_knows_classes_by_any_labels():
    """Equal to classes counted from 0, whatever the labels are and in whatever order."""
    torch.manual_seed(0)
    za_BD, zb_BD = torch.randn(2, 40, 8)
    label_B = torch.randint(9, (40,))
    far_B = (torch.randperm(9) * 10**15 - 10**15)[label_B]
    plain, far = (supcon_loss(za_BD, zb_BD, given, 0.1).value for given in (label_B, far_B))
    torch.testing.assert_close(plain, far, rtol=1e-6, atol=0)
    x_ND = torch.nn.functional.normalize(torch.cat([za_BD, zb_BD]), dim=1)
    s_NN, y_N = x_ND @ x_ND.T / 0.1, label_B.repeat(2)
    s_NN.fill_diagonal_(-torch.inf)
    log_NN = s_NN - s_NN.logsumexp(dim=1, keepdim=True)
    same_NN = (y_N[:, None] == y_N[None]).fill_diagonal_(False)
    dense = -(log_NN.masked_fill(~same_NN, 0).sum(dim=1) / same_NN.sum(dim=1)).mean()
    torch.testing.assert_close(plain, dense, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("name", "parameters", "dim"),
    [
        ("resnet50", 23_508_032, 2048),
        pytest.param("vit_large_patch16_224", 303_301_632, 1024, marks=pytest.mark.slow),
    ],
)
def test_a_large_backbone_is_counted_without_its_memory(name, parameters, dim):
    """Parameters as timm publishes them, without the classifier; the bytes that its activations
    keep for a batch of 64 grow with the batch.
    """
    backbone = plain_sketch(Architecture(name=name))
    assert {p.device.type for p in backbone.parameters()} == {"meta"}
    assert sum(p.numel() for p in backbone.parameters()) == parameters
    kept = {batch: kept_bytes(backbone, batch) for batch in (32, 64)}
    assert backbone.dim == dim
    assert kept[64] == 2 * kept[32] > 64 * 3 * 224**2 * 4


def kept_bytes(module: nn.Module, batch: int) -> int:
    """What a forward keeps for its backward: each storage once, those of weights and of single
    numbers and rows left out.
    """
    weights = {x.untyped_storage()._cdata for x in [*module.parameters(), *module.buffers()]}
    kept: dict[int, Tensor] = {}

    def keep(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in weights and x.ndim > 1:
            kept[x.untyped_storage()._cdata] = x
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        module.train()(torch.empty(batch, 3, 224, 224, device="meta"))
    return sum(x.untyped_storage().nbytes() for x in kept.values())
