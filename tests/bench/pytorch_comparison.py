#!/usr/bin/env python3
"""Training speed beside PyTorch on CPU: same model, same batch, float32, two cores.

Runs both in turn, A B A B ..., and prints the median tokens/s of each and the median of the
ratios pair by pair. PyTorch: two threads, its faster of eager and torch.compile, and for the
sparse model its faster of a loop over experts and of padded batched products; the whole global
batch in one forward or in micro-batches, whichever is faster. Paceline: two ranks of one thread.

Needs torch (any Python environment that has it); Paceline itself does not.
usage: pytorch_comparison.py --bin build/bin [--model dense|sparse|all] [--pairs N] [--steps N]
"""
import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

VOCAB, SEQUENCE, BATCH = 256, 256, 16
MODELS = {
    "dense": dict(hidden=256, layers=4, heads=8, kv_heads=4, head_dim=32, intermediate=768,
                  experts=0, shared=0, top_k=0, moe_intermediate=0, dense_layers=4),
    "sparse": dict(hidden=128, layers=4, heads=4, kv_heads=2, head_dim=32, intermediate=384,
                   experts=8, shared=1, top_k=2, moe_intermediate=96, dense_layers=1),
}


class RMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-5)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.qkv = nn.Linear(c["hidden"], (c["heads"] + 2 * c["kv_heads"]) * c["head_dim"],
                             bias=False)
        self.out = nn.Linear(c["heads"] * c["head_dim"], c["hidden"], bias=False)

    def forward(self, x, cos, sin):
        c = self.c
        b, s, _ = x.shape
        q, k, v = self.qkv(x).split([c["heads"] * c["head_dim"], c["kv_heads"] * c["head_dim"],
                                     c["kv_heads"] * c["head_dim"]], dim=-1)
        q = q.view(b, s, c["heads"], c["head_dim"]).transpose(1, 2)
        k = k.view(b, s, c["kv_heads"], c["head_dim"]).transpose(1, 2)
        v = v.view(b, s, c["kv_heads"], c["head_dim"]).transpose(1, 2)

        def rotate(t):
            first, second = t.chunk(2, dim=-1)
            return t * cos + torch.cat((-second, first), dim=-1) * sin

        o = F.scaled_dot_product_attention(rotate(q), rotate(k), v, is_causal=True,
                                           enable_gqa=True)
        return self.out(o.transpose(1, 2).reshape(b, s, -1))


class SwiGLU(nn.Module):
    def __init__(self, hidden, inner):
        super().__init__()
        self.gate_up = nn.Linear(hidden, 2 * inner, bias=False)
        self.down = nn.Linear(inner, hidden, bias=False)

    def forward(self, x):
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Sparse(nn.Module):
    """Sigmoid gate, top-k, shared expert. `how`: loop, or padded (no token is dropped)."""

    def __init__(self, c, how):
        super().__init__()
        self.c, self.how = c, how
        self.gate = nn.Linear(c["hidden"], c["experts"], bias=False)
        self.register_buffer("bias", torch.zeros(c["experts"]))
        inner = c["moe_intermediate"]
        self.gate_up = nn.Parameter(torch.randn(c["experts"], c["hidden"], 2 * inner) * 0.02)
        self.down = nn.Parameter(torch.randn(c["experts"], inner, c["hidden"]) * 0.02)
        self.shared = SwiGLU(c["hidden"], inner * c["shared"])

    def forward(self, x):
        c = self.c
        flat = x.reshape(-1, c["hidden"])
        scores = torch.sigmoid(self.gate(flat))
        chosen = torch.topk(scores + self.bias, c["top_k"], dim=-1).indices
        weights = scores.gather(1, chosen)
        weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        experts = chosen.reshape(-1)
        order = torch.argsort(experts, stable=True)
        tokens = order // c["top_k"]
        counts = torch.bincount(experts, minlength=c["experts"])
        rows = flat[tokens]
        if self.how == "loop":
            out = torch.cat([self.expert(part, self.gate_up[e], self.down[e])
                             for e, part in enumerate(rows.split(counts.tolist()))])
        else:
            starts = counts.cumsum(0) - counts
            sorted_experts = experts[order]
            place = torch.arange(rows.shape[0]) - starts[sorted_experts]
            padded = rows.new_zeros(c["experts"], int(counts.max()), c["hidden"])
            padded = padded.index_put((sorted_experts, place), rows)
            gate, up = torch.bmm(padded, self.gate_up).chunk(2, dim=-1)
            out = torch.bmm(F.silu(gate) * up, self.down)[sorted_experts, place]
        out = out * weights.reshape(-1)[order].unsqueeze(1)
        mixed = torch.zeros_like(flat).index_add(0, tokens, out)
        return (mixed + self.shared(flat)).reshape(x.shape)

    @staticmethod
    def expert(x, gate_up, down):
        gate, up = (x @ gate_up).chunk(2, dim=-1)
        return (F.silu(gate) * up) @ down


