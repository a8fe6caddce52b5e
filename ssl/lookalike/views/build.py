"""Compiles the kernel that makes views on a CPU beside its source, as installing does where there
is a C compiler.

    python -m lookalike.views.build
"""

import sys

from lookalike.views.compiling import SOURCE, build


def main() -> int:
    """Says where it is, or why there is none."""
    try:
        print(f"views: by the native kernel, {build(SOURCE.parent)}")
    except OSError as error:
        print(f"views: by torch's form, without the native kernel: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
