"""torch.compile(model, backend="fastnets")."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from peers import difference, settle
from torch import nn

import fastnets
from fastnets.accelerate._compile import compile_backend
from fastnets.models import create_model


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def image(n: int, size: int) -> torch.Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_it_is_found_by_name():
    assert "fastnets" in torch._dynamo.list_backends()


@pytest.mark.parametrize("dynamic", (False, True))
@pytest.mark.parametrize(
    ("name", "options"),
    [("mobilenet_v2", {"width": 0.25}), ("shufflenet_v2_x0_5", {}), ("squeezenet1_1", {})],
)
def test_the_same_numbers_on_our_kernels(name, options, dynamic):
    model, graphs = settle(create_model(name, num_classes=10, **options)).eval(), []

    def backend(network, inputs):
        fast = compile_backend(network, inputs)
        graphs.append({node.target for node in network.graph.nodes if node.op == "call_function"})
        return fast

    fast = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)
    with torch.inference_mode():
        for x in (image(2, 64), image(3, 96)):
            assert difference(fast(x), model(x)) < 1e-5
    assert all(not graph & {F.batch_norm, torch.conv2d, F.hardtanh, F.dropout} for graph in graphs)
    assert len(graphs) == (1 if dynamic else 2)


def test_each_kind_of_convolution_runs_here():
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, groups=2), fastnets.layers.Conv2d(8, 16, 3, groups=8)
    ).eval()
    x = torch.randn(1, 8, 9, 9)
    with torch.inference_mode():
        expected = model(x)
        fastnets.backend_report(reset=True)
        torch.testing.assert_close(torch.compile(model, backend=compile_backend)(x), expected)
    calls = {op: sum(entry["calls"].values()) for op, entry in fastnets.backend_report().items()}
    assert calls == {"depthwise_conv2d": 2, "grouped_conv2d": 1}


def test_images_are_returned_in_the_layout_that_the_code_after_the_graph_expects():
    conv = nn.Conv2d(3, 4, 3).eval()

    def broken(x):
        y = conv(x)
        torch._dynamo.graph_break()
        return y.view(-1)

    with torch.inference_mode():
        x = image(2, 8)
        torch.testing.assert_close(torch.compile(broken, backend=compile_backend)(x), broken(x))


def test_training_layers_stay():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardtanh(), nn.Dropout(1.0)).train()
    model[3].eval()
    same, x = copy.deepcopy(model), image(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(model, backend=compile_backend)(x), same(x))
    torch.testing.assert_close(model.state_dict(), same.state_dict())


def test_gradients_are_refused():
    model = nn.Conv2d(3, 4, 3)
    with pytest.raises(RuntimeError, match="is for inference"):
        torch.compile(model, backend=compile_backend)(image(1, 8))
    frozen = model.requires_grad_(False)
    assert torch.compile(frozen, backend=compile_backend)(image(1, 8)).shape == (1, 4, 6, 6)
