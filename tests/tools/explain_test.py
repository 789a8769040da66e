# SPDX-License-Identifier: Apache-2.0
"""epjit explain, and that warm's set covers what a run loads."""

import json
import pathlib
import re
import unittest

from command import CommandTest

GPU = ["--ranks", "4", "--arch", "sm_90a", "--exchange", "loopback"]


class Explain(CommandTest):
    def test_choice_and_reasons(self):
        result = self.epjit("explain", "--json", "--arch", "sm_90a", "--ranks", "8").json
        self.assertEqual(list(result), ["exchange", "reason", "plan_source", "why_not", "keys", "knobs", "window_rows",
                                        "workspace_bytes", "workspace_halves_bytes", "window_dispatch", "predictions",
                                        "floor_us"])
        reasons = {w["exchange"]: w["reason"] for w in result["why_not"]}
        everything = {"host", "loopback", "lsa", "sendrecv", "dense", "hybrid"}
        self.assertEqual(set(reasons), everything - {result["exchange"]})
        self.assertTrue(result["reason"])
        for reason in reasons.values():
            self.assertTrue(reason)
        # Eight GPUs of one host reach each other's memory; virtual ranks where that is not built.
        built = reasons.get("lsa") != "not in this version"
        self.assertEqual(result["exchange"], "lsa" if built else "loopback")
        self.assertEqual(result["keys"], [])

    def test_the_plan_source_is_said(self):
        for exchange, options, source in (("lsa", (), "counts"), ("lsa", ("--plan-source", "gathered"), "gathered"),
                                          ("sendrecv", ("--plan-source", "counts"), "counts"),
                                          ("loopback", ("--plan-source", "gathered"), "none")):
            with self.subTest(exchange=exchange, source=source):
                result = self.epjit("explain", "--json", "--ranks", "2", "--arch", "sm_90a", "--exchange", exchange, *options)
                self.assertEqual(result.status, 0, result.err)
                self.assertEqual(result.json["plan_source"], source)

    def predictions(self, *options):
        result = self.epjit("explain", "--json", "--model", "deepseek-v3", "--dtype", "bf16", *options)
        self.assertEqual(result.status, 0, result.err)
        return {(p["exchange"], p["rows_cross"]): p for p in result.json["predictions"]}, result.json

    def test_predictions_at_every_scale_without_a_gpu(self):
        for ranks, hosts in ((2, 1), (8, 1), (16, 2), (64, 8), (2048, 256)):
            with self.subTest(ranks=ranks, hosts=hosts):
                found, result = self.predictions("--ranks", str(ranks), "--hosts", str(hosts))
                self.assertEqual(("lsa", "once per rank") in found, hosts == 1)
                self.assertEqual(("hybrid", "once per host") in found, hosts > 1)
                self.assertIn(("dense", "to every rank"), found)
                for p in found.values():
                    for operation in ("dispatch", "combine"):
                        self.assertGreater(p[operation]["us"], 0)
                        self.assertEqual(p[operation]["network_bytes"] > 0, hosts > 1)
                if hosts == 1:
                    self.assertGreaterEqual(min(p["dispatch"]["us"] for p in found.values()), result["floor_us"])

    def test_a_slower_link_is_slower(self):
        fast, _ = self.predictions("--ranks", "16", "--hosts", "2", "--link-gbps", "100")
        slow, _ = self.predictions("--ranks", "16", "--hosts", "2", "--link-gbps", "10")
        for pair, p in fast.items():
            self.assertLess(p["dispatch"]["us"], slow[pair]["dispatch"]["us"], pair)
            self.assertEqual(p["dispatch"]["network_bytes"], slow[pair]["dispatch"]["network_bytes"])
        # A row crosses to the other host once instead of to each of its ranks that wants it.
        self.assertLess(fast["hybrid", "once per host"]["dispatch"]["network_bytes"],
                        fast["sendrecv", "once per rank"]["dispatch"]["network_bytes"] / 3)

    def test_the_document_shows_what_the_command_prints(self):
        """Every number of the table of worked numbers in docs/scaling.md."""
        text = (pathlib.Path(__file__).parents[2] / "docs/scaling.md").read_text(encoding="utf-8")
        columns = [("lsa", "once per rank"), ("lsa", "once per slot"), ("sendrecv", "once per rank"),
                   ("dense", "to every rank"), ("hybrid", "once per host")]
        rows = re.findall(r"^\| (\d+), (\d+), (\d+) \|(.*)\|$", text, re.MULTILINE)
        self.assertGreaterEqual(len(rows), 6)
        for ranks, hosts, tokens, cells in rows:
            found, _ = self.predictions("--ranks", ranks, "--hosts", hosts, "--tokens", tokens)
            for pair, cell in zip(columns, cells.split("|")):
                numbers = [float(n) for n in re.findall(r"[\d.]+", cell)]
                self.assertEqual(bool(numbers), pair in found, (ranks, pair))
                if numbers:
                    for written, operation in zip(numbers, ("dispatch", "combine")):
                        self.assertAlmostEqual(written / found[pair][operation]["us"], 1, delta=0.006, msg=(ranks, pair))

    def test_the_table_names_exchanges_and_bytes(self):
        out = self.epjit("explain", "--ranks", "16", "--hosts", "2").out
        for text in ("a row crosses", "once per host", "to every rank", "GB/s between them"):
            self.assertIn(text, out)

    def test_this_machine_without_a_gpu_is_host(self):
        result = self.epjit("explain", "--json", EPJIT_CUDA_LIBRARY="/nowhere/libcuda.so.1").json
        self.assertEqual(result["exchange"], "host")
        (why,) = [w["reason"] for w in result["why_not"] if w["exchange"] == "loopback"]
        self.assertIn("GPU", why)

    def test_what_warm_compiles_covers_every_run_of_its_set(self):
        """The offline promise: after warm, no option of its set misses."""
        for model in ("qwen3-30b-a3b", "deepseek-v3"):
            self.assertEqual(self.warm("--model", model).status, 0)
            stored = self.keys_in_cache()
            fp8 = next(m["fp8_dispatch"] for m in self.epjit("models", "--json").json["models"] if m["name"] == model)
            for options in [[], ["--mode", "static"], ["--layout", "flat"], ["--layout", "masked"], ["--reduction", "per_row"],
                            ["--tokens", "1"], ["--tokens", "4096"], ["--dtype", "bf16"], ["--graph"], ["--routing", "zipf"],
                            ["--seed", "7"]] + ([["--dtype", "fp8"]] if fp8 else []):
                with self.subTest(model=model, options=options):
                    result = self.epjit("explain", "--keys", "--json", "--model", model, *GPU, *options)
                    self.assertEqual(result.status, 0, result.err)
                    keys = result.json["keys"]
                    self.assertEqual(len(keys), 3)
                    self.assertLessEqual(set(keys), stored)
            offline = self.warm("--model", model, EPJIT_OFFLINE="1")
            self.assertEqual((offline.status, offline.json["failed"]), (0, 0), offline.err)

    def test_what_warm_compiles_of_a_profile_is_what_a_run_with_it_loads(self):
        profile = self.write("p.json", json.dumps({"epjit_profile": 1, "entries": [
            {"arch": "sm_90a", "hidden": 2048, "knobs": {"scatter_movers": 2, "gather_threads": 64, "dispatch_senders": 7}},
            {"hidden": 2048, "tokens": 128, "layout": "flat", "knobs": {"gather_threads": 96, "dispatch_chunk": 2}}]}))
        model = ["--model", "qwen3-30b-a3b"]
        self.assertEqual(self.warm(*model, "--profile", profile).status, 0)
        stored = self.keys_in_cache()
        plain = self.epjit("explain", "--keys", "--json", *model, *GPU).json
        self.assertEqual(plain["knobs"]["programs_from"], "the cost model")
        for options, programs, senders in (([], {"scatter_movers": 2, "gather_threads": 64}, 7),
                                           (["--tokens", "128", "--layout", "flat"], {"gather_threads": 96}, None)):
            tuned = self.epjit("explain", "--keys", "--json", *model, *GPU, *options, "--profile", profile).json
            self.assertEqual(tuned["knobs"]["programs_from"], "the profile")
            self.assertEqual(tuned["knobs"]["programs"], programs)
            self.assertEqual(tuned["knobs"]["launches"].get("dispatch_senders"), senders)
            self.assertNotEqual(tuned["keys"], plain["keys"])
            self.assertLessEqual(set(tuned["keys"]) | set(plain["keys"]), stored)
        self.assertIn("programs as the profile says: scatter_movers=2 gather_threads=64",
                      self.epjit("explain", *model, *GPU, "--profile", profile).out)

    def test_the_built_in_profile_is_for_the_h200(self):
        def launches_from(arch):
            return self.epjit("explain", "--json", "--ranks", "2", "--arch", arch).json["knobs"]["launches_from"]

        self.assertEqual(launches_from("sm_90a"), "the built-in profile")
        self.assertEqual(launches_from("sm_100a"), "the cost model")

    def test_the_workspace_of_a_rank_is_known_without_a_gpu(self):
        def workspace(*options):
            value = self.epjit("explain", "--json", "--arch", "sm_90a", "--model", "deepseek-v3", "--dtype", "bf16",
                               *options).json
            return value["workspace_bytes"], value["workspace_halves_bytes"]

        rows = 8 * 8192 * 7168 * 2  # of all ranks, also partial sums in their turn
        calls, halves = workspace("--ranks", "8", "--tokens", "8192")
        self.assertGreater(calls, rows / 2)
        self.assertLess(calls, 600 << 20, "whole calls, all tokens to one rank included")
        self.assertGreater(halves, rows)
        self.assertLess(halves, rows * 1.1)
        calls, halves = workspace("--ranks", "2", "--tokens", "8192")
        self.assertEqual(calls, halves, "the rows of a call fit")
        calls, halves = workspace("--ranks", "2", "--tokens", "8192", "--staging-bytes", str(64 << 20))
        self.assertLess(calls, 80 << 20)
        self.assertGreater(halves, 2 * 8192 * 7168 * 2)
        self.assertEqual(workspace("--ranks", "8", "--exchange", "sendrecv"), (None, None))

    def test_lent_outputs_count_as_workspace(self):
        def explain(*options):
            return self.epjit("explain", "--json", "--arch", "sm_90a", "--model", "deepseek-v3", "--dtype", "bf16",
                              "--ranks", "8", "--tokens", "1000", *options).json

        for layout, rows in ("flat", 8000), ("expert_major", 64000), ("masked", 256000):
            without, lent = explain("--layout", layout), explain("--layout", layout, "--window")
            self.assertEqual((without["window_rows"], lent["window_rows"]), (0, rows), layout)
            for size in "workspace_bytes", "workspace_halves_bytes":
                self.assertEqual(lent[size] - without[size], rows * 7168 * 2, layout)
        text = self.epjit("explain", "--arch", "sm_90a", "--ranks", "8", "--window", "--layout", "flat").out
        self.assertIn("with max_tokens_per_rank 256 and window_rows 2048: ", text)

    def test_the_way_into_lent_outputs_is_explained(self):
        def explain(*options):
            return self.epjit("explain", "--json", "--keys", "--ranks", "2", "--arch", "sm_90a", "--model", "deepseek-v3",
                              "--exchange", "lsa", "--tokens", "4096", *options).json

        flat, major = explain("--layout", "flat"), explain()
        self.assertTrue(flat["window_dispatch"]["straight"])
        self.assertFalse(major["window_dispatch"]["straight"])
        self.assertIn("straight to every place 650", major["window_dispatch"]["why"])
        self.assertEqual(len(explain("--window")["keys"]), len(major["keys"]) + 1)
        knob = self.write("w.json", json.dumps({"epjit_profile": 1, "entries": [{"knobs": {"window_dispatch": 1}}]}))
        told = explain("--layout", "flat", "--profile", knob)["window_dispatch"]
        self.assertFalse(told["straight"])
        self.assertIn("as the knob window_dispatch says", told["why"])
        self.assertIsNone(self.epjit("explain", "--json", "--ranks", "2", "--exchange", "sendrecv").json["window_dispatch"])
        self.assertIn("into lent outputs rows go straight",
                      self.epjit("explain", "--ranks", "2", "--arch", "sm_90a", "--layout", "flat").out)

    def test_few_tokens_as_packets_are_explained(self):
        def explain(*options):
            return self.epjit("explain", "--json", "--keys", "--arch", "sm_90a", "--model", "deepseek-v3", "--exchange", "lsa",
                              *options).json

        plain, packets = explain("--ranks", "2", "--tokens", "64"), explain("--ranks", "2", "--tokens", "64", "--low-latency")
        ways = [[p["rows_cross"] for p in v["predictions"] if p["exchange"] == "lsa"] for v in (plain, packets)]
        self.assertEqual(ways, [["once per rank", "once per slot"],
                                ["once per rank, as packets", "once per rank", "once per slot"]])
        self.assertEqual((plain["plan_source"], packets["plan_source"]), ("counts", "gathered"))
        self.assertEqual(len(packets["keys"]), len(plain["keys"]) + 2, "a dispatch and a combine of their own")
        room = 2 * 64 * 7168 * 2 * 2  # of two ranks, both parities of a dispatch alone
        self.assertGreater(packets["workspace_bytes"], plain["workspace_bytes"] + room)
        many = explain("--ranks", "64", "--tokens", "128", "--low-latency")
        self.assertEqual(many["plan_source"], "counts", "one block cannot hold all ids")

    def test_the_larger_set_covers_every_dtype(self):
        self.assertEqual(self.warm("--set", "all").status, 0)
        stored = self.keys_in_cache()
        for dtype in ("bf16", "fp16", "f32", "fp8"):
            keys = self.epjit("explain", "--keys", "--json", *GPU, "--dtype", dtype).json["keys"]
            self.assertLessEqual(set(keys), stored, dtype)

    def test_batch_sizes_layouts_and_modes_share_keys(self):
        def keys(*options):
            return self.epjit("explain", "--keys", "--json", *GPU, *options).json["keys"]

        base = keys()
        self.assertEqual(keys("--tokens", "9999", "--layout", "masked", "--mode", "static", "--reduction", "per_row"), base)
        self.assertNotEqual(keys("--model", "deepseek-v3"), base)