class Model(nn.Module):
    def __init__(self, c, how):
        super().__init__()
        self.embed = nn.Embedding(VOCAB, c["hidden"])
        self.norms = nn.ModuleList(RMSNorm(c["hidden"]) for _ in range(2 * c["layers"]))
        self.attention = nn.ModuleList(Attention(c) for _ in range(c["layers"]))
        self.mlp = nn.ModuleList(
            SwiGLU(c["hidden"], c["intermediate"]) if layer < c["dense_layers"] else Sparse(c, how)
            for layer in range(c["layers"]))
        self.norm = RMSNorm(c["hidden"])
        self.head = nn.Linear(c["hidden"], VOCAB, bias=False)
        angles = torch.outer(torch.arange(SEQUENCE).float(),
                             10000.0 ** (-torch.arange(0, c["head_dim"], 2) / c["head_dim"]))
        self.register_buffer("cos", torch.cat((angles, angles), -1).cos())
        self.register_buffer("sin", torch.cat((angles, angles), -1).sin())
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens, targets):
        x = self.embed(tokens)
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp)):
            x = x + attention(self.norms[2 * i](x), self.cos, self.sin)
            x = x + mlp(self.norms[2 * i + 1](x))
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.view(-1, VOCAB), targets.reshape(-1))


class TorchTrainer:
    def __init__(self, name, how, compiled, micro):
        torch.manual_seed(1)
        self.model = Model(MODELS[name], how)
        self.run = torch.compile(self.model) if compiled else self.model
        self.micro = micro
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, betas=(0.9, 0.95),
                                           fused=True)
        self.label = f"{'compiled' if compiled else 'eager'}, {how}, micro-batch {micro}"

    def seconds_per_step(self, steps, text):
        times = []
        for step in range(steps):
            start = torch.randint(0, len(text) - SEQUENCE - 1, (BATCH,))
            batch = torch.stack([text[s:s + SEQUENCE + 1] for s in start]).long()
            begin = time.perf_counter()
            self.optimizer.zero_grad(set_to_none=True)
            for i in range(0, BATCH, self.micro):
                part = batch[i:i + self.micro]
                (self.run(part[:, :-1], part[:, 1:]) * (self.micro / BATCH)).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            times.append(time.perf_counter() - begin)
        return statistics.median(times)


def fastest_torch(name, text):
    best = None
    hows = ["loop", "padded"] if MODELS[name]["experts"] else ["loop"]
    for how in hows:
        for compiled in (False, True):
            for micro in (4, BATCH):
                try:
                    trainer = TorchTrainer(name, how, compiled, micro)
                    trainer.seconds_per_step(3, text)
                    seconds = trainer.seconds_per_step(5, text)
                except Exception as error:  # torch.compile may lack a compiler or an operator
                    print(f"  PyTorch {how}, compiled={compiled}: {str(error).splitlines()[0]}")
                    continue
                print(f"  PyTorch {trainer.label}: {BATCH * SEQUENCE / seconds:.0f} tokens/s")
                if best is None or seconds < best[0]:
                    best = (seconds, trainer)
    return best[1]


