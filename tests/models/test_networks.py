"""Each network is the one of its paper: the names, shapes and numbers of the library it follows."""

from __future__ import annotations

import copy
import os
import pickle
from collections.abc import Callable
from functools import cached_property, partial

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
from fastnets.layers import BasicBlock, Bottleneck
from fastnets.models import (
    alexnet,
    create_model,
    darknet,
    densenet,
    drn,
    efficientnet_lite,
    googlenet,
    highway,
    inception_resnet,
    inception_v2,
    inception_v3,
    inception_v4,
    list_models,
    mobilenetv1,
    mobilenetv2,
    model_info,
    nasnet,
    nin,
    res2net,
    resnet,
    scnet,
    senet,
    shufflenetv1,
    shufflenetv2,
    squeezenet,
    vgg,
    zfnet,
)

NAMES = list_models()

# A network of each kind of block of each family, as shallow as its class can be: compiling and exporting all registered
# ones takes longer than everything else here. FASTNETS_TRACE=all (`make test-networks`) does so nevertheless.
SHALLOW: dict[str, Callable[[], nn.Module]] = {
    "alexnet": alexnet.SlimAlexNet,
    "alexnet: response normalisation, two towers": partial(alexnet.AlexNet, towers=2),
    "darknet: plain": darknet.Darknet19,
    "darknet: residual": darknet.Darknet53,
    "densenet": partial(densenet.DenseNet, (2, 2, 2, 2)),
    "drn": partial(drn.DRN, Bottleneck, (1, 1, 1, 1), drn.PlainBlock),
    "efficientnet_lite": partial(efficientnet_lite.EfficientNetLite, width=0.25),
    "googlenet": googlenet.GoogLeNet,
    "highway": highway.Highway,
    "inception_resnet": partial(inception_resnet.InceptionResNet, 1),
    "inception_v2": inception_v2.InceptionV2,
    "inception_v3": inception_v3.InceptionV3,
    "inception_v4": inception_v4.InceptionV4,
    "mobilenetv1": partial(mobilenetv1.MobileNetV1, width=0.25),
    "mobilenetv2": partial(mobilenetv2.MobileNetV2, width=0.25),
    "nasnet": partial(nasnet.NASNet, cells=2, channels=16, stem=8),
    "nasnet: large": partial(nasnet.NASNet, cells=2, channels=16, stem=8, skip_reduction=True, count_padding=True),
    "nin": nin.NetworkInNetwork,
    "res2net": partial(resnet.ResNet, res2net.Res2Bottleneck, (2, 2, 2, 2)),
    "resnet: basic blocks": partial(resnet.ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet: bottlenecks": partial(resnet.ResNet, Bottleneck, (2, 2, 2, 2)),
    "resnext": partial(resnet.ResNet, partial(Bottleneck, groups=32, base_width=4), (2, 2, 2, 2)),
    "scnet": partial(resnet.ResNet, scnet.SCBottleneck, (2, 2, 2, 2)),
    "senet": partial(resnet.ResNet, senet.SEBottleneck, (2, 2, 2, 2)),
    "senet: legacy": partial(senet.LegacySENet, senet.LegacySEBottleneck, (2, 2, 2, 2)),
    "shufflenetv1": partial(shufflenetv1.ShuffleNetV1, 3),
    "shufflenetv2": partial(shufflenetv2.ShuffleNetV2, (48, 96, 192, 1024)),
    "squeezenet": partial(squeezenet.SqueezeNet, 64, 3, (0, 2, 4)),
    "vgg": partial(vgg.VGG, "C"),
    "vgg: batch normalisation": partial(vgg.VGG, "A", batch_norm=True),
    "zfnet": zfnet.ZFNet,
}
TRACED = {name: model_info(name).build for name in NAMES} if os.environ.get("FASTNETS_TRACE") == "all" else SHALLOW


class Network:
    """A network in eval mode, with inputs and what it gives for them; no test changes it."""

    def __init__(self, name: str, build: Callable[[], nn.Module], min_size: int) -> None:
        self.name = name
        self.model = build_settled(build).eval()
        self.min_size = min_size

    def photos(self, n: int, more: int = 0) -> Tensor:
        """Random ones; ``more``: by how many pixels they are higher than small ones, and twice that wider."""
        side = max(64, self.min_size)
        return torch.randn(n, 3, side + more, side + 2 * more, generator=torch.Generator().manual_seed(1))

    @cached_property
    def two(self) -> tuple[Tensor, Tensor]:
        """Two photos, and their logits."""
        with torch.no_grad():
            return (x := self.photos(2)), self.model(x)

    @cached_property
    def odd(self) -> tuple[Tensor, Tensor]:
        """One photo of another size, and its logits."""
        with torch.no_grad():
            return (x := self.photos(1, more=7)), self.model(x)


def family(name: str) -> str:
    """The file that defines a registered network."""
    return model_info(name).build.__module__.rpartition(".")[2]


@pytest.fixture(scope="module", params=NAMES)
def network(request) -> Network:
    """One build for all tests."""
    info = model_info(request.param)
    return Network(info.name, info.build, info.min_size)


@pytest.fixture(scope="module", params=SHALLOW)
def shallow(request) -> Network:
    return of_family(request.param, SHALLOW[request.param])


@pytest.fixture(scope="module", params=TRACED)
def traced(request) -> Network:
    return of_family(request.param, TRACED[request.param])


def of_family(name: str, build: Callable[[], nn.Module]) -> Network:
    of = name.partition(":")[0]
    return Network(name, build, max(model_info(name).min_size for name in NAMES if of in (name, family(name))))


def is_grouped(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups > 1


def run(model: nn.Module, x: Tensor) -> list[Tensor]:
    torch.manual_seed(2)  # dropout
    return outputs(model(x))


def assert_same_gradients(model: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Outputs and gradients agree in double precision: in single, a ReLU that rounds to the other side changes many."""
    found = []
    for network in (model.double().train(), other.double().train()):
        input = x.double().requires_grad_()
        got = run(network, input)
        sum(y.square().sum() for y in got).backward()
        gradients = [p.grad for p in network.parameters()]
        assert unused(network) <= UNUSED
        found.append([*got, input.grad, *(g for g in gradients if g is not None)])
    largest = max(gradient.abs().max() for gradient in found[1])
    for ours, theirs in zip(*found, strict=True):
        # BatchNorm makes some gradients zero but for rounding, so these are judged by the largest of all.
        assert (ours - theirs).abs().max() <= 1e-9 * theirs.abs().max() + 1e-11 * largest


# The authors' checkpoints of DRN-C-58 have a shortcut that their network does not use either.
UNUSED = {f"layer7.0.downsample.{name}" for name in ("0.weight", "1.weight", "1.bias")}


def unused(model: nn.Module) -> set[str]:
    """The parameters that a backward pass has not reached."""
    return {name for name, parameter in model.named_parameters() if parameter.grad is None}


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_has_the_names_and_shapes_of_the_library_it_follows(name):
    assert manifest.shapes(build_meta(name)) == manifest.load(name)


def test_every_family_is_traced():
    assert {name.partition(":")[0] for name in SHALLOW} == set(map(family, NAMES))


@torch.no_grad()
def test_numbers_are_those_of_the_library_it_follows(network):
    """Of a network that no library has: those with PyTorch's convolutions."""
    peer = copy_of_peer(network.model, network.name).eval()
    x, logits = network.two
    assert difference(logits, peer(x)) < 1e-4
    model, x = copy.deepcopy(network.model).train(), network.photos(4)
    for ours, theirs in zip(run(model, x), run(peer.train(), x), strict=True):
        assert difference(ours, theirs) < 1e-4
    for ours, theirs in zip(model.buffers(), peer.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if model_info(name).names_follow != "paper"])
def test_gradients_are_those_of_the_library_it_follows(name):
    """With our convolutions in both: PyTorch's run group by group in double precision, and have a test below."""
    info = model_info(name)
    model = build_settled(info.build)
    peer = on_our_kernels(copy_of_peer(model, name))
    assert_same_gradients(model, peer, torch.randn(4, 3, info.min_size, info.min_size))


@torch.no_grad()
def test_odd_sizes_and_a_batch_of_one(network):
    x, logits = network.two
    assert difference(network.model(x[:1]), logits[:1]) < 1e-4
    assert difference(logits[1:], logits[:1]) > 1e-3
    assert network.odd[1].shape == logits[:1].shape and torch.isfinite(network.odd[1]).all()


@torch.no_grad()
def test_channels_last_goes_in_and_stays(network):
    model = copy.deepcopy(network.model).to(memory_format=torch.channels_last)
    lost = []

    def look(module, args, output):
        if output.shape[2:].numel() > 1 and not output.is_contiguous(memory_format=torch.channels_last):
            lost.append(module)

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(look)
    x, logits = network.two
    assert difference(model(x.contiguous(memory_format=torch.channels_last)), logits) < 1e-4
    assert not lost


@torch.no_grad()
def test_its_grouped_convolutions_are_ours(network):
    expected = [module.groups == module.in_channels for module in network.model.modules() if is_grouped(module)]
    fastnets.backend_report(reset=True)
    network.model(network.photos(1))
    report = fastnets.backend_report()
    for op, number in (("depthwise_conv2d", sum(expected)), ("grouped_conv2d", len(expected) - sum(expected))):
        assert sum(report.get(op, {"calls": {}})["calls"].values()) == number


@torch.no_grad()
def test_accelerated_it_gives_the_same_logits(network):
    fast = fastnets.accelerate(network.model)
    for x, logits in (network.two, network.odd):
        assert difference(fast(x), logits) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_new_network_neither_dies_out_nor_blows_up_at_two_sizes(name):
    torch.manual_seed(0)
    model, smallest = create_model(name, num_classes=10), model_info(name).min_size
    for side in (max(64, smallest) + 3, smallest):
        model.zero_grad()
        x = torch.randn(4, 3, side, side)
        losses = [nn.functional.cross_entropy(logits, torch.arange(4)) for logits in outputs(model(x))]
        sum(losses).backward()
        assert all(0.5 < loss.item() < 10 for loss in losses)  # ln 10 = 2.3 is a guess at random
        assert unused(model) <= UNUSED
        assert all(p.grad is None or (torch.isfinite(p.grad).all() and p.grad.any()) for p in model.parameters())


@torch.no_grad()
def test_copies_and_pickles(shallow):
    x, logits = shallow.two
    for other in (copy.deepcopy(shallow.model), pickle.loads(pickle.dumps(shallow.model))):
        assert torch.equal(other(x), logits)


def test_gradients_are_those_with_pytorchs_convolutions(shallow):
    model = copy.deepcopy(shallow.model)
    assert_same_gradients(model, plain_pytorch(model), torch.randn(4, 3, shallow.min_size, shallow.min_size))


@torch.no_grad()
def test_compiles_whole(traced):
    x, logits = traced.two
    compiled = torch.compile(traced.model, fullgraph=True, backend="aot_eager")
    assert difference(compiled(x), logits) < 1e-5
    torch._dynamo.reset()


@torch.no_grad()
def test_exports_and_onnx_runtime_gives_the_same_numbers(traced, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    x, logits = traced.two
    exported = torch.export.export(traced.model, (x,))
    assert difference(exported.module()(x), logits) < 1e-5
    targets = {node.target for node in exported.graph.nodes}
    ours = {torch.ops.fastnets.depthwise_conv2d.default, torch.ops.fastnets.grouped_conv2d.default}
    assert bool(targets & ours) == any(map(is_grouped, traced.model.modules()))
    program = torch.onnx.export(traced.model, (x,), dynamo=True, verbose=False)
    path = tmp_path / "network.onnx"
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path))
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert difference(torch.from_numpy(y), logits) < 1e-4
    for file in tmp_path.iterdir():
        file.unlink()  # up to half a gigabyte


@pytest.mark.parametrize("width", [0.25, 0.35, 0.5, 0.75, 1.4])
def test_narrower_and_wider_networks_have_torchvisions_shapes(width):
    peer = import_peer("torchvision").models.mobilenet_v2(width_mult=width)
    assert manifest.shapes(create_model("mobilenet_v2", width=width)) == manifest.shapes(peer)