class Run(CommandTest):
    def test_a_run_of_few_tokens_is_checked(self):
        result = self.epjit("run", "--json", "--exchange", "host", "--ranks", "3", "--tokens", "9", "--check", "--low-latency",
                            "--model", "mixtral-8x7b")
        self.assertEqual((result.status, result.json["mismatched_rows"]), (0, 0), result.err)

    def test_a_run_into_lent_outputs_is_checked(self):
        for layout in ("expert_major", "flat", "masked"):
            result = self.epjit("run", "--json", "--exchange", "host", "--ranks", "3", "--tokens", "9", "--check", "--window",
                                "--model", "mixtral-8x7b", "--layout", layout)
            self.assertEqual((result.status, result.json["mismatched_rows"]), (0, 0), result.err)

    def test_the_host_exchange_is_checked_against_the_reference(self):
        result = self.epjit("run", "--json", "--exchange", "host", "--ranks", "4", "--tokens", "9", "--check", "--model",
                            "mixtral-8x7b")
        self.assertEqual(result.status, 0, result.err)
        value = result.json
        self.assertEqual(list(value), ["ok", "exchange", "checked_rows", "mismatched_rows", "max_error", "dispatch_us",
                                       "combine_us", "launches", "allocations", "host_waits"])
        self.assertEqual((value["ok"], value["exchange"], value["mismatched_rows"]), (True, "host", 0))
        self.assertGreaterEqual(value["checked_rows"], 4 * 9)

    def test_without_a_gpu_auto_is_host_with_a_line_on_stderr(self):
        result = self.epjit("run", "--json", "--ranks", "2", "--tokens", "3", "--model", "mixtral-8x7b",
                            EPJIT_CUDA_LIBRARY="/nowhere/libcuda.so.1")
        self.assertEqual((result.status, result.json["exchange"]), (0, "host"), result.err)
        self.assertEqual(len(result.err.splitlines()), 1)
        self.assertIn("host", result.err)

    def test_loopback_without_a_gpu_is_status_3(self):
        result = self.epjit("run", "--json", "--exchange", "loopback", EPJIT_CUDA_LIBRARY="/nowhere/libcuda.so.1")
        self.assertEqual(result.status, 3, result.err)
        self.assertTrue(result.json["error"]["remedy"])

    def test_ranks_of_a_launcher_need_their_gpus_and_only_rank_0_prints(self):
        nowhere = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29400", EPJIT_CUDA_LIBRARY="/nowhere/libcuda.so.1",
                       EPJIT_NCCL_LIBRARY="/nowhere/libnccl.so.2")
        self.assert_error(self.epjit("run", "--json", RANK="0", **nowhere), 3, "library", "/nowhere/")
        other = self.epjit("run", "--json", RANK="1", **nowhere)
        self.assertEqual((other.status, other.out), (3, ""))
        self.assertIn("epjit: rank 1: error: ", other.err)
        self.assert_error(self.epjit("run", "--json", "--ranks", "3", RANK="0", **nowhere), 2, "config",
                          "--ranks 3", "WORLD_SIZE=2")
        self.assert_error(self.epjit("run", "--json", RANK="x", WORLD_SIZE="2"), 2, "config", "RANK is 'x'")

    def test_one_process_drives_all_ranks_of_host_also_under_a_launcher(self):
        result = self.epjit("run", "--json", "--check", "--exchange", "host", "--tokens", "4", "--ranks", "2", RANK="1", WORLD_SIZE="2")
        self.assertEqual((result.status, result.json["ok"]), (0, True))

    def test_a_graph_needs_static_mode_and_a_gpu(self):
        self.assert_error(self.epjit("run", "--json", "--graph", "--mode", "exact", "--exchange", "host"), 2, "config", "--mode static")
        self.assert_error(self.epjit("run", "--json", "--graph", "--exchange", "host", "--tokens", "2"), 3, "unsupported", "graph")


if __name__ == "__main__":
    unittest.main()
