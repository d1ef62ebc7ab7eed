"""Masked and causal language models of the families that data/golden/onnx has not."""

from pathlib import Path

from .exports import export, export_decoder
from .inputs import answers, make_inputs, save
from .models import make_model
from .variants import dynamic_int8, external, merged, static_int8
from .vocabularies import save_tokenizer

FLOAT_TOLERANCE, HALF_TOLERANCE = 1e-5, 2e-2


def case(directory: str, name: str, task: str, tolerance: float = FLOAT_TOLERANCE, hidden: bool = True, outputs: dict | None = None) -> dict:
    """`outputs`: the tensor of `expected` that each output must equal within `tolerance`. `hidden`: whether every hidden state is a tensor of the
    outermost graph."""
    return {
        "name": f"{directory}/{name}",
        "model": f"{directory}/{name}.onnx",
        "expected": f"{directory}/expected.safetensors",
        "task": task,
        "outputs": outputs or {"logits": "logits"},
        "tolerance": tolerance,
        "hidden": hidden,
    }


def start(out: Path, name: str, family: str, model, further: dict | None = None) -> Path:
    """A directory with the configuration, the tokenizer and what transformers answers."""
    directory = out / name
    directory.mkdir(parents=True)
    model.config.save_pretrained(directory)
    save_tokenizer(family, directory)
    save(answers(model) | (further or {}), directory / "expected.safetensors")
    return directory


def make_encoder(out: Path, family: str) -> list[dict]:
    model = make_model(family, "ForMaskedLM")
    directory = start(out, family, family, model)
    plain = directory / "model.onnx"
    export(model, plain)
    export(model, directory / "dynamo.onnx", dynamo=True)
    cases = [case(family, "model", "masked-lm"), case(family, "dynamo", "masked-lm")]
    if family == "electra":
        dynamic_int8(plain, directory / "int8-dynamic.onnx")
        cases.append(case(family, "int8-dynamic", "masked-lm", tolerance=0.2))
    if family == "xlm-roberta":
        static_int8(plain, directory / "int8-static.onnx", {name: value.numpy() for name, value in make_inputs(model).items()})
        cases.append(case(family, "int8-static", "masked-lm", tolerance=0.2))
    if family == "albert":
        export(model, directory / "opset-11.onnx", opset=11)
        cases.append(case(family, "opset-11", "masked-lm"))
    return cases


def make_decoder(out: Path, family: str, head: str) -> list[dict]:
    model = make_model(family, head)
    directory = start(out, family, family, model)
    plain, later = directory / "model.onnx", directory / "past.onnx"
    export(model, plain)
    export(model, directory / "dynamo.onnx", dynamo=True)
    export_decoder(model, later)
    cases = [case(family, name, "causal-lm") for name in ("model", "dynamo", "past")]
    export_decoder(make_model(family, head).half(), directory / "half-past.onnx")
    cases.append(case(family, "half-past", "causal-lm", tolerance=HALF_TOLERANCE))
    if family == "gpt2":
        first = directory / "first.onnx"
        export_decoder(model, first, takes_past=False)
        merged(first, later, directory / "merged.onnx")
        first.unlink()
        cases.append(case(family, "merged", "causal-lm", hidden=False))
        dynamic_int8(later, directory / "int8-past.onnx")
        cases.append(case(family, "int8-past", "causal-lm", tolerance=0.2))
    else:
        newest = directory / "opset-21.onnx"
        export(model, newest, opset=21, dynamo=True)
        external(newest, directory / "external.onnx")
        cases += [case(family, name, "causal-lm") for name in ("opset-21", "external")]
    return cases


def make_language_models(out: Path) -> list[dict]:
    encoders = [facts for family in ("albert", "electra", "mpnet", "xlm-roberta") for facts in make_encoder(out, family)]
    return encoders + make_decoder(out, "gpt2", "LMHeadModel") + make_decoder(out, "llama", "ForCausalLM")
