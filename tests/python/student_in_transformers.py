#!/usr/bin/env python3
"""Loads a trained student in transformers and compares its logits with those that the trainer computed.

    target/venv-transformers/bin/python tests/python/student_in_transformers.py STUDENT LOGITS.safetensors [--tolerance 1e-4]

LOGITS.safetensors holds a packed batch and the trainer's answers to it:

    offsets    [sequences + 1]      integers; sequence s holds the rows offsets[s]..offsets[s + 1]
    input_ids  [tokens]             integers
    asked      [asked]              integers; rows of `input_ids`
    logits     [asked, vocabulary]  float32, not divided by a temperature

The tokenizer is loaded too and must know every id of the model. Prints the largest difference; exit code 1 where it is above the tolerance.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoTokenizer, DistilBertForMaskedLM


def load(student: Path) -> DistilBertForMaskedLM:
    """The model, with complaints about missing, unexpected or misshapen tensors made errors."""
    model, report = DistilBertForMaskedLM.from_pretrained(student, output_loading_info=True, attn_implementation="eager")
    wrong = {kind: names for kind, names in report.items() if names}
    if wrong:
        sys.exit(f"{student}: transformers complains of its weights: {wrong}")
    if model.vocab_projector.weight is not model.distilbert.embeddings.word_embeddings.weight:
        sys.exit(f"{student}: the decoder is not tied to the word embeddings")
    return model.eval()


def check_tokenizer(student: Path, vocabulary: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student)
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocabulary or tokenizer.mask_token is None:
        sys.exit(f"{student}: the tokenizer's highest id is {highest} and its mask {tokenizer.mask_token}; the model has {vocabulary} ids")


@torch.no_grad()
def answers(model: DistilBertForMaskedLM, batch: dict[str, np.ndarray]) -> np.ndarray:
    """[asked, vocabulary]: each sequence alone, without padding, then the asked rows."""
    offsets, packed = batch["offsets"].astype(int), []
    for start, end in zip(offsets, offsets[1:]):
        ids = torch.tensor(batch["input_ids"][start:end].astype(np.int64))[None]
        packed.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0])
    return torch.cat(packed).numpy()[batch["asked"].astype(int)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("logits", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference of two logits (default 1e-4)")
    arguments = parser.parse_args()
    batch, model = load_file(arguments.logits), load(arguments.student)
    check_tokenizer(arguments.student, model.config.vocab_size)
    expected, found = answers(model, batch), batch["logits"]
    if expected.shape != found.shape:
        sys.exit(f"{arguments.logits}: logits: expected {expected.shape}, found {found.shape}")
    off = np.abs(expected - found)
    off[np.isnan(off)] = np.inf
    row, token = np.unravel_index(off.argmax(), off.shape)
    place = f"row {row}, id {token}: transformers {expected[row, token]}, the trainer {found[row, token]}"
    print(f"{expected.shape[0]} positions, {expected.shape[1]} ids: largest difference {off.max():.2e} ({place})")
    return 0 if off.max() <= arguments.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
