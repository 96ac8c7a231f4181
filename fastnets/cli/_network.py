"""The network that classifies: built, moved, made fast, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from fastnets._op import Report, backend_report
from fastnets.accelerate import accelerate
from fastnets.cli._terminal import UsageError, one_line
from fastnets.models import ModelInfo, create_model, model_info

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Network:
    """A classifier on a device, in a type.

    Args:
        name: of the model.
        weights: a path, or ``"imagenet"``.
        device: where it runs.
        dtype: a key of ``DTYPES``.

    Raises:
        UsageError: there is no such model or device, the weights do not fit, or it cannot run there.
    """

    def __init__(self, name: str, weights: str, device: str, dtype: str) -> None:
        self.device, self.dtype = device_named(device), DTYPES[dtype]
        try:
            self.info: ModelInfo = model_info(name)
            model = create_model(name, weights=weights)
        except ValueError as error:
            raise UsageError(one_line(error)) from None
        self.plain = model.eval().to(self.device, self.dtype)
        self.fast = accelerate(self.plain)
        self._mean = torch.tensor(self.info.mean, device=self.device)
        self._std = torch.tensor(self.info.std, device=self.device)
        self.backends = self._try()

    def _try(self) -> Report:
        """Classifies a black square, so that whatever cannot run here fails before the work starts."""
        size = self.info.input_size
        backend_report(reset=True)
        self.logits(torch.zeros(1, size, size, 3, dtype=torch.uint8))
        return backend_report(reset=True)

    def input(self, pixels: Tensor) -> Tensor:
        """The network's input: uint8 (n, size, size, 3) to normalised (n, 3, size, size)."""
        x = pixels.to(self.device).float().div(255)
        return x.sub(self._mean).div(self._std).to(self.dtype).permute(0, 3, 1, 2)

    def logits(self, pixels: Tensor) -> tuple[Tensor, float]:
        """Classifies uint8 pixels (n, size, size, 3).

        Returns:
            The logits, float32 (n, classes) on the CPU, and the seconds that the network took.
        """
        y, seconds = self.timed(self.fast, self.input(pixels))
        return y.float().cpu(), seconds

    def timed(self, model: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, float]:
        """Runs ``model`` on ``x``; returns what it gives, and the seconds it took.

        Raises:
            UsageError: it cannot run on this device in this type.
        """
        try:
            with torch.inference_mode():
                self._synchronize()
                start = time.perf_counter()
                y = model(x)
                self._synchronize()
                return y, time.perf_counter() - start
        except RuntimeError as error:
            raise UsageError(f"{self.info.name} cannot run here: {one_line(error)}") from None

    def _synchronize(self) -> None:
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)


def device_named(name: str) -> torch.device:
    """The device, on which something has been computed.

    Raises:
        UsageError: there is no such device.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device: {name!r} is not a device, such as cpu, cuda or cuda:1") from None
    try:
        torch.ones(1, device=device).item()
    except Exception as error:  # noqa: BLE001 - each kind of device has an error type of its own
        raise UsageError(f"--device: {name} is not there: {one_line(error).partition('. ')[0]}") from None
    return device
