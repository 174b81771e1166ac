#!/usr/bin/env bash
# All that needs a GPU, in about eight minutes: the tests marked `gpu`, then figures. Each part has its own time limit, and
# its rows are in results.md as soon as they are measured.
#
#     benchmarks/gpu.sh [OUT [PART ...]]      OUT: a new folder; without PARTs all of them
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
declare -A limit=([machine]=40 [tests]=150 [models]=60 [train]=90 [minilm]=45 [encode]=90 [search]=60 [profile]=45 [start]=40)
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(machine tests models train minilm encode search profile start)

failed=0
for part in "${parts[@]}"; do
    begun=$SECONDS
    if [ "$part" = tests ]; then
        timeout "${limit[tests]}" "$python" -m pytest -q -m gpu -p no:cacheprovider --durations 10 $(grep -rl mark.gpu tests) > "$out/tests.txt" 2>&1
        code=$?
        [ "$code" = 5 ] && code=1  # no test was collected
        echo "| tests | $(tail -n 1 "$out/tests.txt") |" | tee -a "$out/results.md"
    else
        timeout "${limit[$part]}" "$python" benchmarks/gpu.py "$part" "$out" 2> "$out/$part.err"
        code=$?
        [ "$code" = 0 ] || tail -n 3 "$out/$part.err"
    fi
    [ "$code" = 0 ] || { failed=1; echo "| $part | failed, exit status $code after $((SECONDS - begun)) s |" | tee -a "$out/results.md"; }
    echo "$part: $((SECONDS - begun)) s" >&2
done
echo "results: $out/results.md" >&2
exit $failed
