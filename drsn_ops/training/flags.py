"""The flags of ``python -m drsn_ops train``, and the settings that they ask for."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, get_args

from ..arguments import (
    MAX_REAL,
    InputError,
    count,
    decibels,
    defaults,
    flagged,
    learning_rate,
    number,
    seed,
)
from ..data.flags import (
    ALIASES,
    CHOICE_FLAGS,
    FILE_FLAGS,
    MAX_BLOCKS,
    MAX_SIGNALS,
    SIMULATED,
    add_file_flags,
    add_window_flags,
    place_of,
)
from ..data.places import named_part
from ..data.recordings import Recordings
from ..modules import THRESHOLDS
from ..noise import KINDS
from .networks import NETWORKS, add_network_flags, without_effect
from .plan import Precision
from .recipes import BACKENDS, RECIPES, Settings
from .recordings import ClassWeights, RecordingSettings, Schedule
from .storage import CHECKPOINT

NAMES = (*RECIPES, SIMULATED)
# without effect on the simulated machine: it has no files, and each of its recordings is one window
OF_FILES = (*CHOICE_FLAGS, *FILE_FLAGS, "step", "split")
INSTEAD = {
    "noise": "--snr and --noise-kind add noise to recordings",
    "backend": "recordings take the compiled operators",
    "data_dir": "--data is their path itself",
    "network": "the images have the network of their program",
    "snr": "--noise is that of images",
    "noise_kind": "--noise is that of images",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``train``. A flag that is not given takes its value from the checkpoint or the defaults."""
    records = {**RECIPES, "recordings": RecordingSettings}
    every, recipe = partial(defaults, records), partial(defaults, RECIPES)
    own = partial(defaults, {"recordings": RecordingSettings})
    add = parser.add_argument
    add(
        "--data",
        metavar="DATA",
        help="a path to recordings: a folder that holds a folder for each class, files of the bearing data of Case "
        f"Western Reserve University, or UCR's files; or a name: {', '.join(NAMES)} (default: digits, which needs no "
        "files)",
    )
    add(
        "--data-dir",
        type=Path,
        help="folder of MNIST's idx files or CIFAR-10's Python batches, as published or as torchvision leaves them, "
        "or CIFAR-10's archive; of recordings with --data cwru or folder",
    )
    add(
        "--epochs",
        type=count(),
        help=f"passes over the training samples ({recipe('epochs')}; 20 for recordings, or up to 200 where those make "
        "less than 1200 steps); more of them with --resume raise the learning rate of recordings again, which follows "
        "their number",
    )
    add(
        "--batch-size",
        type=count(2),
        help=f"samples a step ({recipe('batch_size')}; for recordings a 32nd of the windows, from 16 to 64)",
    )
    add("--lr", type=learning_rate, help=f"learning rate at the start ({every('lr')})")
    add(
        "--thresholds", choices=(*THRESHOLDS, "none"), help="none is the plain ResNet (default: channel-wise)"
    )
    add("--device", default="cpu", help="where to train (default: cpu)")
    add("--compile", action="store_true", default=None, help="train through torch.compile")
    add("--seed", type=seed, help="of splits, noise, initialisation and order (default: 0)")
    add(
        "--fresh-noise",
        action="store_true",
        default=None,
        help="draw the noise of the training samples anew in every epoch; that of the others stays as it is (default: "
        "all noise is drawn once)",
    )
    add(
        "--output-dir",
        type=Path,
        help="an empty or new folder (default: runs/DATA, numbered where it exists)",
    )
    add(
        "--checkpoint",
        type=Path,
        help="file to save to after each epoch (default: "
        f"{CHECKPOINT.usual} in the folder, or the one to resume)",
    )
    add(
        "--resume", type=Path, help="checkpoint to go on from, in its own folder unless --output-dir is given"
    )
    add("--tensorboard", action="store_true", default=None, help="write the curve for TensorBoard too")
    images = parser.add_argument_group("images").add_argument
    images(
        "--noise",
        type=number(float, 0, MAX_REAL),
        help=f"width of the uniform noise added to every image ({recipe('noise')})",
    )
    images(
        "--backend",
        choices=BACKENDS,
        help="compiled operators, or their plain PyTorch reference (default: drsn_ops)",
    )
    images(
        "--batch-norm-momentum",
        type=number(float, 1e-6, 1),
        metavar="SHARE",
        help="of each new batch in the running statistics of every BatchNorm, as PyTorch has it (default: that of the "
        "program, 0.01 for digits and mnist, 0.1 for cifar10)",
    )
    images(
        "--batch-statistics",
        action="store_true",
        default=None,
        help="evaluate the test images also with the statistics of each batch of theirs, beside the running ones",
    )
    recordings = parser.add_argument_group("training on recordings").add_argument
    recordings(
        "--network",
        choices=NETWORKS,
        help="the paper's network, the ConvNet that it compares with, RSNet-18 or 34 of the public PyTorch port, or "
        f"WDCNN ({own('network')})",
    )
    recordings("--blocks", type=count(1, MAX_BLOCKS), help=f"units of drsn and convnet ({own('blocks')})")
    add_network_flags(recordings, own)
    recordings(
        "--schedule",
        choices=get_args(Schedule),
        help="of the learning rate: step divides it by 10 after two fifths of the steps and again after four, cosine "
        f"lowers it to 0 ({own('schedule')})",
    )
    recordings(
        "--patience",
        type=count(),
        metavar="EPOCHS",
        help="stop after as many epochs without a lower validation loss (default: train to the last)",
    )
    recordings(
        "--class-weights",
        choices=get_args(ClassWeights),
        help="balanced: every class counts alike in the loss, however many windows it has; none: every window does "
        f"({own('class_weights')})",
    )
    recordings(
        "--amp",
        choices=get_args(Precision),
        help="train in this precision where operators allow it (default: float32)",
    )
    recordings(
        "--snr",
        type=decibels,
        metavar="DB",
        help="add noise to every window at this signal-to-noise ratio, once unless with --fresh-noise "
        "(default: none)",
    )
    recordings("--noise-kind", choices=KINDS, help=f"with --snr ({own('noise_kind')})")
    recordings(
        "--num-signals",
        type=count(1, MAX_SIGNALS),
        help=f"how many recordings of --data {SIMULATED} to simulate ({own('num_signals')})",
    )
    recordings("--points", type=count(16), help=f"points of a window ({own('points')})")
    recordings(
        "--validation-share",
        type=number(float, 0, 0.999),
        metavar="SHARE",
        help="of the training recordings, kept apart to choose the best epoch, where no folder validation is; 0 keeps "
        f"the last one ({own('validation_share')})",
    )
    add_window_flags(parser, step="half a window")
    add_file_flags(parser)


