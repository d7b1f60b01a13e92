"""Data to train on: images, recordings, and the vibration of a simulated machine. Imports no network."""

from .datasets import load
from .images import CLASSES, Dataset, Split, augment

__all__ = ["CLASSES", "Dataset", "Split", "augment", "load"]
