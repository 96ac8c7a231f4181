"""tune and use_tuning: what is measured, what is kept, and what a choice depends on."""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
import warnings

import pytest
import torch
from examples import examples
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import fastnets
from fastnets import _tuner, _tuning, ops
from fastnets._backends import BACKENDS, INTERPRETED
from fastnets._op import OPS

pytestmark = pytest.mark.skipif(
    INTERPRETED or BACKENDS["cpu"].missing() is not None, reason="there is no choice of backends in this process"
)
X = torch.randn(1, 6, 4, 4)
HERE = torch.device("cpu")


@pytest.fixture(autouse=True)
def no_table():
    yield
    fastnets.use_tuning(None)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "tuned.json")


@pytest.fixture
def reference_wins(monkeypatch):
    """Measurements say that the last of the backends, PyTorch's, is twice as fast as the one before."""
    raced = []

    def race(calls, device):
        raced.append(list(calls))
        return {name: 1 / (i + 1) for i, name in enumerate(calls)}

    monkeypatch.setattr(_tuner, "race", race)
    return raced


def ran(call=lambda: ops.channel_shuffle(X, 3)):
    fastnets.backend_report(reset=True)
    call()
    return {op: list(entry["calls"]) for op, entry in fastnets.backend_report().items()}


def tuned(path, call=lambda: ops.channel_shuffle(X, 3)):
    with fastnets.tune(path) as tuner:
        call()
    return tuner.measured


def test_what_was_measured_is_taken(path, reference_wins):
    with fastnets.tune(path):
        assert ran() == {"channel_shuffle": ["reference"]}
    assert reference_wins == [["cpu", "reference"]]
    assert ran() == {"channel_shuffle": ["cpu"]}  # the block has ended
    fastnets.use_tuning(path)
    assert ran() == {"channel_shuffle": ["reference"]}
    assert fastnets.backend_report()["channel_shuffle"]["declined"]["cpu"] == ["reference was the fastest when tuned"]
    fastnets.use_tuning(None)
    assert ran() == {"channel_shuffle": ["cpu"]}


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.channel_shuffle(X, 2),
        lambda: ops.channel_shuffle(X.double(), 3),
        lambda: ops.channel_shuffle(X[:, :, :2], 3),
        lambda: ops.channel_shuffle(X.contiguous(memory_format=torch.channels_last), 3),
    ],
    ids=["argument", "type", "size", "strides"],
)
def test_other_calls_are_as_without_a_table(path, reference_wins, call):
    tuned(path)
    fastnets.use_tuning(path)
    assert ran(call) == {"channel_shuffle": ["cpu"]}


def test_what_is_asked_for_comes_first(path, reference_wins):
    tuned(path)
    fastnets.use_tuning(path)
    with fastnets.use_backend("cpu"):
        assert ran() == {"channel_shuffle": ["cpu"]}
    with fastnets.tune(path), fastnets.use_backend("cpu"):
        assert ran(lambda: ops.channel_shuffle(X, 2)) == {"channel_shuffle": ["cpu"]}
    assert len(reference_wins) == 1


def test_nothing_is_measured_twice_nor_lost(path, reference_wins):
    tuned(path)
    with open(path) as file:
        kept = json.load(file)
    kept["machines"]["another"] = "in a form of its own"
    with open(path, "w") as file:
        json.dump(kept, file)
    measured = tuned(path, lambda: (ops.channel_shuffle(X, 3), ops.channel_shuffle(X, 2)))
    assert [op for _, op, _, _ in measured] == ["channel_shuffle"]
    assert len(reference_wins) == 2
    with open(path) as file:
        machines = json.load(file)["machines"]
    assert machines.keys() == {"another", _tuning.machine(HERE)}
    assert machines["another"] == "in a form of its own"
    assert len(machines[_tuning.machine(HERE)]["channel_shuffle"]) == 2


def test_two_that_tune_at_once_keep_both(path, reference_wins):
    with fastnets.tune(path):
        ops.channel_shuffle(X, 3)
        tuned(path, lambda: ops.channel_shuffle(X, 2))
    fastnets.use_tuning(path)
    assert [ran(lambda g=g: ops.channel_shuffle(X, g)) for g in (2, 3)] == [{"channel_shuffle": ["reference"]}] * 2


def test_an_error_in_the_block_loses_nothing(path, reference_wins):
    with pytest.raises(KeyError), fastnets.tune(path):
        ops.channel_shuffle(X, 3)
        raise KeyError
    fastnets.use_tuning(path)
    assert ran() == {"channel_shuffle": ["reference"]}


def test_gradients_are_calls_of_their_own(path, reference_wins):
    w = torch.randn(6, 2, 3, 3, requires_grad=True)
    measured = tuned(path, lambda: ops.grouped_conv2d(X, w, groups=3).sum().backward())
    assert [op for _, op, _, _ in measured] == ["grouped_conv2d", "grouped_conv2d_backward"]


