#!/usr/bin/env python3
"""Makes the teachers and the corpora of the benchmark: BERTs with random weights, and invented text that they have the vocabulary for.

    python tests/python/peers/make_models.py target/bench/models

DIR/base is a BERT-base (12 x 768), DIR/small 4 x 256, both with a vocabulary of 30,522; beside them DIR/lines.txt, whose lines have the lengths of
natural sentences and paragraphs, and DIR/long.txt, whose lines are long. What is there is left.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM

VOCABULARY = 30_522
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SIZES = {
    "small": {"num_hidden_layers": 4, "hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024},
    "base": {"num_hidden_layers": 12, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072},
}


def words(draw: np.random.Generator) -> list[str]:
    """Invented words of one to three syllables, the short ones first, as the frequent words of a language are."""
    syllables = [a + b for a in "bcdfghjklmnprstvwz" for b in ("a", "e", "i", "o", "u", "an", "er", "in", "or", "us")]
    made: dict[str, None] = {}
    while len(made) < VOCABULARY:
        count = 1 if len(made) < 120 else 2 if len(made) < 10_000 else 3
        made["".join(draw.choice(syllables, count))] = None
    return list(made)


def tokenizer(vocabulary: list[str]) -> Tokenizer:
    ids = {token: number for number, token in enumerate(vocabulary)}
    made = Tokenizer(models.WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special)
    made.add_special_tokens(SPECIAL)
    return made


def corpora(directory: Path, vocabulary: list[str], draw: np.random.Generator) -> None:
    weights = 1 / (np.arange(len(vocabulary)) + 2.7)
    weights /= weights.sum()

    def write(name: str, lengths: np.ndarray) -> None:
        drawn = draw.choice(len(vocabulary), lengths.sum(), p=weights)
        ends = np.cumsum(lengths)
        lines = (" ".join(vocabulary[word] for word in drawn[end - length : end]) for length, end in zip(lengths, ends))
        (directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    # Natural paragraphs are about log-normal in length.
    write("lines.txt", np.clip(np.exp(draw.normal(4.2, 0.8, 20_000)), 8, 600).astype(int))
    write("long.txt", np.full(400, 126 * 16))


class LogitsOnly(torch.nn.Module):
    def __init__(self, model: BertForMaskedLM):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def teacher(directory: Path, shape: dict) -> None:
    torch.manual_seed(0)
    model = BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, attn_implementation="eager", **shape)).eval()
    with torch.no_grad():
        # Equal initial values would be merged by the exporter into one tensor, and nearly uniform answers would be an easy case of the top-k.
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.02)
            elif "LayerNorm.weight" in name:
                parameter.normal_(1, 0.1)
        model.bert.embeddings.word_embeddings.weight.normal_(0, 5 / shape["hidden_size"] ** 0.5)
    example = torch.randint(5, VOCABULARY, (2, 16))
    names, axes = ["input_ids", "attention_mask"], {0: "batch", 1: "sequence"}
    exported = directory / "exported.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            LogitsOnly(model).eval(),
            (example, torch.ones_like(example)),
            exported,
            input_names=names,
            output_names=["logits"],
            dynamic_axes=dict.fromkeys([*names, "logits"], axes),
            opset_version=17,
            dynamo=False,
        )
    config = model.config.to_dict() | {"architectures": ["BertForMaskedLM"]}
    (directory / "config.json").write_text(json.dumps(config, indent=2, default=str))
    exported.rename(directory / "model.onnx")


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = Path(sys.argv[1])
    draw = np.random.default_rng(0)
    invented = words(draw)
    vocabulary = (SPECIAL + invented)[:VOCABULARY]
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "long.txt").exists():
        corpora(out, vocabulary[len(SPECIAL) :], draw)
    for name, shape in SIZES.items():
        if not (out / name / "model.onnx").exists():
            (out / name).mkdir(exist_ok=True)
            tokenizer(vocabulary).save(str(out / name / "tokenizer.json"))
            teacher(out / name, shape)


if __name__ == "__main__":
    main()
