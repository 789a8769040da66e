# SPDX-License-Identifier: Apache-2.0
"""Every source file is built and every template is embedded; one that no CMakeLists.txt names is dead.
(A name without a file fails when CMake configures.)"""

import json
import pathlib

import project


def compiled(root, build):
    """What the build folder compiles, also through names that a CMakeLists.txt puts together."""
    commands = pathlib.Path(build) / "compile_commands.json"
    if not commands.exists():
        return set()
    paths = (pathlib.Path(command["file"]) for command in json.loads(commands.read_text(encoding="utf-8")))
    return {str(path.relative_to(root)) for path in paths if path.is_relative_to(root)}


def check(root, build="build"):
    names = project.files(root)
    built = compiled(root, build)
    lists = {name: project.read(root, name) for name in names
             if name.name == "CMakeLists.txt" or name.suffix == ".cmake"}
    for name in names:
        if name.suffix not in {".cpp", ".c", ".cuh"} or str(name) in built:
            continue
        named = False
        for parent in list(name.parents):
            text = lists.get(parent / "CMakeLists.txt")
            if text is not None and str(name.relative_to(parent)) in text.split() + _quoted(text):
                named = True
        if not named:
            yield f"{name}: no CMakeLists.txt above it names it"
    public = [name for name in names if name.parts[:3] in (("jit", "include", "epjit"), ("host", "include", "epjit"))
              and name.suffix in {".hpp", ".h"} and len(name.parts) == 4]
    top = lists[pathlib.PurePosixPath("CMakeLists.txt")]
    for name in public:
        if str(name) not in top.replace(")", " ").split():
            yield f"{name}: a public header that EPJIT_PUBLIC_HEADERS in CMakeLists.txt does not name"


def _quoted(text):
    """Words of a list file without the parentheses and quotes that touch them."""
    return [word.strip("()\"") for word in text.replace("(", " ").replace(")", " ").split()]


if __name__ == "__main__":
    project.main(check)
