"""What a user did or met that stops the work: one line that names the place and the remedy, exit
code 2.

Codes from 128 on mean that the same command may go on: 128 + signal, LOST, HUNG.
Text from outside (paths, keys, names in cards) is made `printable` before it stands in a message.
"""

import os

# Another rank has ended or does not answer.
LOST = 200
# This rank was ended by its own watchdog.
HUNG = 201


class Error(Exception):
    """A user's error. The message names the place and the remedy; the shell prints it without a
    traceback.
    """


class RecipeError(Error):
    """One line for every problem found in a recipe: `file:line:column: key: what, remedy`."""


class DataError(Error):
    """A data source, a folder of images or too many bad images."""


class BackboneError(Error):
    """A backbone that cannot be made, or a backbone folder that cannot be trusted."""


class RunError(Error):
    """A run folder, a checkpoint or a training run that cannot go on."""


class NewerError(RunError):
    """A folder that a later version of lookalike wrote."""


class LostError(RunError):
    """Another rank has ended or does not answer: exit code LOST, the same command goes on."""


def printable(text: str | os.PathLike[str]) -> str:
    """Text from outside, fit for one line of output: line breaks, control characters, direction
    marks and stray bytes are escaped, as `\\n`, `\\x1b`, `\\u202e` and `\\udcff`.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in os.fspath(text))
