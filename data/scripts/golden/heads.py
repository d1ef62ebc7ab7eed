"""heads/: small random students with the head of every other task, in each family."""

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
import transformers
from safetensors.numpy import save_file
from torch import Tensor
from transformers import PreTrainedModel

from .families import BETWEEN, LONGEST, PADDING, VOCABULARY, WIDTH, bert_settings
from .files import save
from .losses import Targets, ce, kl, logit_mse
from .objectives import flat
from .packed import IGNORED, Batch, descending
from .recipe import TEMPERATURE, ten_steps
from .students import randomise, save_student

NARROW = 5
SEQUENCE, TOKEN, SENTENCE = "sequence-classification", "token-classification", "sentence-embedding"
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
TAGS = ["O", "B-LOC", "I-LOC"]
# (family, task, names of the classes or how many, problem, loss); a sentence encoder: (family, task, pooling, (width of a projection, whether the
# vectors are normalised), loss)
STUDENTS = [
    ("distilbert", SEQUENCE, ["no", "maybe", "yes"], SINGLE, "ce=5,gold=2"),
    ("bert", SEQUENCE, ["warm", "dry", "calm", "dark"], MULTI, "ce=5,gold=2,logit-mse=0.5"),
    ("roberta", SEQUENCE, 2, REGRESSION, "logit-mse=1,gold=2"),
    ("albert", SEQUENCE, 3, SINGLE, "ce=5,gold=2,cos=1"),
    ("distilbert", TOKEN, TAGS, None, "ce=5,gold=2"),
    ("bert", TOKEN, TAGS, None, "ce=5,gold=2,cos=1"),
    ("roberta", TOKEN, TAGS, None, "ce=5,gold=2"),
    ("albert", TOKEN, TAGS, None, "ce=5,gold=2"),
    ("distilbert", SENTENCE, "max", (None, False), "embedding-mse=2"),
    ("bert", SENTENCE, "mean", (NARROW, True), "embedding-cos=1,embedding-mse=3"),
    ("roberta", SENTENCE, "cls", (None, True), "embedding-cos=1"),
    ("albert", SENTENCE, "mean", (NARROW, False), "embedding-mse=1,embedding-cos=2"),
]
SUFFIX = {SEQUENCE: "ForSequenceClassification", TOKEN: "ForTokenClassification", SENTENCE: "Model"}


def model_of(family: str, task: str, settings: dict) -> PreTrainedModel:
    """One layer (ALBERT two), every parameter random."""
    torch.manual_seed(sum(map(ord, family + task)))
    if family == "distilbert":
        shape = dict(vocab_size=VOCABULARY, n_layers=1, dim=WIDTH, n_heads=2, hidden_dim=BETWEEN, max_position_embeddings=LONGEST)
        shape |= dict(dropout=0.0, attention_dropout=0.0, seq_classif_dropout=0.0, pad_token_id=PADDING)
    elif family == "roberta":
        shape = bert_settings(1, "gelu", 1, LONGEST + PADDING + 1)
    else:
        shape = bert_settings(2 if family == "albert" else 1, "gelu", 2)
        shape |= dict(embedding_size=4, classifier_dropout_prob=0.0) if family == "albert" else {}
    prefix = {"distilbert": "DistilBert", "bert": "Bert", "roberta": "Roberta", "albert": "Albert"}[family]
    config = getattr(transformers, f"{prefix}Config")(**shape, **settings)
    config._attn_implementation = "eager"
    options = {"add_pooling_layer": False} if task == SENTENCE and family != "distilbert" else {}
    return randomise(getattr(transformers, prefix + SUFFIX[task])(config, **options))


