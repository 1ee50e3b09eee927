"""What torchrun runs beside Paceline in recovery.py: the quickstart's model and batch, data
parallel (DistributedDataParallel over gloo, a thread a rank). Rank 0 saves the state every ten
steps; all read it when they begin.

usage, under torchrun: torchrun_training.py FOLDER     (one in shared memory)
Writes FOLDER/state.pt, FOLDER/steps (a line a step, by rank 0), and FOLDER/begins: a line
"TIME RANK" for each process, when it is about to compute its first step.
"""
import os
import pathlib
import signal
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from pytorch_comparison import BATCH, MODELS, SEQUENCE, VOCAB, Model

SAVE_STEPS = 10


def main():
    folder = pathlib.Path(sys.argv[1])
    # A forked worker has its agent's handler, which runs only when gloo returns.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)
    torch.manual_seed(1)
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    model = Model(MODELS["sparse"], "loop")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), fused=True)
    step = 0
    state_path = folder / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, mmap=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step = state["step"]
    parallel = DistributedDataParallel(model)
    with open(folder / "begins", "a", encoding="ascii") as begins:
        begins.write(f"{time.time():.6f} {rank}\n")
    while True:
        tokens = torch.randint(0, VOCAB, (BATCH // size, SEQUENCE + 1))
        optimizer.zero_grad(set_to_none=True)
        parallel(tokens[:, :-1], tokens[:, 1:]).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if rank != 0:
            continue
        with open(folder / "steps", "a", encoding="ascii") as steps:
            steps.write(f"{step}\n")
        if step % SAVE_STEPS == 0:
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "step": step}, folder / "state.new")
            os.replace(folder / "state.new", state_path)


if __name__ == "__main__":
    main()
