#!/usr/bin/env python3
"""What `paceline events`, `audit` and `show` say of what happened in real runs, and of their altered
folders.

usage: events_audit_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import json
import os
import shutil
import signal
import sys
import unittest

import real_runs

STEPS = 800  # more than one epoch of the corpus


class EventsAuditTest(real_runs.RealRunTest):
    def ask(self, run, verb, *flags):
        return real_runs.paceline(verb, run.folder.name, "--run-dir", run.run_dir, *flags,
                                  cwd=self.folder)

    def ask_json(self, run, verb, *flags):
        told = self.ask(run, verb, "-o", "json", *flags)
        self.assertEqual(told.returncode, 0, told.stderr)
        self.assertEqual(told.stderr, "")
        return json.loads(told.stdout)

    def refusal(self, run):
        """Why the audit fails: on stderr, and alone on stdout with -o json."""
        told = self.ask(run, "audit")
        self.assertEqual((told.returncode, told.stdout), (70, ""), told.stderr)
        as_json = self.ask(run, "audit", "-o", "json")
        self.assertEqual(as_json.returncode, 70)
        self.assertEqual(json.loads(as_json.stdout)["exit_code"], 70)
        self.assertIn("the audit of run " + run.folder.name, told.stderr)
        return told.stderr

    def test_a_run_that_failed_and_went_on_is_told_and_proven(self):
        run = real_runs.Run(self, "--set", f"train.steps={STEPS}")
        run.wait_for_step(25)
        [coordinator] = real_runs.processes_of(self.folder, "paceline-coordinator")
        os.kill(coordinator, signal.SIGKILL)
        real_runs.wait_until(
            lambda: set(real_runs.processes_of(self.folder, "paceline-coordinator")) - {coordinator},
            "the next coordinator")
        run.wait_for_step(55)
        real_runs.wait_until(lambda: list((run.folder / "checkpoints").glob("step-*/manifest.json")),
                             "a checkpoint")
        real_runs.wait_until(lambda: self.ask_json(run, "show")["live"], "the coordinator")
        # While it trains.
        live = real_runs.wait_until(
            lambda: [event["event"] for event in self.ask_json(run, "events")["events"]],
            "its events")
        self.assertIn("generation_started", live)
        self.assertNotIn("run_ended", live)
        shown = self.ask_json(run, "show")
        self.assertTrue(shown["live"])
        [generation] = shown["generations"]
        self.assertEqual((generation["generation"], generation["ranks"]), (1, 4))
        self.assertIsNone(generation["ended_at"])
        proven = self.ask_json(run, "audit")
        self.assertGreaterEqual(proven["committed_step"], 10)
        self.assertGreater(proven["granted_until"], proven["committed_step"])

        os.kill(real_runs.workers_of(self.folder)[0], signal.SIGKILL)
        if run.wait() == 75:
            resumed = real_runs.Run(self, verb=["resume", run.folder.name])
            self.assertEqual(resumed.wait(), 0, run.log())
        self.check_events(run)
        self.check_generations(run)
        self.check_audit(run)
        self.check_alterations(run)

    def check_events(self, run):
        told = self.ask_json(run, "events")
        self.assertTrue(told["history_complete"])
        events = told["events"]
        kinds = [event["event"] for event in events]
        self.assertEqual(kinds[:2], ["coordinator_started", "submitted"])
        self.assertEqual(kinds.count("generation_started"), 2)
        self.assertEqual(kinds.count("generation_ended"), 2)
        self.assertEqual(kinds.count("checkpoint_committed"),
                         len({event["step"] for event in events
                              if event["event"] == "checkpoint_committed"}))
        self.assertIn(True, [event.get("took_over") for event in events])
        self.assertIn("node_joined", kinds)
        self.assertIn("run_ended", kinds)
        ended = next(event for event in events if event["event"] == "generation_ended")
        self.assertEqual(ended["culprit"]["signal"], 9)
        self.assertRegex(ended["culprit"]["node"], r"^node-\d$")
        started = [event for event in events if event["event"] == "generation_started"]
        self.assertEqual(len(started[0]["ranks"]), 4)
        self.assertGreater(started[1]["start_step"], 0)
        self.assertEqual(events, sorted(events, key=lambda event: event["index"]))

        text = self.ask(run, "events")
        self.assertEqual(text.returncode, 0, text.stderr)
        lines = text.stdout.splitlines()
        self.assertEqual(len(lines), len(events))
        for line in lines:
            self.assertRegex(line, r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  \S")
        self.assertRegex(text.stdout, r"a coordinator took over, epoch 2")
        # Whatever heartbeats had told of it when the worker died.
        self.assertRegex(text.stdout, r"rolled back to step \d+: (\d+ steps? done and lost|.*none)")
        self.lost = sum(event["lost_steps"] for event in events
                        if event["event"] == "windows_rolled_back")
        self.assertRegex(text.stdout, f"generation 2 ended .*: all {STEPS} steps are done\n")
        self.assertRegex(text.stdout, r"run completed\n")
        self.assertNotIn("retired", text.stdout)
        routine = self.ask(run, "events", "--all").stdout
        self.assertIn("given up: retired: [checkpoint] keep = 3", routine)
        self.assertRegex(routine, r"steps 0 to \d+ granted\n")
        self.assertEqual(self.ask(run, "events", "-n", 3).stdout.splitlines(), lines[-3:])
        self.assertEqual(self.ask(run, "events", "--since", "1d").stdout.splitlines(), lines)
        self.assertEqual(self.ask(run, "events", "--since", "0s").stdout, "")
        wrong = self.ask(run, "events", "--since", "lunch")
        self.assertEqual(wrong.returncode, 2)
        self.assertIn("--since lunch: give 90s", wrong.stderr)

    def check_generations(self, run):
        """`show` tells them as the events do."""
        shown = self.ask_json(run, "show")
        self.assertTrue(shown["history_complete"])
        self.assertIsNone(shown["history_error"])
        [first, second] = shown["generations"]
        events = self.ask_json(run, "events")["events"]
        ended = [event for event in events if event["event"] == "generation_ended"]
        started = [event for event in events if event["event"] == "generation_started"]
        for generation, begin, end in zip((first, second), started, ended):
            self.assertEqual(generation["generation"], begin["generation"])
            self.assertEqual(generation["layout"], begin["layout"])
            self.assertEqual((generation["ranks"], sorted(generation["nodes"])),
                             (4, ["node-0", "node-1"]))
            self.assertEqual(generation["start_step"], begin["start_step"])
            self.assertEqual(generation["started_at"], begin["at"])
            self.assertEqual(generation["ended_at"], end["at"])
            for key in ("last_step", "seconds", "cause", "scope", "culprit"):
                self.assertEqual(generation[key], end[key], key)
            self.assertEqual(generation["end_reason"], end["reason"])
        self.assertEqual(first["from"], "beginning")
        self.assertIn(second["from"], ("live", "snapshot", "checkpoint"))
        self.assertGreaterEqual(first["last_step"], first["committed_step"])
        self.assertEqual((first["cause"], first["scope"]), ("worker_exit", "rank"))
        self.assertEqual((second["committed_step"], second["last_step"]), (STEPS, STEPS))
        self.assertIsNone(second["cause"])

        text = self.ask(run, "show")
        self.assertEqual((text.returncode, text.stderr), (0, ""))
        time = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
        self.assertRegex(
            text.stdout,
            rf"\ngenerations:\nGENERATION .*WHY\n"
            rf"1 +{time}  beginning .* pp 1 x dp 4  {first['last_step']} +{first['committed_step']} "
            rf"+{time}  worker exit: rank \d on {first['culprit']['node']} was ended by SIGKILL.*\n"
            rf"2 +{time}  step {second['start_step']}, {second['from']}  .*"
            rf"  all {STEPS} steps are done\n$")

    def check_audit(self, run):
        proven = self.ask_json(run, "audit", "--whole")
        self.assertEqual((proven["first_step"], proven["committed_step"]), (0, STEPS))
        self.assertEqual(proven["samples"], STEPS * 8)
        self.assertTrue(proven["complete"])
        self.assertEqual(proven["generations"], [1, 2])
        self.assertEqual(proven["manifests"], 3)
        [source] = proven["sources"]
        self.assertEqual(source["whole_epochs"], 1)
        self.assertEqual(source["samples"] + source["samples_of_last_epoch"], STEPS * 8)
        self.assertEqual(proven["rolled_back_steps"], self.lost)
        self.assertEqual(self.ask_json(run, "audit"), proven)
        text = self.ask(run, "audit")
        self.assertEqual(text.returncode, 0, text.stderr)
        self.assertIn(f"steps 0 to {STEPS}, {STEPS * 8} samples: each counts once", text.stdout)
        self.assertIn(proven["digest"], text.stdout)

    def check_alterations(self, run):
        journals = sorted((run.folder / "coordinator").glob("**/epoch-*.journal"))
        written = [path for path in journals if path.stat().st_size > 1000]
        self.assertGreaterEqual(len(written), 2)
        for path in written:
            whole = path.read_bytes()
            for at in (3, len(whole) // 2):
                altered = bytearray(whole)
                altered[at] ^= 0x04
                path.write_bytes(altered)
                self.assertIn(path.name, self.refusal(run))
                events = self.ask(run, "events")
                self.assertEqual(events.returncode, 70)
                self.assertIn(path.name, events.stderr)
                if path.parent.name == "history":  # which no other part of `show` needs
                    shown = self.ask_json(run, "show")
                    self.assertIn(path.name, shown["history_error"])
                    self.assertFalse(shown["history_complete"])
                    self.assertIn(path.name, self.ask(run, "show").stdout)
            path.write_bytes(whole)
        away = self.folder / "away"
        middle = written[1]
        shutil.move(middle, away)
        self.assertIn(middle.name, self.refusal(run))
        shutil.move(away, middle)

        # Another checkpoint's manifest in the place of the newest one's.
        newest, before = sorted((run.folder / "checkpoints").glob("step-*/manifest.json"))[::-1][:2]
        whole = newest.read_bytes()
        newest.write_bytes(before.read_bytes())
        step = json.loads(before.read_text())["step"]
        self.assertIn(f"{newest}: step is {step}, and must be {STEPS}", self.refusal(run))
        newest.write_bytes(whole[:-20])
        self.assertIn(str(newest), self.refusal(run))
        newest.write_bytes(whole)

        # The corpus of another text.
        shutil.move(self.folder / "corpus", self.folder / "kept")
        gone = self.ask(run, "audit")
        self.assertEqual(gone.returncode, 2, gone.stderr)
        self.assertIn("corpus/train", gone.stderr)
        real_runs.write_text(self.folder / "other.txt", 200_000, seed=2)
        prepared = real_runs.paceline("data", "prepare", "--input", "other.txt", "--output",
                                      "corpus", "--valid-fraction", "0.05", cwd=self.folder)
        self.assertEqual(prepared.returncode, 0, prepared.stderr)
        self.assertIn("the corpus has changed", self.refusal(run))
        shutil.rmtree(self.folder / "corpus")
        shutil.move(self.folder / "kept", self.folder / "corpus")

        # A history that was cut says how far the proof reaches. (A snapshot has to be there.)
        shutil.rmtree(run.folder / "coordinator" / "history")
        cut = self.ask_json(run, "audit")
        self.assertFalse(cut["complete"])
        self.assertEqual((cut["first_step"], cut["committed_step"]), (STEPS, STEPS))
        self.assertEqual(self.ask(run, "audit", "--whole").returncode, 70)
        told = self.ask(run, "events")
        self.assertEqual(told.returncode, 0)
        self.assertIn("what happened before was removed", told.stderr)
        self.assertFalse(self.ask_json(run, "events")["history_complete"])
        self.assertFalse(self.ask_json(run, "show")["history_complete"])

    def test_a_silent_coordinator_keeps_show_from_nothing_that_the_journal_tells(self):
        run = real_runs.Run(self, "--set", "train.steps=100000")
        run.wait_for_step(5)
        [coordinator] = real_runs.processes_of(self.folder, "paceline-coordinator")
        os.kill(coordinator, signal.SIGSTOP)
        try:
            shown = self.ask_json(run, "show")
        finally:
            os.kill(coordinator, signal.SIGCONT)
        self.assertFalse(shown["live"])
        self.assertEqual([told["from"] for told in shown["generations"]], ["beginning"])

    def test_a_run_without_a_journal_is_named(self):
        run = self.run_to_end("--set", "train.steps=2", "--set", "train.warmup_steps=1")
        shutil.rmtree(run.folder / "coordinator")
        for verb in ("events", "audit"):
            told = self.ask(run, verb)
            self.assertEqual((told.returncode, told.stdout), (2, ""))
            self.assertIn("has no journal", told.stderr)


if __name__ == "__main__":
    unittest.main(argv=["events_audit_test"] + sys.argv[3:], verbosity=2)
