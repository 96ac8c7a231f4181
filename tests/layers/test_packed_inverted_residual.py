"""PackedInvertedResidual where its kernel does not run, and what it keeps; tests/ops has the kernel."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastnets
from fastnets.layers import DepthwiseConv2d, PackedConv2d, PackedInvertedResidual, PackedSqueezeExcitation


def parts(**geometry):
    torch.manual_seed(0)
    middle = DepthwiseConv2d(20, 3, **{"padding": 1, **geometry}, activation="relu")
    return PackedConv2d(4, 20, 1, activation="relu6"), middle, PackedConv2d(20, 4, 1)


def squeeze_excitation():
    squeeze, excite = PackedConv2d(20, 6, 1, activation="silu"), PackedConv2d(6, 20, 1, activation="sigmoid")
    return PackedSqueezeExcitation(squeeze, excite)


def layer(squeezes):
    squeeze = (squeeze_excitation(),) if squeezes else ()
    return PackedInvertedResidual(*parts(), *squeeze).eval().requires_grad_(False)


@pytest.fixture(params=[False, True], ids=["plain", "squeezed"])
def block(request):
    return layer(request.param)


def image(*size):
    return torch.randn(size, generator=torch.Generator().manual_seed(1)).contiguous(memory_format=torch.channels_last)


def in_turn(block, x, residual=None):
    y = block.depthwise(block.expand(x))
    return block.project(y if block.squeeze is None else block.squeeze(y), residual)


def test_the_kernel_and_the_layers_agree(block):
    x = image(2, 4, 6, 7)
    torch.testing.assert_close(block(x, x), in_turn(block, x, x.clone(memory_format=torch.preserve_format)))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid", (0, 2, 1, 0)], ids=str)
def test_any_padding_of_zeros_runs_on_the_kernel(cpu_kernels, padding, stride):
    block = PackedInvertedResidual(*parts(padding=padding, stride=stride)).eval().requires_grad_(False)
    fastnets.backend_report(reset=True)
    for size in ((6, 7), (7, 6)):
        x = image(2, 4, *size)
        residual = torch.zeros_like(expected := in_turn(block, x))
        torch.testing.assert_close(block(x, residual), expected)
    assert fastnets.backend_report(reset=True)["inverted_residual"]["calls"] == {"cpu": 2}
    x.requires_grad_()
    gradients = [torch.autograd.grad(run(x).square().sum(), x)[0] for run in (block, lambda x: in_turn(block, x))]
    assert torch.equal(*gradients) and gradients[0].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_other_types_run_the_layers_in_turn(block, dtype):
    block, x = block.to(dtype), image(2, 4, 6, 7).to(dtype)
    fastnets.backend_report(reset=True)
    assert torch.equal(block(x), in_turn(block, x))
    assert "inverted_residual" not in fastnets.backend_report(reset=True)


def test_another_layout_is_kept(block):
    x = image(2, 4, 6, 7).contiguous()
    assert block(x).is_contiguous()
    torch.testing.assert_close(block(x), in_turn(block, x))


def test_gradients_run_the_layers_in_turn(block):
    x = image(2, 4, 6, 7).requires_grad_()
    block(x).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [n for n, _ in layer(True).named_parameters()])
def test_a_gradient_of_any_parameter_is_computed(name):
    block, x = layer(True), image(1, 4, 6, 7)
    parameter = block.get_parameter(name).requires_grad_()
    block(x).sum().backward()
    assert parameter.grad is not None


def test_it_compiles_and_exports(block):
    x = image(2, 4, 6, 7)
    torch.testing.assert_close(torch.compile(block, fullgraph=True, backend="aot_eager")(x), block(x))
    torch.testing.assert_close(torch.export.export(block, (x,)).module()(x), block(x))


def test_no_images_give_none(block):
    assert block(image(0, 4, 6, 7)).shape == (0, 4, 6, 7)


def test_wrong_channels_raise_as_a_convolution_does(block):
    with pytest.raises(RuntimeError, match="channels"):
        block(image(1, 5, 6, 7))


def test_an_image_smaller_than_the_kernel_raises():
    block = PackedInvertedResidual(*parts(padding=0)).eval().requires_grad_(False)
    with pytest.raises(RuntimeError, match="kernel"):
        block(image(1, 4, 2, 2))


def test_what_is_packed_follows_the_weights(block):
    x = image(1, 4, 6, 7)
    block(x)
    packed = block._packed
    block(x)
    assert block._packed is packed
    for p in block.parameters():
        p.mul_(0.5)
        torch.testing.assert_close(block(x), in_turn(block, x))


def test_packed_weights_are_in_no_state_and_no_copy(block):
    x = image(1, 4, 6, 7)
    y = block(x)
    assert len(block.state_dict()) == (6 if block.squeeze is None else 10)
    for other in (copy.deepcopy(block), pickle.loads(pickle.dumps(block))):
        assert other._packed is None
        assert torch.equal(other(x), y)


def test_layers_that_do_not_follow_one_another_are_refused():
    expand, depthwise, project = parts()
    strange = [
        (project, depthwise, expand),
        (expand, parts(padding_mode="reflect")[1], project),
        (None, depthwise, PackedConv2d(20, 4, 3)),
        (None, DepthwiseConv2d(10, 3, multiplier=2), project),
    ]
    for layers in strange:
        with pytest.raises(ValueError, match="expected a pointwise, a depthwise and a pointwise"):
            PackedInvertedResidual(*layers)
    with pytest.raises(ValueError, match="squeeze and excitation of its channels"):
        PackedInvertedResidual(*parts()[:2], PackedConv2d(20, 4, 1), nn.Identity())
    with pytest.raises(ValueError, match="squeeze and excitation of its channels"):
        PackedInvertedResidual(None, DepthwiseConv2d(16, 3), PackedConv2d(16, 4, 1), squeeze_excitation())
