"""Machines as people have them: no home, an unknown user, no shared memory, no locks, odd output,
IPv6. Each is made of this one, in a process of its own; a run then ends as anywhere.
"""

import errno
import json
import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import children
import machine
import toy
from forked import forked
from lookalike import comm
from lookalike.data import cache, shared
from lookalike.errors import DataError, RunError
from lookalike.folder import at_home, lock, unlock
from lookalike.process import hostfile, ranks

REFUSED = forked(machine.all_of_it).value
odd = pytest.mark.skipif(bool(REFUSED), reason=f"odd machines {REFUSED}")
TESTS = Path(__file__).parents[1]
STRANGER = 54321
BRIEF = ("probe={grid: [0.1], max_iterations: 5}", "evaluate={intervals: 0, examples: 2}")
ALONE = ("probe=null", "finetune=null", "evaluate=null", "export=null")


# A test's process is a daemon, which Python lets have none.
WITH_CHILDREN = (
    "import multiprocessing; multiprocessing.current_process()._config['daemon'] = False\n"
)


def run(condition: str, *words: str, **environment: str | None) -> children.Ended:
    """The program on a machine that this code has made odd."""
    code = f"import machine\n{condition}\n{WITH_CHILDREN}{children.CLI}"
    # What the test's own process was told of ranks, it keeps.
    alone = dict.fromkeys(("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))
    return children.run(code, *words, **{**alone, **environment})


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """A folder that anybody may write into, and a temporary folder in it."""
    (tmp_path / "tmp").mkdir()
    for folder in (tmp_path, tmp_path / "tmp"):
        folder.chmod(0o777)
    return tmp_path


# ---- homes


@pytest.mark.slow
@odd
def test_a_user_whom_nobody_knows_without_a_home_has_every_stage(open_folder):
    """From the interpreter's start on, since libraries look for a home when they are imported."""
    words = [str(toy.write(open_folder / "r.yaml")), "pretrain.epochs=1", "pretrain.workers=1"]
    words += ["data.test_fraction=0.8", "pretrain.batch=48", *BRIEF]
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    path = os.pathsep.join([str(TESTS), *sys.path])
    code = f"import machine; machine.become_nobody(); {children.CLI}"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", *words, "--out", "run"],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=open_folder,
        env={**kept, "PYTHONPATH": path, "TMPDIR": str(open_folder / "tmp")},
    )
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in open_folder.iterdir()) == ["r.yaml", "run", "tmp"]
    assert not [p for p in open_folder.rglob("*") if "~" in p.name]
    assert (open_folder / "run").stat().st_uid == STRANGER
    assert (open_folder / "run" / "export" / "embedding" / "model.onnx").exists()


def homes(kind: str, folder: Path) -> dict[str, str]:
    """The environment of a stranger whose home is of this kind."""
    machine.own_mounts()
    home = folder / "home"
    home.mkdir()
    if kind == "read-only":
        os.chown(home, STRANGER, STRANGER)
        machine.read_only(home)
    return {"none": {}, "not there": {"HOME": "/nonexistent"}, "relative": {"HOME": "home"}}.get(
        kind, {"HOME": str(home)}
    )


def kept_by_a_stranger(kind: str, folder: Path) -> tuple[str, list[str], bool]:
    """Where the cache is, what was said, and whether what was kept is found again."""
    home = homes(kind, folder)
    os.environ.pop("XDG_CACHE_HOME", None)
    os.environ.pop("HOME", None)
    os.environ |= {**home, "TMPDIR": str(folder / "tmp")}
    machine.become_nobody()
    os.chdir(folder)
    with toy.heard() as said:
        cache.store("key", [b"value"])
        with cache.locked("key"):
            found = cache.load("key") == [b"value"]
    return str(cache.where()[0]), said, found


