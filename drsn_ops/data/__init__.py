"""Data to train on: images, recordings, and the vibration of a simulated machine. Imports no network."""

from .datasets import load
from .images import CLASSES, Dataset, Split, augment
from .recordings import Reading, Recordings, Windows, read_recordings

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
