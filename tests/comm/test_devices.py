"""Which GPU is a rank's own: a table of launchers and machines, without a GPU."""

import os
import socket
from pathlib import Path

import pytest

import children
from lookalike import comm
from lookalike.comm import devices, group, topology
from lookalike.comm.devices import Taken, conflict, index_of, unusable
from lookalike.engine import zero
from lookalike.errors import RunError


def taken(launched: list[tuple[str, list[str]]]) -> list[Taken]:
    """What each rank takes on machines that were launched so: (host, the GPUs that it sees)."""
    found, local = [], dict.fromkeys([host for host, _ in launched], 0)
    for host, sees in launched:
        index = index_of(local[host], len(sees))
        gpu = "" if index is None else sees[index]
        found.append(Taken(host, gpu, len(sees), str(local[host])))
        local[host] += 1
    return found


FOUR = ["a", "b", "c", "d"]
SOUND = {
    "all GPUs seen by all": [("n", FOUR)] * 4,
    "fewer ranks than GPUs": [("n", FOUR)] * 3,
    "two machines": [("n", FOUR)] * 4 + [("m", FOUR)] * 4,
    "--gpus-per-task=1": [("n", [gpu]) for gpu in FOUR],
    "--gpus-per-task=2": [("n", FOUR[:2]), ("n", FOUR[2:])],
    "--gpus-per-task=1 on two machines": [(host, [gpu]) for host in "nm" for gpu in FOUR],
    "no GPU anywhere": [("n", []), ("n", []), ("m", [])],
    "one of each": [("n", ["a"]), ("m", ["a"])],
}


@pytest.mark.parametrize("launched", SOUND.values(), ids=list(SOUND))
def test_every_rank_has_a_gpu_of_its_own(launched):
    found = taken(launched)
    assert conflict(found) == ""
    gpus = [(one.host, one.gpu) for one in found if one.gpu]
    assert len(set(gpus)) == len(gpus)


BROKEN = {
    "more ranks than GPUs": (
        [("n", ["a", "b"])] * 3,
        "environment: ranks 0 and 2 would share a GPU of n (3 ranks there, GPUs: 2): start no more "
        "ranks than GPUs",
    ),
    "of two machines one": (
        [("n", FOUR)] * 4 + [("m", FOUR[:3])] * 4,
        "environment: ranks 4 and 7 would share a GPU of m (4 ranks there, GPUs: 3): start no more "
        "ranks than GPUs",
    ),
    "one GPU for eight": (
        [("n", ["a"])] * 8,
        "environment: ranks 0 and 1 would share a GPU of n (8 ranks there, GPUs: 1): start no more "
        "ranks than GPUs",
    ),
    "the same one for two tasks": (
        [("n", ["a"]), ("n", ["b"]), ("n", ["a"])],
        "environment: ranks 0 and 2 would share a GPU of n (3 ranks there, GPUs: 2): start no more "
        "ranks than GPUs",
    ),
    "a machine whose driver is gone": (
        [("n", FOUR), ("n", FOUR), ("m\x1b", []), ("m\x1b", [])],
        "environment: ranks 2 (m\\x1b), 3 (m\\x1b) see no GPU, the other ranks do: mend the driver "
        "or CUDA_VISIBLE_DEVICES there, or hide the GPUs from all",
    ),
    "a rank whose GPUs are hidden": (
        [("n", FOUR), ("n", [])],
        "environment: rank 1 (n) sees no GPU, the other ranks do: mend the driver or "
        "CUDA_VISIBLE_DEVICES there, or hide the GPUs from all",
    ),
}


@pytest.mark.parametrize(("launched", "line"), BROKEN.values(), ids=list(BROKEN))
def test_ranks_that_cannot_train_together_are_refused_with_counts(launched, line):
    assert conflict(taken(launched)) == line


def test_ranks_started_by_hand_without_local_rank_are_told_of_it():
    line = conflict([Taken("n", "a", 2, None), Taken("n", "a", 2, None)])
    assert line == (
        "environment: ranks 0 and 1 would share a GPU of n (2 ranks there, GPUs: 2): give each "
        "rank of a machine its own LOCAL_RANK, as torchrun and launch/ do"
    )


@pytest.mark.parametrize(
    ("asked", "visible", "said"),
    [
        (None, 0, False),
        ("", 0, False),
        ("-1", 0, False),
        ("0", 0, True),
        ("GPU-0b6e4dbd", 0, True),
        ("MIG-1f5ad6d1", 0, True),
        ("GPU-0b6e4dbd,GPU-77", 2, False),
        ("MIG-1f5ad6d1", 1, False),
    ],
)
def test_gpus_that_were_asked_for_and_are_not_there_are_said(asked, visible, said):
    line = unusable({} if asked is None else {"CUDA_VISIBLE_DEVICES": asked}, visible)
    assert bool(line) == said
    assert not said or line.startswith(f"environment: CUDA_VISIBLE_DEVICES={asked}, but no such ")


class Gpu:
    """What torch says of one."""

    def __init__(self, bus: int) -> None:
        self.pci_domain_id, self.pci_bus_id, self.pci_device_id, self.uuid = 0, bus, 0, f"GPU-{bus}"


@pytest.mark.parametrize(("visible", "rank", "index"), [(1, 3, 0), (4, 3, 3), (2, 3, 1), (1, 0, 0)])
def test_the_device_is_among_those_that_are_seen(monkeypatch, visible, rank, index):
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: visible)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: Gpu(device.index))
    assert (comm.device().type, comm.device().index) == ("cuda", index)
    found = topology.taken()
    assert (found.visible, found.local_rank) == (visible, str(rank))
    assert found.gpu.endswith(f" 0:{index}:0")


def meet(gpus: list[str]) -> str:
    """What a rank that took this GPU is told when all have met."""
    with pytest.MonkeyPatch.context() as patch:
        mine = Taken("n", gpus[comm.rank()], 1, str(comm.rank()))
        patch.setattr(group, "taken", lambda: mine)
        try:
            group._refuse_conflict()
        except RunError as error:
            return str(error)
    return ""


def test_all_ranks_hear_of_it_before_the_first_collective_on_a_gpu(ranks):
    assert ranks.run(meet, ["a", "b"]) == ["", ""]
    first, second = ranks.run(meet, ["a", "a"])
    assert first == second == devices.conflict([Taken("n", "a", 1, str(n)) for n in range(2)])


def start(rank: int, port: str, answer: str) -> None:
    """A rank of two that see one GPU between them."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", **place}
    group.taken = lambda: Taken("n", "a", 1, str(rank))
    try:
        comm.start(seconds=60)
    except RunError as error:
        Path(answer).write_text(str(error))


def test_joining_is_refused_by_every_rank(tmp_path):
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        port = str(tried.getsockname()[1])
    started = [children.child(start, n, port, str(tmp_path / str(n))) for n in range(2)]
    for process in started:
        process.join(120)
    first, second = ((tmp_path / str(n)).read_text() for n in range(2))
    assert first == second
    assert first.startswith("environment: ranks 0 and 1 would share a GPU of n (2 ranks there")


def deepspeeds_rank() -> tuple[str, str]:
    """LOCAL_RANK before and after DeepSpeed was made ready, where one GPU is seen as cuda:0."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCAL_RANK", "3")
        patch.setattr(comm, "device", lambda: type("Device", (), {"index": 0}))
        zero._deepspeed()
        return os.environ["LOCAL_RANK"], os.environ["RANK"]


def test_deepspeed_takes_the_same_gpu(ranks):
    assert ranks.run(deepspeeds_rank) == [("0", "0"), ("0", "1")]
