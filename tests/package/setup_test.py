# SPDX-License-Identifier: Apache-2.0
"""The set-up that tools/quickstart and tools/test share: what is missing is installed, once, and what is there is used.
Stand-ins for g++, apt-get, sudo and pip write down how they were called; nothing is installed and nothing is downloaded."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(os.environ["EPJIT_SOURCE"])
COMMANDS = [SOURCE / "tools" / "quickstart", SOURCE / "tools" / "test"]

STAND_INS = {
    # Finds every header but CLI11's, until apt-get has run.
    "g++": """#!/bin/sh
case "$*" in *-dumpversion*) echo 12.2.0; exit ;; esac
read -r line
case "$line" in *CLI/CLI.hpp*) [ -e "$STATE/installed" ] ;; esac
""",
    "apt-get": """#!/bin/sh
echo "apt-get $* $DEBIAN_FRONTEND" >>"$STATE/calls"
case "$*" in *install*) touch "$STATE/installed" ;; esac
""",
    "apt-cache": "#!/bin/sh\nexit 0\n",
    "id": "#!/bin/sh\necho \"${USER_ID:-0}\"\n",
    "sudo": "#!/bin/sh\necho sudo >>\"$STATE/calls\"\n[ \"$1\" = -n ] && shift\nexec \"$@\"\n",
    "cmake": "#!/bin/sh\necho cmake version 3.25.1\n",
    "ninja": "#!/bin/sh\n",
    "readelf": "#!/bin/sh\n",
    "python3": f"""#!/bin/sh
case "$*" in
    "-m pip --version") exit 0 ;;
    "-m pip install"*)
        echo "pip $*" >>"$STATE/calls"
        [ -z "$NO_NETWORK" ] || exit 1
        while [ "$1" != --target ]; do shift; done
        mkdir -p "$2/nvidia/cu13/lib" && : >"$2/nvidia/cu13/lib/libnvrtc.so.13" ;;
    *) exec {sys.executable} "$@" ;;
esac
""",
}


class set_up(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.folder.name)
        self.bin = self.root / "bin"
        self.bin.mkdir()
        for name, text in STAND_INS.items():
            (self.bin / name).write_text(text, encoding="utf-8")
            (self.bin / name).chmod(0o755)
        # A checkout of its own, so that .deps/ of the real one stays as it is.
        self.checkout = self.root / "checkout"
        shutil.copytree(SOURCE / "tools" / "setup", self.checkout / "tools" / "setup")
        self.calls_file = self.root / "calls"

    def tearDown(self):
        self.folder.cleanup()

    def shell(self, script, **environment):
        """`script` after sourcing the set-up, with only the project's own wheel folder to search."""
        prepared = ('set -euo pipefail; . "$EPJIT_ROOT/tools/setup/common.sh"; has_gpu() { false; }\n'
                    'library_folders() { ls -d "$wheel_folder"/nvidia/*/lib 2>/dev/null || true; }\n' + script)
        return subprocess.run(["bash", "-c", prepared], capture_output=True, text=True, check=False, timeout=60, env={
            "PATH": f"{self.bin}:/usr/bin:/bin", "STATE": str(self.root), "EPJIT_ROOT": str(self.checkout), "jobs": "1",
            "CI": "true", **environment})

    def calls(self):
        return self.calls_file.read_text(encoding="utf-8").splitlines() if self.calls_file.exists() else []

    def test_installs_what_is_missing_and_nothing_the_second_time(self):
        first = self.shell("run_setup")
        self.assertEqual(first.returncode, 0, first.stderr)
        self.assertIn("installing with apt-get: libcli11-dev", first.stdout)
        self.assertIn("installing into .deps/python: nvidia-cuda-nvrtc", first.stdout)
        calls = self.calls()
        self.assertEqual(len(calls), 2, calls)
        self.assertRegex(calls[0], r"install -y .*--no-install-recommends libcli11-dev noninteractive$")
        self.assertIn(f"--target {self.checkout}/.deps/python nvidia-cuda-nvrtc", calls[1])
        second = self.shell("run_setup")
        self.assertEqual(second.returncode, 0, second.stderr)
        self.assertIn("nothing to install", second.stdout)
        self.assertEqual(self.calls(), calls)

    def test_takes_root_through_sudo(self):
        result = self.shell("install_packages", USER_ID="1000")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(self.calls()[0], "sudo")

    def test_another_distribution_is_told_what_to_install(self):
        (self.bin / "apt-get").unlink()
        result = self.shell('command() { [ "$2" != apt-get ] && builtin command "$@"; }; install_packages')
        self.assertEqual(result.returncode, 3)
        self.assertIn("libcli11-dev", result.stderr)
        self.assertIn("CLI11", result.stderr)

    def test_a_wheel_is_named_for_the_library_and_a_given_path_is_kept(self):
        found = self.shell('find_libraries >/dev/null; echo "$EPJIT_NVRTC_LIBRARY"').stdout.strip()
        self.assertEqual(found, f"{self.checkout}/.deps/python/nvidia/cu13/lib/libnvrtc.so.13")
        given = self.shell('find_libraries >/dev/null; echo "$EPJIT_NVRTC_LIBRARY"', EPJIT_NVRTC_LIBRARY="/a/libnvrtc.so")
        self.assertEqual(given.stdout.strip(), "/a/libnvrtc.so")

    def test_goes_on_without_nvrtc_and_says_so(self):
        result = self.shell("find_libraries", NO_NETWORK="1")
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("NVRTC: not found", result.stdout)
        self.assertIn("EPJIT_NVRTC_LIBRARY", result.stdout)


