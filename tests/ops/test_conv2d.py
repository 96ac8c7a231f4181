"""conv2d is F.conv2d: the same numbers and errors, whichever kernel runs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from check_op import in_both_layouts
from convolutions import check_memory
from edges import error_of

import fastnets
from fastnets.ops import conv2d

CALLS = {
    "dense": ((2, 6, 7, 8), (4, 6, 3, 3), {}),
    "depthwise": ((2, 6, 7, 8), (6, 1, 3, 3), {"groups": 6, "padding": "same", "dilation": 2}),
    "depthwise, two kernels a channel": ((2, 6, 7, 8), (12, 1, 3, 2), {"groups": 6, "stride": (2, 1)}),
    "grouped": ((2, 6, 7, 8), (4, 3, 3, 3), {"groups": 2, "padding": (1, 2)}),
    "grouped, same": ((2, 6, 7, 8), (4, 3, 2, 3), {"groups": 2, "padding": "same"}),
    "unbatched grouped": ((6, 7, 8), (4, 3, 3, 3), {"groups": 2, "stride": 2}),
    "one channel": ((2, 1, 7, 8), (4, 1, 3, 3), {}),
    "unbatched depthwise": ((6, 7, 8), (6, 1, 3, 3), {"groups": 6}),
}


@pytest.mark.parametrize("name", CALLS)
def test_equals_pytorch(name):
    shape, weight_shape, kwargs = CALLS[name]
    x, w, bias = torch.randn(shape).double(), torch.randn(weight_shape).double(), torch.randn(weight_shape[0]).double()
    leaves = [t.requires_grad_() for t in (x, w, bias)]
    got, expected = conv2d(*leaves, **kwargs), F.conv2d(*leaves, **kwargs)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    dy = torch.randn_like(expected)
    pairs = zip(torch.autograd.grad(got, leaves, dy), torch.autograd.grad(expected, leaves, dy), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_groups_run_here_and_the_rest_in_pytorch():
    fastnets.backend_report(reset=True)
    conv2d(torch.ones(1, 4, 3, 3), torch.ones(4, 4, 1, 1))
    assert not fastnets.backend_report()
    conv2d(torch.ones(1, 4, 3, 3), torch.ones(6, 2, 1, 1), groups=2)
    assert sum(fastnets.backend_report()["grouped_conv2d"]["calls"].values()) == 1
    assert "depthwise_conv2d" not in fastnets.backend_report()
    conv2d(torch.ones(1, 4, 3, 3), torch.ones(4, 1, 1, 1), groups=4)
    assert sum(fastnets.backend_report()["depthwise_conv2d"]["calls"].values()) == 1


@pytest.mark.parametrize(
    "args",
    [
        (torch.ones(1, 4, 3, 3), torch.ones(5, 1, 3, 3), None, 1, 0, 1, 4),
        (torch.ones(1, 4, 3, 3), torch.ones(4, 1, 3, 3), None, 1, 0, 1, 3),
        (torch.ones(1, 4, 3, 3), torch.ones(4, 1, 5, 5), None, 1, 0, 1, 4),
        (torch.ones(1, 4, 3, 3), torch.ones(4, 1, 3, 3), torch.ones(3), 1, 0, 1, 4),
        (torch.ones(4), torch.ones(4, 1, 3, 3)),
        (torch.ones(1, 4, 3, 3), torch.ones(5, 2, 3, 3), None, 1, 0, 1, 2),
        (torch.ones(1, 4, 3, 3), torch.ones(6, 2, 5, 5), None, 1, 0, 1, 2),
        (torch.ones(1, 4, 3, 3), torch.ones(6, 2, 3, 3), None, 1, 0, 1, 3),
        (torch.ones(1, 4, 3, 3), torch.ones(6, 2, 3, 3), None, 2, "same", 1, 2),
    ],
)
def test_errors_are_pytorch_s(args):
    assert error_of(conv2d, *args) == error_of(F.conv2d, *args)


@pytest.mark.parametrize("name", ("padding", "dilation", "stride"))
@pytest.mark.parametrize("far", (2**31, 2**61, 2**63 - 1))
@pytest.mark.parametrize("groups", (2, 4))
def test_a_geometry_beyond_all_memory_is_refused(cpu_kernels, groups, far, name):
    geometry = {"padding": (far, 0), name: (far, 1)}
    with pytest.raises(RuntimeError):
        conv2d(torch.ones(1, 4, 5, 6), torch.ones(4, 4 // groups, 3, 3), groups=groups, **geometry)


def test_integers_of_other_kinds():
    x, w = torch.randn(1, 4, 5, 5), torch.randn(4, 2, 3, 3)
    for two in (np.int64(2), torch.tensor(2)):
        got = conv2d(x, w, stride=two, padding=two, dilation=two, groups=2)
        torch.testing.assert_close(got, F.conv2d(x, w, stride=2, padding=2, dilation=2, groups=2))


@pytest.mark.parametrize(("groups", "beside"), [(128, 1 << 20), (8, 16 * 128 * (16 * 9 + 1) * 4)])
@in_both_layouts
def test_memory(cpu_kernels, layout, groups, beside):
    """As of the op it goes to."""
    check_memory(partial(conv2d, groups=groups), 128 // groups, layout, beside)


def test_integers_and_complex_numbers_go_to_pytorch():
    for dtype in (torch.int64, torch.complex64):
        for depth in (1, 2):
            x, w = torch.ones(1, 2 * depth, 3, 3, dtype=dtype), torch.ones(2, depth, 2, 2, dtype=dtype)
            assert torch.equal(conv2d(x, w, groups=2), F.conv2d(x, w, groups=2))
