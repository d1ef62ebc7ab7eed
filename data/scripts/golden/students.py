"""Random students, as transformers builds and stores them."""

from pathlib import Path

import torch
from safetensors.numpy import save_file
from transformers import PreTrainedModel


def randomise(model: PreTrainedModel) -> PreTrainedModel:
    """Draws every parameter; biases and LayerNorm too, so that no gradient is hidden behind a zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.3 * torch.randn_like(parameter))
    return model.train()


def save_student(model: PreTrainedModel, directory: Path) -> None:
    """As transformers lays a model out, the tied decoder left out."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: parameter.detach().numpy() for name, parameter in model.named_parameters()}
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(directory)
