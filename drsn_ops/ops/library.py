"""Loads the compiled operators, and knows for which devices there are kernels."""

from __future__ import annotations

import contextlib
import json
import os
import re
import struct
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

_FOLDER = Path(__file__).parents[1]


def _read_build_file() -> dict[str, Any]:
    """What setup.py wrote beside the libraries."""
    path = _FOLDER / "build_info.json"
    for needed in (path, _FOLDER / "_ops_cpu.so"):
        if not needed.exists():
            raise ImportError(
                f"drsn_ops in {_FOLDER} is not compiled: no {needed.name}; install it, or leave this source tree if "
                "another one is installed"
            )
    try:
        built: dict[str, Any] = json.loads(path.read_text())
        if not built.keys() >= {"namespace", "oldest_torch", "cuda", "cuda_reason"}:
            raise ValueError("it lacks what a build writes")
    except (AttributeError, ValueError) as error:
        raise ImportError(f"{path} is damaged ({error}); install drsn_ops again") from error
    return built


_BUILT = _read_build_file()
NAMESPACE: str = _BUILT["namespace"]  # of the registered operators, as the libraries have it
OPS = getattr(torch.ops, NAMESPACE)

_BUILD_ID_NOTE = struct.pack("<3I4s", 4, 20, 3, b"GNU\0")  # sizes of name and content, NT_GNU_BUILD_ID, name


def _load() -> str | None:
    """Loads the libraries, once a process; returns why there are no CUDA kernels, or None if there are."""
    # Asked before loading: a second library that defines the same operators would crash the process.
    if not hasattr(OPS, "soft_threshold"):
        try:
            torch.ops.load_library(str(_FOLDER / "_ops_cpu.so"))
        except OSError as error:
            oldest = _BUILT["oldest_torch"]
            raise ImportError(
                f"drsn_ops is for PyTorch {oldest} and newer, and PyTorch {torch.__version__} cannot load it "
                f"({_reason(error)})"
            ) from error
        if not hasattr(OPS, "soft_threshold"):
            raise ImportError(
                f"drsn_ops in {_FOLDER}: _ops_cpu.so is of another build than build_info.json, which says that its "
                f"operators are torch.ops.{NAMESPACE}; install drsn_ops again"
            )
    return _load_cuda(_FOLDER / "_ops_cuda.so")


def _load_cuda(library: Path) -> str | None:
    built, oldest, running = _BUILT["cuda"], _BUILT["oldest_torch"], f"PyTorch {torch.__version__}"
    if built is None:
        return f"built without CUDA: {_BUILT['cuda_reason']}"
    if not library.exists():
        return f"{library} is missing; install drsn_ops again"
    if torch.version.cuda is None:
        return f"drsn_ops has CUDA kernels, but {running} is built without CUDA"
    # Asked before loading: what the kernels do with memory of another CUDA or an older PyTorch is not known.
    if _numbers(torch.version.cuda)[:1] != _numbers(built)[:1]:
        return f"the kernels are of CUDA {built}, and {running} is of CUDA {torch.version.cuda}"
    if _numbers(torch.__version__)[:2] < _numbers(oldest):
        return f"the CUDA kernels are for PyTorch {oldest} and newer, and this is {running}"
    # Kernels built for other schemas would read arguments that are not there.
    if _build_id(library) != _build_id(_FOLDER / "_ops_cpu.so"):
        return f"{library} is left over from another version of drsn_ops; install drsn_ops again"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"{running} cannot load the CUDA kernels ({_reason(error)}); install drsn_ops again"
    return None


def _reason(error: OSError) -> BaseException:
    return error.__cause__ or error  # PyTorch wraps the error of the dynamic loader


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _build_id(library: Path) -> bytes:
    """The build id in the library's ELF note, 20 bytes that setup.py makes of the schemas; empty if there is none."""
    with library.open("rb") as file:
        return file.read(4096).partition(_BUILD_ID_NOTE)[2][:20]


cuda_reason = _load()
_NO_MEMORY = re.compile("out of memory: drsn_ops|drsn_ops: out of memory")  # as the libraries say it


class _Operator(torch._ops.OpOverload):
    """An operator that raises torch.OutOfMemoryError for want of memory, wherever it is called from.

    PyTorch's stable interface knows no types of errors: what comes through it is a RuntimeError.
    """

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._op(*args, **kwargs)
        except RuntimeError as error:
            if type(error) is RuntimeError and _NO_MEMORY.search(str(error)):
                raise torch.OutOfMemoryError(str(error)) from None
            raise


with contextlib.suppress(TypeError):  # of a PyTorch to come whose operators cannot be given a class
    for _name in torch._C._dispatch_get_all_op_names():
        if _name.startswith(f"{NAMESPACE}::"):
            getattr(OPS, _name.partition("::")[2]).default.__class__ = _Operator

simd: str = OPS.cpu_simd()
_warned = False


def has_kernels(device: torch.device) -> bool:
    """True if there are kernels for the device; if not, warns with the reason, once a process."""
    if device.type in ("cpu", "meta") or (device.type == "cuda" and cuda_reason is None):
        return True
    global _warned
    if not _warned and not torch.compiler.is_compiling():  # a warning would break the graph
        _warned = True
        reason = cuda_reason if device.type == "cuda" else "there are kernels for cpu and cuda alone"
        warnings.warn(
            f"drsn_ops runs in plain PyTorch operators on {device.type}: {reason}",
            RuntimeWarning,
            stacklevel=_stack_level(),
        )
    return False


def _stack_level() -> int:
    """The ``stacklevel`` of a warning by the caller that points outside this package and PyTorch."""
    inside = (f"{_FOLDER}{os.sep}", f"{Path(torch.__file__).parent}{os.sep}")
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


def build_info() -> dict[str, Any]:
    """How the package was built and what it runs with.

    Returns:
        Plain values that print and go into JSON: ``version``, ``namespace`` (of the operators in ``torch.ops``),
        ``oldest_torch`` (that the libraries serve), ``compiler``, ``cuda`` (nvcc's version or None), ``cuda_arch``,
        ``cuda_reason`` (why there are no CUDA kernels, or None), ``simd`` (the levels compiled in), ``simd_in_use`` and
        ``torch``.
    """
    return {
        **_BUILT,
        "cuda_reason": cuda_reason,
        "simd_in_use": simd,
        "torch": torch.__version__,
    }
