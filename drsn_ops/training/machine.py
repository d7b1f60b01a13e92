"""Checks, before a run begins, of what it asks of the machine: a precision, a compiler."""

from __future__ import annotations

import copy

import torch

from ..arguments import InputError, first_line
from .run import Run, autocast


def require_precision(run: Run) -> None:
    """Raise InputError unless a copy of the network makes a step in the plan's precision."""
    if run.plan.precision is None:
        return
    network = copy.deepcopy(run.network).train()
    x = run.centred(run.plan.splits["train"].x[:2])
    try:
        with autocast(run.device, run.plan.precision):
            logits = network(x)
        logits.float().sum().backward()
    except (RuntimeError, NotImplementedError, TypeError) as error:
        raise InputError(
            f"--amp {run.plan.precision}: cannot be used on {run.device}: {first_line(error)}"
        ) from error


def require_compiler(device: torch.device) -> None:
    """Raise InputError unless torch.compile works on the device."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    # a missing compiler raises one of several errors of the backend
    except Exception as error:
        raise InputError(f"--compile: cannot be used on {device}: {first_line(error)}") from error
