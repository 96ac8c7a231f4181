"""Each network is the one of its paper: the names, shapes and numbers of the library it follows."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from peers import build_peer, difference, import_peer, settle
from torch import nn

import fastnets
from fastnets.layers import Conv2d
from fastnets.models import create_model, list_models, model_info

MANIFESTS = Path(__file__).parent / "manifests"
NAMES = list_models()


def small(name: str) -> nn.Module:
    return settle(create_model(name, num_classes=10, width=0.25))


def plain_pytorch(model: nn.Module) -> nn.Module:
    """The same network with PyTorch's own convolutions."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is Conv2d:
            module.__class__ = nn.Conv2d
    return model


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_names_and_shapes_of_the_library_it_follows(name):
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    assert {key: list(value.shape) for key, value in create_model(name).state_dict().items()} == manifest


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_numbers_are_those_of_the_library_it_follows(name, training):
    peer = settle(build_peer(name, model_info(name).names_follow)).train(training)
    model = create_model(name).train(training)
    model.load_state_dict(peer.state_dict())
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(2)  # dropout
    expected = peer(x)
    torch.manual_seed(2)
    assert difference(model(x), expected) < 1e-4
    for ours, theirs in zip(model.buffers(), peer.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [0.25, 0.35, 0.5, 0.75, 1.4])
def test_narrower_and_wider_networks_have_torchvisions_shapes(width):
    peer = import_peer("torchvision").models.mobilenet_v2(width_mult=width).state_dict()
    ours = create_model("mobilenet_v2", width=width).state_dict()
    assert [(k, v.shape) for k, v in ours.items()] == [(k, v.shape) for k, v in peer.items()]


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_plain_pytorchs(name, training):
    model = small(name).double().train(training)
    plain = plain_pytorch(model)
    x = torch.randn(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    results = []
    for network in (model, plain):
        input = x.clone().requires_grad_()
        torch.manual_seed(2)  # dropout
        output = network(input)
        output.square().sum().backward()
        results.append([output, input.grad, *(p.grad for p in network.parameters())])
    largest = max(g.abs().max() for g in results[1][1:])
    for ours, expected in zip(*results, strict=True):
        # BatchNorm makes some gradients zero but for rounding, so these are judged by the largest of all.
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9 * largest.item())


@pytest.mark.parametrize("name", NAMES)
def test_channels_last_goes_in_and_stays(name):
    model = small(name).eval().to(memory_format=torch.channels_last)
    lost = []

    def look(module, args, output):
        if output.shape[2:].numel() > 1 and not output.is_contiguous(memory_format=torch.channels_last):
            lost.append(module)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    x = torch.randn(2, 3, 64, 64)
    y = model(x.contiguous(memory_format=torch.channels_last))
    assert not lost
    assert difference(y, model(x)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_compiles_whole_and_exports(name):
    model = small(name).eval()
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert difference(compiled(x), expected) < 1e-5
    exported = torch.export.export(model, (x,))
    assert difference(exported.module()(x), expected) < 1e-5
    depthwise = sum(module.groups > 1 for module in model.modules() if isinstance(module, nn.Conv2d))
    targets = [node.target for node in exported.graph.nodes]
    assert targets.count(torch.ops.fastnets.depthwise_conv2d.default) == depthwise > 0


@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles(name):
    model = small(name).eval()
    x = torch.randn(1, 3, 32, 32)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("name", NAMES)
def test_its_depthwise_convolutions_are_ours(name):
    model = small(name).eval()
    depthwise = sum(module.groups > 1 for module in model.modules() if isinstance(module, nn.Conv2d))
    fastnets.backend_report(reset=True)
    with torch.inference_mode():
        model(torch.zeros(1, 3, 32, 32))
    assert sum(fastnets.backend_report()["depthwise_conv2d"]["calls"].values()) == depthwise


@pytest.mark.parametrize("name", NAMES)
def test_a_new_network_neither_dies_out_nor_blows_up(name):
    model = create_model(name, num_classes=10)
    torch.manual_seed(0)
    logits = model(torch.randn(8, 3, 64, 64))
    loss = nn.functional.cross_entropy(logits, torch.arange(8))
    loss.backward()
    assert 0.5 < loss.item() < 10  # ln 10 = 2.3 is a guess at random
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())
