# SPDX-License-Identifier: Apache-2.0
"""The scripts of tools/tune on answers as the command prints them: CSV, JSON, the lines of plots, and what they refuse."""

import csv
import importlib.util
import os
import pathlib
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest

HERE = pathlib.Path(__file__).parent
SCRIPTS = HERE.parents[1] / "tools/tune"
SAMPLES = HERE / "samples"
sys.path.insert(0, str(SCRIPTS))
import results  # noqa: E402

FAKE_COMMAND = """#!/bin/sh
echo "$@" >> {log}
if [ "$1" = tune ]; then echo '{{"entries": []}}'; exit 0; fi
case "$*" in
    *"--tokens 7"*) echo '{{"error": {{"kind": "unsupported", "message": "seven tokens", "remedy": ""}}}}'; exit 3 ;;
esac
test -z "$EPJIT_PROFILE" || echo "profile $EPJIT_PROFILE" >> {log}
cat {sample}
"""


class Results(unittest.TestCase):
    def test_shapes_are_taken_apart(self):
        self.assertEqual(results.shape_fields("T=4096 H=7168 K=8 E=256 zipf fp8+scales flat exact align=16 sms=4"),
                         {"tokens": 4096, "hidden": 7168, "topk": 8, "experts": 256, "routing": "zipf", "type": "fp8+scales",
                          "layout": "flat", "mode": "exact"})
        self.assertEqual(results.shape_fields("T=8 K=2 E=16")["hidden"], "")
        self.assertEqual(set(results.shape_fields("a shape of another kind").values()), {""})

    def test_time_over_tokens_is_a_line_for_each_job_and_exchange(self):
        lines = results.time_over_tokens(results.read_json(SAMPLES / "exchange.json"))
        shape = (7168, 8, 256, "bf16", "expert_major", "uniform", "static")
        self.assertEqual(lines[shape + ("lsa", "dispatch, plan reused")],
                         [(1024, 68.0, 44.4), (4096, 207.0, 150.4), (8192, 400.0, 300.8)])
        self.assertEqual({key[7:] for key in lines}, {("lsa", "dispatch, plan reused"), ("lsa", "combine, weighted"),
                                                      ("sendrecv", "dispatch, plan reused")})

    def test_bandwidth_over_sms_leaves_out_runs_that_are_not_valid(self):
        runs = results.read_json(SAMPLES / "sms.json")
        lines, rate = results.bandwidth_over_sms(runs)
        ((key, points),) = lines.items()
        self.assertEqual(key[-1], "dispatch, plan reused")
        self.assertEqual([sms for sms, _ in points], [8, 16, 32, 132])
        self.assertAlmostEqual(points[-1][1], 58669056 / 207.0 / 1e3)
        self.assertEqual(rate, 390.0)
        self.assertEqual(results.time_over_tokens(runs), {}, "bounded calls are no line over tokens")

    def test_files_of_something_else_are_refused_by_name(self):
        with tempfile.TemporaryDirectory() as folder:
            for text, part in (("", "not JSON"), ("[]", "no \"runs\""), ('{"runs": 3}', "no \"runs\""),
                               ('{"runs": [{"command": ["epjit"], "report": {}}]}', "run 0: no \"rows\""),
                               ('{"error": {"message": "no GPU"}}', "no GPU")):
                path = os.path.join(folder, "x.json")
                with open(path, "w", encoding="utf-8") as file:
                    file.write(text)
                with self.assertRaises(results.BadResults) as refused:
                    results.read_json(path)
                self.assertIn(path, str(refused.exception))
                self.assertIn(part, str(refused.exception))
            with self.assertRaises(results.BadResults):
                results.read_json(os.path.join(folder, "nothing.json"))


class Scripts(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="epjit-tune-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.out = os.path.join(self.folder, "out")
        self.log = os.path.join(self.folder, "log")
        self.command = os.path.join(self.folder, "epjit")
        with open(self.command, "w", encoding="utf-8") as file:
            file.write(FAKE_COMMAND.format(log=self.log, sample=SAMPLES / "exchange.json"))
        os.chmod(self.command, stat.S_IRWXU)

    def script(self, name, *arguments, **environment):
        merged = {k: v for k, v in os.environ.items() if k != "EPJIT_PROFILE"}
        return subprocess.run([sys.executable, str(SCRIPTS / name), *arguments], env=dict(merged, **environment), text=True,
                              capture_output=True, timeout=120, check=False)

    def calls(self):
        return pathlib.Path(self.log).read_text(encoding="utf-8").splitlines()

    def test_a_sweep_runs_every_combination_and_keeps_what_it_got(self):
        done = self.script("sweep.py", "--epjit", self.command, "--models", "deepseek-v3,dbrx", "--tokens", "7,4096", "--sms",
                           "0,16", "--out", self.out)
        self.assertEqual(done.returncode, 1, "some failed")
        self.assertIn("seven tokens", done.stderr)
        self.assertIn("4 runs in", done.stderr)
        calls = self.calls()
        self.assertEqual(len(calls), 8)
        self.assertEqual(calls[3], "bench --json --suite exchange --model deepseek-v3 --tokens 4096 --exchange auto --sms 16")
        runs = results.read_json(os.path.join(self.out, "results.json"))
        self.assertEqual(len(runs), 4)
        with open(os.path.join(self.out, "results.csv"), encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        self.assertEqual(list(rows[0]), results.COLUMNS)
        self.assertEqual(len(rows), 4 * 5)
        self.assertEqual((rows[1]["tokens"], rows[1]["us"], rows[1]["floor_us"], rows[1]["exchange"]), ("4096", "207.0", "150.4", "lsa"))
        self.assertEqual(rows[4]["kernel_us"], "")

    def test_with_a_profile_shapes_are_tuned_first_and_measured_with_it(self):
        done = self.script("sweep.py", "--epjit", self.command, "--tokens", "128,4096", "--profile", "p.json", "--out", self.out)
        self.assertEqual(done.returncode, 0, done.stderr)
        calls = self.calls()
        self.assertEqual(calls[0], "tune --json --model deepseek-v3 --tokens 128,4096 --out p.json --budget 120")
        self.assertEqual(calls.count("profile p.json"), 2)

    def test_a_command_that_is_not_there_is_an_error(self):
        done = self.script("sweep.py", "--epjit", "/nowhere/epjit", "--out", self.out)
        self.assertEqual(done.returncode, 1)
        self.assertIn("/nowhere/epjit", done.stderr)

    def test_without_matplotlib_the_message_says_what_to_install(self):
        with open(os.path.join(self.folder, "matplotlib.py"), "w", encoding="utf-8") as file:
            file.write("raise ImportError\n")
        done = self.script("plot.py", str(SAMPLES / "sms.json"), "--out", self.out, PYTHONPATH=self.folder)
        self.assertEqual(done.returncode, 3)
        self.assertIn("pip install matplotlib", done.stderr)
        done = self.script("plot.py", "nothing.json", PYTHONPATH=self.folder)
        self.assertEqual(done.returncode, 2, "the file comes first")

    @unittest.skipUnless(importlib.util.find_spec("matplotlib"), "no matplotlib here")
    def test_plots_are_written(self):
        done = self.script("plot.py", str(SAMPLES / "exchange.json"), str(SAMPLES / "sms.json"), "--out", self.out)
        self.assertEqual(done.returncode, 0, done.stderr)
        for name in ("time_over_tokens.svg", "bandwidth_over_sms.svg"):
            self.assertIn("<svg", pathlib.Path(self.out, name).read_text(encoding="utf-8"))


if __name__ == "__main__":
    unittest.main()
