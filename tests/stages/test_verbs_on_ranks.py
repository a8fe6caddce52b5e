"""Verbs that score join the ranks: together they give and write what one process does, and the
first alone speaks.
"""

import contextlib
import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import children
import lookalike
import toy
from lookalike import comm
from lookalike.evaluation import features
from lookalike.search import results
from lookalike.search.index import ROWS
from lookalike.stages import search as stage

QUICK = ("probe.baselines=false", "probe.max_iterations=20", "evaluate.examples=2")


def heard(work: Any, *arguments: Any, **how: Any) -> tuple[Any, str]:
    """What it gives, and all that it said."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        return work(*arguments, **how), said.getvalue()


def probed(model: Path, out: Path) -> tuple[Any, str]:
    return heard(lookalike.probe, str(model), toy.recipe(*QUICK), out)


def evaluated(model: Path, out: Path) -> tuple[Any, str]:
    return heard(lookalike.evaluate, str(model), toy.recipe(*QUICK), out)


@pytest.mark.parametrize(
    ("verb", "files"),
    [(probed, {"probe.json", "features"}), (evaluated, {"evaluate.json", "evaluate.html"})],
)
def test_a_verb_on_two_ranks_is_the_verb_on_one(whole, tmp_path, ranks, verb, files):
    alone, _ = verb(whole / "backbone", tmp_path / "one")
    (first, said), (second, silent) = ranks.run(verb, whole / "backbone", tmp_path / "two")
    assert first == second == alone
    assert said
    assert not silent
    assert files <= {path.name for path in (tmp_path / "two").iterdir()}
    for name in files - {"features"}:
        one, two = ((tmp_path / n / name).read_bytes() for n in ("one", "two"))
        assert one == two


# ---- search


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (600, 12, 12), dtype=np.uint8)
    for i, values in enumerate(noise):
        Image.fromarray(values).save(folder / f"{i:03}.png")
    (folder / "007.png").write_bytes(b"no image")
    return folder


def indexed(folder: Path, photos: Path, model: Path) -> tuple[Any, str]:
    torch.set_num_threads(1)
    stage.FEW = 100
    here = features.workers_for
    features.workers_for = lambda *how: 0  # who serves the tests may have no children
    try:
        index, said = heard(stage.open_search, folder, str(photos), str(model))
        answers = results.query(index, [index.path(3)], 2)
        return [answer._asdict() for answer in answers], said
    finally:
        features.workers_for = here


def killed(folder: Path, photos: Path, model: Path) -> None:
    real, left = stage.embedder, [4]

    def embedder(*made):
        function = real(*made)

        def until(x_BCHW):
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(x_BCHW)

        return until

    stage.embedder = embedder
    indexed(folder, photos, model)


def test_an_index_by_two_ranks_is_that_of_one_and_one_killed_goes_on(
    whole, photos, tmp_path, ranks
):
    model = whole / "backbone"
    alone, _ = indexed(tmp_path / "one", photos, model)
    (first, said), (second, silent) = ranks.run(indexed, tmp_path / "two", photos, model)
    assert first == second == alone
    assert "599 images, embedded" in said
    assert not silent
    process = children.child(killed, tmp_path / "three", photos, model)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / ".features-three").is_dir()
    again, told = indexed(tmp_path / "three", photos, model)
    assert again == alone
    assert "256 of 600 images were done" in told
    one, two, three = ((tmp_path / n / ROWS).read_bytes() for n in ("one", "two", "three"))
    assert one == two == three
    assert not list(tmp_path.glob(".features-*"))


def differing(folder: Path, photos: Path, model: Path) -> str:
    with pytest.raises(lookalike.errors.RunError) as refused:
        indexed(folder, photos / str(comm.rank()), model)
    return str(refused.value)


def test_ranks_that_see_other_images_are_refused(whole, photos, tmp_path, ranks):
    for rank in range(2):
        (photos / str(rank)).mkdir()
        (photos / f"{rank:03}.png").rename(photos / str(rank) / f"{rank}.png")
    told = ranks.run(differing, tmp_path / "i", photos, whole / "backbone")
    assert all("ranks found other images than one another (1, 1)" in line for line in told)


def asked_on_stdin(lines: bytes) -> list[bytes]:
    return list(results.on_all_ranks(io.BytesIO(lines if comm.rank() == 0 else b"")))


def test_queries_that_the_first_rank_reads_reach_all(ranks):
    assert ranks.run(asked_on_stdin, b"a\nb\n") == [[b"a\n", b"b\n"]] * 2
