"""The data order: a pure function of (seed, epoch, position) for any ranks, workers and cuts; bad
images replaced.
"""

import gc
import multiprocessing
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lookalike.data import decode, loader, reader, shared, slots
from lookalike.data.decode import Opened
from lookalike.data.images import ArrayImages, FileImages
from lookalike.data.loader import Batch, batches, in_order
from lookalike.data.order import EpochOrder, share
from lookalike.data.prefetch import ahead, prefetch
from lookalike.data.reader import HostCrops, cut_views
from lookalike.data.sources import Folder
from lookalike.errors import DataError, RunError
from lookalike.geometry import PixelFormat
from lookalike.training.meter import Meter
from lookalike.views import Asymmetric, MultiCrop, Symmetric
from lookalike.views.resample import crop_resize
from toy import read_many

WORLDS = (1, 2, 3, 4, 6, 8, 12)


def draw_boxes(ids_B, key, height, width, crop, aspect):
    """What a law of these ranges cuts; key = (seed, epoch, view)."""
    seed, epoch, v = key
    return Symmetric(crop=crop, aspect=aspect).draws(
        ids_B, seed, epoch, range(v, v + 1), height, width
    )["box"][0]


def array(n: int) -> ArrayImages:
    return ArrayImages(
        torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).expand(n, 1, 2, 2).clone()
    )


def global_batches(order: EpochOrder, world: int, first: int, last: int) -> list[list[int]]:
    return [
        torch.cat([share(micro, rank, world) for rank in range(world)]).tolist()
        for _, micro in order.micro_batches(first, last)
    ]


