# SPDX-License-Identifier: Apache-2.0
"""What the package tests share: installing components into a folder, and running programs."""

import os
import pathlib
import subprocess

BUILD = pathlib.Path(os.environ["EPJIT_BUILD"])
SOURCE = pathlib.Path(os.environ["EPJIT_SOURCE"])
CMAKE = os.environ["CMAKE"]
VERSION = (SOURCE / "VERSION").read_text(encoding="utf-8").strip()


def run(*command, check=True, **options):
    """Output and errors as text; with `check`, a failure is an AssertionError that shows both."""
    options.setdefault("timeout", 250)
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    if check and result.returncode != 0:
        raise AssertionError(f"{command} exited with {result.returncode}\n{result.stdout}\n{result.stderr}")
    return result


def install(prefix, *components):
    """The named components of the build, stripped, below `prefix`."""
    for component in components:
        run(CMAKE, "--install", BUILD, "--prefix", prefix, "--component", component, "--strip")


def find(prefix, pattern):
    """The one file below `prefix` that matches."""
    found = [path for path in pathlib.Path(prefix).rglob(pattern) if not path.is_symlink()]
    assert len(found) == 1, f"{pattern}: {found}"
    return found[0]
