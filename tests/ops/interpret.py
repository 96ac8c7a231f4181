"""Triton's interpreter, made to round as a GPU does, and without what it computes for nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction, InterpreterBuilder, TensorHandle, interpreter_builder

_cast = InterpreterBuilder.cast_impl


def _rounding_cast(self, src, dst_type):
    # The interpreter of Triton 3.7 cuts float32 off to bfloat16 where hardware rounds to nearest.
    if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
        rounded = torch.tensor(src.data).bfloat16().view(torch.uint16).numpy()
        return TensorHandle(rounded, tl.bfloat16)
    return _cast(self, src, dst_type)


InterpreterBuilder.cast_impl = _rounding_cast

# It takes every integer operation once more in 64 bits, to assert that nothing overflows, and asserts nothing unless it
# debugs: half of its time.
interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=interpreter_builder.options.debug)

# It replaces the functions of the language whenever a kernel calls a function, though they stay replaced: half of the
# rest.
_replace_language = cache(interpreter._patch_lang)


def _call(self, *args, **kwargs):
    _replace_language(self.fn)
    return self.rewrite()(*args, **kwargs)


InterpretedFunction.__call__ = _call
