"""Data to train on: images, recordings, and the vibration of a simulated machine. Imports no network."""

from ..arguments import require_packages

require_packages("drsn_ops.data", "files", "numpy")

from .datasets import load  # noqa: E402
from .images import CLASSES, Dataset, Split, augment  # noqa: E402
from .recordings import Reading, Recordings, Windows, read_recordings  # noqa: E402

__all__ = [
    "CLASSES",
    "Dataset",
    "Reading",
    "Recordings",
    "Split",
    "Windows",
    "augment",
    "load",
    "read_recordings",
]
