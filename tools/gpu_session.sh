#!/usr/bin/env bash
# All that waits for a GPU, in order of importance, in pieces of a given length:
#
#     tools/gpu_session.sh MINUTES resnet50.pth resnet101.pth [KEY VALUE ...]
#
# The same command goes on where the last one stopped; finished rows and cells are never run again.
# Weights are torchvision-style state dicts; KEY VALUE pairs are added to every training (e.g.
# MODEL.RESNETS.STRIDE_IN_1X1 True). Needs DETECTRON2_DATASETS with camvid/, and a current Python
# environment (or .venv). Commit results/ and benchmarks/results/ afterwards.
set -uo pipefail
if [ $# -lt 3 ] || ! [[ $1 =~ ^[0-9]+$ ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
minutes=$1 r50=$(realpath -m -- "$2") r101=$(realpath -m -- "$3")
shift 3
cd "$(dirname "${BASH_SOURCE[0]}")/.."
for file in "$r50" "$r101"; do
    [ -f "$file" ] || { echo "gpu_session.sh: error: $file: no such weight file" >&2; exit 1; }
done
[ -x .venv/bin/python ] && PATH=$PWD/.venv/bin:$PATH
export PYTHONPATH=$PWD/projects/CDGCNet
end=$(($(date +%s) + 60 * minutes))
failed=()

left() { echo $(((end - $(date +%s)) / 60)); }

step() { # a command, unless the time is up; one that fails does not end the others
    if [ "$(left)" -lt 1 ]; then
        echo "time is up before: $*"
        return
    fi
    echo "== $*"
    timeout $((60 * $(left))) "$@" || failed+=("$*")
}

rows() { # TABLE SEEDS ROWS...
    local table=$1 seeds=$2
    shift 2
    step python tools/run_experiments.py "$table" --profile camvid --seeds "$seeds" \
        --time-budget "$(left)" ${1:+--rows "$@"} --opts MODEL.WEIGHTS "$r50" "${overrides[@]}"
}

bench() { # RESULT COMMAND...: only if its result is not there yet
    local result=$1
    shift
    [ -f "benchmarks/results/$result" ] || step python "$@" --output benchmarks/results
}

overrides=("$@")
rows all 3 control_ table3_02 table3_07 table3_12
bench bench_recipe_fp32.md benchmarks/bench_recipe.py --weights "$r101"
bench bench_recipe_amp.md benchmarks/bench_recipe.py --weights "$r101" --amp
step python benchmarks/bench_graph.py --device cuda --output benchmarks/results
step python benchmarks/bench_graph.py --device cuda --dtype bf16 --output benchmarks/results
step python benchmarks/bench_model.py --device cuda --output benchmarks/results
step python benchmarks/bench_model.py --device cuda --dtype bf16 --compile --output benchmarks/results
rows baseline 3
rows all 1
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
