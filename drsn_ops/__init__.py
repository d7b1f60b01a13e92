"""Soft thresholding and Deep Residual Shrinkage Networks as fused operators for PyTorch."""

from . import models, reference
from . import tracing as _tracing  # noqa: F401  it registers what it holds
from ._library import build_info
from .functional import abs_mean, shrink, soft_threshold
from .modules import RSBU, Shrinkage, SoftThreshold

__version__: str = build_info()["version"]

__all__ = [
    "RSBU",
    "Shrinkage",
    "SoftThreshold",
    "abs_mean",
    "build_info",
    "models",
    "reference",
    "shrink",
    "soft_threshold",
]
