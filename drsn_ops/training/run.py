"""A network in training: its steps, its epochs, and the state from which a later process goes on."""

from __future__ import annotations

import copy
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .networks import REGULARISED, evaluation_batch
from .plan import Planner, Precision
from .processes import Processes

DTYPES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Result(NamedTuple):
    """The mean loss over samples, and the share of them that the network is right about."""

    loss: float
    accuracy: float


class Row(NamedTuple):
    """One epoch of the curve.

    ``results`` has the loss and the accuracy of each split. The loss is the cross-entropy alone, with the plan's
    weights of the classes. Both are of the network in evaluation mode after the epoch, but for the training split
    where the plan says ``running``: there they are means over the epoch's steps, each of the network in training mode
    before its step. In the splits that the plan's ``batch_statistics`` names, the network has the statistics of each
    batch. ``seconds`` is the time of the whole epoch, with all evaluations.
    """

    epoch: int
    step: int
    lr: float
    results: dict[str, Result]
    seconds: float

    @staticmethod
    def names(splits: Iterable[str]) -> list[str]:
        """The names of `values`, of letters and underscores."""
        words = ("_".join(re.findall(r"\w+", split)) for split in splits)
        results = [f"{split}_{name}" for split in words for name in Result._fields]
        return ["epoch", "step", "lr", *results, "seconds"]

    def values(self) -> list[float]:
        """The numbers of a line of the curve."""
        return [self.epoch, self.step, self.lr, *chain(*self.results.values()), self.seconds]

    @classmethod
    def of(cls, values: Sequence[Any], splits: Iterable[str]) -> Row:
        """The row of these `values`."""
        epoch, step, lr, *measured, seconds = values
        pairs = zip(measured[::2], measured[1::2], strict=True)
        results = {split: Result(*pair) for split, pair in zip(splits, pairs, strict=True)}
        return cls(epoch, step, lr, results, seconds)


