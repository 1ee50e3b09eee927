#!/usr/bin/env python3
"""Real runs whose coordinator is killed or stopped while another stands by.

usage: standby_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import json
import os
import re
import signal
import subprocess
import sys
import time
import unittest
import urllib.request

sys.dont_write_bytecode = True
import real_runs  # takes the same arguments

TAKE_OVER_S = 10  # a generous bound, for a busy machine; what was measured is printed


def fetch(address, path):
    with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
        return response.read().decode()


class StandbyTest(real_runs.RealRunTest):
    def start(self):
        """A run with a standby that waits for its coordinator's end."""
        run = real_runs.Run(self, *real_runs.ENDLESS)
        run.wait_for_step(20)
        log = self.folder / "standby.txt"
        with open(log, "w", encoding="utf-8") as file:
            self.standby = subprocess.Popen(
                [real_runs.BIN / "paceline-coordinator", "--state-dir", run.folder / "coordinator",
                 "--token-file", run.folder / "token", "--standby"],
                cwd=self.folder, stderr=file)
        self.addCleanup(self.end_standby)
        real_runs.wait_until(lambda: "waiting: epoch 1 of" in log.read_text(), "the standby")
        return run

    def end_standby(self):
        if self.standby.poll() is None:
            self.standby.kill()
        self.standby.wait(real_runs.DEADLINE_S)

    def coordinator(self, run):
        try:
            return json.loads((run.folder / "coordinator/coordinator.json").read_text())
        except FileNotFoundError:
            return {"epoch": 0}

    def agents(self, run):
        discovered = json.loads(fetch(self.coordinator(run)["metrics_address"], "/service-discovery"))
        return [target for group in discovered for target in group["targets"]
                if group["labels"]["component"] == "agent"]

    @staticmethod
    def registrations(agents):
        return [int(re.search(r"^paceline_agent_registrations_total (\d+)$",
                              fetch(agent, "/metrics"), re.M).group(1)) for agent in agents]

    def wait_for_take_over(self, run, agents, what, since):
        """Until the standby leads and the agents have found it."""
        steps = len(run.steps())
        real_runs.wait_until(lambda: max(self.registrations(agents)) > 1, "an agent's return")
        seconds = time.monotonic() - since
        leader = self.coordinator(run)
        self.assertEqual((leader["pid"], leader["epoch"]), (self.standby.pid, 2))
        stepped = len(run.steps()) - steps
        real_runs.wait_until(lambda: min(self.registrations(agents)) > 1, "all agents' return")
        all_seconds = time.monotonic() - since
        print(f"\n{what}: the first agent was back after {seconds:.2f} s, the last after "
              f"{all_seconds:.2f} s; {stepped} steps meanwhile", flush=True)
        self.assertLess(seconds, TAKE_OVER_S, run.log())
        return stepped

    def check_whole(self, run):
        """The run goes on, and ends, as if nothing had happened."""
        self.stop(run)
        steps = run.steps()
        self.assertEqual([(line["step"], line["generation"]) for line in steps],
                         [(step, 1) for step in range(1, len(steps) + 1)])
        self.assert_losses_are_undisturbed(run)
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual((summary["state"], summary["lost_steps"], summary["generations"]),
                         ("stopped", 0, 1))
        audited = real_runs.paceline("audit", run.folder.name, "--run-dir", run.run_dir, "--whole",
                                     cwd=self.folder)
        self.assertEqual(audited.returncode, 0, audited.stderr)
        self.standby.send_signal(signal.SIGTERM)
        self.assertEqual(self.standby.wait(real_runs.DEADLINE_S), 0)
        self.assert_nothing_left()

    def test_a_standby_takes_over_from_a_killed_leader(self):
        run = self.start()
        leader = self.coordinator(run)
        agents = self.agents(run)
        self.assertEqual(self.registrations(agents), [1, 1])
        # The run's own supervisor would be as fast; here it comes late.
        os.kill(run.process.pid, signal.SIGSTOP)
        os.kill(leader["pid"], signal.SIGKILL)
        self.wait_for_take_over(run, agents, "killed leader", time.monotonic())
        os.kill(run.process.pid, signal.SIGCONT)
        self.check_whole(run)
        self.assertIn("the coordinator of epoch 2 leads", run.output())

    def test_a_stopped_leader_is_replaced_and_ends_when_it_goes_on(self):
        run = self.start()
        leader = self.coordinator(run)
        agents = self.agents(run)
        self.assertEqual(self.registrations(agents), [1, 1])
        os.kill(leader["pid"], signal.SIGSTOP)
        stepped = self.wait_for_take_over(run, agents, "stopped leader", time.monotonic())
        self.assertGreater(stepped, 0)
        os.kill(leader["pid"], signal.SIGCONT)
        log = run.folder / "logs/coordinator.log"
        message = "this coordinator leads no more and ends: "
        real_runs.wait_until(lambda: message in log.read_text(), "the former leader's last word")
        self.assertEqual(self.coordinator(run)["epoch"], 2)
        self.check_whole(run)
        self.assertRegex(run.output(), r"coordinator ended unexpectedly \(exit code 75")
        self.assertEqual(sorted(path.name for path in run.folder.rglob("*.draft-*")), [])


if __name__ == "__main__":
    unittest.main(argv=["standby_test"] + sys.argv[3:], verbosity=2)
