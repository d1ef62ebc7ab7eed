"""student-real.safetensors: the demo's six-layer student before its first step."""

from pathlib import Path

import numpy as np
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM

from .files import save
from .initialisers import demo_teacher
from .packed import Batch
from .recipe import TEMPERATURE, Targets, losses
from .teacher import TEMPERATURES, log_normalisers

TEACHER_LAYERS = [0, 2, 4, 7, 9, 11]


def student_name(name: str) -> str | None:
    """DistilBERT's name of a BERT parameter, None where the student has none."""
    if "token_type" in name or "pooler" in name or "decoder" in name:
        return None
    block = {
        "attention.self.query": "attention.q_lin",
        "attention.self.key": "attention.k_lin",
        "attention.self.value": "attention.v_lin",
        "attention.output.dense": "attention.out_lin",
        "attention.output.LayerNorm": "sa_layer_norm",
        "intermediate.dense": "ffn.lin1",
        "output.dense": "ffn.lin2",
        "output.LayerNorm": "output_layer_norm",
    }
    head = {
        "cls.predictions.transform.dense": "vocab_transform",
        "cls.predictions.transform.LayerNorm": "vocab_layer_norm",
        "cls.predictions": "vocab_projector",
    }
    stem, leaf = name.rsplit(".", 1)
    if stem in head:
        return f"{head[stem]}.{leaf}"
    if name.startswith("bert.encoder.layer."):
        layer, part = stem.removeprefix("bert.encoder.layer.").split(".", 1)
        if int(layer) not in TEACHER_LAYERS:
            return None
        return f"distilbert.transformer.layer.{TEACHER_LAYERS.index(int(layer))}.{block[part]}.{leaf}"
    return f"distilbert.{name.removeprefix('bert.')}"


def real_student() -> DistilBertForMaskedLM:
    teacher = demo_teacher()
    size = teacher.config
    config = DistilBertConfig(
        vocab_size=size.vocab_size,
        n_layers=len(TEACHER_LAYERS),
        dim=size.hidden_size,
        n_heads=size.num_attention_heads,
        hidden_dim=size.intermediate_size,
        max_position_embeddings=size.max_position_embeddings,
        dropout=0.0,
        attention_dropout=0.0,
    )
    config._attn_implementation = "eager"
    student = DistilBertForMaskedLM(config)
    wanted = {name for name, _ in student.named_parameters()}
    given = {student_name(name): parameter.detach() for name, parameter in teacher.named_parameters()}
    given.pop(None)
    # Every embedding of the teacher has the row of token type 0 added (all types are 0); the student carries it in its position embeddings.
    positions = "distilbert.embeddings.position_embeddings.weight"
    given[positions] = given[positions] + teacher.bert.embeddings.token_type_embeddings.weight[0].detach()
    assert wanted == set(given), f"student and teacher disagree on {wanted ^ set(given)}"
    student.load_state_dict(given, strict=False)
    student.tie_weights()
    return student


def sampled(gradient: torch.Tensor) -> np.ndarray:
    """Up to 16 elements, evenly spaced over the flat tensor."""
    flat, count = gradient.flatten(), min(16, gradient.numel())
    return flat[torch.arange(count) * (flat.numel() // count)].numpy()


def make_real_student(out: Path, batch: Batch, teacher: dict) -> None:
    at_two = TEMPERATURES.index(TEMPERATURE)
    log_probabilities = teacher["top_logits"] / TEMPERATURE - teacher["log_z"][:, at_two : at_two + 1]
    asked, labels = teacher["asked"], teacher["labels"][teacher["asked"]]
    targets = Targets(asked, labels, teacher["top_ids"], log_probabilities, teacher["hidden_12"])
    tensors = {}
    for precision, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        model = real_student().to(dtype).train()
        hidden, logits, parts = losses(model, batch, targets)
        if precision == "float32":
            tensors["float32.loss"] = parts.detach().numpy()
            continue
        parts[0].backward()
        rows = int((asked < batch.offsets[1]).sum())
        tensors["hidden"] = hidden.detach().float().numpy()
        tensors["logits_0"] = logits[:rows].detach().float().numpy()
        tensors["log_z"] = log_normalisers(logits.detach()).numpy()
        tensors["loss"] = parts.detach().numpy()
        for name, parameter in model.named_parameters():
            tensors[f"gradient_norm.{name}"] = parameter.grad.norm().reshape(1).numpy()
            tensors[f"gradient_sample.{name}"] = sampled(parameter.grad)
    save(tensors, out / "student-real.safetensors")
