#!/usr/bin/env python3
"""Real runs in which more goes wrong than one thing, or at the worst moment.

usage: failures_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import json
import os
import signal
import sys
import time
import unittest

sys.dont_write_bytecode = True
import end_to_end_test as end_to_end  # takes the same arguments

# Both nodes are needed: what their workers do to them quarantines none.
SETTINGS = ("--set", "train.steps=600", "--set", "failure.budget_ms=1000", "--set",
            "train.eval_interval_steps=0", "--set", "launch.min_nodes=2", "--set",
            "failure.max_restarts=100")


class FailuresTest(unittest.TestCase):
    setUp = end_to_end.EndToEndTest.setUp
    run_to_end = end_to_end.EndToEndTest.run_to_end
    assert_nothing_left = end_to_end.EndToEndTest.assert_nothing_left

    def workers_by_agent(self):
        """Pids of workers that live, by their agent's."""
        workers = {}
        for pid in end_to_end.workers_of(self.folder):
            try:
                with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                    parent = int(file.read().rsplit(")", 1)[1].split()[1])
            except FileNotFoundError:
                continue
            workers.setdefault(parent, []).append(pid)
        return workers

    def wait_for_progress(self, run):
        """Until the run has made some steps more."""
        run.wait_for_step(run.steps()[-1]["step"] + 20)

    def assert_ends_as_if_nothing_had_happened(self, run, whole, lost_max):
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        self.assertEqual(end_to_end.losses(run.folder / "steps.jsonl"),
                         end_to_end.losses(whole.folder / "steps.jsonl"))
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertLessEqual(summary["lost_steps"], lost_max, run.log())
        audit = end_to_end.paceline("audit", run.folder.name, "--run-dir", run.run_dir,
                                    cwd=self.folder)
        self.assertEqual(audit.returncode, 0, audit.stdout + audit.stderr)
        for checkpoint in (run.folder / "checkpoints").glob("step-*"):
            self.assertTrue((checkpoint / "manifest.json").exists(), checkpoint)
        return summary

    def events(self, run):
        listed = end_to_end.paceline("events", run.folder.name, "--run-dir", run.run_dir, "--all",
                                     "-o", "json", cwd=self.folder)
        self.assertEqual(listed.returncode, 0, listed.stderr)
        return [event["event"] for event in json.loads(listed.stdout)["events"]]

    def test_a_worker_and_another_nodes_agent_at_once(self):
        whole = self.run_to_end(*SETTINGS)
        run = end_to_end.Run(self, *SETTINGS)
        run.wait_for_step(55)
        workers = self.workers_by_agent()
        agent, other = sorted(workers)
        for pid in (agent, workers[other][0]):
            os.kill(pid, signal.SIGKILL)
        summary = self.assert_ends_as_if_nothing_had_happened(run, whole, lost_max=2)
        self.assertGreaterEqual(summary["recoveries"], 1)

    def test_a_failure_during_the_recovery_from_another(self):
        whole = self.run_to_end(*SETTINGS)
        run = end_to_end.Run(self, *SETTINGS)
        run.wait_for_step(55)
        interrupted = 0
        for delay in (0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35):
            first, second = self.workers_by_agent().values()
            os.kill(first[0], signal.SIGKILL)
            time.sleep(delay)
            os.kill(second[0], signal.SIGKILL)
            self.wait_for_progress(run)
            events = self.events(run)
            interrupted = events.count("generation_started") - events.count("first_step")
            if interrupted >= 2:
                break
        self.assertGreater(interrupted, 0, "no failure came before a generation's first step")
        # Of both failures at most the step under way is lost.
        summary = self.assert_ends_as_if_nothing_had_happened(run, whole, lost_max=16)
        self.assertGreaterEqual(summary["recoveries"], 2)

    def test_a_failure_while_a_checkpoint_is_written(self):
        settings = (*SETTINGS, "--set", "checkpoint.interval_steps=20", "--set",
                    "train.sequence_length=128", "--set", "train.steps=200")
        whole = self.run_to_end(*settings)
        run = end_to_end.Run(self, *settings)
        folder = run.folder / "checkpoints"
        for victim in ("paceline-worker", "paceline-coordinator", "paceline-agent"):
            run.wait_for_step((run.steps() or [{"step": 0}])[-1]["step"] + 5)
            pid = (end_to_end.workers_of(self.folder) if victim == "paceline-worker" else
                   end_to_end.processes_of(self.folder, victim))[0]
            known = set(os.listdir(folder)) if folder.exists() else set()
            deadline = time.monotonic() + end_to_end.DEADLINE_S
            while True:  # as soon as the next one's folder is there, in which nothing is whole yet
                self.assertLess(time.monotonic(), deadline, run.log())
                fresh = (set(os.listdir(folder)) if folder.exists() else set()) - known
                if any(name.startswith("step-") for name in fresh):
                    break
            os.kill(pid, signal.SIGKILL)
        self.assert_ends_as_if_nothing_had_happened(run, whole, lost_max=4)


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]])