class options(unittest.TestCase):
    def test_help_and_bad_usage_from_any_folder(self):
        for command in COMMANDS:
            helped = subprocess.run([str(command), "--help"], capture_output=True, text=True, check=False, cwd="/")
            self.assertEqual(helped.returncode, 0)
            self.assertIn("--jobs", helped.stdout)
            for wrong in (["--jobs", "0"], ["--jobs"], ["--bogus"]):
                result = subprocess.run([str(command), *wrong], capture_output=True, text=True, check=False, cwd="/")
                self.assertEqual(result.returncode, 2, wrong)
                self.assertIn("usage: tools/", result.stderr)


class summary(unittest.TestCase):
    def summarise(self, warm, run):
        with tempfile.TemporaryDirectory() as folder:
            paths = [pathlib.Path(folder) / name for name in ("warm", "run")]
            for path, value in zip(paths, (warm, run)):
                path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
            return subprocess.run([sys.executable, "-B", str(SOURCE / "tools" / "setup" / "summary.py"), *map(str, paths),
                                   "config.json"], capture_output=True, text=True, check=False)

    WARM = {"compiled": 5, "hits": 1, "failed": 0, "not_stored": 0, "wall_ms": 420.0}
    RUN = {"ok": True, "exchange": "host", "checked_rows": 4096, "mismatched_rows": 0, "dispatch_us": 10, "combine_us": 9}

    def test_says_what_was_done(self):
        result = self.summarise(self.WARM, self.RUN)
        self.assertEqual(result.returncode, 0)
        self.assertIn("5 compiled, 1 from the cache, 0.42 s", result.stdout)
        self.assertIn("exchange host: 4096 rows checked", result.stdout)

    def test_an_error_shows_its_remedy_and_a_missing_result_does_not_pass(self):
        error = {"error": {"kind": "library", "message": "libnvrtc was not found", "remedy": "set EPJIT_NVRTC_LIBRARY"}}
        result = self.summarise(error, self.RUN)
        self.assertEqual(result.returncode, 1)
        self.assertIn("set EPJIT_NVRTC_LIBRARY", result.stdout)
        self.assertEqual(self.summarise(self.WARM, "").returncode, 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
