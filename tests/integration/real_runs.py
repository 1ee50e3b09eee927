"""Real runs of the real programs, on a tiny model, for the tests beside: they are started as
`TEST.py BIN-FOLDER SOURCE-FOLDER ...`, and this module reads both from there.
"""
import functools
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

BIN = pathlib.Path(sys.argv[1]).resolve()
SOURCE = pathlib.Path(sys.argv[2]).resolve()
SNAPSHOTS = pathlib.Path(f"/dev/shm/paceline-{os.geteuid()}")
DEADLINE_S = 120  # for anything that is waited for
# A run that ends when its test stops it: what a test does fits, however fast the machine is.
ENDLESS = ("--set", "train.steps=1000000", "--set", "train.lr_schedule=constant")

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
    """A run in the background. links: a NodeLinks, whose nodes it shall have."""

    def __init__(self, case, *extra, file="run.toml", verb=None, preexec_fn=None,
                 links=None):
        self.case = case
        self.run_dir = case.folder / "runs"
        self.before = set(self.run_dir.glob("*")) if self.run_dir.exists() else set()
        assert preexec_fn is None or links is None
        self.stdout = tempfile.TemporaryFile("w+", encoding="utf-8")
        self.stderr = open(case.folder / "stderr.txt", "a+", encoding="utf-8")
        command = verb or ["run", file]
        self.process = subprocess.Popen(
            [(links.bin if links else BIN) / "paceline", *map(str, command), "--run-dir",
             self.run_dir, *map(str, extra)],
            cwd=case.folder, stdout=self.stdout, stderr=self.stderr,
            preexec_fn=links.enter_hub if links else preexec_fn)
        case.addCleanup(self.end)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        self.stdout.close()
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

    def output(self):
        self.stdout.seek(0)
        return self.stdout.read()

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


def signal_quietly(pid, number):
    """False: the process has ended."""
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


def log_of(pid):
    """The file that a program of a run logs to."""
    return pathlib.Path(os.readlink(f"/proc/{pid}/fd/1"))


def parent_of(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^PPid:\s+(\d+)$", status, re.M).group(1))


class RealRunTest(unittest.TestCase):
    """In a folder of its own, with a run file and a corpus."""

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

    def stop(self, run, preexec_fn=None):
        """Ends an endless run, some steps later."""
        run.wait_for_step(run.steps()[-1]["step"] + 20)
        stopped = paceline("stop", run.folder.name, "--run-dir", run.run_dir, cwd=self.folder,
                           preexec_fn=preexec_fn)
        self.assertEqual(stopped.returncode, 0, stopped.stderr)
        self.assertEqual(run.wait(), 130, run.log())

    def assert_losses_are_undisturbed(self, run, *settings):
        """Of an endless run that has ended: they are those of one that nothing happens to. It."""
        whole = self.run_to_end(*settings, *ENDLESS, "--set",
                                f"train.steps={run.steps()[-1]['step']}")
        self.assertEqual(losses(run.folder / "steps.jsonl"), losses(whole.folder / "steps.jsonl"))
        return whole

    def assert_nothing_left(self):
        wait_until(lambda: not processes_of(self.folder), "every process to end")

    def events(self, run):
        """What `paceline events` tells of the run, in full."""
        listed = paceline("events", run.folder.name, "--run-dir", run.run_dir, "--all", "-o", "json",
                          cwd=self.folder)
        self.assertEqual(listed.returncode, 0, listed.stderr)
        return json.loads(listed.stdout)["events"]

    def generations(self, run):
        return [event for event in self.events(run) if event["event"] == "generation_started"]

    def assert_audit_holds(self, run):
        audit = paceline("audit", run.folder.name, "--run-dir", run.run_dir, cwd=self.folder)
        self.assertEqual(audit.returncode, 0, audit.stdout + audit.stderr)
