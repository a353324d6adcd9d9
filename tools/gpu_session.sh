#!/usr/bin/env bash
# Everything that waits for a GPU, in pieces that fit into the minutes of a borrowed machine:
#
#     tools/gpu_session.sh [OPTION ...] PIECE ...
#
#     exactness   the tests that need a GPU: every path and every kernel (2 minutes)
#     claims      the graph, losses and whole networks beside their peers (4 minutes)
#     recipes     speed, memory and GPU hours of the paper's recipes (3 minutes)
#     evidence    scores on voc_animals (the rest)
#
#     --minutes N      stop after N minutes, 9 if not given; installing counts
#     --wheels DIR     install the wheels in DIR first, without an index or a compiler
#     --weights FILE   ImageNet ResNet-50 for "evidence", which also needs voc_animals/ in
#                      DETECTRON2_DATASETS
#     --opts "K V"     options for every training run, e.g. "MODEL.RESNETS.STRIDE_IN_1X1 True"
#     --pack FILE      archive the results in FILE (.tar.gz) after every step and every minute;
#                      if FILE exists, continue from it
#     --commit NAME    of these files; needed for a copy without its Git repository
#     --rehearse       run everything on the CPU in tiny sizes; no weights, data or GPU needed
#     --dry-run        print the commands only
#
# Results are written to output/gpu_session. A step that fails does not end the others, minutes
# that a piece leaves go to the next, and the same command continues: steps that have finished
# with this commit are left out, and unfinished rows of "evidence" resume.
#
# The wheels for a machine without an index that has torch, torchvision, OpenCV, SciPy, Matplotlib,
# TensorBoard, safetensors, tabulate, cloudpickle, pytest and Hypothesis; NAME adds what it lacks:
#     tools/gpu_session.sh wheels 3.12 DIR [NAME ...]
set -uo pipefail

fail() { # a mistake of the user
    echo "gpu_session.sh: error: $*" >&2
    exit 2
}

usage() {
    sed -n '2,/^set -u/s/^# \{0,1\}//p' "$script" >&2
    exit 2
}

