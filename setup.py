"""Builds fastnets._C out of csrc/cpu and fastnets._C_cuda out of csrc/cuda; README.md has the environment variables."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from glob import glob

from setuptools import find_packages, setup

MODE = os.environ.setdefault("FASTNETS_BUILD", "auto")
CXX = os.environ.setdefault("CXX", "c++")  # or setuptools would compile with this one and link with another
NVCC = os.environ["CUDA_HOME"] + "/bin/nvcc" if "CUDA_HOME" in os.environ else "nvcc"
FORCE_CUDA = os.environ.get("FORCE_CUDA") == "1"
WERROR = os.environ.get("FASTNETS_WERROR") == "1"
COMPILES = not {"bdist_wheel", "build", "build_ext", "editable_wheel", "install"}.isdisjoint(sys.argv)
ISOLATED = """fastnets compiles against the torch that it will run with, and this isolated build has none. Run:
    pip install torch "setuptools>=77" && pip install --no-build-isolation ."""


def output_of(command, *args):
    """What a command prints when it reads one line of C++20; None if it fails or is not there."""
    if shutil.which(command) is None:
        return None
    done = subprocess.run([command, *args], input="#include <concepts>\n", capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode == 0 else None


def max_jobs():
    """As many compilers as there are cores with 2 GiB of free memory each."""
    with open("/proc/meminfo") as meminfo:
        free = [int(line.split()[1]) >> 21 for line in meminfo if line.startswith("MemAvailable")]
    return max(1, min(len(os.sched_getaffinity(0)), *free))


def wanted(kernels, why_not, required):
    """Says whether these kernels are built; ends the build if they cannot be and must."""
    if why_not and required:
        sys.exit(f"fastnets build: {kernels} kernels were asked for, but {why_not}")
    print(f"fastnets build: {kernels} kernels: {'none, ' + why_not if why_not else 'yes'}", flush=True)
    return not why_not


def compiled():
    """What setup() must know of the compiled parts; nothing if there are none."""
    if MODE == "none":
        wanted("CPU", "FASTNETS_BUILD=none", required=False)
        return {}
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        sys.exit(ISOLATED)

    jobs = os.environ.setdefault("MAX_JOBS", str(max_jobs()))
    archs = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;8.6;9.0+PTX")  # or torch would look for a GPU
    print(f"fastnets build: torch {torch.__version__}, FASTNETS_BUILD={MODE} CXX={CXX} MAX_JOBS={jobs}")
    compiler = output_of(*shlex.split(CXX), "-std=c++20", "-fsyntax-only", "-x", "c++", "-")
    no_cpu = f"{CXX} is not a C++20 compiler" if compiler is None else None
    if not wanted("CPU", no_cpu, required=MODE != "auto" or FORCE_CUDA):
        return {}

    common = ["-O3", "-std=c++20", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    common += [flag for path in cpp_extension.include_paths() for flag in ("-isystem", path)]  # silences torch's
    no_path = f"-ffile-prefix-map={os.getcwd()}/="  # messages name csrc/..., not where it was built
    cxx = [
        *common,
        no_path,
        "-g0",
        "-fvisibility=hidden",
        "-fno-math-errno",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        *["-Werror"] * WERROR,
    ]
    cxx += shlex.split(os.environ.get("CXXFLAGS", ""))  # the last word is the user's
    nvcc = [*common, "-DUSE_CUDA", f"-Xcompiler=-fvisibility=hidden,{no_path}", *["-Werror=all-warnings"] * WERROR]
    extension = partial(
        cpp_extension.CppExtension,
        depends=glob("csrc/**/*.*h", recursive=True),
        extra_compile_args={"cxx": cxx, "nvcc": nvcc},
        py_limited_api=True,
    )
    ext_modules = [extension("fastnets._C", sorted(glob("csrc/cpu/*.cpp")))]

    plan, no_cuda = output_of(NVCC, "--dryrun", "-x", "cu", os.devnull), None
    if plan is None:
        no_cuda = f"{NVCC} is not there"
    elif torch.version.cuda is None and not FORCE_CUDA and MODE != "cuda":
        no_cuda = "torch is built without CUDA (FORCE_CUDA=1 builds them all the same)"
    if MODE != "cpu" and wanted("CUDA", no_cuda, required=MODE == "cuda" or FORCE_CUDA):
        print(f"fastnets build: {NVCC}, TORCH_CUDA_ARCH_LIST={archs}", flush=True)
        # A CPU torch leaves it unset, and the nvcc on the PATH may be a script: nvcc itself knows.
        cpp_extension.CUDA_HOME = re.search("TOP=(.*)", plan)[1]
        # libtorch brings libtorch_cuda along, whose stream functions are used, though nothing of its own is.
        link = ["-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed", "-lcudart_static", "-lpthread", "-ldl", "-lrt"]
        dirs, sources = re.findall('"-L(.*?)"', plan), sorted(glob("csrc/cuda/*.cu"))
        ext_modules.append(extension("fastnets._C_cuda", sources, library_dirs=dirs, extra_link_args=link))
    return {
        "ext_modules": ext_modules,
        "cmdclass": {"build_ext": cpp_extension.BuildExtension},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


if MODE not in ("auto", "none", "cpu", "cuda"):
    sys.exit(f"FASTNETS_BUILD must be auto, none, cpu or cuda, but is {MODE!r}")
if FORCE_CUDA and MODE in ("none", "cpu"):
    sys.exit(f"FORCE_CUDA=1 asks for the CUDA kernels, which FASTNETS_BUILD={MODE} leaves out")
setup(
    packages=[*find_packages(include=["fastnets", "fastnets.*"]), "fastnets.kernels"],
    package_dir={"fastnets": "fastnets", "fastnets.kernels": "kernels"},
    **(compiled() if COMPILES else {}),
)
