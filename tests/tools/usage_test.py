# SPDX-License-Identifier: Apache-2.0
"""Exit statuses, help, JSON and error texts of the frame that all commands share."""

import os
import re
import shutil
import subprocess
import unittest

from command import COMMAND, CommandTest

COMMANDS = ["warm", "run", "cache", "inspect", "models", "explain", "doctor", "bench", "tune", "completion"]


class Help(CommandTest):
    def test_help_has_at_most_50_lines_and_examples(self):
        for arguments in [["--help"]] + [[c, "--help"] for c in COMMANDS] + [["--help", "warm"]]:
            result = self.epjit(*arguments)
            self.assertEqual(result.status, 0, arguments)
            lines = result.out.splitlines()
            self.assertLessEqual(len(lines), 50, arguments)
            self.assertLessEqual(max(map(len, lines)), 120, arguments)
            self.assertRegex(result.out, r"examples:\n  epjit ")
            self.assertEqual(result.err, "")

    def test_the_help_names_every_command(self):
        text = self.epjit("--help").out
        for name in COMMANDS:
            self.assertRegex(text, rf"\n  {name} ")

    def test_version_before_and_after_the_command(self):
        plain = self.epjit("--version")
        self.assertRegex(plain.out, r"^epjit \d+\.\d+\.\d+\n$")
        version = plain.out.split()[1]
        for arguments in (["--version", "--json"], ["--json", "warm", "--version"], ["models", "--version", "--json"]):
            self.assertEqual(self.epjit(*arguments).json, {"version": version})


