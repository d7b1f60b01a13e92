"""A network in training: its steps, its epochs, and the state from which a later process goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.fingerprint import fingerprint
from ..data.images import Dataset, Split, augment
from ..modules import Shrinkage
from .networks import evaluation_batch
from .processes import Processes
from .recipes import RECIPES, Settings


class Row(NamedTuple):
    """One epoch of the curve.

    Losses are the cross-entropy alone, of the network in evaluation mode. ``seconds`` is the time of the whole epoch,
    including the evaluation of both splits.
    """

    epoch: int
    step: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float


class Run:
    """A network in training: its settings, its data, and everything that changes from step to step."""

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
        """The module to call in training; it exchanges gradients and statistics with the other processes."""
        return self.processes.replicate(self.network)

    @property
    def steps_per_epoch(self) -> int:
        # a remainder of one image is left out: BatchNorm cannot train on it
        batches, remainder = divmod(len(self.data.train.labels), self.settings.batch_size)
        return batches + (remainder > 1)

    def state(self) -> dict[str, Any]:
        """Everything that a later process needs to go on as if there had been no pause."""
        return {
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
        """Make one pass over the training images in a new order; call ``stepped`` after each step.

        Every process draws the same random numbers for the whole batch and then takes its share of the batch.
        """
        self.replica.train()
        images, labels = self.data.train
        share = self.processes.share
        order = torch.randperm(len(labels), device="cpu").to(self.device).split(self.settings.batch_size)
        for batch in order[: self.steps_per_epoch]:
            x = share(augment(images[batch])) if self.recipe.augment else images[share(batch)]
            for group in self.optimiser.param_groups:
                group["lr"] = self.recipe.learning_rate(self.settings.lr, self.step)
            self.optimiser.zero_grad()
            logits = self.replica(x - self.data.mean)
            loss = F.cross_entropy(logits, labels[share(batch)], reduction="sum")
            # DistributedDataParallel averages gradients: this makes them those of the batch's mean, also for
            # shares of different sizes
            (loss / (len(batch) / self.processes.count) + self.network.penalty()).backward()
            self.optimiser.step()
            self.step += 1
            stepped()

    def evaluation_batches(self, split: Split) -> list[tuple[Tensor, ...]]:
        """The batches of a split that this process evaluates."""
        size = evaluation_batch(self.network, split.images)
        batches = list(zip(*(part.split(size) for part in split), strict=True))
        return batches[self.processes.rank :: self.processes.count]

    @property
    def batches_per_epoch(self) -> int:
        """Training steps plus evaluation batches of this process: the length of an epoch's progress bar."""
        evaluated = sum(len(self.evaluation_batches(split)) for split in (self.data.train, self.data.test))
        return self.steps_per_epoch + evaluated

    @torch.inference_mode()
    def evaluate(self, split: Split, evaluated: Callable[[], object]) -> tuple[float, float]:
        """Mean cross-entropy and accuracy over a split; call ``evaluated`` after each batch of this process."""
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
        """Train for one epoch, evaluate both splits, and append the row to the curve."""
        start = time.perf_counter()
        self.train_epoch(stepped)
        lr = self.optimiser.param_groups[0]["lr"]
        train, test = (self.evaluate(split, evaluated) for split in (self.data.train, self.data.test))
        row = Row(len(self.rows) + 1, self.step, lr, *train, *test, time.perf_counter() - start)
        self.rows.append(row)
        return row


@contextmanager
def repeatable() -> Iterator[None]:
    """Within, cuDNN uses deterministic algorithms only. Its other flags keep their values."""
    cudnn = torch.backends.cudnn
    # flags() resets every flag that it is not given
    with cudnn.flags(cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32):
        yield