@pytest.mark.parametrize("name", examples(4))
def test_results_are_those_without_it(path, name):
    call = examples(4)[name]
    expected = call()
    with fastnets.tune(path) as tuner:
        actual = call()
    torch.testing.assert_close(actual, expected)
    assert tuner.measured
    for *_, entry in tuner.measured:
        assert entry["backend"] in entry["seconds"]
        assert all(0 < s < math.inf for s in entry["seconds"].values())


def test_wrong_arguments_are_refused_as_without_it(path):
    def message():
        with pytest.raises(RuntimeError) as error:
            ops.channel_shuffle(X, 4)
        return str(error.value)

    expected = message()
    with fastnets.tune(path) as tuner:
        assert message() == expected
    assert not tuner.measured


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operators = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append(str(func))
        return func(*args, **(kwargs or {}))


def test_modes_do_not_see_measurements(path, reference_wins):
    with fastnets.tune(path) as tuner, Seen() as seen:
        ops.channel_shuffle(X, 3)
    assert seen.operators == ["fastnets.channel_shuffle.default"]
    assert len(tuner.measured) == 1


def test_under_autocast(path, reference_wins):
    with fastnets.tune(path) as tuner, torch.autocast("cpu", torch.bfloat16):
        ops.grouped_conv2d(X, torch.ones(6, 2, 3, 3), groups=3)
    ((_, _, call, _),) = tuner.measured
    assert call.startswith("bfloat16(1 6 4 4 by")


def test_nothing_is_measured_while_a_graph_is_captured(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not _tuner._can_measure(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert _tuner._can_measure(torch.device("cuda"))


def test_what_cannot_be_measured_is_as_without_a_table(path, reference_wins, monkeypatch):
    with fastnets.tune(path):
        monkeypatch.setattr(_tuner, "_can_measure", lambda _: False)
        assert ran() == {"channel_shuffle": ["cpu"]}
        monkeypatch.setattr(_tuner, "_can_measure", lambda _: True)
        assert ran() == {"channel_shuffle": ["reference"]}
        monkeypatch.setattr(_tuner, "_can_measure", lambda _: False)
        assert ran() == {"channel_shuffle": ["reference"]}


def test_plans_of_networks_are_of_our_kernels(path, reference_wins):
    layer = nn.Conv2d(6, 6, 3, groups=3)
    network = fastnets.accelerate(nn.Sequential(layer, nn.ReLU()).eval())
    fastnets.backend_report(reset=True)
    with torch.no_grad(), fastnets.tune(path):
        for _ in range(4):
            network(X)
    calls = fastnets.backend_report()["grouped_conv2d"]["calls"]
    assert calls == {"reference": 1, "cpu": 3}  # the first is not planned


def test_a_machine_is_its_threads_too(path, reference_wins):
    tuned(path)
    fastnets.use_tuning(path)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with pytest.warns(UserWarning, match=f"was not tuned on this machine, .*{threads + 1} threads.*It has .*"):
            assert ran() == {"channel_shuffle": ["cpu"]}
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it has been said
            assert ran() == {"channel_shuffle": ["cpu"]}
    finally:
        torch.set_num_threads(threads)
    assert ran() == {"channel_shuffle": ["reference"]}


def test_a_gpu_is_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU of {device}")
    said = _tuning.machine(torch.device("cuda", 1))
    assert said.startswith("the GPU of cuda:1, fastnets ")
    assert said.endswith("reference")


def test_environment(path, reference_wins):
    tuned(path)
    code = "import sys, torch, fastnets; torch.set_num_threads(int(sys.argv[1])); "
    code += "fastnets.ops.channel_shuffle(torch.ones(1, 6, 4, 4), 3); print(fastnets.backend_report())"

    def python(path):
        words = [sys.executable, "-c", code, str(torch.get_num_threads())]
        return subprocess.run(
            words, env={**os.environ, "FASTNETS_TUNING": path}, capture_output=True, text=True, check=False
        )

    assert python(path).stdout.startswith("channel_shuffle: reference 1\n")
    assert python("").stdout.startswith("channel_shuffle: cpu 1\n")
    assert "No such file or directory: '/there/is/none'" in python("/there/is/none").stderr


@pytest.mark.parametrize("text", ["", "[]", "{", '{"machines": 1}', '{"machines": []}', "[" * 100_000])
def test_files_that_are_no_table(path, text):
    with open(path, "w") as file:
        file.write(text)
    for take in (fastnets.use_tuning, tuned):
        with pytest.raises(ValueError, match="is not a table of `fastnets tune`"):
            take(path)
    with open(path) as file:
        assert file.read() == text


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ([], "is not a section"),
        ({"channel_shuffle": []}, "is not a section"),
        ({"channel_shuffle": {"a": {}}}, "is not a section"),
        ({"channel_shuffle": {"a": {"backend": "gpu"}}}, "names backends that there are not: 'gpu'"),
        ({"channel_shuffle": {"a": {"backend": None}}}, "names backends that there are not: None"),
        ({"channel_shuffle": {"a": {"backend": []}}}, "is not a section"),
    ],
)
def test_sections_of_another_form(path, section, said):
    _tuning.write(path, {_tuning.machine(HERE): section})
    fastnets.use_tuning(path)
    with pytest.raises(ValueError, match=said):
        ops.channel_shuffle(X, 3)


