#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plots of what sweep.py or `epjit bench --json` measured: time over tokens with the floor, bandwidth over SMs with the copy engine's.

  tools/tune/plot.py results/results.json --out results

Writes OUT/time_over_tokens.svg and OUT/bandwidth_over_sms.svg, each where there is something to plot. Needs matplotlib.
"""

import argparse
import os
import sys

import results

NEEDS = "plot.py: matplotlib is needed for plots (pip install matplotlib, or Debian's python3-matplotlib); results.csv has the same numbers"


def open_matplotlib():
    """pyplot that needs no display, or None."""
    try:
        import matplotlib
        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return None
    return pyplot


def shape_text(hidden, topk, experts, kind, layout, routing, mode):
    return f"H {hidden}, K {topk}, E {experts}, {kind} {layout} {routing} {mode}"


def plot_tokens(pyplot, lines, path):
    shapes = sorted({key[:7] for key in lines}, key=str)
    figure, axes = pyplot.subplots(len(shapes), 1, figsize=(8, 5 * len(shapes)), squeeze=False)
    for axis, shape in zip(axes[:, 0], shapes):
        for key in sorted((k for k in lines if k[:7] == shape), key=str):
            points = lines[key]
            (drawn,) = axis.plot([p[0] for p in points], [p[1] for p in points], marker="o", label=f"{key[7]}: {key[8]}")
            floor = [(p[0], p[2]) for p in points if p[2] is not None]
            if floor:
                axis.plot(*zip(*floor), linestyle=":", color=drawn.get_color())
        axis.set(title=shape_text(*shape) + " (dotted: floor)", xlabel="tokens a rank", ylabel="us", xscale="log", yscale="log")
        axis.legend(fontsize="small")
        axis.grid(True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def plot_sms(pyplot, lines, rate, path):
    figure, axis = pyplot.subplots(figsize=(8, 5))
    for key in sorted(lines, key=str):
        axis.plot(*zip(*lines[key]), marker="o", label=f"{key[8]}: {key[9]}, T {key[0]}, {shape_text(*key[1:8])}")
    if rate is not None:
        axis.axhline(rate, linestyle=":", color="black", label="copy engine")
    axis.set(title="bandwidth over NVLink", xlabel="SMs of the call", ylabel="GB/s each way")
    axis.set_ylim(bottom=0)
    axis.legend(fontsize="small")
    axis.grid(True, alpha=0.3)
    figure.tight_layout()
    figure.savefig(path)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", help="results.json of sweep.py, or the output of epjit bench --json")
    parser.add_argument("--out", default=".", help="folder for the plots (.)")
    options = parser.parse_args(argv)
    try:
        runs = [run for path in options.results for run in results.read_json(path)]
    except results.BadResults as error:
        print(f"plot.py: {error}", file=sys.stderr)
        return 2
    pyplot = open_matplotlib()
    if pyplot is None:
        print(NEEDS, file=sys.stderr)
        return 3
    os.makedirs(options.out, exist_ok=True)
    written = []
    over_tokens = results.time_over_tokens(runs)
    if over_tokens:
        written.append(os.path.join(options.out, "time_over_tokens.svg"))
        plot_tokens(pyplot, over_tokens, written[-1])
    over_sms, rate = results.bandwidth_over_sms(runs)
    if over_sms:
        written.append(os.path.join(options.out, "bandwidth_over_sms.svg"))
        plot_sms(pyplot, over_sms, rate, written[-1])
    print("\n".join(written) if written else "nothing to plot: no valid rows with times", file=sys.stderr)
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
