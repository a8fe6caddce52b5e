"""Remote shards: the bytes of local ones through failures, bounds and races; nothing secret in any
message.
"""

import os
import pickle
import socket
import time
import zlib
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

import children
from lookalike.data import Folder, Shards, cache, remote
from lookalike.data.loader import batches
from lookalike.data.order import order_of
from lookalike.data.pack import Packing, pack
from lookalike.errors import DataError

KEY = "testing-id:testing-secret"


class Flaky(MemoryFileSystem):
    """Fails two of three times whatever it is asked for, with a secret in its words."""

    protocol = "flaky"
    store: dict = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    calls = 0
    often = 3

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("flaky://").strip("/")

    def _fail(self) -> None:
        type(self).calls += 1
        if self.calls % self.often:
            raise OSError("GET https://id:hidden@host/x?X-Amz-Signature=hidden timed out")

    def info(self, path, **options):
        self._fail()
        return super().info(path, **options)

    def cat_file(self, path, start=None, end=None, **options):
        self._fail()
        return super().cat_file(path, start, end, **options)

    def _open(self, path, mode="rb", **options):
        if "r" in mode:
            self._fail()
        return super()._open(path, mode, **options)


@pytest.fixture
def flaky(monkeypatch, tmp_path):
    """The store as a URL prefix, and the pauses that were made."""
    fsspec.register_implementation("flaky", Flaky, clobber=True)
    monkeypatch.setattr(remote, "STORES", remote.STORES | {"flaky"})
    monkeypatch.setattr(Flaky, "store", {})
    monkeypatch.setattr(Flaky, "calls", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


@pytest.fixture(scope="module")
def packed(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("photos")
    for i in range(40):
        (home / f"{i % 2}").mkdir(exist_ok=True)
        Image.effect_noise((20, 20), 50 + i).convert("RGB").save(home / f"{i % 2}/{i}.png")
    target = tmp_path_factory.mktemp("packed") / "s"
    pack(Folder(str(home)), target, Packing(shard_samples=8), workers=0)
    return target


def upload(folder: Path, names: str = "*") -> None:
    fs = Flaky()
    for path in folder.glob(names):
        fs.pipe_file(f"/b/{path.name}", path.read_bytes())


def same(far, near) -> bool:
    labels = far.labels.tolist() == near.labels.tolist()
    return labels and [far.contents(i) for i in range(len(far))] == [
        near.contents(i) for i in range(len(near))
    ]


def test_a_store_that_fails_two_of_three_times_gives_every_byte(flaky, packed):
    upload(packed)
    far, near = (Shards(path, canvas=8).split("train") for path in ("flaky://b", str(packed)))
    assert same(far, near)
    assert (far.classes, far.fingerprint) == (near.classes, near.fingerprint)
    assert set(flaky) == {1.0, 4.0}
    assert flaky.count(1.0) == flaky.count(4.0) == Flaky.calls // 3
    assert far.windows is not None
    asked = Flaky.calls
    assert same(pickle.loads(pickle.dumps(far)), near)
    assert Flaky.calls == asked  # all of it is kept here


def test_without_an_index_the_shards_are_read_here(flaky, packed):
    upload(packed, "*.tar")
    count = len(list(packed.glob("train-*.tar")))
    far = Shards(
        f"flaky://b/train-{{000000..{count - 1:06d}}}.tar", test="flaky://b/test-000000.tar"
    ).split("train")
    assert same(far, Shards(str(packed)).split("train"))


def test_a_store_that_always_fails_ends_after_1_4_16_seconds_naming_the_shard_and_no_secret(
    flaky, packed, monkeypatch
):
    upload(packed)
    far = Shards("flaky://b").split("train")
    flaky.clear()
    monkeypatch.setattr(Flaky, "often", 10**9)
    with pytest.raises(
        DataError, match=r"flaky://b/train-000000\.tar: failed 4 times, last with OSError"
    ) as caught:
        far.contents(0)
    assert flaky == [1.0, 4.0, 16.0]
    assert "hidden" not in str(caught.value)
    order = order_of(far, 4, 1, 0)
    stream = batches(far, order, first_step=0, last_step=1, rank=0, world=1, workers=0, pin=False)
    with pytest.raises(DataError, match="failed 4 times"):
        next(stream)


def test_what_came_is_held_against_what_was_packed(flaky, packed, monkeypatch):
    upload(packed)
    monkeypatch.setattr(Flaky, "often", 1)
    path = packed / "train-000000.tar"
    data = bytearray(path.read_bytes())
    files = remote.Files(1)
    wanted = {"size": len(data), "crc": zlib.crc32(data)}
    for damaged, reason in (
        (data[:-1], "bytes came instead of"),
        (b"x" + data[1:], "another crc32 than was packed"),
    ):
        Flaky().pipe_file("/b/train-000000.tar", bytes(damaged))
        with pytest.raises(DataError, match=reason):
            files.path("flaky://b/train-000000.tar", **wanted)
    assert list((cache.home() / "shards").iterdir()) == []
    Flaky().pipe_file("/b/train-000000.tar", bytes(data))
    assert Path(files.path("flaky://b/train-000000.tar", **wanted)).read_bytes() == data


def test_what_is_not_there_is_not_asked_for_again(flaky, monkeypatch):
    monkeypatch.setattr(Flaky, "often", 1)
    with pytest.raises(
        DataError, match=r"flaky://b/none\.tar: no such object: check the path and the credentials"
    ):
        Shards("flaky://b/none.tar").split("train")
    assert flaky == []


def test_the_least_recently_used_shards_make_room(flaky, packed, monkeypatch):
    upload(packed)
    monkeypatch.setattr(Flaky, "often", 1)
    shards = sorted(packed.glob("train-*.tar"))[:3]
    sizes = [path.stat().st_size for path in shards]
    files = remote.Files((sizes[0] + sizes[1] + sizes[2] - 1) / 1e9)
    first, second = (Path(files.path(f"flaky://b/{path.name}")) for path in shards[:2])
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    files.path(f"flaky://b/{shards[0].name}")  # used again: the second is the oldest now
    files.path(f"flaky://b/{shards[2].name}")
    assert first.exists()
    assert not second.exists()
    with pytest.raises(DataError, match=r"data\.cache_gb: .* raise it"):
        remote.Files((sizes[0] - 1) / 1e9).path(f"flaky://b/{shards[0].name}", size=sizes[0], crc=0)


def test_images_come_back_after_their_shard_made_room(flaky, packed, monkeypatch):
    upload(packed)
    monkeypatch.setattr(Flaky, "often", 1)
    monkeypatch.setattr("lookalike.data.images.shards._OPEN", 1)
    largest = max(path.stat().st_size for path in packed.glob("*.tar"))
    far = Shards("flaky://b", cache_gb=largest / 1e9).split("train")
    near = Shards(str(packed)).split("train")
    for i in (0, len(far) - 1, 0, len(far) - 1):
        assert far.contents(i) == near.contents(i)
        assert sum(path.stat().st_size for path in (cache.home() / "shards").iterdir()) <= largest


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd.tar",
        "reference://x.tar",
        "simplecache::s3://b/x.tar",
        "zip://x::s3://b/x.tar",
        "ftp://h/x.tar",
    ],
)
def test_other_stores_are_refused(url):
    with pytest.raises(DataError, match="unknown store, use one of abfs, az, gcs"):
        Shards(url).split("train")


