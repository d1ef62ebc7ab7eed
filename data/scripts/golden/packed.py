"""Packed batches: sequences laid one after the other, without padding."""

import numpy as np
import torch

IGNORED = -100


def pad(sequences: list[np.ndarray], value: int) -> torch.Tensor:
    """[sequence, position]"""
    width = max(map(len, sequences))
    return torch.tensor(np.stack([np.pad(s, (0, width - len(s)), constant_values=value) for s in sequences]))


class Batch:
    """Packed sequences, and `inputs`, which transformers takes."""

    def __init__(self, sequences: list[np.ndarray], token_types: list[np.ndarray] | None = None, pad_token_id: int = 0):
        self.sequences, self.token_types = sequences, token_types
        self.offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
        width = max(map(len, sequences))
        self.attention = torch.tensor([[int(i < len(s)) for i in range(width)] for s in sequences])
        self.inputs = {"input_ids": pad(sequences, pad_token_id), "attention_mask": self.attention}
        if token_types is not None:
            self.inputs["token_type_ids"] = pad(token_types, 0)

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """[sequence, position, ...] to [tokens, ...], without the padding."""
        return values[self.attention.bool()]


def descending(logits: np.ndarray, k: int) -> np.ndarray:
    """[rows, k] ids of the largest, ties by the smaller id: a stable sort keeps equal values in order."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :k].astype(np.int64)


def forward(model, batch: Batch):
    """Packed logits [tokens, vocabulary] and every packed hidden state [tokens, width]."""
    output = model(**batch.inputs, output_hidden_states=True)
    return batch.pack(output.logits), [batch.pack(state) for state in output.hidden_states]
