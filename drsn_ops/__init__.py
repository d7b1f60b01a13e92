"""Soft thresholding and Deep Residual Shrinkage Networks as fused operators for PyTorch."""

from . import gated_tracing as _gated_tracing  # noqa: F401  they register what they hold
from . import models, noise, reference
from . import tracing as _tracing  # noqa: F401
from ._library import build_info
from .checking import check_shrinkage
from .conversion import convert
from .decomposition import decompositions
from .functional import abs_mean, batch_norm_shrink, gated_shrink, shrink, soft_threshold
from .inspection import inspect
from .modules import RSBU, Shrinkage, SoftThreshold

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


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
