#!/usr/bin/env python3
"""What orchestration costs: CPU seconds of coordinator and agents over those of the workers, and
the time that the step thread waited on its agent over its time in steps. Read from the
agents' /metrics (the coordinator's CPU from /proc) near the end of a real run.

usage: orchestration.py --bin build/bin --run-file FILE [--steps N] [--set KEY=VALUE ...]
"""
import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import urllib.request


def metrics(address):
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        return response.read().decode()


def total(text, name):
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.M))


def cpu_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--run-file", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--set", action="append", default=[])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as runs:
        overrides = [f"train.steps={arguments.steps}", *arguments.set]
        process = subprocess.Popen(
            [arguments.bin / "paceline", "run", arguments.run_file, "--run-dir", runs]
            + [part for override in overrides for part in ("--set", override)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        last = None
        while process.poll() is None:
            time.sleep(0.5)
            folders = list(pathlib.Path(runs).glob("*/coordinator.json"))
            if not folders:
                continue
            try:
                coordinator = json.loads(folders[0].read_text())
                address = coordinator["metrics_address"]
                with urllib.request.urlopen(f"http://{address}/service-discovery",
                                            timeout=10) as response:
                    targets = [t for group in json.load(response) for t in group["targets"]]
                texts = {target: metrics(target) for target in targets}
                coordinator_cpu = cpu_seconds(coordinator["pid"])
                lines = (folders[0].parent / "steps.jsonl").read_text().splitlines()
            except (OSError, ValueError):
                continue  # before the first, or after the last
            if lines and len(texts) > 1:
                last = (address, texts, coordinator_cpu, [json.loads(line)["step_seconds"] for line in lines])
        if process.returncode != 0 or last is None:
            sys.exit(f"paceline run ended with {process.returncode}")
        address, texts, coordinator, seconds = last
        agents = sum(total(text, "process_cpu_seconds_total")
                     for target, text in texts.items() if target != address)
        everything = "\n".join(text for target, text in texts.items() if target != address)
        workers = total(everything, "paceline_rank_cpu_seconds_total")
        waited = total(everything, "paceline_rank_control_wait_seconds_total")
        stepped = total(everything, "paceline_rank_step_seconds_total")
        median = sorted(seconds)[len(seconds) // 2]
        print(f"{len(seconds)} steps, median {median * 1e3:.0f} ms")
        print(f"CPU seconds: coordinator {coordinator:.2f}, agents {agents:.2f}, "
              f"workers {workers:.2f}")
        print(f"step threads: {stepped:.2f} s in steps, {waited:.4f} s waiting on their agents")
        print(f"orchestration: {(coordinator + agents) / workers:.3%} of the workers' CPU "
              f"+ {waited / stepped:.3%} of the step threads' time")


if __name__ == "__main__":
    main()
