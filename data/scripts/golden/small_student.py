"""student-small/: every gradient of a random two-layer DistilBERT, and ten steps of it."""

from pathlib import Path

import numpy as np
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM

from .files import save
from .packed import IGNORED, Batch, descending
from .recipe import TEMPERATURE, Targets, losses, ten_steps
from .students import randomise, save_student


def random_student() -> DistilBertForMaskedLM:
    """Two narrow layers."""
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=96, n_layers=2, dim=16, n_heads=2, hidden_dim=32, max_position_embeddings=24, dropout=0.0, attention_dropout=0.0
    )
    config._attn_implementation = "eager"
    model = DistilBertForMaskedLM(config)
    return randomise(model)


def random_batches() -> list[tuple[Batch, Targets]]:
    """Three batches with a peaked teacher of 96 ids, 8 of them kept."""
    random, made = np.random.default_rng(1), []
    for lengths in ((7, 12, 1, 9), (24, 3), (5, 5, 11)):
        batch = Batch([random.integers(5, 96, length) for length in lengths])
        tokens = int(batch.offsets[-1])
        asked = np.sort(random.choice(tokens, size=tokens * 3 // 4, replace=False)).astype(np.int64)
        labels = np.where(random.random(len(asked)) < 0.3, random.integers(5, 96, len(asked)), IGNORED)
        labels[0] = 17
        logits = random.normal(size=(len(asked), 96)) * 3.0
        top_ids = descending(logits, 8)
        tempered = logits / TEMPERATURE
        log_probabilities = tempered - np.log(np.exp(tempered).sum(axis=1, keepdims=True))
        kept = np.take_along_axis(log_probabilities, top_ids, axis=1).astype(np.float32)
        hidden = random.normal(size=(tokens, 16)).astype(np.float32)
        made.append((batch, Targets(asked, labels, top_ids, kept, hidden)))
    return made


def make_small_student(out: Path) -> None:
    directory = out / "student-small"
    directory.mkdir(parents=True, exist_ok=True)
    batches, tensors = random_batches(), {}
    for number, (batch, targets) in enumerate(batches):
        tensors |= {
            f"batch.{number}.offsets": batch.offsets,
            f"batch.{number}.input_ids": np.concatenate(batch.sequences),
            f"batch.{number}.asked": targets.asked.numpy(),
            f"batch.{number}.labels": targets.labels.numpy(),
            f"batch.{number}.top_ids": targets.top_ids.numpy(),
            f"batch.{number}.log_probabilities": targets.log_probabilities.numpy(),
            f"batch.{number}.hidden": targets.hidden.numpy(),
        }
    for precision, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        model = random_student()
        if precision == "float64":
            save_student(model, directory)
        model = model.to(dtype)
        hidden, logits, parts = losses(model, *batches[0])
        parts[0].backward()
        results = {"hidden": hidden, "logits": logits, "loss": parts}
        results |= {f"gradient.{name}": parameter.grad.clone() for name, parameter in model.named_parameters()}
        results |= ten_steps(dict(model.named_parameters()), lambda step: losses(model, *batches[step % len(batches)])[2])
        tensors |= {f"{precision}.{name}": value.detach().numpy() for name, value in results.items()}
    save(tensors, directory / "golden.safetensors")
