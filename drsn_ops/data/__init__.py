"""Data to train on: images, recordings, and the vibration of a simulated machine."""

from .images import CLASSES, Dataset, Split, augment, load

__all__ = ["CLASSES", "Dataset", "Split", "augment", "load"]
