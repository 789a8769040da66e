# SPDX-License-Identifier: Apache-2.0
"""Every C++ and template file is as clang-format 14 leaves it with the project's .clang-format."""

import pathlib
import shutil
import subprocess
import sys

import project

SUFFIXES = {".hpp", ".cpp", ".cuh", ".c", ".h"}


def formatter():
    """clang-format 14, which other versions do not agree with in places; None when it is not installed."""
    for name in ("clang-format-14", "clang-format"):
        path = shutil.which(name)
        if path and " 14." in subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout:
            return path
    return None


def check(root):
    tool = formatter()
    paths = [str(pathlib.Path(root) / name) for name in project.files(root) if name.suffix in SUFFIXES]
    result = subprocess.run([tool, "--dry-run", "--style=file", *paths], capture_output=True, text=True, check=False)
    if result.returncode != 0:
        yield f"{tool} failed: {result.stderr.strip()}"
        return
    bad = {line.split(":", 1)[0] for line in result.stderr.splitlines() if "[-Wclang-format-violations]" in line}
    for path in sorted(bad):
        yield f"{pathlib.Path(path).relative_to(root)}: not formatted; run {pathlib.Path(tool).name} -i on it"


if __name__ == "__main__":
    if formatter() is None:
        print("skipped: clang-format 14 is not installed")
        sys.exit(project.SKIPPED)
    project.main(check)
