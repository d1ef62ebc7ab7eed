#!/usr/bin/env python3
"""Loads trained students in transformers and sentence-transformers and compares what they answer with what the trainer computed.

    target/venv-transformers/bin/python tests/python/student_in_transformers.py STUDENT... [--tolerance 1e-4]

Each STUDENT is a directory as the trainer wrote it, of any family and task, with STUDENT/answers.safetensors beside its files: a packed batch
and the trainer's answers to it:

    offsets         [sequences + 1]      integers; sequence s holds the rows offsets[s]..offsets[s + 1]
    input_ids       [tokens]             integers
    token_type_ids  [tokens]             integers; absent where all are 0
    asked           [asked]              integers; rows of `input_ids`; of a sequence classifier the first of each sequence
    logits          [asked, classes]     float32, not divided by a temperature; classes is the vocabulary for a language model
    embeddings      [sequences, width]   float32, of a sentence encoder, in place of `asked` and `logits`

Where there is a STUDENT/model.onnx, as `train export --onnx` writes it, ONNX Runtime runs it on padded sequences, and its answers must be those of
transformers too.

The tokenizer is loaded as well and must know every id of the model. Prints the largest differences of each; exit code 1 where one is above the
tolerance.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import transformers
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoTokenizer, PreTrainedModel

CLASSES = {
    "ForMaskedLM": transformers.AutoModelForMaskedLM,
    "ForCausalLM": transformers.AutoModelForCausalLM,
    "LMHeadModel": transformers.AutoModelForCausalLM,
    "ForSequenceClassification": transformers.AutoModelForSequenceClassification,
    "ForTokenClassification": transformers.AutoModelForTokenClassification,
    "Model": transformers.AutoModel,
}
INPUTS = ("input_ids", "token_type_ids")
LONGEST_TEXT = "ab " * 400


def kind_of(student: Path) -> str:
    """The end of the name of the class that config.json asks for."""
    (architecture,) = json.loads((student / "config.json").read_text())["architectures"]
    return next(end for end in CLASSES if architecture.endswith(end))


def load(student: Path, kind: str) -> PreTrainedModel:
    """The model, with complaints about missing, unexpected or misshapen tensors made errors."""
    # A sentence encoder has no pooler of its own, which a bare model would draw at random.
    config = json.loads((student / "config.json").read_text())
    options = {"add_pooling_layer": False} if kind == "Model" and config["model_type"] != "distilbert" else {}
    model, report = CLASSES[kind].from_pretrained(student, output_loading_info=True, attn_implementation="eager", **options)
    wrong = {what: names for what, names in report.items() if names}
    if wrong:
        sys.exit(f"{student}: transformers complains of its weights: {wrong}")
    is_tied = kind == "ForMaskedLM" or (CLASSES[kind] is transformers.AutoModelForCausalLM and model.config.tie_word_embeddings)
    if is_tied and model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        sys.exit(f"{student}: the decoder is not tied to the word embeddings")
    return model.eval()


def check_names(student: Path, model: PreTrainedModel, classes: int) -> None:
    """That a classifier's classes have names, each its own."""
    names = model.config.id2label
    if sorted(names) != list(range(classes)) or model.config.label2id != {name: number for number, name in names.items()}:
        sys.exit(f"{student}: {classes} classes, but id2label is {names} and label2id {model.config.label2id}")


def check_tokenizer(student: Path, kind: str, vocabulary: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(student)
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocabulary or (kind == "ForMaskedLM" and tokenizer.mask_token is None):
        sys.exit(f"{student}: the tokenizer's highest id is {highest} and its mask {tokenizer.mask_token}; the model has {vocabulary} ids")


def sequences(batch: dict[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """Each sequence alone, without padding."""
    offsets = batch["offsets"].astype(int)
    found = []
    for start, end in zip(offsets, offsets[1:]):
        inputs = {name: torch.tensor(batch[name][start:end].astype(np.int64))[None] for name in INPUTS if name in batch}
        found.append(inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])})
    return found


