"""Each GPU has a line in doctor with what it computes in, by its compute capability."""

from types import SimpleNamespace

import pytest
import torch

from lookalike import comm
from lookalike.comm import topology
from lookalike.doctor import checks, devices
from lookalike.errors import RunError


@pytest.mark.parametrize(
    ("name", "capability", "memory", "line"),
    [
        ("Tesla T4", (7, 5), 15, "fp16 in tensor cores; precision: auto is fp16"),
        ("Tesla V100", (7, 0), 32, "fp16 in tensor cores; precision: auto is fp16"),
        ("A100", (8, 0), 80, "fp16, bf16, tf32 in tensor cores; precision: auto is bf16"),
        ("H100", (9, 0), 80, "fp16, bf16, tf32 in tensor cores; precision: auto is bf16"),
        ("GTX 1080", (6, 1), 8, "no tensor cores; precision: auto is fp32"),
    ],
)
def test_a_gpu_has_a_line(name, capability, memory, line):
    number = f"{capability[0]}.{capability[1]}"
    said = devices.able(name, capability, memory * 2**30)
    assert said == f"{name}: {memory} GiB, compute capability {number}: {line}"


def test_all_gpus_of_a_machine_are_told_equal_ones_together(monkeypatch):
    known = [("H100", 9, 0), ("Tesla T4", 7, 5), ("H100", 9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)

    def properties(i: int) -> SimpleNamespace:
        name, major, minor = known[i]
        return SimpleNamespace(name=name, major=major, minor=minor, total_memory=2**34)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    lines = checks.told(devices.devices())
    assert [line.split(":")[0] for line in lines] == ["2 × H100", "Tesla T4"]


def test_apples_gpu_is_one_of_one_process_and_can_be_left_out(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    (said,) = devices.devices()
    assert said.startswith("Apple's GPU (mps): fp32, fp16, bf16, no float64; one process")
    assert comm.device() == torch.device("mps")
    monkeypatch.setattr(topology, "world_size", lambda: 2)
    assert comm.device() == torch.device("cpu")
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv(comm.DEVICE, "cpu")
    assert comm.device() == torch.device("cpu")
    comm.environment()
    monkeypatch.setenv(comm.DEVICE, "tpu")
    with pytest.raises(RunError, match=r"^environment: LOOKALIKE_DEVICE='tpu': say cpu, or unset"):
        comm.environment()
