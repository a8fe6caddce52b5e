#!/usr/bin/env bash
# The recipe on N processes of this machine, the same training as on one.
#   launch/local.sh N RECIPE [key.path=value ...] --out DIR
set -euo pipefail
[ "$#" -ge 2 ] || { sed -n '2,3p' "$0" | cut -c3- >&2; exit 2; }
case "$1" in
  '' | *[!0-9]* | 0 | ?????*) echo "launch/local.sh: '$1' is not a number of processes" >&2; exit 2 ;;
esac
ranks=$1
shift
bin=$(cd "$(dirname "$0")/.." && pwd)/.venv/bin
[ -x "$bin/torchrun" ] || bin=$(dirname "$(command -v torchrun || echo /nowhere/torchrun)")
[ -x "$bin/torchrun" ] || { echo "launch/local.sh: torchrun not found: run 'make quickstart' once" >&2; exit 2; }
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores / ranks > 0 ? cores / ranks : 1))}"
exec "$bin/torchrun" --standalone --nproc-per-node "$ranks" -m lookalike run "$@"
