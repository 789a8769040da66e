# SPDX-License-Identifier: Apache-2.0
# Sourced by common.sh: the system packages that a build and its tests need.

# has_header FILE: true if the C++ compiler finds it.
has_header() { printf '#include <%s>\n' "$1" | g++ -std=c++20 -E -x c++ - >/dev/null 2>&1; }

# version_at_least HAVE WANT, both dotted numbers.
version_at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

has_cmake() {
    command -v cmake >/dev/null && version_at_least "$(cmake --version | sed -n 's/^cmake version \([0-9.]*\).*/\1/p')" 3.25
}
has_compiler() { command -v g++ >/dev/null && version_at_least "$(g++ -dumpfullversion -dumpversion)" 12; }
has_ninja() { command -v ninja >/dev/null; }
has_python() { command -v python3 >/dev/null && python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))'; }
has_gtest() { has_header gmock/gmock.h && has_header gtest/gtest.h; }

# Everything that is missing, as Debian package names, one a line. What is asked is the capability, not the package, so
# that a compiler or a library from elsewhere counts.
missing_packages() {
    has_cmake || echo cmake
    has_ninja || echo ninja-build
    has_python || echo python3
    command -v readelf >/dev/null || echo binutils
    if ! has_compiler; then
        # Headers cannot be looked for without a compiler: ask for all of them.
        printf '%s\n' g++ libfmt-dev libxxhash-dev libcli11-dev nlohmann-json3-dev libgtest-dev libgmock-dev libbenchmark-dev
        return
    fi
    has_header fmt/format.h || echo libfmt-dev
    has_header xxhash.h || echo libxxhash-dev
    has_header CLI/CLI.hpp || echo libcli11-dev
    has_header nlohmann/json.hpp || echo nlohmann-json3-dev
    has_gtest || printf '%s\n' libgtest-dev libgmock-dev
    has_header benchmark/benchmark.h || echo libbenchmark-dev
}

# as_root COMMAND...: as it is for root, else through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif [ -n "${CI:-}" ]; then
        sudo -n "$@"
    else
        sudo "$@"
    fi
}

# apt_install PACKAGE...: refreshes the package lists only when a package is unknown to the ones at hand.
apt_install() {
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120)
    if [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
        fail "these packages are missing and installing them needs root: $*" "As root: apt-get install $*"
    fi
    if ! apt-cache show "$@" >/dev/null 2>&1; then
        as_root "${apt[@]}" update -qq || fail "apt-get update failed" "Packages that are missing: $*"
    fi
    as_root "${apt[@]}" install -y -qq --no-install-recommends "$@" >"$apt_log" 2>&1 || {
        cat "$apt_log" >&2
        fail "apt-get could not install: $*" "Its output is above."
    }
}

install_packages() {
    local missing apt_log="$EPJIT_ROOT/.deps/apt.log"
    mapfile -t missing < <(missing_packages)
    if [ "${#missing[@]}" -eq 0 ]; then
        note "nothing to install"
        return
    fi
    command -v apt-get >/dev/null ||
        fail "missing, by their Debian names: ${missing[*]}" \
            "This script installs packages on Debian and Ubuntu only: please install their like with your package manager," \
            "then run it again. Needed: g++ 12, CMake 3.25, Ninja, Python 3.9, binutils, and the headers of fmt, xxHash," \
            "CLI11, nlohmann-json, GoogleTest with GoogleMock, and Google Benchmark."
    note "installing with apt-get: ${missing[*]}"
    mkdir -p "$EPJIT_ROOT/.deps"
    apt_install "${missing[@]}"
    mapfile -t missing < <(missing_packages)
    [ "${#missing[@]}" -eq 0 ] ||
        fail "still missing, or too old, after the installation: ${missing[*]}" \
            "Needed: g++ 12 or newer and CMake 3.25 or newer, as in Debian 12 and Ubuntu 24.04."
}
