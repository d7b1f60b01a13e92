"""When shrinkage helps: a table of experiments, trained one after another in a folder each; run again, it goes on."""

from __future__ import annotations

import argparse
import csv
import shlex
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple, get_type_hints

from drsn_ops import experiment
from drsn_ops.arguments import MAX_PROCESSES, InputError, count
from drsn_ops.data.cwru_files import CWRU_NUMBERS
from drsn_ops.data.flags import SIMULATED
from drsn_ops.experiment.command import MAX_SEEDS, requested
from drsn_ops.experiment.schedule import agree
from drsn_ops.experiment.settings import Result
from drsn_ops.experiment.storage import read_settings
from drsn_ops.files import replacing
from drsn_ops.training.processes import Processes, processes

RECORDED = Path(__file__).parent / "results" / "study"


class Setting(NamedTuple):
    """An experiment: its name, which is its folder's, what it is in words, and its flags but for the data's folder."""

    name: str
    words: str
    flags: str

    @property
    def simulated(self) -> bool:
        return f"--data {SIMULATED}" in self.flags


NETWORKS = "--networks ConvNet ResNet DRSN-CS DRSN-CW"
NOISES = "--noise-kind gaussian laplacian impulsive --snr -5 0 5"
RECIPE = "--normalise standard --points 1024 --batch-size 32 --lr 0.1"
TEN = ",".join(name for name in CWRU_NUMBERS if not name.endswith(" 0.028"))
PLACES = {
    "cwru-10": (
        "Case Western, ten classes at loads 0 and 1",
        f"--classes {shlex.quote(TEN)} --loads 0 1 {RECIPE} --epochs 20",
    ),
    "vibration": (
        "the simulated machine, 1080 signals",
        f"--data {SIMULATED} --num-signals 1080 {RECIPE} --epochs 20",
    ),
    # every second window: twice as many recordings as above
    "cwru-12": ("Case Western, twelve classes at all loads", f"--step 2048 {RECIPE} --epochs 6"),
}
GRIDS = tuple(
    Setting(name, words, f"{flags} {NETWORKS}{' WDCNN' * (name == 'cwru-10')} {NOISES}")
    for name, (words, flags) in PLACES.items()
)
TENS = GRIDS[0]
TENS_FLAGS = PLACES[TENS.name][1]
# a setting of its own: AdaBN is an experiment's, not a network's
PEER = Setting(
    "wdcnn-adabn",
    f"{TENS.words}: WDCNN with AdaBN",
    f"{TENS_FLAGS} --networks WDCNN {NOISES} --adapt-batch-norm",
)


def effect(name: str, words: str, change: str, networks: str = "ResNet DRSN-CW") -> Setting:
    """The first grid in Gaussian noise of -5 dB with a change: of flags that come twice, the last one counts."""
    where = f"--networks {networks} --noise-kind gaussian --snr -5"
    return Setting(name, words, f"{TENS_FLAGS} {where} {change}")


def of_gates(name: str, words: str, change: str) -> Setting:
    """A change of the gates or of what they do, which ResNet has none of: it is that of the base."""
    return effect(name, words, change, "DRSN-CW")


# what the changes are compared with: the first grid, in the one noise
REFERENCE = effect("base", "the base", "")
EFFECTS = (
    REFERENCE,
    effect("fresh-noise", "noise anew in every epoch", "--fresh-noise"),
    effect("wide-stem", "first kernel 64 wide, stride 8", "--stem-width 64 --stem-stride 8"),
    effect("adabn", "AdaBN", "--adapt-batch-norm"),
    effect("normalise-none", "windows as they are", "--normalise none"),
    effect("widths-8-16-32", "widths 8, 16, 32", "--widths 8 16 32"),
    effect("blocks-12", "12 blocks", "--blocks 12"),
    effect("blocks-12-wider", "12 blocks, widths 8, 16, 32", "--blocks 12 --widths 8 16 32"),
    effect("epochs-40", "40 epochs", "--epochs 40"),
    of_gates("norm-layer", "gate's norm: layer", "--norm layer"),
    of_gates("norm-none", "gate's norm: none", "--norm none"),
    of_gates("reduction-4", "gate's reduction 4", "--reduction 4"),
    *(
        of_gates(f"rule-{rule}", f"rule {rule}", f"--rule {rule}")
        for rule in ("garrote", "firm", "smooth", "slope")
    ),
)
SETTINGS = (TENS, *EFFECTS, PEER, *GRIDS[1:])


class Step(NamedTuple):
    """A setting, its folder, and the arguments of its experiment, None where all of its cells are in results.csv."""

    setting: Setting
    folder: Path
    args: argparse.Namespace | None


