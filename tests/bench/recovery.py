#!/usr/bin/env python3
"""How long a run stands still when a worker or a node is killed, beside torchrun: from the kill
until every rank of the next generation is about to compute its first step. Both train the
quickstart's model with four ranks on this machine, in turn, a few kills at a time.

worker  SIGKILL to a worker chosen by chance. Paceline: two nodes; a process that was kept warm
        takes its slot. torchrun: one agent, which starts all of its workers anew.
node    A node vanishes and a spare one takes its place. Paceline: SIGKILL to its workers and
        SIGSTOP to its agent, since `paceline run` would start a killed one again; the budget is
        1 s. torchrun: `--nnodes 2` and a third agent, which it keeps in its redundancy list;
        SIGKILL to an agent and its workers, never the agent that keeps the rendezvous' store.

torchrun has the settings that were fastest here:
- `--run-path --start-method fork`: workers are forked from the agent, which has imported torch,
  and before torchrun begins also torch._dynamo, which every optimizer imports. A worker that is a
  new interpreter imports both: four of them on two cores for 10 s and more.
- a look at the workers each 10 ms; the state in a file in shared memory, mapped when it is read.
- keep-alives each second, the least it takes; an agent without one for 3 s is dead. With 2 s it
  took agents for dead that lived, in two runs of two, and began round after round without a step.
- TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1: without it the ranks of all attempts share a store with no
  prefix for each, and new ranks find the addresses of dead ones there and fail to connect.

Paceline's ranks log when they begin ("begins step"); torchrun's say so in a file. torchrun needs
an environment that has torch: --python names its interpreter. Without, Paceline alone is measured.

usage: recovery.py --bin build/bin --run-file FILE [--what worker|node|all] [--kills N]
                   [--python PYTHON] [--set KEY=VALUE ...]
"""
import argparse
import collections
import datetime
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import socket
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
KEEP_ALIVES = 3  # torchrun's, a second each
TORCHRUN = "import torch._dynamo, torch.distributed.run; torch.distributed.run.main()"
SCRIPT = pathlib.Path(__file__).resolve().parent / "torchrun_training.py"


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


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def listens(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Paceline:
    name = "Paceline"

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
        return all(re.search(r"^paceline_agent_warm_workers [1-9]",
                             fetch(f"http://{target}/metrics"), re.M) for target in targets)

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

    def begun(self, _):
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


class Torchrun:
    name = "torchrun"

    def __init__(self, arguments, what):
        self.python = arguments.python
        self.what = what
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="torchrun-bench-", dir="/dev/shm"))
        self.port = free_port()
        self.agents = []
        self.start_agent()
        if what == "node":  # the first agent keeps the store that the others look for
            wait_until(lambda: listens(self.port), "torchrun's store")
            self.start_agent()
            self.start_agent()

    def start_agent(self):
        options = ["--run-path", "--start-method", "fork", "--monitor-interval", "0.01",
                   "--max-restarts", "1000000"]
        if self.what == "worker":
            options += ["--standalone", "--nnodes", "1", "--nproc-per-node", str(RANKS)]
        else:
            keeps_store = 0 if self.agents else 1
            options += ["--nnodes", "2", "--nproc-per-node", str(RANKS // 2),
                        "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{self.port}",
                        "--rdzv-id", "bench", "--local-addr", "127.0.0.1", "--rdzv-conf",
                        f"is_host={keeps_store},keep_alive_interval=1,"
                        f"keep_alive_max_attempt={KEEP_ALIVES}"]
        with open(self.folder / "log", "a", encoding="utf-8") as log:
            self.agents.append(subprocess.Popen(
                [self.python, "-c", TORCHRUN] + options + [str(SCRIPT), str(self.folder)],
                stdout=log, stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent),
                     "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                     "TORCH_LOGS": "+torch.distributed.elastic.rendezvous.dynamic_rendezvous"}))

    def begins(self):
        return [(float(line.split()[0]), int(line.split()[1]))
                for line in read(self.folder / "begins").split("\n")[:-1]]

    def steps(self):
        return read(self.folder / "steps").count("\n")

    @staticmethod
    def workers_of(agent):
        return [pid for pid in children_of(agent.pid)
                if SCRIPT.name in read(pathlib.Path(f"/proc/{pid}/cmdline"))]

    def with_workers(self):
        return [agent for agent in self.agents if self.workers_of(agent)]

    def ready(self):
        """All ranks have stepped, and in the node case a third agent waits."""
        if not (self.folder / "state.pt").exists():
            return False
        if self.what == "worker":
            return True
        training = self.with_workers()
        log = read(self.folder / "log")
        return len(training) == 2 and any(
            re.search(f"_{agent.pid}_0' added itself to the redundancy list", log)
            for agent in self.agents if agent not in training)

    def kill(self, chance):
        """The time of the kill."""
        agent = self.with_workers()[-1]  # never the one that keeps the store, which is the first
        workers = self.workers_of(agent)
        now = time.time()
        if self.what == "worker":
            os.kill(chance.choice(workers), signal.SIGKILL)
            return now
        self.kill_all(agent, workers)
        self.agents.remove(agent)
        return now

    def begun(self, killed):
        """When the last rank began after the time of the kill; None: not all have."""
        ranks = {rank: began for began, rank in self.begins() if began > killed}
        return max(ranks.values()) if len(ranks) == RANKS else None

    def tidy(self):
        if self.what == "node":  # the next spare
            self.start_agent()

    @staticmethod
    def kill_all(agent, workers):
        for pid in [agent.pid] + workers:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        agent.wait()

    def end(self):
        for agent in self.agents:
            self.kill_all(agent, self.workers_of(agent))
        shutil.rmtree(self.folder, ignore_errors=True)


def measure(kind, arguments, what, kills, chance):
    seconds = []
    run = kind(arguments, what)
    try:
        for _ in range(kills):
            wait_until(run.ready, f"{run.name} to train")
            before = run.steps()
            wait_until(lambda: run.steps() >= before + STEPS_BETWEEN, f"{run.name}'s steps")
            time.sleep(chance.random() * 0.2)  # somewhere in a step
            killed = run.kill(chance)
            began = wait_until(lambda: run.begun(killed), f"{run.name}'s next first step")
            seconds.append(began - killed)
            run.tidy()
    finally:
        run.end()
    print(run.name, what, *(f"{value:.3f}" for value in seconds), file=sys.stderr, flush=True)
    return seconds


def row(name, values):
    values = sorted(values)
    p95 = values[math.ceil(0.95 * len(values)) - 1]
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
    parser.add_argument("--python")
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    kinds = [Paceline]
    if arguments.python:
        kinds.append(Torchrun)
        print("torch", subprocess.run(
            [arguments.python, "-c", "import torch; print(torch.__version__)"],
            capture_output=True, text=True, check=True).stdout)
    chance = random.Random(arguments.seed)
    print("| | kills | median | p95 | from, to |\n|---|---|---|---|---|")
    for what in ["worker", "node"] if arguments.what == "all" else [arguments.what]:
        seconds = {kind: [] for kind in kinds}
        while len(seconds[kinds[-1]]) < arguments.kills:
            for kind in kinds:
                kills = min(KILLS_AT_A_TIME, arguments.kills - len(seconds[kind]))
                seconds[kind] += measure(kind, arguments, what, kills, chance)
        for kind in kinds:
            row(f"a killed {what}, {kind.name}", seconds[kind])


if __name__ == "__main__":
    main()
