"""ONNX files out of PyTorch, as export tools write them: names of inputs and outputs are optimum's."""

import warnings
from pathlib import Path

import torch
from make_onnx_fixtures import strip
from transformers import DynamicCache

from .inputs import input_names

BATCH, LENGTH, PAST = "batch_size", "sequence_length", "past_sequence_length"


class Positional(torch.nn.Module):
    """The exporters want positional inputs and tensor outputs: `outputs` names those of the model's answer."""

    def __init__(self, model, outputs: list[str]):
        super().__init__()
        self.model, self.names, self.outputs = model, input_names(model), outputs
        # A decoder would hand out its keys and values too.
        self.options = {"use_cache": False} if getattr(model.config, "use_cache", False) else {}

    def forward(self, *inputs):
        answer = self.model(**dict(zip(self.names, inputs)), **self.options)
        found = tuple(getattr(answer, name) for name in self.outputs)
        return found if len(found) > 1 else found[0]


class WithPast(torch.nn.Module):
    """A decoder that takes keys and values of earlier tokens and hands out those of all; or one that only hands them out."""

    def __init__(self, model, takes_past: bool):
        super().__init__()
        self.model, self.layers, self.takes_past = model, model.config.num_hidden_layers, takes_past

    def forward(self, input_ids, attention_mask, position_ids, *past):
        pairs = list(zip(past[::2], past[1::2]))
        cache = DynamicCache(pairs) if self.takes_past else None
        answer = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, past_key_values=cache, use_cache=True
        )
        present = [tensor for layer in answer.past_key_values.layers for tensor in (layer.keys, layer.values)]
        return (answer.logits, *present)


def run_exporter(wrapper, inputs: tuple, path: Path, axes: dict[str, dict[int, str]], outputs: list[str], opset: int, dynamo: bool) -> None:
    """`axes` has every input by name and every output whose sizes vary."""
    wrapper.eval()  # a new module is in train mode, and the dynamo exporter would write active Dropout nodes
    names = [name for name in axes if name not in outputs]
    if dynamo:
        dims = {name: torch.export.Dim(name) for name in (BATCH, LENGTH)}
        shapes = dict(dynamic_shapes=(tuple({at: dims[of] for at, of in axes[name].items()} for name in names),), external_data=False)
    else:
        shapes = dict(dynamic_axes=axes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapper, inputs, str(path), input_names=names, output_names=outputs, opset_version=opset, dynamo=dynamo, verbose=False, **shapes
        )
    strip(path)


def export(model, path: Path, outputs: dict[str, str] | None = None, opset: int = 17, dynamo: bool = False) -> None:
    """`outputs`: the graph's names of the answer's fields; `logits` or `last_hidden_state` by default."""
    is_headless = type(model).__name__.endswith("Model") and "LMHead" not in type(model).__name__
    field = "last_hidden_state" if is_headless else "logits"
    outputs = outputs or {field: field}
    wrapper, names = Positional(model, list(outputs.values())), input_names(model)
    inputs = tuple(torch.full((2, 8), 7 if name == "input_ids" else 1) for name in names)
    with torch.no_grad():
        answer = wrapper(*inputs)
    answer = answer if isinstance(answer, tuple) else (answer,)
    axes = {name: {0: BATCH, 1: LENGTH} for name in names}
    # Only a head for whole sequences has outputs without a length: [batch, classes] or [batch, width].
    axes |= {name: {0: BATCH, 1: LENGTH} if value.dim() == 3 else {0: BATCH} for name, value in zip(outputs, answer)}
    run_exporter(wrapper, inputs, path, axes, list(outputs), max(opset, 18) if dynamo else opset, dynamo)


def export_decoder(model, path: Path, takes_past: bool = True, opset: int = 17) -> None:
    """As optimum writes a decoder for generation: past_key_values.N.key and .value in, present.N.key and .value out."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    kinds = [f"{layer}.{kind}" for layer in range(config.num_hidden_layers) for kind in ("key", "value")]
    past, present = [f"past_key_values.{kind}" for kind in kinds], [f"present.{kind}" for kind in kinds]
    earlier, batch, length = (3, 2, 4) if takes_past else (0, 2, 4)
    kept = torch.ones((batch, heads, earlier, config.hidden_size // config.num_attention_heads), dtype=model.dtype)
    positions = torch.arange(earlier, earlier + length).expand(batch, length)
    inputs = (torch.full((batch, length), 7), torch.ones((batch, earlier + length), dtype=torch.int64), positions)
    axes = {"input_ids": {0: BATCH, 1: LENGTH}, "attention_mask": {0: BATCH, 1: "total_sequence_length"}, "position_ids": {0: BATCH, 1: LENGTH}}
    if takes_past:
        inputs += tuple(kept.clone() for _ in past)
        axes |= {name: {0: BATCH, 2: PAST} for name in past}
    axes |= {"logits": {0: BATCH, 1: LENGTH}, **{name: {0: BATCH, 2: "total_sequence_length"} for name in present}}
    run_exporter(WithPast(model, takes_past), inputs, path, axes, ["logits", *present], opset, dynamo=False)
