# SPDX-License-Identifier: Apache-2.0
"""The same with the NVRTC of this machine, where there is one."""

import unittest

from command import CommandTest


class RealCompiler(CommandTest):
    def setUp(self):
        super().setUp()
        self.environment["EPJIT_NVRTC_LIBRARY"] = ""
        if not self.epjit("doctor", "--json").json["nvrtc"]["found"]:
            self.skipTest("no NVRTC on this machine")

    def test_warm_inspect_and_offline(self):
        first = self.warm("--model", "qwen3-30b-a3b")
        self.assertEqual((first.status, first.json["failed"]), (0, 0), first.err)
        n = len(first.json["variants"])
        for v in first.json["variants"]:
            self.assertTrue(v["spill_bytes"] == 0 or v["spill_exception"], v)
            self.assertGreater(v["registers"], 0)
        key = first.json["variants"][0]["key"]
        ptx = self.epjit("inspect", key, "--ptx")
        self.assertEqual(ptx.status, 0, ptx.err)
        self.assertIn(".entry", ptx.out)
        self.assertIn(".target sm_90a", ptx.out)
        offline = self.warm("--model", "qwen3-30b-a3b", EPJIT_OFFLINE="1")
        self.assertEqual((offline.status, offline.json["hits"]), (0, n), offline.err)

    def test_one_process_or_several_give_the_same_cubins(self):
        def cubins(folder, *options):
            result = self.warm("--cache-dir", f"{self.folder}/{folder}", *options).json
            return {v["key"]: (v["cubin_bytes"], v["registers"]) for v in result["variants"]}

        self.assertEqual(cubins("one", "--jobs", "1"), cubins("many", "--jobs", "3"))


if __name__ == "__main__":
    unittest.main()
