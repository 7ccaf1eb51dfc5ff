#!/usr/bin/env bash
# Build a TensorRT engine on the device that will run it, with trtexec of TensorRT 10.3 to 11.
# Nothing but bash, trtexec and the usual tools is needed. Exit codes: 0 built, 1 not built, 2 usage.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: bash build_on_device.sh [--model NAME | --precision NAME | --all] [options]
  --model NAME            which model (default: the first of models.tsv, the smallest)
  --precision NAME        the first of that precision, such as int8 or fp16
  --all                   every model
  --batch N               batch size to tune for
  --max-batch N           largest batch that the engine takes
  --workspace MIB         scratch memory (default: 1024)
  --optimization-level N  0 builds fast, 5 runs fast (default: 3)
  --out DIR               folder for plans, logs and the timing cache (default: built/ in the bundle)
  --bench                 time the engine afterwards
  --choose                build and time all, one after the other and back again, verify their answers, and write
                          measured.json with the one to use (needs python3, numpy and TensorRT's bindings)
  --data DIR              with --choose: score them on these images, too (needs Pillow)
  --weakly-typed          TensorRT 10 only: let TensorRT choose FP16, INT8 and FP8 (if a strongly typed build fails)
  --dry-run               print the commands and run nothing
  --help
Environment: TRTEXEC (the program), TENSORRT_VERSION (such as 10.3, where it cannot be found out)
TEXT
}

fail() {
    printf 'error: %s\n' "$1" >&2
    exit "${2:-1}"
}

require_number() { # name, value, smallest, largest
    if [[ ! $2 =~ ^(0|[1-9][0-9]{0,6})$ ]] || (($2 < $3 || $2 > $4)); then
        fail "$1 is '$2'; expected a number from $3 to $4." 2
    fi
}

model='' type='' all=0 batch='' max_batch='' workspace=1024 level=3 out='' bench=0 choose=0 data='' weak=0 dry=0
while (($#)); do
    case $1 in
        --model | --precision | --batch | --max-batch | --workspace | --optimization-level | --out | --data)
            (($# > 1)) || fail "$1 needs a value; see --help." 2
            case $1 in
                --model) model=$2 ;;
                --precision) type=$2 ;;
                --batch) batch=$2 ;;
                --max-batch) max_batch=$2 ;;
                --workspace) workspace=$2 ;;
                --optimization-level) level=$2 ;;
                --out) out=$2 ;;
                --data) data=$2 ;;
            esac
            shift 2
            ;;
        --all) all=1 && shift ;;
        --bench) bench=1 && shift ;;
        --choose) choose=1 && shift ;;
        --weakly-typed) weak=1 && shift ;;
        --dry-run) dry=1 && shift ;;
        -h | --help) usage && exit 0 ;;
        *) fail "unknown option '$1'; see --help." 2 ;;
    esac
done
chosen=$all
[[ -z $model ]] || chosen=$((chosen + 1))
[[ -z $type ]] || chosen=$((chosen + 1))
((chosen <= 1)) || fail '--model, --precision and --all exclude each other.' 2
if ((choose)); then
    [[ -z $model && -z $type ]] || fail '--choose is among all models; leave --model and --precision out.' 2
    all=1 bench=1
    ((dry)) || command -v python3 >/dev/null || fail '--choose needs python3.'
else
    [[ -z $data ]] || fail '--data needs --choose.' 2
fi
require_number --workspace "$workspace" 1 1048576
require_number --optimization-level "$level" 0 5
[[ -z $batch ]] || require_number --batch "$batch" 1 65536
[[ -z $max_batch ]] || require_number --max-batch "$max_batch" 1 65536

