#!/usr/bin/env python3
"""Real runs whose nodes come and go: spares, fewer nodes, more again, drains.

usage: members_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import json
import signal
import sys
import unittest

sys.dont_write_bytecode = True
import real_runs  # takes the same arguments

real_runs.DEADLINE_S = 300  # sixteen ranks share the machine's processors
SPARE = ("--set", "launch.spares=1", "--set", "train.steps=400", "--set",
         "failure.budget_ms=2000", "--set", "train.eval_interval_steps=0")
# Two stages x two expert ranks on each node, and as many copies of that as there are nodes. 40
# micro-batches are 20 rounds of an expert group: 5, 5, 5, 5; then 7, 7, 6; then 10, 10.
SIXTEEN = ("--set", "launch.nodes=4", "--set", "launch.slots_per_node=4", "--set",
           "layout.pipeline=2", "--set", "layout.expert=2", "--set", "train.global_batch_size=40",
           "--set", "train.micro_batch_size=1", "--set", "train.eval_interval_steps=0",
           "--set", "failure.budget_ms=4000")


class MembersTest(real_runs.RealRunTest):
    def signal_node(self, name, number):
        """To the agent of the node and its workers, all at once for what others can see."""
        for agent in real_runs.processes_of(self.folder, "paceline-agent"):
            if real_runs.log_of(agent).stem != name:
                continue
            workers = [pid for pid in real_runs.workers_of(self.folder)
                       if real_runs.parent_of(pid) == agent]
            for pid in [agent, *workers]:  # which die with it
                real_runs.signal_quietly(pid, number)
            return
        raise AssertionError(f"no agent logs for {name}")

    def nodes(self, run):
        """The nodes' states by name, as `paceline nodes` tells them."""
        listed = real_runs.paceline("nodes", run.folder.name, "--run-dir", run.run_dir, "-o",
                                    "json", cwd=self.folder)
        self.assertEqual(listed.returncode, 0, listed.stderr + run.log())
        return {node["name"]: node["state"] for node in json.loads(listed.stdout)["nodes"]}

    def wait_for_training(self, run, nodes):
        """Until so many nodes train, and have completed a step. The generation."""
        def so_many():
            self.assertIsNone(run.process.poll(), run.log())
            states = list(self.nodes(run).values())
            return states.count("training") == nodes
        real_runs.wait_until(so_many, f"{nodes} nodes to train")
        generation = self.generations(run)[-1]["generation"]
        real_runs.wait_until(lambda: run.process.poll() is not None or
                             run.steps()[-1]["generation"] == generation, "its first step")
        run.wait_for_step(run.steps()[-1]["step"] + 5)
        return generation

    def test_a_spare_takes_a_dead_nodes_place_at_the_same_layout(self):
        whole = self.run_to_end(*SPARE)
        run = real_runs.Run(self, *SPARE)
        run.wait_for_step(55)
        dead = [name for name, state in self.nodes(run).items() if state == "training"][-1]
        self.signal_node(dead, signal.SIGKILL)
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        before, after = self.generations(run)
        self.assertEqual(before["layout"], after["layout"])
        self.assertIn(dead, {rank["node"] for rank in before["ranks"]})
        self.assertNotIn(dead, {rank["node"] for rank in after["ranks"]})
        self.assertEqual(real_runs.losses(run.folder / "steps.jsonl"),
                         real_runs.losses(whole.folder / "steps.jsonl"))
        self.assert_audit_holds(run)

    def test_a_drained_node_is_left_without_losing_a_step(self):
        whole = self.run_to_end(*SPARE)
        run = real_runs.Run(self, *SPARE)
        run.wait_for_step(55)
        away = [name for name, state in self.nodes(run).items() if state == "training"][0]
        drained = real_runs.paceline("drain", away, "--run", run.folder.name, "--run-dir",
                                     run.run_dir, "--reason", "a fan is loud", cwd=self.folder)
        self.assertEqual(drained.returncode, 0, drained.stderr)
        real_runs.wait_until(lambda: self.nodes(run)[away] == "drained", "the ranks to move")
        undrained = real_runs.paceline("undrain", away, "--run", run.folder.name, "--run-dir",
                                       run.run_dir, "-o", "json", cwd=self.folder)
        self.assertEqual(json.loads(undrained.stdout)["drained"], False, undrained.stderr)
        self.assertEqual(self.nodes(run)[away], "spare")
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual((summary["generations"], summary["recoveries"], summary["lost_steps"]),
                         (2, 0, 0))
        self.assertEqual(real_runs.losses(run.folder / "steps.jsonl"),
                         real_runs.losses(whole.folder / "steps.jsonl"))
        self.assert_audit_holds(run)
        unknown = real_runs.paceline("drain", "node-9", "--run", run.folder.name, "--run-dir",
                                     run.run_dir, cwd=self.folder)
        self.assertEqual(unknown.returncode, 2, "its coordinator has ended")

    def test_from_four_nodes_to_three_to_two_and_back(self):
        run = real_runs.Run(self, *SIXTEEN, *real_runs.ENDLESS)
        run.wait_for_step(12)
        self.signal_node("node-3", signal.SIGSTOP)
        self.wait_for_training(run, 3)
        self.signal_node("node-1", signal.SIGSTOP)
        self.wait_for_training(run, 2)
        for name in ("node-1", "node-3"):
            self.signal_node(name, signal.SIGCONT)
        self.wait_for_training(run, 4)
        self.stop(run)
        self.assert_nothing_left()

        copies = [event["layout"]["data"] // 2 for event in self.generations(run)]
        self.assertEqual(copies[0], 4)
        self.assertEqual(copies[-1], 4)
        self.assertLess(copies.index(3), copies.index(2), copies)
        for event in self.generations(run):
            self.assertEqual((event["layout"]["pipeline"], event["layout"]["expert"]), (2, 2))
        for line in run.steps():  # the global batch is constant
            self.assertEqual(line["tokens"], line["step"] * 40 * 32)
        # Bit for bit: the number of copies changes no sum.
        self.assert_losses_are_undisturbed(run, *SIXTEEN)
        self.assert_audit_holds(run)


if __name__ == "__main__":
    unittest.main(argv=["members_test"] + sys.argv[3:], verbosity=2)
