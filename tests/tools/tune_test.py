# SPDX-License-Identifier: Apache-2.0
"""epjit tune: what it needs, what it writes. Over a fake driver, whose times are all alike."""

import json
import os
import stat
import unittest

from command import CommandTest

ARGUMENTS = ["tune", "--json", "--model", "olmoe-1b-7b", "--tokens", "12", "--iters", "1", "--budget", "20"]


class Tune(CommandTest):
    def tune(self, *arguments, devices="1", **environment):
        return self.epjit(*ARGUMENTS, *arguments, EPJIT_CUDA_LIBRARY=os.environ["EPJIT_FAKE_CUDA"],
                          EPJIT_NCCL_LIBRARY=os.environ["EPJIT_NCCL_STUB"], FAKE_CUDA_DEVICES=devices, **environment)

    def entries(self, path):
        with open(path, encoding="utf-8") as file:
            return json.load(file)["entries"]

    def test_without_gpus_it_is_status_3_and_says_so(self):
        self.assert_error(self.epjit(*ARGUMENTS, EPJIT_CUDA_LIBRARY="/nowhere/libcuda.so.1"), 3, "unsupported",
                          "there is none", "/nowhere/libcuda.so.1")
        self.assert_error(self.tune("--ranks", "3", devices="2"), 3, "unsupported", "--ranks 3 takes 3 GPUs, this machine has 2")

    def test_one_gpu_and_two_get_entries_of_their_own_in_one_file(self):
        out = os.path.join(self.folder, "p.json")
        first = self.tune("--out", out)
        self.assertEqual(first.status, 0, first.err)
        self.assertEqual(list(first.json), ["entries", "candidates", "complete", "results_agree", "out"])
        self.assertEqual(first.json["out"], out)
        self.assertTrue(first.json["results_agree"])
        self.assertEqual({c["job"] for c in first.json["candidates"]}, {"dispatch", "combine"})
        self.assertEqual(self.entries(out), first.json["entries"])
        second = self.tune("--out", out, devices="2")
        self.assertEqual(second.status, 0, second.err)
        self.assertEqual(self.entries(out), first.json["entries"] + second.json["entries"])
        self.assertEqual([e["link"] for e in self.entries(out)], ["none", "nvlink"])
        again = self.tune("--out", out)
        self.assertEqual(again.status, 0, again.err)
        self.assertEqual(len(self.entries(out)), 2, "the same key is replaced")
        self.assertEqual([name for name in os.listdir(self.folder) if "tmp" in name], [])
        read = self.epjit("explain", "--json", "--model", "olmoe-1b-7b", "--ranks", "2", "--tokens", "12", EPJIT_PROFILE=out,
                          EPJIT_CUDA_LIBRARY=os.environ["EPJIT_FAKE_CUDA"], FAKE_CUDA_DEVICES="2")
        self.assertEqual(read.json["knobs"]["launches_from"], "the profile")

    def test_the_table_says_what_was_taken(self):
        result = self.epjit(*[a for a in ARGUMENTS if a != "--json"], "--tokens", "8", EPJIT_CUDA_LIBRARY=os.environ["EPJIT_FAKE_CUDA"])
        self.assertEqual(result.status, 0, result.err)
        self.assertIn("taken: none (dispatch 1500.0 us, the cost model's 1500.0", result.out)
        self.assertIn("nothing was written", result.out)

    def test_a_file_that_is_no_profile_is_refused_before_anything_is_measured(self):
        for text in ("{}", '{"epjit_profile": 1, "entries": [{"knobs": {"x": 1}}]}'):
            path = self.write("p.json", text)
            self.assert_error(self.tune("--out", path), 2, "config", path)
            with open(path, encoding="utf-8") as file:
                self.assertEqual(file.read(), text)

    @unittest.skipIf(os.geteuid() == 0, "root may write everywhere")
    def test_a_folder_that_cannot_be_written_is_status_1(self):
        folder = os.path.join(self.folder, "closed")
        os.mkdir(folder, stat.S_IRUSR | stat.S_IXUSR)
        self.assert_error(self.tune("--out", os.path.join(folder, "p.json")), 1, "config", "cannot write the profile")

    def test_a_folder_that_is_not_there_is_status_1(self):
        self.assert_error(self.tune("--out", os.path.join(self.folder, "none", "p.json")), 1, "config", "cannot write the profile")


if __name__ == "__main__":
    unittest.main()
