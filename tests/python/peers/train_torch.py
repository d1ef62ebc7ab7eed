#!/usr/bin/env python3
"""The PyTorch peer of `train`: the same student, the same loss on the same shards, fused AdamW, 2 threads.

    python tests/python/peers/train_torch.py --cache CACHE --layers 6 --rows 4 [--mode compile] [--dtype bf16]

Reads commands from standard input, a line each, and answers each with a line of JSON: `steps N` trains N steps, `quit` ends. So the driver can
let it wait while another program is timed.

With `--device cuda` all of it runs on the GPU: a batch is pinned by the thread that collates it, and copied at the start of its step.

The loss is 5 T^2 KL(teacher || student) with the mass outside the stored ids as one more class, over every asked position; 2 x cross-entropy over the
masked ones; 1 - cosine of the last hidden states over every token. The head is applied to asked positions alone. Batches are read, decoded and
collated on a thread of their own while the step before is computed.
"""

import argparse
import json
import math
import queue
import statistics
import sys
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cache_rows import lists, manifest, shards
from transformers import DistilBertConfig, DistilBertForMaskedLM

CE, MLM, COSINE = 5.0, 2.0, 1.0
COLUMNS = ["input_ids", "labels", "positions", "top_ids", "top_logits", "log_z"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True, help="sequences of a batch")
    parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], default="fp32", help="bf16 is autocast")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


class Batches:
    """An endless stream of batches: each epoch the rows in another order, sorted by length within some batches, so that little is padded."""

    def __init__(self, cache: Path, rows: int, pinned: bool = False):
        spec = manifest(cache)["spec"]
        self.cache, self.rows, self.pinned, self.ready = cache, rows, pinned, queue.Queue(maxsize=2)
        self.hidden = f"hidden_{spec['hidden_layers'][-1]}"
        threading.Thread(target=self.fill, daemon=True).start()

    def fill(self) -> None:
        order = np.random.default_rng(0)
        while True:
            for table in shards(self.cache, [*COLUMNS, self.hidden]):
                columns = {name: lists(table, name) for name in [*COLUMNS, self.hidden]}
                lengths = np.array([len(ids) for ids in columns["input_ids"]])
                shuffled = order.permutation(len(lengths))
                for start in range(0, len(shuffled), 32 * self.rows):
                    near = shuffled[start : start + 32 * self.rows]
                    near = near[np.argsort(lengths[near], kind="stable")]
                    groups = [near[at : at + self.rows] for at in range(0, len(near), self.rows)]
                    for group in order.permutation(len(groups)):
                        # A smaller last batch would only make the compiled step compile again.
                        if len(groups[group]) == self.rows:
                            self.ready.put(self.collate(columns, groups[group]))

    def collate(self, columns: dict, group: np.ndarray) -> dict:
        def joined(name):
            return np.concatenate([columns[name][row] for row in group])

        lengths = [len(columns["input_ids"][row]) for row in group]
        longest = max(lengths)
        ids, mask = np.zeros((len(group), longest), np.int64), np.zeros((len(group), longest), np.int64)
        for at, row in enumerate(group):
            ids[at, : lengths[at]], mask[at, : lengths[at]] = columns["input_ids"][row], 1
        asked = np.concatenate([at * longest + columns["positions"][row].astype(np.int64) for at, row in enumerate(group)])
        labels = np.concatenate([columns["labels"][row][columns["positions"][row]] for row in group]).astype(np.int64)
        log_probabilities = joined("top_logits") - joined("log_z")[:, :1]
        masked = np.flatnonzero(labels >= 0)
        real = np.flatnonzero(mask.reshape(-1))
        batch = {
            "ids": ids,
            "asked": asked,
            "masked": masked,
            "gold": labels[masked],
            "top_ids": joined("top_ids").astype(np.int64),
            "log_probabilities": log_probabilities.astype(np.float32),
            "hidden": joined(self.hidden).astype(np.float32),
        }
        if len(real) < mask.size:
            batch |= {"mask": mask, "real": real}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in batch.items()}
        return {name: tensor.pin_memory() if self.pinned else tensor for name, tensor in tensors.items()} | {"tokens": sum(lengths)}


def student(cache: Path, layers: int, dropout: float) -> DistilBertForMaskedLM:
    teacher = json.loads((cache / "teacher" / "config.json").read_text())
    config = DistilBertConfig(
        vocab_size=teacher["vocab_size"],
        n_layers=layers,
        dim=teacher["hidden_size"],
        n_heads=teacher["num_attention_heads"],
        hidden_dim=teacher["intermediate_size"],
        max_position_embeddings=teacher["max_position_embeddings"],
        dropout=dropout,
        attention_dropout=dropout,
    )
    torch.manual_seed(0)
    return DistilBertForMaskedLM(config).train()


def loss_of(model: DistilBertForMaskedLM, temperature: float):
    def loss(ids, asked, masked, gold, top_ids, log_probabilities, hidden, mask=None, real=None):
        states = model.distilbert(input_ids=ids, attention_mask=mask).last_hidden_state
        states = states.reshape(-1, states.shape[-1])
        rows = states.index_select(0, asked)
        logits = model.vocab_projector(model.vocab_layer_norm(F.gelu(model.vocab_transform(rows)))).float()
        tempered = logits / temperature
        student_log = tempered.gather(1, top_ids) - torch.logsumexp(tempered, 1, keepdim=True)
        teacher = log_probabilities.exp()
        # The mass outside the stored ids, on both sides; the clamps keep a rounded sum of 1 from log(0).
        outside_teacher = (1 - teacher.sum(1)).clamp(min=1e-7)
        outside_student = (1 - student_log.exp().sum(1)).clamp(min=1e-7)
        kl = (teacher * (log_probabilities - student_log)).sum() + (outside_teacher * (outside_teacher.log() - outside_student.log())).sum()
        cross_entropy = F.cross_entropy(logits.index_select(0, masked), gold)
        seen = states if real is None else states.index_select(0, real)
        cosine = 1 - F.cosine_similarity(seen.float(), hidden, dim=1).mean()
        return CE * temperature**2 * kl / len(asked) + MLM * cross_entropy + COSINE * cosine

    return loss


def peak_megabytes() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1.024e-3
    return math.nan


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    model = student(options.cache, options.layers, options.dropout).to(options.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-4, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0, fused=True)
    loss_function = loss_of(model, manifest(options.cache)["spec"]["temperatures"][0])
    if options.mode == "compile":
        loss_function = torch.compile(loss_function)
    batches = Batches(options.cache, options.rows, pinned=options.device == "cuda")

    def step() -> tuple[int, float]:
        batch = batches.ready.get()
        tokens = batch.pop("tokens")
        batch = {name: tensor.to(options.device, non_blocking=True) for name, tensor in batch.items()}
        with torch.autocast(options.device, dtype=torch.bfloat16, enabled=options.dtype == "bf16"):
            loss = loss_function(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return tokens, loss.item()

    for line in sys.stdin:
        word, *count = line.split()
        if word == "quit":
            break
        seconds, tokens, losses = [], 0, []
        for _ in range(int(count[0])):
            started = time.perf_counter()
            made, loss = step()
            seconds.append(time.perf_counter() - started)
            tokens += made
            losses.append(loss)
        answer = {"tokens": tokens, "seconds": sum(seconds), "step_ms": 1e3 * statistics.median(seconds), "loss": losses[-1], "peak_mb": peak_megabytes()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
