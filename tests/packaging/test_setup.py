"""What setup.py decides in which environment, and what it packs."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastnets

ROOT = Path(__file__).parents[2]
VARIABLES = ("FASTNETS_BUILD", "FORCE_CUDA", "CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "CXX", "PYTHONPATH")


def setup(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in VARIABLES} | variables
    command = [sys.executable, "setup.py", *args]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)


def configuration(**variables: str) -> list[str]:
    """The lines that a build begins with; asking for its help ends it there."""
    done = setup("build_ext", "--help", **variables)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith("fastnets build:")]


def refusal(**variables: str) -> str:
    done = setup("build_ext", "--help", **variables)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.fixture
def no_torch(tmp_path: Path) -> str:
    """A PYTHONPATH on which torch cannot be imported, as in an isolated build."""
    (tmp_path / "torch.py").write_text("raise ImportError")
    return str(tmp_path)


def test_version_is_that_of_the_package() -> None:
    assert setup("--version").stdout.strip() == fastnets.__version__


def test_unknown_mode_is_refused() -> None:
    assert refusal(FASTNETS_BUILD="gpu") == "FASTNETS_BUILD must be auto, none, cpu or cuda, but is 'gpu'"


@pytest.mark.parametrize("mode", ["none", "cpu"])
def test_cuda_asked_for_and_left_out_is_refused(mode: str) -> None:
    expected = f"FORCE_CUDA=1 asks for the CUDA kernels, which FASTNETS_BUILD={mode} leaves out"
    assert refusal(FASTNETS_BUILD=mode, FORCE_CUDA="1", CXX="true") == expected


def test_isolated_build_names_the_command_that_works(no_torch: str) -> None:
    expected = 'pip install torch "setuptools>=77" && pip install --no-build-isolation .'
    assert refusal(PYTHONPATH=no_torch).strip() == expected


def test_mode_none_needs_no_torch(no_torch: str) -> None:
    lines = configuration(FASTNETS_BUILD="none", PYTHONPATH=no_torch)
    assert lines == ["fastnets build: CPU kernels: none, FASTNETS_BUILD=none"]


def test_without_compiler_is_pure_python_and_says_so() -> None:
    assert configuration(CXX="no-such-c++")[1:] == [
        "fastnets build: CPU kernels: none, no-such-c++ is not a C++20 compiler"
    ]


def test_compiler_that_fails_counts_as_none() -> None:
    assert configuration(CXX="false")[1:] == ["fastnets build: CPU kernels: none, false is not a C++20 compiler"]


@pytest.mark.parametrize("variables", [{"FASTNETS_BUILD": "cpu"}, {"FORCE_CUDA": "1"}])
def test_kernels_asked_for_need_a_compiler(variables: dict[str, str]) -> None:
    expected = "fastnets build: CPU kernels were asked for, but false is not a C++20 compiler"
    assert refusal(CXX="false", **variables) == expected


@pytest.mark.parametrize("variables", [{"FASTNETS_BUILD": "cuda"}, {"FORCE_CUDA": "1"}])
def test_cuda_asked_for_needs_nvcc(variables: dict[str, str]) -> None:
    # `true` stands in for a compiler that works.
    expected = "fastnets build: CUDA kernels were asked for, but /none/bin/nvcc is not there"
    assert refusal(CXX="true", CUDA_HOME="/none", **variables) == expected


def test_settings_are_taken_over() -> None:
    first, cpu = configuration(FASTNETS_BUILD="cpu", CXX="true", MAX_JOBS="7")
    assert first.endswith("FASTNETS_BUILD=cpu CXX=true MAX_JOBS=7")
    assert cpu == "fastnets build: CPU kernels: yes"


def test_pure_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    places = [
        f"--build-base={tmp_path}/build",
        "bdist_wheel",
        f"--dist-dir={tmp_path}",
        f"--bdist-dir={tmp_path}/bdist",
    ]
    done = setup("-q", "egg_info", f"--egg-base={tmp_path}", "build", *places, FASTNETS_BUILD="none")
    assert done.returncode == 0, done.stderr
    version = fastnets.__version__
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"fastnets-{version}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names} == {"fastnets", f"fastnets-{version}.dist-info"}
    sources = {p.relative_to(ROOT).as_posix() for p in ROOT.glob("fastnets/**/*.py")}
    kernels = {f"fastnets/{p.relative_to(ROOT).as_posix()}" for p in ROOT.glob("kernels/*.py")}
    data = {
        f"fastnets/{name}"
        for name in ("py.typed", "gpu_evidence.txt", "cli/imagenet_classes.txt", "cli/bench/page.css")
    }
    assert {name for name in names if name.startswith("fastnets/")} == sources | kernels | data


def test_source_archive_holds_what_a_build_needs(tmp_path: Path, no_torch: str) -> None:
    done = setup("-q", "egg_info", f"--egg-base={tmp_path}", "sdist", f"--dist-dir={tmp_path}", PYTHONPATH=no_torch)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    needed = [*ROOT.glob("csrc/**/*.*"), *ROOT.glob("fastnets/**/*.py"), *ROOT.glob("kernels/*.py")]
    assert {p.relative_to(ROOT).as_posix() for p in needed} | {"LICENSE", "pyproject.toml", "setup.py"} <= names
