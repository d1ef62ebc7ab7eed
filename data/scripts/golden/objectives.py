"""objectives/: every part of `--loss` with every tail, on one small student and one batch."""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import DistilBertConfig, DistilBertForMaskedLM

from .files import save
from .losses import Targets, ce, jsd, objective, outcomes, parse, reverse_kl
from .packed import IGNORED, Batch, descending, forward
from .recipe import STEPS, ten_steps
from .students import randomise, save_student

VOCABULARY, WIDTH, TEACHER_WIDTH, KEPT = 40, 8, 6, 6
TEACHER_STATES = [1, 3]
LAST, MAP = [(1, 3)], [(0, 1), (1, 3)]

# name, --loss, temperature, pairs of (student's, teacher's) states, whether they are compared through projections
OBJECTIVES = [
    *((f"ce-{tail}", f"ce=5:tail={tail}", 2, LAST, False) for tail in ("ghost", "zero", "renormalised-teacher", "renormalised-both", "uniform")),
    *((f"reverse-kl-{tail}", f"reverse-kl=5:tail={tail}", 2, LAST, False) for tail in ("ghost", "renormalised-both")),
    *((f"jsd-{beta}", f"jsd=5:beta={beta}", 2, LAST, False) for beta in (0.1, 0.5, 0.9)),
    ("tvd", "tvd=5", 2, LAST, False),
    ("logit-mse", "logit-mse=1", 2, LAST, False),
    ("mlm", "mlm=2", 2, LAST, False),
    ("cos", "cos=5", 2, LAST, False),
    ("hidden-mse", "hidden-mse=5", 2, LAST, False),
    ("hidden-map", "cos=2,hidden-mse=3", 2, MAP, False),
    ("hidden-projected", "cos=2,hidden-mse=3", 2, MAP, True),
    (
        "mixture",
        "ce=2:tail=renormalised-both,reverse-kl=1,jsd=1:tail=zero:beta=0.3,tvd=3:tail=renormalised-teacher,logit-mse=0.1,mlm=2,cos=1,hidden-mse=0.5",
        2,
        LAST,
        False,
    ),
    ("scheduled", "ce=5:schedule=linear:end=1,mlm=2:schedule=wsd:warmup=0.3:decay=0.2:end=0.5,cos=1", 2, LAST, False),
    ("temperature-1", "ce=5,jsd=1:beta=0.9:tail=renormalised-both,tvd=1:tail=zero,mlm=2,cos=1", 1, LAST, False),
]
# At its ends jsd is another part, by definition: whose numbers it has.
ENDS = [("jsd-0", "jsd=5:beta=0", "ce-ghost"), ("jsd-1", "jsd=5:beta=1", "reverse-kl-ghost")]


def random_student() -> DistilBertForMaskedLM:
    torch.manual_seed(2)
    config = DistilBertConfig(
        vocab_size=VOCABULARY, n_layers=1, dim=WIDTH, n_heads=2, hidden_dim=6, max_position_embeddings=6, dropout=0.0, attention_dropout=0.0
    )
    config._attn_implementation = "eager"
    return randomise(DistilBertForMaskedLM(config))


def random_batch() -> tuple[Batch, dict[str, np.ndarray]]:
    """The sequences, and the teacher's side as it is stored."""
    random = np.random.default_rng(3)
    batch = Batch([random.integers(5, VOCABULARY, length) for length in (6, 3, 1, 5)])
    tokens = int(batch.offsets[-1])
    asked = np.sort(random.choice(tokens, size=11, replace=False)).astype(np.int64)
    labels = np.where(random.random(len(asked)) < 0.4, random.integers(5, VOCABULARY, len(asked)), IGNORED)
    labels[0] = 17
    logits = 2.0 * random.normal(size=(len(asked), VOCABULARY))
    top_ids = descending(logits, KEPT)
    tensors = {
        "offsets": batch.offsets,
        "input_ids": np.concatenate(batch.sequences),
        "asked": asked,
        "labels": labels,
        "top_ids": top_ids,
        "max_logit": logits.max(axis=1).astype(np.float32),
    }
    for temperature in (1, 2):
        logs = torch.log_softmax(torch.tensor(logits) / temperature, dim=1).numpy()
        tensors[f"log_probabilities.{temperature}"] = np.take_along_axis(logs, top_ids, axis=1).astype(np.float32)
    for state in TEACHER_STATES:
        tensors[f"hidden.{state}"] = random.normal(size=(tokens, WIDTH)).astype(np.float32)
        tensors[f"wide.{state}"] = random.normal(size=(tokens, TEACHER_WIDTH)).astype(np.float32)
    for student, teacher in MAP:
        tensors[f"projection.{student}-{teacher}.weight"] = 0.4 * random.normal(size=(TEACHER_WIDTH, WIDTH)).astype(np.float32)
        tensors[f"projection.{student}-{teacher}.bias"] = 0.4 * random.normal(size=TEACHER_WIDTH).astype(np.float32)
    return batch, {name: value.astype(np.float32) if value.dtype == np.float64 else value for name, value in tensors.items()}


