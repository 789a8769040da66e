#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs `epjit bench --json` over many shapes, and with --profile `epjit tune` before it; results as JSON and CSV.

  tools/tune/sweep.py --epjit build/epjit --models deepseek-v3,qwen3-235b-a22b --tokens 1024,4096,8192 --out results
  tools/tune/sweep.py --epjit build/epjit --models deepseek-v3 --tokens 4096 --sms 4,8,16,32,64,132 --exchange lsa --out sms
  tools/tune/sweep.py --epjit build/epjit --models deepseek-v3 --tokens 128,4096 --profile h200.json --out tuned

OUT/results.json and OUT/results.csv are written after every run, so an interrupted sweep leaves what it has. Plots: plot.py.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys

import results


def listed(text):
    return [part for part in text.split(",") if part]


def numbers(text):
    return [int(part) for part in listed(text)]


def arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epjit", default="epjit", help="the command (epjit)")
    parser.add_argument("--suite", default="exchange", choices=["exchange", "decode"], help="of epjit bench (exchange)")
    parser.add_argument("--models", type=listed, default=["deepseek-v3"], help="built-in models, with commas")
    parser.add_argument("--tokens", type=numbers, default=[4096], help="tokens of a rank, with commas")
    parser.add_argument("--sms", type=numbers, default=[0], help="bounds on the SMs of a call, with commas; 0: automatic")
    parser.add_argument("--exchange", default="auto", help="as epjit bench takes it (auto)")
    parser.add_argument("--ranks", type=int, help="GPUs to use (all)")
    parser.add_argument("--quick", action="store_true", help="few repetitions")
    parser.add_argument("--profile", help="tune every shape into this profile first, and measure with it")
    parser.add_argument("--budget", type=int, default=120, help="seconds of each epjit tune (120)")
    parser.add_argument("--out", required=True, help="folder for results.json and results.csv")
    return parser.parse_args(argv)


def tune_commands(options):
    """One command a model: every number of tokens gets its entry."""
    if not options.profile:
        return []
    ranks = ["--ranks", str(options.ranks)] if options.ranks else []
    return [[options.epjit, "tune", "--json", "--model", model, "--tokens", ",".join(map(str, options.tokens)), "--out",
             options.profile, "--budget", str(options.budget), *ranks] for model in options.models]


def bench_commands(options):
    commands = []
    for model, tokens, sms in itertools.product(options.models, options.tokens, options.sms):
        command = [options.epjit, "bench", "--json", "--suite", options.suite, "--model", model, "--tokens", str(tokens),
                   "--exchange", options.exchange]
        command += ["--sms", str(sms)] if sms else []
        command += ["--ranks", str(options.ranks)] if options.ranks else []
        command += ["--quick"] if options.quick else []
        commands.append(command)
    return commands


def run(command, environment):
    """The JSON object that the command printed. @raises results.BadResults with its error."""
    print("+ " + " ".join(command), file=sys.stderr, flush=True)
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    except OSError as error:
        raise results.BadResults(f"{command[0]}: {error.strerror}") from error
    try:
        value = json.loads(done.stdout)
    except ValueError as error:
        raise results.BadResults(f"{' '.join(command)}: status {done.returncode}, and no JSON on stdout") from error
    if done.returncode != 0:
        message = value.get("error", {}).get("message", "") if isinstance(value, dict) else ""
        raise results.BadResults(f"{' '.join(command)}: status {done.returncode}{': ' + message if message else ''}")
    return value


def main(argv):
    options = arguments(argv)
    environment = dict(os.environ)
    if options.profile:
        environment["EPJIT_PROFILE"] = options.profile
    runs, failed = [], 0
    try:
        os.makedirs(options.out, exist_ok=True)
        for command in tune_commands(options):
            # The file may not be there yet, and tuning does not read it.
            run(command, {k: v for k, v in environment.items() if k != "EPJIT_PROFILE"})
        for command in bench_commands(options):
            try:
                report = results.check_report(run(command, environment), " ".join(command))
            except results.BadResults as error:
                print(f"sweep.py: {error}", file=sys.stderr)
                failed += 1
                continue
            runs.append({"command": command, "report": report})
            results.write_json(os.path.join(options.out, "results.json"), runs)
            results.write_csv(os.path.join(options.out, "results.csv"), runs)
    except (results.BadResults, OSError) as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return 1
    print(f"{len(runs)} runs in {options.out}, {failed} failed", file=sys.stderr)
    return 1 if failed or not runs else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
