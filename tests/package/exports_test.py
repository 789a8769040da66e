# SPDX-License-Identifier: Apache-2.0
"""libepjit.so exports the public interface and nothing else: no symbol of a dependency, none of the library's inner parts."""

import re
import unittest

import staging

LIBRARY = staging.BUILD / f"libepjit.so.{staging.VERSION}"
OWN = re.compile(r"^(?:(?:typeinfo|vtable|typeinfo name|guard variable) for )?(?:[^(]*[ *&])?epjit::")
C_HEADERS = sorted((staging.SOURCE / "host/include/epjit").glob("*.h"))
C_FUNCTIONS = {name for header in C_HEADERS
               for name in re.findall(r"EPJIT_API [^;(]*?\b(epjit_\w+)\(", header.read_text(encoding="utf-8"))}


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
                if symbol in C_FUNCTIONS:
                    self.assertEqual(kind, "T")
                    continue
                self.assertTrue(OWN.match(symbol), "not of namespace epjit")
                self.assertIn(re.match(r"(?:jit::)?(\w+)", name).group(1), public, f"not marked EPJIT_API ({kind})")

    def test_exports_what_an_embedder_calls(self):
        symbols = "\n".join(symbol for _, symbol in exported())
        for name in ("epjit::runtime::runtime(", "epjit::communicator::host(", "epjit::communicator::loopback(",
                     "epjit::exchange::make_plan(", "epjit::exchange::dispatch(", "epjit::exchange::combine(",
                     "epjit::plan::view(", "typeinfo for epjit::config_error", "epjit::jit::load_model_config("):
            self.assertIn(name, symbols)

    def test_exports_every_c_function_and_the_tests_call_it(self):
        self.assertGreater(len(C_FUNCTIONS), 40)
        symbols = {symbol for _, symbol in exported()}
        tests = "\n".join(path.read_text(encoding="utf-8") for path in (staging.SOURCE / "tests/c").glob("*.c*"))
        for name in sorted(C_FUNCTIONS):
            with self.subTest(function=name):
                self.assertIn(name, symbols)
                self.assertRegex(tests, rf"\b{name}\(")

    def test_leaves_nothing_undefined(self):
        """Every symbol it needs is one of the system's libraries."""
        result = staging.run("ldd", "-r", LIBRARY)
        self.assertNotIn("undefined symbol", result.stdout + result.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
