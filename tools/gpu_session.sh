#!/usr/bin/env bash
# All that waits for a GPU, in pieces that fit into a lent machine's minutes:
#
#     tools/gpu_session.sh [OPTION ...] PIECE ...
#
#     exactness   tests that need a GPU, every path beside the dense oracle (2 minutes)
#     claims      the graph and whole networks beside their peers (4 minutes)
#     recipes     speed, memory and GPU hours of the paper's recipes (3 minutes)
#     evidence    scores on voc_animals; the same command continues unfinished rows (the rest)
#
#     --minutes N      stop after N minutes, 12 if not given; installing counts
#     --wheels DIR     install the wheels in DIR first, without an index or a compiler
#     --weights FILE   ImageNet ResNet-50 for "evidence", which also needs voc_animals/ in
#                      DETECTRON2_DATASETS
#     --opts "K V"     options for every training, e.g. "MODEL.RESNETS.STRIDE_IN_1X1 True"
#     --pack FILE      at the end, archive all results in FILE (.tar.gz)
#     --rehearse       run everything on the CPU in tiny sizes; no weights, data or GPU needed
#     --dry-run        print the commands only
#
# The wheels for a machine that has torch, torchvision and what they need, but no index (DIR/):
#     tools/gpu_session.sh wheels 3.12 DIR
set -uo pipefail

fail() { # a mistake of the user
    echo "gpu_session.sh: error: $*" >&2
    exit 2
}

usage() {
    sed -n '2,/^set -u/s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

collect_wheels() { # PYTHON DIR
    [ $# = 2 ] || usage
    local names=(iopath fvcore yacs omegaconf hydra-core antlr4-python3-runtime==4.9.3 termcolor)
    mkdir -p "$2" || exit
    python3 -m pip wheel --quiet --no-deps --wheel-dir "$2" "${names[@]}" || exit
    python3 -m pip download --quiet --no-deps --only-binary=:all: --python-version "$1" \
        --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --dest "$2" \
        pycocotools pydantic=="$(version pydantic)" pydantic-core=="$(version pydantic-core)" \
        annotated-types typing-inspection || exit
    python3 tools/install_detectron2.py --wheel-dir "$2" || exit
    du -sh "$2"
}

version() { # of an installed package
    python3 -c 'import sys; from importlib.metadata import version; print(version(sys.argv[1]))' "$1"
}

started=$SECONDS minutes=12 wheels="" weights="" pack="" rehearse=no dry=no extra=() pieces=()
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
[ -x .venv/bin/python ] && PATH=$PWD/.venv/bin:$PATH
export PYTHONPATH=$PWD/projects/CDGCNet${PYTHONPATH:+:$PYTHONPATH}
if [ "${1-}" = wheels ]; then
    shift
    collect_wheels "$@"
    exit
fi
while [ $# -gt 0 ]; do
    case $1 in
        --minutes | --wheels | --weights | --pack | --opts) [ $# -gt 1 ] || usage ;;&
        --minutes) minutes=$2; shift ;;
        --wheels) wheels=$2; shift ;;
        --weights) weights=$2; shift ;;
        --pack) pack=$2; shift ;;
        --opts) read -ra extra <<<"$2"; shift ;;
        --rehearse) rehearse=yes ;;
        --dry-run) dry=yes ;;
        exactness | claims | recipes | evidence) pieces+=("$1") ;;
        *) usage ;;
    esac
    shift
