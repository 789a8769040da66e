# SPDX-License-Identifier: Apache-2.0
"""epjit warm: counts, JSON, model configs, places to store, offline."""

import json
import os
import stat
import unittest

from command import FAKE_B, CommandTest

VARIANT_FIELDS = {"key", "kernels", "arch", "from", "compile_ms", "cubin_bytes", "registers", "spill_bytes", "spill_exception"}


class Warm(CommandTest):
    def test_compiles_once_and_then_serves_from_disk(self):
        count = os.path.join(self.folder, "count")
        first = self.warm(EPJIT_FAKE_NVRTC_COUNT=count)
        self.assertEqual(first.status, 0, first.err)
        result = first.json
        variants = result["variants"]
        # plan, permute+dispatch, unpermute+combine; between real ranks both plans, helpers, dispatch, combine, both
        # of few tokens
        self.assertEqual(len(variants), 10)
        self.assertEqual((result["compiled"], result["hits"], result["failed"], result["not_stored"]),
                         (len(variants), 0, 0, 0))
        self.assertGreater(result["wall_ms"], 0)
        for v in variants:
            self.assertEqual(set(v), VARIANT_FIELDS)
            self.assertEqual((v["arch"], v["from"], len(v["key"])), ("sm_90a", "compiled", 32))
            self.assertTrue(v["kernels"])
            self.assertGreater(v["cubin_bytes"], 0)
        kernels = {k for v in variants for k in v["kernels"]}
        self.assertLessEqual({"plan_kernel", "scatter_kernel", "gather_kernel"}, kernels)
        with open(count, encoding="utf-8") as file:
            self.assertEqual(len(file.readlines()), len(variants))

        second = self.warm(EPJIT_FAKE_NVRTC_COUNT=count).json
        self.assertEqual((second["compiled"], second["hits"]), (0, len(variants)))
        self.assertEqual({v["from"] for v in second["variants"]}, {"disk"})
        self.assertEqual([v["key"] for v in second["variants"]], [v["key"] for v in variants])
        with open(count, encoding="utf-8") as file:
            self.assertEqual(len(file.readlines()), len(variants), "the second warm compiled something")
        self.assertEqual(self.keys_in_cache(), {v["key"] for v in variants})

    def test_plain_lines_on_stderr_where_there_is_no_terminal(self):
        result = self.epjit("warm", "--ranks", "4", "--arch", "sm_90a")
        self.assertEqual(result.status, 0, result.err)
        lines = result.err.splitlines()
        self.assertRegex(lines[0], r"^\[\d+/\d+\] compiled +\d+ ms, .* registers: \w+ sm_90a")
        self.assertNotIn("\r", result.err)
        self.assertRegex(result.out, r"\n\d+ variants: \d+ compiled, 0 from the cache, 0 failed; ")

    def test_the_larger_set_holds_the_default_set(self):
        base = {v["key"] for v in self.warm().json["variants"]}
        everything = self.warm("--set", "all").json
        self.assertLess(base, {v["key"] for v in everything["variants"]})
        self.assertEqual(everything["hits"], len(base))

    def test_each_rank_count_and_arch_is_listed_once(self):
        result = self.epjit("warm", "--json", "--ranks", "4,8", "--ranks", "4", "--arch", "sm_90a,sm_100a").json
        keys = [v["key"] for v in result["variants"]]
        self.assertEqual(len(keys), len(set(keys)))
        self.assertEqual({v["arch"] for v in result["variants"]}, {"sm_90a", "sm_100a"})

    def test_another_build_of_the_compiler_is_no_hit_but_serves_offline(self):
        n = len(self.warm().json["variants"])
        self.assertEqual(self.warm(EPJIT_NVRTC_LIBRARY=FAKE_B).json["compiled"], n)
        offline = self.warm(EPJIT_OFFLINE="1", EPJIT_NVRTC_LIBRARY="/nowhere/libnvrtc.so")
        self.assertEqual((offline.status, offline.json["hits"]), (0, n), offline.err)

    def test_without_a_compiler_hits_are_served_and_misses_are_status_3(self):
        gone = "/nowhere/libnvrtc.so"
        miss = self.warm(EPJIT_NVRTC_LIBRARY=gone)
        self.assertEqual(miss.status, 3, miss.err)
        result = miss.json
        self.assertEqual(result["failed"], len(result["variants"]))
        self.assertEqual(result["error"]["kind"], "library")
        self.assertIn(gone, result["error"]["message"])
        self.assertIn("EPJIT_NVRTC_LIBRARY", result["error"]["remedy"])
        n = len(self.warm().json["variants"])
        hit = self.warm(EPJIT_NVRTC_LIBRARY=gone)
        self.assertEqual((hit.status, hit.json["hits"]), (0, n), hit.err)

    def test_offline_misses_are_status_3_and_name_the_key(self):
        result = self.warm(EPJIT_OFFLINE="1")
        self.assertEqual(result.status, 3, result.err)
        self.assertEqual(result.json["error"]["kind"], "offline_miss")
        self.assertIn(result.json["variants"][0]["key"], result.json["error"]["message"])

    def test_an_arch_the_compiler_does_not_know_is_status_3(self):
        result = self.epjit("warm", "--json", "--ranks", "2", "--arch", "sm_999")
        self.assertEqual(result.status, 3, result.err)
        self.assertIn("sm_999", result.json["error"]["message"])

    def test_two_processes_at_once_compile_each_key_once(self):
        count = os.path.join(self.folder, "count")
        environment = {"EPJIT_FAKE_NVRTC_COUNT": count, "EPJIT_FAKE_NVRTC_DELAY_MS": "50"}
        arguments = ["warm", "--json", "--ranks", "4", "--arch", "sm_90a"]
        processes = [self.start(*arguments, **environment) for _ in range(2)]
        results = []
        for process in processes:
            out, err = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 0, err)
            results.append(json.loads(out))
        n = len(results[0]["variants"])
        self.assertEqual(sum(r["compiled"] for r in results), n)
        self.assertEqual(sum(r["hits"] for r in results), n)
        with open(count, encoding="utf-8") as file:
            self.assertEqual(len(file.readlines()), n)


