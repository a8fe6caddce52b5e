#!/usr/bin/env bash
# The recipe on several machines, started on each of them; all see the same folders. Ranks that are lost start again.
#   launch/torchrun.sh NODES FIRST[:PORT] RANKS RECIPE [key.path=value ...] --out DIR
# NODES: 2, or 1:2 to go on with fewer; FIRST: the first machine, as all of them know it; RANKS: processes on this one.
# LOOKALIKE_RESTARTS: how often (3). LOOKALIKE_TIMEOUT: seconds after which silence means lost (the recipe's timeout).
set -euo pipefail
[ "$#" -ge 4 ] || { sed -n '2,5p' "$0" | cut -c3- >&2; exit 2; }
refuse() { echo "launch/torchrun.sh: $1" >&2; exit 2; }
[[ "$1" =~ ^[1-9][0-9]{0,4}(:[1-9][0-9]{0,4})?$ ]] || refuse "'$1' is not a number of machines: 2, or 1:2"
# Of an IPv6 address with a port the address stands in brackets.
if [[ "$2" =~ ^([A-Za-z0-9][A-Za-z0-9._-]{0,252})(:([1-9][0-9]{0,4}))?$ ]] ||
  [[ "$2" =~ ^\[([0-9A-Fa-f]*:[0-9A-Fa-f:.]+)\](:([1-9][0-9]{0,4}))?$ ]] ||
  [[ "$2" =~ ^([0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*)()()$ ]]; then
  first=${BASH_REMATCH[1]} port=${BASH_REMATCH[3]:-29400}
else
  refuse "'$2' is no HOST or HOST:PORT, or [IPV6]:PORT"
fi
[[ "$3" =~ ^[1-9][0-9]{0,3}$ ]] || refuse "'$3' is not a number of processes"
[[ "${LOOKALIKE_RESTARTS:-3}" =~ ^[0-9]{1,4}$ ]] || refuse "LOOKALIKE_RESTARTS='$LOOKALIKE_RESTARTS' is no number"
nodes=$1 ranks=$3
[ "$port" -le 65535 ] || refuse "'$2': a port is at most 65535"
shift 3
home=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-${home%/*}/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3) || refuse "no python3: run 'make quickstart' once"
case "$first" in *:*) endpoint="[$first]:$port" ;; *) endpoint=$first:$port ;; esac
addresses=$(getent ahosts "$first" | cut -d' ' -f1 | sort -u) ||
  refuse "'$first' has no address here: mend DNS or /etc/hosts"
# torch looks for its own name among them, which Debian sets to 127.0.1.1: then no machine or every one is the first.
here=0
for address in $addresses; do
  case " $(hostname -I) 127.0.0.1 127.0.1.1 ::1 " in *" $address "*) here=1 ;; esac
done
"$python" -m lookalike check --ranks "$ranks" "$@"
cores=$(getconf _NPROCESSORS_ONLN)
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$((cores / ranks > 0 ? cores / ranks : 1))}"
# With one store for all attempts a restart meets the keys of the one before.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
exec "$python" "$home/elastic.py" --nnodes "$nodes" --nproc-per-node "$ranks" \
  --max-restarts "${LOOKALIKE_RESTARTS:-3}" --rdzv-id lookalike --rdzv-backend c10d --rdzv-endpoint "$endpoint" \
  --rdzv-conf "is_host=$here" --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 -m lookalike run "$@"
