# SPDX-License-Identifier: Apache-2.0
"""The `runtime` component: small, needs the C and C++ runtime only, and runs where nothing else is."""

import json
import os
import pathlib
import re
import shutil
import tempfile
import unittest

import staging

ALLOWED = re.compile(r"^(?:libc|libm|libdl|libpthread|librt|libstdc\+\+|libgcc_s|ld-linux[\w-]*|libepjit)\.so")
LIMIT_BYTES = 40 << 20


def enter_command():
    """How to run a program with another folder as the whole file system; None where that is not allowed."""
    chroot = shutil.which("chroot", path=os.environ["PATH"] + ":/usr/sbin:/sbin")
    unshare = shutil.which("unshare")
    ways = [[chroot], [unshare, "--map-root-user", chroot]] if chroot else []
    for way in ways:
        if all(way) and staging.run(*way, "/", shutil.which("true"), check=False).returncode == 0:
            return way
    return None


class runtime_component(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory()
        cls.prefix = pathlib.Path(cls.folder.name) / "runtime"
        staging.install(cls.prefix, "runtime")
        cls.binaries = [cls.prefix / "bin" / "epjit", staging.find(cls.prefix, "libepjit.so.*.*.*")]

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def test_holds_the_command_the_library_and_the_licence(self):
        self.assertTrue((self.prefix / "bin" / "epjit").is_file())
        staging.find(self.prefix, "LICENSE")
        self.assertEqual(list(self.prefix.rglob("*.hpp")) + list(self.prefix.rglob("*.a")), [])

    def test_is_small(self):
        size = sum(path.stat().st_size for path in self.prefix.rglob("*") if path.is_file() and not path.is_symlink())
        print(f"{size / (1 << 20):.1f} MiB")
        self.assertLess(size, LIMIT_BYTES)

    def test_needs_the_c_and_cxx_runtime_only(self):
        for binary in self.binaries:
            needed = re.findall(r"\(NEEDED\).*\[(.*)\]", staging.run("readelf", "-d", binary).stdout)
            self.assertTrue(needed)
            for library in needed:
                self.assertRegex(library, ALLOWED, binary)
            versions = staging.run("readelf", "-V", binary).stdout
            for prefix in ("GLIBC_", "GLIBCXX_"):
                found = {tuple(map(int, version.split("."))) for version in re.findall(prefix + r"(\d[\d.]*)", versions)}
                if found:
                    print(f"{binary.name}: {prefix}{'.'.join(map(str, max(found)))}")

    def test_has_no_path_of_the_build_machine(self):
        for binary in self.binaries:
            self.assertNotRegex(staging.run("readelf", "-d", binary).stdout, r"R(?:UN)?PATH.*/")
            self.assertNotIn(str(staging.BUILD).encode(), binary.read_bytes())

    def test_runs_on_a_bare_machine(self):
        enter = enter_command()
        if enter is None:
            self.skipTest("neither chroot nor unshare may change the root here")
        root = pathlib.Path(self.folder.name) / "bare"
        enter.append(root)
        shutil.copytree(self.prefix, root)
        for line in staging.run("ldd", self.prefix / "bin" / "epjit").stdout.splitlines():
            path = re.search(r"(/\S+) \(0x", line)
            if path:
                target = root / path.group(1)[1:]
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path.group(1), target)
        self.assertIn(staging.VERSION, staging.run(*enter, "/bin/epjit", "--version", env={}).stdout)
        models = json.loads(staging.run(*enter, "/bin/epjit", "models", "--json", env={}).stdout)
        self.assertTrue(models)
        layer = json.loads(staging.run(*enter, "/bin/epjit", "run", "--exchange", "host", "--ranks", "4", "--tokens", "16",
                                       "--check", "--json", env={}).stdout)
        self.assertTrue(layer["ok"])
        self.assertGreater(layer["checked_rows"], 0)
        missing = staging.run(*enter, "/bin/epjit", "warm", "--cache-dir", "/cache", "--json", env={}, check=False)
        self.assertEqual(missing.returncode, 3, missing.stderr)
        self.assertEqual(json.loads(missing.stdout)["error"]["kind"], "library")


if __name__ == "__main__":
    unittest.main(verbosity=2)