done
[ ${#pieces[@]} -gt 0 ] || usage
[[ $minutes =~ ^[0-9]+$ ]] || fail "--minutes is $minutes; expected a whole number"
[ -z "$wheels" ] || [ -d "$wheels" ] || fail "--wheels $wheels: no such folder"
if [ $rehearse$dry = nono ] && [[ " ${pieces[*]} " = *" evidence "* ]]; then
    [ -f "$weights" ] || fail "--weights ${weights:-is missing}: evidence needs a weight file"
    [ -d "${DETECTRON2_DATASETS-}/voc_animals" ] ||
        fail "evidence needs DETECTRON2_DATASETS with voc_animals/"
fi

device=cuda iterations=60 results=benchmarks/results
compare=(--config-file configs/VOCAnimals-SemanticSegmentation/cdgcnet_r50_os8_cpu.yaml)
compare+=(--weights "$weights" --seeds 5)
compare+=(--opts MODEL.DEVICE cuda "${extra[@]}")
table=(--profile voc_animals --seeds 3)
training=(MODEL.WEIGHTS "$weights" SOLVER.AMP.ENABLED True "${extra[@]}")
recipe=(--amp) graph=(--rounds 6) records=results compared=output/compare/voc_animals_gpu
if [ $rehearse = yes ]; then
    scratch=$(mktemp -d)
    trap 'rm -rf "$scratch"' EXIT
    minutes=60 device=cpu iterations=1 results=$scratch/benchmarks records=$scratch/results
    compared=$scratch/compare
    graph=(--rounds 2)
    recipe=(--device cpu --crop 33 --recipes voc)
    compare=(--config-file configs/Streets-SemanticSegmentation/cdgcnet_r18_cpu.yaml --steps 2)
    compare+=(--weights from_scratch --seeds 1 --shorter-side 64 --train-images 4 --eval-images 2)
    compare+=(--batch 2 --crop 4 --width 16 --channels 16)
    table=(--profile tiny --seeds 1 --work "$scratch/work")
    training=(SOLVER.MAX_ITER 2)
    export CDGC_BENCH_SHRINK=8
fi
failed=()

left() { echo $((60 * minutes - (SECONDS - started))); }

step() { # a command; one that fails does not end the others
    if [ $dry = yes ]; then
        printf '%q ' "$@"
        echo
        return
    fi
    if [ "$(left)" -lt 20 ]; then
        echo "time is up before: $*"
        return
    fi
    echo "== $(left) s left: $*"
    timeout "$(left)" "$@" || failed+=("$*")
}

install() {
    local site
    site=$(mktemp -d)
    step python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
        --target "$site" "$wheels"/*.whl
    export PYTHONPATH=$PYTHONPATH:$site
}

exactness() {
    step python3 -m pytest -q -m gpu -o log_cli=true -o log_cli_level=INFO tests/cdgc
}

claims() {
    local options=(--device "$device" --output "$results" "${graph[@]}")
    step python3 benchmarks/bench_graph.py "${options[@]}" --dtype bf16
    step python3 benchmarks/bench_model.py "${options[@]}" --dtype bf16
    step python3 benchmarks/bench_graph.py "${options[@]}"
}

recipes() {
    step python3 benchmarks/bench_recipe.py "${recipe[@]}" --iterations "$iterations" \
        --output "$results"
}

rows() { # ROW ... --opts KEY VALUE ...
    step python3 tools/run_experiments.py all "${table[@]}" --results "$records" \
        --time-budget "$(($(left) / 60 + 1))" --rows "$@"
}

evidence() {
    # Heads on the features of a frozen backbone, then whole networks, the rows that decide first.
    # The last head and table3_07 are the paper's letter.
    local heads=plain,aspp,non_local,graph,graph:RECEIVERS=nodes,SOFTMAX=class,NODES=dynamic
    step python3 -m cdgcnet compare --heads "$heads" --context none,aspp --output "$compared" \
        --time-budget "$(($(left) / 120 + 1))" "${compare[@]}"
    rows control_03 default_03 default_01 default_02 --opts "${training[@]}"
    rows control_01 baseline_01 table3_07 --opts "${training[@]}"
}

[ -z "$wheels" ] || install
for piece in "${pieces[@]}"; do
    echo "# $piece"
    $piece
done
if [ -n "$pack" ]; then
    step tar --create --gzip --file "$pack" benchmarks/results results
fi
if [ ${#failed[@]} -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
