"""Features are made once, by all ranks: the same bytes whoever makes them, whatever comes between,
and never more of them in memory than is looked at.
"""

import hashlib
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import children
import machine
import toy
from lookalike import comm, log
from lookalike.data.images import Annotations, FileImages, Images, Reading, subset
from lookalike.errors import Error
from lookalike.evaluation import features, loose, store
from lookalike.evaluation.blocks import BLOCK, Form
from lookalike.evaluation.features import (
    STEP,
    Extracting,
    Features,
    cache_key,
    embedded_in_order,
    embedder,
    extract,
    extracted,
)
from lookalike.evaluation.store import Made, stored
from lookalike.geometry import PixelFormat

COUNT = 2 * BLOCK + 88
BAD = (5, 300)
HERE = Extracting(workers=0)
READING = Reading(16, PixelFormat(1))


def names() -> list[str]:
    return [f"{i:04}.png" for i in range(COUNT)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Images of noise, two of which are none."""
    folder = tmp_path_factory.mktemp("photos")
    noise = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16), dtype=np.uint8)
    for name, values in zip(names(), noise, strict=True):
        Image.fromarray(values).save(folder / name)
    for i in BAD:
        (folder / names()[i]).write_bytes(b"no image")
    return folder


def images_in(folder: Path) -> FileImages:
    return FileImages(folder, names(), READING, Annotations(torch.arange(COUNT) % 3))


def model() -> Callable[[Tensor], Tensor]:
    torch.manual_seed(0)
    backbone = toy.architecture().build()
    return embedder(backbone, backbone.architecture)


def make(
    photos: Path, out: Path | None, how: Extracting, function: Callable[[Tensor], Tensor] | None
) -> Features:
    return extracted(function or model(), images_in(photos), digest="d", folder=out, how=how)


def bytes_in(out: Path) -> dict[str, str]:
    (folder,) = out.iterdir()
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def made(photos: Path, out: Path, how: Extracting) -> tuple[int, tuple[str, list[int], int]]:
    """How often a rank asked the model, and what it gets."""
    calls: list[int] = []
    found = make(photos, out, how, counted(calls))
    rows = hashlib.sha256(found.x_ND.numpy().tobytes()).hexdigest()
    return len(calls), (rows, found.ids_N.tolist(), found.dropped)


@pytest.fixture(scope="module")
def whole(photos, tmp_path_factory) -> Path:
    """The store, made without a break by one process."""
    out = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    make(photos, out, HERE, None)
    return out


# ---- the same bytes


@pytest.mark.parametrize("world", [2, 4])
def test_any_number_of_ranks_makes_the_same_bytes_and_each_gets_them(
    photos, whole, tmp_path, ranks, world
):
    found = ranks.run(made, photos, tmp_path / "f", Extracting(3, 0), world=world)
    assert sum(calls for calls, _ in found) == -(-COUNT // STEP)
    assert [each for _, each in found] == [made(photos, whole, HERE)[1]] * world
    assert bytes_in(tmp_path / "f") == bytes_in(whole)


@pytest.mark.parametrize("how", [Extracting(3, 2), Extracting(64, 0)])
def test_batch_and_workers_change_no_bit(photos, whole, tmp_path, how):
    """Which a product of another shape may: each has the same."""
    calls: list[int] = []
    make(photos, tmp_path, how, counted(calls))
    assert calls == [STEP] * (COUNT // STEP) + [COUNT % STEP]
    assert bytes_in(tmp_path) == bytes_in(whole)


def test_rows_are_what_the_model_says_of_each_readable_image(photos, whole):
    """As whoever opens the files sees them."""
    (folder,) = whole.iterdir()
    x_ND, ids_N = np.load(folder / "rows.npy"), np.load(folder / "ids.npy")
    assert ids_N.tolist() == [i for i in range(COUNT) if i not in BAD]
    images, function = images_in(photos), model()
    with torch.no_grad():
        for row in (0, 5, 255, 298, 599 - 2 * len(BAD)):
            alone_D = function(images.read(int(ids_N[row]))[None])[0]
            torch.testing.assert_close(torch.from_numpy(x_ND[row]), alone_D, rtol=1e-4, atol=1e-6)
    found = make(photos, whole, HERE, lambda x: pytest.fail("made again"))
    assert torch.equal(found.labels_N, torch.from_numpy(ids_N) % 3)
    assert found.dropped == len(BAD)


def test_one_process_in_memory_makes_the_same_bits(photos, whole):
    kept = make(photos, whole, HERE, None)
    for found in (
        extract(model(), images_in(photos), batch=7),
        make(photos, None, HERE, None),
    ):
        assert torch.equal(found.x_ND, kept.x_ND)
        assert torch.equal(found.ids_N, kept.ids_N)
    parts = list(embedded_in_order(model(), images_in(photos), 7, 0))
    assert [i for ids, _ in parts for i in ids] == kept.ids_N.tolist()
    assert torch.equal(torch.cat([x_BD for _, x_BD in parts]), kept.x_ND)


def test_many_rows_without_a_folder_lie_in_a_file_that_nobody_sees(photos, whole, monkeypatch):
    monkeypatch.setattr(loose, "_IN_MEMORY", 0)
    found = make(photos, None, HERE, None)
    assert torch.equal(found.x_ND, make(photos, whole, HERE, None).x_ND)
    maps = Path("/proc/self/maps").read_text().splitlines()
    assert any(line.endswith("(deleted)") and tempfile.gettempdir() in line for line in maps)


def without_folder(photos: Path) -> tuple[str, list[int]]:
    found = make(photos, None, HERE, None)
    return hashlib.sha256(found.x_ND.numpy().tobytes()).hexdigest(), found.ids_N.tolist()


def test_without_a_folder_every_rank_has_all_of_them(photos, ranks):
    alone = without_folder(photos)
    assert ranks.run(without_folder, photos, world=4) == [alone] * 4


@pytest.mark.parametrize("store_as", ["float32", "float16"])
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_precision_and_type_are_as_asked_and_kept_apart(photos, tmp_path, store_as, precision):
    few = subset(images_in(photos), range(40))
    exact = extract(model(), few).x_ND
    found = extracted(
        model(), few, digest="d", folder=tmp_path, how=Extracting(8, 0, precision, store_as)
    )
    assert found.x_ND.dtype == getattr(torch, store_as)
    error = float((found.x_ND.float() - exact).abs().max() / exact.abs().max())
    assert error < (3e-2 if precision == "bf16" else 1e-3)
    assert (error == 0) == ((precision, store_as) == ("fp32", "float32"))
    extracted(model(), few, digest="d", folder=tmp_path, how=HERE)
    assert len(list(tmp_path.iterdir())) == 2 - (error == 0)


def test_views_are_made_in_full_precision(photos):
    """Half of it would see less than 256 shades."""
    seen: list[Tensor] = []

    class Seeing(torch.nn.Module):
        def forward(self, x_BCHW):
            seen.append(x_BCHW)
            return x_BCHW.flatten(1) @ torch.ones(256, 1)

    few = subset(images_in(photos), range(4))
    function = embedder(Seeing(), toy.architecture())
    for precision in ("bf16", "fp32"):
        how = Extracting(4, 0, precision)
        extracted(function, few, digest="d", folder=None, how=how)
    assert torch.equal(*seen)


def test_what_float16_cannot_hold_is_refused(photos, tmp_path):
    how = Extracting(store="float16")
    with pytest.raises(Error, match="float16 holds no feature beyond"):
        make(photos, tmp_path, how, lambda x: x.flatten(1).float() * 1e4)


def test_canvases_that_are_features_are_not_written_over(photos, tmp_path):
    """A function may give what it was given."""
    images = FileImages(photos, names(), Reading(16, PixelFormat(1, "float32")))
    found = extracted(
        lambda x: x.flatten(1),
        images,
        digest="d",
        folder=tmp_path,
        how=Extracting(workers=2),
        labelled=False,
    )
    for row in (0, 100, 400):
        assert torch.equal(found.x_ND[row], images.read(int(found.ids_N[row])).flatten())


def test_images_of_which_none_can_be_read_are_refused_and_looked_at_again(tmp_path):
    for name in names():
        (tmp_path / name).write_bytes(b"no image")
    few = subset(images_in(tmp_path), range(3))
    for _ in range(2):
        with pytest.raises(Error, match="not one image of this split could be read"):
            extracted(model(), few, digest="d", folder=tmp_path / "f")


# ---- what comes between


class Until:
    """The model, which ends its process at the n-th batch."""

    def __init__(self, n: int) -> None:
        self.n, self.function = n, model()

    def __call__(self, x_BCHW: Tensor) -> Tensor:
        self.n -= 1
        if self.n < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.function(x_BCHW)


def killed(photos: Path, out: Path, n: int) -> None:
    torch.set_num_threads(1)
    make(photos, out, HERE, Until(n))


def counted(calls: list[int]) -> Callable[[Tensor], Tensor]:
    function = model()

    def count(x_BCHW: Tensor) -> Tensor:
        calls.append(len(x_BCHW))
        return function(x_BCHW)

    return count


@pytest.mark.parametrize("n", [0, 1, 3, 4])
def test_a_killed_extraction_goes_on_and_ends_with_the_same_bytes(
    photos, whole, tmp_path, capsys, n
):
    process = children.child(killed, photos, tmp_path, n)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    calls: list[int] = []
    make(photos, tmp_path, HERE, counted(calls))
    assert bytes_in(tmp_path) == bytes_in(whole)
    done = n * STEP // BLOCK * BLOCK
    assert sum(calls) == COUNT - done
    assert ("goes on, 256 of 600 images were done" in capsys.readouterr().err) == (done == BLOCK)


def test_what_one_process_began_four_ranks_end(photos, whole, tmp_path, ranks):
    process = children.child(killed, photos, tmp_path, 3)
    process.join(60)
    ranks.run(made, photos, tmp_path, HERE, world=4)
    assert bytes_in(tmp_path) == bytes_in(whole)


def killed_at_write(photos: Path, out: Path, name: str, after: int) -> None:
    """Dies in the midst of what follows the last block."""
    from lookalike.evaluation import store

    before, calls = getattr(store, name), [after]

    def last(*arguments, **how):
        calls[0] -= 1
        if calls[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return before(*arguments, **how)

    setattr(store, name, last)
    torch.set_num_threads(1)
    make(photos, out, HERE, None)


@pytest.mark.parametrize(
    ("name", "after"),
    [("write_blocks", 0), ("write_ids", 0), ("_without_gaps", 0), ("read_rows", 1)],
)
def test_a_kill_while_it_is_closed_up_loses_nothing(photos, whole, tmp_path, name, after):
    process = children.child(killed_at_write, photos, tmp_path, name, after)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    make(photos, tmp_path, HERE, lambda x: pytest.fail("made again"))
    assert bytes_in(tmp_path) == bytes_in(whole)


def test_two_jobs_at_once_make_it_once(photos, whole, tmp_path, capsys):
    first = children.child(killed, photos, tmp_path, 10**6)
    while not list(tmp_path.glob("*/blocks-0.jsonl")) and first.is_alive():
        time.sleep(0.001)
    make(photos, tmp_path, HERE, lambda x: pytest.fail("made again"))
    first.join(60)
    assert first.exitcode == 0
    assert bytes_in(tmp_path) == bytes_in(whole)


# ---- places that cannot be written


def on_a_small_disk(photos: Path, place: Path, size: str, told: Path) -> None:
    torch.set_num_threads(1)
    machine.own_mounts()
    machine.tmpfs(place, size)
    found = make(photos, place / "features", HERE, None)
    left = sum(p.stat().st_size for p in (place / "features").rglob("*") if p.is_file())
    rows = hashlib.sha256(found.x_ND.numpy().tobytes()).hexdigest()
    told.write_text(f"{rows} {len(found.ids_N)} {left}")


def on_a_read_only_disk(photos: Path, place: Path, told: Path) -> None:
    torch.set_num_threads(1)
    machine.own_mounts()
    machine.read_only(place)
    found = make(photos, place / "features", HERE, None)
    rows = hashlib.sha256(found.x_ND.numpy().tobytes()).hexdigest()
    told.write_text(f"{rows} {len(found.ids_N)} 0")


@pytest.mark.skipif(os.name == "nt" or os.getuid() != 0, reason="needs mounts of its own")
@pytest.mark.parametrize("size", ["size=16k", "size=28k", "size=48k", None])
def test_a_disk_that_takes_no_more_costs_no_feature(photos, whole, tmp_path, size):
    """38 KB of features, and a copy of them where images could not be read."""
    place, told = tmp_path / "disk", tmp_path / "told"
    place.mkdir()
    if size:
        process = children.child(on_a_small_disk, photos, place, size, told)
    else:
        process = children.child(on_a_read_only_disk, photos, place, told)
    process.join(60)
    kept = make(photos, whole, HERE, None)
    rows = hashlib.sha256(kept.x_ND.numpy().tobytes()).hexdigest()
    assert told.read_text() == f"{rows} {COUNT - len(BAD)} 0"


def half_full(photos: Path, out: Path) -> tuple[str, str]:
    """On the second rank the disk takes no second block."""
    import io
    from contextlib import redirect_stderr

    before, calls = store.write_at, [0]

    def refuse(*arguments):
        calls[0] += 1
        if comm.rank() == 1:
            raise OSError(28, "No space left on device")
        return before(*arguments)

    store.write_at = refuse
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            found = make(photos, out, HERE, None)
    finally:
        store.write_at = before
    return hashlib.sha256(found.x_ND.numpy().tobytes()).hexdigest(), said.getvalue()


def test_one_rank_without_room_is_enough_to_keep_nothing_and_lose_nothing(
    photos, whole, tmp_path, ranks
):
    kept = make(photos, whole, HERE, None)
    rows = hashlib.sha256(kept.x_ND.numpy().tobytes()).hexdigest()
    (one, said), (other, silent) = ranks.run(half_full, photos, tmp_path)
    assert (one, other) == (rows, rows)
    assert "No space left on device: these features are not kept" in said
    assert not silent


# ---- size


def test_a_million_rows_are_opened_without_reading_them_into_memory(tmp_path):
    """Mapped: what is looked at is the page cache's, and not this process's own."""
    rows, width = 1_000_000, 8
    one_KD = torch.rand(BLOCK, width)
    form = Form(rows, "float32")

    def blocks(numbers):
        return (Made(n, (), one_KD[: len(form.images_of(n))] + n) for n in numbers)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    x_ND, ids_N = stored(tmp_path / "f", form, blocks)
    again = stored(tmp_path / "f", form, lambda numbers: pytest.fail("made again"))
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert x_ND.shape == again.x_ND.shape == (rows, width)
    assert torch.equal(x_ND[-1], one_KD[(rows - 1) % BLOCK] + (rows - 1) // BLOCK)
    assert torch.equal(ids_N[::99999], torch.arange(0, rows, 99999))
    assert grown < 28 * 2**20, grown  # of 32 MB: the numbers of the images, twice, are 16 MB


def test_rows_as_wide_as_all_patches_of_an_image_are_kept(tmp_path):
    form = Form(10, "float16")
    x_KD = torch.rand(9, 150_001).half()
    found = stored(tmp_path / "f", form, lambda numbers: [Made(0, (4,), x_KD)][: len(numbers)])
    assert torch.equal(found.x_ND, x_KD)
    assert found.ids_N.tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_a_key_costs_no_name(photos, monkeypatch):
    """At ten million images names one by one would take half a minute."""
    images = images_in(photos)
    some = [images, subset(images, [1, 0]), subset(images, [0, 1]), subset(images, range(COUNT))]
    keys = [cache_key(each) for each in some]
    assert len(set(keys)) == len(some)
    monkeypatch.setattr(FileImages, "name", lambda self, i: pytest.fail("asked for a name"))
    monkeypatch.setattr(FileImages, "content", "as before")
    whole: Images = images_in(photos)
    assert (
        cache_key(FileImages(photos, names()[::-1], READING, whole.annotations))[-1] != keys[0][-1]
    )
    assert cache_key(whole)[-1] == keys[0][-1]
    assert cache_key(subset(whole, [1, 0]))[-1] == keys[1][-1]


# ---- what is seen of it, and copied


def test_the_pace_is_a_rate_and_the_time_left(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    with log.progress("embedding", 6000) as tell:
        for done in (500, 1000, 3000):
            now[0] += 6.0
            tell(done)
    with log.progress("embedding", 6000, active=False) as tell:
        now[0] += 60.0
        tell(3000)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "embedding: 1,000 of 6,000, 83 images/s, 1 min 00 s left"


def test_a_result_is_waited_for_once_the_next_one_is_under_way(monkeypatch):
    """As on a GPU, whose copies end when they like."""
    events: list[str] = []

    class Far:
        device = torch.device("cuda")

        def __init__(self, n: int) -> None:
            self.n = n

    def copy(x):
        events.append(f"copy {x.n}")
        return x, lambda: events.append(f"wait {x.n}")

    monkeypatch.setattr(features, "_copy", copy)
    outputs = (events.append(f"run {n}") or (n, Far(n)) for n in range(3))
    assert [about for about, _ in features._late(outputs)] == [0, 1, 2]
    assert events == [
        *("run 0", "copy 0", "run 1", "copy 1", "wait 0"),
        *("run 2", "copy 2", "wait 1", "wait 2"),
    ]
