# SPDX-License-Identifier: Apache-2.0
# Sourced by tools/quickstart and tools/test: messages, and what both do before their own work.
# Expects: set -euo pipefail, EPJIT_ROOT (the checkout) and jobs (parallel jobs).

setup_folder="$EPJIT_ROOT/tools/setup"

say() { printf '== %s\n' "$*"; }
note() { printf '   %s\n' "$*"; }
fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 3
}

# usage_error MESSAGE: exit 2. `usage` is the caller's.
usage_error() {
    printf 'error: %s\n\n' "$1" >&2
    usage >&2
    exit 2
}

# default_jobs: one job for each CPU this process may use.
default_jobs() { nproc 2>/dev/null || echo 2; }

# parse_options ARGS...: the options that both commands take; sets jobs.
parse_options() {
    jobs=$(default_jobs)
    while [ $# -gt 0 ]; do
        case "$1" in
            -h | --help)
                usage
                exit 0
                ;;
            -j | --jobs)
                [ $# -ge 2 ] || usage_error "$1 needs a number"
                jobs=$2
                shift
                ;;
            --jobs=*) jobs=${1#--jobs=} ;;
            *) usage_error "unknown option $1" ;;
        esac
        shift
    done
    case "$jobs" in
        '' | *[!0-9]* | 0) usage_error "--jobs takes a number of at least 1, not '$jobs'" ;;
    esac
}

# shellcheck source=tools/setup/packages.sh
. "$setup_folder/packages.sh"
# shellcheck source=tools/setup/libraries.sh
. "$setup_folder/libraries.sh"

# run_setup: everything that must be there before a build. Installs only what is missing.
run_setup() {
    say "System packages"
    install_packages
    say "CUDA and NCCL libraries"
    find_libraries
}

# build TARGET...: the release preset.
build() {
    local log="$EPJIT_ROOT/build/configure.log"
    mkdir -p "$EPJIT_ROOT/build"
    if ! (cd "$EPJIT_ROOT" && cmake --preset release) >"$log" 2>&1; then
        cat "$log" >&2
        fail "CMake could not configure the project; its output is above and in build/configure.log"
    fi
    cmake --build "$EPJIT_ROOT/build" --parallel "$jobs" --target "$@"
}
