"""families/: a small random student of each family, with an activation of its own, under the default recipe."""

from pathlib import Path

import numpy as np
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertForMaskedLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
)

from .files import save
from .objectives import flat
from .packed import IGNORED, Batch, descending
from .recipe import TEMPERATURE, Targets, losses, ten_steps
from .students import randomise, save_student

VOCABULARY, WIDTH, BETWEEN, LONGEST, KEPT, PADDING = 20, 8, 6, 6, 5, 1


def bert_settings(layers: int, activation: str, types: int, positions: int = LONGEST) -> dict:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": BETWEEN,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "hidden_act": activation,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "pad_token_id": PADDING,
    }


def model_of(family: str) -> PreTrainedModel:
    """An activation of each kind but GELU, which student-small has. RoBERTa's head uses GELU whatever the activation."""
    torch.manual_seed(4)
    if family == "distilbert":
        config = DistilBertConfig(
            vocab_size=VOCABULARY, n_layers=1, dim=WIDTH, n_heads=2, hidden_dim=BETWEEN, max_position_embeddings=LONGEST, activation="silu",
            dropout=0.0, attention_dropout=0.0, pad_token_id=PADDING,
        )  # fmt: skip
        model = DistilBertForMaskedLM
    elif family == "bert":
        config, model = BertConfig(**bert_settings(2, "relu", 2)), BertForMaskedLM
    elif family == "roberta":
        config, model = RobertaConfig(**bert_settings(1, "gelu_new", 1, LONGEST + PADDING + 1)), RobertaForMaskedLM
    else:
        config, model = AlbertConfig(embedding_size=4, **bert_settings(2, "gelu_new", 2)), AlbertForMaskedLM
    config._attn_implementation = "eager"
    return randomise(model(config))


def random_batch(with_types: bool) -> tuple[Batch, dict[str, np.ndarray]]:
    random = np.random.default_rng(5)
    sequences = [random.integers(5, VOCABULARY, length) for length in (6, 2, 1, 5)]
    types = [(np.arange(len(each)) >= len(each) // 2).astype(np.int64) for each in sequences]
    batch = Batch(sequences, types if with_types else None, PADDING)
    tokens = int(batch.offsets[-1])
    asked = np.sort(random.choice(tokens, size=9, replace=False)).astype(np.int64)
    labels = np.where(random.random(len(asked)) < 0.4, random.integers(5, VOCABULARY, len(asked)), IGNORED)
    labels[0] = 17
    logits = 2.0 * random.normal(size=(len(asked), VOCABULARY))
    top_ids = descending(logits, KEPT)
    logs = torch.log_softmax(torch.tensor(logits) / TEMPERATURE, dim=1).numpy()
    return batch, {
        "offsets": batch.offsets,
        "input_ids": np.concatenate(sequences),
        **({"token_type_ids": np.concatenate(types)} if with_types else {}),
        "asked": asked,
        "labels": labels,
        "top_ids": top_ids,
        "log_probabilities": np.take_along_axis(logs, top_ids, axis=1).astype(np.float32),
        "hidden": random.normal(size=(tokens, WIDTH)).astype(np.float32),
    }


def make_families(out: Path) -> None:
    for family in ("distilbert", "bert", "roberta", "albert"):
        model = model_of(family)
        save_student(model, out / family)
        model = model.double()
        batch, tensors = random_batch(with_types=family in ("bert", "albert"))
        targets = Targets(*(tensors[name] for name in ("asked", "labels", "top_ids", "log_probabilities", "hidden")))
        hidden, logits, parts = losses(model, batch, targets)
        parts[0].backward()
        parameters = dict(model.named_parameters())
        gradients = {name: each.grad.clone() for name, each in parameters.items()}
        steps = ten_steps(parameters, lambda step: losses(model, batch, targets)[2])
        results = {
            "states": hidden.detach().numpy(),
            "logits": logits.detach().numpy(),
            "gradient": flat(gradients),
            "losses": steps["steps.loss"].numpy(),
            "after": flat({name: steps[f"after.{name}"].float() for name in parameters}),
        }
        save(tensors | results, out / family / "golden.safetensors")
