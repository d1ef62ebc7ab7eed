"""decoders/: small random decoders under the objective of a causal language model."""

from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from .files import save
from .heads import weighted
from .losses import Targets, ce, outcomes
from .objectives import flat
from .packed import IGNORED, Batch, descending, forward
from .recipe import TEMPERATURE, ten_steps
from .students import save_student

VOCABULARY, WIDTH, LONGEST, KEPT = 20, 8, 8, 5
LOSS = "ce=5,gold=2,cos=1"
SINGLE = torch.float32  # by this name where `double_precision` has given the other away


def llama(**settings) -> LlamaForCausalLM:
    """A rope that turns within the few positions there are."""
    shape = dict(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=12, max_position_embeddings=LONGEST, rms_norm_eps=1e-5)
    return LlamaForCausalLM(LlamaConfig(**shape, rope_parameters={"rope_type": "default", "rope_theta": 50.0}, attn_implementation="eager", **settings))


def model_of(name: str) -> PreTrainedModel:
    """Two query heads share one of keys and values in `llama`, whose head is its embeddings; in `llama-untied` each has its own."""
    torch.manual_seed(sum(map(ord, name)))
    if name == "llama":
        model = llama(num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=True)
    elif name == "llama-untied":
        model = llama(num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=False)
    else:
        config = GPT2Config(
            vocab_size=VOCABULARY, n_embd=WIDTH, n_head=2, n_layer=2, n_inner=12, n_positions=LONGEST, bos_token_id=0, eos_token_id=0,
            embd_pdrop=0.0, attn_pdrop=0.0, resid_pdrop=0.0, attn_implementation="eager",
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            is_scale = ("norm" in parameter_name or ".ln_" in parameter_name) and parameter_name.endswith("weight")
            parameter.copy_((1.0 if is_scale else 0.0) + 0.3 * torch.randn_like(parameter))
    return model.train()


@contextmanager
def double_precision():
    """transformers computes a Llama's norms and softmax in `torch.float32`, whatever the model's type: here the name means double."""
    with patch.object(torch, "float32", torch.float64):
        yield


def rounded_once(rotary, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [batch, length, head width] of a Llama's positions: in single precision, as every Llama has been trained with, and the
    nearest ones, where PyTorch's own differ between processors in the last digit."""
    with patch.object(torch, "float", torch.float64):
        frequencies = rotary.compute_default_rope_parameters(rotary.config)[0].to(SINGLE)
    angles = positions[..., None].to(SINGLE) * frequencies
    angles = torch.cat((angles, angles), dim=-1).double()
    return tuple(values.to(SINGLE).double() for values in (angles.cos(), angles.sin()))


def to_double(model: PreTrainedModel) -> PreTrainedModel:
    """The same parameters widened, a Llama's positions by `rounded_once`."""
    model = model.double()
    if isinstance(model, LlamaForCausalLM):
        rotary = model.model.rotary_emb
        rotary.forward = lambda _, position_ids: rounded_once(rotary, position_ids)
    return model


def random_batch() -> tuple[Batch, dict[str, np.ndarray]]:
    """All rows but one are asked; the label of a row is the next token, and a sequence's last row has none."""
    random = np.random.default_rng(13)
    sequences = [random.integers(1, VOCABULARY, length) for length in (5, 8, 1, 3)]
    batch = Batch(sequences)
    tokens = int(batch.offsets[-1])
    asked = np.delete(np.arange(tokens), 6).astype(np.int64)
    labels = np.concatenate([np.append(each[1:], IGNORED) for each in sequences])[asked]
    logits = 2.0 * random.normal(size=(len(asked), VOCABULARY))
    top_ids = descending(logits, KEPT)
    logs = torch.log_softmax(torch.tensor(logits) / TEMPERATURE, dim=1).numpy()
    return batch, {
        "offsets": batch.offsets,
        "input_ids": np.concatenate(sequences),
        "asked": asked,
        "labels": labels,
        "top_ids": top_ids,
        "log_probabilities": np.take_along_axis(logs, top_ids, axis=1).astype(np.float32),
        "max_logit": logits.max(axis=1).astype(np.float32),
        "hidden": random.normal(size=(tokens, WIDTH)).astype(np.float32),
    }


def part(name: str, logits: Tensor, last: Tensor, targets: Targets, hidden: np.ndarray) -> Tensor:
    if name == "cos":
        return (1.0 - functional.cosine_similarity(last, torch.tensor(hidden).double(), dim=1)).mean()
    if name == "gold":
        return functional.cross_entropy(logits, targets.labels, ignore_index=IGNORED)
    return ce(*outcomes(logits, targets, "ghost"), TEMPERATURE).mean()


def make_decoders(out: Path) -> None:
    for name in ("llama", "llama-untied", "gpt2"):
        model = model_of(name)
        save_student(model, out / name)
        model = to_double(model)
        batch, tensors = random_batch()
        stored = (torch.tensor(tensors[each]) for each in ("asked", "labels", "top_ids", "log_probabilities", "max_logit"))
        targets = Targets(*stored, TEMPERATURE)

        def outputs() -> tuple[Tensor, list[Tensor]]:
            with double_precision():
                return forward(model, batch)

        def losses() -> Tensor:
            logits, states = outputs()
            return weighted(LOSS, lambda each: part(each, logits[targets.asked], states[-1], targets, tensors["hidden"]))

        logits, states = outputs()
        losses()[0].backward()
        parameters = dict(model.named_parameters())
        gradients = {each: parameter.grad.clone() for each, parameter in parameters.items()}
        steps = ten_steps(parameters, lambda _: losses())
        results = {
            "logits": logits[targets.asked].detach().numpy(),
            **{f"states.{number}": state.detach().numpy() for number, state in enumerate(states)},
            "gradient": flat(gradients),
            "losses": steps["steps.loss"].numpy(),
            "after": flat({each: steps[f"after.{each}"].float() for each in parameters}),
        }
        save(tensors | results, out / name / "golden.safetensors")