def test_credentials_in_a_recipe_are_refused_and_not_shown():
    with pytest.raises(DataError, match="a recipe is no place for credentials") as caught:
        Shards(f"s3://{KEY}@bucket/x.tar").split("train")
    assert "testing" not in str(caught.value)
    assert remote.redacted("get https://u:p@h/a.tar?sig=1#f now") == "get https://…@h/a.tar?… now"


# ---- S3, by moto's server on this machine


@pytest.fixture(scope="module")
def bucket(packed):
    from moto.server import ThreadedMotoServer

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(
            ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), KEY.split(":"), strict=True
        ):
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fs = fsspec.filesystem("s3")
        fs.mkdir("bucket")
        fs.put(str(packed), "bucket/s", recursive=True)
        yield "s3://bucket/s"
        fs.clear_instance_cache()
    server.stop()


def test_s3_gives_the_same_batches_with_any_workers(bucket, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    far, near = (
        Shards(path, canvas=8, shuffle="window", window=12).split("train")
        for path in (bucket, str(packed))
    )
    order = order_of(far, 8, 1, 0)
    how = {"first_step": 0, "last_step": order.steps_per_epoch, "rank": 0, "world": 1, "pin": False}
    wanted = list(batches(near, order_of(near, 8, 1, 0), workers=0, **how))
    for workers in (2, 0):
        found = [
            b._replace(pixels=b.pixels.clone()) for b in batches(far, order, workers=workers, **how)
        ]
        for a, b in zip(wanted, found, strict=True):
            assert torch.equal(a.ids_B, b.ids_B)
            assert torch.equal(a.pixels, b.pixels)
            assert b.bad == []


def _fetched(url: str, size: int) -> bytes:
    return Path(remote.Files(1).path(url, size, None)).read_bytes()


def test_several_processes_fetch_a_shard_once(bucket, packed, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard = packed / "train-000001.tar"
    with children.context().Pool(3, children.take_environment, (dict(os.environ),)) as pool:
        found = pool.starmap(_fetched, [(f"{bucket}/{shard.name}", shard.stat().st_size)] * 6)
        pool.close()
        pool.join()
    assert set(found) == {shard.read_bytes()}
    assert len(list((cache.home() / "shards").iterdir())) == 1


def test_a_missing_object_and_a_missing_bucket_of_s3(bucket):
    for url in (f"{bucket}/none.tar", "s3://nobucket/none.tar"):
        with pytest.raises(DataError, match=r"none\.tar: no such object") as caught:
            Shards(url).split("train")
        assert "testing" not in str(caught.value)
