"""Builds the libraries _ops_cpu and, where a CUDA toolkit fits the installed PyTorch, _ops_cuda, and the module _C.

Writes drsn_ops/build_info.json, from which ops/library.py knows what was built. Environment variables:
    USE_CUDA=0    leaves CUDA out
    USE_CUDA=1    stops with the reason if CUDA cannot be built
    PORTABLE=1    for every Python and PyTorch: without _C, and with CUDA under a PyTorch without CUDA too
    OPERATOR_NAMESPACE=name    torch.ops.name, for a second copy of the package in one process
    OLDEST_TORCH=2.12          that the libraries serve; 2.11 if not set
    DEBUG=1       symbols and no optimisation
    CUDA_HOME     the toolkit; if not set, the one of PyPI's cuda-toolkit packages, then the one that PyTorch finds
    MAX_JOBS, TORCH_CUDA_ARCH_LIST, CXX as for every PyTorch extension
"""

import glob
import hashlib
import importlib.util
import json
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

# pip builds in an isolated environment. The PyTorch of the environment around it is used all the same.
sys.path += [p for p in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")} if p not in sys.path]
try:
    import torch
    from torch.utils import cpp_extension
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    if sys.argv[1:2] in (["egg_info"], ["sdist"]):  # of the sources alone: without PyTorch, as in isolation
        setup()
        sys.exit()
    sys.exit(
        f"drsn_ops is built against PyTorch, and {sys.executable} has none. Install both with:\n"
        "    python -m pip install 'torch>=2.11' 'setuptools>=77' ninja"
        " && python -m pip install --no-build-isolation ."
    )


def major_minor(version):
    return tuple(int(n) for n in re.findall(r"\d+", version)[:2])


OLDEST_TORCH = os.environ.get("OLDEST_TORCH") or "2.11"  # as csrc/torch_api.h has it
if not re.fullmatch(r"\d+\.\d+", OLDEST_TORCH) or major_minor(OLDEST_TORCH) < (2, 11):
    sys.exit(f"OLDEST_TORCH may be 2.11 or newer, such as 2.12, and is {OLDEST_TORCH!r}.")
if major_minor(torch.__version__) < major_minor(OLDEST_TORCH):
    sys.exit(f"drsn_ops needs PyTorch {OLDEST_TORCH} or newer, and {torch.__version__} is installed.")


def is_set(name):
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"{name} may be 0, 1 or not set, and is {value!r}.")
    return value == "1"


DEBUG = is_set("DEBUG")
PORTABLE = is_set("PORTABLE")
NAMESPACE = os.environ.get("OPERATOR_NAMESPACE") or "drsn_ops"
if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", NAMESPACE):
    sys.exit(f"OPERATOR_NAMESPACE may be a C++ identifier, and is {NAMESPACE!r}.")
SCHEMAS = "csrc/registration.cpp"
SYMBOLS = "tools/symbols-2.11.txt"
STUBS = "build/stubs"
BUILD_FILE = "build_info.json"
HEADERS = glob.glob("csrc/**/*.h", recursive=True) + glob.glob("csrc/**/*.cuh", recursive=True)

