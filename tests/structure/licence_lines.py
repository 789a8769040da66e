# SPDX-License-Identifier: Apache-2.0
"""Every source carries the SPDX line, first or right below #!, and LICENSE is the text that it names."""

import project

LINE = "SPDX-License-Identifier: Apache-2.0"


def check(root):
    for name in project.files(root):
        if not project.is_source(root, name):
            continue
        lines = project.read(root, name).split("\n", 2)
        first = lines[1] if lines[0].startswith("#!") and len(lines) > 1 else lines[0]
        if LINE not in first:
            yield f"{name}: the first line is not '{LINE}'"
    text = project.read(root, "LICENSE")
    if "Apache License" not in text or "END OF TERMS AND CONDITIONS" not in text:
        yield "LICENSE: not the full text of the Apache License 2.0"


if __name__ == "__main__":
    project.main(check)