class ModelConfigs(CommandTest):
    GOOD = {"architectures": ["Qwen3MoeForCausalLM"], "hidden_size": 1024, "num_experts": 16, "num_experts_per_tok": 4,
            "torch_dtype": "bfloat16"}

    def test_a_config_file_is_compiled_for(self):
        result = self.warm("--config", self.write("config.json", json.dumps(self.GOOD)))
        self.assertEqual((result.status, result.json["failed"]), (0, 0), result.err)
        built_in = self.warm("--model", "qwen3-30b-a3b").json
        self.assertFalse({v["key"] for v in result.json["variants"]} & {v["key"] for v in built_in["variants"]})

    def test_bad_files_are_status_2_and_say_what_was_looked_for(self):
        dense = {"architectures": ["LlamaForCausalLM"], "hidden_size": 4096}
        cases = {
            "missing": None,
            "empty": "",
            "cut": json.dumps(self.GOOD)[:40],
            "list": "[1, 2]",
            "dense": json.dumps(dense),
            "topk": json.dumps(dict(self.GOOD, num_experts_per_tok=17)),
            "negative": json.dumps(dict(self.GOOD, hidden_size=-1)),
            "text": json.dumps(dict(self.GOOD, num_experts="many")),
        }
        for name, text in cases.items():
            with self.subTest(name=name):
                path = os.path.join(self.folder, f"{name}.json")
                if text is not None:
                    self.write(f"{name}.json", text)
                self.assert_error(self.warm("--config", path), 2, "config", path)


class Places(CommandTest):
    def test_no_place_at_all_is_status_3_and_compiles_nothing(self):
        count = os.path.join(self.folder, "count")
        result = self.warm(EPJIT_CACHE_PATH=None, HOME=None, XDG_CACHE_HOME=None, EPJIT_FAKE_NVRTC_COUNT=count)
        self.assert_error(result, 3, "cache", "no place to store", "--cache-dir")
        self.assertFalse(os.path.exists(count))

    def test_an_unsafe_cache_dir_is_status_2_with_the_mending_command(self):
        for command in (["warm", "--ranks", "2", "--arch", "sm_90a"], ["cache", "list"], ["cache", "verify"]):
            with self.subTest(command=command):
                unsafe = os.path.join(self.folder, "unsafe")
                os.makedirs(unsafe, exist_ok=True)
                os.chmod(unsafe, 0o777)
                self.assert_error(self.epjit(*command, "--json", "--cache-dir", unsafe), 2, "cache", f"chmod", unsafe)
                self.assertEqual(os.listdir(unsafe), [], "something was written there")

    def test_a_cache_dir_that_is_a_file_is_status_2(self):
        path = self.write("file", "x")
        self.assert_error(self.warm("--cache-dir", path), 2, "cache", path)

    def test_cache_dir_replaces_all_layers_and_is_private(self):
        other = os.path.join(self.folder, "deep", "other")
        result = self.warm("--cache-dir", other)
        self.assertEqual(result.status, 0, result.err)
        self.assertEqual(stat.S_IMODE(os.stat(other).st_mode), 0o700)
        self.assertFalse(os.path.exists(self.cache))


if __name__ == "__main__":
    unittest.main()
