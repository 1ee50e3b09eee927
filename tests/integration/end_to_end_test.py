#!/usr/bin/env python3
"""Real runs of the real programs, on a tiny model: what a user is promised, seen from outside.

usage: end_to_end_test.py BIN-FOLDER SOURCE-FOLDER [TestCase.test_name ...]
"""
import functools
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

BIN = pathlib.Path(sys.argv[1]).resolve()
SOURCE = pathlib.Path(sys.argv[2]).resolve()
SNAPSHOTS = pathlib.Path(f"/dev/shm/paceline-{os.geteuid()}")
DEADLINE_S = 120  # for anything that is waited for

RUN_FILE = """
[run]
name = "tiny"
member = "uni-a"
project = "test"
seed = 7
[model]
vocab_size = 256
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 8
intermediate_size = 64
n_routed_experts = 4
n_shared_experts = 1
num_experts_per_tok = 2
moe_intermediate_size = 16
first_k_dense_replace = 1
scoring_func = "sigmoid"
[data]
train = "corpus/train"
valid = "corpus/valid"
[train]
sequence_length = 32
global_batch_size = 8
micro_batch_size = 2
steps = 40
learning_rate = 1e-2
min_learning_rate = 1e-3
warmup_steps = 4
eval_interval_steps = 20
eval_batches = 2
[checkpoint]
interval_steps = 10
keep = 3
[launch]
nodes = 2
slots_per_node = 2
[rates]
currency = "EUR"
slot_hour = 2.00
"""


def write_text(path, bytes_wanted, seed=1):
    """Words of a small vocabulary: text that a tiny model learns something of."""
    source = random.Random(seed)
    words = ["".join(source.choice("abcdefghij") for _ in range(source.randint(2, 7)))
             for _ in range(60)]
    with open(path, "w", encoding="ascii") as file:
        written = 0
        while written < bytes_wanted:
            line = " ".join(source.choice(words) for _ in range(12)) + ".\n"
            written += file.write(line)


def paceline(*arguments, cwd, **options):
    return subprocess.run([BIN / "paceline", *map(str, arguments)], cwd=cwd, capture_output=True,
                          text=True, timeout=DEADLINE_S, **options)


def wait_until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"waited {DEADLINE_S} s in vain for {what}")


def processes_of(folder, program="paceline"):
    """Pids of Paceline's programs that were started from `folder`, by its own hand or another's."""
    pids = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            name = pathlib.Path(os.readlink(entry / "exe")).name
            started_in = os.readlink(entry / "cwd")
        except OSError:  # gone, or ended and not yet reaped
            continue
        if name.startswith(program) and started_in == str(folder):
            pids.append(int(entry.name))
    return pids


def workers_of(folder, log="rank-*.log"):
    """Those that have had a rank: a worker that is kept warm writes into no rank's log."""
    written = "".join(path.read_text(errors="replace")
                      for path in folder.glob(f"runs/*/logs/{log}"))
    return [pid for pid in processes_of(folder, "paceline-worker")
            if f"paceline-worker[{pid}]" in written]


def warm_workers_of(folder):
    return sorted(set(processes_of(folder, "paceline-worker")) - set(workers_of(folder)))


class Run:
    """A run in the background."""

    def __init__(self, case, *extra, file="run.toml", verb=None, preexec_fn=None):
        self.case = case
        self.run_dir = case.folder / "runs"
        self.before = set(self.run_dir.glob("*")) if self.run_dir.exists() else set()
        self.stderr = open(case.folder / "stderr.txt", "a+", encoding="utf-8")
        command = verb or ["run", file]
        self.process = subprocess.Popen(
            [BIN / "paceline", *map(str, command), "--run-dir", self.run_dir, *map(str, extra)],
            cwd=case.folder, stdout=subprocess.PIPE, stderr=self.stderr, text=True,
            preexec_fn=preexec_fn)
        case.addCleanup(self.end)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        self.process.stdout.close()
        self.stderr.close()
        if "folder" in self.__dict__:  # of a run that was killed as a whole
            shutil.rmtree(SNAPSHOTS / self.folder.name, ignore_errors=True)

    @functools.cached_property
    def folder(self):
        """The one that was not there before; asked for before another run begins."""
        def fresh():
            if not self.run_dir.exists():
                return None
            new = [path for path in self.run_dir.iterdir()
                   if path not in self.before and (path / "run.toml").exists()]
            return new[0] if new else None
        return wait_until(fresh, "the run's folder")

    def steps(self):
        return read_lines(self.folder / "steps.jsonl")

    def wait_for_step(self, step):
        wait_until(lambda: self.process.poll() is not None or
                   any(line["step"] >= step for line in self.steps()), f"step {step}")
        self.case.assertIsNone(self.process.poll(), self.log())

    def wait(self):
        self.process.wait(DEADLINE_S)
        return self.process.returncode

    def log(self):
        self.stderr.flush()
        text = pathlib.Path(self.stderr.name).read_text(encoding="utf-8")
        for path in sorted(self.folder.glob("logs/*")):
            text += f"\n--- {path}\n" + path.read_text(errors="replace")[-3000:]
        return text


