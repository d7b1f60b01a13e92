"""``python -m benchmarks`` measures the operators, with ``tax`` behind it whole networks, with ``host`` single calls,
with ``digits`` and ``mnist`` accuracies, with ``recordings`` the way from files to a verdict, with ``commits`` two
commits, with ``study`` when shrinkage helps; ``report`` puts what they recorded into README.md and docs/, and draws
plots."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from drsn_ops.arguments import MAX_PROCESSES, InputError, count
from drsn_ops.benchmark.cases import Case
from drsn_ops.benchmark.contest import WrongResult, compile_ahead, measure
from drsn_ops.benchmark.formulas import COMPILE_MODES, takes_part
from drsn_ops.benchmark.machine import add_machine_arguments, use_machine
from drsn_ops.data.mnist import read_mnist
from drsn_ops.files import replacing

from . import commits, host, images, recordings, report, study, tax
from .grid import cpu_cases, cuda_cases, modes_of
from .rows import Row, environment, labels, rows_of, slug

RESULTS = Path(__file__).parent / "results"


def write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as whole:
        whole.write_text(text)


def as_text(rows: list[Row]) -> str:
    return "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"


def deliver(rows: list[Row], path: Path, record: bool) -> None:
    """Writes the rows to the file, or prints them."""
    if record:
        write_whole(path, as_text(rows))
        print(path)
    else:
        print(as_text(rows), end="")


def compile_modes(args: argparse.Namespace) -> tuple[str, ...]:
    return () if args.no_compile else COMPILE_MODES[:1] if args.quick else COMPILE_MODES


def measure_all(args: argparse.Namespace) -> int:
    if not use_machine(args):
        return 2
    around = environment(args.device)
    path = RESULTS / f"{slug(around)}.json"
    part = path.with_suffix(".part")  # until all is measured: what an earlier run recorded stays whole
    cases = (cuda_cases if args.device == "cuda" else cpu_cases)(args.quick)
    modes = {case: modes_of(case, compile_modes(args)) for case in cases}
    rows = measured_before(part if part.exists() else path, around) if args.resume else []
    missing = [case for case in cases if not is_among(rows, case, modes[case])]
    if args.jobs > 1:
        compile_ahead([case for case in missing if modes[case]], compile_modes(args), args.jobs)
    for number, case in enumerate(missing, 1):
        print(f"{number}/{len(missing)} {case}", file=sys.stderr)
        try:
            measured = rows_of(case, measure(case, modes[case]), around)
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            print(f"left out: {str(error).partition('. ')[0]}", file=sys.stderr)
            continue
        rows = [row for row in rows if not is_among([row], case)] + measured
        if args.record:
            write_whole(part, as_text(rows))
    deliver(rows, path, args.record)
    if args.record:
        part.unlink(missing_ok=True)
    return 0


def measured_before(path: Path, around: Row, but: Sequence[str] = ("date",)) -> list[Row]:
    """The rows of a file that were measured on this machine, with these versions, at this commit, ``but`` for some."""
    try:
        rows = json.loads(path.read_text())
    except FileNotFoundError:
        return []
    fixed = [name for name in around if name not in but]
    return [row for row in rows if all(row[name] == around[name] for name in fixed)]


def is_among(rows: list[Row], case: Case, modes: tuple[str, ...] = ()) -> bool:
    """Whether there are rows of the case, and of every mode of torch.compile that it is compared with."""
    names = {row["provider"] for row in rows if all(row[key] == value for key, value in labels(case).items())}
    return bool(names) and all(
        any(name.endswith(f"/{mode}") for name in names) for mode in takes_part(case, modes)
    )


def measure_the_tax(args: argparse.Namespace) -> int:
    if not use_machine(args):
        return 2
    rows = tax.measure_tax(args.device, 5 if args.quick else 15, not args.no_compile)
    deliver(rows, RESULTS / f"{slug(rows[0])}-tax.json", args.record)
    return 0


def measure_the_host(args: argparse.Namespace) -> int:
    if not use_machine(args):
        return 2
    rows = host.measure_host(args.device, 5 if args.quick else 25)
    deliver(rows, RESULTS / f"{slug(rows[0])}-host.json", args.record)
    return 0


def measure_the_digits(args: argparse.Namespace) -> int:
    return measure_images("digits", images.digits(args.seeds), args)


def measure_the_mnist(args: argparse.Namespace) -> int:
    try:
        read_mnist(args.data)
    except InputError as error:
        print(f"--data {args.data}: {error}", file=sys.stderr)
        return 2
    return measure_images("mnist", images.mnist(args.data, args.seeds), args)


def measure_images(name: str, trainings: Sequence[images.Training], args: argparse.Namespace) -> int:
    torch.set_num_threads(1)
    around = environment("cpu")
    path = RESULTS / f"{slug(around)}-{name}.json"
    part = path.with_suffix(".part")
    # trainings take minutes: those of an earlier commit count, and the rows say which it was
    known = measured_before(part, around, ("date", "commit")) if args.record else []

    def keep(rows: list[Row]) -> None:
        if args.record:
            write_whole(part, as_text(rows))

    deliver(images.measure_images(trainings, around, known, args.workers, keep), path, args.record)
    if args.record:
        part.unlink(missing_ok=True)
    return 0


def measure_the_recordings(args: argparse.Namespace) -> int:
    if args.data and not args.data.is_dir():
        print(f"--data {args.data}: no such folder", file=sys.stderr)
        return 2
    rows = recordings.measure_recordings(args.data)
    deliver(rows, RESULTS / f"{slug(rows[0])}-recordings.json", args.record)
    return 0


def make_report(args: argparse.Namespace) -> int:
    for path in args.results or recorded():
        try:
            found, pictures = report.recorded(path)
            for page, text in report.with_regions(args.folder, found).items():
                write_whole(page, text)
                print(f"{page} from {path}")
        except (OSError, ValueError) as error:
            print(f"{path} into {args.folder}: {error}", file=sys.stderr)
            return 2
        for picture, draw in pictures.items():
            with replacing(picture) as whole:
                draw(whole)
            print(f"{picture} from {path}")
    return 0


def recorded() -> list[Path]:
    """All results; of several machines' the newest are the last, which stay in the pages."""
    measured = sorted(
        RESULTS.glob("*.json"), key=lambda path: (json.loads(path.read_text())[0]["date"], path)
    )
    studied = [RESULTS / "study"] if any(RESULTS.glob("study/*.csv")) else []
    return [*measured, *sorted(RESULTS.glob("*/table.md")), *studied]


