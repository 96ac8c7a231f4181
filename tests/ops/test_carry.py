"""How tests of ops reach a GPU: tensors are carried as they lie in memory. Here to another place on the CPU."""

from __future__ import annotations

import pytest
import torch
from carry import Carried, carry, copy_to

from fastnets._op import Implementation

X = torch.arange(48.0).view(2, 4, 3, 2)


@pytest.mark.parametrize("x", [X, X.mT, X[:, 1:3], X[..., ::2], X[:1].expand(5, 4, 3, 2), X[:0], X[0, 0, 0, 1]])
def test_a_copy_lies_as_its_original(x):
    y = copy_to(x, "cpu")
    assert torch.equal(x, y) and (y.stride(), y.storage_offset()) == (x.stride(), x.storage_offset())
    assert y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() or x.untyped_storage().nbytes() == 0
    assert torch.equal(torch.tensor(y.untyped_storage().tolist()), torch.tensor(x.untyped_storage().tolist()))


def test_tensors_go_there_and_results_come_back():
    went = []

    def fn(x, sizes, none):
        went.append((x.device.type, sizes, none))
        return x + 1 if x.is_cpu else (torch.empty_like(x, device="cpu"), 3)

    assert torch.equal(carry(fn, "cpu")(X, [1, 2], None), X + 1)
    y, three = carry(fn, "meta")(X.mT, [1, 2], None)
    assert went == [("cpu", [1, 2], None), ("meta", [1, 2], None)] and y.stride() == X.mT.stride() and three == 3


def test_what_is_there_already_is_left_alone():
    x = X.to("meta")
    assert carry(lambda x: x, "cpu")(x) is x


def test_the_function_may_be_set_anew():
    carried = Carried(Implementation("cuda", lambda x: x + 1, None, validates=True), "cpu")
    assert torch.equal(carried.fn(X), X + 1) and carried.validates
    carried.fn = lambda x: x + 2
    assert torch.equal(carried.fn(X), X + 2)
