# SPDX-License-Identifier: Apache-2.0
"""Worker processes: a compiler that crashes, hangs, fails or lies costs one variant; Ctrl-C leaves a valid cache."""

import os
import signal
import subprocess
import time
import unittest

from command import ENUMERATION, CommandTest


class Misbehaviour(CommandTest):
    def assert_one_lost(self, result, kind, *parts):
        """One variant failed, the others are stored, and the next warm compiles just the one."""
        self.assertEqual(result.status, 1, result.err)
        value = result.json
        n = len(value["variants"])
        self.assertEqual((value["compiled"], value["failed"], value["hits"]), (n - 1, 1, 0), result.err)
        (lost,) = [v for v in value["variants"] if v["from"] == "failed"]
        self.assertEqual(lost["error"]["kind"], kind)
        for part in parts:
            self.assertIn(part, lost["error"]["message"])
            self.assertIn(part, result.err)
        self.assertNotIn(lost["key"], self.keys_in_cache())
        again = self.warm()
        self.assertEqual((again.status, again.json["compiled"], again.json["hits"]), (0, 1, n - 1), again.err)

    def once(self, mode, **more):
        return dict({"EPJIT_FAKE_NVRTC_MODE": mode, "EPJIT_FAKE_NVRTC_ONCE": os.path.join(self.folder, "once")}, **more)

    def test_a_crash_costs_one_variant_and_names_the_signal(self):
        self.assert_one_lost(self.warm(**self.once("crash")), "compile", "was killed by signal")

    def test_a_hang_costs_one_variant_and_the_deadline(self):
        start = time.monotonic()
        result = self.warm(**self.once("hang_hard", EPJIT_COMPILE_TIMEOUT_MS="2000"))
        self.assertLess(time.monotonic() - start, 60)
        self.assert_one_lost(result, "timeout", "2000 ms")

    def test_a_failure_costs_one_variant(self):
        self.assert_one_lost(self.warm(**self.once("fail")), "compile", "nvrtcCompileProgram")

    def test_an_empty_cubin_is_a_failure_and_not_stored(self):
        self.assert_one_lost(self.warm(**self.once("empty")), "compile", "compiling ")

    def test_every_compile_crashing_is_status_1_and_stores_nothing(self):
        result = self.warm(EPJIT_FAKE_NVRTC_MODE="crash")
        self.assertEqual((result.status, result.json["failed"]), (1, len(result.json["variants"])), result.err)
        self.assertEqual(self.keys_in_cache(), set())


class Interrupt(CommandTest):
    def test_ctrl_c_is_130_and_leaves_a_valid_cache(self):
        for json_option in ([], ["--json"]):
            with self.subTest(json=json_option):
                process = self.start("warm", *ENUMERATION, "--set", "all", "--jobs", "2", *json_option,
                                     EPJIT_FAKE_NVRTC_DELAY_MS="200")
                process.stderr.readline()  # the first variant is done
                process.send_signal(signal.SIGINT)
                out, err = process.communicate(timeout=60)
                self.assertEqual(process.returncode, 130, err)
                self.assertIn("interrupted", err)
                if json_option:
                    self.assertIn('"cancelled"', out)
                verified = self.epjit("cache", "verify", "--json")
                self.assertEqual((verified.status, verified.json["bad"]), (0, 0), verified.err)
                self.assertGreaterEqual(verified.json["entries"], 1)
        rest = self.warm("--set", "all")
        self.assertEqual(rest.status, 0, rest.err)
        self.assertGreaterEqual(rest.json["hits"], 1)
        self.assertEqual(rest.json["failed"], 0)

    def test_ctrl_c_during_a_hanging_compile_ends_at_once(self):
        count = os.path.join(self.folder, "count")
        process = self.start("warm", *ENUMERATION, "--json", EPJIT_FAKE_NVRTC_MODE="hang_hard", EPJIT_FAKE_NVRTC_COUNT=count)
        wait_for(lambda: os.path.exists(count))
        process.send_signal(signal.SIGINT)
        start = time.monotonic()
        process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertLess(time.monotonic() - start, 20)

    def test_workers_die_with_their_parent(self):
        count = os.path.join(self.folder, "count")
        process = self.start("warm", *ENUMERATION, "--json", EPJIT_FAKE_NVRTC_MODE="hang_hard", EPJIT_FAKE_NVRTC_COUNT=count)
        wait_for(lambda: os.path.exists(count) and os.path.getsize(count) > 0)
        with open(count, encoding="utf-8") as file:
            worker = int(file.readline().split()[0])
        self.assertNotEqual(worker, process.pid, "the compile ran in the command's own process")
        process.kill()
        process.communicate(timeout=60)
        wait_for(lambda: not alive(worker))


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("waited too long")
        time.sleep(0.02)


def alive(pid):
    """Whether the process runs; a zombie that nobody reaps does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


if __name__ == "__main__":
    unittest.main()
