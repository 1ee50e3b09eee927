#!/usr/bin/env python3
"""Real runs in which a worker stops, or is only short of processor time.

usage: stall_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import os
import pathlib
import re
import signal
import statistics
import subprocess
import sys
import time
import unittest

sys.dont_write_bytecode = True
import real_runs  # takes the same arguments

BUDGET_S = 3.0
LONG = ("--set", "train.steps=1000000", "--set", "failure.budget_ms=3000", "--set",
        "checkpoint.interval_steps=0", "--set", "train.eval_interval_steps=0")


class StallTest(real_runs.RealRunTest):
    def start(self, *extra):
        run = real_runs.Run(self, *LONG, *extra)
        run.wait_for_step(20)
        return run

    def worker_of(self, rank):
        return real_runs.workers_of(self.folder, f"rank-{rank:05d}.log")[0]

    def expect_culprit(self, run, rank):
        """Stops the rank's worker; it is named in time, and killed."""
        pid = self.worker_of(rank)
        node = real_runs.log_of(real_runs.parent_of(pid)).stem
        limit = BUDGET_S + 3 * statistics.median(line["step_seconds"] for line in run.steps()[-9:])
        os.kill(pid, signal.SIGSTOP)
        stopped = time.monotonic()
        pattern = re.compile(rf"rank {rank} on {node} \(host \S+\) is silent: its agent has heard "
                             r'nothing of its worker (?:for \S+ s|in this generation), while ranks? .* '
                             r'been in "([^"]+)"')
        found = real_runs.wait_until(lambda: pattern.search(run.log()), "the culprit's name")
        seconds = time.monotonic() - stopped
        # Until its peers stand still and that is heard of: a telemetry interval, a heartbeat and a
        # step; a verdict comes with a heartbeat; the log is not read at once.
        self.assertLess(seconds, limit + 0.25 + 4 * BUDGET_S / 10 + 1, found.group(0))
        self.assertGreater(seconds, BUDGET_S)
        real_runs.wait_until(lambda: not pathlib.Path(f"/proc/{pid}").exists(),
                             "the stopped worker's end")
        return found.group(1)

    def test_a_stopped_worker_is_named_with_its_node_and_operation(self):
        run = self.start()
        operation = self.expect_culprit(run, 2)
        self.assertTrue(operation)
        shown = real_runs.paceline("show", run.folder.name, "--run-dir", run.run_dir,
                                   cwd=self.folder)
        self.assertEqual(shown.returncode, 0, shown.stderr)

    def test_a_stopped_stage_of_a_pipeline_is_named(self):
        run = self.start("--set", "layout.pipeline=2")
        self.expect_culprit(run, 1)

    def test_a_run_that_is_short_of_processor_time_is_no_stall(self):
        run = self.start()
        others = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
                  for _ in range(3 * (os.cpu_count() or 1))]
        try:
            until = time.monotonic() + 4 * BUDGET_S
            real_runs.wait_until(lambda: time.monotonic() > until or run.process.poll() is not None,
                                 "the time to pass")
        finally:
            for other in others:
                other.kill()
                other.wait()
        self.assertIsNone(run.process.poll(), run.log())
        step = run.steps()[-1]["step"]
        run.wait_for_step(step + 5)
        self.assertEqual({line["generation"] for line in run.steps()}, {1}, run.log())

    def test_a_run_that_is_stopped_as_a_whole_goes_on(self):
        run = self.start()
        pids = [run.process.pid, *real_runs.processes_of(self.folder)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        until = time.monotonic() + 3 * BUDGET_S
        real_runs.wait_until(lambda: time.monotonic() > until, "the time to pass")
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        step = run.steps()[-1]["step"]
        run.wait_for_step(step + 50)
        self.assertNotIn("nothing has moved", run.log())


if __name__ == "__main__":
    unittest.main(argv=["stall_test"] + sys.argv[3:], verbosity=2)
