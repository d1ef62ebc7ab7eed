#!/usr/bin/env python3
"""Makes data/teacher and data/corpus from two published Python packages, rxnfp 0.1.0 and readretro 1.2.0.

    pip download --no-deps rxnfp==0.1.0 readretro==1.2.0 --dest target/packages      (80 MB)
    target/venv-transformers/bin/python data/scripts/make_data.py --packages target/packages --out target/data

Writes teacher/, corpus/, licenses/ and golden/teacher-weights.json below --out and prints each file's sha256 and size. With the pinned versions of
requirements-transformers.txt the files are those of the repo; only config.json and model.onnx carry the versions of their writers.
"""

import argparse
import hashlib
import json
import random
import zipfile
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM

MODEL = "rxnfp/models/transformers/bert_pretrained"
REACTIONS = "readretro/data/train_canonicalized.txt"
HELD_OUT, TRAIN = 500, 6_000
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# A SMILES string is cut into bracketed atoms, two-letter elements, atoms, bonds, ring numbers and the reaction arrow.
TOKEN = (
    r"(%\([0-9]{3}\)|\[[^\]]+\]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\||\(|\)|\.|=|#|-|\+|\\|/|:|~|@|\?|>>?|\*|\$|%[0-9]{2}|[0-9])"
)
# The settings of the published configuration that still mean something.
SETTINGS = [
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_norm_eps",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
]
# The decoder is tied to the word embeddings and its bias to the head's: neither is stored twice.
TIED = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")


def wheel(packages: Path, name: str) -> zipfile.ZipFile:
    """The one wheel of package `name` in the folder."""
    (path,) = packages.glob(f"{name}-*.whl")
    return zipfile.ZipFile(path)


def make_corpus(reactions: zipfile.ZipFile, out: Path) -> None:
    """Reactions without the wildcard atom, shuffled with seed 0: the first 500 are held out, the next 6,000 are for training."""
    lines = reactions.read(REACTIONS).decode().splitlines()
    lines = [line for line in lines if "*" not in line]
    random.Random(0).shuffle(lines)
    held_out, train = lines[:HELD_OUT], lines[HELD_OUT : HELD_OUT + TRAIN]
    assert not set(held_out) & set(train), "the two samples share a reaction"
    out.mkdir(parents=True, exist_ok=True)
    for name, sample in (("heldout.txt", held_out), ("train.txt", train)):
        (out / name).write_text("".join(f"{line}\n" for line in sample))


def load_model(package: zipfile.ZipFile) -> BertForMaskedLM:
    """The published weights in the current architecture; its unused next-sentence head is left out."""
    published = json.loads(package.read(f"{MODEL}/config.json"))
    config = BertConfig(
        architectures=["BertForMaskedLM"], dtype="float32", pad_token_id=0, attn_implementation="eager", **{key: published[key] for key in SETTINGS}
    )
    model = BertForMaskedLM(config)
    with package.open(f"{MODEL}/pytorch_model.bin") as weights:
        answer = model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True), strict=False)
    missing = set(answer.missing_keys) - {"bert.embeddings.position_ids", *TIED}
    assert not missing, f"the published weights lack {missing}"
    model.tie_weights()
    return model.eval()


def make_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    """Regular-expression words looked up in the published vocabulary, in the template of a single BERT sentence."""
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(TOKEN), "removed", invert=True)
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(SPECIAL)
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return tokenizer


class Positional(torch.nn.Module):
    """The exporter wants positional inputs and tensor outputs."""

    def __init__(self, model: BertForMaskedLM):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask, token_type_ids):
        return self.model(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids).logits


def export(model: BertForMaskedLM, path: Path) -> None:
    """A plain TorchScript export, as common tools write it: no hidden-state outputs."""
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.manual_seed(0)
    ids = torch.randint(5, model.config.vocab_size - 5, (2, 16))
    inputs = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    torch.onnx.export(
        Positional(model),
        inputs,
        str(path),
        input_names=names,
        output_names=["logits"],
        dynamic_axes={name: {0: "batch", 1: "sequence"} for name in [*names, "logits"]},
        opset_version=17,
        dynamo=False,
    )


def digests(model: BertForMaskedLM) -> dict[str, dict]:
    """Shape and sha256 (of the little-endian float32 values, row-major) of each parameter: what a reader of model.onnx must find."""
    weights = {name: value.numpy() for name, value in model.state_dict().items() if name not in TIED and "position_ids" not in name}
    return {name: {"shape": list(value.shape), "sha256": hashlib.sha256(value.astype("<f4").tobytes()).hexdigest()} for name, value in weights.items()}


def make_teacher(package: zipfile.ZipFile, out: Path, digests_to: Path) -> None:
    """The directory of an export: model.onnx is the one place of the weights."""
    out.mkdir(parents=True, exist_ok=True)
    model = load_model(package)
    lines = [f"{json.dumps(name)}: {json.dumps(facts)}" for name, facts in digests(model).items()]
    digests_to.parent.mkdir(parents=True, exist_ok=True)
    digests_to.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    model.config.save_pretrained(out)
    words = package.read(f"{MODEL}/vocab.txt").decode().splitlines()
    make_tokenizer({word: identifier for identifier, word in enumerate(words)}).save(str(out / "tokenizer.json"))
    names = {f"{token[1:-1].lower()}_token": token for token in SPECIAL}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 512, **names}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    export(model, out / "model.onnx")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="the folder with the two downloaded wheels")
    parser.add_argument("--out", type=Path, required=True, help="where teacher/, corpus/ and licenses/ are written")
    arguments = parser.parse_args()
    rxnfp, readretro = wheel(arguments.packages, "rxnfp"), wheel(arguments.packages, "readretro")
    make_corpus(readretro, arguments.out / "corpus")
    make_teacher(rxnfp, arguments.out / "teacher", arguments.out / "golden" / "teacher-weights.json")
    (arguments.out / "licenses").mkdir(exist_ok=True)
    for name, package in (("rxnfp", rxnfp), ("readretro", readretro)):
        (licence,) = (member for member in package.namelist() if member.endswith("dist-info/LICENSE"))
        (arguments.out / "licenses" / f"{name}.txt").write_bytes(package.read(licence))
    for path in sorted(path for path in arguments.out.rglob("*") if path.is_file()):
        print(hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, path.relative_to(arguments.out))


if __name__ == "__main__":
    main()
