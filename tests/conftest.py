"""Ranks for the tests: forked once a session from a process that has imported everything, then
handed functions.
"""

import os
import socket
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

import children
from forms import by_native, kernel, made_by, pytest_generate_tests

__all__ = ["by_native", "kernel", "made_by", "pytest_generate_tests"]

# onnxruntime, which tests import themselves, would tell its maker of its use.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

TIMEOUT = 120
# These take minutes: begun last, one of them would be waited for alone.
LONG = ("test_watchdog", "test_engine", "test_loop", "test_stages", "test_export", "test_methods")
LONG += ("test_network", "test_machines", "test_launch", "test_loggers", "test_heads", "test_cli")
LONG += ("test_fit_head", "test_outside_files", "test_loading", "test_real_size", "test_estimators")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, in this order; all others as they were."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def _serve(rank: int, world: int, port: int, calls: Connection) -> None:
    """A rank: joins its group, then answers calls until it is told to stop."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    from lookalike import comm

    comm.start()
    while (call := calls.recv()) is not None:
        function, arguments = call
        try:
            calls.send((True, function(*arguments)))
        except BaseException:
            calls.send((False, traceback.format_exc()))
    comm.stop()


def _answer(calls: Connection) -> tuple[bool, Any]:
    try:
        return calls.recv() if calls.poll(TIMEOUT) else (False, "no answer in time")
    except EOFError:
        return False, "the process died"


class Ranks:
    """`run(function, *arguments, world=2)` calls a module-level function on every rank; returns
    what each gave.
    """

    def __init__(self) -> None:
        self._context = children.context()
        self._groups: dict[int, list[tuple[Any, Connection]]] = {}

    def run(self, function: Callable[..., Any], *arguments: Any, world: int = 2) -> list[Any]:
        group = self._groups.setdefault(world, [])
        if not group:
            group += self._start(world)
        for _, calls in group:
            calls.send((function, arguments))
        answers = [_answer(calls) for _, calls in group]
        failed = [text for good, text in answers if not good]
        if failed:
            self._end(world)
            pytest.fail(f"{len(failed)} of {world} ranks failed:\n" + "\n".join(failed))
        return [value for _, value in answers]

    def _start(self, world: int) -> list[tuple[Any, Connection]]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        group = []
        for rank in range(world):
            here, there = self._context.Pipe()
            process = self._context.Process(
                target=_serve, args=(rank, world, port, there), daemon=True
            )
            process.start()
            group.append((process, here))
        return group

    def _end(self, world: int) -> None:
        for process, calls in self._groups.pop(world):
            if process.is_alive():
                process.kill()
            process.join()
            calls.close()

    def close(self) -> None:
        for world in list(self._groups):
            for process, calls in self._groups[world]:
                calls.send(None)
                process.join(20)
            self._end(world)


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    made = Ranks()
    yield made
    made.close()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the toy recipe, trained without a break; tests that spoil it take a
    copy.
    """
    import toy
    from lookalike.stages.pretrain import pretrain

    torch.set_num_threads(1)
    return pretrain(toy.recipe(), tmp_path_factory.mktemp("whole") / "run").parent


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small products on many threads spin against each other, and thread counts change sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is looked up in, or left in, the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