collect_wheels() { # PYTHON DIR [NAME ...]
    [ $# -ge 2 ] || usage
    local tested=(--quiet --no-deps --constraint requirements-tested.txt)
    local target=(--only-binary=:all: --python-version "$1")
    target+=(--platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64)
    # Pure Python, some of them published as source alone.
    python3 -m pip wheel "${tested[@]}" --wheel-dir "$2" iopath fvcore yacs omegaconf hydra-core \
        antlr4-python3-runtime termcolor || exit
    python3 -m pip download "${tested[@]}" "${target[@]}" --dest "$2" pycocotools pydantic \
        pydantic-core annotated-types typing-inspection "${@:3}" || exit
    python3 tools/install_detectron2.py --wheel-dir "$2" || exit
    # Every file fits that Python, and none is there in two versions.
    python3 -m pip install --quiet --dry-run --no-index --no-deps "${target[@]}" --target "$2" \
        "$2"/*.whl || exit
    du -sh "$2"
}

script=$(realpath "${BASH_SOURCE[0]}") root=$(dirname "$(dirname "$script")")
started=$SECONDS minutes="" wheels="" weights="" pack="" rehearse=no dry=no extra=() pieces=()
[ -x "$root/.venv/bin/python" ] && PATH=$root/.venv/bin:$PATH
export PYTHONPATH=$root/projects/CDGCNet${PYTHONPATH:+:$PYTHONPATH}
if [ "${1-}" = wheels ]; then
    [ $# -ge 3 ] || usage
    folder=$(realpath --canonicalize-missing "$3")
    cd "$root" && collect_wheels "$2" "$folder" "${@:4}"
    exit
fi
while [ $# -gt 0 ]; do
    case $1 in
        --minutes | --wheels | --weights | --pack | --opts | --commit) [ $# -gt 1 ] || usage ;;&
        --minutes) minutes=$2; shift ;;
        --wheels) wheels=$(realpath --canonicalize-missing "$2"); shift ;;
        --weights) weights=$(realpath --canonicalize-missing "$2"); shift ;;
        --pack) pack=$(realpath --canonicalize-missing "$2"); shift ;;
        --opts) read -ra extra <<<"$2"; shift ;;
        --commit) export CDGCNET_COMMIT=$2; shift ;;
        --rehearse) rehearse=yes ;;
        --dry-run) dry=yes ;;
        exactness | claims | recipes | evidence) pieces+=("$1") ;;
        *) usage ;;
    esac
    shift
done
[ ${#pieces[@]} -gt 0 ] || usage
[[ ${minutes:-1} =~ ^[0-9]+$ ]] || fail "--minutes is $minutes; expected a whole number"
[ -z "$wheels" ] || [ -d "$wheels" ] || fail "--wheels $wheels: no such folder"
[ -z "$pack" ] || [ -d "$(dirname "$pack")" ] || fail "--pack $pack: its folder does not exist"
cd "$root" || exit
if [ $rehearse$dry = nono ] && [[ " ${pieces[*]} " = *" evidence "* ]]; then
    [ -f "$weights" ] || fail "--weights ${weights:-is missing}: evidence needs a weight file"
    [ -d "${DETECTRON2_DATASETS-}/voc_animals" ] ||
        fail "evidence needs DETECTRON2_DATASETS with voc_animals/"
fi
commit=${CDGCNET_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}
[ -n "$commit" ] || fail "--commit is missing: these files have no Git repository to ask"

device=cuda iterations=60 session=output/gpu_session
declare -A share=([exactness]=2 [claims]=4 [recipes]=3 [evidence]=1000) # in minutes
compare=(--config-file configs/VOCAnimals-SemanticSegmentation/cdgcnet_r50_os8_cpu.yaml)
compare+=(--weights "$weights" --seeds 5)
compare+=(--opts MODEL.DEVICE cuda "${extra[@]}")
# Six runs at once fill an H200: eight are no faster together.
table=(--profile voc_animals --seeds 5 --jobs 6)
training=(MODEL.WEIGHTS "$weights" TEST.PICTURES False "${extra[@]}")
recipe=(--amp) graph=(--rounds 12)
if [ $rehearse = yes ]; then
    mkdir --parents output && session=$(mktemp --directory output/rehearsal.XXXXXX) || exit
    trap 'rm -rf "$session"' EXIT
    : "${minutes:=60}"
    share=([exactness]=60 [claims]=60 [recipes]=60 [evidence]=60)
    device=cpu iterations=1 graph=(--rounds 2) recipe=(--device cpu --crop 33)
    compare=(--config-file configs/Streets-SemanticSegmentation/cdgcnet_r18_cpu.yaml --steps 2)
    compare+=(--weights from_scratch --seeds 1 --shorter-side 64 --train-images 4 --eval-images 2)
    compare+=(--batch 2 --crop 4 --width 16 --channels 16)
    table=(--profile tiny --seeds 1 --jobs 2)
    training=(SOLVER.MAX_ITER 2)
    export CDGC_BENCH_SHRINK=8 CDGC_TEST_GPU=cpu
fi
end=$((started + 60 * ${minutes:-9})) until=$end failed=() unfinished=()

left() { echo $((until - SECONDS)); }

step() { # COMMAND ...
    if [ $dry = yes ]; then
        printf '%q ' "$@"
        echo
        return 1
    fi
    if [ "$(left)" -lt 20 ]; then
        echo "== no time left: $*"
        unfinished+=("$*")
        return 1
    fi
    archive # what the steps before have measured, should the machine end this one
    echo "== $(left) s left: $*"
    local code=0 begin=$SECONDS packing
    # A step may be many runs. Not into the caller's pipe, which the last sleep would keep open.
    while sleep 60; do archive; done >/dev/null 2>&1 &
    packing=$!
    timeout --kill-after 10 "$(left)" "$@" || code=$?
    kill "$packing"
    wait "$packing" 2>/dev/null
    [ -z "$pack" ] || rm -f "$pack".*.part # it may have been packing
    echo "== exit code $code after $((SECONDS - begin)) s"
    case $code in
        0) ;;
        124 | 137) unfinished+=("$*") ;;
        *) failed+=("$*") ;;
    esac
    return $code
}

once() { # NAME COMMAND ...: left out if it has finished with this commit
    local mark="$commit $device $1"
    if grep --no-messages --quiet --line-regexp --fixed-strings "$mark" "$session/finished"; then
        echo "== finished before: $1"
    elif step "${@:2}"; then
        echo "$mark" >>"$session/finished"
    fi
}

archive() { # what this session has measured, without checkpoints and cached features
    [ -n "$pack" ] || return 0
    # Exit code 1: a file changed while it was read, as logs do.
    local part=$pack.$BASHPID.part
    tar --create --gzip --file "$part" --directory "$session" --exclude ./scratch \
        --warning no-file-changed . || [ $? = 1 ] && mv "$part" "$pack"
}

prepare() { # earlier results, wheels, and what identifies a measurement
    if [ $dry = no ]; then
        mkdir --parents "$session/scratch" || exit
        if [ -f "$pack" ]; then
            tar --extract --gzip --file "$pack" --directory "$session" ||
                fail "--pack $pack: not an archive of an earlier session"
        fi
        touch "$session/finished"
    fi
    if [ -n "$wheels" ]; then
        local site
        site=$(mktemp --directory)
        step python3 -m pip install --quiet --no-index --no-deps --no-compile --upgrade \
            --target "$site" "$wheels"/*.whl || [ $dry = yes ] || exit 1
        export PYTHONPATH=$PYTHONPATH:$site
    fi
    step python3 benchmarks/check_machine.py --device "$device" --output "$session" ||
        [ $dry = yes ] || exit 1
}

exactness() {
    once exactness python3 -m pytest -q -m gpu -p no:cacheprovider -o log_cli=true \
        -o log_cli_level=INFO -o junit_logging=all --junitxml "$session/exactness.xml" tests/cdgc
}

claims() {
    local options=(--device "$device" --output "$session/benchmarks" "${graph[@]}")
    once "bench_graph bf16" python3 benchmarks/bench_graph.py "${options[@]}" --dtype bf16
    once bench_loss python3 benchmarks/bench_loss.py "${options[@]}"
    once "bench_model bf16" python3 benchmarks/bench_model.py "${options[@]}" --dtype bf16
    once "bench_graph fp32" python3 benchmarks/bench_graph.py "${options[@]}"
}

recipes() {
    once recipes python3 benchmarks/bench_recipe.py "${recipe[@]}" --iterations "$iterations" \
        --output "$session/benchmarks"
}

budget() { # PART: minutes for a command that ends by itself, so that its work is kept
    LC_ALL=C awk "BEGIN {print ($(left) > 40 ? $(left) - 30 : 10) / 60 / $1}"
}

rows() { # ROW ... --opts KEY VALUE ...
    step python3 tools/run_experiments.py all "${table[@]}" --work "$session/scratch/experiments" \
        --results "$session/results" --time-budget "$(budget 1)" --rows "$@"
}

evidence() {
    # Whole networks, the rows that decide first, continuing from the records in results/, then
    # heads on the features of a frozen backbone. table3_07 and the last head are the paper's.
    [ $dry = yes ] || {
        mkdir --parents "$session/results" &&
            cp --recursive --no-clobber results/voc_animals "$session/results/"
    } || exit
    rows default_01 control_03 default_04 default_05 --opts "${training[@]}"
    rows control_02 baseline_01 baseline_02 baseline_03 baseline_04 control_01 default_02 \
        default_03 table3_07 --opts "${training[@]}"
    local heads=plain,aspp,non_local,graph,graph:RECEIVERS=nodes,SOFTMAX=class,NODES=dynamic
    step python3 -m cdgcnet compare --heads "$heads" --context none,aspp \
        --output "$session/compare" --cache "$session/scratch/features" \
        --time-budget "$(budget 1)" "${compare[@]}"
}

prepare
stop=$SECONDS
for piece in "${pieces[@]}"; do
    echo "# $piece"
    stop=$((stop + 60 * share[$piece])) until=$((stop < end ? stop : end))
    $piece
done
[ $dry = no ] || exit 0
archive
[ ${#unfinished[@]} = 0 ] || printf 'unfinished: %s\n' "${unfinished[@]}" >&2
[ ${#failed[@]} = 0 ] || printf 'failed: %s\n' "${failed[@]}" >&2
[ ${#failed[@]} = 0 ] && [ ${#unfinished[@]} = 0 ]
