# SPDX-License-Identifier: Apache-2.0
"""libepjit.so exports the public interface and nothing else: no symbol of a dependency, none of the library's inner parts."""

import re
import unittest

import staging

LIBRARY = staging.BUILD / f"libepjit.so.{staging.VERSION}"
OWN = re.compile(r"^(?:(?:typeinfo|vtable|typeinfo name|guard variable) for )?(?:[^(]*[ *&])?epjit::")


def exported():
    lines = staging.run("nm", "-D", "-C", "--defined-only", LIBRARY).stdout.splitlines()
    return [(line.split(maxsplit=2)[1], line.split(maxsplit=2)[2]) for line in lines]


def marked():
    """Names that the public headers export."""
    names = set()
    listed = re.search(r"set\(EPJIT_PUBLIC_HEADERS(.*?)\)",
                       (staging.SOURCE / "CMakeLists.txt").read_text(encoding="utf-8"), re.DOTALL)
    for header in listed.group(1).split():
        text = (staging.SOURCE / header).read_text(encoding="utf-8")
        names |= set(re.findall(r"(?:class|struct) EPJIT_API (\w+)", text))
        names |= set(re.findall(r"EPJIT_API [^;(]*?(\w+)\(", text))
    return names


class shared_library(unittest.TestCase):
    def test_exports_only_the_public_interface(self):
        public = marked()
        self.assertGreater(len(public), 20)
        for kind, symbol in exported():
            name = OWN.sub("", symbol)
            with self.subTest(symbol=symbol):
                self.assertTrue(OWN.match(symbol), "not of namespace epjit")
                self.assertIn(re.match(r"(?:jit::)?(\w+)", name).group(1), public, f"not marked EPJIT_API ({kind})")

    def test_exports_what_an_embedder_calls(self):
        symbols = "\n".join(symbol for _, symbol in exported())
        for name in ("epjit::runtime::runtime(", "epjit::communicator::host(", "epjit::communicator::loopback(",
                     "epjit::exchange::make_plan(", "epjit::exchange::dispatch(", "epjit::exchange::combine(",
                     "epjit::plan::view(", "typeinfo for epjit::config_error", "epjit::jit::load_model_config("):
            self.assertIn(name, symbols)

    def test_leaves_nothing_undefined(self):
        """Every symbol it needs is one of the system's libraries."""
        result = staging.run("ldd", "-r", LIBRARY)
        self.assertNotIn("undefined symbol", result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
