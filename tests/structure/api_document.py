# SPDX-License-Identifier: Apache-2.0
"""docs/api.md names every class, enumeration, function and field of the headers that an embedder gets. A C header's are in
docs/c_interface.md; what it shares with the C++ headers may stand in docs/api.md."""

import re

import project

NOT_NAMES = {"if", "for", "while", "return", "sizeof", "alignof", "static_assert", "noexcept", "requires", "decltype",
             "operator", "defined", "__attribute__", "alignas", "explicit", "void", "bool"}


def public_headers(root):
    text = project.read(root, "CMakeLists.txt")
    listed = re.search(r"set\(EPJIT_PUBLIC_HEADERS(.*?)\)", text, re.DOTALL)
    return listed.group(1).split()


def declarations(text):
    """The header without comments, preprocessor lines, strings, private parts and function bodies."""
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
    text = re.sub(r"\bprivate:.*?(?=\n\s*};)", "", text, flags=re.DOTALL)
    return without_bodies(text)


def matching_brace(text, opening):
    depth = 0
    for at in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
    raise ValueError("unbalanced braces")


def without_bodies(text):
    """`text` with the bodies of functions made into semicolons, and initialisers in braces gone."""
    out, at, statement = [], 0, ""
    while at < len(text):
        char = text[at]
        if char != "{":
            statement = "" if char in ";}" else statement + char
            out.append(char)
            at += 1
            continue
        head = statement.strip()
        if "(" not in re.sub(r"\(\*\w+\)\([^)]*\)", "", head) and re.search(r"\b(class|struct|enum|namespace|extern)\b", head):
            out.append(char)
            statement = ""
            at += 1
            continue
        initialiser = re.search(r"\w$", head) and not re.search(r"\b(const|noexcept|override)$", head)
        at = matching_brace(text, at) + 1
        if not initialiser:
            out.append(";")
            statement = ""
    return "".join(out)


def types(text):
    found = re.findall(r"\b(?:class|struct)\s+(?:EPJIT_API\s+)?(\w+)\s*(?=[:{])", text)
    found += re.findall(r"\benum\s+class\s+(\w+)", text)
    found += re.findall(r"\busing\s+(\w+)\s*=", text)
    found += re.findall(r"\btypedef\s+[^;{(]*?(\w+)\s*;", text)
    found += re.findall(r"\btypedef\s+[^;{(]*\(\*(\w+)\)", text)
    return set(found)


def functions(text):
    found = re.findall(r"(?<![~\w:])([a-z]\w*)\s*\(", text)
    return {name for name in found if name not in NOT_NAMES and not name.endswith("_")}


def fields(text):
    found = set()
    for body in re.findall(r"\bstruct\s+(?:EPJIT_API\s+)?\w+\s*\{((?:[^{}]|\{[^{}]*\})*)\}", text):
        for statement in body.split(";"):
            if "(" in statement and "(*" not in statement:
                continue
            pointer = re.search(r"\(\*(\w+)\)", statement)
            plain = re.search(r"[\w>*&]\s+[*&]?(\w+)\s*(?:=.*)?$", statement.strip(), re.DOTALL)
            for declared in (pointer, plain):
                if declared:
                    found.add(declared.group(1))
                    break
    return found


def enumerators(text):
    found = set()
    for body in re.findall(r"\benum\s+class\s+\w+\s*(?::[^{]*)?\{([^}]*)\}", text):
        found |= set(re.findall(r"\b([a-z]\w*)\b(?=\s*[,=}]|\s*$)", body))
    for body in re.findall(r"\benum\s*\{([^}]*)\}", text):
        found |= set(re.findall(r"\b([A-Z]\w*)\b(?=\s*[,=}]|\s*$)", body))
    return found


def named(document):
    """Words in code of a document."""
    return set(re.findall(r"\w+", " ".join(re.findall(r"`[^`\n]+`|```.*?```", document, flags=re.DOTALL))))


def check(root):
    known = named(project.read(root, "docs/api.md"))
    total = 0
    for header in public_headers(root):
        in_c = header.endswith(".h")
        page = "docs/c_interface.md" if in_c else "docs/api.md"
        here = known | named(project.read(root, page)) if in_c else known
        text = declarations(project.read(root, header))
        for what, names in (("type", types(text)), ("function", functions(text)), ("field", fields(text)),
                            ("value", enumerators(text))):
            total += len(names)
            for name in sorted(names - here):
                yield f"{page}: does not name the {what} {name} of {header}"
    print(f"{total} names of {len(public_headers(root))} headers")


if __name__ == "__main__":
    project.main(check)