class Run:
    """A network in training: its settings, its plan, and everything that changes from step to step.

    With ``compiled``, the network is trained through torch.compile.
    """

    def __init__(
        self,
        settings: Planner,
        data: object,
        device: torch.device,
        processes: Processes = Processes(),  # noqa: B008  it is frozen
        compiled: bool = False,
    ) -> None:
        self.settings = settings
        self.processes = processes
        self.device = device
        self.compiled = compiled
        torch.manual_seed(settings.seed)
        self.plan = settings.plan(data, device)
        self.network = self.plan.network
        self.optimiser = self.plan.optimiser
        # made before the BatchNorms of the network are shared by processes
        self.twin = by_batch(self.network) if self.plan.batch_statistics else self.network
        # gradients of fp16 would underflow
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.plan.precision == "fp16")
        self.step = 0
        self.rows: list[Row] = []
        self.best: Mapping[str, Tensor] = {}

    @cached_property
    def replica(self) -> nn.Module:
        """The module to call in training; it exchanges gradients and statistics with the other processes."""
        replica = self.processes.replicate(self.network)
        return cast(nn.Module, torch.compile(replica)) if self.compiled else replica

    @property
    def steps_per_epoch(self) -> int:
        # a remainder of one sample is left out: BatchNorm cannot train on it
        batches, remainder = divmod(len(self.plan.splits["train"].labels), self.settings.batch_size)
        return batches + (remainder > 1)

    @property
    def best_epoch(self) -> int:
        """The first epoch with the lowest validation loss, the last one where there is no validation; 0 before all."""
        if not self.rows or "validation" not in self.plan.splits:
            return len(self.rows)
        losses = [row.results["validation"].loss for row in self.rows]
        # nan is not less than any other
        return 1 + min(range(len(losses)), key=lambda i: (math.isnan(losses[i]), losses[i]))

    @property
    def finished(self) -> bool:
        """Whether all epochs are done, or as many as the plan's patience since the best one."""
        waited = len(self.rows) - self.best_epoch
        return len(self.rows) >= self.settings.epochs or waited >= (self.plan.patience or math.inf)

    @property
    def diverged(self) -> bool:
        """Whether the plan keeps the best weights, and there will be none: the last are not finite."""
        tensors = self.network.state_dict().values() if self.plan.keeps_best else ()
        return not all(bool(tensor.isfinite().all()) for tensor in tensors)

    def state(self) -> dict[str, Any]:
        """Everything that a later process needs to go on as if there had been no pause."""
        state = {
            "settings": asdict(self.settings),  # type: ignore[call-overload]
            "fingerprint": self.plan.fingerprint,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "step": self.step,
            "rows": [row.values() for row in self.rows],
        }
        if self.plan.keeps_best:
            # tensors that are those of the network are written once
            last = self.best_epoch == len(self.rows)
            state["best"] = state["network"] if last else self.best
        if self.device.type == "cuda":  # a Dropout draws there
            state["random_of_device"] = torch.cuda.get_rng_state(self.device)
        return state | ({"scaler": self.scaler.state_dict()} if self.scaler.is_enabled() else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        self.rows = [Row.of(row, self.plan.splits) for row in state["rows"]]
        if self.plan.keeps_best:
            self.best = {name: tensor.to(self.device) for name, tensor in state["best"].items()}
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda" and "random_of_device" in state:
            torch.cuda.set_rng_state(state["random_of_device"], self.device)

    def train_epoch(self, stepped: Callable[[], object]) -> Result | None:
        """Make one pass over the training samples in a new order; call ``stepped`` after each step.

        Every process draws the same random numbers for the whole batch and then takes its share of the batch. Returns
        the means over the steps where the plan says ``running``, None elsewhere.
        """
        plan = self.plan
        self.replica.train()
        samples, labels = plan.splits["train"]
        share = self.processes.share
        order = torch.randperm(len(labels), device="cpu").to(self.device)
        batches = order.split(self.settings.batch_size)[: self.steps_per_epoch]
        steps = len(batches) * self.settings.epochs
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in batches:
            x = share(plan.augment(samples[batch])) if plan.augment else samples[share(batch)]
            for group in self.optimiser.param_groups:
                group["lr"] = plan.learning_rate(self.step, steps)
            self.optimiser.zero_grad()
            with autocast(self.device, plan.precision):
                logits = self.replica(self.centred(x))
            loss = self.loss(logits, labels[share(batch)])
            # DistributedDataParallel averages gradients: this makes them those of the batch's mean, also for
            # shares of different sizes
            mean = loss / (self.weight(labels[batch]) / self.processes.count)
            self.scaler.scale(mean + penalty(self.network)).backward()
            self.scaler.step(self.optimiser)
            self.scaler.update()
            self.step += 1
            if plan.running:
                sums += summed(loss.detach(), logits, labels[share(batch)])
            stepped()
        return self.averaged(sums, labels[torch.cat(batches)]) if plan.running else None

    def centred(self, x: Tensor) -> Tensor:
        """The samples less the plan's mean."""
        return x if self.plan.mean is None else x - self.plan.mean

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum of the cross-entropies, each with the weight of its class, in at least float32."""
        logits = logits.float() if self.plan.precision else logits
        return F.cross_entropy(logits, labels, self.plan.weights, reduction="sum")

    def weight(self, labels: Tensor) -> Tensor | int:
        """The sum of these samples' weights in the loss."""
        return len(labels) if self.plan.weights is None else self.plan.weights[labels].sum()

    def averaged(self, sums: Tensor, labels: Tensor) -> Result:
        """The results from every process's sums over these samples."""
        loss, right = self.processes.total(sums).tolist()
        return Result(loss / float(self.weight(labels)), right / len(labels))

    def evaluation_batches(self, name: str) -> list[tuple[Tensor, ...]]:
        """The batches of a split that this process evaluates, whole."""
        split = self.plan.splits[name]
        sizes: int | list[int] = evaluation_batch(self.network, split.x)
        if name in self.plan.batch_statistics:
            sizes = sizes_of(len(split.labels), self.settings.batch_size)
        batches = list(zip(*(part.split(sizes) for part in split), strict=True))
        return batches[self.processes.rank :: self.processes.count]

    @property
    def evaluated(self) -> list[str]:
        """The splits that get a pass of their own after each epoch."""
        return [name for name in self.plan.splits if name != "train" or not self.plan.running]

    @property
    def batches_per_epoch(self) -> int:
        """Training steps plus evaluation batches of this process: the length of an epoch's progress bar."""
        return self.steps_per_epoch + sum(map(len, map(self.evaluation_batches, self.evaluated)))

    @torch.inference_mode()
    def evaluate(self, name: str, evaluated: Callable[[], object]) -> Result:
        """Mean cross-entropy and accuracy over a split; call ``evaluated`` after each batch of this process."""
        network = self.twin if name in self.plan.batch_statistics else self.network
        network.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for x, labels in self.evaluation_batches(name):
            logits = network(self.centred(x))
            sums += summed(self.loss(logits, labels), logits, labels)
            evaluated()
        return self.averaged(sums, self.plan.splits[name].labels)

    def epoch(self, stepped: Callable[[], object], evaluated: Callable[[], object]) -> Row:
        """Train for one epoch, evaluate the splits, and append the row to the curve."""
        start = time.perf_counter()
        running = self.train_epoch(stepped)
        lr = self.optimiser.param_groups[0]["lr"]
        results = {} if running is None else {"train": running}
        results |= {name: self.evaluate(name, evaluated) for name in self.evaluated}
        row = Row(len(self.rows) + 1, self.step, lr, results, time.perf_counter() - start)
        self.rows.append(row)
        if self.plan.keeps_best and self.best_epoch == row.epoch:
            self.best = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        return row


def by_batch(network: nn.Module) -> nn.Module:
    """The network, on the same parameters, with BatchNorms that take the statistics of each batch in evaluation too."""
    twin = copy.deepcopy(network, {id(parameter): parameter for parameter in network.parameters()})
    for norm in twin.modules():
        if isinstance(norm, _BatchNorm):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
    return twin


def sizes_of(samples: int, batch_size: int) -> list[int]:
    """The sizes of the batches of these samples; a last one, alone without a variance, joins the batch before it."""
    whole, rest = divmod(samples, batch_size)
    if rest == 1 and whole:
        return [batch_size] * (whole - 1) + [batch_size + 1]
    return [batch_size] * whole + [rest] * (rest > 0)


def penalty(network: nn.Module) -> Tensor | float:
    """The network's own term of the loss, if it has one."""
    return network.penalty() if isinstance(network, REGULARISED) else 0.0


def summed(loss: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
    """The loss, and how many of the logits are right."""
    return torch.stack([loss, (logits.argmax(1) == labels).sum()])


def autocast(device: torch.device, precision: Precision | None) -> AbstractContextManager[object]:
    """Within, operators that can do so compute in this precision."""
    return torch.autocast(device.type, DTYPES[precision]) if precision else nullcontext()


@contextmanager
def repeatable() -> Iterator[None]:
    """Within, cuDNN uses deterministic algorithms only. Its other flags keep their values."""
    cudnn = torch.backends.cudnn
    # flags() resets every flag that it is not given
    with cudnn.flags(cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32):
        yield
