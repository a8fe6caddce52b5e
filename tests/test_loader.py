"""The data order: a pure function of (seed, epoch, position) for any ranks, workers and cuts; bad pictures replaced."""

from collections import Counter

import pytest
import torch
from PIL import Image

from lookalike.data.loader import batches, in_order, read_many
from lookalike.data.order import Order, share
from lookalike.data.pictures import ArrayPictures, FilePictures
from lookalike.data.sources import Folder
from lookalike.errors import DataError

WORLDS = (1, 2, 3, 4, 6, 8, 12)


def array(n: int) -> ArrayPictures:
    return ArrayPictures(torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).expand(n, 1, 2, 2).clone())


def global_batches(order: Order, world: int, first: int, last: int) -> list[list[int]]:
    return [
        torch.cat([share(micro, rank, world) for rank in range(world)]).tolist()
        for _, micro in order.micro_batches(first, last)
    ]


@pytest.mark.parametrize("accumulate", [1, 2, 5])
@pytest.mark.parametrize("world", WORLDS)
def test_every_world_sees_the_same_global_batches_from_any_cut(world, accumulate):
    order = Order(103, 20, accumulate, seed=4)
    wanted = global_batches(order, 1, 0, 12)
    for cut in (0, 1, 4, 5, 7, 11):
        assert global_batches(order, world, cut, 12) == wanted[cut * accumulate :]


def test_an_epoch_holds_each_sample_once_and_leaves_out_the_incomplete_batch():
    order = Order(103, 20, 1, seed=4)
    for epoch in range(3):
        ids = [i for step in range(5) for i in order.ids(epoch, step).tolist()]
        assert len(set(ids)) == len(ids) == 100
        assert global_batches(order, 1, epoch * 5, epoch * 5 + 5) == [order.ids(epoch, s).tolist() for s in range(5)]


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [tuple(Order(50, 50, 1, seed).ids(epoch, 0).tolist()) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4


def test_over_many_epochs_each_sample_is_left_out_equally_often():
    order = Order(30, 20, 1, seed=0)
    seen = Counter(i for epoch in range(600) for i in order.ids(epoch, 0).tolist())
    assert min(seen.values()) > 340  # expected 400, five standard deviations of 11.5
    assert max(seen.values()) < 460


def stream(pictures, workers: int, first: int = 0, last: int = 6) -> list:
    order = Order(len(pictures), 8, 2, seed=1)
    return list(batches(pictures, order, first_step=first, last_step=last, rank=1, world=2, workers=workers, pin=False))


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(workers):
    alone, together = stream(array(24), 0), stream(array(24), workers)
    assert [b.epoch for b in alone] == [b.epoch for b in together]
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.ids_B, b.ids_B)
        assert torch.equal(a.canvas_BCHW, b.canvas_BCHW)


def test_a_batch_holds_the_pictures_of_its_ids():
    for batch in stream(array(24), 0):
        assert torch.equal(batch.canvas_BCHW[:, 0, 0, 0].long(), batch.ids_B)


def test_fewer_pictures_than_a_batch_are_refused_with_the_remedy():
    with pytest.raises(DataError, match=r"5 pictures are fewer than one batch of 8: lower the batch"):
        Order(5, 8, 1, 0)


def folder(path, good: int, bad: dict[str, bytes]) -> FilePictures:
    path.mkdir()
    for i in range(good):
        Image.new("RGB", (20, 20), (i * 7, 50, 90)).save(path / f"good_{i:02d}.png")
    for name, content in bad.items():
        (path / name).write_bytes(content)
    return Folder(path=str(path), canvas=8, test_fraction=0).split("train")


BAD = {"a_empty.jpg": b"", "b_html.jpg": b"<html>404</html>", "z_cut.png": b"\x89PNG\r\n\x1a\n\x00\x00"}


def test_a_bad_picture_is_replaced_by_the_same_one_each_time_and_named(tmp_path):
    pictures = folder(tmp_path / "p", 12, BAD)
    ids = list(range(len(pictures)))
    canvas, bad = read_many(pictures, ids, seed=5)
    again, bad_again = read_many(pictures, ids[::-1], seed=5)
    assert torch.equal(canvas, again.flip(0))
    assert sorted(bad) == sorted(bad_again)
    assert sorted(record.path.rsplit("/", 1)[1] for record in bad) == sorted(BAD)
    for record in bad:
        assert torch.equal(canvas[record.sample], canvas[record.replacement])
    assert read_many(pictures, ids, seed=6)[1] != bad


def test_healthy_pictures_do_not_notice_bad_neighbours(tmp_path):
    mixed, clean = folder(tmp_path / "p", 12, BAD), folder(tmp_path / "q", 12, {})
    by_name = {mixed.name(i).rsplit("/", 1)[1]: row for i, row in enumerate(read_many(mixed, range(15), seed=5)[0])}
    for i, row in enumerate(read_many(clean, range(12), seed=5)[0]):
        assert torch.equal(by_name[clean.name(i).rsplit("/", 1)[1]], row)


def test_a_folder_of_only_bad_pictures_ends_with_the_first_ones_reason(tmp_path):
    pictures = folder(tmp_path / "p", 0, BAD)
    with pytest.raises(DataError, match=r"\.(jpg|png): .*is the folder sound"):
        read_many(pictures, [0], seed=0)


def test_in_order_leaves_bad_pictures_out(tmp_path):
    pictures = folder(tmp_path / "p", 12, BAD)
    for workers in (0, 2):
        found = list(in_order(pictures, 4, workers))
        ids = [i for part, _ in found for i in part]
        assert len(ids) == 12
        assert ids == sorted(ids)
        assert sum(len(canvas) for _, canvas in found) == 12
