#!/usr/bin/env python3
"""Real runs that lose whole machines: agent, workers, and the memory that held their snapshots.

usage: buddy_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import json
import os
import re
import shutil
import signal
import sys
import unittest
import urllib.request

sys.dont_write_bytecode = True
import real_runs  # takes the same arguments

real_runs.DEADLINE_S = 300  # four nodes of pipelines share the machine's processors

INTERVAL = 5
# Two stages of one copy each on nodes of their own, and a spare. Steps of tens of milliseconds, so
# that a snapshot and its copy are done before the next.
STAGES = ("--set", "launch.slots_per_node=1", "--set", "launch.spares=1", "--set",
          "layout.pipeline=2", "--set", "train.steps=160", "--set", "train.global_batch_size=128",
          "--set", "train.eval_interval_steps=0", "--set", "failure.budget_ms=2000", "--set",
          f"failure.snapshot_interval_steps={INTERVAL}")


class BuddyTest(real_runs.RealRunTest):
    def lose_machines(self, run, *names):
        """At once, as far as anybody can see: stopped first, so that nothing is written or told
        while they are being taken away."""
        victims = []
        for agent in real_runs.processes_of(self.folder, "paceline-agent"):
            if real_runs.log_of(agent).stem in names:
                victims = [pid for pid in real_runs.workers_of(self.folder)
                           if real_runs.parent_of(pid) == agent] + victims + [agent]
        self.assertGreaterEqual(len(victims), 2 * len(names), run.log())
        for pid in victims:
            os.kill(pid, signal.SIGSTOP)
        for name in names:
            shutil.rmtree(real_runs.SNAPSHOTS / run.folder.name / name)
        for pid in victims:  # the agents last: their workers die with them
            os.kill(pid, signal.SIGKILL)

    def node_of(self, run, rank):
        return next(entry["node"] for entry in self.generations(run)[-1]["ranks"]
                    if entry["rank"] == rank)

    def wait_for_next(self, run):
        generation = run.steps()[-1]["generation"]
        return lambda: real_runs.wait_until(
            lambda: run.process.poll() is not None or
            run.steps()[-1]["generation"] > generation, "the next generation")

    def metric(self, run, node, name):
        log = (run.folder / "logs" / f"{node}.log").read_text()
        address = re.findall(r"metrics at (http://\S+)", log)[-1]
        with urllib.request.urlopen(address, timeout=real_runs.DEADLINE_S) as answer:
            text = answer.read().decode()
        return float(re.search(rf"^{name} (\S+)$", text, re.M).group(1))

    def assert_whole(self, run, whole):
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        self.assertFalse((real_runs.SNAPSHOTS / run.folder.name).exists())
        self.assertEqual(real_runs.losses(run.folder / "steps.jsonl"),
                         real_runs.losses(whole.folder / "steps.jsonl"))
        self.assert_audit_holds(run)

    def test_lost_machines_cost_two_intervals_each(self):
        settings = (*STAGES, "--set", "checkpoint.interval_steps=0")
        whole = self.run_to_end(*settings)
        run = real_runs.Run(self, *settings)
        for step, rank in ((52, 1), (103, 0)):
            run.wait_for_step(step)
            buddy = self.node_of(run, 1 - rank)
            next_generation = self.wait_for_next(run)
            self.lose_machines(run, self.node_of(run, rank))
            next_generation()
            before, after = self.generations(run)[-2:]
            self.assertTrue(after["live"], after)
            self.assertIn({"rank": rank, "from_rank": rank, "node": buddy}, after["snapshots"])
            self.assertNotEqual(self.node_of(run, rank), buddy)
            self.assertEqual(before["layout"], after["layout"])
            self.assertEqual(self.metric(run, self.node_of(run, rank),
                                         "paceline_agent_snapshot_fetches_total"), 1)
        self.assertGreater(self.metric(run, self.node_of(run, 1),
                                       "paceline_agent_snapshot_copies_total"), 0)
        self.assert_whole(run, whole)
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual((summary["generations"], summary["recoveries"]), (3, 2))
        self.assertLessEqual(summary["lost_steps"], 2 * 2 * INTERVAL)

    def test_a_machine_lost_with_its_buddy_costs_the_way_from_the_checkpoint(self):
        settings = (*STAGES, "--set", "checkpoint.interval_steps=60")
        whole = self.run_to_end(*settings)
        run = real_runs.Run(self, *settings)
        run.wait_for_step(72)
        committed = run.folder / "checkpoints/step-00000060-g1/manifest.json"
        real_runs.wait_until(committed.exists, "the checkpoint")
        pair = [self.node_of(run, rank) for rank in (0, 1)]
        next_generation = self.wait_for_next(run)
        self.lose_machines(run, *pair)
        next_generation()
        after = self.generations(run)[-1]
        self.assertFalse(after["live"])
        self.assertEqual(after["start_step"], 60)
        self.assertIn(f"neither {pair[0]} nor its buddy {pair[1]} holds the state of rank 0 any "
                      "more: from the checkpoint of step 60", after["reason"])
        told = real_runs.paceline("events", run.folder.name, "--run-dir", run.run_dir,
                                  cwd=self.folder)
        self.assertIn("nor its buddy", told.stdout)
        self.assert_whole(run, whole)


if __name__ == "__main__":
    unittest.main(argv=["buddy_test"] + sys.argv[3:], verbosity=2)
