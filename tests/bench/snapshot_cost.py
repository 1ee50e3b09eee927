#!/usr/bin/env python3
"""What snapshots of the state cost a run: the same run with and without them in turn (A B A B ...).
Printed: the share of a step that the step thread stands still for them (its own figure,
paceline_rank_snapshot_stall_seconds_total over paceline_rank_step_seconds_total); the share of the
workers' processor time that is theirs at most (that stall, as if its thread had run all the while,
and the threads named "snapshot"); and, pair by pair, the workers' processor time a step with them
over that without, which is as true as the machine is quiet, and clearest at an interval of 1.

usage: snapshot_cost.py --bin build/bin --run-file FILE [--interval N] [--pairs N] [--steps N]
                        [--set KEY=VALUE ...]
"""
import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request


def fetch(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def total(text, name):
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))


def children_of(pid):
    found = []
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found


def behind_seconds(launcher):
    """Processor time of the workers' snapshot threads."""
    seconds = 0
    for agent in children_of(launcher):
        for worker in children_of(agent):
            for task in pathlib.Path(f"/proc/{worker}/task").iterdir():
                if (task / "comm").read_text().strip() == "snapshot":
                    seconds += int((task / "schedstat").read_text().split()[0]) * 1e-9
    return seconds


def train(arguments, interval):
    """What the ranks' counters grew by in the last four fifths of the run or so."""
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as runs:
        overrides = [f"train.steps={arguments.steps}", "train.eval_interval_steps=0",
                     "checkpoint.interval_steps=0", "failure.warm_workers=0",
                     f"failure.snapshot_interval_steps={interval}", *arguments.set]
        process = subprocess.Popen(
            [arguments.bin / "paceline", "run", arguments.run_file, "--run-dir", runs]
            + [part for override in overrides for part in ("--set", override)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        scrapes = []
        while process.poll() is None:
            time.sleep(0.5)
            try:
                [where] = pathlib.Path(runs).glob("*/coordinator.json")
                address = json.loads(where.read_text())["metrics_address"]
                groups = json.loads(fetch(f"http://{address}/service-discovery"))
                text = "\n".join(fetch(f"http://{target}/metrics") for group in groups
                                 for target in group["targets"] if target != address)
            except (OSError, ValueError, KeyError):
                continue  # before the first, or after the last
            figures = {name: total(text, f"paceline_rank_{name}_total") for name in
                       ("steps", "step_seconds", "cpu_seconds", "snapshots", "snapshot_stall_seconds")}
            try:
                figures["behind"] = behind_seconds(process.pid)
            except OSError:
                continue
            if figures["steps"] > 0:
                scrapes.append(figures)
        if process.returncode != 0:
            sys.exit(f"paceline run ended with {process.returncode}")
        first = next(s for s in scrapes if s["steps"] >= 0.2 * scrapes[-1]["steps"])
        return {name: scrapes[-1][name] - first[name] for name in first}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--run-file", type=pathlib.Path, required=True)
    parser.add_argument("--interval", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    stalls, shares, ratios = [], [], []
    for _ in range(arguments.pairs):
        with_them = train(arguments, arguments.interval)
        without = train(arguments, 0)
        if with_them["snapshots"] == 0 or without["snapshots"] != 0:
            sys.exit("snapshots were taken in the wrong run")
        stalls.append(100 * with_them["snapshot_stall_seconds"] / with_them["step_seconds"])
        shares.append(100 * (with_them["behind"] + with_them["snapshot_stall_seconds"]) /
                      with_them["cpu_seconds"])
        if with_them["behind"] == 0:
            sys.exit("no thread named \"snapshot\" has run")
        cpu = [run["cpu_seconds"] / run["steps"] for run in (with_them, without)]
        ratios.append(100 * (cpu[0] / cpu[1] - 1))
        print(f"stall {stalls[-1]:.3f} % of a step; at most {shares[-1]:.3f} % of the CPU; "
              f"CPU {cpu[0] * 1e3:.1f} ms a rank and step, {cpu[1] * 1e3:.1f} without: "
              f"{ratios[-1]:+.2f} %", flush=True)
    for name, values in (("of a step, standing still", stalls), ("of the processor time, at most", shares),
                         ("processor time, with over without", ratios)):
        print(f"| {name} | {statistics.median(values):.2f} % | {min(values):.2f} to "
              f"{max(values):.2f} % |")


if __name__ == "__main__":
    main()
