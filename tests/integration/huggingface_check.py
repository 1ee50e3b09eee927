#!/usr/bin/env python3
"""Compares exported and imported models with Hugging Face's transformers, logit by logit.

Wants torch, transformers, safetensors and numpy, so it is run by hand, in an environment of its
own:  python3 tests/integration/huggingface_check.py BUILD-FOLDER [WORK-FOLDER]

For each of Llama, Mixtral and GLM-4 MoE: a model trained here for some steps is exported and loaded
by transformers; one that transformers has made at random is imported, compared, and trained on.
"""
import json
import pathlib
import subprocess
import sys
import tempfile

import torch
from transformers import (AutoModelForCausalLM, AutoTokenizer, Glm4MoeConfig, LlamaConfig,
                          MixtralConfig)

TOLERANCE = 1e-4
TEXT = "In the beginning was the word, and the word was with the \u00fcbermensch. 0123456789\n" * 400
TOKENS = [(7 * i * i + 13 * i + 5) % 256 for i in range(48)]

SIZES = dict(vocab_size=256, hidden_size=64, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, head_dim=32)
# Of a run file's [model] section.
OURS = {
    "llama": dict(SIZES, head_dim=16, intermediate_size=96, rope_theta=50000.0),
    "llama-tied": dict(SIZES, intermediate_size=96, tie_word_embeddings=True),
    "mixtral": dict(SIZES, n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=48,
                    scoring_func="softmax", router_bias_update_rate=0.0),
    "glm4_moe": dict(SIZES, intermediate_size=96, n_routed_experts=8, n_shared_experts=2,
                     num_experts_per_tok=3, moe_intermediate_size=32, first_k_dense_replace=1,
                     scoring_func="sigmoid", routed_scaling_factor=1.5,
                     router_bias_update_rate=0.02),
    "glm4_moe-no-shared": dict(SIZES, n_routed_experts=4, num_experts_per_tok=2,
                               moe_intermediate_size=32, scoring_func="sigmoid",
                               norm_topk_prob=False, router_bias_update_rate=0.0),
}
CLASSES = {"llama": "LlamaForCausalLM", "mixtral": "MixtralForCausalLM",
           "glm4_moe": "Glm4MoeForCausalLM"}
THEIRS = {
    "llama": lambda: LlamaConfig(**SIZES, intermediate_size=96, max_position_embeddings=128),
    "mixtral": lambda: MixtralConfig(**SIZES, intermediate_size=48, num_local_experts=4,
                                     num_experts_per_tok=2, max_position_embeddings=128),
    "glm4_moe": lambda: Glm4MoeConfig(**SIZES, intermediate_size=96, moe_intermediate_size=32,
                                      n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=3,
                                      first_k_dense_replace=1, routed_scaling_factor=2.5,
                                      partial_rotary_factor=1.0, max_position_embeddings=128),
}


