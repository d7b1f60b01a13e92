"""Builds drsn_ops/_ops_cpu.so, drsn_ops/_ops_cuda.so (where it can) and the pybind11 module drsn_ops/_C.

Environment: USE_CUDA=0 leaves CUDA out, USE_CUDA=1 makes a missing condition an error; CUDA_HOME, MAX_JOBS,
TORCH_CUDA_ARCH_LIST, CXX and CC as for every PyTorch extension; DEBUG=1: no optimisation, and symbols. Without
CUDA_HOME the compiler of PyPI's cuda-toolkit[nvcc,cccl], CUDA 13 or newer, is first, then the nvcc that PyTorch finds.
"""

import glob
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.build import build

# pip builds in an environment of its own, without the user's PyTorch; where that one lies is still known.
sys.path += [p for p in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")} if p not in sys.path]
try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    sys.exit(
        f"drsn_ops is built against PyTorch, and {sys.executable} has none. Install both with:\n"
        "    python -m pip install 'torch>=2.11' 'setuptools>=77' ninja pybind11"
        " && python -m pip install --no-build-isolation ."
    )

TORCH_VERSION = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
if TORCH_VERSION < (2, 11):
    sys.exit(f"drsn_ops needs PyTorch 2.11 or newer, and {torch.__version__} is installed.")

DEBUG = os.environ.get("DEBUG", "0") not in ("", "0")
SCHEMAS = "csrc/registration.cpp"
HEADERS = glob.glob("csrc/**/*.h", recursive=True) + glob.glob("csrc/**/*.cuh", recursive=True)

# Loops become vector code only with all of these; with no fused multiply-add all SIMD levels agree exactly.
CXX_FLAGS = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
CXX_FLAGS += ["-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
CXX_FLAGS += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
# -O2 is for the host's code, device code has levels of its own. A profiler's lines: NVCC_APPEND_FLAGS=-lineinfo.
NVCC_FLAGS = ["-O0", "-g", "-G"] if DEBUG else ["-O2"]
NVCC_FLAGS += ["-Xcompiler", "-fvisibility=hidden", "--compress-mode=size"]


def nvcc_says(toolkit, flag):
    return subprocess.check_output([os.path.join(toolkit, "bin", "nvcc"), flag], text=True)


def toolkits():
    """Where there is an nvcc, best first."""
    if os.environ.get("CUDA_HOME"):
        places = [os.environ["CUDA_HOME"]]
    else:
        nvidia = importlib.util.find_spec("nvidia")  # a namespace package: a folder in each site-packages
        folders = nvidia.submodule_search_locations if nvidia else []
        places = [d for folder in folders for d in sorted(glob.glob(os.path.join(folder, "cu[0-9]*")))]
        places += [cpp_extension.CUDA_HOME or "", "/usr/local/cuda"]
    return [p for p in places if os.path.exists(os.path.join(p, "bin", "nvcc"))]


def cuda_version(toolkit):
    release = re.search(r"release (\d+\.\d+)", nvcc_says(toolkit, "--version"))
    return release and release[1]


def major(version):
    return int(version.split(".")[0])


def has_library(toolkit, name):
    return any(os.path.exists(os.path.join(d, name)) for d in cuda_library_dirs(toolkit))


def misfit(toolkit):
    """Why nothing can be built with it for this PyTorch, or None."""
    try:
        version = cuda_version(toolkit)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"nvcc in {toolkit} does not run ({error})"
    if version is None:
        return f"nvcc in {toolkit} does not say of which CUDA release it is"
    if major(version) != major(torch.version.cuda):
        return f"nvcc in {toolkit} is of CUDA {version}, PyTorch of CUDA {torch.version.cuda}"
    # the linker finds no libcudart.so.13
    if not has_library(toolkit, "libcudart_static.a") and not has_library(toolkit, "libcudart.so"):
        return f"neither libcudart_static.a nor libcudart.so in lib64 or lib of {toolkit}"
    return None


def find_cuda():
    """(toolkit, None), or (None, the condition that failed)."""
    if torch.version.cuda is None:
        return None, f"PyTorch {torch.__version__} is built without CUDA"
    reasons = []
    for toolkit in toolkits():
        reason = misfit(toolkit)
        if reason is None:
            cpp_extension.CUDA_HOME = toolkit
            return toolkit, None
        reasons.append(reason)
    if reasons:
        return None, "; ".join(reasons)
    if os.environ.get("CUDA_HOME"):
        return None, f"no nvcc in CUDA_HOME ({os.environ['CUDA_HOME']})"
    if major(torch.version.cuda) < 13:  # the packages of CUDA 12 have ptxas and no nvcc
        return None, f"no nvcc found; PyPI has none of CUDA {torch.version.cuda}, NVIDIA's toolkit has"
    return None, "no nvcc found; pip install 'cuda-toolkit[nvcc,cccl]' brings one"


def cuda_library_dirs(toolkit):
    return [d for name in ("lib64", "lib") if os.path.isdir(d := os.path.join(toolkit, name))]


def default_cuda_archs(toolkit):
    known = nvcc_says(toolkit, "--list-gpu-arch").split()
    archs = [a for a in ("7.5", "8.0", "9.0", "10.0", "12.0") if "compute_" + a.replace(".", "") in known]
    return ";".join(archs) + "+PTX"  # the last one as PTX too, for the GPUs to come


def choose_cuda():
    wish = os.environ.get("USE_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"USE_CUDA may be 0 (CPU only), 1 (CUDA or an error) or not set, and is {wish!r}.")
    if wish == "0":
        return None, "USE_CUDA=0"
    toolkit, reason = find_cuda()
    if reason and wish == "1":
        sys.exit(f"USE_CUDA=1, and the CUDA library cannot be built: {reason}.")
    if toolkit and not os.environ.get("TORCH_CUDA_ARCH_LIST"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = default_cuda_archs(toolkit)
    return toolkit, reason


CUDA_HOME, CUDA_REASON = choose_cuda()
CUDA_VERSION = cuda_version(CUDA_HOME) if CUDA_HOME else None
CUDA_ARCHS = os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";") if CUDA_HOME else ""


def link_flags():
    if sys.platform != "linux":
        return []
    # The build ID says which schemas a library has: ops/library.py loads no kernels of others.
    with open(SCHEMAS, "rb") as file:
        build_id = hashlib.sha1(file.read()).hexdigest()
    strip = [] if DEBUG else ["-s"]
    return ["-Wl,--exclude-libs,ALL", f"-Wl,--build-id=0x{build_id}", *strip]


def operators(name, sources, libraries, include_paths, **options):
    # PyTorch's headers are system headers here: their warnings are not ours to mend.
    system = [f"-isystem{path}" for path in include_paths]
    return Extension(
        f"drsn_ops.{name}",
        sorted(sources),
        include_dirs=[os.path.abspath("csrc")],
        libraries=libraries,
        depends=[*HEADERS, SCHEMAS, "setup.py"],
        language="c++",
        extra_compile_args={"cxx": CXX_FLAGS + system + options.pop("cxx", []), "nvcc": NVCC_FLAGS},
        extra_link_args=link_flags(),
        **options,
    )


def cpu_operators():
    return operators(
        "_ops_cpu",
        [SCHEMAS, *glob.glob("csrc/cpu/*.cpp")],
        ["torch_cpu"],
        cpp_extension.include_paths(),
        library_dirs=cpp_extension.library_paths(),
    )


def cuda_operators():
    # The static runtime serves PyTorch builds of any minor version; its symbols stay inside.
    static = has_library(CUDA_HOME, "libcudart_static.a")
    return operators(
        "_ops_cuda",
        glob.glob("csrc/cuda/*.cpp") + glob.glob("csrc/cuda/*.cu"),
        ["torch_cuda", "torch_cpu", *(["cudart_static", "rt", "dl", "pthread"] if static else ["cudart"])],
        cpp_extension.include_paths("cuda"),
        library_dirs=cpp_extension.library_paths("cuda") + cuda_library_dirs(CUDA_HOME),
        cxx=["-DUSE_CUDA"],
    )


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def info_module():
    try:
        import pybind11

        include = pybind11.get_include()
    except ModuleNotFoundError:
        include = cpp_extension.include_paths()[0]  # PyTorch ships a copy
    words = {"CUDA_VERSION": CUDA_VERSION, "CUDA_ARCHS": CUDA_ARCHS, "CUDA_REASON": CUDA_REASON}
    return Extension(
        "drsn_ops._C",
        ["csrc/module.cpp"],
        define_macros=[(f"DRSN_{name}", quoted(value or "")) for name, value in words.items()],
        depends=["setup.py", "pyproject.toml"],
        language="c++",
        extra_compile_args={"cxx": [*CXX_FLAGS, f"-isystem{include}"]},
    )


class Build(build):
    def run(self):
        # What an earlier build left there would be packed: CUDA kernels of other schemas, modules that are gone.
        earlier = os.path.join(self.build_lib, "drsn_ops")
        if os.path.exists(earlier):
            shutil.rmtree(earlier)
        super().run()


class BuildExtensions(cpp_extension.BuildExtension):
    def initialize_options(self):
        super().initialize_options()
        # An editable install would compile in a throw-away folder, and so everything again each time.
        self.build_temp = f"build/temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

    def get_ext_filename(self, ext_name):
        parts = ext_name.split(".")
        if parts[-1].startswith("_ops_"):
            return os.path.join(*parts) + ".so"  # plain shared libraries, the same for every Python
        return super().get_ext_filename(ext_name)

    def build_extensions(self):
        version = self.distribution.get_version()
        self.ext_map["drsn_ops._C"].define_macros.append(("DRSN_VERSION", quoted(version)))
        kind, ninja = "debug" if DEBUG else "release", "with" if self.use_ninja else "without"
        print(f"drsn_ops {version}, {kind} build {ninja} ninja")
        print(f"  Python {sys.version.split()[0]}, PyTorch {torch.__version__}")
        if CUDA_REASON:
            print(f"  *** CPU ONLY, the CUDA operators are left out: {CUDA_REASON} ***", flush=True)
        else:
            print(f"  CUDA {CUDA_VERSION} in {CUDA_HOME}, architectures {CUDA_ARCHS}", flush=True)
        super().build_extensions()

    def copy_extensions_to_source(self):
        super().copy_extensions_to_source()
        if CUDA_REASON:
            for stale in glob.glob("drsn_ops/_ops_cuda.so"):
                os.remove(stale)  # of an earlier build: its kernels need not fit the schemas of this one


setup(
    ext_modules=[cpu_operators(), *([cuda_operators()] if CUDA_HOME else []), info_module()],
    cmdclass={"build": Build, "build_ext": BuildExtensions},
)