class BadUsage(CommandTest):
    def test_says_what_was_expected(self):
        cases = [
            ([], "no command", "warm, run, cache"),
            (["wram"], 'no command "wram"', "did you mean `epjit warm`?"),
            (["warm", "--modle", "x"], "has no option --modle", "did you mean --model?"),
            (["warm", "--model"], "--model needs a value", "NAME"),
            (["warm", "extra"], 'does not expect the argument "extra"'),
            (["warm", "--model", "nope"], "nope"),
            (["warm", "--model", "mixtral-8x7b", "--config", "x.json"], "--model and --config were both given"),
            (["warm", "--model", "a", "--model", "b"], "--model was given 2 times"),
            (["warm", "--arch", "h100"], "--arch: expected a real GPU target", '"h100"'),
            (["warm", "--ranks", "8,x"], "--ranks: expected", '"x"'),
            (["warm", "--ranks", "0", "--arch", "sm_90a"], "--ranks: expected", '"0"'),
            (["warm", "--jobs", "-1"], "--jobs: expected a whole number of 1 to 1024", '"-1"'),
            (["warm", "--set", "some"], "--set: expected default or all", '"some"'),
            (["cache"], "epjit cache needs an argument", "list|verify"),
            (["cache", "lst"], "expected list, verify, prune, path, export or import", '"lst"'),
            (["cache", "export"], "epjit cache export needs a FILE"),
            (["cache", "list", "file"], 'does not expect the argument "file"'),
            (["cache", "prune", "--max-bytes", "lots"], "--max-bytes: expected a number of bytes", '"lots"'),
            (["cache", "list", "--max-bytes", "5"], "--max-bytes belongs to epjit cache prune"),
            (["inspect"], "epjit inspect needs an argument: KEY"),
            (["inspect", "12345"], "expected 6 to 32 hex digits", '"12345"'),
            (["inspect", "123456"], "no entry's key begins with 123456"),
            (["run", "--layout", "wide"], "--layout: expected expert_major, flat or masked", '"wide"'),
            (["run", "--exchange", "pigeon"], "--exchange: expected auto, host", '"pigeon"'),
            (["run", "--dtype", "int8"], "--dtype: expected bf16, fp16, f32 or fp8", '"int8"'),
            (["run", "--tokens", "-5"], "--tokens: expected a whole number", '"-5"'),
            (["run", "--routing", "sideways"], "--routing: expected uniform", "FILE.npy", '"sideways"'),
            (["explain", "--hosts", "9", "--ranks", "8"], "--hosts 9 with 8 ranks"),
            (["explain", "--link-gbps", "fast"], "--link-gbps: expected a number above 0", '"fast"'),
            (["bench", "--suite", "none"], "--suite: expected jit, route", '"none"'),
            (["bench", "--suite", "exchange", "--exchange", "loopback"], "--exchange: expected auto, lsa", '"loopback"'),
            (["bench", "--suite", "exchange", "--model", "nope"], "nope"),
            (["bench", "--suite", "decode", "--tokens", "0"], "--tokens: expected a whole number", '"0"'),
            (["bench", "--suite", "decode", "--ranks", "1"], "--ranks: expected a whole number of 2", '"1"'),
            (["bench", "--suite", "exchange", "--iters", "none"], "--iters: expected a whole number", '"none"'),
            (["tune", "--dtype", "f32"], "--dtype: expected bf16 or fp8", '"f32"'),
            (["tune", "--tokens", "8,0"], "--tokens: expected whole numbers", '"0"'),
            (["tune", "--budget", "0"], "--budget: expected a whole number of 1", '"0"'),
            (["completion", "csh"], "expected bash, zsh or fish", '"csh"'),
            (["models", "--cache-dir"], "--cache-dir needs a value", "DIR"),
        ]
        for arguments, *parts in cases:
            with self.subTest(arguments=arguments):
                self.assert_error(self.epjit(*arguments, "--json") if arguments[-1:] not in (["--cache-dir"], ["--model"])
                                  else self.epjit("--json", *arguments), 2, "config", *parts)

    def test_without_json_the_message_is_on_stderr_and_stdout_is_empty(self):
        result = self.epjit("warm", "--model", "nope")
        self.assertEqual((result.status, result.out), (2, ""))
        self.assertIn("epjit: error: ", result.err)

    def test_a_bad_environment_variable_is_named(self):
        for name, value in (("EPJIT_CACHE_MAX_BYTES", "lots"), ("EPJIT_LOCK_TIMEOUT_MS", "-1"), ("EPJIT_OFFLINE", "yes"),
                            ("EPJIT_COMPILE_TIMEOUT_MS", "0"), ("EPJIT_EXCHANGE", "pigeon"), ("EPJIT_LOG", "loud"),
                            ("EPJIT_CACHE_MAX_FILES", "1e3"), ("EPJIT_WAIT_TIMEOUT_MS", "x")):
            with self.subTest(name=name):
                self.assert_error(self.epjit("models", "--json", **{name: value}), 2, "config", name, value)

    def test_a_bad_profile_names_its_file_and_field(self):
        bad = self.write("p.json", '{"epjit_profile": 1, "entries": [{"knobs": {"senders": 1}}]}')
        for arguments, environment in ((["warm", "--profile", bad], {}), (["warm"], {"EPJIT_PROFILE": bad}),
                                       (["explain", "--profile", bad], {}), (["explain"], {"EPJIT_PROFILE": bad})):
            with self.subTest(arguments=arguments):
                self.assert_error(self.epjit(*arguments, "--json", **environment), 2, "config", bad,
                                  "entries[0].knobs.senders")
        self.assert_error(self.epjit("warm", "--profile", "nowhere.json", "--json"), 2, "config", "nowhere.json")
        newer = self.write("newer.json", '{"epjit_profile": 2}')
        self.assert_error(self.epjit("warm", "--profile", newer, "--json"), 3, "unsupported", "epjit_profile is 2")

    @unittest.skipIf(os.path.exists("/dev/nvidiactl"), "there is a GPU")
    def test_exchanges_of_real_ranks_need_gpus_and_say_so(self):
        for kind in ("lsa", "sendrecv", "dense", "hybrid"):
            with self.subTest(kind=kind):
                self.assert_error(self.epjit("run", "--exchange", kind, "--json"), 3, "unsupported", f"'{kind}'",
                                  "one GPU for each")

    def test_benches_of_real_ranks_need_a_driver_and_say_so(self):
        for suite in ("exchange", "decode", "exchange,decode"):
            with self.subTest(suite=suite):
                self.assert_error(self.epjit("bench", "--suite", suite, "--quick", "--json",
                                             EPJIT_CUDA_LIBRARY="/nonexistent/libcuda.so.1"), 3, "library",
                                  "/nonexistent/libcuda.so.1")


    def test_a_list_of_suites_is_known_before_the_first_is_measured(self):
        for suite in ("jit,nothing", ",", "all,jit"):
            with self.subTest(suite=suite):
                self.assert_error(self.epjit("bench", "--suite", suite, "--json"), 2, "config", "--suite")


class Values(CommandTest):
    def test_hyphen_and_underscore_are_equal_in_values(self):
        first = self.epjit("explain", "--keys", "--json", "--model", "qwen3_30b_a3b", "--arch", "sm-90a", "--ranks", "4",
                           "--layout", "expert-major", "--exchange", "loopback", "--reduction", "per-row", "--routing", "one_rank")
        second = self.epjit("explain", "--keys", "--json", "--model", "qwen3-30b-a3b", "--arch", "sm_90a", "--ranks", "4",
                            "--layout", "expert_major", "--exchange", "loopback", "--reduction", "per_row", "--routing", "one-rank")
        self.assertEqual(first.status, 0, first.err)
        self.assertEqual(first.json, second.json)
        self.assertEqual(len(first.json["keys"]), 3)

    def test_global_options_before_and_after_the_command(self):
        other = os.path.join(self.folder, "other")
        before = self.epjit("--json", "--cache-dir", other, "cache", "path")
        after = self.epjit("cache", "path", "--json", f"--cache-dir={other}")
        self.assertEqual(before.json, {"path": other, "layers": [other]})
        self.assertEqual(after.json, before.json)