@pytest.mark.parametrize("accumulate", [1, 2, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_every_world_sees_the_same_global_batches_from_any_cut(world, accumulate):
    order = EpochOrder(103, 20, accumulate, seed=4)
    wanted = global_batches(order, 1, 0, 12)
    for cut in (0, 1, 4, 5, 7, 11):
        assert global_batches(order, world, cut, 12) == wanted[cut * accumulate :]


def test_an_epoch_holds_each_sample_once_and_leaves_out_the_incomplete_batch():
    order = EpochOrder(103, 20, 1, seed=4)
    for epoch in range(3):
        ids = [i for step in range(5) for i in order.ids(epoch, step).tolist()]
        assert len(set(ids)) == len(ids) == 100
        assert global_batches(order, 1, epoch * 5, epoch * 5 + 5) == [
            order.ids(epoch, s).tolist() for s in range(5)
        ]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        tuple(EpochOrder(50, 50, 1, seed).ids(epoch, 0).tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len(set(orders)) == 4


def test_over_many_epochs_each_sample_is_left_out_equally_often():
    order = EpochOrder(30, 20, 1, seed=0)
    seen = Counter(i for epoch in range(600) for i in order.ids(epoch, 0).tolist())
    assert min(seen.values()) > 340  # expected 400, five standard deviations of 11.5
    assert max(seen.values()) < 460


def kept(batch: Batch) -> Batch:
    """A copy that outlives the batch's slot."""
    pixels = (
        [p.clone() for p in batch.pixels]
        if isinstance(batch.pixels, list)
        else batch.pixels.clone()
    )
    return batch._replace(pixels=pixels)


def stream(
    images, workers: int, first: int = 0, last: int = 6, host_crops: HostCrops | None = None
) -> list[Batch]:
    order, span = (
        EpochOrder(len(images), 8, 2, seed=1),
        {"first_step": first, "last_step": last, "rank": 1, "world": 2},
    )
    return [
        kept(b)
        for b in batches(images, order, **span, workers=workers, pin=False, host_crops=host_crops)
    ]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(workers):
    alone, together = stream(array(24), 0), stream(array(24), workers)
    assert [b.epoch for b in alone] == [b.epoch for b in together]
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.ids_B, b.ids_B)
        assert torch.equal(a.pixels, b.pixels)


def test_a_batch_holds_the_images_of_its_ids():
    for batch in stream(array(24), 0):
        assert torch.equal(batch.pixels[:, 0, 0, 0].long(), batch.ids_B)


def test_fewer_images_than_a_batch_are_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"5 images are fewer than one batch of 8: lower the batch"):
        EpochOrder(5, 8, 1, 0)


def folder(path, good: int, bad: dict[str, bytes]) -> FileImages:
    path.mkdir()
    for i in range(good):
        Image.new("RGB", (20, 20), (i * 7, 50, 90)).save(path / f"good_{i:02d}.png")
    for name, content in bad.items():
        (path / name).write_bytes(content)
    return Folder(path=str(path), canvas=8, test_fraction=0).split("train")


BAD = {
    "a_empty.jpg": b"",
    "b_html.jpg": b"<html>404</html>",
    "z_cut.png": b"\x89PNG\r\n\x1a\n\x00\x00",
}


def test_a_bad_image_is_replaced_by_the_same_one_each_time_and_named(tmp_path):
    images = folder(tmp_path / "p", 12, BAD)
    ids = list(range(len(images)))
    canvas, bad = read_many(images, ids, seed=5)
    again, bad_again = read_many(images, ids[::-1], seed=5)
    assert torch.equal(canvas, again.flip(0))
    assert sorted(bad) == sorted(bad_again)
    assert sorted(record.path.rsplit("/", 1)[1] for record in bad) == sorted(BAD)
    for record in bad:
        assert torch.equal(canvas[record.sample], canvas[record.replacement])
    assert read_many(images, ids, seed=6)[1] != bad


def test_healthy_images_do_not_notice_bad_neighbours(tmp_path):
    mixed, clean = folder(tmp_path / "p", 12, BAD), folder(tmp_path / "q", 12, {})
    by_name = {
        mixed.name(i).rsplit("/", 1)[1]: row
        for i, row in enumerate(read_many(mixed, range(15), seed=5)[0])
    }
    for i, row in enumerate(read_many(clean, range(12), seed=5)[0]):
        assert torch.equal(by_name[clean.name(i).rsplit("/", 1)[1]], row)


def test_a_folder_of_only_bad_images_ends_with_the_first_ones_reason(tmp_path):
    images = folder(tmp_path / "p", 0, BAD)
    with pytest.raises(DataError, match=r"\.(jpg|png): .*is the folder sound"):
        read_many(images, [0], seed=0)


def test_in_order_leaves_bad_images_out(tmp_path):
    images = folder(tmp_path / "p", 12, BAD)
    for workers in (0, 2):
        found = list(in_order(images, 4, workers))
        ids = [i for part, _ in found for i in part]
        assert len(ids) == 12
        assert ids == sorted(ids)
        assert [len(canvas) for _, canvas in found] == [len(part) for part, _ in found]


# ---- slots: what the workers write and how long it stands


def several(path, count: int = 20) -> FileImages:
    """JPEGs of many sides; two PNGs; all differ."""
    path.mkdir()
    draw = np.random.default_rng(0)
    for i in range(count):
        y, x = np.mgrid[0 : draw.integers(20, 90), 0 : draw.integers(20, 90)]
        rgb = np.stack([x * 3 + i * 11, y * 3, x * y // 4 + i * 7], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(path / f"{i:02d}.{'png' if i % 10 == 3 else 'jpg'}", quality=95)
    return Folder(path=str(path), canvas=16, test_fraction=0).split("train")


@pytest.mark.parametrize("workers", [1, 3])
def test_a_batch_stands_until_the_next_but_one_is_asked_for(workers):
    """Kept as it came, without a copy, and compared when its time is nearly over; workers have gone
    on long since.
    """
    images, order = array(200), EpochOrder(200, 8, 1, seed=1)
    span = {
        "first_step": 0,
        "last_step": 100,
        "rank": 0,
        "world": 1,
        "workers": workers,
        "pin": False,
    }
    before: Batch | None = None
    seen = 0
    for batch in batches(images, order, **span):
        if seen % 20 == 0:
            time.sleep(0.02)  # time for every worker to write all it may
        for held in (before, batch):
            assert held is None or torch.equal(held.pixels[:, 0, 0, 0].long(), held.ids_B)
        before, seen = batch, seen + 1
    assert seen == 100


def test_workers_hand_over_a_slot_and_no_pixels(monkeypatch):
    """All that crosses the pipe of a large batch is a few bytes."""
    images = ArrayImages(torch.zeros(8, 3, 64, 64, dtype=torch.uint8))
    answers = []
    original = loader.one_by_one

    def spying(*arguments, **how):
        for answer in original(*arguments, **how):
            answers.append(answer)
            yield answer

    monkeypatch.setattr(loader, "one_by_one", spying)
    assert len(stream(images, 2)) == 12
    assert answers == [[]] * 12


def test_too_little_memory_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(shared, "available", lambda: 10**6)
    with pytest.raises(
        RunError, match=r"share 2 MB, but 1 MB of memory are free: lower .*workers to 0"
    ):
        slots.Slots(4, 10, [(3, 128, 128)])


def test_a_stream_that_is_left_early_leaves_no_process_and_no_descriptor():
    def children():
        return {p.pid for p in multiprocessing.active_children()}

    def descriptors():
        return len(list(Path("/proc/self/fd").iterdir()))

    stream(array(24), 2)
    opened, before = descriptors(), children()
    for _ in range(3):
        found = batches(
            array(24),
            EpochOrder(24, 8, 2, 1),
            first_step=0,
            last_step=9,
            rank=0,
            world=1,
            workers=2,
            pin=False,
        )
        next(found)
        assert len(children() - before) == 2
        found.close()
    del found
    gc.collect()
    assert children() == before
    assert descriptors() <= opened


# ---- crops on the host

LAWS = {
    "asymmetric": Asymmetric(),
    "multi_crop": MultiCrop(small=2, small_size=8, interpolation="bilinear"),
}


@pytest.mark.parametrize(
    ("name", "size"), [("asymmetric", 16), ("multi_crop", 16), ("asymmetric", (16, 9))]
)
def test_a_host_crop_is_the_laws_box_of_the_full_size_image_resized(
    tmp_path, monkeypatch, name, size
):
    """Against Pillow alone: decode, crop, resize; and the boxes drawn for each image by itself."""
    monkeypatch.setattr(reader, "SHRINKS", ())
    images, policy = several(tmp_path / "p"), LAWS[name]
    for batch in stream(images, 0, host_crops=HostCrops(policy, size)):
        assert [tuple(part.shape[1:]) for part in batch.pixels] == [
            (3, *s) for s in policy.sizes(size)
        ]
        for row, i in enumerate(batch.ids_B.tolist()):
            with Image.open(images.name(i)) as image:
                whole = image.convert("RGB")
            for v, part in enumerate(batch.pixels):
                range_of = policy.small_crop if v >= 2 else policy.crop
                (box,) = draw_boxes(
                    torch.tensor([i]),
                    (1, batch.epoch, v),
                    whole.height,
                    whole.width,
                    range_of,
                    policy.aspect,
                )
                top, left, h, w = box.tolist()
                sides, mode = policy.sizes(size)[v], getattr(Image, policy.interpolation.upper())
                expected = np.asarray(
                    whole.crop((left, top, left + w, top + h)).resize(sides[::-1], mode)
                ).astype(int)
                difference = np.abs(part[row].permute(1, 2, 0).numpy() - expected)
                assert difference.mean() < 0.6


def test_a_large_jpeg_is_decoded_smaller_only_where_no_box_gets_smaller_than_its_view(
    tmp_path, monkeypatch
):
    y, x = np.mgrid[0:256, 0:256]
    Image.fromarray(np.stack([x, y, (x + y) // 2], axis=-1).astype(np.uint8)).save(
        tmp_path / "a.jpg", quality=95
    )
    image = Opened((tmp_path / "a.jpg").read_bytes(), "a.jpg", PixelFormat(3))
    for boxes, wanted in (
        ([[0, 0, 128, 130], [9, 9, 200, 190]], 8),
        ([[0, 0, 127, 256], [9, 9, 200, 190]], 4),
        ([[3, 5, 200, 31], [0, 0, 256, 256]], 1),
    ):
        asked, whole = [], Opened.pixels
        with monkeypatch.context() as patch:
            patch.setattr(
                Opened, "pixels", lambda self, s, n=asked, f=whole: n.append(s) or f(self, s)
            )
            outs = torch.empty(2, 3, 16, 16, dtype=torch.uint8)
            cut_views(image, boxes, list(outs), "bicubic")
        assert asked == [wanted]
        for box, out in zip(boxes, outs, strict=True):
            exact = decode.cut(image.pixels(), box, torch.empty(3, 16, 16, dtype=torch.uint8))
            assert (out.int() - exact.int()).abs().float().mean() < 2


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("name", LAWS)
def test_workers_change_no_host_crop(tmp_path, name, workers):
    images = several(tmp_path / "p")
    first, other = (stream(images, n, host_crops=HostCrops(LAWS[name], 16)) for n in (0, workers))
    for alone, together in zip(first, other, strict=True):
        assert all(map(torch.equal, alone.pixels, together.pixels))


def test_a_sample_has_the_same_crops_beside_any_others(tmp_path):
    images, host_crops = several(tmp_path / "p"), HostCrops(Asymmetric(), 16)
    whole, _ = read_many(images, range(20), 5, host_crops)
    for ids in ([7], [19, 3], list(range(19, -1, -1))):
        assert torch.equal(read_many(images, ids, 5, host_crops)[0], whole[ids])


def test_a_bad_images_place_is_cut_from_its_replacement_by_its_own_draws(tmp_path):
    """Also where only the pixels are bad, which is found after the boxes were drawn."""
    good = Image.new("RGB", (40, 30), (9, 9, 9))
    good.save(tmp_path / "whole.jpg")
    short = (tmp_path / "whole.jpg").read_bytes()[:-20]
    images, host_crops = (
        folder(tmp_path / "p", 12, {**BAD, "m_cut.jpg": short}),
        HostCrops(Asymmetric(flip=0), 8),
    )
    crops, bad = read_many(images, range(len(images)), 5, host_crops)
    assert sorted(record.path.rsplit("/", 1)[1] for record in bad) == sorted([*BAD, "m_cut.jpg"])
    for record in bad:
        image = images.open(record.replacement)
        (box,) = draw_boxes(
            torch.tensor([record.sample]),
            (5, 0, 0),
            image.height,
            image.width,
            (0.08, 1),
            (3 / 4, 4 / 3),
        )
        expected = decode.cut(image.pixels(), box.tolist(), torch.empty(3, 8, 8, dtype=torch.uint8))
        assert torch.equal(crops[record.sample], expected)


def test_images_in_memory_are_cut_too():
    images = torch.randint(
        90, 166, (24, 1, 12, 15), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    policy = Symmetric(crop=(0.3, 1.0))
    for batch in stream(ArrayImages(images), 0, host_crops=HostCrops(policy, 9)):
        box_B4 = draw_boxes(batch.ids_B, (1, batch.epoch, 1), 12, 15, policy.crop, policy.aspect)
        wanted = crop_resize(images[batch.ids_B].float() / 255, box_B4, 9) * 255
        assert (batch.pixels[1] - wanted).abs().max() < 1.5


# ---- one batch ahead on the way to the device


class Copies:
    """Remembers what happens in which order; a copy reads its source only when the host waits for
    it.
    """

    def __init__(self, events: list) -> None:
        self.events = events

    def start(self, pixels):
        self.events.append(("start", int(pixels)))
        return pixels + 100, int(pixels)

    def use(self, pixels, mark):
        self.events.append(("use", mark))

    def wait(self, mark):
        self.events.append(("wait", mark))


def numbered(count: int, events: list):
    for i in range(count):
        events.append(("ask", i))
        yield Batch(0, torch.tensor([i]), torch.tensor(i), [])
    events.append(("ask", count))


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_the_next_copy_begins_before_a_batch_is_used_and_ends_before_its_slot_goes(count):
    events: list = []
    got = []
    for batch in ahead(numbered(count, events), Copies(events)):
        assert int(batch.pixels) == 100 + int(batch.ids_B)
        events.append(("train", int(batch.ids_B)))
        got.append(int(batch.ids_B))
    assert got == list(range(count))
    for i in range(count):
        at = events.index
        assert at(("ask", i)) < at(("start", i)) < at(("use", i)) < at(("train", i))
        assert events.count(("wait", i)) == 1
        if i + 1 < count:
            assert at(("start", i + 1)) < at(("train", i))
            assert at(("wait", i)) < at(("ask", i + 2))


def test_a_prefetch_that_is_left_early_waits_for_its_copies_and_closes_its_source():
    events: list = []
    source = numbered(9, events)
    found = ahead(source, Copies(events))
    next(found), next(found)
    found.close()
    assert {("wait", i) for i in range(3)} <= set(events)
    assert source.gi_frame is None


def test_the_meter_tells_the_share_of_the_time_waited_also_one_batch_ahead(monkeypatch):
    """A clock that only reading (3) and training (2) move: of 5, the loop waits 3; so it does with
    one batch ahead.
    """
    clock = [0.0]
    monkeypatch.setattr("lookalike.training.meter.time.monotonic", lambda: clock[0])

    def slow():
        for batch in numbered(40, []):
            clock[0] += 3
            yield batch

    for stream in (slow(), ahead(slow(), Copies([]))):
        meter = Meter(images=1)
        for _ in range(30):
            with meter.timing_data():
                next(stream)
            clock[0] += 2
            meter.add(torch.zeros(()), {})
        assert meter.values()["waiting"] == pytest.approx(0.6, abs=0.01)


def test_on_a_cpu_nothing_is_copied_ahead():
    source = numbered(3, [])
    assert prefetch(source, torch.device("cpu")) is source
