"""Folders that appear whole or not at all, with a manifest of every file's sha256 that is checked
before use.

Write into `.tmp-NAME-PID` beside the target, flush every file to disk, write the manifest, flush,
rename, flush the parent: a kill at any moment leaves the old folder or the new one, never half of
one. Only where a folder is replaced can a kill between two renames leave the old one as
`.old-NAME-PID`: `recover` puts it back. What a process that has ended left under such a name, and
nothing of another name, goes when its folder is next written: `sweep`.
"""

from lookalike.folder.leftovers import leftovers, recover, sweep, sweep_beside
from lookalike.folder.locks import has_locks, held, lock, try_lock, unlock, wait_for_lock
from lookalike.folder.manifest import FORMAT, MANIFEST, read_manifest, verify
from lookalike.folder.regular import at_home, read_regular, without_waiting
from lookalike.folder.shared import await_visible, look_again, patiently
from lookalike.folder.whole import (
    atomic_write,
    nearest,
    refuse_strangers,
    refuse_unwritable,
    write_file,
    write_folder,
)

__all__ = [
    "FORMAT",
    "MANIFEST",
    "at_home",
    "atomic_write",
    "await_visible",
    "has_locks",
    "held",
    "leftovers",
    "lock",
    "look_again",
    "nearest",
    "patiently",
    "read_manifest",
    "read_regular",
]
__all__ += [
    "recover",
    "refuse_strangers",
    "refuse_unwritable",
    "sweep",
    "sweep_beside",
    "try_lock",
    "unlock",
    "verify",
    "wait_for_lock",
]
__all__ += ["without_waiting", "write_file", "write_folder"]
