"""What a training reads: bad images, loader processes that die; memory of long runs."""

import gc
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data._utils import signal_handling

import toy
from bad_images import bad_files, bombs, save
from lookalike.data.loader import batches
from lookalike.data.order import EpochOrder
from lookalike.data.reader import HostCrops, Reader
from lookalike.data.sources import Digits, Folder
from lookalike.errors import RunError
from lookalike.process import fault
from lookalike.stages.pretrain import pretrain
from lookalike.views import Symmetric


def spoilt(path: Path) -> Path:
    """Good images, and one of each kind of trouble; the good names come first and are alike in both
    folders.
    """
    from PIL import Image

    toy.folder_of_images(path)
    tools = path.parent / "tools"
    tools.mkdir()
    values = np.random.default_rng(0).integers(0, 256, (20, 24, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    unusual = path / "train"
    save(unusual / "u_exif6.jpg", values, exif=exif)
    Image.fromarray(values).convert("CMYK").save(unusual / "u_cmyk.jpg")
    save(unusual / "u_deep.png", values[..., 0].astype(np.uint16) * 257)
    frames = [Image.fromarray(values + i) for i in range(3)]
    frames[0].save(unusual / "u_moving.gif", save_all=True, append_images=frames[1:])
    wanted = ("empty.jpg", "html.jpg", "short.jpg", "short.png", "flipped.png", "garbage.jpg")
    bad = {name: data for name, (data, _) in bad_files(tools).items() if name in wanted}
    bad |= {f"bomb_{name}": bombs()[name] for name in ("a.png", "a.jpg", "a.gif", "a.webp")}
    for name, data in bad.items():
        (path / "train" / f"z_{name}").write_bytes(data)
    (path / "train" / "z_gone.png").symlink_to(path / "train" / "00.png")
    return path


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("on", ["device", "host"])
def test_bad_images_are_replaced_counted_and_listed(tmp_path, on, workers):
    images = spoilt(tmp_path / "images")
    recipe = toy.on_folder(images, f"pretrain.crop_on={on}", f"pretrain.workers={workers}")
    source = recipe.data.build().split("train", 16)
    bad = {source.name(i) for i in range(len(source)) if "/z_" in source.name(i)}
    assert len(bad) == 11
    assert source.form.depth == "uint16"  # as the deepest of them
    (images / "train/z_gone.png").unlink()  # after it was listed: split() has seen it
    host_crops = HostCrops(recipe.pretrain.views.build(), 16) if on == "host" else None
    order, sizes, listed = EpochOrder(len(source), 11, 1, 3), set(), {}
    rows: dict[int, torch.Tensor] = {}
    span = {
        "first_step": 0,
        "last_step": order.steps_per_epoch,
        "rank": 0,
        "world": 1,
        "pin": False,
    }
    for batch in batches(source, order, **span, workers=workers, host_crops=host_crops):
        part = batch.pixels if host_crops is None else batch.pixels[1]
        sizes.add(len(part))
        listed |= {record.sample: record for record in batch.bad}
        rows |= {i: part[row].clone() for row, i in enumerate(batch.ids_B.tolist())}
    assert sizes == {11}
    assert {record.path for record in listed.values()} == bad & {source.name(i) for i in rows}
    assert len(listed) > 5
    assert all(record.reason and record.replacement not in listed for record in listed.values())
    reader = Reader(source, order.seed, host_crops)
    for i, row in rows.items():
        alone = [torch.empty(1, *shape, dtype=source.form.dtype) for shape in reader.shapes]
        again = reader.fill(0, [i], alone)
        assert torch.equal(alone[-1][0], row)
        assert again == ([listed[i]] if i in listed else [])


@pytest.mark.parametrize("before", [False, True])
def test_a_dead_loader_process_is_named_with_its_samples_and_the_run_resumes(
    tmp_path, monkeypatch, whole, before
):
    """`before`: another loader of the process has left its handler of dead children."""
    if before:
        monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
        signal_handling._set_SIGCHLD_handler()
    original = Reader.fill

    def dies(self, epoch, ids, parts):
        if 77 in ids:
            os._exit(9)
        return original(self, epoch, ids, parts)

    with monkeypatch.context() as patch:
        patch.setattr(Reader, "fill", dies)
        said = r"a loader process died.*worker \d of 2, process \d+, while reading"
        with pytest.raises(RunError, match=said) as caught:
            pretrain(toy.recipe("pretrain.workers=2"), tmp_path / "run")
    named = str(caught.value).partition("samples ")[2].partition(":")[0].split(" or ")
    order = EpochOrder(len(Digits().split("train")), 144, 1, 3)
    (deadly,) = [ids.tolist() for _, ids in order.micro_batches(0, 9) if 77 in ids]
    assert ", ".join(map(str, deadly[:8])) + ", …" in named
    assert len(named) <= 2
    if not before:
        pretrain(toy.recipe("pretrain.workers=2"), tmp_path / "run")
        assert toy.same(toy.tensors(tmp_path / "run"), toy.tensors(whole))


def resident() -> int:
    """KiB of anonymous and shared memory of this process and its children; pages that fork shares
    count twice, which does not change when one of the two writes to them.
    """
    return sum(
        int(line.split()[1])
        for process in (os.getpid(), *(p.pid for p in multiprocessing.active_children()))
        for line in Path(f"/proc/{process}/status").read_text().splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    )


def slope(measured: list[tuple[int, int]]) -> float:
    """MB per 1,000 steps, least squares."""
    steps, kib = np.array(measured, dtype=float).T
    return float(np.polyfit(steps / 1000, kib / 1024, 1)[0])


@pytest.mark.parametrize(
    ("on", "workers", "steps"),
    [
        pytest.param("device", 0, 1000, marks=pytest.mark.slow),
        pytest.param("host", 2, 1000, marks=pytest.mark.slow),
        ("host", 2, 300),
    ],
)
def test_many_batches_leave_memory_and_descriptors_as_they_were(tmp_path, on, workers, steps):
    """Images in files, bad ones among them; of few batches a leak of a canvas each would show."""
    images = spoilt(tmp_path / "images")
    source = Folder(str(images), canvas=16, channels=1).split("train")
    host_crops = HostCrops(Symmetric(), 16) if on == "host" else None
    order, measured, opened = EpochOrder(len(source), 2, 1, 3), [], set()
    span = {
        "first_step": 0,
        "last_step": steps,
        "rank": 0,
        "world": 1,
        "workers": workers,
        "pin": False,
    }
    for step, _ in enumerate(batches(source, order, **span, host_crops=host_crops)):
        if step >= 0.3 * steps and step % (steps // 20) == 0:
            gc.collect()
            measured.append((step, resident()))
            opened.add(len(list(Path("/proc/self/fd").iterdir())))
    assert slope(measured) < (1 if steps == 1000 else 4)
    assert len(opened) == 1


@pytest.mark.slow
def test_two_thousand_steps_leave_memory_and_descriptors_as_they_were(tmp_path):
    measured, opened = [], []

    def look(step: int) -> None:
        if step > 400 and step % 100 == 1:
            gc.collect()
            measured.append((step, resident()))
            opened.append(len(list(Path("/proc/self/fd").iterdir())))

    words = (
        "pretrain.batch=4",
        "pretrain.epochs=6",
        "pretrain.log_every=100",
        "pretrain.save_every_epochs=99",
    )
    tiny = toy.RESNET.replace("16, 16], layers", "8, 8], layers").replace("size: 16", "size: 8")
    with fault.plan(look):
        pretrain(toy.recipe(*words, "pretrain.workers=1", backbone=tiny), tmp_path / "run")
    assert len(measured) == 18
    assert slope(measured) < 1
    # A thread that logs may have a file open for a moment; what leaks stays open.
    assert min(opened[-6:]) == min(opened[:6])
