#!/usr/bin/env python3
"""Small random encoders in the forms that ONNX files come in, each with what transformers gives; data/golden/README.md describes them.

    target/venv-transformers/bin/python data/scripts/make_onnx_fixtures.py            # writes data/golden/onnx
    target/venv-transformers/bin/python data/scripts/make_onnx_fixtures.py --check    # runs them anew and compares with what is there
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.transformers import optimizer
from safetensors.numpy import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

ONNX = Path(__file__).resolve().parent.parent / "golden" / "onnx"
VOCABULARY, WIDTH = 64, 16
SHAPE = dict(hidden_size=WIDTH, num_attention_heads=2, intermediate_size=24, vocab_size=VOCABULARY)
FLOAT_TOLERANCE, HALF_TOLERANCE = 1e-5, 2e-2


def make_model(family: str):
    """A model whose every parameter is random and differs from every other: exporters merge equal initialisers, and names vanish."""
    torch.manual_seed(sum(map(ord, family)))
    if family == "bert":
        model = BertForMaskedLM(BertConfig(num_hidden_layers=3, max_position_embeddings=16, **SHAPE))
    elif family == "roberta":
        model = RobertaForMaskedLM(RobertaConfig(num_hidden_layers=2, max_position_embeddings=18, type_vocab_size=1, **SHAPE))
    else:
        sizes = dict(n_layers=3, dim=WIDTH, n_heads=2, hidden_dim=24, vocab_size=VOCABULARY, max_position_embeddings=16)
        model = DistilBertForMaskedLM(DistilBertConfig(**sizes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * torch.randn_like(parameter))
    model.set_attn_implementation("eager")
    model.config.architectures = [type(model).__name__]
    return model.eval()


def input_names(model) -> list[str]:
    segments = ["token_type_ids"] if model.config.model_type == "bert" else []
    return ["input_ids", "attention_mask", *segments]


def make_inputs(model) -> dict[str, torch.Tensor]:
    """Three sequences of 9, 5 and 1 tokens, padded; the second half of a sequence is its second segment."""
    random = np.random.default_rng(3)
    lengths, width = (9, 5, 1), 9
    mask = np.array([[int(i < length) for i in range(width)] for length in lengths])
    padding = model.config.pad_token_id
    ids = np.where(mask == 1, random.integers(5, VOCABULARY, mask.shape), padding)
    segments = np.array([[int(length // 2 < i < length) for i in range(width)] for length in lengths])
    arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
    return {name: torch.tensor(arrays[name], dtype=torch.int64) for name in input_names(model)}


class Positional(torch.nn.Module):
    """The exporters want positional inputs and tensor outputs."""

    def __init__(self, model, hidden_states: bool = False, half_logits: bool = False):
        super().__init__()
        self.model, self.names, self.hidden_states, self.half_logits = model, input_names(model), hidden_states, half_logits

    def forward(self, *inputs):
        output = self.model(**dict(zip(self.names, inputs)), output_hidden_states=self.hidden_states)
        first = output.logits if "logits" in output else output.last_hidden_state
        first = first.half() if self.half_logits else first
        return (first, *output.hidden_states) if self.hidden_states else first


def export(model, path: Path, opset: int = 17, dynamo: bool = False, training: bool = False, **options) -> None:
    wrapper = Positional(model, **options)
    wrapper.train(training)
    names = input_names(model)
    inputs = tuple(torch.full((2, 8), 7 if name == "input_ids" else 1) for name in names)
    outputs = ["logits" if "For" in type(model).__name__ else "last_hidden_state"]
    if options.get("hidden_states"):
        outputs += [f"hidden_states.{layer}" for layer in range(model.config.num_hidden_layers + 1)]
    if dynamo:
        axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence")}
        shapes = dict(dynamic_shapes=(tuple(axes for _ in names),), external_data=False)
    else:
        mode = torch.onnx.TrainingMode.TRAINING if training else torch.onnx.TrainingMode.EVAL
        axes = {0: "batch", 1: "sequence"}
        shapes = dict(dynamic_axes={name: axes for name in names + outputs}, opset_version=opset, training=mode)
        shapes |= dict(do_constant_folding=not training)
    torch.onnx.export(wrapper, inputs, str(path), input_names=names, output_names=outputs, dynamo=dynamo, verbose=False, **shapes)
    strip(path)


def strip(path: Path) -> None:
    """Removes what would name this machine (stack traces, documentation texts) and notes for people that double a small file's size."""
    model = onnx.load(path)
    for noted in (model, model.graph, *model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del noted.metadata_props[:]
    for node in model.graph.node:
        node.doc_string = ""
        scopes = [entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes"]
        del node.metadata_props[:]
        for value in scopes:
            node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=value)
    onnx.save(model, path)


def optimised(source: Path, path: Path, level) -> None:
    """What a session saves after its own optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level, options.optimized_model_filepath, options.log_severity_level = level, str(path), 3
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


def fused(source: Path, path: Path) -> None:
    """The optimiser tool that comes with ONNX Runtime: whole attentions and embeddings become one node each."""
    model = optimizer.optimize_model(str(source), model_type="bert", num_heads=2, hidden_size=WIDTH, opt_level=0, use_gpu=False)
    model.save_model_to_file(str(path))
    strip(path)


def external(source: Path, path: Path) -> None:
    options = dict(save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}_data", size_threshold=256)
    onnx.save_model(onnx.load(source), path, **options)


def with_a_nan(source: Path, path: Path) -> None:
    """One weight of the last encoder layer's LayerNorm is not a number."""
    model = onnx.load(source)
    (tensor,) = (t for t in model.graph.initializer if t.name.endswith("layer.2.output.LayerNorm.weight"))
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[3] = np.nan
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def case(name: str, family: str, **facts) -> dict:
    """`logits`: the output's name. `tolerance`: of logits and hidden states against expected.safetensors. `refuse`: why it must be refused.
    `finite`: whether its answers are numbers."""
    default = dict(logits="logits", tolerance=FLOAT_TOLERANCE, hidden_outputs=False, finite=True, refuse=None)
    return dict(name=f"{family}-{name}", model=f"{family}/{name}.onnx", expected=f"{family}/expected.safetensors", **{**default, **facts})


def make_bert(out: Path, model) -> list[dict]:
    base = BertModel(model.config, add_pooling_layer=False).eval()
    base.load_state_dict(model.bert.state_dict())
    levels = onnxruntime.GraphOptimizationLevel
    plain = out / "torchscript-17.onnx"
    export(model, plain)
    export(model, out / "torchscript-14.onnx", opset=14)
    export(model, out / "torchscript-11.onnx", opset=11)
    export(model, out / "dynamo.onnx", dynamo=True)
    scaled = make_model("bert")
    # PyTorch's own attention, which its exporter spells out in its own way: query and key scaled before their product, no number left where all is masked.
    scaled.set_attn_implementation("sdpa")
    export(scaled, out / "torchscript-17-sdpa.onnx")
    optimised(plain, out / "runtime-basic.onnx", levels.ORT_ENABLE_BASIC)
    optimised(plain, out / "runtime-extended.onnx", levels.ORT_ENABLE_EXTENDED)
    fused(plain, out / "runtime-fused.onnx")
    export(model, out / "half-logits.onnx", half_logits=True)
    export(make_model("bert").half(), out / "half.onnx")
    external(plain, out / "external.onnx")
    export(model, out / "hidden-outputs.onnx", hidden_states=True)
    export(base, out / "no-logits.onnx")
    with_a_nan(plain, out / "nan.onnx")
    export(make_model("bert"), out / "train-mode.onnx", training=True)
    return [
        case("torchscript-17", "bert"),
        case("torchscript-14", "bert"),
        case("torchscript-11", "bert"),
        case("dynamo", "bert"),
        case("torchscript-17-sdpa", "bert"),
        case("runtime-basic", "bert"),
        case("runtime-extended", "bert"),
        case("runtime-fused", "bert"),
        case("half-logits", "bert", tolerance=HALF_TOLERANCE),
        case("half", "bert", tolerance=HALF_TOLERANCE),
        case("external", "bert"),
        case("hidden-outputs", "bert", hidden_outputs=True),
        case("no-logits", "bert", logits=None, refuse="no output holds logits"),
        case("nan", "bert", finite=False, refuse="logits that are not numbers"),
        case("train-mode", "bert", refuse="Dropout nodes that are active"),
    ]


def make_family(out: Path, family: str) -> list[dict]:
    """config.json, expected.safetensors and the exports of one model."""
    directory = out / family
    directory.mkdir(parents=True)
    model = make_model(family)
    model.config.save_pretrained(directory)
    inputs = make_inputs(model)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    tensors = {name: value.numpy() for name, value in inputs.items()} | {"logits": output.logits.numpy()}
    tensors |= {f"hidden_{layer}": state.numpy() for layer, state in enumerate(output.hidden_states)}
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, directory / "expected.safetensors")
    if family == "bert":
        return make_bert(directory, model)
    export(model, directory / "torchscript-17.onnx")
    export(model, directory / "dynamo.onnx", dynamo=True)
    return [case("torchscript-17", family), case("dynamo", family)]


