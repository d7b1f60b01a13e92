"""The simulated machine of `drsn_ops.data.vibration`, under the name that users import."""

from .data.vibration import CLASSES, Signals, vibration

__all__ = ["CLASSES", "Signals", "vibration"]
