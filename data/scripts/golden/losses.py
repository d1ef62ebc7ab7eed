"""Every part of `--loss` in plain PyTorch: whole softmaxes and sums over them, gradients by autograd.

Divergences after Hinton et al. (2015; T^2) and Agarwal et al. (2024; the generalised Jensen-Shannon divergence). t is the teacher's and p the
student's distribution over the outcomes that a tail makes of the vocabulary.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor

from .packed import IGNORED


@dataclass
class Targets:
    """What a batch asks of a student; float32 as it is stored, computed with in double precision."""

    asked: Tensor  # [asked]: rows
    labels: Tensor  # [asked]
    top_ids: Tensor  # [asked, k]
    log_probabilities: Tensor  # [asked, k], at `temperature`
    max_logit: Tensor  # [asked]: not divided
    temperature: float
    pairs: list = field(default_factory=list)  # (student's state, teacher's state [tokens, width], projection or None)


def outcomes(logits: Tensor, targets: Targets, tail: str) -> tuple[Tensor, Tensor]:
    """t and p, [asked, outcomes] each."""
    teacher = targets.log_probabilities.double().exp()
    student = functional.softmax(logits / targets.temperature, dim=1)
    stored = student.gather(1, targets.top_ids)
    is_outside = torch.ones_like(student).scatter(1, targets.top_ids, 0.0)
    mass, student_rest = teacher.sum(dim=1, keepdim=True), (student * is_outside).sum(dim=1, keepdim=True)
    if tail == "ghost":
        return torch.cat([teacher, 1.0 - mass], dim=1), torch.cat([stored, student_rest], dim=1)
    if tail == "zero":
        return torch.cat([teacher, torch.zeros_like(mass)], dim=1), torch.cat([stored, student_rest], dim=1)
    if tail == "renormalised-teacher":
        return torch.cat([teacher / mass, torch.zeros_like(mass)], dim=1), torch.cat([stored, student_rest], dim=1)
    if tail == "renormalised-both":
        return teacher / mass, functional.softmax(logits.gather(1, targets.top_ids) / targets.temperature, dim=1)
    assert tail == "uniform", tail
    even = is_outside * (1.0 - mass) / is_outside.sum(dim=1, keepdim=True)
    return even.scatter(1, targets.top_ids, teacher), student


def kl(first: Tensor, second: Tensor) -> Tensor:
    """[asked]: KL(first || second); 0 ln 0 is 0."""
    return (torch.xlogy(first, first) - torch.xlogy(first, second)).sum(dim=1)


def ce(t: Tensor, p: Tensor, temperature: float) -> Tensor:
    return temperature**2 * kl(t, p)


def reverse_kl(t: Tensor, p: Tensor, temperature: float) -> Tensor:
    return temperature**2 * kl(p, t)


def jsd(t: Tensor, p: Tensor, temperature: float, beta: float) -> Tensor:
    """For beta between 0 and 1. At the ends it is 0; divided by beta or by 1 - beta it tends to `ce` and `reverse_kl` there."""
    mixture = (1.0 - beta) * p + beta * t
    return temperature**2 * (beta * kl(t, mixture) + (1.0 - beta) * kl(p, mixture))


def tvd(t: Tensor, p: Tensor, temperature: float) -> Tensor:
    return temperature * 0.5 * (t - p).abs().sum(dim=1)


def logit_mse(logits: Tensor, targets: Targets) -> Tensor:
    """Against the teacher's logits as it gave them: a log-probability at T is a logit / T less a constant of the row."""
    logs = targets.log_probabilities.double()
    teacher = targets.max_logit.double()[:, None] + targets.temperature * (logs - logs.max(dim=1, keepdim=True).values)
    return functional.mse_loss(logits.gather(1, targets.top_ids), teacher)


def of_hidden(name: str, states: list[Tensor], targets: Targets) -> Tensor:
    """`cos` or `hidden-mse`, a mean over the tokens and the pairs."""
    values = []
    for number, teacher, projection in targets.pairs:
        student, teacher = states[number] if projection is None else projection(states[number]), teacher.double()
        if name == "cos":
            values.append(functional.cosine_embedding_loss(student, teacher, torch.ones(len(student), dtype=torch.float64)))
        else:
            values.append(functional.mse_loss(student, teacher))
    return torch.stack(values).mean()


def part(name: str, options: dict[str, str], states: list[Tensor], logits: Tensor, targets: Targets) -> Tensor:
    """The unweighted value of a part; `logits` are those of the asked rows."""
    if name == "mlm":
        return functional.cross_entropy(logits, targets.labels, ignore_index=IGNORED)
    if name == "logit-mse":
        return logit_mse(logits, targets)
    if name in ("cos", "hidden-mse"):
        return of_hidden(name, states, targets)
    t, p = outcomes(logits, targets, options.get("tail", "ghost"))
    if name == "jsd":
        return jsd(t, p, targets.temperature, float(options.get("beta", 0.5))).mean()
    return {"ce": ce, "reverse-kl": reverse_kl, "tvd": tvd}[name](t, p, targets.temperature).mean()


def weight(text: str, options: dict[str, str], step: int, steps: int) -> float:
    """The weight of update `step`, counted from 0."""
    full, last, end = float(text), steps - 1, float(options.get("end", 0.0))
    if options.get("schedule") == "linear":
        return float(np.interp(step, [0, last], [full, end]))
    if options.get("schedule") == "wsd":
        rise, fall = (int(np.ceil(float(options[share]) * steps)) for share in ("warmup", "decay"))
        return float(np.interp(step, [0, rise, last - fall, last], [0.0, full, full, end]))
    return full


def parse(loss: str) -> dict[str, tuple[str, dict[str, str]]]:
    """`ce=5:tail=zero,mlm=2` as {"ce": ("5", {"tail": "zero"}), "mlm": ("2", {})}."""
    parts = {}
    for item in loss.split(","):
        head, *options = item.split(":")
        name, full = head.split("=")
        parts[name] = (full, dict(option.split("=") for option in options))
    return parts


def objective(loss: str, step: int, steps: int, states: list[Tensor], logits: Tensor, targets: Targets) -> Tensor:
    """[1 + parts]: the weighted total, then each part in the order of `loss`, 0 where it weighs nothing."""
    total, values = torch.zeros((), dtype=torch.float64), []
    for name, (full, options) in parse(loss).items():
        weighs = weight(full, options, step, steps)
        value = part(name, options, states, logits, targets) if weighs > 0.0 else torch.zeros((), dtype=torch.float64)
        total, values = total + weighs * value, [*values, value]
    return torch.stack([total, *values])
