"""The parameters of a TorchScript export under the names that transformers gives them."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import BertConfig, BertForMaskedLM

from .files import DATA

# The module that wraps a model for its export, in names of initialisers and of nodes.
WRAPPER = "model"
# The head's decoder is the word embeddings again.
TIED = "cls.predictions.decoder.weight"


def initialisers(path: Path) -> dict[str, np.ndarray]:
    """Biases, embeddings and LayerNorms are initialisers of their own names. The weight of a linear layer is stored as the MatMul takes it,
    transposed and under a number; its node has the module's path."""
    graph = onnx.load(path).graph
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    named = {name.removeprefix(f"{WRAPPER}."): value for name, value in arrays.items() if name.startswith(f"{WRAPPER}.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in arrays:
            module = node.name.removeprefix(f"/{WRAPPER}/").removesuffix("/MatMul").replace("/", ".")
            named[f"{module}.weight"] = np.ascontiguousarray(arrays[node.input[1]].T)
    return named


def demo_teacher() -> BertForMaskedLM:
    """The model of data/teacher, its weights out of model.onnx."""
    model = BertForMaskedLM(BertConfig.from_pretrained(DATA / "teacher", attn_implementation="eager"))
    weights = {name: torch.tensor(value) for name, value in initialisers(DATA / "teacher" / "model.onnx").items()}
    wanted = {name for name, _ in model.named_parameters()}
    assert wanted == set(weights) - {TIED}, f"model and export disagree on {wanted ^ (set(weights) - {TIED})}"
    model.load_state_dict({name: weights[name] for name in wanted}, strict=False)
    model.tie_weights()
    assert torch.equal(model.state_dict()[TIED], weights[TIED]), "the decoder is not tied to the word embeddings"
    return model
