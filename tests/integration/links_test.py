#!/usr/bin/env python3
"""Real runs on nodes that are joined by links of their own, some of which are cut.

usage: links_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import json
import sys
import time
import unittest

sys.dont_write_bytecode = True
import node_links
import real_runs  # takes the same arguments

BUDGET_MS = 2000
LEASE_S = 0.8 * BUDGET_MS / 1000
REJOIN_S = 5  # a lost node is waited for
BACK_S = 10 + 2 + 0.2 * BUDGET_MS / 1000  # keepalive, an attempt, a pause
BUSY_S = 5  # what other programs may cost
SETTINGS = ("--set", "launch.nodes=3", "--set", "launch.min_nodes=2", "--set",
            "train.global_batch_size=12", "--set", "train.eval_interval_steps=0", "--set", f"failure.budget_ms={BUDGET_MS}")


class LinksTest(real_runs.RealRunTest):
    def setUp(self):
        if not node_links.can_be_made():
            self.skipTest("needs root and network name spaces")
        super().setUp()
        self.links = node_links.NodeLinks(self, 3, real_runs.BIN, self.folder / "runs")

    def workers_on(self, node):
        network = node_links.network_of(self.links.nodes[self.links.names.index(node)])
        found = []
        for pid in real_runs.workers_of(self.folder):
            try:
                if node_links.network_of(pid) == network:
                    found.append(pid)
            except FileNotFoundError:
                continue
        return found

    def wait_for_copies(self, run, copies):
        """Until a generation of so many ranks has made steps. The generation."""
        def generation():
            self.assertIsNone(run.process.poll(), run.log())
            started = self.generations(run)[-1]
            last = run.steps()[-1]["generation"]
            return started if (started["layout"]["data"] == copies and
                               started["generation"] == last) else None
        return real_runs.wait_until(generation, f"{copies} ranks to train")

    def nodes_lost(self, run):
        return [event for event in self.events(run)
                if event["event"] == "node_left" and "was silent" in event["text"]]

    def cut_until_lost(self, run, nodes):
        """And then until a generation trains again."""
        generation = run.steps()[-1]["generation"]
        lost = len(self.nodes_lost(run)) + len(nodes)
        for node in nodes:
            self.links.set_link(node, "down")
        real_runs.wait_until(lambda: len(self.nodes_lost(run)) == lost, "the nodes to be lost")
        for node in nodes:
            self.links.set_link(node, "up")
        whole_again = time.monotonic()
        real_runs.wait_until(lambda: run.process.poll() is not None or
                             run.steps()[-1]["generation"] > generation, "the next generation")
        self.assertIsNone(run.process.poll(), run.log())
        self.report("all train after the link is whole", whole_again, BACK_S)

    def report(self, what, since, limit_s):
        seconds = time.monotonic() - since
        print(f"\n{what}: {seconds:.2f} s, of at most {limit_s:.1f} s", flush=True)
        self.assertLess(seconds, limit_s + BUSY_S, what)

    def assert_ends_as_if_nothing_had_happened(self, run, lost_max=1):
        self.stop(run, self.links.enter_hub)
        self.assert_nothing_left()
        self.assert_losses_are_undisturbed(run, *SETTINGS)
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertLessEqual(summary["lost_steps"], lost_max, run.log())
        self.assert_audit_holds(run)

    def test_a_node_that_is_cut_off_is_left_behind_and_comes_back(self):
        run = real_runs.Run(self, *SETTINGS, *real_runs.ENDLESS, links=self.links)
        run.wait_for_step(30)
        cut_off = self.workers_on("node-1")
        self.assertEqual(len(cut_off), 2)
        self.links.set_link("node-1", "down")
        cut = time.monotonic()
        shrunk = self.wait_for_copies(run, 4)
        self.report("the others train on after the cut", cut, LEASE_S + REJOIN_S)
        self.assertNotIn("node-1", {rank["node"] for rank in shrunk["ranks"]})
        # To its agent the coordinator is away, which is no reason to end ranks: theirs is a
        # generation that has ended, and what they hold is given up when that can be told.
        self.assertEqual(self.workers_on("node-1"), cut_off)
        self.links.set_link("node-1", "up")
        whole_again = time.monotonic()
        grown = self.wait_for_copies(run, 6)
        self.report("all train after the link is whole", whole_again, BACK_S)
        self.assertIn("node-1", {rank["node"] for rank in grown["ranks"]})
        self.assert_ends_as_if_nothing_had_happened(run)

    def test_a_node_that_is_back_in_time_takes_its_place_again(self):
        run = real_runs.Run(self, *SETTINGS, *real_runs.ENDLESS, links=self.links)
        run.wait_for_step(30)
        workers = [self.workers_on(node) for node in self.links.names]
        self.cut_until_lost(run, ["node-1"])
        self.cut_until_lost(run, self.links.names)  # the coordinator hears of nobody
        self.assertEqual([self.workers_on(node) for node in self.links.names], workers)
        for generation in self.generations(run):
            self.assertEqual(generation["layout"]["data"], 6)
        self.assert_ends_as_if_nothing_had_happened(run, lost_max=2)
        self.assertEqual(len(self.nodes_lost(run)), 4)


if __name__ == "__main__":
    unittest.main(argv=["links_test"] + sys.argv[3:], verbosity=2)