class Streams(CommandTest):
    def test_a_closed_stdout_is_status_1(self):
        done = subprocess.run(["sh", "-c", f"exec '{COMMAND}' models >&-"], env=self.environment, capture_output=True,
                              text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertIn("cannot write to stdout", done.stderr)

    def test_a_full_disk_behind_stdout_is_status_1(self):
        with open("/dev/full", "w", encoding="utf-8") as full:
            done = subprocess.run([COMMAND, "models", "--json"], env=self.environment, stdout=full, stderr=subprocess.PIPE,
                                  text=True, timeout=60)
        self.assertEqual(done.returncode, 1)
        self.assertIn("No space left", done.stderr)

    def test_a_reader_that_leaves_is_no_crash(self):
        read_end, write_end = os.pipe()
        os.close(read_end)  # before the command starts, or it might write all it has first
        with subprocess.Popen([COMMAND, "completion", "fish"], env=self.environment, stdout=write_end,
                              stderr=subprocess.PIPE) as process:
            os.close(write_end)
            self.assertEqual(process.stderr.read(), b"")
            self.assertEqual(process.wait(60), 1)


class Models(CommandTest):
    def test_lists_the_built_in_shapes(self):
        models = {m["name"]: m for m in self.epjit("models", "--json").json["models"]}
        self.assertGreaterEqual(len(models), 18)
        v3 = models["deepseek-v3"]
        self.assertEqual((v3["hidden"], v3["experts"], v3["topk"], v3["fp8_dispatch"]), (7168, 256, 8, True))
        table = self.epjit("models").out
        for name in models:
            self.assertIn(name, table)


class Completion(CommandTest):
    def test_scripts_name_every_command_and_option_value(self):
        for shell in ("bash", "zsh", "fish"):
            script = self.epjit("completion", shell).out
            for word in COMMANDS + ["expert_major", "deepseek-v3", "loopback"]:
                self.assertIn(word, script, shell)

    @unittest.skipUnless(shutil.which("bash"), "no bash here")
    def test_bash_completes_commands_options_and_values(self):
        script = self.write("completion.bash", self.epjit("completion", "bash").out)

        def complete(*words):
            quoted = " ".join(f"'{w}'" for w in words)
            program = f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _epjit; echo \"${{COMPREPLY[@]}}\""
            done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=60)
            self.assertEqual(done.stderr, "")
            return done.stdout.split()

        self.assertEqual(complete("epjit", "wa"), ["warm"])
        self.assertEqual(complete("epjit", "run", "--layout", "m"), ["masked"])
        self.assertEqual(complete("epjit", "cache", "ve"), ["verify", "--version"][:1])
        self.assertIn("--arch", complete("epjit", "warm", "--a"))
        self.assertIn("deepseek-v3", complete("epjit", "warm", "--model", "deepseek-"))


class Doctor(CommandTest):
    def test_is_useful_without_a_gpu(self):
        result = self.epjit("doctor", "--json", EPJIT_CUDA_LIBRARY="/nowhere/libcuda.so.1")
        self.assertEqual(result.status, 0, result.err)
        report = result.json
        self.assertFalse(report["driver"]["found"])
        self.assertIn("/nowhere/libcuda.so.1", report["driver"]["problem"])
        self.assertTrue(report["driver"]["remedy"])
        self.assertTrue(report["nvrtc"]["found"])
        self.assertEqual(report["cache"][0]["path"], self.cache)
        self.assertFalse(report["ready"])
        self.assertIn("no_driver", [b["id"] for b in report["blockers"]])
        for blocker in report["blockers"]:
            self.assertEqual(sorted(blocker), ["id", "where", "why"])
        self.assertFalse(os.path.exists(self.cache), "doctor only looks")

    def test_says_what_is_missing_and_how_to_mend_it(self):
        text = self.epjit("doctor", EPJIT_CUDA_LIBRARY="/nowhere/libcuda.so.1", EPJIT_NVRTC_LIBRARY="/nowhere/nvrtc.so")
        self.assertEqual(text.status, 0)
        self.assertIn("/nowhere/nvrtc.so", text.out)
        self.assertRegex(text.out, r"NVRTC +not found")
        self.assertGreaterEqual(len(re.findall("remedy: ", text.out)), 2)

    def test_shows_a_layer_that_is_not_safe(self):
        os.mkdir(self.cache)
        os.chmod(self.cache, 0o777)
        layer = self.epjit("doctor", "--json").json["cache"][0]
        self.assertFalse(layer["usable"])
        self.assertIn("chmod", layer["remedy"])


if __name__ == "__main__":
    unittest.main()
