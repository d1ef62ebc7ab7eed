"""The default objective, and ten steps of the default optimiser."""

import torch
import torch.nn.functional as functional

from .packed import IGNORED, Batch, forward

TEMPERATURE = 2.0
WEIGHTS = {"ce": 5.0, "mlm": 2.0, "cos": 1.0}
STEPS, WARMUP_STEPS, PEAK, CLIP = 10, 2, 0.005, 5.0


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


def learning_rate(step: int) -> float:
    """Linear warm-up from 0, then linear decay towards 0, a function of the number of updates done."""
    if step < WARMUP_STEPS:
        return PEAK * step / WARMUP_STEPS
    return PEAK * (STEPS - step) / (STEPS - WARMUP_STEPS)


def ten_steps(parameters: dict[str, torch.nn.Parameter], losses_at) -> dict[str, torch.Tensor]:
    """`losses_at(step)` gives the losses of a step, the total first."""
    optimiser = torch.optim.AdamW(parameters.values(), lr=PEAK, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.0)
    parts, norms = [], []
    for step in range(STEPS):
        optimiser.zero_grad()
        parts.append(losses_at(step))
        parts[-1][0].backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters.values(), CLIP))
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step)
        optimiser.step()
    after = {f"after.{name}": parameter.detach() for name, parameter in parameters.items()}
    rates = torch.tensor([learning_rate(step) for step in range(STEPS)], dtype=norms[0].dtype)
    return {"steps.loss": torch.stack(parts).detach(), "steps.gradient_norm": torch.stack(norms), "steps.learning_rate": rates, **after}
