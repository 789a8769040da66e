# SPDX-License-Identifier: Apache-2.0
"""The README gives two commands, tools/quickstart and tools/test; they exist, can be run, and CI runs the tests' one.
Its embedding example is a piece of the program in docs/examples/embed, which the tests build and run."""

import os
import pathlib
import re

import project

COMMANDS = ["tools/quickstart", "tools/test"]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def check(root):
    text = project.read(root, "README.md")
    blocks = FENCE.findall(text)
    shell = [line.strip() for language, body in blocks if language in ("sh", "bash", "console", "shell")
             for line in body.splitlines()]
    commands = [line.split("#")[0].strip() for line in shell if line and not line.startswith("#")]
    if commands != COMMANDS:
        yield f"README.md: its commands are {commands}, not {COMMANDS}"
    for command in COMMANDS:
        path = pathlib.Path(root) / command
        if not path.is_file() or not os.access(path, os.X_OK):
            yield f"{command}: not there, or cannot be run"
    if "tools/test" not in project.read(root, ".ci/run"):
        yield ".ci/run: does not call tools/test"

    examples = [body for language, body in blocks if language == "cpp"]
    program = _lines(project.read(root, "docs/examples/embed/main.cpp"))
    if len(examples) != 1:
        yield f"README.md: {len(examples)} C++ examples instead of one"
    for example in examples:
        lines = _lines(example)
        if not 8 <= len(lines) <= 12:
            yield f"README.md: the example has {len(lines)} lines instead of about ten"
        for line in lines:
            if line not in program:
                yield f"README.md: '{line}' is not a line of docs/examples/embed/main.cpp"


def _lines(text):
    """Lines of code without indentation and trailing comments."""
    stripped = (line.split("//")[0].strip() for line in text.splitlines())
    return [line for line in stripped if line]


if __name__ == "__main__":
    project.main(check)
