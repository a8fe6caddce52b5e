#!/usr/bin/env bash
# The recipe on the machines of a hostfile, by DeepSpeed's launcher over pdsh and ssh.
#   launch/hostfile.sh HOSTFILE RECIPE [key.path=value ...] --out DIR
# HOSTFILE: a line `name slots=N` a machine, named as all of them know it. All have the same folders at the same paths.
# More options for ssh: PDSH_SSH_ARGS_APPEND. Try `lookalike doctor --hostfile HOSTFILE` first.
set -euo pipefail
if [ "${1-}" = --packed ]; then # on a machine of the hostfile, once a rank
  mapfile -d '' -t words < <(base64 -d <<<"$2")
  export LOOKALIKE_PARENT=$PPID # without its launcher a rank stops
  exec "${words[@]}"
fi
[ "$#" -ge 2 ] || { sed -n '2,5p' "$0" | cut -c3- >&2; exit 2; }
refuse() { echo "launch/hostfile.sh: $1" >&2; exit 2; }
hostfile=$1
shift
home=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$(cd "$home/.." && pwd)/.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3) || refuse "no python3: run 'make quickstart' once"
# DeepSpeed hands these to a shell on every machine as they are.
for path in "$home" "$python" "$PWD" "${PYTHONPATH:-/}"; do
  [[ "$path" =~ ^[A-Za-z0-9_.,:/+@-]+$ ]] || refuse "'$path' would not survive ssh: work in a folder of plain letters"
done
[[ "${MASTER_PORT:-29500}" =~ ^[1-9][0-9]{0,4}$ ]] || refuse "MASTER_PORT='$MASTER_PORT' is no port"
command -v pdsh >/dev/null || refuse "pdsh not found: install it, or use launch/torchrun.sh on every machine"
# A hostfile that passes holds names and numbers only; the first name is where the ranks meet.
"$python" -m lookalike check --hostfile "$hostfile" "$@"
first=$(awk '$1 !~ /^(#|$)/ {print $1; exit}' "$hostfile")
keep=("OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}")
for name in ${!LOOKALIKE_*}; do [ "$name" = LOOKALIKE_PARENT ] || keep+=("$name=${!name}"); done
packed=$(printf '%s\0' env "${keep[@]}" "$python" -m lookalike run "$@" | base64 -w0)
# Without the last two a machine that loses its power is waited for without end.
options="-o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3"
export PDSH_SSH_ARGS_APPEND="${PDSH_SSH_ARGS_APPEND:-} $options"
# --force_multi: also one machine is the one that the hostfile names.
exec "$python" -m deepspeed.launcher.runner --hostfile "$hostfile" --force_multi --no_ssh_check --master_addr "$first" \
  --master_port "${MASTER_PORT:-29500}" --no_python --no_local_rank "$home/hostfile.sh" --packed "$packed"
