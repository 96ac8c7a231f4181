"""PrecisionGateConv2d: it learns, calibrates its scale, and reports its density."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastnets
from fastnets.layers import PrecisionGateConv2d
from fastnets.ops import precision_gate_conv2d


def photographs(size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of three photographs, and which of them each is from."""
    skimage = pytest.importorskip("skimage")
    image = pytest.importorskip("PIL.Image")
    data, patches, labels = Path(skimage.__file__).parent / "data", [], []
    for label, name in enumerate(("chelsea.png", "coffee.png", "rocket.jpg")):
        pixels = torch.frombuffer(
            bytearray(image.open(data / name).convert("RGB").resize((160, 96)).tobytes()), dtype=torch.uint8
        )
        whole = pixels.view(96, 160, 3).permute(2, 0, 1).float() / 255
        tiles = whole.unfold(1, size, size).unfold(2, size, size).permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)
        patches.append(tiles)
        labels += [label] * len(tiles)
    return torch.cat(patches), torch.tensor(labels)


@pytest.mark.parametrize("sparse", (False, True))
def test_a_network_learns_from_photographs(sparse):
    torch.manual_seed(0)
    x, labels = photographs()
    network = nn.Sequential(
        PrecisionGateConv2d(3, 16, 3, 2, 1, target=0.5, sparse_backward=sparse), nn.BatchNorm2d(16), nn.ReLU(),
        PrecisionGateConv2d(16, 32, 3, 2, 1, groups=2, target=0.5, sparse_backward=sparse), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    layers = [m for m in network if isinstance(m, PrecisionGateConv2d)]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(network(x), labels)
        losses.append(loss.item())
        optimizer.zero_grad()
        (loss + sum(layer.penalty(1e-3) for layer in layers)).backward()
        optimizer.step()
    assert losses[-1] < 0.6 * losses[0]
    for layer in layers:
        assert layer.threshold.abs().min() > 0  # every threshold has moved
        assert 0 < layer.density < 1
    with torch.no_grad():
        assert network.eval()(x).isfinite().all()


def test_penalty_pulls_thresholds_to_the_target():
    layer = PrecisionGateConv2d(2, 4, 1, target=3.0)
    layer.penalty(0.5).backward()
    assert layer.penalty(0.5) == 18 and layer.threshold.grad.tolist() == [-3.0] * 4


def test_scale_is_the_largest_in_training_and_frozen_in_evaluation():
    layer = PrecisionGateConv2d(2, 4, 1)
    assert layer.eval()(torch.ones(1, 2, 3, 3)).isnan().all()  # not calibrated
    layer.train()
    for largest, scale in ((2.0, 2.0), (5.0, 5.0), (3.0, 5.0)):
        layer(torch.full((1, 2, 3, 3), -largest))
        assert layer.scale == scale
    layer.eval()
    x = torch.randn(3, 2, 3, 3)
    x[2] = 100
    together = layer(x)
    assert layer.scale == 5
    for i in range(3):
        assert torch.equal(together[i : i + 1], layer(x[i : i + 1]))
    copy = PrecisionGateConv2d(2, 4, 1)
    copy.load_state_dict(layer.state_dict())
    assert torch.equal(copy.eval()(x), together)


def test_two_calls_before_one_backward():
    layer = PrecisionGateConv2d(2, 4, 1)
    (layer(torch.ones(1, 2, 3, 3)) + layer(2 * torch.ones(1, 2, 3, 3))).sum().backward()
    assert layer.weight.grad.isfinite().all()


@pytest.mark.parametrize("mode", ("zeros", "reflect"))
def test_passes_its_arguments_on(mode):
    kwargs = {"activation_bits": 6, "high_bits": 2, "weight_bits": 5}
    layer = PrecisionGateConv2d(4, 6, 3, 2, 1, 1, 2, padding_mode=mode, **kwargs)
    nn.init.normal_(layer.threshold)
    x = torch.randn(2, 4, 7, 7)
    y = layer(x)
    padded = F.pad(x, (1, 1, 1, 1), mode="constant" if mode == "zeros" else mode)
    expected, density = precision_gate_conv2d(
        padded, layer.weight, layer.threshold, layer.bias, 2, 0, 1, 2, **kwargs, return_density=True
    )
    assert torch.equal(y, expected) and layer.density == density
    assert "high_bits=2" in repr(layer)


def test_compiles():
    torch._dynamo.reset()
    layer = PrecisionGateConv2d(4, 6, 3)
    x = torch.randn(2, 4, 7, 7)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x)) and layer.scale == x.abs().max()


# ---- packed weights --------------------------------------------------------------------------


def frozen(*args, **kwargs) -> PrecisionGateConv2d:
    torch.manual_seed(0)
    layer = PrecisionGateConv2d(*args, **kwargs)
    nn.init.normal_(layer.threshold)
    layer.scale.fill_(2.0)
    return layer.eval()


def ran(layer: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, set[str]]:
    """What a call gives, and the ops that it ran."""
    fastnets.backend_report(reset=True)
    y = layer(x)
    return y, set(fastnets.backend_report(reset=True))


