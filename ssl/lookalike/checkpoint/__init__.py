"""A run folder and its checkpoints: complete or absent, checked before use, and the truth about
where a run stands.

`checkpoints/step_00000120/` means that 120 steps are done. It appears only by rename, with the
sha256 of every file in its manifest; `latest.json` is a hint for people, the truth is the newest
folder that verifies.
"""

from lookalike.checkpoint.compare import (
    CHANGED,
    TIMES,
    TOUCHED,
    differences,
    touched,
    written,
)
from lookalike.checkpoint.run import (
    changes,
    earlier_recipe,
    hold_run,
    keep_run,
    leave_recipe,
    meet,
    open_run,
    read_or_set_aside,
    refuse_other,
    visit_run,
    write_recipe,
)
from lookalike.checkpoint.saved import Checkpoint, Checkpoints, Saver, newest_manifest

__all__ = [
    "CHANGED",
    "TIMES",
    "TOUCHED",
    "Checkpoint",
    "Checkpoints",
    "Saver",
    "changes",
    "differences",
    "earlier_recipe",
    "hold_run",
    "keep_run",
    "leave_recipe",
    "meet",
    "newest_manifest",
]
__all__ += [
    "open_run",
    "read_or_set_aside",
    "refuse_other",
    "touched",
    "visit_run",
    "write_recipe",
    "written",
]
