#!/usr/bin/env python3
"""How long a run stands still when a worker or a node is killed: from the kill until every rank of
the next generation is about to compute its first step (it logs "begins step" then). Four ranks on
two nodes of this machine, a few kills in each run.

worker  SIGKILL to a worker chosen by chance; a process that was kept warm takes its slot.
node    A node vanishes and a spare one takes its place: SIGKILL to its workers and SIGSTOP to its
        agent, since `paceline run` would start a killed one again. The budget is 1 s.

usage: recovery.py --bin build/bin --run-file FILE [--what worker|node|all] [--kills N]
                   [--set KEY=VALUE ...]
"""
import argparse
import collections
import datetime
import json
import os
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

DEADLINE_S = 120
KILLS_AT_A_TIME = 4  # a node with three failures within an hour is given no more work
STEPS_BETWEEN = 8
NODE_BUDGET_MS = 1000
RANKS = 4
BEGINS = re.compile(r"^(\S+) .*\[(\d+)\] generation (\d+): rank (\d+) begins step", re.M)


def wait_until(condition, what):
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    sys.exit(f"waited {DEADLINE_S} s in vain for {what}")


def read(path):
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""


def parent_of(pid):
    """None: there is no such process."""
    try:
        return int(re.search(r"^PPid:\s+(\d+)$",
                             pathlib.Path(f"/proc/{pid}/status").read_text(), re.M).group(1))
    except (OSError, AttributeError):
        return None


def children_of(pid):
    return [int(entry.name) for entry in pathlib.Path("/proc").iterdir()
            if entry.name.isdigit() and parent_of(int(entry.name)) == pid]


def node_of(worker):
    arguments = pathlib.Path(f"/proc/{parent_of(worker)}/cmdline").read_bytes().split(b"\0")
    return arguments[arguments.index(b"--name") + 1]


def fetch(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.read().decode()
    except OSError:
        return ""


class Run:
    def __init__(self, arguments, what):
        self.runs = tempfile.mkdtemp(prefix="paceline-bench-")
        overrides = ["train.steps=1000000", "train.eval_interval_steps=0",
                     "checkpoint.interval_steps=0", "failure.max_restarts=1000000"]
        if what == "node":
            overrides += ["launch.spares=1", f"failure.budget_ms={NODE_BUDGET_MS}"]
        overrides += arguments.set
        self.process = subprocess.Popen(
            [arguments.bin / "paceline", "run", arguments.run_file, "--run-dir", self.runs]
            + [part for override in overrides for part in ("--set", override)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.folder = wait_until(lambda: [path.parent for path in
                                          pathlib.Path(self.runs).glob("*/run.toml")], "the run")[0]
        self.what = what
        self.kills = collections.Counter()  # by node

    def begins(self):
        """Of the latest generation: generation, {rank: (time, pid)}."""
        found = {}
        for log in self.folder.glob("logs/rank-*.log"):
            for stamp, pid, generation, rank in BEGINS.findall(read(log)):
                began = datetime.datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S.%f%z").timestamp()
                found.setdefault(int(generation), {})[int(rank)] = (began, int(pid))
        latest = max(found, default=0)
        return latest, found.get(latest, {})

    def steps(self):
        return read(self.folder / "steps.jsonl").count("\n")

    def ready(self):
        """All ranks step, and what is to take the victim's place waits."""
        _, ranks = self.begins()
        if len(ranks) < RANKS:
            return False
        try:
            address = json.loads(read(self.folder / "coordinator.json"))["metrics_address"]
            groups = json.loads(fetch(f"http://{address}/service-discovery"))
        except (ValueError, KeyError):
            return False
        targets = [target for group in groups for target in group["targets"] if target != address]
        if self.what == "node":
            return len(targets) == 3
        return all(re.search(r"^paceline_agent_warm_workers [1-9]", fetch(f"http://{t}/metrics"), re.M)
                   for t in targets)

    def kill(self, chance):
        """The time of the kill."""
        self.generation, ranks = self.begins()
        pids = [pid for _, pid in ranks.values()]
        fewest = min(self.kills[node_of(pid)] for pid in pids)
        victim = chance.choice([pid for pid in pids if self.kills[node_of(pid)] == fewest])
        self.kills[node_of(victim)] += 1
        agent = parent_of(victim)
        now = time.time()
        if self.what == "worker":
            os.kill(victim, signal.SIGKILL)
            return now
        os.kill(agent, signal.SIGSTOP)
        for worker in children_of(agent):
            os.kill(worker, signal.SIGKILL)
        self.stopped = agent
        return now

    def begun(self):
        """When the last rank of the next generation began; None: not all have."""
        generation, ranks = self.begins()
        if generation <= self.generation or len(ranks) < RANKS:
            return None
        return max(began for began, _ in ranks.values())

    def tidy(self):
        if self.what == "node":  # it is started again, and is the spare then
            os.kill(self.stopped, signal.SIGKILL)

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        shutil.rmtree(self.runs, ignore_errors=True)


def measure(arguments, what, kills, chance):
    seconds = []
    run = Run(arguments, what)
    try:
        for _ in range(kills):
            wait_until(run.ready, "the run to be ready")
            before = run.steps()
            wait_until(lambda: run.steps() >= before + STEPS_BETWEEN, "steps")
            time.sleep(chance.random() * 0.2)  # somewhere in a step
            killed = run.kill(chance)
            began = wait_until(run.begun, "the next first step")
            seconds.append(began - killed)
            run.tidy()
    finally:
        run.end()
    print(what, " ".join(f"{value:.3f}" for value in seconds), file=sys.stderr, flush=True)
    return seconds


def row(name, values):
    values = sorted(values)
    p95 = values[min(len(values) - 1, int(0.95 * len(values)))]
    print(f"| {name} | {len(values)} | {statistics.median(values):.3f} s | {p95:.3f} s | "
          f"{values[0]:.3f} to {values[-1]:.3f} s |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--run-file", type=pathlib.Path, required=True)
    parser.add_argument("--what", choices=["worker", "node", "all"], default="all")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    print("| | kills | median | p95 | from, to |\n|---|---|---|---|---|")
    for what in ["worker", "node"] if arguments.what == "all" else [arguments.what]:
        seconds = []
        while len(seconds) < arguments.kills:
            seconds += measure(arguments, what, min(KILLS_AT_A_TIME, arguments.kills - len(seconds)),
                               chance)
        row(f"a killed {what}", seconds)


if __name__ == "__main__":
    main()
