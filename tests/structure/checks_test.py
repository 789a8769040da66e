# SPDX-License-Identifier: Apache-2.0
"""Each check reports what it exists to report: small trees, right and wrong."""

import os
import pathlib
import tempfile
import unittest

import api_document
import changelog
import cmake_lists
import document_links
import feature_document
import forbidden_words
import formatting
import include_direction
import licence_lines
import readme_commands

SPDX = "SPDX-License-Identifier: Apache-2.0"


class tree:
    """A folder with the given files, gone at the end."""

    def __init__(self, contents):
        self.contents = contents

    def __enter__(self):
        self.folder = tempfile.TemporaryDirectory()
        for name, text in self.contents.items():
            path = pathlib.Path(self.folder.name) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                os.chmod(path, 0o755)
        return self.folder.name

    def __exit__(self, *_):
        self.folder.cleanup()


def faults(check, contents):
    with tree(contents) as root:
        return list(check(root))


class include_rule(unittest.TestCase):
    def test_left_is_allowed_and_right_is_not(self):
        files = {"jit/include/epjit/types.hpp": "", "cache/store.cpp": '#include "epjit/types.hpp"\n#include <map>\n'}
        self.assertEqual(faults(include_direction.check, files), [])
        files["host/include/epjit/exchange.hpp"] = ""
        files["cache/store.cpp"] = '#include "epjit/exchange.hpp"\n'
        self.assertIn("not to the left of cache/", faults(include_direction.check, files)[0])

    def test_private_headers_are_followed_by_folder(self):
        files = {"tools/a.hpp": "", "jit/b.cpp": '#include "tools/a.hpp"\n'}
        self.assertIn("of tools/", faults(include_direction.check, files)[0])
        files = {"tests/a.hpp": "", "tools/b.cpp": '#include "tests/a.hpp"\n'}
        self.assertIn("of tests/", faults(include_direction.check, files)[0])

    def test_templates_take_no_angle_brackets(self):
        found = faults(include_direction.check, {"templates/plan/a.cuh": "#include <cuda_bf16.h>\n"})
        self.assertIn("<cuda_bf16.h>", found[0])

    def test_unknown_project_files_are_named(self):
        self.assertIn("gone.hpp", faults(include_direction.check, {"jit/a.cpp": '#include "gone.hpp"\n'})[0])


class lines_and_words(unittest.TestCase):
    def test_missing_licence_line(self):
        licence = "Apache License\nEND OF TERMS AND CONDITIONS\n"
        good = {"LICENSE": licence, "a.cpp": f"// {SPDX}\n", "run": f"#!/bin/sh\n# {SPDX}\n", "note.md": "x"}
        self.assertEqual(faults(licence_lines.check, good), [])
        self.assertIn("b.cpp", faults(licence_lines.check, {**good, "b.cpp": "int x;\n"})[0])
        self.assertIn("LICENSE", faults(licence_lines.check, {**good, "LICENSE": "short"})[0])

    def test_forbidden_words(self):
        for word in ("/ro" + "ot/x", "/wo" + "rk/x", "/ho" + "me/anna/x", "pypi." + "org", "TO" + "DO", "10." + "1.2.3"):
            self.assertEqual(len(faults(forbidden_words.check, {"a.md": f"see {word} there"})), 1, word)
        harmless = "the root, $HOME/.cache, a/ro" + "ot/b, /usr/local/cuda, 10.12 us, ${x}/wo" + "rk/y"
        self.assertEqual(faults(forbidden_words.check, {"a.md": harmless}), [])

    @unittest.skipIf(formatting.formatter() is None, "clang-format 14 is not installed")
    def test_formatting(self):
        style = "BasedOnStyle: Google\n"
        self.assertEqual(faults(formatting.check, {".clang-format": style, "a.cpp": "int x;\n"}), [])
        self.assertIn("a.cpp", faults(formatting.check, {".clang-format": style, "a.cpp": "int   x ;\n"})[0])


