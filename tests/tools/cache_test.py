# SPDX-License-Identifier: Apache-2.0
"""epjit cache and inspect."""

import os
import time
import unittest

from command import CommandTest


class Cache(CommandTest):
    def setUp(self):
        super().setUp()
        self.variants = self.warm().json["variants"]

    def entries(self):
        return self.epjit("cache", "list", "--json").json["entries"]

    def test_list(self):
        result = self.epjit("cache", "list", "--json").json
        self.assertEqual(sorted(result), ["bytes", "entries"])
        self.assertEqual(len(result["entries"]), len(self.variants))
        self.assertEqual(result["bytes"], sum(e["bytes"] for e in result["entries"]))
        for e in result["entries"]:
            self.assertEqual(set(e), {"key", "path", "kernels", "arch", "bytes", "last_used"})
            self.assertEqual(os.path.getsize(e["path"]), e["bytes"])
            self.assertLess(abs(time.time() - e["last_used"]), 3600)
        text = self.epjit("cache", "list").out
        self.assertIn(f"{len(self.variants)} entries", text)
        self.assertIn(result["entries"][0]["key"][:12], text)

    def test_verify_finds_a_flipped_bit_and_repairs_nothing(self):
        self.assertEqual(self.epjit("cache", "verify", "--json").json, {"entries": len(self.variants), "bad": 0})
        path = self.entries()[0]["path"]
        with open(path, "r+b") as file:
            file.seek(os.path.getsize(path) // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
        for _ in range(2):
            result = self.epjit("cache", "verify", "--json")
            self.assertEqual((result.status, result.json), (1, {"entries": len(self.variants), "bad": 1}))
        self.assertIn(f"bad: {path}", self.epjit("cache", "verify").out)
        again = self.warm()
        self.assertEqual((again.status, again.json["compiled"]), (0, 1), again.err)
        self.assertEqual(self.epjit("cache", "verify").status, 0)

    def test_a_link_in_an_entrys_place_is_bad(self):
        first, second = self.entries()[:2]
        os.unlink(first["path"])
        os.symlink(second["path"], first["path"])
        result = self.epjit("cache", "verify", "--json")
        self.assertEqual((result.status, result.json["bad"]), (1, 1))

    def test_prune(self):
        total = self.epjit("cache", "list", "--json").json["bytes"]
        self.assertEqual(self.epjit("cache", "prune", "--json").json,
                         {"evicted": 0, "entries": len(self.variants), "bytes": total})
        result = self.epjit("cache", "prune", "--max-bytes", "0", "--json")
        self.assertEqual(result.status, 0, result.err)
        self.assertEqual(result.json["entries"], len(self.entries()))
        self.assertEqual(result.json["evicted"] + result.json["entries"], len(self.variants))

    def test_export_and_import_move_a_warm_cache(self):
        pack, other = os.path.join(self.folder, "pack"), os.path.join(self.folder, "other")
        exported = self.epjit("cache", "export", pack, "--json").json
        self.assertEqual((exported["exported"], exported["file"]), (len(self.variants), pack))
        refused = self.epjit("cache", "import", pack, "--cache-dir", other, "--digest", "0" * 32, "--json")
        self.assertEqual(refused.status, 2, refused.err)
        imported = self.epjit("cache", "import", pack, "--cache-dir", other, "--digest", exported["digest"], "--json")
        self.assertEqual((imported.status, imported.json["imported"]), (0, len(self.variants)), imported.err)
        served = self.warm("--cache-dir", other, EPJIT_OFFLINE="1")
        self.assertEqual((served.status, served.json["hits"]), (0, len(self.variants)), served.err)
        missing = os.path.join(self.folder, "nothing")
        self.assert_error(self.epjit("cache", "import", missing, "--json"), 2, "config", missing)
        damaged = self.write("damaged", "no pack")
        self.assertEqual(self.epjit("cache", "import", damaged, "--json").status, 2)

    def test_path_and_looking_create_nothing(self):
        other = os.path.join(self.folder, "other")
        self.assertEqual(self.epjit("cache", "path", "--cache-dir", other).out, other + "\n")
        self.assertEqual(self.epjit("cache", "list", "--json", "--cache-dir", other).json, {"entries": [], "bytes": 0})
        self.assertFalse(os.path.exists(other))

    def test_inspect(self):
        key = self.variants[0]["key"]
        full = self.epjit("inspect", key, "--json", "--source", "--log").json
        self.assertEqual(full["key"], key)
        self.assertEqual([k["name"] for k in full["kernels"]], self.variants[0]["kernels"])
        self.assertEqual(full["cubin_bytes"], self.variants[0]["cubin_bytes"])
        self.assertIn("#include", full["source"])
        self.assertEqual(self.epjit("inspect", key, "--source").out.rstrip("\n"), full["source"].rstrip("\n"))
        self.assertIn(full["kernels"][0]["name"], self.epjit("inspect", key[:12]).out)

    def test_inspect_without_the_disassembler_is_status_3_naming_it(self):
        if os.path.exists("/usr/local/cuda/bin/nvdisasm") or os.path.exists("/usr/local/cuda/bin/cuobjdump"):
            self.skipTest("the disassembler is installed")
        result = self.epjit("inspect", self.variants[0]["key"], "--sass", "--json", PATH=self.folder)
        self.assert_error(result, 3, "unsupported", "nvdisasm", "cuobjdump")

    def test_inspect_counts_instructions_by_the_calls_that_they_come_from(self):
        key = self.variants[0]["key"]
        full = self.epjit("inspect", key, "--json").json
        kernel = full["kernels"][0]
        rows = "rows/gather_kernel.cuh"
        here = os.path.join(os.path.realpath(self.folder), rows)  # as NVRTC names what it was given in memory
        sass = [
            f'\t.section\t.text.{kernel["lowered"]},"ax",@progbits',
            f'\t//## File "{here}", line 3',
            "        /*0000*/                   LDC R1, c[0x0][0x28] ;",
            f'\t//## File "{here}", line 5 inlined at "{here}", line 9',
            f'\t//## File "{here}", line 9',
            "        /*0010*/              @!P0 EXIT ;",
            "        /*0020*/                   EXIT ;",
            "        .L_x_1:",
        ]
        tool = self.write("nvdisasm", "#!/bin/sh\ncat <<'END'\n" + "\n".join(sass) + "\nEND\n")
        os.chmod(tool, 0o755)
        path = f"{os.path.dirname(tool)}:/usr/bin:/bin"
        result = self.epjit("inspect", key, "--lines", "--json", PATH=path, CUDA_HOME="", CUDA_PATH="")
        self.assertEqual(result.status, 0, result.err)
        place = lambda line, depth, n: {"file": rows, "line": line, "depth": depth, "instructions": n}
        self.assertEqual(
            result.json["lines"],
            [
                {
                    "kernel": kernel["name"],
                    "instructions": 3,
                    "calls": [place(9, 0, 2), place(5, 1, 2), place(3, 0, 1)],
                }
            ],
        )
        text = self.epjit("inspect", key, "--lines", PATH=path, CUDA_HOME="", CUDA_PATH="").out
        self.assertIn(f"  {rows}:9", text)
        self.assertIn(f"    {rows}:5", text)


if __name__ == "__main__":
    unittest.main()
