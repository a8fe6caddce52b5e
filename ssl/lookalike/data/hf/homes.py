"""Where Hugging Face's libraries keep what they have fetched: by the same variables as they."""

import os
from pathlib import Path

from lookalike.data import cache


def hub_home() -> Path:
    """The cache of the Hub. Raises OSError for a user without a home."""
    return _home("HF_HUB_CACHE", "hub")


def datasets_home() -> Path:
    """The cache of `datasets`. Raises OSError for a user without a home."""
    return _home("HF_DATASETS_CACHE", "datasets")


def homes() -> list[Path]:
    """Both, where there are any."""
    try:
        return [hub_home(), datasets_home()]
    except OSError:
        return []


def _home(variable: str, name: str) -> Path:
    if given := os.environ.get(variable):
        return Path(os.path.expanduser(given))  # noqa: PTH111
    base = os.environ.get("HF_HOME") or str(cache.home().parent / "huggingface")
    if not os.environ.get("HF_HOME") and not os.environ.get("XDG_CACHE_HOME"):
        base = os.path.expanduser("~/.cache/huggingface")  # noqa: PTH111
    return Path(os.path.expanduser(base)) / name  # noqa: PTH111
