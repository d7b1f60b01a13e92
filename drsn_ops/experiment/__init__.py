"""Accuracy against signal-to-noise ratio, the paper's experiment: ``python -m drsn_ops experiment``.

A grid of cells: networks by kinds of noise by signal-to-noise ratios by seeds. `settings` defines it, `signals` loads
the data, `cell` trains one cell, `schedule` shares the cells among processes, `storage` keeps the results, `report`
makes tables of them (`averages`) with a `caption`, `figures` draws them, `command` is the command line.

Source: Zhao et al., DOI 10.1109/TII.2019.2943898, section IV.
"""

from .command import add_arguments, conduct, run

__all__ = ["add_arguments", "conduct", "run"]
