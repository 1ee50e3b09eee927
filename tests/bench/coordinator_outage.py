#!/usr/bin/env python3
"""What a killed coordinator costs a run: under `paceline run`, which starts its coordinator again,
the coordinator is killed N times. Each time: how long until an agent, and all agents, had found the
next one; the steps made meanwhile; and how long step threads waited on their agent (timed by
themselves, from the agents' /metrics) from the kill until all agents were back, beside a stretch as
long without a kill. Steps that were lost are those of the run's summary.

usage: coordinator_outage.py --bin build/bin --run-file FILE [--kills N] [--set KEY=VALUE ...]
"""
import argparse
import json
import math
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

DEADLINE_S = 60
REGISTERED = re.compile("registered with the coordinator")
# `paceline run` gives up a coordinator that ends within three seconds of its start, thrice.
PAUSE_S = 4
# Ranks tell their agent of themselves four times a second.
TELEMETRY_S = 0.5


def wait_until(condition, what):
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    sys.exit(f"waited {DEADLINE_S} s in vain for {what}")


def fetch(url):
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read().decode()


def total(texts, name):
    return sum(float(value) for text in texts
               for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))


class Outages:
    def __init__(self, folder, ranks):
        self.folder = folder
        self.ranks = ranks
        first = self.coordinator()
        groups = json.loads(fetch(f"http://{first['metrics_address']}/service-discovery"))
        self.agents = [target for group in groups for target in group["targets"]
                       if target != first["metrics_address"]]

    def coordinator(self):
        def look():
            try:
                return json.loads((self.folder / "coordinator/coordinator.json").read_text())
            except (FileNotFoundError, ValueError):
                return None
        return wait_until(look, "coordinator.json")

    def registrations(self):
        return [len(REGISTERED.findall(log.read_text()))
                for log in sorted(self.folder.glob("logs/node-*.log"))]

    def steps(self):
        return (self.folder / "steps.jsonl").read_text().count("\n")

    def waited(self):
        """Seconds that all step threads have waited on their agents, and have been in steps."""
        texts = [fetch(f"http://{agent}/metrics") for agent in self.agents]
        return (total(texts, "paceline_rank_control_wait_seconds_total"),
                total(texts, "paceline_rank_step_seconds_total"))

    def stretch(self, kill):
        """One outage, or as long without one."""
        before = self.registrations()
        waits, _ = self.waited()
        steps = self.steps()
        began = time.monotonic()
        if kill:
            os.kill(self.coordinator()["pid"], signal.SIGKILL)
            wait_until(lambda: any(now > then for now, then in zip(self.registrations(), before)),
                       "the first agent")
            first = time.monotonic() - began
            wait_until(lambda: all(now > then for now, then in zip(self.registrations(), before)),
                       "all agents")
            self.last = time.monotonic() - began
        else:
            first = 0
            time.sleep(self.last)
        made = self.steps() - steps
        time.sleep(TELEMETRY_S)
        seconds = time.monotonic() - began
        waits_after, _ = self.waited()
        return {"first": first, "last": self.last, "steps": made,
                "wait": (waits_after - waits) / (seconds * self.ranks)}


def row(name, values, unit):
    values = sorted(values)
    p95 = values[math.ceil(0.95 * len(values)) - 1]
    print(f"| {name} | {statistics.median(values):.3f} {unit} | {p95:.3f} {unit} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--run-file", type=pathlib.Path, required=True)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as runs:
        overrides = ["train.steps=1000000", *arguments.set]
        process = subprocess.Popen(
            [arguments.bin / "paceline", "run", arguments.run_file, "--run-dir", runs]
            + [part for override in overrides for part in ("--set", override)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            folder = wait_until(lambda: [path.parent for path in
                                         pathlib.Path(runs).glob("*/run.toml")], "the run")[0]
            wait_until(lambda: (folder / "steps.jsonl").exists() and
                       (folder / "steps.jsonl").read_text().count("\n") >= 10, "ten steps")
            outages = Outages(folder, len(list(folder.glob("logs/rank-*.log"))))
            killed, quiet = [], []
            for _ in range(arguments.kills):
                time.sleep(PAUSE_S)
                killed.append(outages.stretch(kill=True))
                time.sleep(1)
                quiet.append(outages.stretch(kill=False))
            process.send_signal(signal.SIGINT)
            process.wait(DEADLINE_S)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        summary = json.loads((folder / "summary.json").read_text())
        lines = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
        step_ms = statistics.median(line["step_seconds"] for line in lines) * 1e3
        print(f"{len(killed)} kills; {len(lines)} steps, median {step_ms:.0f} ms; "
              f"{summary['lost_steps']} steps lost, {summary['generations']} generation(s)")
        print("| | median | p95 |\n|---|---|---|")
        row("until the first agent was back", [entry["first"] for entry in killed], "s")
        row("until all agents were back", [entry["last"] for entry in killed], "s")
        row("steps made meanwhile", [entry["steps"] for entry in killed], "")
        row("a step thread's wait on its agent, of the time", [100 * entry["wait"] for entry in killed],
            "%")
        row("the same without a kill", [100 * entry["wait"] for entry in quiet], "%")
        steps = [line["step"] for line in lines]
        if summary["lost_steps"] != 0 or steps != list(range(1, len(steps) + 1)):
            sys.exit("steps were lost or repeated")


if __name__ == "__main__":
    main()