def targets(tensors: dict[str, np.ndarray], temperature: int, pairs: list, projections: dict[str, torch.nn.Linear]) -> Targets:
    own = {name: torch.tensor(tensors[name]) for name in ("asked", "labels", "top_ids", "max_logit")}
    compared = []
    for student, teacher in pairs:
        projection = projections.get(f"projection.{student}-{teacher}")
        states = tensors[f"{'hidden' if projection is None else 'wide'}.{teacher}"]
        compared.append((student, torch.tensor(states), projection))
    return Targets(log_probabilities=torch.tensor(tensors[f"log_probabilities.{temperature}"]), temperature=temperature, pairs=compared, **own)


def make_projections(tensors: dict[str, np.ndarray], pairs: list) -> dict[str, torch.nn.Linear]:
    made = {}
    for student, teacher in pairs:
        name = f"projection.{student}-{teacher}"
        made[name] = torch.nn.Linear(WIDTH, TEACHER_WIDTH).double()
        made[name].load_state_dict({kind: torch.tensor(tensors[f"{name}.{kind}"]) for kind in ("weight", "bias")})
    return made


def flat(values: dict[str, torch.Tensor]) -> np.ndarray:
    """One after the other, in the alphabetical order of their names."""
    return torch.cat([values[name].detach().flatten() for name in sorted(values)]).numpy()


def run(loss: str, temperature: int, pairs: list, projected: bool, batch: Batch, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    model = random_student().double()
    projections = make_projections(tensors, pairs) if projected else {}
    wanted = targets(tensors, temperature, pairs, projections)
    parameters = dict(model.named_parameters())
    parameters |= {f"{name}.{kind}": each for name, module in projections.items() for kind, each in module.named_parameters()}

    def losses_at(step: int) -> torch.Tensor:
        logits, states = forward(model, batch)
        return objective(loss, step, STEPS, states, logits[wanted.asked], wanted)

    losses_at(0)[0].backward()
    gradients = {name: torch.zeros_like(each) if each.grad is None else each.grad.clone() for name, each in parameters.items()}
    steps = ten_steps(parameters, losses_at)
    after = {name: steps[f"after.{name}"].float() for name in parameters}
    return {"gradient": flat(gradients), "losses": steps["steps.loss"].numpy(), "after": flat(after)}


def check_ends(batch: Batch, tensors: dict[str, np.ndarray]) -> None:
    """That jsd tends to what stands for it at its ends."""
    wanted = targets(tensors, 2, LAST, {})
    logits = forward(random_student().double(), batch)[0][wanted.asked]
    t, p = outcomes(logits, wanted, "ghost")
    near = 1e-6
    assert torch.allclose(jsd(t, p, 2, near) / near, ce(t, p, 2), rtol=1e-3, atol=1e-6)
    assert torch.allclose(jsd(t, p, 2, 1.0 - near) / near, reverse_kl(t, p, 2), rtol=1e-3, atol=1e-6)


def make_objectives(out: Path) -> None:
    save_student(random_student(), out)
    batch, tensors = random_batch()
    check_ends(batch, tensors)
    numbers, index = dict(tensors), []
    for name, loss, temperature, pairs, projected in OBJECTIVES:
        for kind, value in run(loss, temperature, pairs, projected, batch, tensors).items():
            numbers[f"{name}.{kind}"] = value
        index.append((name, loss, temperature, pairs, projected, name))
    index += [(name, loss, 2, LAST, False, of) for name, loss, of in ENDS]
    save(numbers, out / "golden.safetensors")
    keys = ("name", "loss", "temperature", "pairs", "projected", "numbers")
    lines = [json.dumps({**dict(zip(keys, entry)), "parts": list(parse(entry[1]))}) for entry in index]
    (out / "objectives.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
