"""Scikit-learn's handwritten digits, out of its own file: its import takes as long as half of
torch's, and brings pandas.
"""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FILE = Path("datasets", "data", "digits.csv.gz")


def digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Values from 0 to 16, (1797, 8, 8), and which digit each is, (1797,)."""
    found = importlib.util.find_spec("sklearn")
    places = found.submodule_search_locations if found else None
    path = Path(places[0], _FILE) if places else None
    if path is None or not path.is_file():
        return _asked()
    rows = np.loadtxt(path, delimiter=",")
    return rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int64)


def _asked() -> tuple[Any, Any]:
    from sklearn.datasets import load_digits

    known = load_digits()
    return known.images, known.target.astype(np.int64)
