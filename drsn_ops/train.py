"""Training of the published networks on their data: ``python -m drsn_ops train``.

Each data set comes with the recipe of its program. One run has a folder of its own, in which ``checkpoint.pt``
and ``curve.csv`` are renewed after every epoch; ``curve.png`` is drawn at the end. Each is written beside itself
and then renamed, so that a run that is cut off leaves whole files. The program for CIFAR-10 saves as often, every 500
steps of 100 images, and keeps its last ten checkpoints; here only the latest is kept.

``torchrun --nproc-per-node 2 -m drsn_ops train`` shares every batch out among processes, see `distributed`. The run and
its files are, to rounding, those of one process, and any number of processes can resume it.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import models
from .data import Dataset, InputError, Split, augment, load
from .distributed import Processes, device_of, processes
from .files import replacing
from .modules import THRESHOLDS, Shrinkage

FORMAT = "drsn_ops.train 1"
BACKENDS = ("drsn_ops", "reference")
# of the widest activation in evaluation; of much larger ones every page is a new one of the system's
EVALUATION_BYTES = 8 * 2**20


def adam(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Adam as Keras 2.2.1 computes it, with its defaults: betas of 0.9 and 0.999, epsilon 1e-7, no decay.

    At step t, from 1 on, ``p -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + epsilon)``.
    """
    optimiser = torch.optim.Adam(parameters, lr, eps=1e-7)
    optimiser.register_step_pre_hook(correct_epsilon)
    return optimiser


def correct_epsilon(optimiser: torch.optim.Optimizer, *_: object) -> None:
    """Set the epsilon of the coming step, which PyTorch adds to the root after the correction of its bias."""
    for group in optimiser.param_groups:
        # all parameters of a network have taken as many steps
        state = next((optimiser.state[p] for p in group["params"] if p in optimiser.state), {"step": 0})
        step = int(state["step"]) + 1
        group["eps"] = optimiser.defaults["eps"] / math.sqrt(1 - group["betas"][1] ** step)