@odd
@pytest.mark.parametrize("kind", ["none", "not there", "relative", "another's", "read-only"])
def test_without_a_home_the_cache_is_in_a_temporary_folder_of_ones_own(
    open_folder, kind, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", None)
    place, said, found = forked(lambda: kept_by_a_stranger(kind, open_folder)).value
    mine = open_folder / "tmp" / f"lookalike-{STRANGER}"
    assert (place, found) == (str(mine), True)
    assert (mine.stat().st_uid, stat.S_IMODE(mine.stat().st_mode)) == (STRANGER, 0o700)
    (line,) = said
    assert f": the cache is kept in {mine}: set XDG_CACHE_HOME" in line
    assert sorted(p.name for p in open_folder.iterdir()) == ["home", "tmp"]
    assert not list((open_folder / "home").iterdir())


@odd
@pytest.mark.parametrize("trap", ["link", "open", "root's", "none"])
def test_a_temporary_folder_that_another_prepared_is_not_used(open_folder, trap, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", None)
    place = open_folder / "tmp" / f"lookalike-{STRANGER}"
    if trap == "link":
        (open_folder / "secret").mkdir()
        os.chown(open_folder / "secret", STRANGER, STRANGER)
        place.symlink_to(open_folder / "secret")
    elif trap == "none":
        (open_folder / "tmp").chmod(0o755)
        monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: [str(place.parent)])
    else:
        place.mkdir(mode=0o700)
        os.chown(place, STRANGER if trap == "open" else 0, 0)
        place.chmod(0o777)
    found, said, kept = forked(lambda: kept_by_a_stranger("none", open_folder)).value
    assert (found, kept) == ("None", False)
    (line,) = said
    assert ": no cache is kept, and what was found out is found out anew each time" in line
    assert not place.exists() or not list(place.iterdir())


@odd
def test_a_cache_on_a_full_disk_keeps_nothing_and_ends_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def work() -> tuple[object, object, list[str]]:
        machine.own_mounts()
        machine.tmpfs(tmp_path, "size=256k")
        cache.store("small", [b"value"])
        cache.store("large", [bytes(10**6)])
        names = [p.name for p in cache.home().iterdir()]
        return cache.load("small"), cache.load("large"), names

    small, large, names = forked(work).value
    assert (small, large) == ([b"value"], None)
    assert len(names) == 1


@pytest.mark.parametrize("home", [None, "", "relative"])
def test_a_tilde_without_a_home_is_refused_in_one_line(tmp_path, monkeypatch, home):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])
    monkeypatch.setenv("HOME", home or "")
    if home is None:
        monkeypatch.delenv("HOME")
    for path in ("~", "~/photos"):
        with pytest.raises(DataError, match=rf"^{path}: there is no home folder \(HOME\): write"):
            at_home(path, DataError)
    assert at_home("~nobody-of-this-name/x") == Path("~nobody-of-this-name/x")
    assert at_home("a/~/x") == Path("a/~/x")


def test_a_tilde_is_the_home_in_recipes_and_in_out(tmp_path):
    toy.folder_of_images(tmp_path / "photos", 8)
    recipe, data = toy.write(tmp_path / "r.yaml"), "{name: folder, path: ~/photos, channels: 1}"
    words = ["pretrain", str(recipe), f"data={data}", "pretrain.batch=8", "pretrain.epochs=1"]
    code = f"import os; os.chdir({str(tmp_path)!r})"
    done = run(code, *words, "--out", "~/run", HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "backbone").is_dir()
    assert not (tmp_path / "~").exists()
    code += "; import pwd; pwd.getpwuid = lambda uid: {}[uid]"
    for more in (["--out", "~/run"], ["--out", "run2"]):
        done = run(code, *words, *more, HOME=None, XDG_CACHE_HOME=str(tmp_path / "cache"))
        assert done.returncode == 2
        assert re.fullmatch(r"lookalike: ~/\w+: there is no home folder .*\n", done.stderr)
    assert not (tmp_path / "~").exists()


# ---- shared memory and locks


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> list[str]:
    """Words of a training whose loader processes share 5 MB."""
    folder = tmp_path_factory.mktemp("training")
    toy.folder_of_images(folder / "photos", 40)
    data = f"data={{name: folder, path: '{folder}/photos', canvas: 128, channels: 1}}"
    words = ["pretrain.batch=20", "pretrain.epochs=1", "pretrain.workers=6"]
    return ["pretrain", str(toy.write(folder / "r.yaml")), data, *words]


