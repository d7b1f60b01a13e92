"""Training of the published networks on their data: ``python -m drsn_ops train``.

Each data set comes with the recipe of its program. One run has a folder of its own, in which ``checkpoint.pt``
and ``curve.csv`` are renewed after every epoch; ``curve.png`` is drawn at the end. A run that is cut off leaves whole
files, see `files`. The program for CIFAR-10 saves as often, every 500 steps of 100 images, and keeps its last ten
checkpoints; here only the latest is kept.

``torchrun --nproc-per-node 2 -m drsn_ops train`` shares every batch out among processes, see `distributed`. The run and
its files are, to rounding, those of one process, and any number of processes can resume it.
"""

from __future__ import annotations

import argparse
import csv
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models
from ..arguments import (
    MAX_REAL,
    InputError,
    count,
    defaults,
    first_line,
    learning_rate,
    number,
    seed,
    to_go_on,
)
from ..data.fingerprint import fingerprint, require_same_data, source_of
from ..data.images import Dataset, Split, augment, load
from ..files import replacing, save_tensors
from ..modules import THRESHOLDS, Shrinkage
from .folders import claimed, new_folder
from .processes import Processes, device_of, processes

FORMAT = "drsn_ops.train 2"
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
    """All that decides what a run computes, and where its files are; a checkpoint holds them."""

    data: str
    thresholds: str
    backend: str
    epochs: int
    batch_size: int
    lr: float
    noise: float
    seed: int
    data_dir: str | None = None


class Row(NamedTuple):
    """One epoch of the curve.

    Losses are cross-entropy alone, and of the network in evaluation mode. ``seconds`` are those of the whole epoch, the
    evaluation of both splits included.
    """

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
        self.fingerprint = fingerprint(data[:2])
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
            "fingerprint": self.fingerprint,
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

    def evaluation_batches(self, split: Split) -> list[tuple[Tensor, ...]]:
        """This process's batches of a split in evaluation: every so many-th."""
        size = evaluation_batch(self.network, split.images)
        batches = list(zip(*(part.split(size) for part in split), strict=True))
        return batches[self.processes.rank :: self.processes.count]

    @property
    def batches_per_epoch(self) -> int:
        """Steps and batches of the evaluation, which together are an epoch's progress."""
        evaluated = sum(len(self.evaluation_batches(split)) for split in (self.data.train, self.data.test))
        return self.steps_per_epoch + evaluated

    @torch.inference_mode()
    def evaluate(self, split: Split, evaluated: Callable[[], object]) -> tuple[float, float]:
        """Mean cross-entropy and accuracy over a split; calls ``evaluated`` after each of this process's batches."""
        self.network.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for images, labels in self.evaluation_batches(split):
            logits = self.network(images - self.data.mean)
            right = (logits.argmax(1) == labels).sum()
            sums += torch.stack([F.cross_entropy(logits, labels, reduction="sum"), right])
            evaluated()
        loss, accuracy = (self.processes.total(sums) / len(split.labels)).tolist()
        return loss, accuracy

    def epoch(self, stepped: Callable[[], object], evaluated: Callable[[], object]) -> Row:
        """Train for one epoch, measure both splits, and add the row to the curve."""
        start = time.perf_counter()
        self.train_epoch(stepped)
        lr = self.optimiser.param_groups[0]["lr"]
        train, test = (self.evaluate(split, evaluated) for split in (self.data.train, self.data.test))
        row = Row(len(self.rows) + 1, self.step, lr, *train, *test, time.perf_counter() - start)
        self.rows.append(row)
        return row


@contextmanager
def repeatable() -> Iterator[None]:
    """cuDNN without algorithms that sum in another order each time; else it stays as it is."""
    cudnn = torch.backends.cudnn
    # what is not given would be off, cuDNN itself among it
    with cudnn.flags(cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32):
        yield


class Place(NamedTuple):
    """Where a run's files go, and whether the checkpoint is another file than the one that is resumed from."""

    folder: Path
    checkpoint: Path
    new: bool


def save(run: Run, place: Place, new: bool = False) -> None:
    """Renew the checkpoint and the table of the curve; a ``new`` checkpoint replaces none."""
    folder, checkpoint, _ = place
    # as the checkpoint sees it, so that both can be moved together
    home = os.path.relpath(folder, checkpoint.parent)
    save_tensors({**run.state(), "folder": home}, checkpoint, new=new)
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
        with path.open("rb") as file:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except IsADirectoryError as error:
        raise InputError(f"{path}: a folder, expected a checkpoint, as {path / 'checkpoint.pt'}") from error
    except PermissionError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    # a damaged archive can raise nearly anything
    except Exception as error:
        raise InputError(f"{path}: damaged, or not a checkpoint ({type(error).__name__})") from error
    found = state.get("format") if isinstance(state, dict) else None
    if not (isinstance(found, str) and found.startswith(FORMAT.split()[0])):
        raise InputError(f"{path}: not a checkpoint of this program")
    if found != FORMAT:
        raise InputError(f"{path}: a checkpoint of {found}, not of this version's {FORMAT}")
    return state


