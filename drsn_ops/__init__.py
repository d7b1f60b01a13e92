"""Soft thresholding and Deep Residual Shrinkage Networks as fused operators for PyTorch."""

from . import gated_tracing as _gated_tracing  # noqa: F401  they register what they hold
from . import models, reference
from . import tracing as _tracing  # noqa: F401
from ._library import build_info
from .functional import abs_mean, batch_norm_shrink, gated_shrink, shrink, soft_threshold
from .modules import RSBU, Shrinkage, SoftThreshold

__version__: str = build_info()["version"]

__all__ = [
    "RSBU",
    "Shrinkage",
    "SoftThreshold",
    "abs_mean",
    "batch_norm_shrink",
    "build_info",
    "gated_shrink",
    "models",
    "reference",
    "shrink",
    "soft_threshold",
]
