#!/usr/bin/env python3
"""Real runs of the real programs, on a tiny model: what a user is promised, seen from outside.

usage: end_to_end_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
import unittest
import urllib.request

sys.dont_write_bytecode = True
from real_runs import (DEADLINE_S, ENDLESS, losses, paceline, processes_of, read_lines,
                       RealRunTest, Run, SNAPSHOTS, SOURCE, wait_until, warm_workers_of,
                       workers_of)


class EndToEndTest(RealRunTest):
    def test_a_run_completes_and_accounts_for_itself(self):
        # Steps long enough that no checkpoint is left out for the one before.
        run = self.run_to_end("-o", "json", "--set", "train.sequence_length=512")
        printed = json.loads(run.output())
        summary = json.loads((run.folder / "summary.json").read_text())
        for key in ("run_id", "state", "steps", "tokens", "loss", "valid_loss",
                    "tokens_per_second", "generations", "recoveries", "lost_steps", "lost_tokens",
                    "cost", "currency", "cost_per_million_tokens", "checkpoint"):
            self.assertIn(key, summary)
        self.assertEqual(printed["run_id"], summary["run_id"])
        self.assertEqual(summary["state"], "completed")
        self.assertEqual(summary["steps"], 40)
        self.assertEqual(summary["tokens"], 40 * 8 * 512)
        self.assertEqual(summary["generations"], 1)
        self.assertEqual(summary["lost_steps"], 0)
        self.assertGreater(summary["cost"], 0)
        self.assertAlmostEqual(summary["cost_per_million_tokens"],
                               summary["cost"] / summary["tokens"] * 1e6, places=9)
        self.assertTrue((pathlib.Path(summary["checkpoint"]) / "manifest.json").exists())

        steps = run.steps()
        self.assertEqual([line["step"] for line in steps], list(range(1, 41)))
        self.assertEqual(steps[-1]["tokens"], summary["tokens"])
        self.assertEqual(steps[-1]["loss"], summary["loss"])
        self.assertLess(steps[-1]["loss"], 0.8 * steps[0]["loss"])
        evals = read_lines(run.folder / "evals.jsonl")
        self.assertEqual([line["step"] for line in evals], [20, 40])
        self.assertEqual(evals[-1]["valid_loss"], summary["valid_loss"])
        # Retention: the newest three, each whole.
        kept = sorted(path.name for path in (run.folder / "checkpoints").glob("step-*"))
        self.assertEqual(kept, [f"step-000000{n}0-g1" for n in (2, 3, 4)])
        # Four worker processes in two agents, each with a log.
        self.assertEqual(len(list(run.folder.glob("logs/rank-*.log"))), 4)
        self.assertEqual(len(list(run.folder.glob("logs/node-*.log"))), 2)
        self.assert_nothing_left()

        generated = paceline("generate", "--checkpoint", summary["checkpoint"], "--prompt", "abc",
                             "--tokens", 16, "--seed", 3, cwd=self.folder)
        self.assertEqual(generated.returncode, 0, generated.stderr)
        again = paceline("generate", "--checkpoint", summary["checkpoint"], "--prompt", "abc",
                         "--tokens", 16, "--seed", 3, cwd=self.folder)
        self.assertEqual(generated.stdout, again.stdout)
        self.assertGreater(len(generated.stdout), 8)

    def test_equal_runs_have_equal_bits(self):
        first = self.run_to_end()
        second = self.run_to_end()
        self.assertNotEqual(first.folder, second.folder)
        self.assertEqual(losses(first.folder / "steps.jsonl"),
                         losses(second.folder / "steps.jsonl"))

    def test_losses_do_not_depend_on_the_number_of_ranks(self):
        expected = None
        for nodes, slots in ((1, 1), (1, 2), (2, 2)):
            run = self.run_to_end("--set", "train.steps=100", "--set", f"launch.nodes={nodes}",
                                  "--set", f"launch.slots_per_node={slots}")
            found = losses(run.folder / "steps.jsonl")
            self.assertEqual(len(found), 100)
            expected = expected or found
            self.assertEqual(found, expected, f"{nodes} nodes of {slots} slots")

    def test_a_run_that_changes_its_layout_keeps_its_losses(self):
        run = Run(self, *ENDLESS, "--set", "layout.pipeline=2", "--set",
                  "layout.schedule=zero-bubble")
        for layout in (("layout.zero=1",), ("layout.pipeline=1", "layout.expert=2"), None):
            run.wait_for_step(run.steps()[-1]["step"] + 50 if run.steps() else 50)
            run.process.send_signal(signal.SIGINT)
            self.assertEqual(run.wait(), 130, run.log())
            if layout is None:
                break
            sets = [word for key in layout for word in ("--set", key)]
            resumed = Run(self, *sets, verb=["resume", run.folder.name])
            resumed.folder = run.folder
            run = resumed
        self.assert_nothing_left()
        found = losses(run.folder / "steps.jsonl")
        whole = self.run_to_end(*ENDLESS, "--set", f"train.steps={len(found)}")
        expected = losses(whole.folder / "steps.jsonl")
        self.assertEqual(len(found), run.steps()[-1]["step"])
        # Stages and a sharded optimizer change no bit; experts that serve two ranks round anew.
        changed = next(line["step"] for line in run.steps() if line["generation"] == 3)
        self.assertEqual(found[:changed - 1], expected[:changed - 1])
        for step in range(changed - 1, min(changed + 19, len(found))):
            bound = 1e-6 if step == changed - 1 else 1e-5
            self.assertLessEqual(abs(found[step] / expected[step] - 1), bound, f"step {step + 1}")

    def test_a_stopped_run_resumes_as_if_nothing_had_happened(self):
        steps = ("--set", "train.steps=1000", "--set", "checkpoint.interval_steps=2000")
        whole = self.run_to_end(*steps)
        run = Run(self, *steps)
        run.wait_for_step(100)
        run.process.send_signal(signal.SIGINT)
        self.assertEqual(run.wait(), 130, run.log())
        self.assert_nothing_left()
        stopped = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual(stopped["state"], "stopped")
        self.assertLess(stopped["steps"], 1000)
        self.assertIn(f"step-{stopped['steps']:08d}", stopped["checkpoint"])

        resumed = Run(self, verb=["resume", run.folder.name])
        self.assertEqual(resumed.wait(), 0, run.log())
        lines = run.steps()
        self.assertEqual([line["step"] for line in lines], list(range(1, 1001)))
        self.assertEqual({line["generation"] for line in lines}, {1, 2})
        self.assertEqual(losses(run.folder / "steps.jsonl"), losses(whole.folder / "steps.jsonl"))
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual((summary["state"], summary["generations"], summary["lost_steps"]),
                         ("completed", 2, 0))

    def test_after_a_killed_worker_the_run_goes_on(self):
        steps = ("--set", "train.steps=400")
        whole = self.run_to_end(*steps)
        run = Run(self, *steps)
        run.wait_for_step(55)
        workers = workers_of(self.folder)
        os.kill(workers[0], signal.SIGKILL)
        wait_until(lambda: run.process.poll() is not None or
                   any(line["generation"] == 2 for line in run.steps()), "the next generation")
        # The others keep their process.
        self.assertEqual(len(set(workers[1:]) & set(workers_of(self.folder))), 3, run.log())
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        self.assertEqual(sorted({line["step"] for line in run.steps()}), list(range(1, 401)))
        self.assertEqual(losses(run.folder / "steps.jsonl"), losses(whole.folder / "steps.jsonl"))
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual((summary["generations"], summary["recoveries"]), (2, 1))
        # What the others held in memory was taken up: the step under way is lost, at most.
        self.assertLessEqual(summary["lost_steps"], 1)
        self.assertEqual(summary["lost_steps"], len(run.steps()) - 400)
        self.assertRegex(run.output(), r"failure: rank \d.*signal 9")

    def test_a_warm_worker_takes_a_dead_ones_slot(self):
        settings = ("--set", "train.eval_interval_steps=0")
        run = Run(self, *settings, *ENDLESS)

        def ready(but=()):
            """One on each node, other than `but`, that has loaded what a rank needs."""
            pids = set(warm_workers_of(self.folder)) - set(but)
            logs = "".join(path.read_text() for path in run.folder.glob("logs/warm-*.log"))
            loaded = [pid for pid in pids if f"[{pid}] has loaded" in logs]
            return sorted(loaded) if len(loaded) == 2 else None

        # A dead one is replaced, and the run knows nothing of it.
        first = wait_until(ready, "a warm worker on each node")
        os.kill(first[0], signal.SIGKILL)
        warm = wait_until(lambda: ready(but=first[:1]), "another one")
        self.assertIsNone(run.process.poll(), run.log())
        self.assertEqual({line["generation"] for line in run.steps()}, {1})

        victim = workers_of(self.folder, "rank-00003.log")[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: run.process.poll() is not None or
                   run.steps()[-1]["generation"] == 2, "the next generation")
        successor = wait_until(lambda: workers_of(self.folder, "rank-00003.log"), "its first words")
        self.assertEqual(len(successor), 1, run.log())
        self.assertIn(successor[0], warm, run.log())
        wait_until(lambda: ready(but=successor), "one more behind it")
        self.stop(run)
        self.assert_nothing_left()
        whole = self.assert_losses_are_undisturbed(run, *settings, "--set",
                                                   "failure.warm_workers=0")
        self.assertEqual(list(whole.folder.glob("logs/warm-*")), [])
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual((summary["generations"], summary["recoveries"]), (2, 1))

    def test_after_a_killed_agent_the_run_goes_on(self):
        steps = ("--set", "train.steps=400", "--set", "failure.budget_ms=1000")
        whole = self.run_to_end(*steps)
        run = Run(self, *steps)
        for step in (55, 155):
            run.wait_for_step(step)
            generation = run.steps()[-1]["generation"]
            os.kill(processes_of(self.folder, "paceline-agent")[0], signal.SIGKILL)
            wait_until(lambda: run.process.poll() is not None or
                       run.steps()[-1]["generation"] > generation, "the next generation")
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        self.assertEqual(losses(run.folder / "steps.jsonl"), losses(whole.folder / "steps.jsonl"))
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual((summary["generations"], summary["recoveries"]), (3, 2))
        self.assertLessEqual(summary["lost_steps"], 2)

    def test_with_stages_and_experts_the_run_goes_on(self):
        steps = ("--set", "train.steps=400", "--set", "launch.nodes=4", "--set",
                 "layout.pipeline=2", "--set", "layout.schedule=zero-bubble", "--set",
                 "layout.expert=2")
        whole = self.run_to_end(*steps)
        run = Run(self, *steps)
        for step in (55, 105, 155):
            run.wait_for_step(step)
            generation = run.steps()[-1]["generation"]
            os.kill(random.Random(step).choice(workers_of(self.folder)), signal.SIGKILL)
            wait_until(lambda: run.process.poll() is not None or
                       run.steps()[-1]["generation"] > generation, "the next generation")
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        self.assertEqual(losses(run.folder / "steps.jsonl"), losses(whole.folder / "steps.jsonl"))

    def test_without_copies_the_run_goes_on_from_snapshots(self):
        """Two stages of one copy each, and no checkpoint before the end. Steps are long enough
        that no snapshot is left out for the one before."""
        settings = ("--set", "train.steps=300", "--set", "launch.slots_per_node=1", "--set",
                    "layout.pipeline=2", "--set", "checkpoint.interval_steps=0", "--set",
                    "failure.budget_ms=1000", "--set", "failure.snapshot_interval_steps=5",
                    "--set", "train.sequence_length=128", "--set", "train.eval_interval_steps=0")
        whole = self.run_to_end(*settings)
        run = Run(self, *settings)
        for step, program in ((55, "paceline-worker"), (155, "paceline-agent")):
            run.wait_for_step(step)
            generation = run.steps()[-1]["generation"]
            victims = (workers_of(self.folder) if program == "paceline-worker" else
                       processes_of(self.folder, program))
            os.kill(victims[0], signal.SIGKILL)
            wait_until(lambda: run.process.poll() is not None or
                       run.steps()[-1]["generation"] > generation, "the next generation")
            # The last snapshot may not have been whole yet.
            self.assertGreater(run.steps()[-1]["step"], step - 10, run.log())
        self.assertTrue((SNAPSHOTS / run.folder.name).exists())
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        self.assertFalse((SNAPSHOTS / run.folder.name).exists())
        self.assertEqual(losses(run.folder / "steps.jsonl"), losses(whole.folder / "steps.jsonl"))
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual((summary["generations"], summary["recoveries"]), (3, 2))
        self.assertLessEqual(summary["lost_steps"], 2 * 10)

    def test_a_run_that_keeps_nothing_gives_up(self):
        # With a sharded optimizer a dead rank takes part of the state along.
        run = Run(self, "--set", "train.steps=100000", "--set", "checkpoint.interval_steps=0",
                  "--set", "layout.zero=1", "--set", "failure.snapshot_interval_steps=0")
        for generation in range(1, 4):
            wait_until(lambda: any(line["generation"] == generation for line in run.steps()),
                       f"generation {generation}")
            os.kill(workers_of(self.folder)[0], signal.SIGKILL)
        self.assertEqual(run.wait(), 75, run.log())
        self.assertIn("3 generations in a row began at step 0", run.log())
        self.assert_nothing_left()

    def test_a_killed_worker_ends_a_run_without_restarts_and_resume_goes_on(self):
        steps = ("--set", "train.steps=1000")
        whole = self.run_to_end(*steps)
        run = Run(self, *steps, "--set", "failure.max_restarts=0")
        run.wait_for_step(55)
        wait_until(lambda: list((run.folder / "checkpoints").glob("step-*/manifest.json")),
                   "a checkpoint")
        victim = workers_of(self.folder)[0]
        os.kill(victim, signal.SIGKILL)
        self.assertEqual(run.wait(), 75, run.log())
        self.assert_nothing_left()
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual(summary["state"], "failed")
        self.assertIn("resume", run.log())
        committed = summary["steps"]
        self.assertIn(f"step-{committed:08d}-g1", summary["checkpoint"])
        self.assertEqual(summary["tokens"], committed * 8 * 32)
        self.assertEqual(summary["loss"], run.steps()[committed - 1]["loss"])
        shown = paceline("show", run.folder.name, "--run-dir", run.run_dir, cwd=self.folder)
        self.assertEqual(shown.returncode, 0, shown.stderr)
        self.assertRegex(shown.stdout, r"rank \d")
        self.assertNotIn("alive", shown.stdout)
        self.assertRegex(shown.stdout, rf"\n1 .* beginning .* {committed} .* worker exit: "
                                       r"rank \d on node-\d was ended by SIGKILL")

        # With no step left to do it ends at once: no agent is started.
        agent_log = (run.folder / "logs" / "node-0.log").read_text()
        nothing = Run(self, "--set", f"train.steps={committed}", verb=["resume", run.folder.name])
        self.assertEqual(nothing.wait(), 0, run.log())
        self.assertIn("nothing was left to do", nothing.output())
        self.assertEqual((run.folder / "logs" / "node-0.log").read_text(), agent_log)

        resumed = Run(self, *steps, verb=["resume", run.folder.name])
        self.assertEqual(resumed.wait(), 0, run.log())
        self.assertEqual(losses(run.folder / "steps.jsonl"), losses(whole.folder / "steps.jsonl"))
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual(summary["generations"], 2)
        # What was done again.
        self.assertEqual(summary["lost_steps"], len(run.steps()) - 1000)
        self.assertEqual(summary["lost_tokens"], summary["lost_steps"] * 8 * 32)
        self.assertEqual(summary["tokens"], 1000 * 8 * 32)
        shown = paceline("show", run.folder.name, "--run-dir", run.run_dir, "-o", "json",
                         cwd=self.folder)
        [first, second] = json.loads(shown.stdout)["generations"]
        self.assertEqual((first["from"], first["committed_step"]), ("beginning", committed))
        self.assertEqual((first["cause"], first["culprit"]["signal"]), ("worker_exit", 9))
        self.assertEqual((second["from"], second["start_step"]), ("checkpoint", committed))
        self.assertEqual((second["last_step"], second["cause"]), (1000, None))

    def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(self):
        run = Run(self, "--set", "train.steps=1000", "--set", "failure.max_restarts=0")

        def manifests():
            return sorted((run.folder / "checkpoints").glob("step-*/manifest.json"))

        wait_until(lambda: len(manifests()) >= 2, "two checkpoints")
        os.kill(workers_of(self.folder)[0], signal.SIGKILL)
        self.assertEqual(run.wait(), 75, run.log())
        before, newest = [path.parent for path in manifests()][-2:]
        part = sorted(newest.glob("*.safetensors"))[0]
        data = bytearray(part.read_bytes())
        data[-5] ^= 0x10
        part.write_bytes(data)

        resumed = Run(self, verb=["resume", run.folder.name])
        self.assertEqual(resumed.wait(), 0, run.log())
        self.assertIn(newest.name, run.log())
        first_again = [line["step"] for line in run.steps() if line["generation"] == 2][0]
        self.assertEqual(f"step-{first_again - 1:08d}-g1", before.name)
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertGreaterEqual(summary["lost_steps"],
                                int(newest.name[5:13]) - (first_again - 1))

    def test_a_full_disk_at_a_checkpoint_does_not_end_training(self):
        # A part of the tiny model is larger than this; logs and step lines are not.
        import resource
        limit = 64 * 1024
        run = Run(self, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE,
                                                              (limit, limit)))
        code = run.wait()
        self.assertEqual(len(run.steps()), 40, run.log())
        self.assertEqual(list((run.folder / "checkpoints").glob("*/manifest.json")), [])
        self.assertRegex(run.log(), r"checkpoint.*step 10")
        self.assertNotEqual(code, 0)  # trained, but nothing could be kept
        self.assert_nothing_left()

    def test_a_second_interrupt_ends_at_once(self):
        run = Run(self, "--set", "train.steps=100000")
        run.wait_for_step(3)
        run.process.send_signal(signal.SIGINT)
        time.sleep(0.4)  # two that come together count as one
        run.process.send_signal(signal.SIGINT)
        self.assertEqual(run.wait(), 130, run.log())
        self.assert_nothing_left()

    def test_nothing_survives_the_command(self):
        run = Run(self, "--set", "train.steps=100000")
        run.wait_for_step(3)
        self.assertEqual(len(workers_of(self.folder)), 4)
        run.process.kill()
        self.assert_nothing_left()

    def test_metrics_are_well_formed_and_discovered_while_training(self):
        run = Run(self, "--set", "train.steps=100000")
        run.wait_for_step(3)
        coordinator = json.loads((run.folder / "coordinator.json").read_text())

        def get(address, path):
            with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as response:
                return response.read().decode()

        discovered = json.loads(get(coordinator["metrics_address"], "/service-discovery"))
        targets = {target for group in discovered for target in group["targets"]}
        agents = targets - {coordinator["metrics_address"]}
        self.assertEqual(len(agents), 2)
        for address in targets:
            text = get(address, "/metrics")
            checked = subprocess.run(["promtool", "check", "metrics"], input=text, text=True,
                                     capture_output=True, timeout=DEADLINE_S)
            self.assertEqual((checked.returncode, checked.stdout + checked.stderr), (0, ""), text)
        def ranks_shown():
            ranks = set()
            for address in agents:
                ranks |= set(re.findall(r'paceline_\w+{[^}]*rank="(\d+)"', get(address, "/metrics")))
            return ranks == {"0", "1", "2", "3"}

        wait_until(ranks_shown, "every rank's metrics")

        status = paceline("ps", "--run-dir", run.run_dir, cwd=self.folder)
        self.assertIn(run.folder.name, status.stdout)
        stopped = paceline("stop", run.folder.name, "--run-dir", run.run_dir, cwd=self.folder)
        self.assertEqual(stopped.returncode, 0, stopped.stderr)
        self.assertEqual(run.wait(), 130, run.log())

    def test_shards_of_other_programs_train(self):
        shards = self.folder / "shards"
        written = subprocess.run(
            [sys.executable, SOURCE / "tests/fixtures/data/write_shards.py", shards, "20000", "251"],
            capture_output=True, text=True, timeout=DEADLINE_S)
        self.assertEqual(written.returncode, 0, written.stderr)
        found = sorted(shards.glob("*.idx")) + sorted(shards.glob("llmc*.bin"))
        self.assertGreaterEqual(len(found), 2)
        for path in found:
            run = self.run_to_end("--set", f"data.train={path}", "--set", "data.valid=[]",
                                  "--set", "train.steps=5", "--set", "model.vocab_size=4096",
                                  "--set", "launch.nodes=1")
            self.assertEqual(len(run.steps()), 5, path)


if __name__ == "__main__":
    unittest.main(argv=["end_to_end_test"] + sys.argv[3:], verbosity=2)
