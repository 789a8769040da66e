# SPDX-License-Identifier: Apache-2.0
"""docs/features.md: every capability has a state, what is called done names its tests, and every test named exists."""

import re

import project

STATES = {"done", "partly", "not yet", "out of scope"}
CELLS = re.compile(r"(?<!\\)\|")


def gtests(text):
    return {f"{suite}.{test}" for suite, test in
            re.findall(r"\b(?:TEST|TEST_F|TEST_P|TYPED_TEST)\(\s*(\w+),\s*(\w+)\s*\)", text)}


def ctests(text):
    names = set(re.findall(r"add_test\(NAME\s+([\w.]+)", text))
    checks = re.search(r"set\(checks(.*?)\)", text, re.DOTALL)
    return names | ({f"structure.{name}" for name in checks.group(1).split()} if checks else set())


def known_tests(root):
    found = set()
    for name in project.files(root):
        if name.parts[0] != "tests":
            continue
        if name.suffix == ".cpp":
            found |= gtests(project.read(root, name))
        elif name.suffix == ".py":
            found |= {f"{name.stem}.{test}" for test in re.findall(r"def (test_\w+)", project.read(root, name))}
        elif name.name == "CMakeLists.txt":
            found |= ctests(project.read(root, name))
    return found


def rows(text):
    """(line number, cells) of every table row but heads and rules."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("|") and not set(line) <= set("|- "):
            cells = [cell.strip() for cell in CELLS.split(line.strip().strip("|"))]
            if cells[0] != "capability":
                yield number, cells


def check(root):
    known = known_tests(root)
    total = 0
    for number, cells in rows(project.read(root, "docs/features.md")):
        where = f"docs/features.md:{number}"
        if len(cells) != 3:
            yield f"{where}: {len(cells)} cells instead of capability, state and proof"
            continue
        capability, state, proof = cells
        tests = re.findall(r"`([\w.]+\.[\w]+)`", proof)
        total += len(tests)
        if state not in STATES:
            yield f"{where}: '{state}' is none of {sorted(STATES)}"
        if state in {"done", "partly"} and not tests:
            yield f"{where}: '{capability}' is {state} and names no test"
        if state != "done" and not re.sub(r"`[^`]*`|[,; ]", "", proof):
            yield f"{where}: '{capability}' is {state} and does not say why"
        for test in tests:
            if test not in known:
                yield f"{where}: there is no test {test}"
    print(f"{total} tests named")


if __name__ == "__main__":
    project.main(check)
