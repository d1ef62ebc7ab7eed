"""Classifiers, taggers and sentence encoders."""

import json
from pathlib import Path

import numpy as np
import torch

from .exports import export
from .inputs import input_names, make_inputs
from .language import case, start
from .models import WIDTH, make_model
from .vocabularies import LONGEST

SEQUENCE, TOKEN, SENTENCE = "sequence-classification", "token-classification", "sentence-embedding"
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
# (directory, family, names of the classes or their number, problem_type)
CLASSIFIERS = [
    ("bert-classifier", "bert", ["negative", "neutral", "positive"], "single_label_classification"),
    ("albert-classifier", "albert", 3, None),
    ("roberta-multilabel", "roberta", ["joy", "anger", "fear", "surprise"], "multi_label_classification"),
    ("distilbert-regression", "distilbert", 1, "regression"),
]
TAGGERS = [(f"{family}-tagger", family, TAGS, None) for family in ("bert", "roberta", "distilbert", "albert")]
# (directory, family, pooling, whether vectors are normalised)
ENCODERS = [
    ("bert-sentence", "bert", "mean", True),
    ("mpnet-sentence", "mpnet", "cls", False),
    ("distilbert-sentence", "distilbert", "max", False),
]


def classes(names: list[str] | int) -> dict:
    """Settings of as many classes; transformers calls those without a name LABEL_0, LABEL_1, ..."""
    if isinstance(names, int):
        return {"num_labels": names}
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def make_classifier(out: Path, name: str, family: str, names: list[str] | int, problem: str | None, task: str) -> list[dict]:
    settings = classes(names) | ({"problem_type": problem} if problem else {})
    model = make_model(family, "ForTokenClassification" if task == TOKEN else "ForSequenceClassification", **settings)
    directory = start(out, name, family, model)
    export(model, directory / "model.onnx")
    cases = [case(name, "model", task)]
    if family == "bert":
        export(model, directory / "dynamo.onnx", dynamo=True)
        cases.append(case(name, "dynamo", task))
    return cases


class Pooled(torch.nn.Module):
    """An encoder and its pooling: mean and maximum over the tokens that are no padding, or the first token."""

    def __init__(self, encoder, pooling: str, normalized: bool):
        super().__init__()
        self.encoder, self.config, self.pooling, self.normalized = encoder, encoder.config, pooling, normalized

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **segments).last_hidden_state
        mask = attention_mask.unsqueeze(-1)
        if self.pooling == "mean":
            vector = (states * mask).sum(1) / mask.sum(1)
        else:
            vector = states[:, 0] if self.pooling == "cls" else states.masked_fill(mask == 0, -torch.inf).amax(1)
        vector = torch.nn.functional.normalize(vector, dim=1) if self.normalized else vector
        return Sentence(states, vector)


class Sentence:
    """What `Pooled` answers, by the names of sentence-transformers."""

    def __init__(self, token_embeddings, sentence_embedding):
        self.token_embeddings, self.sentence_embedding = token_embeddings, sentence_embedding


def write_modules(directory: Path, pooling: str, normalized: bool) -> None:
    """The files by which sentence-transformers knows its modules."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")][: 3 if normalized else 2]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"} for number, (path, kind) in enumerate(kinds)
    ]
    modes = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max", "mean_sqrt_len_tokens": None}
    settings = {"word_embedding_dimension": WIDTH, **{f"pooling_mode_{mode}": pooling == kind for mode, kind in modes.items()}}
    (directory / "1_Pooling").mkdir()
    for path, content in (
        ("modules.json", modules),
        ("sentence_bert_config.json", {"max_seq_length": LONGEST, "do_lower_case": False}),
        ("1_Pooling/config.json", settings),
    ):
        (directory / path).write_text(json.dumps(content, indent=2) + "\n")


def make_encoder(out: Path, name: str, family: str, pooling: str, normalized: bool) -> list[dict]:
    """MPNet's export is that of a sentence-transformers model, with the pooled vector as an output; the others give the last hidden state alone."""
    encoder = make_model(family, "Model")
    pooled = Pooled(encoder, pooling, normalized).eval()
    inputs = make_inputs(encoder)
    with torch.no_grad():
        vectors = pooled(**inputs).sentence_embedding.numpy()
    assert np.isfinite(vectors).all() and list(inputs) == input_names(encoder)
    directory = start(out, name, family, encoder, {"sentence_embedding": vectors})
    write_modules(directory, pooling, normalized)
    last = f"hidden_{encoder.config.num_hidden_layers}"
    if family == "mpnet":
        export(pooled, directory / "model.onnx", {field: field for field in ("token_embeddings", "sentence_embedding")})
        return [case(name, "model", SENTENCE, outputs={"token_embeddings": last, "sentence_embedding": "sentence_embedding"})]
    cases = [case(name, "model", SENTENCE, outputs={"last_hidden_state": last})]
    export(encoder, directory / "model.onnx")
    if family == "bert":
        export(encoder, directory / "dynamo.onnx", dynamo=True)
        cases.append(case(name, "dynamo", SENTENCE, outputs={"last_hidden_state": last}))
    return cases


def make_tasks(out: Path) -> list[dict]:
    cases = [facts for settings in CLASSIFIERS for facts in make_classifier(out, *settings, SEQUENCE)]
    cases += [facts for settings in TAGGERS for facts in make_classifier(out, *settings, TOKEN)]
    return cases + [facts for settings in ENCODERS for facts in make_encoder(out, *settings)]
