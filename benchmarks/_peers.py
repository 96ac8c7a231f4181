"""Peers that are not eager PyTorch; one that cannot take part says why."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import _onnx
from benchmarks._candidate import Candidate, Missing
from benchmarks._process import Remote
from fastnets.cli._terminal import one_line
from tests.models.peers import import_peer

RUNTIMES = {"onnxruntime": "float32", "openvino": "float32", "openvino bfloat16": "bfloat16"}
QUICK = Missing("not in --quick")
BATCHES = Missing("not attempted with more than one image: each compilation takes seconds")
quick = False  # set by --quick


def runtimes(
    model: Callable[[], bytes], inputs: Mapping[str, Tensor], names: Iterable[str] = RUNTIMES
) -> dict[str, Candidate | Missing]:
    """ONNX Runtime and OpenVINO, the latter in float32 and in bfloat16.

    Args:
        model: makes the ONNX model; called only where it is needed.
        inputs: by name.
        names: of those that take part.
    """
    if torch.get_default_device().type != "cpu":
        return dict.fromkeys(names, Missing("runs on the CPU"))
    made = functools.cache(model)  # exporting a network takes seconds
    return {name: _runtime(name, made, inputs) for name in names}


def _runtime(name: str, model: Callable[[], bytes], inputs: Mapping[str, Tensor]) -> Candidate | Missing:
    if name == "openvino bfloat16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return Missing("no bfloat16 on this processor")
    for package in ("onnx", name.partition(" ")[0]):
        if importlib.util.find_spec(package) is None:
            return Missing(f"{package} is not installed")
    return Remote(name, model(), dict(inputs), RUNTIMES[name])


def onnx_op(
    nodes: list[_onnx.Node], inputs: Mapping[str, Tensor], outputs: str = "y", constants: Mapping[str, Tensor] = {}
) -> dict[str, Candidate | Missing]:
    """The runtimes on a model of a few nodes (see ``_onnx.model``)."""

    def made() -> bytes:
        return _onnx.model(nodes, inputs, outputs, {name: t.contiguous().numpy() for name, t in constants.items()})

    return runtimes(made, inputs)


def convolution(
    x: Tensor, w: Tensor, b: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1, groups: int = 1
) -> dict[str, Candidate | Missing | Callable[[], tuple[Tensor, ...]]]:
    """The runtimes and ``torch.compile`` on one convolution, whose weights they may prepare."""
    attributes = {"strides": [stride] * 2, "pads": [padding] * 4, "dilations": [dilation] * 2, "group": groups}
    layer = torch.nn.Conv2d(x.shape[1], len(b), w.shape[2:], stride, padding, dilation, groups)
    layer.weight.data, layer.bias.data = w, b
    return {
        "compile": compiled(layer.eval(), x),
        **onnx_op([("Conv", "x w b", "y", attributes)], {"x": x}, "y", {"w": w, "b": b}),
    }


def compiled(module: Callable[..., Any], *inputs: Any) -> Callable[[], tuple[Tensor, ...]] | Missing:
    """``torch.compile``: with weights frozen on the CPU, the best of its plans with CUDA graphs on a GPU.

    Args:
        module: returns a tensor or a tuple of them; its parameters count as constants.
        inputs: what it is called with.
    """
    if quick:
        return QUICK
    torch._dynamo.reset()  # or a function that many cases share is left as it is from the ninth on
    how: dict[str, Any] = (
        {"options": {"freezing": True}} if inputs[0].device.type == "cpu" else {"mode": "max-autotune"}
    )
    fast = torch.compile(module, fullgraph=True, dynamic=False, **how)

    def run() -> tuple[Tensor, ...]:
        y = fast(*inputs)
        return y if isinstance(y, tuple) else (y,)

    try:
        with torch.no_grad():
            run()
    except Exception as error:  # noqa: BLE001  no compiler, or a bug in it, costs the peer and not the case
        return Missing(f"torch.compile fails: {one_line(error)}")
    return run


def torchvision_op(name: str, *inputs: Any) -> Callable[[], tuple[Tensor, ...]] | Missing:
    """An operator of torchvision's, which needs a torch that its binary was built for.

    Args:
        name: of ``torchvision.ops``.
        inputs: what it is called with.
    """
    try:
        op = getattr(import_peer("torchvision").ops, name)
        op(*inputs)
    except pytest.skip.Exception as skipped:
        return Missing(str(skipped))
    except RuntimeError as error:
        return Missing(f"does not run beside this torch: {one_line(error).partition('. ')[0]}")
    return lambda: (op(*inputs),)