@torch.no_grad()
def logits(model: PreTrainedModel, batch: dict[str, np.ndarray]) -> np.ndarray:
    """[asked, classes]"""
    rows = [model(**inputs).logits[0] for inputs in sequences(batch)]
    return torch.stack(rows).numpy() if rows[0].dim() == 1 else torch.cat(rows).numpy()[batch["asked"].astype(int)]


@torch.no_grad()
def vectors(student: Path, batch: dict[str, np.ndarray]) -> np.ndarray:
    """[sequences, width], by sentence-transformers, which must read a text longer than the student too."""
    encoder = SentenceTransformer(str(student), device="cpu")
    width = batch["embeddings"].shape[1]
    if encoder.encode(["a", LONGEST_TEXT]).shape != (2, width):
        sys.exit(f"{student}: sentence-transformers makes vectors of another width than {width}")
    return torch.cat([encoder(inputs)["sentence_embedding"] for inputs in sequences(batch)]).numpy()


@torch.no_grad()
def difference_of_export(student: Path, model: PreTrainedModel, batch: dict[str, np.ndarray], expected: np.ndarray) -> float:
    """The largest difference between model.onnx on the padded batch and `expected`; of a sentence encoder, its last hidden states too."""
    session = onnxruntime.InferenceSession(str(student / "model.onnx"), providers=["CPUExecutionProvider"])
    outputs, alone = [each.name for each in session.get_outputs()], sequences(batch)
    width = max(inputs["input_ids"].shape[1] for inputs in alone)
    padding = {"input_ids": model.config.pad_token_id or 0}
    feeds = {
        name: np.stack([np.pad(each[name][0], (0, width - each[name].shape[1]), constant_values=padding.get(name, 0)) for each in alone]) for name in alone[0]
    }
    feeds |= {"position_ids": np.tile(np.arange(width), (len(alone), 1)), "token_type_ids": feeds.get("token_type_ids", np.zeros_like(feeds["input_ids"]))}
    found = dict(zip(outputs, session.run(None, {each.name: feeds[each.name] for each in session.get_inputs()})))
    mask = feeds["attention_mask"].astype(bool)
    if "embeddings" in batch:
        states = torch.cat([model(**inputs).last_hidden_state[0] for inputs in alone]).numpy()
        return max(worst(student, "sentence_embedding of model.onnx", found["sentence_embedding"], expected),
                   worst(student, "last_hidden_state of model.onnx", found["last_hidden_state"][mask], states))  # fmt: skip
    rows = found["logits"] if found["logits"].ndim == 2 else found["logits"][mask][batch["asked"].astype(int)]
    return worst(student, "logits of model.onnx", rows, expected)


def worst(student: Path, what: str, found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference; what is no number is infinitely off."""
    if expected.shape != found.shape:
        sys.exit(f"{student}: {what}: expected {expected.shape}, found {found.shape}")
    off = np.abs(expected - found)
    off[np.isnan(off)] = np.inf
    return float(off.max())


def compare(student: Path) -> float:
    """The largest difference of two answers."""
    batch, kind = load_file(student / "answers.safetensors"), kind_of(student)
    model = load(student, kind)
    check_tokenizer(student, kind, model.config.vocab_size)
    if kind.endswith("Classification"):
        check_names(student, model, batch["logits"].shape[1])
    what = "embeddings" if kind == "Model" else "logits"
    expected = vectors(student, batch) if kind == "Model" else logits(model, batch)
    off = worst(student, f"the trainer's {what}", batch[what], expected)
    exported = difference_of_export(student, model, batch, expected) if (student / "model.onnx").is_file() else None
    rows, columns = expected.shape
    print(f"{student.name}, a {type(model).__name__} of {model.num_parameters():,} parameters: {rows} x {columns} {what}, largest difference {off:.2e}, "
          + ("no export" if exported is None else f"of the export {exported:.2e}"))  # fmt: skip
    return max(off, exported or 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("students", type=Path, nargs="+", metavar="STUDENT")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference of two answers (default 1e-4)")
    arguments = parser.parse_args()
    return 0 if max([compare(student) for student in arguments.students]) <= arguments.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
