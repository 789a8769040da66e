# SPDX-License-Identifier: Apache-2.0
"""tools/quickstart, as the README gives it, on the build that is there and with a cache of its own."""

import os
import re
import tempfile
import unittest

import staging


class quickstart(unittest.TestCase):
    @unittest.skipUnless(staging.BUILD == staging.SOURCE / "build", "this build is not in build/")
    def test_warms_runs_and_checks_a_model(self):
        with tempfile.TemporaryDirectory() as folder:
            environment = {**os.environ, "EPJIT_CACHE_PATH": folder, "CI": "true"}
            result = staging.run(staging.SOURCE / "tools" / "quickstart", "--jobs", "2", env=environment, cwd="/",
                                 check=False)
        if "NVRTC: not found" in result.stdout:
            self.skipTest("no NVRTC on this machine")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertIn("nothing to install", result.stdout)
        self.assertRegex(result.stdout, r"kernels +[1-9]\d* compiled, 0 from the cache")
        checked = re.search(r"exchange \w+: (\d+) rows checked, all as the reference has them", result.stdout)
        self.assertGreater(int(checked.group(1)), 0)


if __name__ == "__main__":
    unittest.main(verbosity=2)