bundle=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
table=$bundle/models.tsv
[[ -r $table ]] || fail "$table is missing; copy the whole bundle."
[[ -z $out || $out == /* ]] || out=$PWD/$out
out=${out:-$bundle/built}

check_unaltered() { # a file of the bundle
    (cd -- "$bundle" && grep -F -- "  $1" SHA256SUMS | sha256sum --status --strict -c -) 2>/dev/null ||
        fail "$bundle/$1 was altered: it is not what SHA256SUMS says; copy the bundle again."
}
check_unaltered models.tsv

find_trtexec() {
    local candidate
    if [[ -n ${TRTEXEC:-} ]]; then
        command -v -- "$TRTEXEC" || fail "TRTEXEC is '$TRTEXEC', which is not a program."
        return
    fi
    # where JetPack and NVIDIA's packages and containers put it
    for candidate in trtexec /usr/src/tensorrt/bin/trtexec /opt/tensorrt/bin/trtexec; do
        command -v -- "$candidate" && return
    done
    fail "trtexec was not found in PATH or /usr/src/tensorrt/bin; set TRTEXEC, or use: python3 '$bundle/build_engine.py'"
}

# Prints MAJOR.MINOR, or nothing. The banner is the program's own: "TensorRT v100300" is 10.3.0, as 101601 is 10.16.1.
find_version() {
    local number text
    if [[ -n ${TENSORRT_VERSION:-} ]]; then
        text=$TENSORRT_VERSION
    else
        number=$("$trtexec" --help 2>&1 | sed -n 's/.*TensorRT v\([0-9][0-9]*\).*/\1/p' | sed -n 1p || true)
        if [[ $number =~ ^[0-9]{6}$ ]]; then
            text=$((10#$number / 10000)).$((10#$number / 100 % 100))
        elif [[ $number =~ ^[0-9]{4,5}$ ]]; then # before 10
            text=$((10#$number / 1000)).$((10#$number / 100 % 10))
        else
            text=$(dpkg-query -W -f='${Version}\n' libnvinfer11 libnvinfer10 2>/dev/null | sed -n 1p || true)
            [[ $text =~ ^[0-9] ]] || text=$(python3 -c 'import tensorrt; print(tensorrt.__version__)' 2>/dev/null || true)
        fi
    fi
    [[ $text =~ ^([0-9]+)\.([0-9]+) ]] && printf '%s.%s\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
}

trtexec=$(find_trtexec) || exit 1
version=$(find_version) || fail "the TensorRT version of $trtexec cannot be found out; set TENSORRT_VERSION, such as 10.3."
major=${version%%.*} minor=${version#*.}
((major > 10 || (major == 10 && minor >= 3))) ||
    fail "$trtexec is of TensorRT $version; 10.3 (JetPack 6.1) or newer is needed."
((major <= 11)) || printf 'note: TensorRT %s is newer than this script; using the options of 11.\n' "$version" >&2
((weak == 0 || major == 10)) || fail "--weakly-typed: TensorRT $version has strongly typed networks only." 2

# Prints the compute capability without its point, as 87, or nothing: what the driver says, and of a Jetson its board.
find_capability() {
    local text board
    text=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | sed -n 1p || true)
    if [[ $text =~ ^([0-9]+)\.([0-9])$ ]]; then
        printf '%s%s\n' "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
        return
    fi
    board=$(cat -- "${DEVICE_TREE:-/proc/device-tree}/model" 2>/dev/null | tr -d '\0' || true)
    case $board in
        *Orin*) echo 87 ;;
        *Xavier*) echo 72 ;;
    esac
}
capability=$(find_capability)

partial='' meter=''
clean_up() {
    [[ -z $partial ]] || rm -f -- "$partial"
    [[ -z $meter ]] || kill "$meter" 2>/dev/null || true
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

run() { # log, command...
    local log=$1
    shift
    printf '%q ' "$@"
    printf '\n'
    ((dry)) && return 0
    "$@" >"$log" 2>&1
}

left_out() { # why; among several to choose from one may be missing
    ((choose)) || fail "$1"
    printf 'note: %s\n' "$1" >&2
}

place_for_triton() { # plan, name of the Triton model, largest batch of the plan and of the model's configuration
    local folder=$bundle/triton/tensorrt/$2
    [[ -d $folder ]] || return 0
    mkdir -p -- "$folder/1"
    partial=$folder/1/.model.plan.partial
    cp -- "$1" "$partial"
    mv -f -- "$partial" "$folder/1/model.plan"
    printf 'copied to %s\n' "$folder/1/model.plan"
    (($3 >= $4)) || printf 'note: write max_batch_size: %s into %s\n' "$3" "$folder/config.pbtxt"
}

build() { # a line of the table
    local name=$1 precision=$2 onnx=$3 input=$4 item=$5 frozen=$6 optimal=$7 largest=$8 triton=$9
    local plan=$out/$name.plan log=$out/$name.log
    local shapes=() types=() timed=() asked served=$8
    if [[ $frozen == 0 ]]; then
        largest=${max_batch:-$largest}
        [[ -n $max_batch || -z $batch || $batch -le $largest ]] || largest=$batch
        optimal=${batch:-$((optimal < largest ? optimal : largest))}
        ((optimal <= largest)) || fail "--batch $optimal is larger than --max-batch $largest." 2
        shapes=("--minShapes=$input:1x$item" "--optShapes=$input:${optimal}x$item" "--maxShapes=$input:${largest}x$item")
        timed=("--shapes=$input:${optimal}x$item")
    else # such a file has the shapes in it, and trtexec refuses others
        for asked in "$batch" "$max_batch"; do
            [[ -z $asked || $asked == "$frozen" ]] || fail "$onnx takes batches of $frozen and no others." 2
        done
    fi
    if ((weak)); then
        types=(--fp16)
        [[ $precision != *int8* ]] || types+=(--int8)
        [[ $precision != *fp8* ]] || types+=(--fp8)
    elif ((major == 10)); then
        types=(--stronglyTyped) # from 11 on there is nothing else
    fi
    check_unaltered "$onnx"
    if [[ $precision == fp8* && -n $capability ]] && ((capability < 89)); then
        rm -f -- "$plan" # of another device
        ((all)) || fail "$name is left out: this GPU is SM$capability, and FP8 begins with SM89; take another model."
        printf 'note: %s is left out: this GPU is SM%s, and FP8 begins with SM89\n' "$name" "$capability" >&2
        return 0
    fi
    partial=$out/.$name.plan.partial
    printf 'building %s with TensorRT %s; this takes minutes\n' "$name" "$version"
    run "$log" "$trtexec" "--onnx=$bundle/$onnx" "--saveEngine=$partial" "${shapes[@]}" "${types[@]}" \
        "--memPoolSize=workspace:$workspace" "--builderOptimizationLevel=$level" "--timingCacheFile=$out/timing.cache" \
        --profilingVerbosity=detailed "--exportLayerInfo=$out/$name.layers.json" --skipInference || {
        tail -n 15 -- "$log" >&2
        left_out "trtexec could not build $name; all it said is in $log"
        rm -f -- "$partial" "$plan" # one of an earlier time, too
        partial=''
        return 0
    }
    if ((dry == 0)); then
        [[ -s $partial ]] || fail "trtexec ended well and wrote no engine; what it said is in $log"
        mv -f -- "$partial" "$plan"
        partial=''
        printf 'built %s\n' "$plan"
        place_for_triton "$plan" "$triton" "$largest" "$served"
    fi
    partial=''
    timed_shapes[$name]=${timed[*]:-}
}

measure_power() { # log; Jetson's own program, or that of the driver
    if command -v tegrastats >/dev/null; then
        tegrastats --interval 200 >"$1" 2>/dev/null &
    elif command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=power.draw --format=csv,noheader,nounits -lms 200 >"$1" 2>/dev/null &
    else
        return 0
    fi
    meter=$!
}

time_engine() { # name, end of the names of the files
    local plan=$out/$1.plan log=$out/$1.bench$2.log types=() timed=() failed=0
    # 11 does by default what 10 has to be told: CUDA graph, spin wait, no copies of data
    ((major > 10)) || types=(--useCudaGraph --useSpinWait --noDataTransfers)
    [[ -z ${timed_shapes[$1]} ]] || timed=("${timed_shapes[$1]}")
    ((dry)) || measure_power "$out/$1.power$2.log"
    run "$log" "$trtexec" "--loadEngine=$plan" "${timed[@]}" "${types[@]}" --warmUp=500 --duration=10 \
        "--exportTimes=$out/$1.times$2.json" || failed=1
    if [[ -n $meter ]]; then
        kill "$meter" 2>/dev/null || true
        wait "$meter" 2>/dev/null || true
        meter=''
    fi
    if ((failed)); then
        tail -n 15 -- "$log" >&2
        rm -f -- "$out/$1.times$2.json"
        left_out "trtexec could not run $plan; all it said is in $log"
        return 0
    fi
    ((dry)) || grep -E 'Throughput|GPU Compute Time|Latency:' -- "$log" || true
}

if ((dry == 0)); then
    mkdir -p -- "$out" || fail "$out cannot be made; give a folder with --out."
fi
declare -A timed_shapes=()
found=0 names=()
while IFS=$'\t' read -r name precision onnx input item frozen optimal largest triton <&3; do
    if [[ $name != "${model:-$name}" || $precision != "${type:-$precision}" ]]; then continue; fi
    found=1
    # what is told of an engine is of this build of it, and of one that cannot be built nothing is told
    ((dry || !choose)) || rm -f -- "$out/$name".times*.json "$out/$name".power*.log "$out/$name".bench*.log
    build "$name" "$precision" "$onnx" "$input" "$item" "$frozen" "$optimal" "$largest" "$triton"
    if [[ -n ${timed_shapes[$name]+built} ]]; then names+=("$name"); fi
    if ((bench && !choose)) && [[ -n ${timed_shapes[$name]+built} ]]; then time_engine "$name" ''; fi
    if ((all == 0)); then break; fi
done 3<"$table"
((found)) || fail "no model '$model$type' in this bundle that TensorRT can build; those that can: $(cut -f1 -- "$table" | tr '\n' ' ')" 2
if ((choose)); then
    # back again, so that a device that warms up favours none
    for ((place = 0; place < ${#names[@]}; place++)); do time_engine "${names[place]}" .1; done
    for ((place = ${#names[@]} - 1; place >= 0; place--)); do time_engine "${names[place]}" .2; done
    command=(python3 "$bundle/choose_engine.py" --built "$out")
    [[ -z $data ]] || command+=(--data "$data")
    printf '%q ' "${command[@]}"
    printf '\n'
    ((dry)) || "${command[@]}"
elif ((dry == 0)); then
    printf "next: python3 '%s' --require engine" "$bundle/verify.py"
    [[ $out == "$bundle/built" ]] || printf " --built '%s'" "$out"
    printf '\n'
fi
