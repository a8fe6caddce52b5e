"""Metric learning: objectives of the library by name and over ranks, embedding folders."""

import inspect

import pytest
import pytorch_metric_learning.losses as pml
import torch
from torch import Tensor

from lookalike import comm
from lookalike.errors import BackboneError
from lookalike.folder import write_folder
from lookalike.metric.objectives import MINER, MINERS, OBJECTIVE, OBJECTIVES, Objective
from lookalike.models import Architecture
from lookalike.models.embedding import Embedding, embedding_files, load_model


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    z_ND = torch.nn.functional.normalize(
        torch.randn(24, 8, generator=generator, dtype=torch.float32), dim=1
    )
    return z_ND, torch.arange(24) % 4


PARTS = [{"objective": "FaceNetLoss"}, {"objective": "CrossEntropyLoss", "weight": 0.5}]
REQUIRED = {"RankedListLoss": {"margin": 0.4, "Tn": 1.0}, "WeightedSum": {"parts": PARTS}}


@pytest.mark.filterwarnings(
    "ignore:Using a non-tuple sequence", "ignore:__array_wrap__ must accept"
)  # the library's
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_loss_of_the_library_can_be_named_and_gives_a_gradient(name):
    torch.manual_seed(0)
    z_ND, labels_N = batch()
    z_ND.requires_grad_()
    objective = Objective(
        OBJECTIVE.spec(name, **REQUIRED.get(name, {})), None, num_classes=4, embedding_size=8
    )
    value = objective(z_ND, labels_N).value
    value.backward()
    assert torch.isfinite(value)
    assert z_ND.grad is not None
    assert z_ND.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(MINERS))
def test_every_miner_of_the_library_can_be_named(name):
    z_ND, labels_N = batch()
    objective = Objective(
        OBJECTIVE.spec("TripletMarginLoss"), MINER.spec(name), num_classes=4, embedding_size=8
    )
    assert torch.isfinite(objective(z_ND, labels_N).value)


def test_no_loss_of_the_library_is_forgotten():
    concrete = {
        name
        for name, kind in vars(pml).items()
        if inspect.isclass(kind)
        and issubclass(kind, pml.BaseMetricLossFunction)
        and not name.startswith("Base")
    }
    assert concrete - set(OBJECTIVES) == {"GenericPairLoss", "VICRegLoss", "ManifoldLoss"}


NAMES = (
    "TripletMarginLoss",
    "ContrastiveLoss",
    "ProxyAnchorLoss",
    "NTXentLoss",
    "MultiSimilarityLoss",
)


def over_ranks(name: str, cut: tuple[int, ...]) -> tuple[Tensor, Tensor, list[Tensor]]:
    torch.manual_seed(1)
    miner = (
        MINER.spec("TripletMarginMiner", type_of_triplets="semihard")
        if name == "TripletMarginLoss"
        else None
    )
    objective = Objective(OBJECTIVE.spec(name), miner, num_classes=4, embedding_size=8)
    world = comm.world_size()
    z, labels = (part.split(cut if world > 1 else [24])[comm.rank()] for part in batch())
    z = z.clone().requires_grad_()
    value = objective(z, labels).value
    value.backward()
    own = [comm.all_sum(p.grad) / world for p in objective.parameters()]
    return value.detach(), z.grad / world, own


@pytest.mark.parametrize("name", NAMES)
def test_an_objective_over_two_ranks_is_that_of_the_whole_batch(ranks, name):
    value, gradient, own = over_ranks(name, ())
    parts = ranks.run(over_ranks, name, (10, 14))
    torch.testing.assert_close([p[0] for p in parts], [value, value], rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.cat([p[1] for p in parts]), gradient, rtol=1e-4, atol=1e-7)
    for part in parts:
        torch.testing.assert_close(part[2], own, rtol=1e-4, atol=1e-7)


def embedding() -> Embedding:
    torch.manual_seed(0)
    tiny = {"channels": (8, 8, 16, 16), "layers": (1, 1, 1, 1)}
    return Embedding(Architecture("resnet18", size=16, channels=1, args=tiny).build(), 6).eval()


def test_an_embedding_is_of_unit_length_and_comes_back_bit_for_bit(tmp_path):
    model, x = embedding(), torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(model(x).norm(dim=1), torch.ones(3))
    write_folder(tmp_path / "e", embedding_files(model))
    assert torch.equal(load_model(tmp_path / "e")(x), model(x))


def test_a_head_that_does_not_fit_is_refused(tmp_path):
    from safetensors.torch import save

    files = embedding_files(embedding()) | {"head.safetensors": save({"weight": torch.zeros(6, 7)})}
    write_folder(tmp_path / "e", files)
    with pytest.raises(BackboneError, match=r"head\.safetensors: the head does not fit"):
        load_model(tmp_path / "e")
