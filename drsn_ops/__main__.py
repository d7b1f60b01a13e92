"""The command line: ``python -m drsn_ops train | evaluate | predict | export | experiment | bench | info``."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import NoReturn

from .arguments import InputError, MissingPackage, first_line, require_packages

COMMANDS = {
    "train": ("drsn_ops.training.train", "train a Deep Residual Shrinkage Network"),
    "evaluate": ("drsn_ops.training.evaluate", "report how right a trained model is on other recordings"),
    "predict": ("drsn_ops.training.predict", "tell the class of each recording"),
    "export": ("drsn_ops.training.export", "write a trained model for ONNX Runtime or torch.export.load"),
    "experiment": ("drsn_ops.experiment", "train ConvNet, ResNet and DRSN at several signal-to-noise ratios"),
    "bench": ("drsn_ops.benchmark.command", "compare with eager PyTorch and torch.compile"),
}
# the extra that is made for a command, and what it needs of it in any case
PACKAGES = {
    "train": ("train", "numpy", "sklearn", "matplotlib", "tqdm"),
    "evaluate": ("train", "numpy", "sklearn", "matplotlib"),
    "predict": ("files", "numpy"),
    "export": ("export", "numpy"),
    "experiment": ("train", "numpy", "scipy", "sklearn", "matplotlib", "tqdm"),
}


class Parser(argparse.ArgumentParser):
    """Prints errors as one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def info() -> int:
    """Print what was built."""
    from .ops.library import build_info

    print(json.dumps(build_info(), indent=2))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the arguments and run the command.

    Returns:
        0; 1 if the machine failed, as without memory, or a part of the work; 2 for what the user can correct; 130 after
        Ctrl-C; 141 where nobody reads the output any more; 143 after SIGTERM.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = Parser(
        prog="python -m drsn_ops", description="Fused operators for Deep Residual Shrinkage Networks."
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("info", help="print what was built, as JSON")
    try:
        for name, (module, summary) in COMMANDS.items():
            command = commands.add_parser(
                name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
            )
            # import only the command that was asked for
            if argv[:1] == [name]:
                if name in PACKAGES:
                    # before the work, at whose end some of them are needed
                    require_packages("the command", *PACKAGES[name])
                implementation = importlib.import_module(module)
                implementation.add_arguments(command)
                command.set_defaults(run=implementation.run)
        args = parser.parse_args(argv)
        if args.command is None:
            parser.error(f"expected a command: info, {', '.join(COMMANDS)}")
        status: int = info() if args.command == "info" else args.run(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as interrupt:
        signum: int = interrupt.args[0] if interrupt.args else signal.SIGINT
        return 128 + signum
    except BrokenPipeError:
        # who read the output has left, as head does; what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (InputError, MissingPackage, OSError) as error:
        print(f"drsn_ops {argv[0]}: {error}", file=sys.stderr)
        return 2
    except (MemoryError, RuntimeError) as error:
        # the CPU's allocator raises RuntimeError
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        print(f"drsn_ops {argv[0]}: not enough memory: {first_line(error)}", file=sys.stderr)
        return 1


def interrupt(signum: int, _: object) -> NoReturn:
    """Handle a signal as Ctrl-C is handled."""
    raise KeyboardInterrupt(signum)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    # names of files may be any bytes
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")
    sys.exit(main())
