#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# shellcheck disable=SC2317 # parts are called by name
# What only GPUs can show, in one go: figures, random layers beside each other, graphs, memory, faults, memcheck.
# It lies beside the test programs (install component gpu_tests) and needs nothing else.
set -uo pipefail

usage() {
    cat <<'END'
usage: verify.sh [-j] [-o FOLDER] [-c CASES] [PART...]

Runs the parts, all of them where none is named, and writes what each says into FOLDER (verified). The exit status is
the number of runs that failed. With -j the parts run at the same time, but for bench and memory, which come first and
have the GPUs to themselves.

  bench     decode and exchange, twice, so that the second run can be held against the first
  random    CASES (300) random layers of every exchange, processes and threads, two and four ranks, all at the same time
  memcheck  a few of them over lsa under compute-sanitizer
  graphs    replays between eager calls; packets where earlier ones have lain
  memory    10,000 layers of mixed shapes and 100 exchanges leave memory equal; long prompts
  faults    peers that exit, stop or never come, calls that contradict each other
  one       one GPU: gpu_test, and the suites of lsa between two threads that share it

FOLDER/gpu_verified is what the checkout's tests/gpu_verified wants to have after a change of a kernel.
END
}

here=$(cd "$(dirname "$0")" && pwd)
command=$(command -v "$here/../bin/epjit" || command -v "$here/../epjit" || command -v epjit)
folder=verified
cases=300
together=
while getopts "jo:c:h" option; do
    case $option in
        j) together=yes ;;
        o) folder=$OPTARG ;;
        c) cases=$OPTARG ;;
        h) usage && exit 0 ;;
        *) usage >&2 && exit 2 ;;
    esac
done
shift $((OPTIND - 1))
parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=(bench random memcheck graphs memory faults one)
mkdir -p "$folder" || exit 2
folder=$(cd "$folder" && pwd)
export EPJIT_COMMAND=${EPJIT_COMMAND:-$command} EPJIT_GPU_CASES=$cases

# run NAME LIMIT_S PROGRAM...: what it says into NAME.txt, how it ended into the list.
run() {
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    timeout "$limit" "$@" >"$folder/$name.txt" 2>&1
    status=$?
    if [ "$status" != 0 ]; then
        status="status $status"
    elif grep -q '^\[  PASSED  \] 0 tests' "$folder/$name.txt"; then
        status="nothing ran"
    else
        status=ok
    fi
    printf '%-24s %4d s  %s\n' "$name" $((SECONDS - start)) "$status" | tee -a "$folder/list.txt"
}
# suite NAME LIMIT_S FILTER VARIABLE=VALUE...
suite() {
    local name=$1 limit=$2 filter=$3
    shift 3
    run "$name" "$limit" env EPJIT_GPU_VERIFIED_DIR="$folder/gpu_verified" "$@" "$here/multi_gpu_test" \
        --gtest_filter="$filter"
}

random='*real_ranks.random*:*real_ranks.plans_from*:*real_ranks.rows_over*:*real_ranks.static*'

part_bench() {
    for n in 1 2; do
        run "decode_$n" 60 "$command" bench --suite decode --exchange lsa --iters 60
        run "exchange_$n" 90 "$command" bench --suite exchange --exchange lsa --iters 60
    done
}
part_random() {
    for exchange in lsa sendrecv dense; do
        for mode in process thread; do
            suite "random_${exchange}_2_$mode" 400 "$random" EPJIT_EXCHANGES="$exchange" EPJIT_RANKS=2 \
                EPJIT_RANK_MODE="$mode" &
        done
    done
    for exchange in sendrecv dense hybrid; do
        suite "random_${exchange}_4" 400 "$random" EPJIT_EXCHANGES="$exchange" EPJIT_RANKS=4 &
    done
    wait
}
part_memcheck() {
    run memcheck 600 env EPJIT_WAIT_TIMEOUT_MS=300000 EPJIT_FIRST_WAIT_TIMEOUT_MS=300000 EPJIT_GPU_LIMIT_MS=590000 \
        EPJIT_EXCHANGES=lsa EPJIT_RANKS=2 EPJIT_RANK_MODE=process EPJIT_GPU_CASES=20 compute-sanitizer \
        --tool memcheck --report-api-errors no --target-processes all --error-exitcode 99 "$here/multi_gpu_test" \
        --gtest_filter='each/real_ranks.random_layers*'
}
part_graphs() {
    # Four ranks on two GPUs take turns at every step.
    suite graphs 300 '*real_ranks.graphs*:*real_ranks.packets*' EPJIT_EXCHANGES=lsa,sendrecv,hybrid
}
part_memory() {
    suite memory_lsa 200 '*real_ranks.memory*' EPJIT_EXCHANGES=lsa EPJIT_RANKS=2 EPJIT_GPU_ITERATIONS=10000
    suite memory_others 200 '*real_ranks.memory*' EPJIT_EXCHANGES=sendrecv,dense EPJIT_RANKS=2
    suite long_prompts 120 '*real_ranks.long*' EPJIT_EXCHANGES=lsa,sendrecv,dense EPJIT_RANKS=2 EPJIT_RANK_MODE=process
}
part_faults() {
    for exchange in lsa sendrecv dense hybrid; do
        suite "faults_$exchange" 300 "*faults*/$exchange*"
    done
}
part_one() {
    run gpu_test 400 env EPJIT_GPU_VERIFIED_DIR="$folder/gpu_verified" "$here/gpu_test"
    suite one_gpu 300 '*real_ranks*lsa_2_threads:-*long*' EPJIT_ONE_GPU=1 EPJIT_GPU_ITERATIONS=600
}

for part in "${parts[@]}"; do
    declare -F "part_$part" >/dev/null || { usage >&2 && exit 2; }
done
: >"$folder/list.txt"
others=()
for part in "${parts[@]}"; do
    case $together$part in
        yesbench | yesmemory) "part_$part" ;;
        yes*) others+=("$part") ;;
        *) "part_$part" ;;
    esac
done
for part in "${others[@]}"; do
    "part_$part" &
done
wait
failed=$(grep -vc ' ok$' "$folder/list.txt")
echo "$failed of $(wc -l <"$folder/list.txt") runs failed; what they said is in $folder"
exit "$failed"
