#!/usr/bin/env bash
# All that needs a GPU, in about eight minutes: the tests marked `gpu`, then figures. Each part has its own time limit, and
# its rows are in results.md as soon as they are measured.
#
#     benchmarks/gpu.sh [OUT [PART ...]]      OUT: a new folder; PARTs as in gpu.py; without them, the tests and all parts
#     GPU=0 benchmarks/gpu.sh                 the same with tiny shapes on the CPU: shows that the script works
#
# It needs torch with CUDA, what `pip install tuplesmith[cpu]` installs, pytest, hypothesis and sentence-transformers; no network.
# `PYTHON=...` names the Python to use.
set -uo pipefail
cd "$(dirname "$0")/.."
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=true PYTHONPATH="$PWD:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}"
python=${PYTHON:-python3}
out=${1:-$(mktemp -d)}
shift || true
mkdir -p "$out"
failed=0
if [ $# = 0 ]; then
    timeout 200 "$python" -m pytest -v --tb=short -m gpu -p no:cacheprovider --durations 10 $(grep -rl mark.gpu tests | sort) > "$out/tests.txt" 2>&1 || failed=1
    echo "| tests | $(tail -n 1 "$out/tests.txt") |" | tee -a "$out/results.md"
fi
timeout 480 "$python" benchmarks/gpu.py "$out" "$@" 2> "$out/errors.txt" || { failed=1; tail -n 20 "$out/errors.txt"; }
echo "results: $out/results.md" >&2
exit $failed
