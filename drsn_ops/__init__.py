"""Soft thresholding and Deep Residual Shrinkage Networks as fused operators for PyTorch."""

from __future__ import annotations

import importlib
from os import PathLike
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from . import models, noise, reference, rules
from .analysis.checking import check_shrinkage
from .analysis.inspection import inspect
from .arguments import InputError, require_packages
from .functional import abs_mean, batch_norm_relu, batch_norm_shrink, gated_shrink, shrink, soft_threshold
from .models.adaptation import adapt_batch_norm
from .models.conversion import convert
from .modules import RSBU, Shrinkage, SoftThreshold
from .ops import fake_kernels  # noqa: F401  it registers them
from .ops.decomposition import decompositions
from .ops.library import build_info
from .rules import group_soft_threshold
from .variants.aprelu import APReLU

if TYPE_CHECKING:
    from .training.model import Model

__version__: str = build_info()["version"]

__all__ = [
    "APReLU",
    "InputError",
    "RSBU",
    "Shrinkage",
    "SoftThreshold",
    "abs_mean",
    "adapt_batch_norm",
    "batch_norm_relu",
    "batch_norm_shrink",
    "build_info",
    "check_shrinkage",
    "convert",
    "decompositions",
    "gated_shrink",
    "group_soft_threshold",
    "inspect",
    "load_model",
    "models",
    "noise",
    "reference",
    "rules",
    "shrink",
    "soft_threshold",
]


def load_model(path: str | PathLike[str], device: torch.device | str = "cpu") -> Model:
    """A trained model, as ``python -m drsn_ops train`` leaves it in ``model.pt``. No code that the file holds is run.

    Args:
        path: of the file.
        device: where the network is to run.

    Returns:
        The model: its ``network`` in evaluation mode, its ``classes``, ``predict(values, rate=None)`` of one recording,
        (points,) or (points, channels), and ``predict_files(paths)`` of many, with an `InputError` where a file cannot
        be used. A `Prediction` has the ``label``, the mean ``probability`` of that class over the windows, the
        ``share`` of windows that voted for it, and all ``probabilities``, (windows, classes).

    Raises:
        InputError: there is no such file, it is damaged, or no model of this version.
        ImportError: NumPy is missing, which the extra ``files`` brings.
    """
    require_packages("load_model", "files", "numpy")
    from .training import model

    return model.load_model(path, device)


def __getattr__(name: str) -> ModuleType:
    if name in ("data", "vibration"):  # when they are asked for, since they need NumPy
        return importlib.import_module(f"drsn_ops.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
