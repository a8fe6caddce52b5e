"""torch's own launcher, ending with the code of the first cause instead of a traceback; for
launch/torchrun.sh.
"""

import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError

from lookalike.errors import LOST


def main() -> int:
    """Runs torchrun with this command line; the exit code of the first rank that was not merely
    left alone.
    """
    try:
        run.main(sys.argv[1:])
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        code = next((code for code in codes if code not in (LOST, -15)), codes[0])
        return 128 - code if code < 0 else code
    except SignalException as error:
        return 128 + error.sigval
    except (RendezvousError, OSError) as error:
        place = sys.argv[sys.argv.index("--rdzv-endpoint") + 1]
        reason = " ".join(str(error.__cause__ or error).split())[:160]
        said = f"the machines did not meet at {place} ({reason}): is its port free there, and open?"
        print(f"launch/torchrun.sh: {said}", file=sys.stderr)
        return LOST
    return 0


if __name__ == "__main__":
    sys.exit(main())
