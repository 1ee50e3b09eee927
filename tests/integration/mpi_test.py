#!/usr/bin/env python3
"""Real runs whose ranks are an MPI job: launcher mpi, over both transports.

usage: mpi_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import json
import os
import pathlib
import signal
import sys
import unittest

import real_runs

# name: what it sets beside the tiny run's own. Between them the groups of every kind.
LAYOUTS = {
    "data 2, zero": ("launch.nodes=1", "layout.zero=1"),
    "pipeline 2, zero-bubble": ("launch.nodes=1", "layout.pipeline=2",
                                "layout.schedule=zero-bubble"),
    "expert 2": ("launch.nodes=1", "layout.expert=2"),
    "pipeline 2 x expert 2": ("launch.nodes=2", "layout.pipeline=2", "layout.expert=2"),
}
SHORT = ("train.steps=6", "train.warmup_steps=2", "checkpoint.interval_steps=0",
         "train.eval_interval_steps=0")
MPI = ("launch.launcher=mpi", "launch.transport=mpi")


def sets(*settings):
    return [word for setting in settings for word in ("--set", setting)]


class MpiTest(real_runs.RealRunTest):
    def losses(self, *settings):
        run = self.run_to_end(*sets(*settings))
        losses = real_runs.losses(run.folder / "steps.jsonl")
        self.assert_nothing_left()
        return run, losses

    def test_layouts_have_the_bits_that_they_have_over_gloo(self):
        for name, layout in LAYOUTS.items():
            with self.subTest(name):
                _, expected = self.losses(*SHORT, *layout)
                run, found = self.losses(*SHORT, *layout, *MPI)
                self.assertEqual(len(found), 6)
                self.assertEqual(found, expected)
                nodes = 2 if "launch.nodes=2" in layout else 1
                self.assertEqual(len(list(run.folder.glob("logs/rank-*.log"))), 2 * nodes)
                self.assertEqual(len(list(run.folder.glob("logs/node-*.log"))), nodes)
                summary = json.loads((run.folder / "summary.json").read_text())
                self.assertEqual((summary["state"], summary["generations"]), ("completed", 1))

    def test_the_mpi_launcher_takes_gloo_too(self):
        layout = LAYOUTS["data 2, zero"]
        _, expected = self.losses(*SHORT, *layout)
        _, found = self.losses(*SHORT, *layout, "launch.launcher=mpi")
        self.assertEqual(found, expected)

    def test_a_killed_rank_ends_the_job_and_the_next_one_goes_on(self):
        steps = ("train.steps=1000", *LAYOUTS["data 2, zero"])
        _, expected = self.losses(*steps)
        run = real_runs.Run(self, *sets(*steps, *MPI))
        run.wait_for_step(25)
        real_runs.wait_until(lambda: any(
            path.parent.name >= "step-00000020" for path in
            (run.folder / "checkpoints").glob("step-*/manifest.json")), "a checkpoint")
        first_job = real_runs.workers_of(self.folder)
        self.assertEqual(len(first_job), 2)
        os.kill(first_job[-1], signal.SIGKILL)
        self.assertEqual(run.wait(), 0, run.log())
        said = run.output()
        self.assertRegex(said, r"the MPI job has failed: .*rank \d")
        self.assertRegex(said, r"starting the next MPI job from step \d+")
        lines = run.steps()
        self.assertEqual({line["generation"] for line in lines}, {1, 2})
        again = [line["step"] for line in lines if line["generation"] == 2][0]
        self.assertEqual(again % 10, 1)  # from a checkpoint,
        self.assertGreater(again, 20)    # the last one
        self.assertEqual(real_runs.losses(run.folder / "steps.jsonl"), expected)
        self.assert_nothing_left()

    def test_a_job_that_fails_without_a_new_checkpoint_is_given_up(self):
        run = real_runs.Run(self, *sets("train.steps=100000", "checkpoint.interval_steps=0",
                                        *LAYOUTS["data 2, zero"], *MPI))
        run.wait_for_step(1)
        for job in range(1, 5):
            real_runs.wait_until(lambda job=job: run.process.poll() is not None or
                                 any(line["generation"] == job for line in run.steps()),
                                 f"a step of job {job}")
            self.assertIsNone(run.process.poll(), run.log())
            os.kill(real_runs.workers_of(self.folder)[0], signal.SIGKILL)
        self.assertEqual(run.wait(), 75, run.log())
        said = run.output()
        self.assertIn("3 of 3 without a new checkpoint", said)
        self.assertIn("resume", said + run.log())
        self.assert_nothing_left()

    def test_an_interrupt_stops_with_a_checkpoint(self):
        run = real_runs.Run(self, *sets("train.steps=100000", *LAYOUTS["data 2, zero"], *MPI))
        run.wait_for_step(3)
        run.process.send_signal(signal.SIGINT)
        self.assertEqual(run.wait(), 130, run.log())
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual(summary["state"], "stopped")
        self.assertTrue((pathlib.Path(summary["checkpoint"]) / "manifest.json").exists())
        self.assert_nothing_left()

    def test_nothing_survives_the_command(self):
        run = real_runs.Run(self, *sets("train.steps=100000", *MPI))
        run.wait_for_step(3)
        self.assertEqual(len(real_runs.workers_of(self.folder)), 4)
        run.process.kill()
        self.assert_nothing_left()


if __name__ == "__main__":
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