# GCC vectorises the loops only with these flags. Without fused multiply-add all SIMD levels give the same bits.
CXX_FLAGS = ["-O0", "-g"] if DEBUG else ["-O3", "-g0"]
CXX_FLAGS += ["-fopenmp-simd", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
CXX_FLAGS += ["-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
# -O2 is for host code: nvcc always optimises device code. For a profiler: NVCC_APPEND_FLAGS=-lineinfo.
NVCC_FLAGS = ["-O0", "-g", "-G"] if DEBUG else ["-O2"]
NVCC_FLAGS += ["-Xcompiler", "-fvisibility=hidden"]


def nvcc_output(toolkit, flag):
    return subprocess.check_output([os.path.join(toolkit, "bin", "nvcc"), flag], text=True)


def toolkits():
    """The folders that have an nvcc, the preferred one first."""
    if os.environ.get("CUDA_HOME"):
        places = [os.environ["CUDA_HOME"]]
    else:
        nvidia = importlib.util.find_spec("nvidia")  # a namespace package: one folder in each site-packages
        folders = nvidia.submodule_search_locations if nvidia else []
        places = [d for folder in folders for d in sorted(glob.glob(os.path.join(folder, "cu[0-9]*")))]
        places += [cpp_extension.CUDA_HOME or "", "/usr/local/cuda"]
    return [p for p in places if os.path.exists(os.path.join(p, "bin", "nvcc"))]


def cuda_version(toolkit):
    release = re.search(r"release (\d+\.\d+)", nvcc_output(toolkit, "--version"))
    return release and release[1]


def has_library(toolkit, name):
    return any(os.path.exists(os.path.join(d, name)) for d in cuda_library_dirs(toolkit))


def misfit(toolkit):
    """Why this toolkit cannot build for the installed PyTorch, or None."""
    try:
        version = cuda_version(toolkit)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"nvcc in {toolkit} does not run ({error})"
    if version is None:
        return f"nvcc in {toolkit} does not say of which CUDA release it is"
    if not PORTABLE and major_minor(version)[0] != major_minor(torch.version.cuda)[0]:
        return f"nvcc in {toolkit} is of CUDA {version}, PyTorch of CUDA {torch.version.cuda}"
    # -lcudart does not find libcudart.so.13
    if not has_library(toolkit, "libcudart_static.a") and not has_library(toolkit, "libcudart.so"):
        return f"neither libcudart_static.a nor libcudart.so in lib64 or lib of {toolkit}"
    return None


def find_cuda():
    """(toolkit, None), or (None, the reason why there is none)."""
    if torch.version.cuda is None and not PORTABLE:
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
    # the packages of CUDA 12 have ptxas and no nvcc
    if not PORTABLE and major_minor(torch.version.cuda)[0] < 13:
        return None, f"no nvcc found; PyPI has none of CUDA {torch.version.cuda}, NVIDIA's toolkit has"
    # every part of the compiler by name, for one release of all: nvcc asks for any nvvm and crt, also for newer ones
    return None, "no nvcc found; pip install 'cuda-toolkit[nvcc,nvvm,crt,cudart,cccl]' brings one"


def cuda_library_dirs(toolkit):
    return [d for name in ("lib64", "lib") if os.path.isdir(d := os.path.join(toolkit, name))]


def default_cuda_archs(toolkit):
    known = nvcc_output(toolkit, "--list-gpu-arch").split()
    archs = [a for a in ("7.5", "8.0", "9.0", "10.0", "12.0") if "compute_" + a.replace(".", "") in known]
    # 10.3 and 12.1 run the code of 10.0 and 12.0; 11.0 and GPUs to come compile the PTX
    ptx = "10.0" if "10.0" in archs else archs[-1]
    return ";".join(a + "+PTX" if a == ptx else a for a in archs)


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
CUDA_ARCHS = os.environ["TORCH_CUDA_ARCH_LIST"].replace(" ", ";").split(";") if CUDA_HOME else []
if CUDA_HOME and "--compress-mode" in nvcc_output(CUDA_HOME, "--help"):
    NVCC_FLAGS.append("--compress-mode=size")
if CUDA_HOME and PORTABLE:
    # PyTorch's BuildExtension refuses another CUDA's nvcc, and follows no headers of .cu files where it has no CUDA
    torch.version.cuda = CUDA_VERSION


def compiler():
    """The name and version of the C++ compiler."""
    command = [*shlex.split(cpp_extension.get_cxx_compiler()), "-dM", "-E", "-x", "c++", os.devnull]
    try:
        defined = subprocess.check_output(command, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"the C++ compiler does not run ({error}); CXX names another one.")
    macros = dict(line.split(" ", 2)[1:] for line in defined.splitlines() if line.count(" ") > 1)
    kinds = {
        "clang": ("__clang_major__", "__clang_minor__", "__clang_patchlevel__"),
        "g++": ("__GNUC__", "__GNUC_MINOR__", "__GNUC_PATCHLEVEL__"),  # which clang has too
    }
    for name, parts in kinds.items():
        if parts[0] in macros:
            return f"{name} {'.'.join(macros[part] for part in parts)}"
    return "unknown"


def build_info(version):
    """What the build file and _C have."""
    return {
        "version": version,
        "namespace": NAMESPACE,
        "oldest_torch": OLDEST_TORCH,
        "compiler": compiler(),
        "cuda": CUDA_VERSION,
        "cuda_arch": CUDA_ARCHS,
        "cuda_reason": CUDA_REASON,
        "simd": ["default", "avx2", "avx512"] if platform.machine() == "x86_64" else ["default"],
    }


def link_flags():
    if sys.platform != "linux":
        return []
    # The build ID identifies the schemas: ops/library.py loads only CUDA kernels that were built with the same ones.
    schemas = NAMESPACE.encode() + pathlib.Path(SCHEMAS).read_bytes()
    build_id = hashlib.sha1(schemas).hexdigest()
    strip = [] if DEBUG else ["-s"]
    return ["-Wl,--exclude-libs,ALL", f"-Wl,--build-id=0x{build_id}", *strip]


def operators(name, sources, libraries, include_paths, **options):
    # PyTorch's headers are included as system headers, so that their warnings are not shown.
    system = [f"-isystem{path}" for path in include_paths]
    oldest = "".join(f"{number:02x}" for number in major_minor(OLDEST_TORCH))
    defines = [f"-DTORCH_TARGET_VERSION=0x{oldest}000000000000", f"-DDRSN_NAMESPACE={NAMESPACE}"]
    return Extension(
        f"drsn_ops.{name}",
        sorted(sources),
        include_dirs=[os.path.abspath("csrc")],
        libraries=libraries,
        depends=[*HEADERS, SCHEMAS, "setup.py"],
        language="c++",
        extra_compile_args={"cxx": CXX_FLAGS + defines + system + options.pop("cxx", []), "nvcc": NVCC_FLAGS},
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
    # With the static runtime one library works with a PyTorch for any CUDA 13.x. Its symbols are not exported.
    static = has_library(CUDA_HOME, "libcudart_static.a")
    return operators(
        "_ops_cuda",
        glob.glob("csrc/cuda/*.cpp") + glob.glob("csrc/cuda/*.cu"),
        ["torch_cuda", "torch_cpu", *(["cudart_static", "rt", "dl", "pthread"] if static else ["cudart"])],
        cpp_extension.include_paths("cuda"),
        library_dirs=[STUBS] * PORTABLE + cpp_extension.library_paths("cuda") + cuda_library_dirs(CUDA_HOME),
        cxx=["-DUSE_CUDA"],
    )


def link_stub():
    """A libtorch_cuda.so with the functions that PyTorch's has, to link with where PyTorch is one without CUDA."""
    lines = [line.split() for line in pathlib.Path(SYMBOLS).read_text().splitlines()]
    names = [name for library, name in lines if library == "libtorch_cuda.so"]
    source = pathlib.Path(STUBS, "torch_cuda.cpp")
    source.parent.mkdir(parents=True, exist_ok=True)
    source.write_text("".join(f'extern "C" void {name}() {{}}\n' for name in names))
    stub = source.with_name("libtorch_cuda.so")
    command = [*shlex.split(cpp_extension.get_cxx_compiler()), "-shared", "-fPIC", source, "-o", stub]
    subprocess.run([*command, f"-Wl,-soname,{stub.name}"], check=True)


def quoted(text):
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def info_module():
    pybind11 = cpp_extension.include_paths()[0]  # PyTorch ships its headers
    return Extension(
        "drsn_ops._C",
        ["csrc/module.cpp"],
        depends=["setup.py", "pyproject.toml"],
        language="c++",
        extra_compile_args={"cxx": [*CXX_FLAGS, f"-isystem{pybind11}"]},
    )


class PortableWheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


class Build(build):
    def run(self):
        # The wheel would hold the files of an earlier build too: old CUDA kernels, deleted modules.
        earlier = os.path.join(self.build_lib, "drsn_ops")
        if os.path.exists(earlier):
            shutil.rmtree(earlier)
        super().run()


class BuildExtensions(cpp_extension.BuildExtension):
    def initialize_options(self):
        super().initialize_options()
        # A fixed folder: an editable install uses a temporary one and would compile everything again each time.
        self.build_temp = f"build/temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

    def finalize_options(self):
        super().finalize_options()
        self.force = True  # without ninja too: setuptools compares times, and no flags

    def get_ext_filename(self, ext_name):
        parts = ext_name.split(".")
        if parts[-1].startswith("_ops_"):
            return os.path.join(*parts) + ".so"  # a plain shared library, for any version of Python
        return super().get_ext_filename(ext_name)

    def build_extensions(self):
        info = build_info(self.distribution.get_version())
        self.build_file = json.dumps(info, indent=2) + "\n"
        if not PORTABLE:
            self.ext_map["drsn_ops._C"].define_macros.append(("DRSN_BUILD_INFO", quoted(json.dumps(info))))
        elif CUDA_HOME:
            link_stub()
        kind, ninja = "debug" if DEBUG else "release", "with" if self.use_ninja else "without"
        print(f"drsn_ops {info['version']}, {kind} build {ninja} ninja")
        print(f"  Python {sys.version.split()[0]}, PyTorch {torch.__version__}, {info['compiler']}")
        if CUDA_REASON:
            print(f"  *** CPU ONLY, the CUDA operators are left out: {CUDA_REASON} ***", flush=True)
        else:
            print(f"  CUDA {CUDA_VERSION} in {CUDA_HOME}, architectures {';'.join(CUDA_ARCHS)}", flush=True)
        super().build_extensions()
        self.write_build_file(os.path.join(self.build_lib, "drsn_ops"))

    def write_build_file(self, folder):
        pathlib.Path(folder, BUILD_FILE).write_text(self.build_file)

    def copy_extensions_to_source(self):
        # an earlier build's kernels may have other schemas; and what is cut off here is not taken for whole
        for earlier in (*pathlib.Path("drsn_ops").glob("*.so"), pathlib.Path("drsn_ops", BUILD_FILE)):
            earlier.unlink(missing_ok=True)
        super().copy_extensions_to_source()
        self.write_build_file("drsn_ops")


setup(
    ext_modules=[
        cpu_operators(),
        *([cuda_operators()] if CUDA_HOME else []),
        *([] if PORTABLE else [info_module()]),
    ],
    cmdclass={
        "build": Build,
        "build_ext": BuildExtensions,
        **({"bdist_wheel": PortableWheel} if PORTABLE else {}),
    },
)
