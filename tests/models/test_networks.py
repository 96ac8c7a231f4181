"""Each network is the one of its paper: the names, shapes and numbers of the library it follows."""

from __future__ import annotations

import copy
import inspect
import pickle
from typing import NamedTuple

import manifest
import pytest
import torch
from peers import (
    build_meta,
    build_settled,
    copy_of_peer,
    difference,
    import_peer,
    on_our_kernels,
    outputs,
    plain_pytorch,
)
from torch import Tensor, nn

import fastnets
from fastnets.models import create_model, list_models, model_info

NAMES = list_models()

# Tracing all networks takes longer than everything else here. One stands for each kind of block of each family.
TRACED = [
    "alexnet",  # alexnet: torchvision's
    "alexnet_two_towers",  # alexnet: response normalisation, towers; zfnet
    "darknet19",  # darknet: plain
    "darknet53",  # darknet: residual
    "drn_c_26",  # drn
    "googlenet",  # googlenet
    "highway_19",  # highway
    "inception_resnet_v1",  # inception_resnet
    "inception_v2",  # inception_v2
    "inception_v3",  # inception_v3
    "inception_v4",  # inception_v4
    "nasnetamobile",  # nasnet
    "nin",  # nin
    "squeezenet1_1",  # squeezenet
    "vgg11",  # vgg
    "zfnet",  # zfnet
    "efficientnet_lite0",  # efficientnet_lite
    "mobilenet_v2",  # mobilenetv2
    "mobilenetv1_100",  # mobilenetv1
]


class Network(NamedTuple):
    name: str
    model: nn.Module
    size: int  # of the smallest input that leaves something to convolve in the last layers, in pixels

    def input(self, n: int, more: int = 0) -> Tensor:
        """Random photos; ``more``: by how many pixels they are higher than the smallest, and twice that wider."""
        size = n, 3, self.size + more, self.size + 2 * more
        return torch.randn(size, generator=torch.Generator().manual_seed(1))


def build(name: str) -> Network:
    return Network(name, build_settled(name).eval(), max(64, model_info(name).min_size))


@pytest.fixture(scope="module", params=NAMES)
def network(request) -> Network:
    """One build for all tests: they leave it in eval mode, though with other statistics of batches."""
    return build(request.param)


@pytest.fixture(params=TRACED)
def traced(request) -> Network:
    return build(request.param)