def add_arguments(parser: argparse.ArgumentParser, quick: str, file: str) -> None:
    add_machine_arguments(parser)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--record", action="store_true", help=f"write benchmarks/results/{file}")


def add_training_arguments(parser: argparse.ArgumentParser, file: str) -> None:
    parser.add_argument("--seeds", type=count(1, 1000), default=5, help="how many (default: 5)")
    parser.add_argument(
        "--workers", type=count(1, MAX_PROCESSES), default=1, help="trainings side by side (default: 1)"
    )
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"write benchmarks/results/{file}; what a run that was cut short left in its .part is not trained again",
    )


def parser_of() -> tuple[argparse.ArgumentParser, Sequence[str]]:
    """The parser, and the names of its jobs beside the measuring of the operators."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_arguments(parser, "the cases that decide, one compile mode", "<machine>.json")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="keep what the file has from this machine and commit, measure the rest",
    )
    parser.add_argument(
        "--jobs",
        type=count(1, MAX_PROCESSES),
        default=1,
        help="first fill torch.compile's cache, in so many processes",
    )
    parser.set_defaults(job=measure_all)
    jobs = parser.add_subparsers(metavar="tax, host, digits, mnist, recordings, commits, study, report")
    taxer = jobs.add_parser("tax", help="measure whole networks beside PyTorch's plain ResNet instead")
    add_arguments(taxer, "fewer rounds", "<machine>-tax.json")
    taxer.set_defaults(job=measure_the_tax)
    hoster = jobs.add_parser("host", help="measure what a call costs on small tensors instead, on one thread")
    hoster.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    hoster.add_argument("--quick", action="store_true", help="fewer rounds")
    hoster.add_argument("--record", action="store_true", help="write benchmarks/results/<machine>-host.json")
    hoster.set_defaults(job=measure_the_host, threads=1)
    pair = jobs.add_parser("commits", help="build two commits and compare them on the same calls instead")
    commits.add_arguments(pair)
    pair.set_defaults(job=commits.run)
    trainer = jobs.add_parser("digits", help="train on the digits instead, for the accuracy of several seeds")
    add_training_arguments(trainer, "<machine>-digits.json")
    trainer.set_defaults(job=measure_the_digits)
    mended = jobs.add_parser("mnist", help="train on MNIST instead, by the recipe and with one choice mended")
    mended.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="as train --data-dir takes it"
    )
    add_training_arguments(mended, "<machine>-mnist.json")
    mended.set_defaults(job=measure_the_mnist)
    files = jobs.add_parser("recordings", help="read a folder of recordings, train on it and predict instead")
    files.add_argument(
        "--data", type=Path, metavar="DIR", help="as train takes it (default: as many are simulated)"
    )
    files.add_argument(
        "--record", action="store_true", help="write benchmarks/results/<machine>-recordings.json"
    )
    files.set_defaults(job=measure_the_recordings)
    studier = jobs.add_parser("study", help="train the networks in many settings instead, at several noises")
    study.add_arguments(studier)
    studier.set_defaults(job=study.run)
    reporter = jobs.add_parser("report", help="put recorded results into README.md, docs/ and plots")
    reporter.add_argument(
        "results",
        type=Path,
        nargs="*",
        help="JSON files, an experiment's table.md or the study's folder (default: all of benchmarks/results)",
    )
    reporter.add_argument(
        "--folder",
        type=Path,
        default=Path(__file__).parent.parent,
        help="where README.md and docs/ are (default: the project)",
    )
    reporter.set_defaults(job=make_report)
    return parser, tuple(jobs.choices)


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser, jobs = parser_of()
    args = parser.parse_args(argv)
    job = next((name for name in argv if name in jobs), None)
    if job and argv[0] != job:
        parser.error(f"{argv[0]}: expected the flags of {job} behind it")
    if not job and args.jobs > 1 and args.no_compile:
        parser.error(f"argument --jobs: got {args.jobs}, expected none with --no-compile")
    try:
        return args.job(args)
    except WrongResult as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