def run(path: Path, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {value.name: expected[value.name] for value in session.get_inputs()})))


def verify(out: Path, cases: list[dict]) -> list[str]:
    """Runs each model and compares with transformers where the positions are not padding."""
    complaints = []
    for facts in cases:
        expected = load_file(out / facts["expected"])
        answers, kept = run(out / facts["model"], expected), expected["attention_mask"] == 1
        wanted = {"logits": "logits"} if facts["logits"] else {"last_hidden_state": "hidden_3"}
        if facts["hidden_outputs"]:
            wanted |= {f"hidden_states.{layer}": f"hidden_{layer}" for layer in range(4)}
        worst = max(float(np.abs(answers[name].astype(np.float32) - expected[key])[kept].max()) for name, key in wanted.items())
        # A session for inference takes Dropout for nothing, so the train-mode export still answers well: the file alone shows it.
        if set(answers) != set(wanted) or (worst <= facts["tolerance"]) != facts["finite"]:
            complaints.append(f"{facts['model']}: outputs {sorted(answers)}, {worst:.2e} off, tolerance {facts['tolerance']}")
        print(f"{facts['model']}: {(out / facts['model']).stat().st_size:,} bytes, largest difference {worst:.1e}")
    return complaints


def check(made: Path, cases: list[dict]) -> list[str]:
    """The committed expectations equal those made now, and the committed models still give them."""
    complaints = [] if json.loads((ONNX / "index.json").read_text()) == cases else ["index.json lists other cases"]
    for path in sorted(made.rglob("expected.safetensors")):
        now, committed = load_file(path), load_file(ONNX / path.relative_to(made))
        same = set(now) == set(committed) and all(np.allclose(now[name], committed[name], rtol=1e-5, atol=1e-5) for name in now)
        complaints += [] if same else [f"{path.relative_to(made)} is not what transformers gives"]
    return complaints + verify(ONNX, cases)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing them")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) if arguments.check else ONNX
        families = ("bert", "roberta", "distilbert")
        for family in families:
            shutil.rmtree(out / family, ignore_errors=True)
        cases = [facts for family in families for facts in make_family(out, family)]
        if not arguments.check:
            (out / "index.json").write_text(json.dumps(cases, indent=1) + "\n")
        complaints = verify(out, cases) + (check(out, cases) if arguments.check else [])
    print("\n".join(complaints) or "every model gives what transformers gives")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
