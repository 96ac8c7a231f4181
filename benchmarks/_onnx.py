"""Small models for the runtimes that read ONNX."""

from __future__ import annotations

import io
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OPSET, IR = 18, 9
Node = tuple[str, str, str, dict[str, Any]]  # operator, inputs and outputs separated by spaces, attributes


def model(
    nodes: Sequence[Node], inputs: Mapping[str, Tensor], outputs: str, constants: Mapping[str, Any] = {}
) -> bytes:
    """A model in ONNX.

    Args:
        nodes: in order.
        inputs: name -> a tensor of its type and shape.
        outputs: names of the results, separated by spaces.
        constants: name -> numpy array.

    Returns:
        The file's contents.
    """
    import onnx
    from onnx import helper, numpy_helper

    def info(name: str, tensor: Tensor) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype), tensor.shape)

    graph = helper.make_graph(
        [helper.make_node(op, i.split(), o.split(), **attributes) for op, i, o, attributes in nodes],
        "model",
        [info(name, tensor) for name, tensor in inputs.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs.split()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    return onnx.shape_inference.infer_shapes(made).SerializeToString()


def exported(module: nn.Module, x: Tensor) -> bytes:
    """A module with one input, as PyTorch exports it."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the new exporter takes ten times as long
        torch.onnx.export(module, (x,), file, dynamo=False, input_names=["x"], output_names=["y"])
    return file.getvalue()


def quantized(made: bytes, photos: Tensor) -> bytes:
    """A model in int8, as ONNX Runtime makes it, with levels for each result's weights; OpenVINO runs it in int8 too.

    Args:
        made: with one input, x.
        photos: of which the levels are told, a whole number of batches.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    batch = onnx.load_from_string(made).graph.input[0].type.tensor_type.shape.dim[0].dim_value

    class Photos(CalibrationDataReader):
        batches = iter(photos.split(batch))

        def get_next(self) -> dict[str, Any] | None:
            x = next(self.batches, None)
            return None if x is None else {"x": x.numpy()}

    with tempfile.TemporaryDirectory() as folder:
        plain, ready, done = (Path(folder) / name for name in ("plain.onnx", "ready.onnx", "done.onnx"))
        plain.write_bytes(made)
        logging.disable(logging.WARNING)  # of both: that a model should be prepared, which it is
        try:
            quant_pre_process(plain, ready)
            types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
            quantize_static(ready, done, Photos(), quant_format=QuantFormat.QDQ, per_channel=True, **types)
        finally:
            logging.disable(logging.NOTSET)
        return done.read_bytes()
