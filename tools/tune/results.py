# SPDX-License-Identifier: Apache-2.0
"""Rows of `epjit bench --json` runs: kept with the command that made them, written as JSON and CSV, read back, grouped for plots."""

import csv
import json
import re

# What a run of the command is in results.json: {"command": [..], "report": the command's JSON object}.
ROW_FIELDS = ["name", "exchange", "us", "kernel_us", "floor_us", "ratio", "bytes", "sms", "launches"]
SHAPE_FIELDS = ["tokens", "hidden", "topk", "experts", "routing", "type", "layout", "mode"]
RATE_FIELDS = ["peer_copy_gb_per_s", "copy_read_write_gb_per_s", "valid"]
COLUMNS = ROW_FIELDS + SHAPE_FIELDS + RATE_FIELDS + ["shape", "command"]

SHAPE = re.compile(r"T=(?P<tokens>\d+)(?: H=(?P<hidden>\d+))? K=(?P<topk>\d+) E=(?P<experts>\d+)(?P<words>.*)")


class BadResults(Exception):
    """A file or an answer that is not what the scripts write and the command prints."""


def shape_fields(text):
    """"T=4096 H=7168 K=8 E=256 uniform bf16 expert_major static sms=16" as fields; what is not in it is empty."""
    fields = dict.fromkeys(SHAPE_FIELDS, "")
    found = SHAPE.fullmatch(text or "")
    if not found:
        return fields
    for name in ("tokens", "hidden", "topk", "experts"):
        fields[name] = int(found[name]) if found[name] else ""
    words = [word for word in found["words"].split() if "=" not in word]
    for word in words:
        for name, known in (("routing", ("uniform", "zipf")), ("type", ("bf16", "fp8+scales")),
                            ("layout", ("expert_major", "flat", "masked")), ("mode", ("exact", "static"))):
            if word in known:
                fields[name] = word
    return fields


def check_report(report, source):
    """The object that `epjit bench --json` prints, or BadResults."""
    if not isinstance(report, dict):
        raise BadResults(f"{source}: not a JSON object")
    if "error" in report:
        raise BadResults(f"{source}: {report['error'].get('message', 'an error without a message')}")
    if not isinstance(report.get("rows"), list) or not isinstance(report.get("rates"), dict):
        raise BadResults(f"{source}: no \"rows\" and \"rates\" as `epjit bench --json` prints them")
    return report


def flat_rows(runs):
    """A dictionary with all COLUMNS for every row of every run."""
    rows = []
    for run in runs:
        rates = run["report"]["rates"]
        for row in run["report"]["rows"]:
            flat = {name: row.get(name) for name in ROW_FIELDS}
            flat.update(shape_fields(row.get("shape")))
            flat.update({name: rates.get(name) for name in RATE_FIELDS})
            flat["shape"] = row.get("shape", "")
            flat["command"] = " ".join(run["command"])
            rows.append(flat)
    return rows


def write_json(path, runs):
    with open(path, "w", encoding="utf-8") as file:
        json.dump({"runs": runs}, file, indent=1)
        file.write("\n")


def write_csv(path, runs):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in flat_rows(runs):
            writer.writerow({name: "" if value is None else value for name, value in row.items()})


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            value = json.load(file)
    except OSError as error:
        raise BadResults(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise BadResults(f"{path}: not JSON: {error}") from error
    if isinstance(value, dict) and "runs" not in value:  # what `epjit bench --json > FILE` leaves
        value = {"runs": [{"command": ["epjit", "bench"], "report": value}]}
    if not isinstance(value, dict) or not isinstance(value["runs"], list):
        raise BadResults(f"{path}: no \"runs\" as sweep.py writes them")
    for i, run in enumerate(value["runs"]):
        if not isinstance(run, dict) or not isinstance(run.get("command"), list):
            raise BadResults(f"{path}: run {i} has no command")
        check_report(run.get("report"), f"{path}: run {i}")
    return value["runs"]


def valid(row):
    """Rows of a run whose rates were too low are left out of plots."""
    return row["valid"] is None or row["valid"] == 1


def time_over_tokens(runs):
    """{(H, K, E, type, layout, routing, mode, exchange, name): [(tokens, us, floor_us or None)]}, ascending: the plotted lines."""
    lines = {}
    for row in flat_rows(runs):
        if row["us"] is None or row["tokens"] == "" or row["sms"] or not valid(row):
            continue
        key = (*(row[field] for field in ("hidden", "topk", "experts", "type", "layout", "routing", "mode")), row["exchange"],
               row["name"])
        lines.setdefault(key, {})[row["tokens"]] = (row["us"], row["floor_us"])
    return {key: [(t, *points[t]) for t in sorted(points)] for key, points in lines.items()}


def bandwidth_over_sms(runs):
    """{(T, H, K, E, type, layout, routing, mode, exchange, name): [(sms, GB/s over NVLink)], ascending}, and the copy engine's
    rate or None."""
    lines, rates = {}, []
    for row in flat_rows(runs):
        if row["us"] is None or not row["sms"] or not row["bytes"] or not valid(row) or row["exchange"] == "loopback":
            continue
        key = (row["tokens"], *(row[field] for field in ("hidden", "topk", "experts", "type", "layout", "routing", "mode")),
               row["exchange"], row["name"])
        lines.setdefault(key, {})[row["sms"]] = row["bytes"] / row["us"] * 1e-3
        if row["peer_copy_gb_per_s"]:
            rates.append(row["peer_copy_gb_per_s"])
    return ({key: sorted(points.items()) for key, points in lines.items()}, max(rates) if rates else None)
