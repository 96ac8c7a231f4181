"""A network made ready for inference: folded, fused and laid out once, so that each call only computes."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fastnets.accelerate._accelerator import Accelerator
from fastnets.accelerate._convert import convert as convert
from fastnets.accelerate._convert import revert as revert
from fastnets.accelerate._int8 import calibrate, difference, without_levels
from fastnets.accelerate._layout import images_in
from fastnets.accelerate._plan import Network
from fastnets.accelerate._proof import cast, copied, prove, results
from fastnets.accelerate._table import Table


def accelerate(
    model: nn.Module,
    example: Tensor | tuple[Any, ...] | None = None,
    *,
    dtype: torch.dtype | None = None,
    verbose: bool = False,
) -> nn.Module:
    """Makes a faster copy of a network, for inference only.

    BatchNorm is folded into the convolution before it, and before a concatenation into each, zeros laid around before a
    convolution into its padding; convolutions, BatchNorms and multiples of one value that are added become one
    convolution where no kernel grows by it; activations, and additions where the memory of one summand is free, go into
    the stores of convolutions, BatchNorm with ReLU before a pointwise convolution into its loads, and a shuffle of
    pixels into the store of the convolution before it; dense blocks run without concatenations; inverted residuals,
    shuffles of channels with the concatenation and the split around them, and global pooling with the classifier after
    it become one op each, and so does what SPNet makes of the means of rows and columns, which are taken in one pass;
    other poolings write no indices, and ReLUs of one value are computed once; weights are packed once; the network runs
    in channels_last, and where its maps are large, a batch goes through it a few images at a time. What is none of
    these stays as it is, and so do modules that have hooks, or whose code ``torch.fx`` cannot trace or would trace for
    some inputs only (as it asks for types, or whether an argument is None), around their parts. Of what code asks
    beside its inputs (``torch.is_grad_enabled()``, a global), the answer at this call counts. Parts that code or hooks
    could look into keep their own weights beside the folded ones. ReLU and ReLU6 of NaN are 0, not NaN, in the stores
    of dense convolutions on oneDNN, which ``fastnets.layers.PackedConv2d`` lists; ``torch.compile`` with freezing does
    the same.

    Args:
        model: in eval mode. It is not changed.
        example: an input, or a tuple of inputs, on which the copy is compared with the model; None compares nothing.
        dtype: of the copy's parameters, to which it casts its inputs: floating, or None for the model's own; or int8,
            in which products of convolutions without groups or dilation, and of linear layers, are taken where the
            compiled kernels run; all else is float32 then. The 256 levels of what such a layer takes, one of which is
            0, reach from the least to the largest of it on ``example``: a batch of photos of the kind that will come.
            Those of weights are 255 for each result. It is fast where the processor has AVX-512 VNNI and VBMI (from
            Ice Lake and Zen 4 on), and else no faster than float32; all processors give the same sums.
        verbose: whether to print what runs each layer, and why one stays as it was; in int8 also by how much results on
            ``example`` differ from those in float32.

    Returns:
        A module with the inputs and, up to rounding, the outputs of ``model``, without gradients for weights. It can be
        saved, copied, exported, and called from several threads. Where all of it can be traced and its layers are
        PyTorch's and ours, calls from the third on with inputs of the same shapes, types and layouts run what the second
        ran, without the modules, until a parameter, a layer, a hook or a mode is changed; the copy then keeps the memory
        of what lies between its layers, for each thread that calls it, of the largest input so far. What is written
        through ``Tensor.data`` or numpy counts after ``train()`` and ``eval()``.

    Raises:
        TypeError: not a module, or ``dtype`` is neither floating nor int8.
        ValueError: the model, or a part of it, is in training mode; int8 without an example.
        RuntimeError: on ``example`` the copy, or in 16 bits the same copy in float32, differs from the model by more
            than rounding.

    Example:
        >>> import torch, fastnets
        >>> model = fastnets.create_model("mobilenetv1_100", width=0.25).eval()
        >>> x = torch.zeros(1, 3, 64, 64)
        >>> torch.allclose(fastnets.accelerate(model, x)(x), model(x), atol=1e-5)
        True
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate expects a torch.nn.Module, but got {type(model).__name__}")
    if dtype is not None and not dtype.is_floating_point and dtype != torch.int8:
        raise TypeError(f"accelerate expects a floating dtype or int8, but got {dtype}")
    if dtype == torch.int8 and example is None:
        raise ValueError("accelerate expects an example for int8: a batch of photos that says how large numbers are")
    if training := [name or "the model" for name, module in model.named_modules() if module.training]:
        raise ValueError(f"accelerate expects a model in eval mode, but {training[0]} is training: call .eval() first")
    model = model if dtype is None else without_levels(model)
    table = Table()
    fast = _rewritten(model, dtype, table)
    if example is not None:
        example = example if isinstance(example, tuple) else (example,)
        prove(model, fast, example)
        if any(p.dtype.itemsize == 2 for p in fast.parameters()):
            # Rounding to 16 bits hides much: the same rewriting is held to the digits of float32.
            model = copied(model).float()
            prove(model, _rewritten(model, None, Table()), cast(example, torch.float32))
    if dtype == torch.int8 and example is not None:
        exact = results(fast, example) if verbose else []
        calibrate(fast, example)
        if verbose:
            lost = difference(results(fast, example), exact)
            table.notes.append(f"On the example int8 changes results by {lost} (root mean square).")
    if verbose:
        print(table)
    return fast


def _rewritten(model: nn.Module, dtype: torch.dtype | None, table: Table) -> nn.Module:
    fast = Accelerator(table, dtype)(copied(model)).eval()
    dtype = images_in(dtype)
    for parameter in fast.parameters():
        if parameter.is_leaf:  # those of a ScriptModule's copy are none
            parameter.requires_grad = False
    # Networks cast by themselves, and ScriptModules take no hooks.
    if dtype is not None and not isinstance(fast, Network | torch.jit.ScriptModule):
        fast.register_forward_pre_hook(functools.partial(_cast_inputs, dtype), prepend=True, with_kwargs=True)
    fast = fast if dtype is None else fast.to(dtype)
    if torch.is_inference_mode_enabled():
        with torch.inference_mode(False):  # or tensors do not count their changes, and nothing made of them is kept
            fast = copied(fast)
    return fast


def _cast_inputs(dtype: torch.dtype, module: nn.Module, args: Any, kwargs: Any) -> Any:
    def one(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    return pytree.tree_map(one, (args, kwargs))
