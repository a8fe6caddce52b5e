#!/usr/bin/env bash
# The recipe on N processes of this machine, the same training as on one. Ends with the exit code of the first cause.
#   launch/local.sh N RECIPE [key.path=value ...] --out DIR
set -euo pipefail
[ "$#" -ge 2 ] || { sed -n '2,3p' "$0" | cut -c3- >&2; exit 2; }
[[ "$1" =~ ^[1-9][0-9]{0,3}$ ]] || { echo "launch/local.sh: '$1' is not a number of processes" >&2; exit 2; }
ranks=$1
shift
python=${PYTHON:-$(cd "$(dirname "$0")/.." && pwd)/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3) || { echo "launch/local.sh: no python3: make quickstart" >&2; exit 2; }
# What every rank would refuse is refused once, before there are ranks.
"$python" -m lookalike check --ranks "$ranks" "$@"
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores / ranks > 0 ? cores / ranks : 1))}"
exec "$python" -m lookalike.process.ranks "$ranks" -m lookalike run "$@"