def settings_of(args: argparse.Namespace, saved: Mapping[str, Any] | None) -> Settings | RecordingSettings:
    """Each setting from its flag, or else from the checkpoint, or else from the recipe or the defaults.

    Raises:
        InputError: a flag contradicts the checkpoint, or would have no effect.
    """
    data: str = data_of(args) if saved is None or args.data is not None else saved.get("data", "")
    kind = Settings if data in RECIPES else RecordingSettings
    require_effects(args, kind, data)
    given = {"data": data, **flags_of(args, kind)}
    values = {**defaults_of(data), **(saved or {})}
    for name, value in given.items():
        before = values.get(name) if saved else value
        if value != before and not may_change(name, before, value):
            raise InputError(
                f"{args.resume}: a checkpoint of {flagged(name, before)}, not of {flagged(name, value)}"
            )
    settings = kind(**{**values, **given})
    if isinstance(settings, Settings):
        require_image_effects(args, settings)
    else:
        require_recording_effects(args, settings)
    return settings


def data_of(args: argparse.Namespace) -> str:
    """The name of the data, or the absolute path of recordings."""
    if args.data is None or args.data in NAMES:
        return args.data or "digits"
    return place_of(args.data, args.data_dir, NAMES)


def defaults_of(data: str) -> dict[str, Any]:
    """The settings without a flag, those of the recipe for images."""
    if data not in RECIPES:
        return {
            field.name: field.default for field in fields(RecordingSettings) if field.default is not MISSING
        }
    recipe = RECIPES[data]
    return {
        "thresholds": THRESHOLDS[0],
        "backend": BACKENDS[0],
        "seed": 0,
        "data_dir": None,
        **{name: getattr(recipe, name) for name in ("epochs", "batch_size", "lr", "noise")},
    }


