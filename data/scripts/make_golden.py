#!/usr/bin/env python3
"""Reference numbers from PyTorch and transformers for the Rust tests; data/golden/README.md says what each tensor means.

    target/venv-transformers/bin/python data/scripts/make_golden.py            # writes data/golden
    target/venv-transformers/bin/python data/scripts/make_golden.py --check    # makes them anew and compares with what is there
"""

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

DATA = Path(__file__).resolve().parent.parent
GOLDEN = DATA / "golden"
IGNORED = -100
TEMPERATURE = 2.0
TEMPERATURES = [1.0, 2.0, 4.0]
WEIGHTS = {"ce": 5.0, "mlm": 2.0, "cos": 1.0}
TEACHER_LAYERS = [0, 2, 4, 7, 9, 11]
STEPS, WARMUP_STEPS, PEAK, CLIP = 10, 2, 0.005, 5.0

# --check: |made - committed| <= absolute + relative * |committed|. Double precision differs between machines by the order of sums alone;
# single precision by more, and the ten steps carry it on: a key's bias has a zero gradient, whose rounding Adam enlarges. Integers must be equal.
TOLERANCE = {"float64": (1e-9, 1e-7), "float32": (1e-4, 2e-3), "float32.after": (1e-3, 2e-3)}


class Batch:
    """Packed sequences; `padded` turns them into what transformers takes."""

    def __init__(self, sequences: list[np.ndarray]):
        self.sequences = sequences
        self.offsets = np.cumsum([0, *map(len, sequences)]).astype(np.int64)
        width = max(map(len, sequences))
        self.attention = torch.tensor([[int(i < len(s)) for i in range(width)] for s in sequences])
        self.input_ids = torch.tensor(np.stack([np.pad(s, (0, width - len(s))) for s in sequences]))

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """[sequence, position, ...] to [tokens, ...], without the padding."""
        return values[self.attention.bool()]


def descending(logits: np.ndarray, k: int) -> np.ndarray:
    """[rows, k] ids of the largest, ties by the smaller id: a stable sort keeps equal values in order."""
    return np.argsort(-logits, axis=1, kind="stable")[:, :k].astype(np.int64)


def log_normalisers(logits: torch.Tensor) -> torch.Tensor:
    """[rows, temperature]: log of the sum of exp((z - z_max) / T)."""
    relative = logits - logits.max(dim=1, keepdim=True).values
    return torch.stack([torch.logsumexp(relative / temperature, dim=1) for temperature in TEMPERATURES], dim=1)


def mask(sequence: np.ndarray, special: set[int], mask_id: int, vocabulary: int, random: np.random.Generator):
    """15 % of the non-special positions; of these 80 % the mask token, 10 % any token, 10 % unchanged. (ids, labels)"""
    ids, labels = sequence.copy(), np.full_like(sequence, IGNORED)
    for position, token in enumerate(sequence):
        if int(token) in special or random.random() >= 0.15:
            continue
        labels[position] = token
        draw = random.random()
        ids[position] = mask_id if draw < 0.8 else random.integers(15, vocabulary) if draw < 0.9 else token
    return ids, labels


