"""What becomes of an export before someone uses it: int8, weights in a file beside, two graphs in one."""

import logging
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

# Weights of 7 bits: on processors without VNNI the product of two full bytes saturates, and the answers would depend on the machine.
INT8 = dict(weight_type=QuantType.QInt8, reduce_range=True)
# Initialisers of fewer elements are a graph's constants.
FEW = 8


def dynamic_int8(source: Path, path: Path) -> None:
    """Weights in int8, activations quantised as they come: DynamicQuantizeLinear and MatMulInteger."""
    logging.disable(logging.WARNING)
    quantize_dynamic(str(source), str(path), per_channel=True, **INT8)


def static_int8(source: Path, path: Path, inputs: dict[str, np.ndarray]) -> None:
    """QuantizeLinear and DequantizeLinear around what is quantised, with ranges calibrated on `inputs`."""

    class Once(CalibrationDataReader):
        left = [inputs]

        def get_next(self):
            return self.left.pop() if self.left else None

    logging.disable(logging.WARNING)
    options = dict(quant_format=QuantFormat.QDQ, per_channel=True, op_types_to_quantize=["MatMul", "Gather"])
    quantize_static(str(source), str(path), Once(), **options, **INT8)


def external(source: Path, path: Path) -> None:
    options = dict(save_as_external_data=True, all_tensors_to_one_file=True, location=f"{path.name}_data", size_threshold=256)
    path.with_name(f"{path.name}_data").unlink(missing_ok=True)
    onnx.save_model(onnx.load(source), path, **options)


def branch(graph: onnx.GraphProto, name: str, shared: dict[str, str], outside: set[str]) -> onnx.GraphProto:
    """A graph without inputs, for an If: its own tensors get short names, initialisers in `shared` and `outside` names are those of the graph around
    it."""
    own = {"": ""}

    def new(old: str) -> str:
        return old if old in outside else shared.get(old) or own.setdefault(old, f"{name}.{len(own)}")

    nodes = []
    for node in graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for field in ("name", "input", "output"):
            copy.ClearField(field)
        copy.input.extend(map(new, node.input))
        copy.output.extend(map(new, node.output))
        nodes.append(copy)
    kept = [numpy_helper.from_array(numpy_helper.to_array(each), new(each.name)) for each in graph.initializer if each.name not in shared]
    outputs = [helper.make_tensor_value_info(new(each.name), each.type.tensor_type.elem_type, None) for each in graph.output]
    return helper.make_graph(nodes, name, [], outputs, kept)


def merged(first: Path, later: Path, path: Path) -> None:
    """optimum's decoder_model_merged: `use_cache_branch` chooses between the graph for a first call and the one that reads earlier keys and values.
    Both share the weights."""
    one, two = onnx.load(first), onnx.load(later)
    inputs = list(two.graph.input) + [helper.make_tensor_value_info("use_cache_branch", TensorProto.BOOL, [1])]
    outside, weights, branches = {each.name for each in inputs}, {}, []
    for model, name in ((one, "first"), (two, "later")):
        shared = {}
        for each in model.graph.initializer:
            value = numpy_helper.to_array(each)
            if value.size >= FEW:
                key = (value.dtype.str, value.shape, value.tobytes())
                shared[each.name] = weights.setdefault(key, numpy_helper.from_array(value, f"merged/{each.name}")).name
        branches.append(branch(model.graph, name, shared, outside))
    names = [each.name for each in two.graph.output]
    chosen = helper.make_node("If", ["use_cache_branch"], names, name="optimum::if", then_branch=branches[1], else_branch=branches[0])
    graph = helper.make_graph([chosen], "merged", inputs, list(two.graph.output), list(weights.values()))
    onnx.save(helper.make_model(graph, opset_imports=two.opset_import, ir_version=two.ir_version, producer_name="merged"), path)
