"""teacher.safetensors: the answers of the teacher of data/teacher."""

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from .files import DATA, save
from .initialisers import demo_teacher
from .packed import IGNORED, Batch, descending, forward

TEMPERATURES = [1.0, 2.0, 4.0]


def log_normalisers(logits: torch.Tensor) -> torch.Tensor:
    """[rows, temperature]: log of the sum of exp((z - z_max) / T)."""
    relative = logits - logits.max(dim=1, keepdim=True).values
    return torch.stack([torch.logsumexp(relative / temperature, dim=1) for temperature in TEMPERATURES], dim=1)


def mask(sequence: np.ndarray, special: set[int], mask_id: int, vocabulary: int, random: np.random.Generator):
    """15 % of the non-special positions; of these 80 % the mask token, 10 % any token, 10 % unchanged. (ids, labels)"""
    ids, labels = sequence.copy(), np.full_like(sequence, IGNORED)
    for position, token in enumerate(sequence):
        if int(token) in special or random.random() >= 0.15:
            continue
        labels[position] = token
        draw = random.random()
        ids[position] = mask_id if draw < 0.8 else random.integers(15, vocabulary) if draw < 0.9 else token
    return ids, labels


def held_out_batch() -> tuple[Batch, np.ndarray, np.ndarray]:
    """Eight short reactions of different lengths, masked. (batch, labels [tokens], asked [rows])"""
    tokenizer = Tokenizer.from_file(str(DATA / "teacher" / "tokenizer.json"))
    special = {tokenizer.token_to_id(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    lines = (DATA / "corpus" / "heldout.txt").read_text().splitlines()
    encoded = [np.array(tokenizer.encode(line).ids, dtype=np.int64) for line in lines]
    chosen = [ids for ids in encoded if 12 <= len(ids) <= 32][:8]
    random = np.random.default_rng(0)
    masked = [mask(ids, special, tokenizer.token_to_id("[MASK]"), tokenizer.get_vocab_size(), random) for ids in chosen]
    asked = np.flatnonzero(~np.isin(np.concatenate(chosen), list(special))).astype(np.int64)
    return Batch([ids for ids, _ in masked]), np.concatenate([labels for _, labels in masked]), asked


def make_teacher(out: Path) -> tuple[Batch, dict]:
    batch, labels, asked = held_out_batch()
    model = demo_teacher().double().eval()
    with torch.no_grad():
        logits, hidden = forward(model, batch)
    rows = logits[asked]
    top_ids = descending(rows.numpy(), 64)
    largest = rows.max(dim=1, keepdim=True).values
    tensors = {
        "offsets": batch.offsets,
        "input_ids": np.concatenate(batch.sequences),
        "labels": labels,
        "asked": asked,
        "max_logit": largest[:, 0].numpy(),
        "top_ids": top_ids,
        "top_logits": torch.gather(rows - largest, 1, torch.tensor(top_ids)).numpy(),
        "temperatures": np.array(TEMPERATURES),
        "log_z": log_normalisers(rows).numpy(),
        "logits_0": logits[: batch.offsets[1]].float().numpy(),
        # Half of the sequences for the inner layers: the repository is to stay small.
        **{f"hidden_{layer}": hidden[layer][: batch.offsets[4]].float().numpy() for layer in (0, 6)},
        "hidden_12": hidden[12].float().numpy(),
    }
    save(tensors, out / "teacher.safetensors")
    return batch, tensors