def test_a_file_that_cannot_be_written(tmp_path):
    path = tmp_path / "none" / "tuned.json"
    with pytest.raises(OSError, match=f"No such file or directory: '{path}'"):
        tuned(path)


def test_what_cannot_be_written_fails_before_it_is_measured(path, reference_wins, monkeypatch):
    tuned(path)
    monkeypatch.setattr(_tuner, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), fastnets.tune(path):
        pytest.fail("the block has begun")


def test_a_file_is_written_whole_or_not(path, monkeypatch):
    mask = os.umask(0o022)
    try:
        _tuning.write(path, {"a": 1})
    finally:
        os.umask(mask)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o644  # others may deploy it
    os.symlink(path, path + ".link")
    _tuning.write(path + ".link", {"a": 2})
    monkeypatch.setattr(json, "dump", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _tuning.write(path, {"a": 3})
    assert _tuning.Table(path).machines == {"a": 2}
    assert sorted(os.listdir(os.path.dirname(path))) == ["tuned.json", "tuned.json.link"]


def test_signature():
    one = torch.ones(1, 2, 1, 3)
    assert (
        _tuning.signature((one, None, [1, (2, 3)], "relu")) == "float32(1 2 1 3 by 0 3 0 1), None, [1, [2, 3]], 'relu'"
    )
    assert _tuning.signature(([one[0, 0], one.half()],)) == "[float32(1 3 by 0 1), float16(1 2 1 3 by 0 3 0 1)]"
    marks = [_tuning._mark(a) for a in (1, 1.0, True, None, one, one.double(), one.mT, [one], [one, one])]
    assert len(set(marks)) == len(marks)


def test_what_is_remembered_has_a_bound(path, reference_wins, monkeypatch):
    monkeypatch.setattr(_tuning, "_KNOWN", 4)
    tuned(path)
    fastnets.use_tuning(path)
    for n in range(1, 12):
        ops.channel_shuffle(torch.ones(n, 4, 1, 1), 2)
        assert len(_tuning.current.table._known) <= 4
    assert ran() == {"channel_shuffle": ["reference"]}


def test_measurements_write_into_copies():
    into, x = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    call = _tuner._calls(OPS["concat_images"], "cpu", (into, [x], [0]))
    assert call().tolist() == x.tolist()
    assert not into.any()


def test_race(monkeypatch):
    clock, counts = [0.0], {}

    def takes(name, *seconds):
        def call():
            counts[name] = counts.get(name, 0) + 1
            clock[0] += seconds[min(counts[name], len(seconds)) - 1]

        return call

    monkeypatch.setattr(_tuner.time, "perf_counter", lambda: clock[0])
    seconds = _tuner.race({"a": takes("a", 9, 0.5, 0.25), "b": takes("b", 0.2, 1.0), "c": takes("c", 3.0)}, HERE)
    assert seconds == {"a": 0.25, "b": 1.0, "c": 3.0}  # neither the first call of a, nor the second
    assert counts == {"a": 2 + _tuner._ROUNDS, "b": 2 + _tuner._ROUNDS, "c": 2}


def test_times_without_memory_are_none(path, monkeypatch):
    monkeypatch.setattr(_tuner, "race", lambda *_: {"cpu": math.inf, "reference": 2.0})
    tuned(path)
    with open(path) as file:
        text = file.read()
    (section,) = json.loads(text, parse_constant=pytest.fail)["machines"].values()
    (entry,) = section["channel_shuffle"].values()
    assert entry == {"backend": "reference", "seconds": {"cpu": None, "reference": 2.0}}


def test_race_without_memory():
    def fails():
        raise torch.OutOfMemoryError("too little")

    seconds = _tuner.race({"a": fails, "b": lambda: None}, HERE)
    assert seconds["a"] == math.inf
    assert _tuner.fastest(seconds) == "b"
    with pytest.raises(torch.OutOfMemoryError):
        _tuner.race({"a": fails, "b": fails}, HERE)


def test_fastest():
    assert _tuner.fastest({"a": 1.0, "b": 0.96}) == "a"
    assert _tuner.fastest({"a": 1.0, "b": 0.94, "c": 0.93}) == "c"
