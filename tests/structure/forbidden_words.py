# SPDX-License-Identifier: Apache-2.0
"""No file speaks of the machine it was written on: no home or work folders, no addresses of package servers."""

import re

import project

# In pieces, so that this file does not hold what it forbids.
PATTERNS = {
    "a home folder": r"(?<![\w$}/.])/(?:ro" + r"ot|ho" + r"me/[a-z]+|Us" + r"ers/[a-z]+)(?:/|\b(?!-))",
    "a work folder": r"(?<![\w$}/.])/wo" + r"rk/",
    "a package server": r"arti" + r"factory|\bpip\.conf\b|simple/? *index|index-u" + r"rl|pypi\." + r"org|mirr" + r"ors?\.",
    "a private address": r"\b(?:10|192\.168|172\.(?:1[6-9]|2\d|3[01]))(?:\.\d{1,3}){2,3}\b",
    "unfinished work": r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b",
}


def check(root):
    compiled = {what: re.compile(pattern) for what, pattern in PATTERNS.items()}
    for name in project.files(root):
        if not project.is_text(root, name):
            continue
        for number, line in enumerate(project.read(root, name).splitlines(), 1):
            for what, pattern in compiled.items():
                found = pattern.search(line)
                if found:
                    yield f"{name}:{number}: {what}: '{found.group(0)}'"


if __name__ == "__main__":
    project.main(check)
