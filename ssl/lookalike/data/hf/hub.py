"""Repositories of the Hub: what of them lies in the local cache, and getting them there.

Only `fetch` asks the network, and only `lookalike run` calls it.
"""

import os
import re
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lookalike.data import cache
from lookalike.data.hf.homes import datasets_home, hub_home
from lookalike.data.hf.layout import SUFFIXES
from lookalike.errors import DataError, printable
from lookalike.folder import at_home, read_regular
from lookalike.log import say

CONVERTED = "refs/convert/parquet"
"""The branch in which the Hub keeps every data set as Parquet, if it could convert it."""

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PATIENCE = 3.0


@dataclass(frozen=True)
class Repository:
    """`user/name` with a revision and configuration; or a path of this machine."""

    local: str
    revision: str | None = None
    config: str | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it is the name of a repository, and nothing of this machine."""
        path = at_home(self.local, DataError)
        return bool(_NAME.fullmatch(self.local)) and "/" in self.local and not path.exists()


def cached(repository: Repository) -> Path:
    """The folder in the local cache that holds it; nothing is asked of the network.

    Raises DataError where there is none.
    """
    try:
        found = next((home for home in _places(repository) if _has_data(home)), None)
    except OSError as error:
        raise DataError(f"data.path: no home to look in ({error.strerror}): set HF_HOME") from error
    if found is None:
        name = printable(repository.local)
        raise DataError(
            f"{name}: no such folder, and as a repository not in the local cache "
            f"({printable(hub_home())}); `lookalike run` fetches it, as does hf download "
            f"--repo-type dataset {name}"
        )
    return found


def _has_data(home: Path) -> bool:
    return home.is_dir() and any(file for suffix in SUFFIXES for file in home.rglob(f"*{suffix}"))


def _places(repository: Repository) -> Iterator[Path]:
    """Where it may lie: as it is on the Hub, as Parquet by the Hub, as `datasets` made it."""
    if repository.revision and not _REVISION.fullmatch(repository.revision):
        raise DataError("data.revision: no branch, tag or commit: change it")
    home = hub_home() / f"datasets--{repository.local.replace('/', '--')}"
    for revision in [repository.revision] if repository.revision else ["main", CONVERTED]:
        if commit := _commit(home, revision):
            yield home / "snapshots" / commit
    yield from _made(repository)


def _commit(home: Path, revision: str) -> str:
    if _COMMIT.fullmatch(revision):
        return revision
    try:
        text = read_regular(home / "refs" / revision, 1024).decode(errors="replace").strip()
    except (OSError, ValueError):
        return ""
    return text if _COMMIT.fullmatch(text) else ""


def _made(repository: Repository) -> list[Path]:
    """What `datasets` made, the latest first: user___name/config/version/commit."""
    user, _, name = repository.local.partition("/")
    snake = re.sub(r"([a-z\d])([A-Z])", r"\1_\2", re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name))
    home = datasets_home() / f"{user}___{snake.lower()}"
    found = [
        path
        for path in home.glob("*/*/*")
        if path.is_dir()
        and repository.config in (None, path.parts[-3])
        and (repository.revision is None or path.name.startswith(repository.revision))
    ]
    configs = sorted({path.parts[-3] for path in found})
    if len(configs) > 1:
        known = ", ".join(printable(config)[:40] for config in configs[:8])
        what = f"several configurations are cached, {known}"
        raise DataError(f"{printable(repository.local)}: {what}: say which with config")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def fetch(repository: Repository) -> None:
    """Gets what is not in the local cache; one process of a machine, the others wait.

    Raises DataError, within seconds where there is no network.
    """
    with cache.locked(f"hf\0{repository.local}"):
        try:
            cached(repository)
        except DataError as refusal:
            if "not in the local cache" not in str(refusal):
                raise
            _fetch(repository)


def _fetch(repository: Repository) -> None:
    # Late: they take a second, and only who fetches needs them.
    import huggingface_hub
    from huggingface_hub import constants

    name, revision = printable(repository.local), repository.revision

    if constants.is_offline_mode() or _is_set("HF_DATASETS_OFFLINE"):
        what = f"not in the local cache ({printable(hub_home())}), and HF_HUB_OFFLINE is set"
        raise DataError(f"{name}: {what}: unset it, or fetch it elsewhere")
    if not _answers(constants.ENDPOINT):
        what = f"not in the local cache, and {printable(constants.ENDPOINT)} does not answer"
        raise DataError(f"{name}: {what}: fetch it where there is a network")
    try:
        api = huggingface_hub.HfApi(constants.ENDPOINT)
        listed = api.list_repo_files(repository.local, repo_type="dataset", revision=revision)
        if any(file.endswith(".parquet") for file in listed):
            say(f"fetching {name} from the Hub into {printable(hub_home())}")
            huggingface_hub.snapshot_download(
                repository.local,
                repo_type="dataset",
                revision=revision,
                cache_dir=hub_home(),
                endpoint=constants.ENDPOINT,
                allow_patterns=["*.parquet", "**/*.parquet"],
            )
        else:
            _make(repository, name)
    except DataError:
        raise
    except Exception as error:  # of many libraries
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            f"{name}: cannot be fetched ({printable(reason)}): check the name, the revision and "
            "your access"
        ) from error


def _make(repository: Repository, name: str) -> None:
    """Has `datasets`, which runs no scripts, make Arrow files of it in its own cache."""
    try:
        import datasets
    except ImportError as error:
        what = f"holds no Parquet, so {name} needs datasets"
        raise DataError(f"{name}: {what}: pip install 'lookalike[hf]'") from error
    say(f"fetching {name} from the Hub, as Arrow into {printable(datasets_home())}")
    datasets.load_dataset(repository.local, repository.config, revision=repository.revision)


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").upper() in ("1", "ON", "YES", "TRUE")


def _answers(endpoint: str) -> bool:
    """Whether the server answers anything within some seconds. Its name may take long to look up:
    a thread of its own asks.
    """
    found: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(endpoint, method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=_PATIENCE):
                found.append(True)
        except urllib.error.HTTPError:
            found.append(True)
        except (OSError, ValueError):
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_PATIENCE + 1)
    return bool(found)