class Check:
    def __init__(self, build, work):
        self.build = pathlib.Path(build).resolve()
        self.work = pathlib.Path(work).resolve()
        self.failures = 0
        (self.work / "text").write_text(TEXT)
        self.paceline("data", "prepare", "--input", self.work / "text", "--output",
                      self.work / "corpus", "--valid-fraction", "0", "--force")

    def paceline(self, *arguments):
        command = [str(self.build / "bin/paceline"), *map(str, arguments)]
        result = subprocess.run(command, capture_output=True, text=True, cwd=self.work)
        if result.returncode != 0:
            sys.exit(f"{' '.join(command)}: exit code {result.returncode}\n{result.stderr}")
        return result.stdout

    def our_logits(self, checkpoint):
        result = subprocess.run([str(self.build / "tests/checkpoint_logits"), str(checkpoint),
                                 *map(str, TOKENS)], capture_output=True, text=True, check=True)
        answer = json.loads(result.stdout)
        return torch.tensor(answer["logits"]).view(len(TOKENS), answer["vocab_size"])

    def their_logits(self, model):
        with torch.no_grad():
            return model.eval()(torch.tensor([TOKENS])).logits[0].float()

    def report(self, what, ours, theirs):
        difference = (ours - theirs).abs().max().item()
        # So that a NaN fails.
        good = difference <= TOLERANCE
        self.failures += not good
        print(f"{'ok  ' if good else 'FAIL'} {what}: largest difference of a logit {difference:.3g}, "
              f"of logits up to {theirs.abs().max().item():.3g}")

    def expect(self, what, holds):
        self.failures += not holds
        print(f"{'ok  ' if holds else 'FAIL'} {what}")

    def train(self, name, model_toml, steps, init=None):
        """Trains on the tiny corpus; returns its last checkpoint and the losses."""
        run_file = self.work / f"{name}.toml"
        init_line = f'[checkpoint]\ninit = "{init}"\n' if init else ""
        run_file.write_text(
            f'[run]\nname = "{name}"\n{model_toml}[data]\ntrain = "corpus/train"\n'
            f"[train]\nsequence_length = 64\nglobal_batch_size = 4\nmicro_batch_size = 2\n"
            f"steps = {steps}\nlearning_rate = 3e-3\n{init_line}"
            "[launch]\nslots_per_node = 2\n")
        runs = self.work / f"runs-{name}"
        self.paceline("run", run_file, "--run-dir", runs)
        folder = max(runs.iterdir(), key=lambda path: path.stat().st_mtime)
        lines = (folder / "steps.jsonl").read_text().splitlines()
        return (max((folder / "checkpoints").glob("step-*")),
                [json.loads(line)["loss"] for line in lines])

    def export(self, name, section):
        def value(v):
            return json.dumps(v)
        toml = "[model]\n" + "".join(f"{key} = {value(v)}\n" for key, v in section.items())
        checkpoint, losses = self.train(f"own-{name}", toml, 12)
        self.expect(f"{name} learned: loss {losses[0]:.4f} to {losses[-1]:.4f}",
                    losses[-1] < losses[0])
        self.paceline("checkpoint", "verify", checkpoint)
        out = self.work / f"exported-{name}"
        self.paceline("checkpoint", "export", checkpoint, "--format", "huggingface", "--output",
                      out, "--force")
        model, info = AutoModelForCausalLM.from_pretrained(out, torch_dtype=torch.float32,
                                                           output_loading_info=True)
        wanted = CLASSES[name.split("-")[0]]
        self.expect(f"{name} is {wanted}, every tensor used",
                    type(model).__name__ == wanted and not info["missing_keys"]
                    and not info["unexpected_keys"] and not info["mismatched_keys"])
        biases = [b for n, b in model.named_buffers() if n.endswith("e_score_correction_bias")]
        if section.get("router_bias_update_rate", 0) > 0:
            self.expect(f"{name}: balancing biases are not zero", any(b.any() for b in biases))
        ours = self.our_logits(checkpoint)
        self.report(f"{name} exported", ours, self.their_logits(model))
        tokenizer = AutoTokenizer.from_pretrained(out)
        text = "Gr\u00fc\u00dfe, 0 \n\t~ \u65e5"
        self.expect(f"{name}: the tokenizer's tokens are the text's bytes, and decode to it",
                    tokenizer(text)["input_ids"] == list(text.encode())
                    and tokenizer.decode(list(text.encode())) == text)

        half = self.work / f"exported-{name}-bfloat16"
        self.paceline("checkpoint", "export", checkpoint, "--output", half, "--dtype", "bfloat16",
                      "--force")
        rounded = AutoModelForCausalLM.from_pretrained(half, torch_dtype=torch.float32).state_dict()
        self.expect(f"{name}: bfloat16 rounds as torch does", all(
            torch.equal(rounded[n], w if n.endswith("e_score_correction_bias")
                        else w.to(torch.bfloat16).float())
            for n, w in model.state_dict().items()))

        back = self.work / f"back-{name}"
        self.paceline("checkpoint", "import", out, "--output", back, "--force")
        self.expect(f"{name} imported again has the same logits, bit for bit",
                    torch.equal(self.our_logits(back), ours))

    def import_(self, name):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(THEIRS[name]())
        with torch.no_grad():
            for n, buffer in model.named_buffers():
                if n.endswith("e_score_correction_bias"):
                    buffer.copy_(torch.linspace(-0.1, 0.1, buffer.numel()))
            for n, weight in model.named_parameters():
                if "norm" in n:
                    weight.add_(torch.randn_like(weight) * 0.1)
        for dtype, shards in (("float32", "100GB"), ("float32", "100KB"), ("bfloat16", "100GB"),
                              ("float16", "100GB")):
            theirs = model.to(getattr(torch, dtype))
            folder = self.work / f"random-{name}-{dtype}-{shards}"
            theirs.save_pretrained(folder, max_shard_size=shards)
            reloaded = AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32)
            checkpoint = self.work / f"imported-{name}-{dtype}-{shards}"
            self.paceline("checkpoint", "import", folder, "--output", checkpoint, "--force")
            files = len(list(folder.glob("*.safetensors")))
            self.report(f"{name} imported from {dtype}, {files} files",
                        self.our_logits(checkpoint), self.their_logits(reloaded))
            if dtype != "float32":
                continue
            _, losses = self.train(f"on-{name}-{shards}", (checkpoint / "model.toml").read_text(),
                                   8, init=checkpoint)
            self.expect(f"{name} trains on from it: loss {losses[0]:.4f} to {losses[-1]:.4f}",
                        losses[-1] < losses[0])
            text = self.paceline("generate", "--checkpoint", checkpoint, "--prompt", "In the",
                                 "--tokens", "4", "--temperature", "0", "-o", "json")
            self.expect(f"{name}: generate reads it", json.loads(text)["tokens"] == 4)


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="paceline-hf-") as scratch:
        work = pathlib.Path(sys.argv[2] if len(sys.argv) == 3 else scratch)
        work.mkdir(parents=True, exist_ok=True)
        check = Check(sys.argv[1], work)
        for name, section in OURS.items():
            check.export(name, section)
        for name in THEIRS:
            check.import_(name)
    print(f"{check.failures} failures")
    sys.exit(1 if check.failures else 0)


if __name__ == "__main__":
    main()
