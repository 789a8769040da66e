# SPDX-License-Identifier: Apache-2.0
"""templates -> jit -> cache -> host -> tools: code includes its own folder or one to its left."""

import pathlib
import re

import project

INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)
CODE = {".hpp", ".cpp", ".cuh", ".c", ".h"}


def folder_of(name, public):
    """The folder that owns the included `name`, or None for one that is not the project's. `public` maps the path
    under an include folder to its owner."""
    first = pathlib.PurePosixPath(name).parts[0]
    if name in public:
        return public[name]
    return first if first in project.FOLDERS + ["tests"] else None


def check(root):
    names = [name for name in project.files(root) if name.suffix in CODE]
    public = {}
    for name in names:
        if len(name.parts) > 2 and name.parts[1] == "include":
            public[str(pathlib.PurePosixPath(*name.parts[2:]))] = name.parts[0]
        elif name.parts[0] == "templates":
            public[str(pathlib.PurePosixPath(*name.parts[1:]))] = "templates"
    for name in names:
        home = name.parts[0]
        if home not in project.FOLDERS:
            continue
        for bracket, included in INCLUDE.findall(project.read(root, name)):
            if name.suffix == ".cuh" and bracket == "<":
                yield f"{name}: includes <{included}>; templates include nothing but each other"
                continue
            beside = str(name.parent / included)
            owner = home if any(str(other) == beside for other in names) else folder_of(included, public)
            if owner is None:
                if bracket == '"':
                    yield f'{name}: includes "{included}", which is no file of the project'
            elif owner == "tests" or project.FOLDERS.index(owner) > project.FOLDERS.index(home):
                yield f"{name}: includes {included} of {owner}/, which is not to the left of {home}/"


if __name__ == "__main__":
    project.main(check)
