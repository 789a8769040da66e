# SPDX-License-Identifier: Apache-2.0
"""VERSION is the one place of the version: CHANGELOG starts with it and no other file sets it."""

import re

import project


def check(root):
    version = project.read(root, "VERSION").strip()
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        yield f"VERSION: '{version}' is not three numbers"
        return
    headings = re.findall(r"^## (\S+)", project.read(root, "CHANGELOG.md"), re.MULTILINE)
    if not headings or headings[0] != version:
        yield f"CHANGELOG.md: its first entry is {headings[:1]}, not {version}"
    if "file(STRINGS VERSION" not in project.read(root, "CMakeLists.txt"):
        yield "CMakeLists.txt: does not take the version from VERSION"
    for name in project.files(root):
        if name.suffix in {".cpp", ".hpp"} and name.parts[0] in project.FOLDERS:
            for line in project.read(root, name).splitlines():
                if f'"{version}"' in line and not line.lstrip().startswith("//"):
                    yield f"{name}: repeats the version: {line.strip()}"


if __name__ == "__main__":
    project.main(check)
