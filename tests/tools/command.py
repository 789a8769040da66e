# SPDX-License-Identifier: Apache-2.0
"""What the tests of the command share: a clean environment, a fresh cache folder, and ways to start epjit."""

import json
import os
import shutil
import subprocess
import tempfile
import unittest

COMMAND = os.environ["EPJIT_COMMAND"]
FAKE_A = os.environ["EPJIT_FAKE_NVRTC_A"]
FAKE_B = os.environ["EPJIT_FAKE_NVRTC_B"]
ENUMERATION = ["--ranks", "4", "--arch", "sm_90a"]  # the shape of most tests: no driver is asked


class Result:
    def __init__(self, done):
        self.status, self.out, self.err = done.returncode, done.stdout, done.stderr

    @property
    def json(self):
        """The one object on stdout; anything else there fails the test."""
        lines = self.out.splitlines()
        if len(lines) != 1:
            raise AssertionError(f"stdout is not one line of JSON: {self.out!r}; stderr: {self.err!r}")
        value = json.loads(lines[0])
        if not isinstance(value, dict):
            raise AssertionError(f"stdout is not a JSON object: {self.out!r}")
        return value


class CommandTest(unittest.TestCase):
    maxDiff = None

    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="epjit-test-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.cache = os.path.join(self.folder, "cache")
        self.environment = {"PATH": os.environ.get("PATH", ""), "HOME": self.folder, "TMPDIR": self.folder,
                            "EPJIT_CACHE_PATH": self.cache, "EPJIT_NVRTC_LIBRARY": FAKE_A}
        for name in ("ASAN_OPTIONS", "TSAN_OPTIONS", "LD_LIBRARY_PATH"):
            if name in os.environ:
                self.environment[name] = os.environ[name]

    def environment_with(self, **changes):
        merged = dict(self.environment, **changes)
        return {name: value for name, value in merged.items() if value is not None}

    def epjit(self, *arguments, timeout=120, **environment):
        """Runs to the end; environment values of None unset."""
        done = subprocess.run([COMMAND, *arguments], env=self.environment_with(**environment), capture_output=True,
                              text=True, timeout=timeout, cwd=self.folder, stdin=subprocess.DEVNULL)
        return Result(done)

    def start(self, *arguments, **environment):
        return subprocess.Popen([COMMAND, *arguments], env=self.environment_with(**environment),
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=self.folder,
                                stdin=subprocess.DEVNULL)

    def warm(self, *arguments, **environment):
        return self.epjit("warm", "--json", *ENUMERATION, *arguments, **environment)

    def write(self, name, text):
        path = os.path.join(self.folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        return path

    def assert_error(self, result, status, kind, *parts):
        """Exit status, the JSON error object, and that message and remedy are for people."""
        self.assertEqual(result.status, status, result.err)
        error = result.json["error"]
        self.assertEqual(sorted(error), ["kind", "message", "remedy"])
        self.assertEqual(error["kind"], kind)
        for part in parts:
            self.assertIn(part, error["message"] + "\n" + error["remedy"])
        self.assertIn(error["message"].splitlines()[0], result.err)
        return error

    def keys_in_cache(self, **environment):
        return {entry["key"] for entry in self.epjit("cache", "list", "--json", **environment).json["entries"]}
