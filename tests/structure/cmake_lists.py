# SPDX-License-Identifier: Apache-2.0
"""Every source file is built and every template is embedded: a file that no CMakeLists.txt names is dead.
(A name without a file fails when CMake configures.)"""

import pathlib

import project


def check(root):
    names = project.files(root)
    lists = {name: project.read(root, name) for name in names
             if name.name == "CMakeLists.txt" or name.suffix == ".cmake"}
    for name in names:
        if name.suffix not in {".cpp", ".c", ".cuh"}:
            continue
        named = False
        for parent in list(name.parents):
            text = lists.get(parent / "CMakeLists.txt")
            if text is not None and str(name.relative_to(parent)) in text.split() + _quoted(text):
                named = True
        if not named:
            yield f"{name}: no CMakeLists.txt above it names it"
    public = [name for name in names if name.parts[:3] in (("jit", "include", "epjit"), ("host", "include", "epjit"))
              and name.suffix == ".hpp" and len(name.parts) == 4]
    top = lists[pathlib.PurePosixPath("CMakeLists.txt")]
    for name in public:
        if str(name) not in top.replace(")", " ").split():
            yield f"{name}: a public header that EPJIT_PUBLIC_HEADERS in CMakeLists.txt does not name"


def _quoted(text):
    """Words of a list file without the parentheses and quotes that touch them."""
    return [word.strip("()\"") for word in text.replace("(", " ").replace(")", " ").split()]


if __name__ == "__main__":
    project.main(check)
