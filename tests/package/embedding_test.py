# SPDX-License-Identifier: Apache-2.0
"""The examples in docs/examples build against an installed epjit, in both forms, and compute the right values."""

import os
import pathlib
import shutil
import tempfile
import unittest

import staging

EXAMPLE = staging.SOURCE / "docs" / "examples" / "embed"
EXAMPLE_C = staging.SOURCE / "docs" / "examples" / "embed_c"
C_FLAGS = ["-std=c99", "-Wall", "-Wextra", "-pedantic", "-Werror"]


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

    def run_c(self, program, **environment):
        """The C example alone: ranks on the CPU, and on a GPU where one can be used."""
        env = {name: value for name, value in os.environ.items() if name not in (
            "WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_NTASKS")}
        result = staging.run(program, env={**env, "XDG_CACHE_HOME": str(self.root / "cache"), **environment})
        self.assertIn(f"epjit {staging.VERSION}\n", result.stdout)
        self.assertIn("host: one layer over 4 ranks, 0 wrong values\n", result.stdout)
        self.assertRegex(result.stdout, r"loopback: (one layer over 4 ranks, 0 wrong values|skipped: \S.*)\n")
        print("".join(line + "\n" for line in result.stdout.splitlines() if "skipped" in line), end="")

    def test_c_program_with_a_c_compiler_only(self):
        out = self.root / "c"
        staging.run(staging.CMAKE, "-S", EXAMPLE_C, "-B", out, f"-DCMAKE_PREFIX_PATH={self.prefix}",
                    "-DCMAKE_C_FLAGS=" + " ".join(C_FLAGS[1:]))
        staging.run(staging.CMAKE, "--build", out)
        self.assertNotIn("CMAKE_CXX_COMPILER:", (out / "CMakeCache.txt").read_text(encoding="utf-8"))
        self.run_c(out / "embed_c")
        ranked = staging.run(out / "embed_c", env={"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0",
                                                   "EPJIT_CUDA_LIBRARY": "/nonexistent/libcuda.so.1"})
        self.assertIn("launcher: skipped: no libcuda.so.1", ranked.stdout)

    def test_c_program_with_the_static_library(self):
        project = self.root / "c_static"
        shutil.copytree(EXAMPLE_C, project)
        text = (project / "CMakeLists.txt").read_text(encoding="utf-8")
        changed = text.replace("LANGUAGES C)", "LANGUAGES C CXX)").replace("COMPONENTS shared", "COMPONENTS static")
        self.assertEqual(changed.count("static"), text.count("static") + 1)
        (project / "CMakeLists.txt").write_text(changed, encoding="utf-8")
        staging.run(staging.CMAKE, "-S", project, "-B", project / "out", f"-DCMAKE_PREFIX_PATH={self.prefix}")
        staging.run(staging.CMAKE, "--build", project / "out")
        self.run_c(project / "out" / "embed_c")
        self.assertNotIn("libepjit", staging.run("readelf", "-d", project / "out" / "embed_c").stdout)

    @unittest.skipIf(shutil.which("pkg-config") is None, "pkg-config is not installed")
    def test_c_program_with_pkg_config(self):
        package = staging.find(self.prefix, "epjit.pc")
        environment = {**os.environ, "PKG_CONFIG_PATH": str(package.parent)}
        flags = staging.run("pkg-config", "--cflags", "--libs", "epjit", env=environment).stdout.split()
        self.assertEqual(staging.run("pkg-config", "--modversion", "epjit", env=environment).stdout.strip(),
                         staging.VERSION)
        compiler = os.environ.get("CC") or "cc"
        staging.run(compiler, *C_FLAGS, EXAMPLE_C / "main.c", EXAMPLE_C / "memory.c", "-o", self.root / "plain", *flags,
                    "-ldl")
        self.run_c(self.root / "plain", LD_LIBRARY_PATH=str(staging.find(self.prefix, "libepjit.so.*").parent))

    def test_package_is_movable_and_names_no_private_dependency(self):
        for path in [*self.prefix.rglob("*.cmake"), *self.prefix.rglob("*.pc")]:
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