def class_settings(names: list[str] | int, problem: str | None) -> dict:
    settings = {"num_labels": names} if isinstance(names, int) else {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    return settings | ({"problem_type": problem} if problem else {})


def random_batch(family: str) -> tuple[Batch, dict[str, np.ndarray], np.random.Generator]:
    random = np.random.default_rng(11)
    sequences = [random.integers(5, VOCABULARY, length) for length in (4, 6, 1, 3)]
    types = [(np.arange(len(each)) >= len(each) // 2).astype(np.int64) for each in sequences]
    with_types = family in ("bert", "albert")
    batch = Batch(sequences, types if with_types else None, PADDING)
    tensors = {"offsets": batch.offsets, "input_ids": np.concatenate(sequences)}
    tensors |= {"token_type_ids": np.concatenate(types)} if with_types else {}
    tensors["hidden"] = random.normal(size=(int(batch.offsets[-1]), WIDTH)).astype(np.float32)
    return batch, tensors, random


def class_targets(asked: np.ndarray, classes: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Every class of a teacher's logits, as a cache holds them."""
    logits = 2.0 * random.normal(size=(len(asked), classes))
    top_ids = descending(logits, classes)
    logs = torch.log_softmax(torch.tensor(logits) / TEMPERATURE, dim=1).numpy()
    return {
        "asked": asked.astype(np.int64),
        "top_ids": top_ids,
        "log_probabilities": np.take_along_axis(logs, top_ids, axis=1).astype(np.float32),
        "max_logit": logits.max(axis=1).astype(np.float32),
    }


def gold(task: str, problem: str | None, asked: int, classes: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    """One of the rows has none."""
    if task == TOKEN or problem == SINGLE:
        labels = random.integers(0, classes, asked)
        labels[1] = IGNORED
        return {"labels": labels}
    values = random.integers(0, 2, (asked, classes)) if problem == MULTI else random.normal(size=(asked, classes))
    known = np.ones(asked, np.int64)
    known[2], values[2] = 0, 0
    return {"label_values": values.astype(np.float32), "has_label_values": known}


def binary_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """[rows]: the divergences of each class from its own two outcomes, summed over the classes."""
    pairs = [torch.stack([each.sigmoid(), (-each).sigmoid()], dim=-1) for each in (teacher, student)]
    return kl(pairs[0].flatten(0, 1), pairs[1].flatten(0, 1)).reshape(teacher.shape).sum(dim=1)


def class_part(name: str, logits: Tensor, last: Tensor, targets: Targets, tensors: dict[str, np.ndarray], problem: str | None) -> Tensor:
    """The unweighted value of a part of a classifier or tagger; `logits` are those of the asked rows."""
    if name == "cos":
        return (1.0 - functional.cosine_similarity(last, torch.tensor(tensors["hidden"]).double(), dim=1)).mean()
    if name == "logit-mse":
        return logit_mse(logits, targets)
    if name == "gold" and "labels" in tensors:
        return functional.cross_entropy(logits, targets.labels, ignore_index=IGNORED)
    if name == "gold":
        known = torch.tensor(tensors["has_label_values"]).bool()
        values = torch.tensor(tensors["label_values"]).double()[known]
        loss = functional.binary_cross_entropy_with_logits if problem == MULTI else functional.mse_loss
        return loss(logits[known], values)
    assert name == "ce", name
    logs = targets.log_probabilities.double()
    if problem == MULTI:
        teacher = targets.max_logit.double()[:, None] / TEMPERATURE + logs - logs[:, :1]
        return TEMPERATURE**2 * binary_kl(teacher, logits.gather(1, targets.top_ids) / TEMPERATURE).mean()
    student = functional.softmax(logits / TEMPERATURE, dim=1).gather(1, targets.top_ids)
    return ce(logs.exp(), student, TEMPERATURE).mean()


def vector_part(name: str, vectors: Tensor, teacher: Tensor) -> Tensor:
    if name == "embedding-cos":
        return (1.0 - functional.cosine_similarity(vectors, teacher, dim=1)).mean()
    return functional.mse_loss(vectors, teacher)


def weighted(loss: str, part) -> Tensor:
    """[1 + parts]: the weighted total, then each part in the order of `loss`."""
    terms = [item.split("=") for item in loss.split(",")]
    values = [part(name) for name, _ in terms]
    return torch.stack([sum(float(weight) * value for (_, weight), value in zip(terms, values)), *values])


def make_classes(out: Path, family: str, task: str, names: list[str] | int, problem: str | None, loss: str) -> None:
    model = model_of(family, task, class_settings(names, problem))
    save_student(model, out)
    model, classes = model.double(), model.config.num_labels
    batch, tensors, random = random_batch(family)
    tokens = int(batch.offsets[-1])
    asked = np.sort(random.choice(tokens, size=9, replace=False)) if task == TOKEN else batch.offsets[:-1]
    tensors |= class_targets(asked, classes, random) | gold(task, problem, len(asked), classes, random)
    labels = torch.tensor(tensors.get("labels", np.full(len(asked), IGNORED)))
    stored = (torch.tensor(tensors[name]) for name in ("top_ids", "log_probabilities", "max_logit"))
    targets = Targets(torch.tensor(asked), labels, *stored, TEMPERATURE)

    def answers() -> tuple[Tensor, Tensor]:
        output = model(**batch.inputs, output_hidden_states=True)
        logits = batch.pack(output.logits)[targets.asked] if task == TOKEN else output.logits
        return logits, batch.pack(output.hidden_states[-1])

    def losses() -> Tensor:
        logits, last = answers()
        return weighted(loss, lambda name: class_part(name, logits, last, targets, tensors, problem))

    finish(out, dict(model.named_parameters()), tensors, answers, losses)


def make_sentence(out: Path, family: str, task: str, pooling: str, vector: tuple[int | None, bool], loss: str) -> None:
    (projected, normalized), model = vector, model_of(family, task, {})
    save_student(model, out)
    dense = torch.nn.Linear(WIDTH, projected) if projected else None
    if dense is not None:
        with torch.no_grad():
            for parameter in dense.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter))
    write_modules(out, pooling, dense, normalized)
    parameters = dict(model.double().named_parameters())
    parameters |= {} if dense is None else {f"2_Dense.linear.{name}": each for name, each in dense.double().named_parameters()}
    batch, tensors, random = random_batch(family)
    tensors["embeddings"] = random.normal(size=(len(batch.sequences), projected or WIDTH)).astype(np.float32)
    teacher, mask = torch.tensor(tensors["embeddings"]).double(), batch.attention[:, :, None]

    def answers() -> tuple[Tensor, Tensor]:
        states = model(**batch.inputs).last_hidden_state
        if pooling == "mean":
            vectors = (states * mask).sum(dim=1) / mask.sum(dim=1)
        else:
            vectors = states[:, 0] if pooling == "cls" else states.masked_fill(mask == 0, -torch.inf).amax(dim=1)
        vectors = vectors if dense is None else dense(vectors)
        return functional.normalize(vectors, dim=1) if normalized else vectors, batch.pack(states)

    def losses() -> Tensor:
        vectors = answers()[0]
        return weighted(loss, lambda name: vector_part(name, vectors, teacher))

    finish(out, parameters, tensors, answers, losses)


def write_modules(out: Path, pooling: str, dense: torch.nn.Linear | None, normalized: bool) -> None:
    """The files of sentence-transformers beside the encoder's own."""
    kinds = ["Transformer", "Pooling", *(["Dense"] if dense is not None else []), *(["Normalize"] if normalized else [])]
    modules = [
        {"idx": at, "name": str(at), "path": f"{at}_{kind}" if at else "", "type": f"sentence_transformers.models.{kind}"} for at, kind in enumerate(kinds)
    ]
    modes = {"cls_token": "cls", "mean_tokens": "mean", "max_tokens": "max"}
    texts = {
        "modules.json": modules,
        "sentence_bert_config.json": {"max_seq_length": LONGEST, "do_lower_case": False},
        "1_Pooling/config.json": {"word_embedding_dimension": WIDTH, **{f"pooling_mode_{mode}": kind == pooling for mode, kind in modes.items()}},
    }
    if dense is not None:
        settings = {"in_features": WIDTH, "out_features": dense.out_features, "bias": True, "activation_function": "torch.nn.modules.linear.Identity"}
        texts["2_Dense/config.json"] = settings
    for path, content in texts.items():
        (out / path).parent.mkdir(exist_ok=True)
        (out / path).write_text(json.dumps(content, indent=2) + "\n")
    if dense is not None:
        save_file({f"linear.{name}": each.detach().numpy() for name, each in dense.named_parameters()}, out / "2_Dense" / "model.safetensors")


def finish(out: Path, parameters: dict, tensors: dict[str, np.ndarray], answers, losses) -> None:
    """Answers, the first gradient, ten steps."""
    answer, last = answers()
    losses()[0].backward()
    gradients = {name: torch.zeros_like(each) if each.grad is None else each.grad.clone() for name, each in parameters.items()}
    steps = ten_steps(parameters, lambda _: losses())
    results = {
        "answers": answer.detach().numpy(),
        "states": last.detach().numpy(),
        "gradient": flat(gradients),
        "losses": steps["steps.loss"].numpy(),
        "after": flat({name: steps[f"after.{name}"].float() for name in parameters}),
    }
    save(tensors | results, out / "golden.safetensors")


def make_heads(out: Path) -> None:
    lines = []
    for family, task, *settings, loss in STUDENTS:
        name = f"{family}-{task.split('-')[0]}"
        make = make_sentence if task == SENTENCE else make_classes
        make(out / name, family, task, *settings, loss)
        facts = {"name": name, "family": family, "task": task, "loss": loss, "parts": [item.split("=")[0] for item in loss.split(",")]}
        lines.append(json.dumps(facts))
    (out / "heads.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