def flags_of(args: argparse.Namespace, kind: type) -> dict[str, Any]:
    """The settings of this kind of which a flag was given, in plain values."""
    values = {field.name: getattr(args, field.name, None) for field in fields(kind) if field.name != "data"}
    return {name: plain(value) for name, value in values.items() if value is not None}


def plain(value: Any) -> Any:
    """A flag's value as a checkpoint keeps it."""
    if isinstance(value, Path):
        return str(value.absolute())
    return tuple(value) if isinstance(value, list) else value


def may_change(name: str, before: object, now: object) -> bool:
    """Whether a resumed run may have another value: epochs may be added, and files may have moved."""
    if name == "data":
        return before not in NAMES and now not in NAMES
    return name in ("epochs", "patience", "data_dir")


def refuse(name: str, value: Any, reason: str) -> NoReturn:
    """Raise InputError for a flag."""
    raise InputError(f"{flagged(name, value)}: expected {reason}")


def require_effects(args: argparse.Namespace, kind: type, data: str) -> None:
    """Raise InputError where a flag of the other kind of data was given."""
    other = RecordingSettings if kind is Settings else Settings
    foreign = {field.name for field in fields(other)} - {field.name for field in fields(kind)}
    if args.data in ALIASES:
        foreign -= {"data_dir"}
    for name in sorted(foreign):
        value = getattr(args, name, None)
        if value is not None:
            what = f"--data {data}" if data in NAMES else "recordings"
            # the simulated recordings have no path
            hint = f"; {INSTEAD[name]}" if name in INSTEAD and (name, data) != ("data_dir", SIMULATED) else ""
            refuse(name, value, f"none with {what}{hint}")


def require_image_effects(args: argparse.Namespace, settings: Settings) -> None:
    """Raise InputError where a flag has no effect on images."""
    if settings.data == "digits" and settings.data_dir:
        refuse("data_dir", args.data_dir, "none with --data digits; --data mnist or cifar10 reads files")
    if args.fresh_noise and not settings.noise:
        refuse("fresh_noise", True, "--noise above 0 with it")
    if args.backend and settings.thresholds == "none":
        refuse("backend", args.backend, "none with --thresholds none, which shrinks nothing")


def require_recording_effects(args: argparse.Namespace, settings: RecordingSettings) -> None:
    """Raise InputError where a flag has no effect on recordings."""
    simulated = settings.data == SIMULATED
    useless = without_effect(settings.network, settings.thresholds)
    if settings.snr is None:
        useless |= dict.fromkeys(("noise_kind", "fresh_noise"), "--snr with it")
    if settings.split == "given":
        useless["test_share"] = "none with --split given"
    if simulated:
        useless |= dict.fromkeys(OF_FILES, f"none with --data {SIMULATED}, whose recordings are windows")
    else:
        useless["num_signals"] = f"none but with --data {SIMULATED}"
    for name, reason in useless.items():
        value = getattr(args, name)
        if value is not None:
            refuse(name, value, reason)


def require_effects_on(found: Recordings, args: argparse.Namespace, settings: RecordingSettings) -> None:
    """Raise InputError where a flag has no effect on recordings that are now known."""
    if found.split != "given":
        return
    if args.test_share is not None:
        refuse("test_share", args.test_share, f"none with {settings.data}, where the split is given")
    validated = {found.files[i] for i in found.validation.recording.unique().tolist()}
    if args.validation_share is not None and any(
        named_part(path.relative_to(settings.data)) == "validation" for path in validated
    ):
        refuse("validation_share", args.validation_share, f"none with {settings.data}, which gives that part")
