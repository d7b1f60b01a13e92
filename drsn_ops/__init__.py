"""Soft thresholding and Deep Residual Shrinkage Networks as fused operators for PyTorch."""

import importlib
from types import ModuleType

from . import models, noise, reference
from .analysis.checking import check_shrinkage
from .analysis.inspection import inspect
from .functional import abs_mean, batch_norm_shrink, gated_shrink, shrink, soft_threshold
from .models.conversion import convert
from .modules import RSBU, Shrinkage, SoftThreshold
from .ops import fake_kernels  # noqa: F401  it registers them
from .ops.decomposition import decompositions
from .ops.library import build_info

__version__: str = build_info()["version"]

__all__ = [
    "RSBU",
    "Shrinkage",
    "SoftThreshold",
    "abs_mean",
    "batch_norm_shrink",
    "build_info",
    "check_shrinkage",
    "convert",
    "decompositions",
    "gated_shrink",
    "inspect",
    "models",
    "noise",
    "reference",
    "shrink",
    "soft_threshold",
]


def __getattr__(name: str) -> ModuleType:
    if name == "vibration":  # when it is asked for, since it needs NumPy
        return importlib.import_module("drsn_ops.vibration")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