def by_op(layer: PrecisionGateConv2d, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    return precision_gate_conv2d(
        x, layer.weight, layer.threshold, layer.bias, layer.stride, padding, layer.dilation, layer.groups,
        activation_bits=layer.activation_bits, high_bits=layer.high_bits, weight_bits=layer.weight_bits,
        scale=layer.scale, return_density=True,
    )  # fmt: skip


PACKED, UNPACKED = {"packed_precision_gate_conv2d"}, {"precision_gate_conv2d"}


@torch.no_grad()
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"padding": "same", "dilation": (2, 1), "bias": False},
        {"padding": (1, 2), "stride": (2, 1), "groups": 2, "activation_bits": 6, "high_bits": 2, "weight_bits": 5},
        {"padding": 2, "padding_mode": "circular"},
    ],
    ids=str,
)
def test_cpu_an_evaluation_runs_on_packed_weights(cpu_kernels, kwargs, dtype):
    layer, x = frozen(6, 22, (3, 2), **kwargs).to(dtype), torch.randn(2, 6, 9, 8).to(dtype)
    assert ran(layer, x)[1] == {"pack_precision_gate_conv2d", *PACKED}
    for t in (x, x.contiguous(memory_format=torch.channels_last), x[1:]):
        y, ops = ran(layer, t)
        expected, density = by_op(layer, t)
        assert ops == PACKED and torch.equal(y, expected) and y.stride() == expected.stride()
        assert torch.equal(layer.density, density)
    assert ran(layer, x[0])[1] == UNPACKED  # one image alone
    assert torch.equal(layer(x[0]), by_op(layer, x)[0][0])


@torch.no_grad()
def test_cpu_packed_weights_follow_the_layer(cpu_kernels):
    layer, x = frozen(6, 22, 3), torch.randn(2, 6, 9, 8)
    y = layer(x)

    def changed_weight():
        layer.weight.mul_(0.5)[3] = 1

    def new_weight():
        layer.weight = nn.Parameter(torch.randn_like(layer.weight))

    def fewer_bits():
        layer.weight_bits = 3

    def trained_by_data():
        layer.train().weight.data[3] = -2
        layer.eval()

    def trained_by_a_fused_optimizer():  # which PyTorch does not count
        with torch.enable_grad():
            layer(x.to(layer.weight.dtype)).sum().backward()
        torch.optim.AdamW([layer.weight.requires_grad_()], lr=1.0, fused=True).step()

    def other_threshold():
        layer.threshold.add_(1)

    def other_scale():
        layer.scale.mul_(0.3)

    def other_type():
        layer.double()

    changes = (
        *(changed_weight, new_weight, fewer_bits, trained_by_data, trained_by_a_fused_optimizer),
        *(other_threshold, other_scale, other_type),
    )
    for change in changes:
        change()
        x, before = x.to(layer.weight.dtype), y
        y, ops = ran(layer, x)
        assert ops >= PACKED and torch.equal(y, by_op(layer, x)[0]) and not torch.equal(y, before), change
        assert torch.equal(layer.density, by_op(layer, x)[1]), change


def test_cpu_where_weights_are_not_packed(cpu_kernels):
    layer, x = frozen(6, 22, 3), torch.randn(2, 6, 9, 8)
    assert ran(layer, x)[1] == UNPACKED  # gradients
    with torch.no_grad():
        for backend in ("reference", None):
            with fastnets.use_backend(backend):
                assert ran(layer, x)[1] == (PACKED | {"pack_precision_gate_conv2d"} if backend is None else UNPACKED)
        assert ran(layer.train(), x)[1] == UNPACKED
        with torch.autocast("cpu", torch.bfloat16):
            y, ops = ran(layer.eval(), x)
            assert ops == UNPACKED and y.dtype == torch.bfloat16
        with fastnets.use_backend(None):
            assert ran(frozen(2**15, 1, 1), torch.ones(1, 2**15, 1, 1))[1] == UNPACKED  # sums that may pass 32 bits
    with torch.inference_mode():
        assert ran(layer, x)[1] == PACKED | {"pack_precision_gate_conv2d"}  # anew, after a change of mode
        assert ran(layer.eval(), x)[1] == PACKED


@torch.no_grad()
def test_cpu_bad_input_raises_what_the_op_raises(cpu_kernels):
    layer = frozen(6, 22, 3, groups=2)
    layer(torch.ones(1, 6, 9, 8))
    for bad in (
        torch.ones(1, 5, 9, 8),
        torch.ones(1, 8, 9, 8),
        torch.ones(1, 6, 2, 8),
        torch.ones(6, 9),
        torch.ones(1, 6, 9, 8).double(),
        torch.ones(1, 6, 9, 8).int(),
    ):
        with pytest.raises(RuntimeError) as expected:
            by_op(layer, bad)
        with pytest.raises(RuntimeError) as error:
            layer(bad)
        assert str(error.value) == str(expected.value)
    layer.threshold.data = torch.zeros(21)
    with pytest.raises(RuntimeError, match="threshold of shape \\(22,\\)"):
        layer(torch.ones(1, 6, 9, 8))


@torch.no_grad()
def test_cpu_packed_weights_are_in_no_state_and_no_copy(cpu_kernels):
    layer, x = frozen(6, 22, 3), torch.randn(2, 6, 9, 8)
    keys = list(layer.state_dict())
    y = layer(x)
    assert list(layer.state_dict()) == keys and layer._packed is not None
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._packed is None and torch.equal(twin(x), y)