def momentum(parameters: Iterable[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Gradient descent with the momentum of TFLearn's default."""
    return torch.optim.SGD(parameters, lr, momentum=0.9)


@dataclass(frozen=True)
class Recipe:
    """What a program trains, and how, where no flag says otherwise."""

    network: Callable[..., models.ShrinkageNetwork]
    optimiser: Callable[[Iterable[nn.Parameter], float], torch.optim.Optimizer]
    epochs: int
    batch_size: int
    lr: float
    noise: float
    decay_steps: int | None = None
    augment: bool = False


RECIPES = {
    # MNIST's, for about as many steps; without a last third at a tenth of the rate, the accuracy on 360 images
    # still swings by a few percent from epoch to epoch
    "digits": Recipe(
        models.drsn_mnist, adam, epochs=180, batch_size=100, lr=1e-3, noise=0.5, decay_steps=1800
    ),
    "mnist": Recipe(models.drsn_mnist, adam, epochs=5, batch_size=100, lr=1e-3, noise=0.5),
    "cifar10": Recipe(
        models.drsn_cifar10,
        momentum,
        epochs=100,
        batch_size=100,
        lr=0.1,
        noise=0.1,
        decay_steps=20_000,
        augment=True,
    ),
}


@dataclass(frozen=True)
class Settings:
    """All that decides what a run computes; a checkpoint holds them."""

    data: str
    thresholds: str
    backend: str
    epochs: int
    batch_size: int
    lr: float
    noise: float
    seed: int


class Row(NamedTuple):
    """One epoch of the curve. Losses are cross-entropy alone, and of the network in evaluation mode."""

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


def evaluation_batch(network: models.ShrinkageNetwork, x: Tensor) -> int:
    """How many of ``x``, (N, C, \\*spatial), are evaluated together.

    What the stem makes of them, the widest activation of the networks of `models`, has at most `EVALUATION_BYTES`.
    """
    stem = network.stem
    sample = x[0, 0].numel() * x.element_size() * stem.out_channels
    return max(EVALUATION_BYTES * math.prod(stem.stride) // sample, 1)


class Run:
    """A network in training: its settings, its data, and all that changes from step to step."""

    def __init__(
        self,
        settings: Settings,
        data: Dataset,
        device: torch.device,
        processes: Processes = Processes(),  # noqa: B008  it is frozen
    ) -> None:
        self.settings = settings
        self.processes = processes
        self.recipe = RECIPES[settings.data]
        self.device = device
        self.data = data.to(device)
        torch.manual_seed(settings.seed)
        thresholds = None if settings.thresholds == "none" else settings.thresholds
        self.network = self.recipe.network(data.train.images.shape[1], thresholds=thresholds).to(device)
        for module in self.network.modules():
            if isinstance(module, Shrinkage):
                module.use_reference = settings.backend == "reference"
        self.optimiser = self.recipe.optimiser(self.network.parameters(), settings.lr)
        self.step = 0
        self.rows: list[Row] = []

    @cached_property
    def replica(self) -> nn.Module:
        """The network as it is called in training, which reaches the other processes."""
        return self.processes.replicate(self.network)

    @property
    def steps_per_epoch(self) -> int:
        # a remainder of one image is left out: BatchNorm cannot train on it
        batches, remainder = divmod(len(self.data.train.labels), self.settings.batch_size)
        return batches + (remainder > 1)

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on as if there had been no pause."""
        return {
            "format": FORMAT,
            "settings": asdict(self.settings),
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "step": self.step,
            "rows": [list(row) for row in self.rows],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        self.rows = [Row(*row) for row in state["rows"]]
        torch.set_rng_state(state["random"])

    def train_epoch(self, stepped: Callable[[], object]) -> None:
        """One pass over the training images in a new order; calls ``stepped`` after each step.

        Every process draws the same numbers, for the whole batch, and takes its share of what comes of them.
        """
        self.replica.train()
        images, labels = self.data.train
        share = self.processes.share
        order = torch.randperm(len(labels), device="cpu").to(self.device).split(self.settings.batch_size)
        for batch in order[: self.steps_per_epoch]:
            x = share(augment(images[batch])) if self.recipe.augment else images[share(batch)]
            for group in self.optimiser.param_groups:
                group["lr"] = self.learning_rate()
            self.optimiser.zero_grad()
            logits = self.replica(x - self.data.mean)
            loss = F.cross_entropy(logits, labels[share(batch)], reduction="sum")
            # the average over processes is then the mean over the batch, however uneven the shares
            (loss / (len(batch) / self.processes.count) + self.network.penalty()).backward()
            self.optimiser.step()
            self.step += 1
            stepped()

    def learning_rate(self) -> float:
        """The rate of the next step: a tenth after every ``decay_steps``."""
        steps = self.recipe.decay_steps
        return self.settings.lr * 0.1 ** (self.step // steps) if steps else self.settings.lr

    @torch.inference_mode()
    def evaluate(self, split: Split) -> tuple[float, float]:
        """Mean cross-entropy and accuracy over a split, of which each process takes every so many-th batch."""
        self.network.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        size = evaluation_batch(self.network, split.images)
        batches = list(zip(*(part.split(size) for part in split), strict=True))
        for images, labels in batches[self.processes.rank :: self.processes.count]:
            logits = self.network(images - self.data.mean)
            right = (logits.argmax(1) == labels).sum()
            sums += torch.stack([F.cross_entropy(logits, labels, reduction="sum"), right])
        loss, accuracy = (self.processes.total(sums) / len(split.labels)).tolist()
        return loss, accuracy

    def epoch(self, stepped: Callable[[], object]) -> Row:
        """Train for one epoch, measure both splits, and add the row to the curve."""
        start = time.perf_counter()
        self.train_epoch(stepped)
        seconds = time.perf_counter() - start
        lr = self.optimiser.param_groups[0]["lr"]
        train, test = self.evaluate(self.data.train), self.evaluate(self.data.test)
        row = Row(len(self.rows) + 1, self.step, lr, *train, *test, seconds)
        self.rows.append(row)
        return row


@contextmanager
def repeatable() -> Iterator[None]:
    """cuDNN without algorithms that sum in another order each time; else it stays as it is."""
    cudnn = torch.backends.cudnn
    # what is not given would be off, cuDNN itself among it
    with cudnn.flags(cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32):
        yield


def save(run: Run, folder: Path, checkpoint: Path) -> None:
    """Renew the checkpoint and the table of the curve."""
    with replacing(checkpoint) as path:
        torch.save(run.state(), path)
    with replacing(folder / "curve.csv") as path, path.open("w", newline="") as file:
        csv.writer(file).writerows([Row._fields, *run.rows])


def plot(rows: list[Row], settings: Settings, path: Path) -> None:
    """Draw loss and accuracy of both splits over the epochs, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    figure.suptitle(f"{settings.data}, thresholds {settings.thresholds}, seed {settings.seed}")
    for axes, quantity in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split in ("train", "test"):
            values = [getattr(row, f"{split}_{quantity}") for row in rows]
            axes.plot([row.epoch for row in rows], values, label=split, marker="." if len(rows) < 10 else "")
        axes.set(xlabel="epoch", ylabel=quantity)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, format="png", dpi=120)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `save` wrote, without running anything that the file may hold."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    # a damaged archive can raise nearly anything
    except Exception as error:
        raise InputError(f"{path}: damaged, or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path}: not a checkpoint of this program")
    return state


def settings_of(args: argparse.Namespace, saved: Mapping[str, Any] | None) -> Settings:
    """Each setting from its flag, or else from the checkpoint, or else from the recipe."""
    data = args.data or (saved or {}).get("data", "digits")
    base = saved or {"thresholds": THRESHOLDS[0], "backend": BACKENDS[0], "seed": 0, **vars(RECIPES[data])}
    values = {"data": data}
    for name in [field.name for field in fields(Settings)][1:]:
        flag = getattr(args, name)
        values[name] = base[name] if flag is None else flag
    for name, value in values.items():
        if saved and value != saved[name] and name != "epochs":
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{args.resume}: a checkpoint of {flag} {saved[name]}, not of {flag} {value}")
    return Settings(**values)


def usable_device(name: str) -> torch.device:
    """The device of this name, once a tensor has been made on it."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device {name}: cannot be used here: {str(error).splitlines()[0]}") from error
    return device


def run_folder(args: argparse.Namespace, data: str) -> Path:
    """Where the run's files go: never a folder that holds another run's."""
    folder: Path | None = args.output_dir
    resumed: Path | None = args.resume
    if folder is None and resumed is not None:
        return resumed.parent
    if folder is not None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"--output-dir {folder}: not an empty folder")
        return folder
    names = (f"{data}-{n}" if n > 1 else data for n in range(1, sys.maxsize))
    return next(folder for folder in (Path("runs", name) for name in names) if not folder.exists())


def checkpoint_path(args: argparse.Namespace, folder: Path) -> Path:
    """Where checkpoints go: only the one that is resumed from may be replaced."""
    path = args.checkpoint or folder / "checkpoint.pt"
    same = args.resume is not None and path.absolute() == args.resume.absolute()
    if path.exists() and not same:
        raise InputError(f"{path}: exists; --resume it, or give another --checkpoint")
    if args.checkpoint and not path.absolute().parent.is_dir():
        raise InputError(f"--checkpoint {path}: its folder does not exist")
    return path


def prepare(args: argparse.Namespace, processes: Processes) -> tuple[Run, Path, Path]:
    """The run that the flags ask for, its folder and its checkpoint, before anything is written."""
    state = read_checkpoint(args.resume) if args.resume else None
    try:
        settings = settings_of(args, state["settings"] if state else None)
        if settings.batch_size < processes.count:
            raise InputError(
                f"--batch-size {settings.batch_size}: less than an image for each of {processes.count} processes"
            )
        device = usable_device(device_of(args.device))
        data = load(settings.data, args.data_dir, noise=settings.noise, seed=settings.seed)
        run = Run(settings, data, device, processes)
        if state:
            run.restore(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if state is None:
            raise
        raise InputError(
            f"{args.resume}: a checkpoint of another network ({type(error).__name__})"
        ) from error
    if len(run.rows) >= settings.epochs:
        raise InputError(
            f"{args.resume}: {len(run.rows)} epochs are done; --epochs {settings.epochs} leaves none to do"
        )
    folder = run_folder(args, settings.data)
    return run, folder, checkpoint_path(args, folder)


def describe(run: Run) -> str:
    """What is about to be trained, on what, and how."""
    settings, optimiser = run.settings, type(run.optimiser).__name__
    parameters = sum(parameter.numel() for parameter in run.network.parameters())
    together = f", {run.processes.count} processes" if run.processes.count > 1 else ""
    return (
        f"{settings.data}: {len(run.data.train.labels)} training and {len(run.data.test.labels)} test images, "
        f"noise {settings.noise:g} * U(0, 1)\n"
        f"{run.recipe.network.__name__}: thresholds {settings.thresholds}, {parameters} parameters, "
        f"operators of {settings.backend}, on {run.device}{together}\n"
        f"{optimiser}: learning rate {settings.lr:g}, batches of {settings.batch_size}, "
        f"{settings.epochs} epochs of {run.steps_per_epoch} steps, seed {settings.seed}"
    )


def train(run: Run, folder: Path, checkpoint: Path) -> int:
    """Train to the last epoch and return the exit status; the leading process tells, saves and draws."""
    if not run.processes.leads:
        return follow(run)
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    print(describe(run))
    status = 0
    steps = run.settings.epochs * run.steps_per_epoch
    # disable=None shows the bar on a terminal only
    bar = tqdm(total=steps, initial=run.step, unit="step", disable=None, leave=False)
    try:
        if not run.rows:
            save(run, folder, checkpoint)
        while len(run.rows) < run.settings.epochs:
            row = run.epoch(bar.update)
            save(run, folder, checkpoint)
            bar.write(
                f"epoch {row.epoch:3}  train loss {row.train_loss:.4f} accuracy {row.train_accuracy:7.2%}  "
                f"test loss {row.test_loss:.4f} accuracy {row.test_accuracy:7.2%}  {row.seconds:.1f} s"
            )
    except KeyboardInterrupt:
        status = 130
    finally:
        bar.close()
    with replacing(folder / "curve.png") as path:
        plot(run.rows, run.settings, path)
    if status:
        print(f"interrupted; to go on: --resume {checkpoint}")
    else:
        last = run.rows[-1]
        print(f"final accuracy: train {last.train_accuracy:.2%}, test {last.test_accuracy:.2%}")
    print(f"curve: {folder / 'curve.csv'}, {folder / 'curve.png'}\ncheckpoint: {checkpoint}")
    return status


def follow(run: Run) -> int:
    """Train with the leading process, in silence."""
    while len(run.rows) < run.settings.epochs:
        run.epoch(lambda: None)
    return 0


def number(kind: type[int] | type[float], minimum: float, strict: bool = False) -> Callable[[str], Any]:
    """A parser of finite numbers of at least ``minimum``, or above it where ``strict``."""

    def parse(text: str) -> int | float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < minimum or (strict and value == minimum):
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(
                f"must be {noun} {'above' if strict else 'of at least'} {minimum:g}, got {text!r}"
            )
        return value

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``train``. What is not given is the checkpoint's or the recipe's."""
    add = parser.add_argument
    add("--data", choices=tuple(RECIPES), help="data set (default: digits, which needs no files)")
    add("--data-dir", type=Path, help="folder of MNIST's idx files or CIFAR-10's Python batches")
    add("--epochs", type=number(int, 1), help="passes over the training images")
    add("--batch-size", type=number(int, 2), help="images a step")
    add("--lr", type=number(float, 0, strict=True), help="learning rate at the start")
    add("--noise", type=number(float, 0), help="width of the uniform noise added to every image")
    add(
        "--thresholds", choices=(*THRESHOLDS, "none"), help="none is the plain ResNet (default: channel-wise)"
    )
    add("--backend", choices=BACKENDS, help="compiled operators, or their plain PyTorch reference")
    add("--device", default="cpu", help="where to train (default: cpu)")
    add("--seed", type=number(int, 0), help="of noise, initialisation and order (default: 0)")
    add(
        "--output-dir",
        type=Path,
        help="an empty or new folder (default: runs/DATA, numbered where it exists)",
    )
    add(
        "--checkpoint",
        type=Path,
        help="file to save to after each epoch (default: checkpoint.pt in the folder)",
    )
    add(
        "--resume", type=Path, help="checkpoint to go on from, in its own folder unless --output-dir is given"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command. Returns 0, 2 for what the user can put right, or 130 after an interrupt."""
    # both are needed in the end; better missed now than after the first epoch
    import matplotlib  # noqa: F401
    import tqdm  # noqa: F401

    try:
        with repeatable(), processes(args.device) as together:
            with together.agreeing():
                job = prepare(args, together)
            return train(*job)
    except (InputError, OSError) as error:
        print(f"drsn_ops train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
