"""The command ``python -m drsn_ops evaluate``: what a model that ``train`` left makes of other recordings."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from ..arguments import InputError, as_flag, as_input_error, counted, decibels, flagged, seed
from ..data.cwru_files import at_loads
from ..data.flags import add_choice_flags, add_file_flags, overridden
from ..data.recordings import Labelled, read_labelled, require_power
from ..noise import KINDS, add_noise
from .folders import new_folder, require_empty
from .model import Model, checksums, load_model
from .processes import usable_device
from .report import warn_of
from .verdict import as_text, judge, write_verdict


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``evaluate``."""
    add = parser.add_argument
    add("model", type=Path, help="model.pt of train")
    add("--data", type=Path, required=True, help="recordings of the model's classes, as train takes them")
    add(
        "--output-dir",
        type=Path,
        help="an empty or new folder for the report's files (default: printed alone)",
    )
    add("--snr", type=decibels, help="add noise to each window at this ratio, in dB")
    add("--noise-kind", choices=KINDS, help="the noise of --snr (default: gaussian)")
    add("--seed", type=seed, help="of the noise (default: 0)")
    add("--device", default="cpu", help="where the network runs (default: cpu)")
    add_choice_flags(parser)
    add_file_flags(parser, of_model=True)


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    for flag in ("noise_kind", "seed"):
        value = getattr(args, flag)
        if value is not None and args.snr is None:
            raise InputError(f"{flagged(flag, value)}: expected --snr with it")
    if args.output_dir:
        require_empty(args.output_dir)
    model = load_model(args.model, usable_device(args.device))
    model.reading = overridden(model.reading, args)
    loads = args.loads or ()
    found = read_labelled(
        args.data, model.reading, model.classes, model.channels, only=args.classes or (), loads=loads
    )
    windows, known = found.windows, set(model.trained_on)
    trained_on = sum(checksum in known for checksum in checksums(windows))
    title = f"{args.model} on {args.data}"
    if args.snr is not None:
        kind = args.noise_kind or KINDS[0]
        generator = torch.Generator().manual_seed(args.seed or 0)
        require_power(windows, found.files)
        try:
            windows = windows._replace(x=add_noise(windows.x, args.snr, kind, generator=generator))
        except ValueError as error:
            raise as_input_error(error) from error
        title += f", {kind} noise at {as_flag(args.snr)} dB"
    warn_of(found.passed_over)
    splits, data = {"test": windows}, describe(model, found, loads, noisy=args.snr is not None)
    with ExitStack() as claims:
        if args.output_dir:
            folder = claims.enter_context(new_folder(args.output_dir, ""))
            report = write_verdict(
                model, splits, found.files, folder, title=title, data=data, trained_on=trained_on
            )
        else:
            report = judge(model, splits, title=title, data=data, trained_on=trained_on).report
        print(as_text(report), end="")
        if args.output_dir:
            print(f"\nreport: {folder / 'report.txt'} and the files beside it")
    return 0


def describe(model: Model, found: Labelled, loads: Sequence[int], noisy: bool) -> str:
    """What is evaluated, in a line; also that the model was trained in noise, where these recordings have none."""
    reading = model.reading
    rate = "" if reading.sampling_rate is None else f" at {reading.sampling_rate:g} Hz"
    held = f"{counted(len(found.files), 'recording')}{at_loads(loads)}"
    line = f"{held}, in windows of {reading.cutting.points} points{rate}"
    if noisy or model.snr is None:
        return line
    trained = f"{model.noise_kind} noise at {as_flag(model.snr)} dB"
    return f"{line}, without noise; the model was trained in {trained}, which --snr adds"
