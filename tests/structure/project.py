# SPDX-License-Identifier: Apache-2.0
"""What the checks share: the project's files, and how a check reports."""

import pathlib
import subprocess
import sys

FOLDERS = ["templates", "jit", "cache", "host", "tools"]
SOURCE_SUFFIXES = {".hpp", ".cpp", ".cuh", ".c", ".h", ".cmake", ".in", ".map", ".py", ".sh"}
SKIPPED = 77


def files(root):
    """Every file of the project, relative to `root`: what git tracks or would, else all but hidden and built ones."""
    root = pathlib.Path(root)
    listed = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True, check=False) if (root / ".git").exists() else None
    if listed is not None and listed.returncode == 0:
        names = [name for name in listed.stdout.decode().split("\0") if name]
    else:
        names = [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]
        names = [name for name in names
                 if not name.startswith(("build", ".deps", ".git/", ".stage")) and "__pycache__" not in name]
    return sorted(pathlib.PurePosixPath(name) for name in names if (root / name).is_file())


def read(root, name):
    return (pathlib.Path(root) / name).read_text(encoding="utf-8")


def is_text(root, name):
    return b"\0" not in (pathlib.Path(root) / name).read_bytes()[:8192]


def is_script(root, name):
    """A file without a suffix that starts with #!."""
    return name.suffix == "" and (pathlib.Path(root) / name).read_bytes()[:2] == b"#!"


def is_source(root, name):
    """Code, also of the build and the shell; not documents and data."""
    return name.suffix in SOURCE_SUFFIXES or name.name == "CMakeLists.txt" or is_script(root, name)


def main(check, argv=None):
    """Runs `check(root)`, or `check(root, build)`, which yields one line for each fault, and exits."""
    faults = list(check(*(argv or sys.argv)[1:]))
    for fault in faults:
        print(fault)
    print(f"{len(faults)} faults" if faults else "no faults")
    sys.exit(1 if faults else 0)
