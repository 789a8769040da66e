# SPDX-License-Identifier: Apache-2.0
"""Links between the documents lead somewhere: files exist, and a #heading is one of the target's."""

import pathlib
import re

import project

LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def anchors(text):
    """Headings as the names that a link uses: lower case, punctuation gone, spaces as hyphens."""
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in HEADING.findall(plain)}


def check(root):
    documents = [name for name in project.files(root) if name.suffix == ".md"]
    for name in documents:
        text = re.sub(r"```.*?```", "", project.read(root, name), flags=re.DOTALL)
        for target in LINK.findall(text) + IMAGE.findall(text):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (pathlib.Path(root) / name.parent / path) if path else pathlib.Path(root) / name
            if not file.exists():
                yield f"{name}: links to {target}, which does not exist"
            elif anchor and file.suffix == ".md" and anchor not in anchors(file.read_text(encoding="utf-8")):
                yield f"{name}: links to {target}, but that file has no such heading"
    for name in ("docs/api.md", "docs/operations.md", "docs/measurements.md", "CONTRIBUTING.md"):
        if f"({name}" not in project.read(root, "README.md"):
            yield f"README.md: does not link to {name}"


if __name__ == "__main__":
    project.main(check)
