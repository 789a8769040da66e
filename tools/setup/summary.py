# SPDX-License-Identifier: Apache-2.0
"""What tools/quickstart did, in a few lines: summary.py WARM.json RUN.json CONFIG."""

import json
import sys


def load(path):
    """The command's one JSON object, or one in the form of its errors when it left none."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return {"error": {"message": "the command ended without a result", "remedy": "see its lines above"}}


def failure(result):
    error = result["error"]
    return f"failed: {error['message']}" + (f"\n{'':14}{error['remedy']}" if error.get("remedy") else "")


def describe_warm(result):
    if "error" in result:
        return failure(result)
    text = f"{result['compiled']} compiled, {result['hits']} from the cache, {result['wall_ms'] / 1000:.2f} s"
    if result["failed"]:
        text += f"; {result['failed']} FAILED"
    if result["not_stored"]:
        text += f"; {result['not_stored']} could not be stored"
    return text


def describe_run(result):
    if "error" in result:
        return failure(result)
    verdict = "all as the reference has them" if result["ok"] else f"{result['mismatched_rows']} DIFFER"
    return (f"exchange {result['exchange']}: {result['checked_rows']} rows checked, {verdict}; "
            f"dispatch {result['dispatch_us']:.0f} us, combine {result['combine_us']:.0f} us")


def main():
    warm, run = load(sys.argv[1]), load(sys.argv[2])
    for title, text in (("model", sys.argv[3]), ("kernels", describe_warm(warm)), ("one layer", describe_run(run)),
                        ("next", "build/epjit --help, build/epjit doctor, docs/operations.md")):
        print(f"   {title:10} {text}")
    # An error's status is the command's own; a result that is not there must not pass.
    sys.exit(1 if "error" in warm or "error" in run else 0)


if __name__ == "__main__":
    main()
