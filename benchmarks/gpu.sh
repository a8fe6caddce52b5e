#!/usr/bin/env bash
# What a GPU says of lookalike: correctness first, then ratios; one Markdown table into OUT, progress on stderr.
#   benchmarks/gpu.sh [OUT.md] [--dry] [--budget SECONDS] [--only SECTION,SECTION]
# Nine minutes at most on one GPU; installs nothing; `python`, or what PYTHON names, has the package's environment.
# --dry: every path but CUDA, on a CPU, tiny. Ends with 1 where a check failed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=gpu.md
case "${1:-}" in
  -h | --help) sed -n '2,5p' "$0" | cut -c3-; exit 0 ;;
  "" | -*) ;;
  *) out=$1; shift ;;
esac
python=${PYTHON:-$here/../.venv/bin/python}
[ -x "$python" ] || python=$(command -v python || command -v python3) ||
  { echo "benchmarks/gpu.sh: no python: activate the environment of the package" >&2; exit 2; }
export PYTHONPATH="$here/../ssl${PYTHONPATH:+:$PYTHONPATH}"
# The same sums twice, where a library asks; the driver is asked for GPUs without being started.
export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTORCH_NVML_BASED_CUDA_CHECK=1
# The table moves to its place whole.
trap 'rm -f "$out.new"' EXIT
code=0
"$python" "$here/gpu.py" "$@" >"$out.new" || code=$?
[ "$code" -le 1 ] || exit "$code"
mv "$out.new" "$out"
echo "benchmarks/gpu.sh: $out" >&2
exit "$code"