class lists_and_documents(unittest.TestCase):
    def test_unbuilt_source(self):
        files = {"CMakeLists.txt": "project(x)", "jit/CMakeLists.txt": "add_library(j core/a.cpp)", "jit/core/a.cpp": ""}
        self.assertEqual(faults(cmake_lists.check, files), [])
        self.assertIn("jit/core/b.cpp", faults(cmake_lists.check, {**files, "jit/core/b.cpp": ""})[0])
        header = {**files, "jit/include/epjit/new.hpp": ""}
        self.assertIn("EPJIT_PUBLIC_HEADERS", faults(cmake_lists.check, header)[0])

    def test_version(self):
        files = {"VERSION": "0.1.0\n", "CHANGELOG.md": "# Changes\n\n## 0.1.0\n", "CMakeLists.txt": "file(STRINGS VERSION V)"}
        self.assertEqual(faults(changelog.check, files), [])
        self.assertIn("CHANGELOG.md", faults(changelog.check, {**files, "CHANGELOG.md": "## 0.0.9\n"})[0])
        self.assertIn("jit/a.cpp", faults(changelog.check, {**files, "jit/a.cpp": 'auto v = "0.1.0";\n'})[0])

    def test_links(self):
        pages = "[a](docs/api.md#the-plan) [o](docs/operations.md) [m](docs/measurements.md) [c](CONTRIBUTING.md)"
        files = {"README.md": pages, "docs/api.md": "## The plan\n", "docs/operations.md": "", "docs/measurements.md": "",
                 "CONTRIBUTING.md": ""}
        self.assertEqual(faults(document_links.check, files), [])
        self.assertIn("no such heading", faults(document_links.check, {**files, "docs/api.md": "## Plan\n"})[0])
        self.assertIn("gone.md", faults(document_links.check, {**files, "docs/x.md": "[x](gone.md)"})[0])

    def test_features_name_tests_that_exist(self):
        head = "| capability | state | proof |\n| --- | --- | --- |\n"
        files = {"tests/a/x_test.cpp": "TEST(plan, works) {}\nTEST_F(fixture,\n       goes_on) {}\n",
                 "tests/b/y_test.py": "def test_it(self):\n", "tests/CMakeLists.txt": "add_test(NAME structure.z)"}

        def found(row):
            return faults(feature_document.check, {**files, "docs/features.md": head + row + "\n"})

        self.assertEqual(found("| moves | done | `plan.works`, `fixture.goes_on`, `y_test.test_it`, `structure.z` |"), [])
        self.assertEqual(found("| norms | out of scope | the model's own |"), [])
        self.assertIn("no test plan.flies", found("| moves | done | `plan.flies` |")[0])
        self.assertIn("names no test", found("| moves | done | everywhere |")[0])
        self.assertIn("does not say why", found("| moves | partly | `plan.works` |")[0])
        self.assertIn("'maybe'", found("| moves | maybe | `plan.works` |")[0])
        self.assertIn("2 cells", found("| moves | done |")[0])

    def test_readme_commands(self):
        code = "".join(f"int a{i};\n" for i in range(10))
        files = {"README.md": f"```sh\ntools/quickstart\ntools/test\n```\n```cpp\n{code}```\n",
                 "tools/quickstart": "#!/bin/sh\n", "tools/test": "#!/bin/sh\n", ".ci/run": "tools/test",
                 "docs/examples/embed/main.cpp": code + "int more;\n"}
        self.assertEqual(faults(readme_commands.check, files), [])
        other = files["README.md"].replace("tools/test", "make test")
        self.assertIn("make test", faults(readme_commands.check, {**files, "README.md": other})[0])
        drifted = files["README.md"].replace("int a3;", "int b3;")
        self.assertIn("int b3;", faults(readme_commands.check, {**files, "README.md": drifted})[0])

    def test_api_names(self):
        header = """// comment with other_function(
            enum class colour : int { red, green };
            struct EPJIT_API box { int width = 0; const float* data = nullptr; void (*hook)(void*) = nullptr; };
            class EPJIT_API engine {
               public:
                explicit engine(int size) : size_(size), box_{1} { start(size); }
                [[nodiscard]] int run(const box& b) const noexcept { return helper(b); }
               private:
                int hidden_function();
                int size_;
            };
            """
        text = api_document.declarations(header)
        self.assertEqual(api_document.types(text), {"colour", "box", "engine"})
        self.assertEqual(api_document.functions(text), {"engine", "run"})
        self.assertEqual(api_document.fields(text), {"width", "data", "hook"})
        self.assertEqual(api_document.enumerators(text), {"red", "green"})
        files = {"CMakeLists.txt": "set(EPJIT_PUBLIC_HEADERS\n a.hpp)", "a.hpp": header,
                 "docs/api.md": "`colour` `red` `green` `box` `width` `data` `hook` `engine` `run`"}
        self.assertEqual(faults(api_document.check, files), [])
        files["docs/api.md"] = files["docs/api.md"].replace("`run`", "run")
        self.assertIn("function run", faults(api_document.check, files)[0])

    def test_names_of_a_c_header(self):
        header = """typedef int32_t colour; // of paint
            enum { COLOUR_RED = 0, COLOUR_BLUE = 1, };
            typedef void (*visitor)(void* user, colour c);
            typedef struct box { uint32_t struct_size; visitor hook; char name[8]; } box;
            EPJIT_API int32_t open_box(const box* b, void (*other)(int));
            """
        text = api_document.declarations(header)
        self.assertEqual(api_document.types(text), {"colour", "visitor", "box"})
        self.assertEqual(api_document.enumerators(text), {"COLOUR_RED", "COLOUR_BLUE"})
        self.assertEqual(api_document.functions(text), {"open_box"})
        self.assertEqual(api_document.fields(text), {"struct_size", "hook"})
        files = {"CMakeLists.txt": "set(EPJIT_PUBLIC_HEADERS\n a.h)", "a.h": header, "docs/api.md": "`hook`",
                 "docs/c_interface.md": "`colour` `COLOUR_RED` `COLOUR_BLUE` `visitor` `box` `struct_size` `open_box`"}
        self.assertEqual(faults(api_document.check, files), [])
        files["docs/c_interface.md"] = files["docs/c_interface.md"].replace("`COLOUR_RED`", "")
        self.assertIn("docs/c_interface.md: does not name the value COLOUR_RED", faults(api_document.check, files)[0])


if __name__ == "__main__":
    unittest.main()
