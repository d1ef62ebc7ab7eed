"""Runs every export in ONNX Runtime and compares with what transformers answered."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from safetensors.numpy import load_file

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


def session(model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def feeds(made: onnxruntime.InferenceSession, expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The batch's inputs; positions counted from 0; no earlier keys and values."""
    (rows, length), given = expected["input_ids"].shape, {}
    for each in made.get_inputs():
        if each.name.startswith("past_key_values."):
            kind = np.float16 if each.type == "tensor(float16)" else np.float32
            given[each.name] = np.zeros((rows, each.shape[1], 0, each.shape[3]), kind)
        elif each.name == "position_ids":
            given[each.name] = np.tile(np.arange(length), (rows, 1))
        elif each.name == "use_cache_branch":
            given[each.name] = np.array([False])
        else:
            given[each.name] = expected[each.name]
    return given


def difference(found: np.ndarray, expected: np.ndarray, mask: np.ndarray) -> float:
    """The largest one; of rows for each token, only where the mask is 1."""
    off = np.abs(found.astype(np.float32) - expected)
    return float((off[mask == 1] if off.ndim == 3 else off).max())


def inner_tensors(path: Path, expected: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Every floating-point tensor of the graph that has the shape of a hidden state."""
    model = onnx.load(path)
    wanted = [name for node in model.graph.node for name in node.output if name]
    known = {each.name for each in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    made = session(model.SerializeToString())
    shape = expected["hidden_0"].shape
    return [value for value in made.run(None, feeds(made, expected)) if getattr(value, "shape", None) == shape and value.dtype.kind == "f"]


def continues(path: Path, expected: dict[str, np.ndarray]) -> float:
    """A decoder given the keys and values of the first four tokens of the longest sequence: the rest must come out as before."""
    made, cut, ids = session(str(path)), 4, expected["input_ids"][:1]
    start = {**expected, "input_ids": ids[:, :cut], "attention_mask": np.ones((1, cut), np.int64)}
    names = [each.name for each in made.get_outputs()]
    present = dict(zip(names, made.run(None, feeds(made, start))))
    rest = {"input_ids": ids[:, cut:], "attention_mask": np.ones_like(ids), "position_ids": np.arange(cut, ids.shape[1])[None]}
    for each in made.get_inputs():
        if each.name.startswith("past_key_values."):
            rest[each.name] = present[each.name.replace("past_key_values.", "present.")]
        elif each.name == "use_cache_branch":
            rest[each.name] = np.array([True])
    return float(np.abs(made.run(["logits"], rest)[0].astype(np.float32) - expected["logits"][:1, cut:]).max())


def verify(out: Path, cases: list[dict]) -> list[str]:
    """Complaints; prints what was found of each export."""
    complaints = []
    for facts in cases:
        path, expected = out / facts["model"], load_file(out / facts["expected"])
        mask, made = expected["attention_mask"], session(str(path))
        answers = dict(zip([each.name for each in made.get_outputs()], made.run(None, feeds(made, expected))))
        found = {name: difference(answers[name], expected[key], mask) for name, key in facts["outputs"].items()}
        if any(each.name.startswith("past_key_values.") for each in made.get_inputs()):
            found["continued"] = continues(path, expected)
        layers = [name for name in sorted(expected) if name.startswith("hidden_")]
        if facts["hidden"]:
            tensors = inner_tensors(path, expected)
            found |= {layer: min(difference(each, expected[layer], mask) for each in tensors) for layer in layers}
        worst = max(found.values())
        if worst > facts["tolerance"]:
            complaints.append(f"{facts['model']}: {found}, tolerance {facts['tolerance']}")
        opset = max(each.version for each in onnx.load(path, load_external_data=False).opset_import if each.domain in ("", "ai.onnx"))
        print(f"{facts['model']}: {path.stat().st_size:,} bytes, opset {opset}, largest difference {worst:.1e} of {len(found)} tensors")
    return complaints