def run_file(name, steps, reduction, micro):
    c = MODELS[name]
    return f"""
[run]
name = "bench"
[model]
vocab_size = {VOCAB}
hidden_size = {c["hidden"]}
num_hidden_layers = {c["layers"]}
num_attention_heads = {c["heads"]}
num_key_value_heads = {c["kv_heads"]}
head_dim = {c["head_dim"]}
intermediate_size = {c["intermediate"]}
n_routed_experts = {c["experts"]}
n_shared_experts = {c["shared"]}
num_experts_per_tok = {c["top_k"]}
moe_intermediate_size = {c["moe_intermediate"]}
first_k_dense_replace = {c["dense_layers"]}
scoring_func = "sigmoid"
[data]
train = "corpus/train"
valid = []
[train]
sequence_length = {SEQUENCE}
global_batch_size = {BATCH}
micro_batch_size = {micro}
steps = {steps}
learning_rate = 1e-3
min_learning_rate = 1e-4
warmup_steps = 1
reduction = "{reduction}"
[launch]
nodes = 1
slots_per_node = 2
"""


def paceline_seconds_per_step(binaries, folder, name, steps, reduction, micro):
    (folder / "run.toml").write_text(run_file(name, steps, reduction, micro))
    done = subprocess.run([binaries / "paceline", "run", "run.toml", "--run-dir", "runs", "-o",
                           "json"], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"paceline run failed:\n{done.stderr}")
    run_id = json.loads(done.stdout)["run_id"]
    lines = [json.loads(line)
             for line in (folder / "runs" / run_id / "steps.jsonl").read_text().splitlines()]
    return statistics.median(line["step_seconds"] for line in lines[2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, required=True)
    parser.add_argument("--model", choices=["dense", "sparse", "all"], default="all")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--reduction", choices=["exact", "fast"], default="exact")
    parser.add_argument("--micro", type=int, default=2)
    arguments = parser.parse_args()
    arguments.bin = arguments.bin.resolve()
    torch.set_num_threads(2)
    text = torch.randint(32, 127, (400_000,), dtype=torch.uint8,
                         generator=torch.Generator().manual_seed(1))
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads; "
          f"Paceline: 2 ranks of 1 thread, reduction {arguments.reduction}, "
          f"micro-batch {arguments.micro}; batch {BATCH} x {SEQUENCE}")
    with tempfile.TemporaryDirectory(prefix="paceline-bench-") as name:
        folder = pathlib.Path(name)
        (folder / "text.txt").write_bytes(bytes(text.tolist()))
        subprocess.run([arguments.bin / "paceline", "data", "prepare", "--input", "text.txt",
                        "--output", "corpus", "--valid-fraction", "0.01"], cwd=folder, check=True,
                       capture_output=True)
        for model in ["dense", "sparse"] if arguments.model == "all" else [arguments.model]:
            print(f"{model}:")
            rival = fastest_torch(model, text)
            ours, theirs = [], []
            for _ in range(arguments.pairs):
                ours.append(paceline_seconds_per_step(arguments.bin, folder, model,
                                                      arguments.steps, arguments.reduction,
                                                      arguments.micro))
                theirs.append(rival.seconds_per_step(arguments.steps, text))
            tokens = BATCH * SEQUENCE
            ratios = [b / a for a, b in zip(ours, theirs)]
            print(f"  fastest PyTorch: {rival.label}")
            print(f"  tokens/s, median: Paceline {tokens / statistics.median(ours):.0f}, "
                  f"PyTorch {tokens / statistics.median(theirs):.0f}")
            print(f"  ratio, median of {len(ratios)} pairs: {statistics.median(ratios):.2f} "
                  f"(min {min(ratios):.2f}, max {max(ratios):.2f})")


if __name__ == "__main__":
    main()
