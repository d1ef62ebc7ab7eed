#!/usr/bin/env python3
"""Loads trained students in transformers and compares their logits with those that the trainer computed.

    target/venv-transformers/bin/python tests/python/student_in_transformers.py STUDENT... [--tolerance 1e-4]

Each STUDENT is a directory as the trainer wrote it, of any family, with STUDENT/answers.safetensors beside its files: a packed batch and the
trainer's answers to it:

    offsets         [sequences + 1]      integers; sequence s holds the rows offsets[s]..offsets[s + 1]
    input_ids       [tokens]             integers
    token_type_ids  [tokens]             integers; absent where all are 0
    asked           [asked]              integers; rows of `input_ids`
    logits          [asked, vocabulary]  float32, not divided by a temperature

The tokenizer is loaded too and must know every id of the model. Prints the largest difference of each; exit code 1 where one is above the
tolerance.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel


def load(student: Path) -> PreTrainedModel:
    """The model, with complaints about missing, unexpected or misshapen tensors made errors."""
    model, report = AutoModelForMaskedLM.from_pretrained(student, output_loading_info=True, attn_implementation="eager")
    wrong = {kind: names for kind, names in report.items() if names}
    if wrong:
        sys.exit(f"{student}: transformers complains of its weights: {wrong}")
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        sys.exit(f"{student}: the decoder is not tied to the word embeddings")
    return model.eval()


def check_tokenizer(student: Path, vocabulary: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student)
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocabulary or tokenizer.mask_token is None:
        sys.exit(f"{student}: the tokenizer's highest id is {highest} and its mask {tokenizer.mask_token}; the model has {vocabulary} ids")


@torch.no_grad()
def answers(model: PreTrainedModel, batch: dict[str, np.ndarray]) -> np.ndarray:
    """[asked, vocabulary]: each sequence alone, without padding, then the asked rows."""
    offsets, packed = batch["offsets"].astype(int), []
    for start, end in zip(offsets, offsets[1:]):
        inputs = {name: torch.tensor(batch[name][start:end].astype(np.int64))[None] for name in ("input_ids", "token_type_ids") if name in batch}
        packed.append(model(**inputs, attention_mask=torch.ones_like(inputs["input_ids"])).logits[0])
    return torch.cat(packed).numpy()[batch["asked"].astype(int)]


def compare(student: Path) -> float:
    """The largest difference of two logits."""
    batch, model = load_file(student / "answers.safetensors"), load(student)
    check_tokenizer(student, model.config.vocab_size)
    expected, found = answers(model, batch), batch["logits"]
    if expected.shape != found.shape:
        sys.exit(f"{student}: logits: expected {expected.shape}, found {found.shape}")
    off = np.abs(expected - found)
    off[np.isnan(off)] = np.inf
    row, token = np.unravel_index(off.argmax(), off.shape)
    place = f"row {row}, id {token}: transformers {expected[row, token]}, the trainer {found[row, token]}"
    print(f"{student.name}, a {type(model).__name__} of {model.num_parameters():,} parameters: {expected.shape[0]} positions, {expected.shape[1]} ids, largest difference {off.max():.2e} ({place})")
    return float(off.max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", type=Path, nargs="+", metavar="STUDENT")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference of two logits (default 1e-4)")
    arguments = parser.parse_args()
    return 0 if max([compare(student) for student in arguments.students]) <= arguments.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