def add_arguments(parser: argparse.ArgumentParser, settings: Sequence[Setting] = SETTINGS) -> None:
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="the files of Case Western Reserve University; without it, only the simulated machine's settings are run",
    )
    names = [setting.name for setting in settings]
    add("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)} (default: all)")
    add(
        "--seeds",
        type=count(1, MAX_SEEDS),
        default=5,
        help="of each setting, at least all that it has (default: 5; 10: five more, which confirm)",
    )
    add("--workers", type=count(1, MAX_PROCESSES), help="processes, as experiment has them")
    add("--device", default="cpu", help="where to train (default: cpu)")
    add(
        "--output-dir",
        type=Path,
        default=Path("runs", "study"),
        help="a folder for each setting is in it (default: runs/study)",
    )
    add(
        "--record",
        action="store_true",
        help=f"copy results.csv of each to benchmarks/results/{RECORDED.name}",
    )


def run(args: argparse.Namespace, settings: Sequence[Setting] = SETTINGS) -> int:
    """Trains what is missing; under torchrun, the processes share the cells of each setting."""
    try:
        # joined once: every experiment is conducted within
        with processes("cpu") as together:
            return conduct_all(args, settings, together)
    except (InputError, OSError) as error:
        print(f"benchmarks study: {error}", file=sys.stderr)
        return 2


def conduct_all(args: argparse.Namespace, settings: Sequence[Setting], together: Processes) -> int:
    steps = agree(lambda: [step_of(args, setting) for setting in chosen(args, settings)])
    if together.leads and args.data is None and not args.only:
        print("no --data: only the settings on the simulated machine\n")
    for number, step in enumerate(steps, 1):
        if together.leads:
            state = "" if step.args else "; it is done"
            print(f"{step.setting.name}, {number} of {len(steps)}: {step.setting.words}{state}\n", flush=True)
        if step.args:
            with ExitStack() as claims:
                if status := experiment.conduct(step.args, together, claims):
                    return status
        if args.record and together.leads:
            record(step)
    return 0


def chosen(args: argparse.Namespace, settings: Sequence[Setting]) -> list[Setting]:
    """The settings that are asked for, and can be run on the data that there are."""
    if args.data and not args.data.is_dir():
        raise InputError(f"--data {args.data}: no such folder")
    by_name = {setting.name: setting for setting in settings}
    found = [by_name[name] for name in dict.fromkeys(args.only or by_name)]
    if args.data:
        return found
    for setting in found if args.only else ():
        if not setting.simulated:
            raise InputError(
                f"--only {setting.name}: needs --data DIR, the files of Case Western Reserve University"
            )
    return [setting for setting in found if setting.simulated]


def step_of(args: argparse.Namespace, setting: Setting) -> Step:
    """The experiment of a setting, new or to go on with, checked; nothing is written.

    Raises:
        InputError: the folder holds another experiment than the setting's.
    """
    folder = args.output_dir / setting.name
    saved = read_settings(folder) if (folder / "settings.json").exists() else None
    flags = ["--resume" if saved else "--output-dir", str(folder), "--device", args.device]
    flags += ["--seeds", str(max(args.seeds, saved.seeds if saved else 0))]
    # a path: "vibration" is the simulated machine's name
    flags += [] if setting.simulated else [f"--data={args.data.absolute()}"]
    flags += ["--workers", str(args.workers)] if args.workers else []
    parser = argparse.ArgumentParser(prog=f"experiment of {setting.name}")
    experiment.add_arguments(parser)
    own = parser.parse_args([*shlex.split(setting.flags), *flags])
    try:
        trained = {result.cell for result in read_csv(folder / "results.csv")} if saved else set()
    except ValueError:
        trained = set()  # damaged: it is written anew from the files of the cells
    return Step(setting, folder, None if trained.issuperset(requested(own, saved).cells()) else own)


def record(step: Step) -> None:
    RECORDED.mkdir(parents=True, exist_ok=True)
    with replacing(RECORDED / f"{step.setting.name}.csv") as whole:
        whole.write_bytes((step.folder / "results.csv").read_bytes())


def read_csv(path: Path) -> list[Result]:
    """The results that an experiment has written to this file; none where there is no file.

    Raises:
        ValueError: it has other columns, no results, or a line that is none.
    """
    if not path.exists():
        return []
    kinds = list(get_type_hints(Result).values())
    try:
        with path.open(newline="") as file:
            head, *lines = csv.reader(file)
        found = [Result(*(kind(value) for kind, value in zip(kinds, line, strict=True))) for line in lines]
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if tuple(head) != Result._fields or not found:
        raise ValueError(f"{path}: expected results with the columns {', '.join(Result._fields)}")
    return found


def read_recorded(folder: Path) -> dict[str, list[Result]]:
    """The recorded results of each setting that has any."""
    found = {setting.name: read_csv(folder / f"{setting.name}.csv") for setting in SETTINGS}
    return {name: results for name, results in found.items() if results}
