"""Loads the compiled operators and knows for which devices there are kernels."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from . import _C

_FOLDER = Path(__file__).parent


def _load() -> str | None:
    """Loads the libraries once a process; returns why there are no CUDA kernels, None where there are."""
    # A second library that defines the same operators would crash the process, so ask before loading.
    if not hasattr(torch.ops.drsn_ops, "soft_threshold"):
        torch.ops.load_library(str(_FOLDER / "_ops_cpu.so"))
    library = _FOLDER / "_ops_cuda.so"
    if not library.exists():
        return _C.build_info()["cuda_reason"] or "drsn_ops was built without CUDA"
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        return f"the CUDA kernels could not be loaded: {error}"
    return None


cuda_reason = _load()
_warned = False


def has_kernels(device: torch.device) -> bool:
    """Whether kernels serve the device; if not, says why, once a process."""
    if device.type in ("cpu", "meta") or (device.type == "cuda" and cuda_reason is None):
        return True
    global _warned
    if not _warned:
        _warned = True
        reason = cuda_reason if device.type == "cuda" else "there are kernels for cpu and cuda alone"
        warnings.warn(
            f"drsn_ops runs in plain PyTorch operators on {device.type}: {reason}",
            RuntimeWarning,
            stacklevel=4,
        )
    return False


def build_info() -> dict[str, Any]:
    """How the package was built and what it runs with, in plain values that print and go into JSON.

    Keys: ``version``, ``compiler``, ``cuda`` (nvcc's version or None), ``cuda_arch``, ``cuda_reason`` (why there are no
    CUDA kernels, or None), ``simd`` (the levels compiled in), ``simd_in_use`` and ``torch``.
    """
    return {
        **_C.build_info(),
        "cuda_reason": cuda_reason,
        "simd_in_use": torch.ops.drsn_ops.cpu_simd(),
        "torch": torch.__version__,
    }
