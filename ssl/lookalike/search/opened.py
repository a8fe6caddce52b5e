"""An index as it lies there, for queries: without what only embedding a set of images needs."""

from pathlib import Path

from lookalike import comm
from lookalike.errors import RunError, printable
from lookalike.folder import recover
from lookalike.models.card import weights_digest
from lookalike.models.embedding import open_model
from lookalike.process import fault
from lookalike.scoring.ivf import train_ivf
from lookalike.search.index import SearchIndex, open_index, read_seen, write_index


def joined(folder: str | Path, seconds: float = 1800.0) -> Path:
    """The folder, whole again where a kill came between; this process with the other ranks. Raises
    RunError.
    """
    fault.refuse_unknown()
    comm.start(seconds=seconds)
    folder = Path(folder)
    if comm.rank() == 0:
        recover(folder)
    comm.barrier()
    return folder


def opened(
    folder: str | Path, model: str | Path | None = None, *, approximate: bool = False
) -> SearchIndex:
    """The index in `folder`, with cells where it is `approximate`.

    Raises what open_index raises, RunError where another `model` than that one has made it.
    """
    folder = joined(folder)
    index = open_index(folder)
    if model is not None and weights_digest(open_model(str(model), None)) != index.digest:
        raise RunError(
            f"{printable(folder)}: made by another model than {printable(str(model))}: add "
            "--from to embed anew"
        )
    return with_cells(folder, index) if approximate and index.cells is None else index


def with_cells(folder: Path, index: SearchIndex) -> SearchIndex:
    """The same index, its cells found and kept."""
    index.cells = train_ivf(index.x_ND, index.distance)
    if comm.rank() == 0:
        write_index(folder, index, read_seen(folder, len(index)))
    comm.barrier(patient=True)
    return index