@pytest.fixture(scope="module")
def usual(training, tmp_path_factory) -> list[tuple[int, float]]:
    """Its curve on a machine that lacks nothing."""
    out = tmp_path_factory.mktemp("usual") / "run"
    done = run("", *training, "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return toy.curve(out)


@odd
def test_little_shared_memory_is_enough_for_any_batch(training, usual, tmp_path):
    """Of 256 kB: what eight ranks of a container with 64 MB have for each."""
    condition = "machine.own_mounts(); machine.tmpfs('/dev/shm', 'size=256k')"
    done = run(condition, *training, "--out", str(tmp_path / "run"))
    assert (done.returncode, done.stderr) == (0, "")
    assert toy.curve(tmp_path / "run") == usual


@odd
def test_without_shared_memory_a_run_reads_its_images_itself_and_says_so(training, usual, tmp_path):
    (tmp_path / "dev").mkdir()
    condition = f"from pathlib import Path; dev = Path({str(tmp_path / 'dev')!r})"
    condition += "; machine.own_mounts(); machine.without_shm(dev)"
    done = run(condition, *training, "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        "lookalike: warning: data: no loader processes can be started (/dev/shm: No such file or "
        "directory): this process reads the images itself: mount a /dev/shm\n"
    )
    assert toy.curve(tmp_path / "run") == usual


def test_more_memory_than_there_is_is_refused_in_one_line():
    assert shared.available() > 10**6
    with pytest.raises(RunError, match=r"share \d+ MB, but \d+ MB of memory are free: lower the"):
        shared.shared_bytes(shared.available() + 1)


@odd
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES, errno.ENOSYS])
def test_a_file_system_without_locks_is_no_other_run(training, usual, tmp_path, number):
    def taken() -> tuple[list[str], bool]:
        machine.without_locks(number)
        with toy.heard() as said:
            lock(tmp_path)
            with cache.locked("key"):  # which would wait for ever
                pass
        return said, True

    said, through = forked(taken, limit=20).value
    assert through
    assert re.fullmatch(
        rf"{tmp_path}: no lock can be had here \(.*\): start no second run in it, which nothing "
        "would notice",
        said[0],
    )
    if number == errno.EACCES:
        out = tmp_path / "run"
        done = run(f"machine.without_locks({number})", *training, "--out", str(out))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("no lock can be had here") == done.stderr.count("\n") == 1
        assert toy.curve(out) == usual


def test_a_lock_that_another_holds_is_still_another_run(tmp_path):
    lock(tmp_path)

    def second() -> str:
        held = os.open(tmp_path / ".lock", os.O_RDWR)
        os.close(held)
        from lookalike.folder import locks

        locks._LOCKS.clear()
        try:
            lock(tmp_path)
        except RunError as error:
            return str(error)
        return "taken"

    assert "another run writes here" in forked(second).value
    unlock(tmp_path)


# ---- IPv6


def six() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as tried:
            tried.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_six = pytest.mark.skipif(not six(), reason="no IPv6 loopback here")


def free_port() -> str:
    with socket.socket(socket.AF_INET6) as tried:
        tried.bind(("::1", 0))
        return str(tried.getsockname()[1])


def joined(address: str, rank: int, port: str, answer: str) -> None:
    """A rank that meets another at this address, and writes what both say."""
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {**ranks, "MASTER_ADDR": address, "MASTER_PORT": port}
    comm.start(seconds=60)
    Path(answer).write_text(json.dumps(comm.gather_objects(rank)))
    comm.stop()


@needs_six
@pytest.mark.parametrize("address", ["::1", "[::1]"])
def test_ranks_meet_at_an_ipv6_address(tmp_path, address):
    port = free_port()
    given = [(address, rank, port, str(tmp_path / str(rank))) for rank in range(2)]
    started = [children.child(joined, *words) for words in given]
    for process in started:
        process.join(120)
        assert process.exitcode == 0
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["[0, 1]", "[0, 1]"]


@needs_six
def test_a_taken_port_of_an_ipv6_address_is_refused_at_once(monkeypatch):
    with socket.socket(socket.AF_INET6) as other:
        other.bind(("::1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        place = {"MASTER_ADDR": "[::1]", "MASTER_PORT": port}
        for name, value in {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", **place}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RunError, match=rf"MASTER_PORT={port} cannot be had on ::1 \(.*in use"):
            comm.start()


@needs_six
def test_the_launcher_of_one_machine_does_without_ipv4(monkeypatch):
    free = ranks._free

    def no_four(address: str, family: socket.AddressFamily) -> tuple[str, str]:
        if family == socket.AF_INET:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return free(address, family)

    assert ranks._meeting_place()[0] == "127.0.0.1"
    monkeypatch.setattr(ranks, "_free", no_four)
    address, port = ranks._meeting_place()
    assert address == "::1"
    assert 0 < int(port) < 65536


@pytest.mark.parametrize("address", ["fe80::1", "[fe80::1]", "::1", "2001:db8::7", "fe80::1%eth0"])
def test_an_ipv6_address_in_a_hostfile_is_refused_with_the_way_round(tmp_path, address):
    (tmp_path / "hosts").write_text(f"node1 slots=2\n{address} slots=2\n")
    with pytest.raises(RunError, match=r"hosts:2: .*pdsh takes the colons .*: give the machine a"):
        hostfile.read_hosts(tmp_path / "hosts")
