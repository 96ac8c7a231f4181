"""The networks by name: one decorator registers them, and everything that lists or builds them asks here."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from fastnets.models._imagenet import imagenet_file
from fastnets.models._weights import copy_weights, read_weights

# Where the libraries publish their weights.
TORCHVISION = "https://download.pytorch.org/models/"
TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/"


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a network before it is built.

    Args:
        name: what ``create_model`` calls it.
        build: makes it with random weights.
        names_follow: where the names of its parameters come from: 'torchvision', 'timm', or 'paper' for what
            neither has: the authors' release, or the words of the paper.
        input_size: height and width of the photos it is made for, in pixels.
        crop: part of the short side that remains after the centre crop: photos are resized so that the short
            side is ``input_size / crop`` pixels, then cropped to ``input_size``.
        interpolation: 'bicubic' or 'bilinear', used for that resizing.
        mean: subtracted from each channel of a photo, whose values are from 0 to 1.
        std: what each channel is divided by afterwards.
        min_size: the smallest height and width that it takes, in pixels, in training too.
        weights_url: where its ImageNet weights were published, as a file whose name ends in the first digits of its
            SHA-256; None where they were not.
    """

    name: str
    build: Callable[..., nn.Module]
    names_follow: str
    input_size: int = 224
    crop: float = 0.875
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    min_size: int = 32
    weights_url: str | None = None


_MODELS: dict[str, ModelInfo] = {}


def register_model(**facts: Any) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Registers the decorated function, which builds a network, under its own name.

    Args:
        **facts: the fields of :class:`ModelInfo` but ``name`` and ``build``.

    Returns:
        A decorator that gives the function back as it is.
    """

    def register(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        _MODELS[build.__name__] = ModelInfo(build.__name__, build, **facts)
        return build

    return register


def list_models(pattern: str = "*") -> list[str]:
    """Names the networks that ``create_model`` can build.

    Args:
        pattern: what the names must match, with ``*`` and ``?`` as in a shell.

    Returns:
        The names, sorted.

    Example:
        >>> from fastnets.models import list_models
        >>> list_models("mobilenet*")
        ['mobilenet_v2', 'mobilenetv1_100']
    """
    return sorted(name for name in _MODELS if fnmatchcase(name, pattern))


def model_info(name: str) -> ModelInfo:
    """Says what is known of a network before it is built.

    Args:
        name: one of ``list_models()``.

    Returns:
        The :class:`ModelInfo` of that name.

    Raises:
        ValueError: there is no network of that name; the message has the closest ones.

    Example:
        >>> from fastnets.models import model_info
        >>> model_info("mobilenet_v2").input_size
        224
    """
    if name in _MODELS:
        return _MODELS[name]
    close = difflib.get_close_matches(name, _MODELS, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "fastnets.list_models() has all"
    raise ValueError(f"there is no model {name!r}; {hint}")


def create_model(name: str, weights: str | os.PathLike[str] | None = None, **kwargs: Any) -> nn.Module:
    """Builds a network by name.

    Args:
        name: one of ``list_models()``.
        weights: None for random weights, the path of a checkpoint (see :func:`load_weights`), or 'imagenet'
            for the published ones, which are fetched when they are first asked for.
        **kwargs: arguments of the network itself: ``num_classes``, and ``width``, a factor on all channels,
            where the paper has one. ``aux_logits``, where it has auxiliary classifiers, is whether they are there:
            by default where the checkpoint has them, or if there is none.

    Returns:
        The network on the CPU in training mode, as new modules are; call ``.eval()`` before classifying.
        Its input is (n, 3, h, w), its output (n, num_classes), unnormalised; in training, those with
        auxiliary classifiers give a named tuple whose first is that output.

    Raises:
        ValueError: there is no network of that name; the message has the closest ones.
        WeightsError: the weights cannot be had, or are not this network's.

    Example:
        >>> import torch, fastnets
        >>> model = fastnets.create_model("mobilenet_v2", num_classes=10, width=0.35).eval()
        >>> model(torch.zeros(2, 3, 96, 96)).shape
        torch.Size([2, 10])
    """
    info = model_info(name)
    model = info.build(**kwargs)
    if weights is not None:
        path = imagenet_file(name, info.weights_url) if weights == "imagenet" else os.fspath(weights)
        state, heads = read_weights(path), getattr(model, "optional_heads", ())
        known = model.state_dict().keys() & state.keys()
        if "aux_logits" not in kwargs and known and not any(key.startswith(heads) for key in known):
            for head in heads:  # torchvision leaves them out of networks with weights
                setattr(model, head, None)
        copy_weights(state, model, path)
    return model
