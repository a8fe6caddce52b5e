"""Cross-batch memory: what it holds, what is compared with it, and that a run resumed or split goes
on the same.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_metric_learning import losses
from torch import Tensor

import lookalike
import toy
from lookalike.errors import RunError
from lookalike.metric.memory import Memory, MemorySettings
from lookalike.metric.objectives import OBJECTIVE, Objective
from lookalike.optim import Progress
from lookalike.process import fault
from lookalike.process.signals import Stopped


def batch(step: int, n: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(n, 3, generator=generator, dtype=torch.float64), torch.arange(
        n
    ) % 3 + 2**24 * (step % 2)


@pytest.mark.parametrize("size", [4, 6, 10, 100])
def test_it_holds_the_last_rows_and_their_classes(size):
    memory, written = Memory(size, 3).double(), []
    for step in range(5):
        z, labels = batch(step)
        memory.put(z, labels)
        memory.commit()
        written += list(zip(z.tolist(), labels.tolist(), strict=True))
        rows, of = memory.filled()
        held = list(zip(rows.tolist(), of.tolist(), strict=True))
        assert sorted(held) == sorted(written[-size:])
    assert int(memory.written) == 30


def test_warm_up_and_skipped_steps_leave_nothing():
    memory = Memory(10, 3, warmup_steps=2).double()
    for step in range(2):
        memory.on_step(Progress(step, 9, 0.0))
        memory.put(*batch(step))
        memory.commit()
    assert len(memory.filled()[0]) == 0
    memory.on_step(Progress(2, 9, 0.0))
    memory.put(*batch(2))
    memory.discard()
    memory.commit()
    assert len(memory.filled()[0]) == 0
    memory.put(*batch(2))
    memory.commit()
    assert torch.equal(memory.filled()[0], batch(2)[0])


def objective(name: str, size: int = 10, **about: Any) -> Objective:
    memory = MemorySettings(size=size, **about)
    return Objective(
        OBJECTIVE.spec(name), None, num_classes=4, embedding_size=3, memory=memory
    ).double()


@pytest.mark.parametrize("name", ["ContrastiveLoss", "MultiSimilarityLoss", "NTXentLoss"])
def test_the_loss_is_the_batchs_own_plus_that_against_earlier_steps(name):
    found, weight = objective(name, weight=0.5), 0.5
    (z0, y0), (z1, y1) = batch(0), batch(2)
    unit0, unit1 = (z / z.norm(dim=1, keepdim=True) for z in (z0, z1))
    loss = getattr(losses, name)()
    torch.testing.assert_close(found(z0, y0).value, loss(unit0, y0))
    found.memory.commit()
    wanted = loss(unit1, y1) + weight * loss(unit1, y1, None, unit0, y0.clone())
    torch.testing.assert_close(found(z1, y1).value, wanted)
    assert found(z1, y1).terms["memory"] == 6


def test_memory_carries_no_gradient():
    found = objective("FaceNetLoss")
    z = batch(0)[0].requires_grad_()
    found(z, batch(0)[1])
    found.memory.commit()
    assert not found.memory.rows_QD.requires_grad


def test_what_compares_nothing_has_no_memory_and_in_a_sum_stays_with_the_batch():
    for name in ("ProxyAnchorLoss", "CrossEntropyLoss", "MultiClassNPairLoss"):
        with pytest.raises(RunError, match=rf"finetune\.memory: {name}: compares no embeddings"):
            objective(name)
    parts = [{"objective": "CrossEntropyLoss"}, {"objective": "ContrastiveLoss"}]
    spec = OBJECTIVE.spec("WeightedSum", parts=parts)
    found = Objective(
        spec, None, num_classes=4, embedding_size=3, memory=MemorySettings(size=9)
    ).double()
    assert [term.compares for term in found.terms] == [False, True]


def test_a_reducer_that_fails_on_a_larger_reference_set_is_refused_before_training():
    spec = OBJECTIVE.spec("ContrastiveLoss", reducer="PerAnchorReducer")
    with pytest.raises(RunError, match=r"finetune\.objective: ContrastiveLoss"):
        Objective(spec, None, num_classes=4, embedding_size=3, memory=MemorySettings(size=9))


# In a training

PARTS = (
    "[{objective: CSMLLoss}, {objective: {name: ConstellationLoss, negatives: random, k: 2}}, "
    "{objective: ProxyAnchorLoss, weight: 0.1}]"
)
WORDS = (
    f"finetune.objective={{name: WeightedSum, parts: {PARTS}}}",
    "finetune.memory={size: 50, warmup_steps: 3}",
    "finetune.save_every_epochs=1",
    "finetune.warmup_epochs=0.2",
    "finetune.dim=6",
)


def last(run: Path) -> dict[str, Tensor]:
    step = int(sorted(run.glob("checkpoints/step_*"))[-1].name.split("_")[1])
    return toy.tensors(run, step)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return toy.tuned(tmp_path_factory.mktemp("whole"), *WORDS)


@pytest.mark.parametrize("step", [2, 7])
def test_stopped_and_resumed_it_goes_on_bit_for_bit(tmp_path, whole, step):
    """In the warm-up, and while the memory is turning."""
    with fault.plan(f"term:rank=0,step={step}"), pytest.raises(Stopped):
        toy.tuned(tmp_path, *WORDS)
    run = toy.tuned(tmp_path, *WORDS)
    assert toy.curve(run) == toy.curve(whole)
    assert toy.same(last(run), last(whole))
    held = last(run)
    assert held["model:objective.memory.written"] > 50
    assert set(held["model:objective.memory.labels_Q"].tolist()) <= set(range(5))


def test_what_a_loss_owns_is_trained_and_a_learned_metric_is_folded_into_the_head(whole):
    held = last(whole)
    a = held["model:objective.terms.0.loss.a_KD"]
    assert not torch.equal(a, torch.eye(6))
    assert "optim:objective.terms.2.loss.proxies/exp_avg" in held
    model = lookalike.load_model(whole / "embedding")
    torch.testing.assert_close(model.head.weight, a @ held["model:model.head.weight"])
    torch.testing.assert_close(model.head.bias, a @ held["model:model.head.bias"])


def on_a_rank(out: str) -> bool:
    toy.tuned(Path(out), *WORDS)
    return True


def test_two_ranks_train_what_one_process_trains(tmp_path, ranks, whole):
    """Proxies, A and memory too; DeepSpeed against one process, a ViT, so that nothing but rounding
    differs.
    """
    ranks.run(on_a_rank, str(tmp_path))
    one, two = last(whole), last(tmp_path / "finetune")
    owned = [name for name in one if name.startswith("model:objective.")]
    assert len(owned) >= 6
    for name in owned:
        torch.testing.assert_close(
            two[name], one[name], rtol=1e-2, atol=1e-3, msg=lambda text, n=name: f"{n}: {text}"
        )
    first = [
        json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
        for run in (whole, tmp_path / "finetune")
    ]
    for key in [key for key in first[0] if key.startswith("loss")]:
        assert first[1][key] == pytest.approx(first[0][key], rel=1e-5), key
