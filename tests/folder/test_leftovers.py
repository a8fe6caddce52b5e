"""What a kill leaves half-done: put back or removed by its exact name and owner, and nothing of
anybody else's.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import toy
from lookalike.errors import RunError
from lookalike.folder import recover, sweep, verify, write_folder
from lookalike.stages.export import export
from lookalike.stages.pretrain import pretrain
from lookalike.stages.probe import probe
from lookalike.stages.search import in_folder, search_index

FILES = {"config.json": b"{}", "a.bin": b"12"}


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("name", ["photos", "photos-20", "photos.v2", "idx[1]", "a*", "x\ny", "-"])
def test_only_its_own_old_folder_is_put_back(tmp_path, dead, name):
    for other in ("photos-2024", "photos-20-24", "photos2024", "idx1", "ab", "photosxv2"):
        write_folder(tmp_path / other, {"config.json": other.encode()})
        (tmp_path / other).rename(tmp_path / f".old-{other}-{dead}")
    before = {p.name for p in tmp_path.iterdir()}
    recover(tmp_path / name)
    assert {p.name for p in tmp_path.iterdir()} == before
    write_folder(tmp_path / name, FILES)
    (tmp_path / name).rename(tmp_path / f".old-{name}-{dead}")
    recover(tmp_path / name)
    assert (tmp_path / name / "a.bin").read_bytes() == b"12"
    assert {p.name for p in tmp_path.iterdir()} == {*before, name}


def test_the_newest_whole_old_folder_wins_and_a_torn_one_never_does(tmp_path):
    for age, pid in ((300, 900_001), (200, 900_002), (100, 900_003)):
        write_folder(tmp_path / "m", {"a.bin": str(pid).encode()})
        (tmp_path / "m").rename(tmp_path / f".old-m-{pid}")
        os.utime(tmp_path / f".old-m-{pid}", (1e9 - age, 1e9 - age))
    (tmp_path / ".old-m-900003/a.bin").write_bytes(b"torn")
    recover(tmp_path / "m")
    assert (tmp_path / "m/a.bin").read_bytes() == b"900002"
    assert (tmp_path / ".old-m-900003").exists()


def test_what_a_living_process_writes_stays(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        living = tmp_path / f".tmp-x-{process.pid}"
        living.mkdir()
        sweep(tmp_path)
        assert living.exists()
        process.kill()
    sweep(tmp_path)
    assert not living.exists()


def test_a_process_of_the_same_number_left_what_this_one_finds(tmp_path):
    """In a container each start has the same number."""
    (tmp_path / f".tmp-latest.json-{os.getpid()}").write_bytes(b"torn")
    sweep(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["tmp", "old"])
def test_a_folder_of_somebody_else_stays_whatever_its_name(tmp_path, dead, kind):
    theirs = tmp_path / f".{kind}-photos-{dead}"
    theirs.mkdir()
    (theirs / "holiday.jpg").write_bytes(b"dear")
    write_folder(tmp_path / "photos", FILES)
    write_folder(tmp_path / "photos", FILES)
    recover(tmp_path / "photos")
    assert content(theirs) == {"holiday.jpg": b"dear"}


def test_a_folder_that_holds_somebody_elses_files_is_not_replaced(tmp_path):
    target = tmp_path / "export"
    target.mkdir()
    (target / "thesis.txt").write_bytes(b"dear")
    with pytest.raises(RunError, match=r"export: holds thesis.txt, which lookalike did not write"):
        write_folder(target, FILES)
    assert content(target) == {"thesis.txt": b"dear"}
    (target / "thesis.txt").unlink()
    write_folder(target, FILES)
    (target / "notes.md").write_bytes(b"dear")
    with pytest.raises(RunError, match=r"notes\.md"):
        write_folder(target, FILES)
    assert verify(target)
    (target / "notes.md").rename(target / ".DS_Store")
    write_folder(target, FILES)


def test_leftovers_of_every_writer_are_gone_after_the_next_run(tmp_path, whole, dead):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    recipe = toy.recipe("export.onnx=false", "probe.baselines=false")
    export(run / "backbone", recipe, run / "export/backbone")
    probe(run / "backbone", recipe, run)
    clean = {p.relative_to(run) for p in run.rglob("*")}
    (run / f".tmp-recipe.yaml-{dead}").write_bytes(b"torn")
    (run / f"export/.tmp-backbone-{dead}").mkdir()
    (run / f"export/.tmp-backbone-{dead}/model.onnx").write_bytes(b"torn")
    (run / f"features/.tmp-{'0a' * 16}.safetensors-{dead}").write_bytes(b"torn")
    (run / f"checkpoints/.tmp-latest.json-{dead}").write_bytes(b"torn")
    (run / f"checkpoints/.tmp-step_00000018-{dead}").mkdir()
    shutil.copytree(
        run / "checkpoints/step_00000018", run / f"checkpoints/.old-step_00000018-{dead}"
    )
    (run / "backbone").rename(run / f".old-backbone-{dead}")
    probe(run / "backbone", recipe, run)  # a verb that trains nothing clears up too
    assert {p.relative_to(run) for p in run.rglob("*")} == {*clean, Path(".lock")}
    (run / f"checkpoints/.tmp-latest.json-{dead}").write_bytes(b"torn")
    pretrain(toy.recipe(), run)
    assert {p.relative_to(run) for p in run.rglob("*")} == {*clean, Path(".lock")}


def test_an_index_takes_nothing_of_another_and_leaks_nothing(tmp_path, whole, dead, photos):
    def index(name: str, **how):
        return search_index(
            tmp_path / name, lambda a: in_folder(photos, a), str(whole / "backbone")
        )

    index("photos-2024")
    (tmp_path / "photos-2024").rename(tmp_path / f".old-photos-2024-{dead}")
    with pytest.raises(RunError, match="no such index"):
        search_index(tmp_path / "photos")
    index("photos")
    assert (tmp_path / f".old-photos-2024-{dead}/embeddings.npy").exists()
    assert len(search_index(tmp_path / "photos-2024")) == 4
    index("ks[1].idx")
    leaked = tmp_path / f".tmp-ks[1].idx-{dead}"
    leaked.mkdir()
    (leaked / "embeddings.npy").write_bytes(b"torn")
    shutil.copy(photos / "0.png", photos / "9.png")
    index("ks[1].idx")
    assert not leaked.exists()
    (tmp_path / "ks[1].idx").rename(tmp_path / f".old-ks[1].idx-{dead}")
    assert len(search_index(tmp_path / "ks[1].idx")) == 5


def test_another_folder_of_the_same_names_is_embedded_anew(tmp_path, whole, photos):
    def index(folder: Path):
        return search_index(tmp_path / "i", lambda a: in_folder(folder, a), str(whole / "backbone"))

    first = index(photos)
    other = tmp_path / "q"
    shutil.copytree(photos, other)
    shutil.copy(other / "0.png", other / "1.png")
    for path in photos.iterdir():
        shutil.copystat(path, other / path.name)
    found = index(other)
    assert bool((found.x_ND[0] == found.x_ND[1]).all())
    assert not bool((first.x_ND[0] == first.x_ND[1]).all())


def test_what_only_looks_like_a_leftover_stays(tmp_path, whole, dead):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    (run / "thesis").mkdir()
    theirs = [
        run / f".old-thesis-{dead}/chapter.tex",
        run / f".tmp-notes-{dead}/list.txt",
        run / f".tmp-mail-{dead}",
    ]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("dear")
    probe(run / "backbone", toy.recipe("probe.baselines=false", "probe.max_iterations=2"), run)
    pretrain(toy.recipe(), run)
    assert [path.read_text() for path in theirs] == ["dear"] * 3


def test_a_repository_in_an_export_is_not_lost(tmp_path):
    write_folder(tmp_path / "m", FILES)
    (tmp_path / "m/.git").mkdir()
    with pytest.raises(RunError, match=r"holds \.git, which lookalike did not write"):
        write_folder(tmp_path / "m", FILES)


@pytest.fixture
def photos(tmp_path) -> Path:
    import torch
    from PIL import Image

    folder = tmp_path / "p"
    folder.mkdir()
    for i in range(4):
        values = torch.randint(
            0, 256, (20, 20), generator=torch.Generator().manual_seed(i), dtype=torch.uint8
        )
        Image.fromarray(values.numpy()).save(folder / f"{i}.png")
    return folder
