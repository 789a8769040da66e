# SPDX-License-Identifier: Apache-2.0
"""The example in docs/examples/embed builds against an installed epjit, in both forms, and computes the right values."""

import pathlib
import tempfile
import unittest

import staging

EXAMPLE = staging.SOURCE / "docs" / "examples" / "embed"


class installed_package(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.root = pathlib.Path(cls.folder.name)
        cls.prefix = cls.root / "installed"
        staging.install(cls.prefix, "development", "runtime")

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def build_and_run(self, form):
        out = self.root / form
        # -Werror: the public headers compile without a warning in someone else's project.
        staging.run(staging.CMAKE, "-S", EXAMPLE, "-B", out, f"-DCMAKE_PREFIX_PATH={self.prefix}",
                    "-DCMAKE_CXX_FLAGS=-Wall -Wextra -Werror", f"-DBUILD_SHARED_LIBS={form == 'shared'}")
        staging.run(staging.CMAKE, "--build", out)
        result = staging.run(out / "embed", env={})
        self.assertIn(staging.VERSION, result.stdout)
        self.assertIn(" 0 wrong values", result.stdout)
        return staging.run("readelf", "-d", out / "embed").stdout

    def test_static_library(self):
        self.assertNotIn("libepjit", self.build_and_run("static"))

    def test_shared_library(self):
        self.assertIn(f"libepjit.so.{staging.VERSION.split('.')[0]}", self.build_and_run("shared"))

    def test_package_is_movable_and_names_no_private_dependency(self):
        for path in self.prefix.rglob("*.cmake"):
            text = path.read_text(encoding="utf-8")
            for word in ("fmt", "nlohmann", "xxhash", "CLI11", str(self.prefix), str(staging.SOURCE)):
                self.assertNotIn(word, text, path)

    def test_another_version_is_refused(self):
        project = self.root / "version"
        project.mkdir()
        (project / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.23)\nproject(x LANGUAGES CXX)\nfind_package(epjit 99.0 REQUIRED)\n",
            encoding="utf-8")
        result = staging.run(staging.CMAKE, "-S", project, "-B", project / "out",
                             f"-DCMAKE_PREFIX_PATH={self.prefix}", check=False)
        self.assertNotEqual(result.returncode, 0)
        self.assertIn("99.0", result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
