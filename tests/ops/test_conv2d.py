"""conv2d is F.conv2d: the same numbers and errors, whichever kernel runs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
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


def test_integers_and_complex_numbers_go_to_pytorch():
    for dtype in (torch.int64, torch.complex64):
        for depth in (1, 2):
            x, w = torch.ones(1, 2 * depth, 3, 3, dtype=dtype), torch.ones(2, depth, 2, 2, dtype=dtype)
            assert torch.equal(conv2d(x, w, groups=2), F.conv2d(x, w, groups=2))
