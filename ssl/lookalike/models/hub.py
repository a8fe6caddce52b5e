"""Files of the Hugging Face Hub: taken from its cache, downloaded only where that is asked for.

What is in the cache is taken as it is, and no network is asked. Before a download one HEAD request
must be answered within SECONDS: without a network, huggingface_hub and timm would try for minutes.
"""

import os
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import huggingface_hub
import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError

from lookalike.errors import BackboneError, printable

SECONDS = 4.0
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_REVISION = re.compile(r"[A-Za-z0-9][\w./-]{0,200}", re.ASCII)


class Repository(NamedTuple):
    """A repository of the Hub, `user/model`, and a branch, tag or commit of it; None: its main
    branch.
    """

    name: str
    revision: str | None

    def __str__(self) -> str:
        return f"hf-hub:{self.name}" + (f"@{self.revision}" if self.revision else "")


def is_hub(name: str) -> bool:
    """Whether a backbone's name is a repository's, `hf-hub:user/model` or `timm/model`."""
    return name.startswith(("hf-hub:", "timm/"))


def repository(name: str) -> Repository:
    """The repository that a backbone's name says. Raises ValueError where it is no such name."""
    found, _, revision = name.removeprefix("hf-hub:").partition("@")
    good = _NAME.fullmatch(found) and ".." not in found and "--" not in found
    if not good or ("@" in name and (".." in revision or not _REVISION.fullmatch(revision))):
        raise ValueError(
            f"{printable(name[:120])}: no repository of the Hub: write hf-hub:user/model, or "
            "hf-hub:user/model@revision"
        )
    return Repository(found, revision or None)


def cached(repo: Repository, files: Sequence[str]) -> Path | None:
    """The first of these files of a repository that is in the cache, None where none is."""
    for file in files:
        found = huggingface_hub.try_to_load_from_cache(repo.name, file, revision=repo.revision)
        if isinstance(found, str):
            return Path(found)
    return None


def fetched(repo: Repository, files: Sequence[str]) -> Path:
    """The first of these files that is in the cache, else the first that the Hub has, downloaded.

    Raises BackboneError where it is in neither, and within SECONDS where the Hub does not answer.
    """
    if (path := cached(repo, files)) is not None:
        return path
    where = f"{repo}: {files[0]}"
    if is_offline():
        raise BackboneError(
            f"{where} is not in the cache, and HF_HUB_OFFLINE forbids to ask for it: unset that, "
            f"or bring the cache of a machine that has run `hf download {repo.name}`"
        )
    revision = quote(repo.revision or "main", safe="")
    refuse_unreachable(f"{constants.ENDPOINT}/{repo.name}/resolve/{revision}/{files[0]}", where)
    for file in files:
        try:
            return Path(_download(repo, file))
        except RemoteEntryNotFoundError:
            continue
        except Exception as error:  # the Hub's client raises what its transport raises
            raise BackboneError(f"{repo}: {_refused(error)}") from error
    raise BackboneError(f"{repo}: the repository has no {' and no '.join(files)}: take another")


def _download(repo: Repository, file: str) -> str:
    return str(
        huggingface_hub.hf_hub_download(
            repo.name, file, revision=repo.revision, etag_timeout=SECONDS
        )
    )


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, now or when huggingface_hub was imported."""
    now = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return now or bool(huggingface_hub.is_offline_mode())


def _refused(error: Exception) -> str:
    """What the Hub said, in one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, HfHubHTTPError) and status in (401, 403, 404):
        return (
            f"the Hub answers {status}: there is no such repository or revision, or it asks for a "
            "token: look at the name, or set HF_TOKEN"
        )
    reason = (str(error).splitlines() or [""])[0][:200]
    return f"cannot be downloaded ({type(error).__name__}: {printable(reason)}): try again"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The first answer is enough."""

    def redirect_request(self, *_: Any) -> None:
        """Follows nowhere."""


def refuse_unreachable(url: str, where: str) -> None:
    """Raises BackboneError unless the server of `url` answers a HEAD request within SECONDS,
    whatever it answers; `where` begins the message.

    Asked in a thread of its own: a resolver that is not there takes longer than any timeout.
    """
    answers: list[str] = []
    asked = threading.Thread(target=lambda: answers.append(_answer(url)), daemon=True)
    asked.start()
    asked.join(SECONDS)
    problem = answers[0] if answers else f"no answer within {SECONDS:g} s"
    if problem:
        host = urlsplit(url).hostname
        raise BackboneError(
            f"{where} is not in the cache, and {printable(str(host))} cannot be reached "
            f"({printable(problem[:160])}): download it where there is a network and bring the "
            "cache here, or take a file by backbone.weights"
        )


def _answer(url: str) -> str:
    """Why there was no answer, empty where there was one."""
    try:
        opener = urllib.request.build_opener(_NoRedirect)
        opener.open(urllib.request.Request(url, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        # A certificate that is refused was sent by somebody; the client has its own store of them.
        return "" if "SSL" in type(reason).__name__ else str(reason) or type(reason).__name__
    return ""


def published(name: str) -> dict[str, Any]:
    """Where timm's own weights of a model lie on this machine, downloaded if they do not yet, as
    `pretrained_cfg_overlay`; {} where timm has none, or fetches them otherwise.

    Raises BackboneError as `fetched` does.
    """
    config = timm.get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url):
        return {}
    if not config.hf_hub_id:
        _refuse_far(name, config.url)
        return {}
    repo, _, revision = config.hf_hub_id.partition("@")
    path = fetched(Repository(repo, revision or None), _files(config.hf_hub_filename))
    return {"file": str(path), "custom_load": config.custom_load == "hf"}


def _files(named: str | None) -> Sequence[str]:
    """The files that timm would ask for, in its order."""
    if not named:
        return WEIGHTS
    return (
        (f"{named.removesuffix('.bin')}.safetensors", named) if named[-4:] == ".bin" else (named,)
    )


def _refuse_far(name: str, url: str) -> None:
    """Raises BackboneError where timm would download from a server that does not answer."""
    kept = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if not kept.exists():
        refuse_unreachable(url, f"backbone: {name}: {kept.name}")