def settings_of(args: argparse.Namespace, saved: Mapping[str, Any] | None) -> Settings:
    """Each setting from its flag, or else from the checkpoint, or else from the recipe.

    Raises:
        InputError: a flag that contradicts the checkpoint, or that would change nothing.
    """
    data = args.data or (saved or {}).get("data", "digits")
    base = saved or {
        "thresholds": THRESHOLDS[0],
        "backend": BACKENDS[0],
        "seed": 0,
        "data_dir": None,
        **vars(RECIPES[data]),
    }
    values = {"data": data}
    for name in [field.name for field in fields(Settings)][1:]:
        flag = getattr(args, name)
        values[name] = base[name] if flag is None else str(flag.absolute()) if name == "data_dir" else flag
    for name, value in values.items():
        # there may be more to do, and the files may have moved
        if saved and value != saved[name] and name not in ("epochs", "data_dir"):
            flag = "--" + name.replace("_", "-")
            raise InputError(f"{args.resume}: a checkpoint of {flag} {saved[name]}, not of {flag} {value}")
    settings = Settings(**values)
    if settings.data == "digits" and settings.data_dir:
        raise InputError(
            f"--data-dir {args.data_dir}: expected none with --data digits; --data mnist or cifar10 reads files"
        )
    if args.backend and settings.thresholds == "none":
        raise InputError(
            f"--backend {args.backend}: expected none with --thresholds none, which shrinks nothing"
        )
    return settings


def usable_device(name: str) -> torch.device:
    """The device of this name, once a tensor has been made on it."""
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()
    # some backends are modules that are not there
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:
        raise InputError(f"--device {name}: cannot be used here: {first_line(error)}") from error
    return device


@contextmanager
def place_of(args: argparse.Namespace, run: Run, home: Path | None) -> Iterator[Place]:
    """Where the run's files go, its own as long as it trains; only the checkpoint that is resumed from is replaced."""
    with ExitStack() as claims:
        resumed = args.resume if args.output_dir is None else None
        checkpoint: Path | None = args.checkpoint or resumed
        new = checkpoint is None or args.resume is None or checkpoint.absolute() != args.resume.absolute()
        if checkpoint and new and checkpoint.exists():
            raise InputError(f"{checkpoint}: exists; --resume it, or give another --checkpoint")
        if checkpoint and not checkpoint.absolute().parent.is_dir():
            raise InputError(f"--checkpoint {checkpoint}: its folder does not exist")
        if home and (args.output_dir is None or not new):
            folder = claims.enter_context(claimed(home))
        if not new and read_checkpoint(args.resume)["step"] != run.step:
            raise InputError(f"{args.resume}: another run has just gone on from it")
        if args.output_dir or not home:
            folder = claims.enter_context(new_folder(args.output_dir, run.settings.data))
        yield Place(folder, checkpoint or folder / "checkpoint.pt", new)


def prepare(args: argparse.Namespace, processes: Processes) -> tuple[Run, Path | None]:
    """The run that the flags ask for, and the folder of the one that is resumed, before anything is written."""
    state = read_checkpoint(args.resume) if args.resume else None
    home: Path | None = None
    try:
        settings = settings_of(args, state["settings"] if state else None)
        if settings.batch_size < processes.count:
            raise InputError(
                f"--batch-size {settings.batch_size}: less than an image for each of {processes.count} processes"
            )
        device = usable_device(device_of(args.device))
        data = load(settings.data, settings.data_dir, noise=settings.noise, seed=settings.seed)
        run = Run(settings, data, device, processes)
        if state:
            begun = state["fingerprint"], source_of(settings.data, state["settings"]["data_dir"])
            require_same_data(
                args.resume, begun, (run.fingerprint, source_of(settings.data, settings.data_dir))
            )
            run.restore(state)
            home = Path(os.path.normpath(args.resume.parent / state["folder"]))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if state is None:
            raise
        raise InputError(
            f"{args.resume}: a checkpoint of another network ({type(error).__name__})"
        ) from error
    if len(run.rows) >= settings.epochs:
        raise InputError(
            f"{args.resume}: {len(run.rows)} epochs are done; --epochs {settings.epochs} leaves none to do"
        )
    # a checkpoint that has been moved alone goes on where it is
    return run, home if home is None or home.is_dir() else args.resume.parent


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


