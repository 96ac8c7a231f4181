"""What the process of a runtime does. It imports no torch, whose threads would be more neighbours."""

from __future__ import annotations

import ctypes
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

Run = Callable[[], list[Any]]  # numpy arrays


def _onnxruntime(model: bytes, inputs: dict[str, Any], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def _openvino(precision: str) -> Callable[[bytes, dict[str, Any], int], Run]:
    def load(model: bytes, inputs: dict[str, Any], threads: int) -> Run:
        import openvino

        # Left alone it computes in bfloat16 wherever the processor can.
        config = {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        core = openvino.Core()
        request = core.compile_model(core.read_model(model), "CPU", config).create_infer_request()
        for name, array in inputs.items():
            request.set_tensor(name, openvino.Tensor(array))

        def run() -> list[Any]:
            request.infer()
            return [request.get_output_tensor(i).data for i in range(len(request.model_outputs))]

        return run

    return load


RUNTIMES = {"onnxruntime": _onnxruntime, "openvino": _openvino("f32"), "openvino bfloat16": _openvino("bf16")}


class Server:
    """Answers requests about one model.

    Args:
        runtime: a key of ``RUNTIMES``.
    """

    def __init__(self, runtime: str) -> None:
        self._load = RUNTIMES[runtime]
        self._run: Run | None = None

    def load(self, model: bytes, inputs: dict[str, Any], threads: int) -> None:
        """Takes a model in place of the one before."""
        if "torch" in sys.modules:
            raise RuntimeError("torch is imported in this process too, beside which OpenVINO ran on one thread of two")
        self._run = None
        self._run = self._load(model, inputs, threads)

    def result(self) -> list[Any]:
        """What a call has left at the moment it returns; the results of the call before are spoilt first."""
        for array in self._run():
            if array.dtype.kind == "f":
                array.fill(float("nan"))
            else:
                array[...] = ~array
        return [array.copy() for array in self._run()]

    def block(self, calls: int, warm: float) -> float:
        """Seconds of one call, the mean of ``calls`` in a row after ``warm`` seconds of others."""
        end = time.perf_counter() + warm
        while time.perf_counter() < end:
            result = self._run()
        start = time.perf_counter()
        for _ in range(calls):
            result = self._run()  # noqa: F841  as here: the result before is still there meanwhile
        return (time.perf_counter() - start) / calls


def serve(runtime: str, connection: Connection) -> None:
    """Answers until the other side is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal
    if sys.platform == "linux":
        PR_SET_PDEATHSIG = 1  # or a stopped process would outlive a parent that was killed
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    server = Server(runtime)
    while True:
        try:
            name, *arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, getattr(server, name)(*arguments)))
        except Exception as error:  # noqa: BLE001  whatever a runtime raises is told to who asked
            connection.send((False, f"{type(error).__name__}: {error}"))