def is_grouped(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(2)  # dropout
    return outputs(model(x))


def assert_same_gradients(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Outputs and gradients agree in double precision: in single, a ReLU that rounds to the other side changes many."""
    found = []
    for network in (model.double(), other.double()):
        input = x.double().requires_grad_()
        got = run(network, input)
        sum(y.square().sum() for y in got).backward()
        found.append([*got, input.grad, *(p.grad for p in network.parameters())])
        network.zero_grad()
    largest = max(gradient.abs().max() for gradient in found[1])
    for ours, theirs in zip(*found, strict=True):
        # BatchNorm makes some gradients zero but for rounding, so these are judged by the largest of all.
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11 * largest.item())


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_names_and_shapes_of_the_library_it_follows(name):
    assert manifest.shapes(build_meta(name)) == manifest.load(name)


def test_every_family_is_traced():
    def families(names):
        return {model_info(name).build.__module__ for name in names}

    assert families(TRACED) == families(NAMES)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@torch.no_grad()
def test_numbers_are_those_of_the_library_it_follows(network, training):
    """Of a network that no library has: those with PyTorch's convolutions."""
    model, x = network.model, network.input(4)
    peer = copy_of_peer(model, network.name)
    ours = run(model.train(training), x)
    theirs = run(peer.train(training), x)
    model.eval()
    assert max(difference(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-4
    for a, b in zip(model.buffers(), peer.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_library_it_follows(network):
    """With our convolutions in both: PyTorch's run group by group in double precision, and have a test below."""
    peer = on_our_kernels(copy_of_peer(network.model, network.name))
    assert_same_gradients(copy.deepcopy(network.model).train(), peer.train(), network.input(2))


def test_odd_sizes_and_a_batch_of_one(network):
    y = network.model(x := network.input(1, more=15))
    both = network.model(torch.cat([x, x.flip(3)]))
    assert y.dim() == 2 and torch.isfinite(y).all()
    assert difference(both[:1], y) < 1e-4 and difference(both[1:], y) > 1e-3


def test_channels_last_goes_in_and_stays(network):
    model = copy.deepcopy(network.model).to(memory_format=torch.channels_last)
    lost = []

    def look(module, args, output):
        if output.shape[2:].numel() > 1 and not output.is_contiguous(memory_format=torch.channels_last):
            lost.append(module)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    x = network.input(2)
    with torch.inference_mode():
        y = model(x.contiguous(memory_format=torch.channels_last))
        assert not lost
        assert difference(y, network.model(x)) < 1e-4


@torch.inference_mode()
def test_its_grouped_convolutions_are_ours(network):
    expected = [module.groups == module.in_channels for module in network.model.modules() if is_grouped(module)]
    fastnets.backend_report(reset=True)
    network.model(network.input(1))
    report = fastnets.backend_report()
    for op, number in (("depthwise_conv2d", sum(expected)), ("grouped_conv2d", len(expected) - sum(expected))):
        assert sum(report.get(op, {"calls": {}})["calls"].values()) == number


@torch.inference_mode()
def test_accelerated_it_gives_the_same_logits(network):
    fast = fastnets.accelerate(network.model)
    for x in (network.input(1), network.input(2, more=15)):
        assert difference(fast(x), network.model(x)) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_new_network_neither_dies_out_nor_blows_up(name):
    torch.manual_seed(0)
    model = create_model(name, num_classes=10)
    size = max(64, model_info(name).min_size)
    results = outputs(model(torch.randn(8, 3, size, size)))
    losses = [nn.functional.cross_entropy(logits, torch.arange(8)) for logits in results]
    sum(losses).backward()
    assert all(0.5 < loss.item() < 10 for loss in losses)  # ln 10 = 2.3 is a guess at random
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())


@torch.inference_mode()
def test_copies_and_pickles(traced):
    x = traced.input(1)
    for other in (copy.deepcopy(traced.model), pickle.loads(pickle.dumps(traced.model))):
        assert torch.equal(other(x), traced.model(x))


@pytest.mark.parametrize("name", TRACED)
def test_gradients_are_those_with_pytorchs_convolutions(name):
    parameters = inspect.signature(model_info(name).build).parameters
    model = build_settled(name, **({"width": 0.25} if "width" in parameters else {}))
    size = max(64, model_info(name).min_size)
    assert_same_gradients(model, plain_pytorch(model), torch.randn(2, 3, size, size))


@torch.no_grad()
def test_compiles_whole(traced):
    x = traced.input(2)
    compiled = torch.compile(traced.model, fullgraph=True, backend="aot_eager")
    assert difference(compiled(x), traced.model(x)) < 1e-5
    torch._dynamo.reset()


@torch.no_grad()
def test_exports_and_onnx_runtime_gives_the_same_numbers(traced, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    x = traced.input(2)
    expected = traced.model(x)
    exported = torch.export.export(traced.model, (x,))
    assert difference(exported.module()(x), expected) < 1e-5
    targets = {node.target for node in exported.graph.nodes}
    ours = {torch.ops.fastnets.depthwise_conv2d.default, torch.ops.fastnets.grouped_conv2d.default}
    assert bool(targets & ours) == any(map(is_grouped, traced.model.modules()))
    program = torch.onnx.export(traced.model, (x,), dynamo=True, verbose=False)
    path = tmp_path / "network.onnx"
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path))
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert difference(torch.from_numpy(y), expected) < 1e-4
    for file in tmp_path.iterdir():
        file.unlink()  # up to half a gigabyte


@pytest.mark.parametrize("width", [0.25, 0.35, 0.5, 0.75, 1.4])
def test_narrower_and_wider_networks_have_torchvisions_shapes(width):
    peer = import_peer("torchvision").models.mobilenet_v2(width_mult=width)
    assert manifest.shapes(create_model("mobilenet_v2", width=width)) == manifest.shapes(peer)
