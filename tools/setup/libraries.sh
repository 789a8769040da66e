# SPDX-License-Identifier: Apache-2.0
# Sourced by common.sh: NVRTC and NCCL, which the library opens at run time. Nothing here is needed to build.

wheel_folder="$EPJIT_ROOT/.deps/python"

has_gpu() { [ -e /dev/nvidiactl ] || [ -e /dev/dxg ]; }

# Folders that may hold NVIDIA libraries, in the order in which they are taken, one a line.
library_folders() {
    local home
    for home in "${CUDA_HOME:-}" "${CUDA_PATH:-}"; do
        [ -z "$home" ] || printf '%s\n' "$home/lib64" "$home/lib" "$home/targets/$(uname -m)-linux/lib"
    done
    printf '%s\n' "${LD_LIBRARY_PATH:-}" | tr ':' '\n'
    # Newest toolkit first.
    for home in /usr/local/cuda $(ls -d /usr/local/cuda-* /opt/cuda 2>/dev/null | sort -rV); do
        printf '%s\n' "$home/lib64" "$home/targets/$(uname -m)-linux/lib"
    done
    printf '%s\n' "/usr/lib/$(uname -m)-linux-gnu" /usr/lib64 /usr/lib
    # The active Python environment's wheels.
    python3 - <<'PYTHON' || true
import os, sys
for place in sys.path:
    root = os.path.join(place, "nvidia")
    if place and os.path.isdir(root):
        for package in sorted(os.listdir(root)):
            print(os.path.join(root, package, "lib"))
PYTHON
    ls -d "$wheel_folder"/nvidia/*/lib 2>/dev/null || true
}

# find_library NAME: the first NAME.so.N of library_folders; nothing when there is none.
find_library() {
    local folder file
    while IFS= read -r folder; do
        [ -n "$folder" ] || continue
        for file in $(ls -d "$folder/$1".so.* 2>/dev/null | grep -v '\.alt\.' | sort -rV); do
            [ -f "$file" ] && printf '%s\n' "$file" && return
        done
    done < <(library_folders)
}

# CUDA's major version for wheels: what the driver can run, else 13.
cuda_major() {
    local version=""
    if command -v nvidia-smi >/dev/null; then
        version=$(nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\)\..*/\1/p' | head -n 1)
    fi
    if [ "${version:-13}" -ge 13 ]; then echo 13; else echo 12; fi
}

# install_wheel NAME...: into the project's own folder, without dependencies. False when it cannot.
install_wheel() {
    local pip=(python3 -m pip)
    "${pip[@]}" --version >/dev/null 2>&1 || {
        command -v apt-get >/dev/null || return 1
        note "installing with apt-get: python3-pip"
        mkdir -p "$EPJIT_ROOT/.deps"
        (apt_log="$EPJIT_ROOT/.deps/apt.log" apt_install python3-pip) || return 1
    }
    note "installing into .deps/python: $*"
    PIP_ROOT_USER_ACTION=ignore "${pip[@]}" install --quiet --disable-pip-version-check --no-input --no-deps --target "$wheel_folder" "$@"
}

# need_library TITLE NAME VARIABLE WHEEL: finds a library, else installs its wheel. Exports VARIABLE with the path of one
# in a wheel; the library finds the others by itself.
need_library() {
    local title=$1 name=$2 variable=$3 wheel=$4 found
    if [ -n "${!variable:-}" ]; then
        note "$title: ${!variable} (from $variable)"
        return
    fi
    found=$(find_library "$name")
    if [ -z "$found" ] && install_wheel "$wheel"; then
        found=$(find_library "$name")
    fi
    if [ -z "$found" ]; then
        note "$title: not found, and the wheel $wheel could not be installed."
        note "  Set $variable to the path of $name.so, or CUDA_HOME to a CUDA toolkit."
        return
    fi
    case "$found" in
        */nvidia/*) export "$variable=$found" ;;
    esac
    note "$title: $found"
}

find_libraries() {
    if [ "$(cuda_major)" = 12 ]; then
        need_library NVRTC libnvrtc EPJIT_NVRTC_LIBRARY nvidia-cuda-nvrtc-cu12
    else
        need_library NVRTC libnvrtc EPJIT_NVRTC_LIBRARY 'nvidia-cuda-nvrtc>=13,<14'
    fi
    if [ -n "${EPJIT_NCCL_LIBRARY:-}" ] || has_gpu || [ -n "$(find_library libnccl)" ]; then
        need_library NCCL libnccl EPJIT_NCCL_LIBRARY "nvidia-nccl-cu$(cuda_major)"
    else
        note "NCCL: not found, and of no use without a GPU"
    fi
}