def held_out_batch() -> tuple[Batch, np.ndarray, np.ndarray]:
    """Eight short reactions of different lengths, masked. (batch, labels [tokens], asked [rows])"""
    tokenizer = Tokenizer.from_file(str(DATA / "teacher" / "tokenizer.json"))
    special = {tokenizer.token_to_id(token) for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")}
    lines = (DATA / "corpus" / "heldout.txt").read_text().splitlines()
    encoded = [np.array(tokenizer.encode(line).ids, dtype=np.int64) for line in lines]
    chosen = [ids for ids in encoded if 12 <= len(ids) <= 32][:8]
    random = np.random.default_rng(0)
    masked = [mask(ids, special, tokenizer.token_to_id("[MASK]"), tokenizer.get_vocab_size(), random) for ids in chosen]
    asked = np.flatnonzero(~np.isin(np.concatenate(chosen), list(special))).astype(np.int64)
    return Batch([ids for ids, _ in masked]), np.concatenate([labels for _, labels in masked]), asked


def forward(model, batch: Batch):
    """Packed logits [tokens, vocabulary] and every packed hidden state [tokens, width]."""
    output = model(input_ids=batch.input_ids, attention_mask=batch.attention, output_hidden_states=True)
    return batch.pack(output.logits), [batch.pack(state) for state in output.hidden_states]


def make_teacher(out: Path) -> tuple[Batch, dict]:
    batch, labels, asked = held_out_batch()
    model = BertForMaskedLM.from_pretrained(DATA / "teacher", attn_implementation="eager").double().eval()
    with torch.no_grad():
        logits, hidden = forward(model, batch)
    rows = logits[asked]
    top_ids = descending(rows.numpy(), 64)
    largest = rows.max(dim=1, keepdim=True).values
    tensors = {
        "offsets": batch.offsets,
        "input_ids": np.concatenate(batch.sequences),
        "labels": labels,
        "asked": asked,
        "max_logit": largest[:, 0].numpy(),
        "top_ids": top_ids,
        "top_logits": torch.gather(rows - largest, 1, torch.tensor(top_ids)).numpy(),
        "temperatures": np.array(TEMPERATURES),
        "log_z": log_normalisers(rows).numpy(),
        "logits_0": logits[: batch.offsets[1]].float().numpy(),
        **{f"hidden_{layer}": hidden[layer].float().numpy() for layer in (0, 6, 12)},
    }
    save(tensors, out / "teacher.safetensors")
    return batch, tensors


class Targets:
    """What a batch asks of a student. `labels` [asked]; `log_probabilities` [asked, k] at TEMPERATURE; `hidden` [tokens, width]."""

    def __init__(self, asked, labels, top_ids, log_probabilities, hidden):
        self.asked, self.labels, self.top_ids = torch.tensor(asked), torch.tensor(labels), torch.tensor(top_ids)
        self.log_probabilities, self.hidden = torch.tensor(log_probabilities), torch.tensor(hidden)


def losses(model, batch: Batch, targets: Targets):
    """Hidden states, asked logits and the four losses (total, ce, mlm, cos), differentiable."""
    logits, hidden = forward(model, batch)
    logits, last = logits[targets.asked], hidden[-1]
    teacher = targets.log_probabilities.to(logits.dtype)
    student = torch.gather(functional.log_softmax(logits / TEMPERATURE, dim=1), 1, targets.top_ids)
    kept = (teacher.exp() * (teacher - student)).sum(dim=1)
    rest = 1.0 - teacher.exp().sum(dim=1)
    ghost = rest * (rest.log() - torch.log(-torch.expm1(torch.logsumexp(student, dim=1))))
    ce = TEMPERATURE**2 * (kept + ghost).mean()
    mlm = functional.cross_entropy(logits, targets.labels, ignore_index=IGNORED)
    cos = (1.0 - functional.cosine_similarity(last, targets.hidden.to(last.dtype), dim=1)).mean()
    total = WEIGHTS["ce"] * ce + WEIGHTS["mlm"] * mlm + WEIGHTS["cos"] * cos
    return last, logits, torch.stack([total, ce, mlm, cos])


def random_student() -> DistilBertForMaskedLM:
    """Two narrow layers; biases and LayerNorm are drawn too, so that no gradient is hidden behind a zero."""
    torch.manual_seed(0)
    config = DistilBertConfig(
        vocab_size=96, n_layers=2, dim=16, n_heads=2, hidden_dim=32, max_position_embeddings=24, dropout=0.0, attention_dropout=0.0
    )
    config._attn_implementation = "eager"
    model = DistilBertForMaskedLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
    return model.train()


def random_batches() -> list[tuple[Batch, Targets]]:
    """Three batches with a peaked teacher of 96 ids, 8 of them kept."""
    random, made = np.random.default_rng(1), []
    for lengths in ((7, 12, 1, 9), (24, 3), (5, 5, 11)):
        batch = Batch([random.integers(5, 96, length) for length in lengths])
        tokens = int(batch.offsets[-1])
        asked = np.sort(random.choice(tokens, size=tokens * 3 // 4, replace=False)).astype(np.int64)
        labels = np.where(random.random(len(asked)) < 0.3, random.integers(5, 96, len(asked)), IGNORED)
        labels[0] = 17
        logits = random.normal(size=(len(asked), 96)) * 3.0
        top_ids = descending(logits, 8)
        tempered = logits / TEMPERATURE
        log_probabilities = tempered - np.log(np.exp(tempered).sum(axis=1, keepdims=True))
        kept = np.take_along_axis(log_probabilities, top_ids, axis=1).astype(np.float32)
        hidden = random.normal(size=(tokens, 16)).astype(np.float32)
        made.append((batch, Targets(asked, labels, top_ids, kept, hidden)))
    return made


def learning_rate(step: int) -> float:
    """Linear warm-up from 0, then linear decay towards 0, a function of the number of updates done."""
    if step < WARMUP_STEPS:
        return PEAK * step / WARMUP_STEPS
    return PEAK * (STEPS - step) / (STEPS - WARMUP_STEPS)


def ten_steps(model, batches) -> dict[str, torch.Tensor]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=PEAK, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    parts, norms = [], []
    for step in range(STEPS):
        batch, targets = batches[step % len(batches)]
        optimiser.zero_grad()
        parts.append(losses(model, batch, targets)[2])
        parts[-1][0].backward()
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step)
        optimiser.step()
    after = {f"after.{name}": parameter.detach() for name, parameter in model.named_parameters()}
    rates = torch.tensor([learning_rate(step) for step in range(STEPS)], dtype=norms[0].dtype)
    return {"steps.loss": torch.stack(parts).detach(), "steps.gradient_norm": torch.stack(norms), "steps.learning_rate": rates, **after}


def make_small_student(out: Path) -> None:
    directory = out / "student-small"
    directory.mkdir(parents=True, exist_ok=True)
    batches, tensors = random_batches(), {}
    for number, (batch, targets) in enumerate(batches):
        tensors |= {
            f"batch.{number}.offsets": batch.offsets,
            f"batch.{number}.input_ids": np.concatenate(batch.sequences),
            f"batch.{number}.asked": targets.asked.numpy(),
            f"batch.{number}.labels": targets.labels.numpy(),
            f"batch.{number}.top_ids": targets.top_ids.numpy(),
            f"batch.{number}.log_probabilities": targets.log_probabilities.numpy(),
            f"batch.{number}.hidden": targets.hidden.numpy(),
        }
    for precision, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        model = random_student()
        if precision == "float64":
            save_student(model, directory)
        model = model.to(dtype)
        hidden, logits, parts = losses(model, *batches[0])
        parts[0].backward()
        results = {"hidden": hidden, "logits": logits, "loss": parts}
        results |= {f"gradient.{name}": parameter.grad.clone() for name, parameter in model.named_parameters()}
        results |= ten_steps(model, batches)
        tensors |= {f"{precision}.{name}": value.detach().numpy() for name, value in results.items()}
    save(tensors, directory / "golden.safetensors")


def save_student(model: DistilBertForMaskedLM, directory: Path) -> None:
    """As transformers lays a model out, the tied decoder left out."""
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = ["DistilBertForMaskedLM"]
    model.config.save_pretrained(directory)


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
    teacher = BertForMaskedLM.from_pretrained(DATA / "teacher", attn_implementation="eager")
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


def save(tensors: dict[str, np.ndarray], path: Path) -> None:
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)
    print(f"{path}: {len(tensors)} tensors, {path.stat().st_size:,} bytes")


def compare(made: Path, committed: Path) -> list[str]:
    """One line for each tensor that differs by more than its tolerance."""
    expected, found, complaints = load_file(committed), load_file(made), []
    if set(expected) != set(found):
        return [f"{committed}: other tensors: {sorted(set(expected) ^ set(found))}"]
    for name, value in expected.items():
        other = found[name]
        if value.shape != other.shape or value.dtype != other.dtype:
            complaints.append(f"{committed}: {name}: {value.dtype}{value.shape} committed, {other.dtype}{other.shape} made")
            continue
        kind = "float32.after" if name.startswith("float32.after.") else str(value.dtype)
        absolute, relative = TOLERANCE.get(kind, (0.0, 0.0))
        limit = absolute + relative * np.abs(value)
        off = np.argwhere(~(np.abs(value - other) <= limit))
        if len(off):
            first = ", ".join(f"{tuple(map(int, at))}: {value[tuple(at)]} committed, {other[tuple(at)]} made" for at in off[:3])
            complaints.append(f"{committed}: {name}: {len(off)} of {value.size} elements differ: {first}")
    return complaints


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing them")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if arguments.check else GOLDEN
        batch, teacher = make_teacher(out)
        make_small_student(out)
        make_real_student(out, batch, teacher)
        if not arguments.check:
            return 0
        complaints = [line for made in sorted(out.rglob("*.safetensors")) for line in compare(made, GOLDEN / made.relative_to(out))]
    print("\n".join(complaints) or "the goldens made anew equal the committed ones within the tolerances")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
