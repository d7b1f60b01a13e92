"""The simulated machine of `drsn_ops.data.vibration`, under the name that users import."""

from .data.vibration import CLASSES, DEFECTS, LOADS, SKF_6205, SPEEDS, Bearing, Defect, Signals, vibration

__all__ = ["CLASSES", "DEFECTS", "LOADS", "SKF_6205", "SPEEDS", "Bearing", "Defect", "Signals", "vibration"]