def train(run: Run, place: Place) -> int:
    """Train to the last epoch, tell, save and draw, and return the exit status."""
    print(describe(run))
    try:
        train_epochs(run, place)
    except KeyboardInterrupt:
        if place.checkpoint.exists():
            device = str(run.device) if run.processes.count == 1 else run.device.type
            flags = {"resume": place.checkpoint, "device": None if device == "cpu" else device}
            print(f"interrupted; {to_go_on(**flags)}")
            draw(run, place)
        raise
    last = run.rows[-1]
    print(f"final accuracy: train {last.train_accuracy:.2%}, test {last.test_accuracy:.2%}")
    draw(run, place)
    return 0


def train_epochs(run: Run, place: Place) -> None:
    """Train what is left and save after each epoch, with a bar and a line for each."""
    from tqdm import tqdm

    total, done = (epochs * run.batches_per_epoch for epochs in (run.settings.epochs, len(run.rows)))
    # disable=None shows the bar on a terminal only
    with closing(tqdm(total=total, initial=done, unit="batch", disable=None, leave=False)) as bar:

        def advance(phase: str) -> None:
            bar.set_description(phase, refresh=False)
            bar.update()

        # now there is something to go on from, and what cannot be written is known
        save(run, place, place.new)
        while len(run.rows) < run.settings.epochs:
            row = run.epoch(partial(advance, "training"), partial(advance, "evaluating"))
            save(run, place)
            bar.write(
                f"epoch {row.epoch:3}  train loss {row.train_loss:.4f} accuracy {row.train_accuracy:7.2%}  "
                f"test loss {row.test_loss:.4f} accuracy {row.test_accuracy:7.2%}  {row.seconds:.1f} s"
            )


def draw(run: Run, place: Place) -> None:
    """Draw the curve, if there is one yet, and tell where everything is."""
    curves = [place.folder / "curve.csv"]
    if run.rows:
        curves.append(place.folder / "curve.png")
        with replacing(curves[-1]) as path:
            plot(run.rows, run.settings, path)
    print(f"curve: {', '.join(map(str, curves))}\ncheckpoint: {place.checkpoint}")


def follow(run: Run) -> int:
    """Train with the leading process, in silence."""
    while len(run.rows) < run.settings.epochs:
        run.epoch(lambda: None, lambda: None)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``train``. What is not given is the checkpoint's or the recipe's."""
    add, recipe = parser.add_argument, partial(defaults, RECIPES)
    add("--data", choices=tuple(RECIPES), help="data set (default: digits, which needs no files)")
    add(
        "--data-dir",
        type=Path,
        help="folder of MNIST's idx files or CIFAR-10's Python batches, as published or as torchvision leaves them, "
        "or CIFAR-10's archive",
    )
    add("--epochs", type=count(), help=f"passes over the training images ({recipe('epochs')})")
    add("--batch-size", type=count(2), help=f"images a step ({recipe('batch_size')})")
    add("--lr", type=learning_rate, help=f"learning rate at the start ({recipe('lr')})")
    add(
        "--noise",
        type=number(float, 0, MAX_REAL),
        help=f"width of the uniform noise added to every image ({recipe('noise')})",
    )
    add(
        "--thresholds", choices=(*THRESHOLDS, "none"), help="none is the plain ResNet (default: channel-wise)"
    )
    add(
        "--backend",
        choices=BACKENDS,
        help="compiled operators, or their plain PyTorch reference (default: drsn_ops)",
    )
    add("--device", default="cpu", help="where to train (default: cpu)")
    add("--seed", type=seed, help="of noise, initialisation and order (default: 0)")
    add(
        "--output-dir",
        type=Path,
        help="an empty or new folder (default: runs/DATA, numbered where it exists)",
    )
    add(
        "--checkpoint",
        type=Path,
        help="file to save to after each epoch (default: checkpoint.pt in the folder, or the one to resume)",
    )
    add(
        "--resume", type=Path, help="checkpoint to go on from, in its own folder unless --output-dir is given"
    )


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit status."""
    # both are needed in the end; better missed now than after the first epoch
    import matplotlib  # noqa: F401
    import tqdm  # noqa: F401

    with repeatable(), processes(args.device) as together, ExitStack() as claims:
        with together.agreeing():
            job, home = prepare(args, together)
        # nothing is written before every process can train
        with together.agreeing():
            place = claims.enter_context(place_of(args, job, home)) if together.leads else None
        return train(job, place) if place else follow(job)