def read_lines(path):
    if not path.exists():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.split("\n")[:-1]]


def losses(path):
    """The final lineage: of each step the line with the highest generation."""
    last = {}
    for line in read_lines(path):
        last[line["step"]] = line
    return [last[step]["loss"] for step in sorted(last)]


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


class EndToEndTest(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="paceline-e2e-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        write_text(self.folder / "text.txt", 200_000)
        (self.folder / "run.toml").write_text(RUN_FILE)
        prepared = paceline("data", "prepare", "--input", "text.txt", "--output", "corpus",
                            "--valid-fraction", "0.05", cwd=self.folder)
        self.assertEqual(prepared.returncode, 0, prepared.stderr)

    def run_to_end(self, *extra, file="run.toml"):
        run = Run(self, *extra, file=file)
        self.assertEqual(run.wait(), 0, run.log())
        self.assertTrue(run.folder.exists())
        return run

    def assert_nothing_left(self):
        wait_until(lambda: not processes_of(self.folder), "every process to end")

    def test_a_run_completes_and_accounts_for_itself(self):
        # Steps long enough that no checkpoint is left out for the one before.
        run = self.run_to_end("-o", "json", "--set", "train.sequence_length=128")
        printed = json.loads(run.process.stdout.read())
        summary = json.loads((run.folder / "summary.json").read_text())
        for key in ("run_id", "state", "steps", "tokens", "loss", "valid_loss",
                    "tokens_per_second", "generations", "recoveries", "lost_steps", "lost_tokens",
                    "cost", "currency", "cost_per_million_tokens", "checkpoint"):
            self.assertIn(key, summary)
        self.assertEqual(printed["run_id"], summary["run_id"])
        self.assertEqual(summary["state"], "completed")
        self.assertEqual(summary["steps"], 40)
        self.assertEqual(summary["tokens"], 40 * 8 * 128)
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
        whole = self.run_to_end("--set", "train.steps=400")
        expected = losses(whole.folder / "steps.jsonl")
        run = Run(self, "--set", "train.steps=400", "--set", "layout.pipeline=2", "--set",
                  "layout.schedule=zero-bubble")
        for layout in (("layout.zero=1",), ("layout.pipeline=1", "layout.expert=2")):
            run.wait_for_step(run.steps()[-1]["step"] + 50 if run.steps() else 50)
            run.process.send_signal(signal.SIGINT)
            self.assertEqual(run.wait(), 130, run.log())
            sets = [word for key in layout for word in ("--set", key)]
            resumed = Run(self, *sets, verb=["resume", run.folder.name])
            resumed.folder = run.folder
            run = resumed
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        found = losses(run.folder / "steps.jsonl")
        self.assertEqual(len(found), 400)
        # Stages and a sharded optimizer change no bit; experts that serve two ranks round anew.
        changed = next(line["step"] for line in run.steps() if line["generation"] == 3)
        self.assertEqual(found[:changed - 1], expected[:changed - 1])
        for step in range(changed - 1, min(changed + 19, 400)):
            bound = 1e-6 if step == changed - 1 else 1e-5
            self.assertLessEqual(abs(found[step] / expected[step] - 1), bound, f"step {step + 1}")

    def test_a_stopped_run_resumes_as_if_nothing_had_happened(self):
        steps = ("--set", "train.steps=400", "--set", "checkpoint.interval_steps=1000")
        whole = self.run_to_end(*steps)
        run = Run(self, *steps)
        run.wait_for_step(100)
        run.process.send_signal(signal.SIGINT)
        self.assertEqual(run.wait(), 130, run.log())
        self.assert_nothing_left()
        stopped = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual(stopped["state"], "stopped")
        self.assertLess(stopped["steps"], 400)
        self.assertIn(f"step-{stopped['steps']:08d}", stopped["checkpoint"])

        resumed = Run(self, verb=["resume", run.folder.name])
        self.assertEqual(resumed.wait(), 0, run.log())
        lines = run.steps()
        self.assertEqual([line["step"] for line in lines], list(range(1, 401)))
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
        self.assertRegex(run.process.stdout.read(), r"failure: rank \d.*signal 9")

    def test_a_warm_worker_takes_a_dead_ones_slot(self):
        steps = ("--set", "train.steps=1500", "--set", "train.eval_interval_steps=0")
        whole = self.run_to_end(*steps, "--set", "failure.warm_workers=0")
        self.assertEqual(list(whole.folder.glob("logs/warm-*")), [])
        run = Run(self, *steps)

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
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        self.assertEqual(losses(run.folder / "steps.jsonl"), losses(whole.folder / "steps.jsonl"))
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

    def test_a_flipped_bit_in_a_ranks_weights_is_found(self):
        """Weights stand still at this learning rate, so a snapshot tells where they lie."""
        settings = ("--set", "train.steps=600", "--set", "train.learning_rate=1e-30", "--set",
                    "train.min_learning_rate=0", "--set", "train.weight_decay=0",
                    "--set", "train.eval_interval_steps=0", "--set",
                    "checkpoint.interval_steps=50", "--set", "failure.snapshot_interval_steps=5")
        whole = self.run_to_end(*settings)
        run = Run(self, *settings)
        run.wait_for_step(60)
        snapshots = sorted((SNAPSHOTS / run.folder.name).glob("*/rank-00002.0"))
        self.assertEqual(len(snapshots), 1)
        needle = weights_of(snapshots[0].read_bytes())
        worker = next(pid for pid in workers_of(self.folder) if "rank-00002" in open_files_of(pid))
        os.kill(worker, signal.SIGSTOP)
        self.assertGreaterEqual(flip_bit(worker, needle), 1)
        os.kill(worker, signal.SIGCONT)
        self.assertEqual(run.wait(), 0, run.log())
        self.assert_nothing_left()
        events = json.loads(paceline("events", run.folder.name, "--run-dir", run.run_dir, "-o",
                                     "json", cwd=self.folder).stdout)["events"]
        ended = [event for event in events if event["event"] == "generation_ended"]
        self.assertEqual(len(ended), 2, ended)
        self.assertEqual((ended[0]["cause"], ended[0]["culprit"]["rank"]), ("corrupt_state", 2))
        self.assertIn("are not those of the other 3 ranks", ended[0]["text"])
        # Nothing of it is left.
        self.assertEqual(losses(run.folder / "steps.jsonl"), losses(whole.folder / "steps.jsonl"))

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
        steps = ("--set", "train.steps=400")
        whole = self.run_to_end(*steps)
        run = Run(self, *steps, "--set", "failure.max_restarts=0")
        run.wait_for_step(55)
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
        self.assertIn("9", shown.stdout)

        # With no step left to do it ends at once: no agent is started.
        agent_log = (run.folder / "logs" / "node-0.log").read_text()
        nothing = Run(self, "--set", f"train.steps={committed}", verb=["resume", run.folder.name])
        self.assertEqual(nothing.wait(), 0, run.log())
        self.assertIn("nothing was left to do", nothing.process.stdout.read())
        self.assertEqual((run.folder / "logs" / "node-0.log").read_text(), agent_log)

        resumed = Run(self, "--set", "train.steps=400", verb=["resume", run.folder.name])
        self.assertEqual(resumed.wait(), 0, run.log())
        self.assertEqual(losses(run.folder / "steps.jsonl"), losses(whole.folder / "steps.jsonl"))
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertEqual(summary["generations"], 2)
        # What was done again.
        self.assertEqual(summary["lost_steps"], len(run.steps()) - 400)
        self.assertEqual(summary["lost_tokens"], summary["lost_steps"] * 8 * 32)
        self.assertEqual(summary["tokens"], 400 * 8 * 32)

    def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(self):
        run = Run(self, "--set", "train.steps=400", "--set", "failure.max_restarts=0")
        run.wait_for_step(45)
        os.kill(workers_of(self.folder)[0], signal.SIGKILL)
        self.assertEqual(run.wait(), 75, run.log())
        newest = sorted((run.folder / "checkpoints").glob("step-*/manifest.json"))[-1].parent
        part = sorted(newest.glob("*.safetensors"))[0]
        data = bytearray(part.read_bytes())
        data[-5] ^= 0x10
        part.write_bytes(data)

        resumed = Run(self, verb=["resume", run.folder.name])
        self.assertEqual(resumed.wait(), 0, run.log())
        self.assertIn(newest.name, run.log())
        first_again = [line["step"] for line in run.steps() if line["generation"] == 2][0]
        self.assertEqual(f"step-{first_again - 1 + 10:08d}-g1", newest.name)
        summary = json.loads((run.folder / "summary.json").read_text())
        self.assertGreaterEqual(summary["lost_steps"], 10)

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
