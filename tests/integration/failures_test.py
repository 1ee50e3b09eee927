#!/usr/bin/env python3
"""Real runs in which more goes wrong than one thing, or at the worst moment.

usage: failures_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import json
import os
import pathlib
import signal
import sys
import time
import unittest

sys.dont_write_bytecode = True
import real_runs  # takes the same arguments

# Both nodes are needed: what their workers do to them quarantines none.
SETTINGS = ("--set", "train.steps=600", "--set", "failure.budget_ms=1000", "--set",
            "train.eval_interval_steps=0", "--set", "launch.min_nodes=2", "--set",
            "failure.max_restarts=100")


def weights_of(snapshot):
    """Some of the weights in a snapshot, after its head and the records of the last steps."""
    begin = 4096 + 1024 * 32 + 4096
    return snapshot[begin:begin + 256]


def open_files_of(pid):
    return " ".join(line.split(maxsplit=5)[5] for line in
                    pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines()
                    if len(line.split(maxsplit=5)) == 6)


def flip_bit(pid, needle):
    """Flips a bit of `needle` wherever the process holds it in memory of its own. How often."""
    found = 0
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for line in pathlib.Path(f"/proc/{pid}/maps").read_text().splitlines():
            fields = line.split(maxsplit=5)
            if not fields[1].startswith("rw") or (len(fields) == 6 and fields[5] != "[heap]"):
                continue
            begin, end = (int(number, 16) for number in fields[0].split("-"))
            memory.seek(begin)
            try:
                held = memory.read(end - begin)
            except OSError:  # a guard page
                continue
            at = held.find(needle)
            while at >= 0:
                memory.seek(begin + at + 3)
                memory.write(bytes([needle[3] ^ 0x20]))  # of the first float's exponent
                found += 1
                at = held.find(needle, at + 1)
    return found


class FailuresTest(real_runs.RealRunTest):
    def workers_by_agent(self):
        """Pids of workers that live, by their agent's."""
        workers = {}
        for pid in real_runs.workers_of(self.folder):
            try:
                parent = real_runs.parent_of(pid)
            except FileNotFoundError:
                continue
            workers.setdefault(parent, []).append(pid)
        return workers

    def wait_for_progress(self, run):
        """Until the run has made some steps more."""
        run.wait_for_step(run.steps()[-1]["step"] + 20)

    def wait_for_a_checkpoint_to_begin(self, run, folder, known):
        """Until there is a folder that is not `known`, in which nothing is whole yet."""
        deadline = time.monotonic() + real_runs.DEADLINE_S
        while True:
            self.assertLess(time.monotonic(), deadline, run.log())
            fresh = (set(os.listdir(folder)) if folder.exists() else set()) - known
            if any(name.startswith("step-") for name in fresh):
                return

    def assert_ends_as_if_nothing_had_happened(self, run, whole, lost_max):
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        self.assertEqual(real_runs.losses(run.folder / "steps.jsonl"),
                         real_runs.losses(whole.folder / "steps.jsonl"))
        return self.assert_kept(run, lost_max)

    def assert_kept(self, run, lost_max):
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertLessEqual(summary["lost_steps"], lost_max, run.log())
        self.assert_audit_holds(run)
        for checkpoint in (run.folder / "checkpoints").glob("step-*"):
            self.assertTrue((checkpoint / "manifest.json").exists(), checkpoint)
        return summary

    def test_a_worker_and_another_nodes_agent_at_once(self):
        whole = self.run_to_end(*SETTINGS)
        run = real_runs.Run(self, *SETTINGS)
        run.wait_for_step(55)
        workers = self.workers_by_agent()
        agent, other = sorted(workers)
        for pid in (agent, workers[other][0]):
            os.kill(pid, signal.SIGKILL)
        summary = self.assert_ends_as_if_nothing_had_happened(run, whole, lost_max=2)
        self.assertGreaterEqual(summary["recoveries"], 1)

    def test_a_failure_during_the_recovery_from_another(self):
        settings = (*SETTINGS, "--set", "failure.warm_workers=0")  # a new process takes its time
        run = real_runs.Run(self, *settings, *real_runs.ENDLESS)
        run.wait_for_step(55)
        delays = (None, None, 0, 0.02, 0.1, 0.2, 0.3)  # None: as the next generation starts it
        for delay in delays:
            begun = f"generation {run.steps()[-1]['generation'] + 1} rank"
            first, second = self.workers_by_agent().values()
            os.kill(first[0], signal.SIGKILL)
            if delay is None:
                real_runs.wait_until(
                    lambda begun=begun: any(begun in path.read_text(errors="replace") for path in
                                            run.folder.glob("logs/rank-*.log")),
                    "the next generation's process")
            else:
                time.sleep(delay)  # the moment of the second failure: what is tried out
            os.kill(second[0], signal.SIGKILL)
            self.wait_for_progress(run)
        self.stop(run)
        events = [event["event"] for event in self.events(run)
                  if event["event"] in ("generation_started", "first_step")]
        interrupted = list(zip(events, events[1:])).count(("generation_started",) * 2)
        self.assertGreater(interrupted, 0, "no failure came before a generation's first step")
        self.assert_nothing_left()
        self.assert_losses_are_undisturbed(run, *settings)
        # Of both failures at most the step under way is lost.
        summary = self.assert_kept(run, lost_max=2 * len(delays))
        self.assertGreaterEqual(summary["recoveries"], len(delays))

    def test_a_failure_while_a_checkpoint_is_written(self):
        settings = (*SETTINGS, "--set", "checkpoint.interval_steps=20", "--set",
                    "train.sequence_length=128", "--set", "train.steps=400")
        whole = self.run_to_end(*settings)
        run = real_runs.Run(self, *settings)
        folder = run.folder / "checkpoints"
        for victim in ("paceline-worker", "paceline-coordinator", "paceline-agent"):
            run.wait_for_step((run.steps() or [{"step": 0}])[-1]["step"] + 5)
            pid = (real_runs.workers_of(self.folder) if victim == "paceline-worker" else
                   real_runs.processes_of(self.folder, victim))[0]
            known = set(os.listdir(folder)) if folder.exists() else set()
            self.wait_for_a_checkpoint_to_begin(run, folder, known)
            os.kill(pid, signal.SIGKILL)
        self.assert_ends_as_if_nothing_had_happened(run, whole, lost_max=4)

    def test_a_failure_while_the_last_checkpoint_is_written(self):
        """It is the only one: ranks that have finished are asked for what they hold."""
        settings = (*SETTINGS, "--set", "checkpoint.interval_steps=0", "--set",
                    "failure.snapshot_interval_steps=0", "--set", "train.steps=10", "--set",
                    "model.hidden_size=512", "--set", "model.intermediate_size=16384", "--set",
                    "failure.budget_ms=10000")
        whole = self.run_to_end(*settings)
        run = real_runs.Run(self, *settings)
        run.wait_for_step(2)
        worker = real_runs.workers_of(self.folder)[-1]
        self.wait_for_a_checkpoint_to_begin(run, run.folder / "checkpoints", known=set())
        os.kill(worker, signal.SIGKILL)  # its part of 80 MB takes much longer than to see this
        summary = self.assert_ends_as_if_nothing_had_happened(run, whole, lost_max=1)
        self.assertGreaterEqual(summary["recoveries"], 1)
        events = [event["event"] for event in self.events(run)]
        last = max(i for i, event in enumerate(events) if event == "generation_started")
        self.assertIn("first_step", events[last:], "it is told when the run has recovered")
        self.assertEqual([json.loads(line)["step"] for line in
                          (run.folder / "evals.jsonl").read_text().splitlines()],
                         [json.loads(line)["step"] for line in
                          (whole.folder / "evals.jsonl").read_text().splitlines()])

    def test_a_flipped_bit_in_a_ranks_weights_is_found(self):
        """Weights stand still at this learning rate, so a snapshot tells where they lie."""
        settings = ("--set", "train.steps=600", "--set", "train.learning_rate=1e-30", "--set",
                    "train.min_learning_rate=0", "--set", "train.weight_decay=0",
                    "--set", "train.eval_interval_steps=0", "--set",
                    "checkpoint.interval_steps=50", "--set", "failure.snapshot_interval_steps=5")
        whole = self.run_to_end(*settings)
        run = real_runs.Run(self, *settings)
        run.wait_for_step(60)
        snapshots = sorted((real_runs.SNAPSHOTS / run.folder.name).glob("*/rank-00002.0"))
        self.assertEqual(len(snapshots), 1)
        needle = weights_of(snapshots[0].read_bytes())
        worker = next(pid for pid in real_runs.workers_of(self.folder)
                      if "rank-00002" in open_files_of(pid))
        os.kill(worker, signal.SIGSTOP)
        self.assertGreaterEqual(flip_bit(worker, needle), 1)
        os.kill(worker, signal.SIGCONT)
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        ended = [event for event in self.events(run)
                 if event["event"] == "generation_ended"]
        self.assertEqual(len(ended), 2, ended)
        self.assertEqual((ended[0]["cause"], ended[0]["culprit"]["rank"]), ("corrupt_state", 2))
        self.assertIn("are not those of the other 3 ranks", ended[0]["text"])
        # Nothing of it is left.
        self.assertEqual(real_runs.losses(run.folder / "steps.jsonl"),
                         real_runs.losses(whole.folder / "steps.jsonl"))


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
