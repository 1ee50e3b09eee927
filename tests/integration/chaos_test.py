#!/usr/bin/env python3
"""Eight workers in four agents train while a seeded script breaks what can break: it kills workers,
agents and the coordinator, stops processes, cuts nodes' links, fills the checkpoint disk and flips
bits in checkpoints. The run must end by itself with the losses of a run that nothing happened to.

Each node is in a network name space of its own (node_links.py), and the checkpoints are on a small
file system of their own: both need root, and without it those acts are left out, and said to be.

usage: chaos_test.py BIN-FOLDER SOURCE-FOLDER [--seconds N] [--seed N] [--only ACT,ACT]
"""
import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True
sys.argv, OWN_ARGUMENTS = sys.argv[:3], sys.argv[3:]
import node_links
import real_runs  # takes the first two arguments

BUDGET_MS = 2000
STEPS_A_SECOND = 90  # about what two cores do of this model; the run may well outlive the script
CHECKPOINT_DISK_MIB = 24
SETTINGS = ("--set", "launch.nodes=4", "--set", "launch.min_nodes=4", "--set",
            "layout.pipeline=2", "--set", "layout.expert=2", "--set",
            f"failure.budget_ms={BUDGET_MS}", "--set", "failure.max_restarts=100000", "--set",
            "train.lr_schedule=constant", "--set", "train.eval_interval_steps=200", "--set",
            "checkpoint.interval_steps=20")


class Disturbance:
    """What is done to a run: each method is an act, with what it takes back by itself later."""

    def __init__(self, case, run, source, links, checkpoints):
        self.case = case
        self.run = run
        self.source = source
        self.links = links
        self.checkpoints = checkpoints
        self.undo = []  # (when, what), to take back

    def pids(self, program):
        return sorted(real_runs.processes_of(self.case.folder, program))

    def later(self, seconds, action):
        self.undo.append((time.monotonic() + seconds, action))

    def take_back(self, everything=False):
        now = time.monotonic()
        due = [entry for entry in self.undo if everything or entry[0] <= now]
        self.undo = [entry for entry in self.undo if entry not in due]
        for _, action in due:
            action()

    def kill(self, program, count=1):
        pids = self.pids(program)
        chosen = self.source.sample(pids, min(count, len(pids)))
        killed = [real_runs.signal_quietly(pid, signal.SIGKILL) for pid in chosen]
        return all(killed) and bool(killed)

    def stop(self, program, seconds):
        pids = self.pids(program)
        if not pids:
            return False
        pid = self.source.choice(pids)
        self.later(seconds, lambda: real_runs.signal_quietly(pid, signal.SIGCONT))
        return real_runs.signal_quietly(pid, signal.SIGSTOP)

    def kill_worker(self):
        return self.kill("paceline-worker")

    def kill_three_workers(self):
        return self.kill("paceline-worker", 3)

    def kill_agent(self):
        return self.kill("paceline-agent")

    def kill_two_agents(self):
        return self.kill("paceline-agent", 2)

    def kill_coordinator(self):
        return self.kill("paceline-coordinator")

    def kill_coordinator_and_worker(self):
        return self.kill("paceline-coordinator") and self.kill("paceline-worker")

    def stop_worker(self):
        return self.stop("paceline-worker", 60)  # found out and killed long before

    def stop_agent(self):
        return self.stop("paceline-agent", self.source.uniform(0.5, 2.5) * BUDGET_MS / 1000)

    def stop_coordinator(self):
        return self.stop("paceline-coordinator", self.source.uniform(0.5, 2.5) * BUDGET_MS / 1000)

    def cut_links(self):
        if self.links is None:
            return False
        names = self.links.names
        for name in self.source.sample(names, self.source.randint(1, len(names))):
            self.links.set_link(name, "down")
            self.later(self.source.uniform(0.3, 1.5) * BUDGET_MS / 1000,
                       lambda name=name: self.links.set_link(name, "up"))
        return True

    def fill_disk(self):
        if not os.path.ismount(self.checkpoints):
            return False
        filler = self.checkpoints / "filler"
        try:
            with open(filler, "wb") as file:
                while True:
                    file.write(b"x" * 65536)
                    file.flush()
        except OSError:
            pass
        self.later(self.source.uniform(1, 5), lambda: filler.unlink(missing_ok=True))
        return True

    def flip_bit(self):
        parts = sorted(self.checkpoints.glob("*/*.safetensors"), key=lambda path: path.parent.name)
        newest = [part for part in parts if part.parent == parts[-1].parent] if parts else []
        if not newest:
            return False
        try:
            with open(self.source.choice(newest), "r+b") as file:
                size = file.seek(0, os.SEEK_END)
                place = self.source.randrange(size)
                file.seek(place)
                byte = file.read(1)[0]
                file.seek(place)
                file.write(bytes([byte ^ 1 << self.source.randrange(8)]))
        except OSError:  # pruned meanwhile
            return False
        return True


