"""The batch that every teacher answers, and what transformers answers to it."""

from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from .models import TOKEN_TYPES
from .vocabularies import SIZE

LENGTHS, WIDTH = (9, 5, 1), 9


def input_names(model) -> list[str]:
    segments = ["token_type_ids"] if model.config.model_type in TOKEN_TYPES else []
    return ["input_ids", "attention_mask", *segments]


def make_inputs(model) -> dict[str, torch.Tensor]:
    """Three sequences of 9, 5 and 1 tokens, padded; the second half of a sequence is its second segment."""
    random = np.random.default_rng(7)
    mask = np.array([[int(place < length) for place in range(WIDTH)] for length in LENGTHS])
    ids = np.where(mask == 1, random.integers(5, SIZE, mask.shape), model.config.pad_token_id or 0)
    segments = np.array([[int(length // 2 < place < length) for place in range(WIDTH)] for length in LENGTHS])
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    return {name: torch.tensor(arrays[name], dtype=torch.int64) for name in input_names(model)}


@torch.no_grad()
def answers(model) -> dict[str, np.ndarray]:
    """The inputs, `logits` where the model has a head, and every hidden state as transformers counts them."""
    inputs = make_inputs(model)
    output = model(**inputs, output_hidden_states=True)
    tensors = {name: value.numpy() for name, value in inputs.items()}
    if "logits" in output:
        tensors["logits"] = output.logits.numpy()
    return tensors | {f"hidden_{layer}": state.numpy() for layer, state in enumerate(output.hidden_states)}


def save(tensors: dict[str, np.ndarray], path: Path) -> None:
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