ACTS = ("kill_worker", "kill_three_workers", "kill_agent", "kill_two_agents", "kill_coordinator",
        "kill_coordinator_and_worker", "stop_worker", "stop_agent", "stop_coordinator",
        "cut_links", "fill_disk", "flip_bit")


class ChaosTest(real_runs.RealRunTest):
    arguments = None

    def setUp(self):
        super().setUp()
        self.checkpoints = self.folder / "checkpoints"
        self.checkpoints.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={CHECKPOINT_DISK_MIB}m",
                                  "tmpfs", self.checkpoints], stderr=subprocess.DEVNULL,
                                 timeout=real_runs.DEADLINE_S).returncode == 0
        if mounted:
            self.addCleanup(subprocess.run, ["umount", "-l", self.checkpoints], check=False,
                            timeout=real_runs.DEADLINE_S)
        else:
            print("no file system of its own can be mounted: fill_disk is left out")

    def start(self, steps, *extra, links=None):
        return real_runs.Run(self, "--set", f"train.steps={steps}", *SETTINGS, *extra, links=links)

    def test_losses_are_those_of_a_run_that_nothing_happened_to(self):
        arguments = self.arguments
        steps = int(arguments.seconds * STEPS_A_SECOND)
        real_runs.DEADLINE_S = 120 + 4 * arguments.seconds
        source = random.Random(arguments.seed)
        print(f"seed {arguments.seed}, {steps} steps, disturbed for {arguments.seconds} s")
        links = None
        if node_links.can_be_made():
            links = node_links.NodeLinks(self, 4, real_runs.BIN, self.folder / "runs")
        else:
            print("no network name space can be made: cut_links is left out")
        self.assertEqual(set(arguments.only) - set(ACTS), set(), f"acts are {', '.join(ACTS)}")

        run = self.start(steps, "--set", f"checkpoint.dir={self.checkpoints}", links=links)
        run.wait_for_step(10)
        begin = time.monotonic()
        disturbance = Disturbance(self, run, source, links, self.checkpoints)
        done = dict.fromkeys(ACTS, 0)
        next_act = begin
        while time.monotonic() < begin + arguments.seconds and run.process.poll() is None:
            disturbance.take_back()
            if time.monotonic() >= next_act:
                act = source.choice(arguments.only or ACTS)
                if getattr(disturbance, act)():
                    done[act] += 1
                    step = max((line["step"] for line in run.steps()), default=0)
                    print(f"{time.monotonic() - begin:7.2f} s, step {step}: {act}", flush=True)
                next_act = time.monotonic() + source.uniform(0.5, 4)
            time.sleep(0.05)
        disturbance.take_back(everything=True)

        self.assertEqual(run.wait(), 0, run.log())
        seconds = time.monotonic() - begin
        self.assert_nothing_left()
        summary = json.loads((run.folder / "summary.json").read_text())
        print(f"{sum(done.values())} acts ({', '.join(f'{name} {n}' for name, n in done.items())})")
        print(f"ended after {seconds:.0f} s: {summary['generations']} generations, "
              f"{summary['recoveries']} recoveries, {summary['lost_steps']} steps lost")
        lines = run.steps()
        self.assertEqual(sorted({line["step"] for line in lines}), list(range(1, steps + 1)))
        # The global batch never changes.
        self.assertEqual({line["tokens"] // line["step"] for line in lines}, {8 * 32})
        self.assert_audit_holds(run)

        whole = self.start(steps)
        self.assertEqual(whole.wait(), 0, whole.log())
        self.assertEqual(real_runs.losses(run.folder / "steps.jsonl"),
                         real_runs.losses(whole.folder / "steps.jsonl"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    parser.add_argument("--only", type=lambda text: text.split(","), default=[])
    ChaosTest.arguments = parser.parse_args(OWN_ARGUMENTS)
    unittest.main(argv=["chaos_test"], verbosity=2)
