"""Several processes: DTensors, DistributedDataParallel, FSDP2, and BatchNorm over all processes' samples."""

from __future__ import annotations

import copy
import time
import traceback
from contextlib import nullcontext, redirect_stderr, redirect_stdout
from datetime import timedelta
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from checks import leaf, make_features, operators_of, randomise
from commands import status_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import drsn_ops
from drsn_ops.__main__ import main
from drsn_ops.arguments import InputError
from drsn_ops.data import Dataset, Split, load
from drsn_ops.data.recordings import Reading, Recordings, Windows
from drsn_ops.data.signals import FileOptions
from drsn_ops.data.windows import Cutting
from drsn_ops.experiment import command
from drsn_ops.ops import autograd
from drsn_ops.training import train
from drsn_ops.training.processes import Processes
from drsn_ops.training.recipes import Settings
from drsn_ops.training.recordings import Loaded, RecordingSettings
from drsn_ops.training.run import Run
from drsn_ops.training.shared_batch_norm import SharedBatchNorm, share_batch_norms

if not (dist.is_available() and dist.is_gloo_available()):
    pytest.skip("this PyTorch has no gloo", allow_module_level=True)

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode

PROCESSES = 2
CHECKS = {}
SKIPPED = "skipped: "


def check(function):
    """A function for two processes to run; a test is made of each."""
    CHECKS[function.__name__] = function
    return function


def work(rank, folder):
    """One process: every check in turn. What came of it is left in files."""
    torch.set_num_threads(1)
    # the other processes may have to wait where the machine is busy
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=PROCESSES,
        timeout=timedelta(seconds=300),
    )
    for name, function in CHECKS.items():
        torch.manual_seed(0)
        outcome = folder / f"{name}.{rank}"
        try:
            function()
        except pytest.skip.Exception as skipped:
            outcome.write_text(f"{SKIPPED}{skipped}")
        except BaseException:
            outcome.write_text(traceback.format_exc())
            deadline = time.monotonic() + 20
            while not all((folder / f"{name}.{other}").exists() for other in range(PROCESSES)):
                if time.monotonic() > deadline:  # the others wait for what this process will not send
                    raise
                time.sleep(0.05)
        else:
            outcome.write_text("")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """A folder with the outcomes of all checks: they share their processes, which take seconds to start."""
    folder = tmp_path_factory.mktemp("outcomes")
    try:
        multiprocessing.spawn(work, (folder,), nprocs=PROCESSES)
    except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException):
        pass  # the tests say what it was
    return folder


def mesh_of(*shape):
    return init_device_mesh("cpu", shape or (2,))


def scatter(t, mesh, *placements):
    """The DTensor of t; where a placement is Partial, t is the sum of what the processes have."""
    local = distribute_tensor(t, mesh, [Replicate() if p.is_partial() else p for p in placements]).to_local()
    for axis, p in enumerate(placements):
        if p.is_partial() and mesh.size(axis) == 2:
            local = local * (0.25, 0.75)[mesh.get_local_rank(axis)]
    return DTensor.from_local(local, mesh, placements, shape=t.shape, stride=t.stride())


def assert_equal_to_plain(function, mesh, placements, atol=None, rtol=None, **tensors):
    """Values, gradients and placements of ``function`` of DTensors: x placed as told, the others replicated."""
    plain = {name: leaf(t) for name, t in tensors.items()}
    expected = function(**plain)
    weight = torch.randn_like(expected)
    gradients = torch.autograd.grad(expected, list(plain.values()), weight)

    sharded = {name: leaf(scatter(t, mesh, *[Replicate()] * mesh.ndim)) for name, t in tensors.items()}
    sharded["x"] = leaf(scatter(tensors["x"], mesh, *placements))
    y = function(**sharded)
    assert y.shape == expected.shape and y.stride() == expected.stride()
    torch.testing.assert_close(y.full_tensor(), expected, atol=atol, rtol=rtol)
    found = torch.autograd.grad(y, list(sharded.values()), scatter(weight, mesh, *y.placements))
    for name, actual, wanted in zip(tensors, found, gradients, strict=True):
        torch.testing.assert_close(
            actual.full_tensor(), wanted, atol=atol, rtol=rtol, msg=lambda m, name=name: f"{name}: {m}"
        )
    return y, dict(zip(tensors, found, strict=True))


# Of odd sizes, so that shards differ, and of 1, so that one process has nothing; an element is no multiple of a byte.
SHAPES = ((5, 3, 7), (1, 2, 3, 5), (3, 1, 9))
PLACEMENTS = (Replicate(), Shard(0), Shard(1), Shard(2), Partial())


@check
def soft_threshold_of_shards():
    mesh = mesh_of()
    for shape in SHAPES:
        n, c, *spatial = shape
        ones = [1] * len(spatial)
        for tau_shape in ((), (1,), (c, *ones), (n, 1, *ones), (n, c, *ones), shape, spatial):
            x, tau = make_features(shape), torch.rand(tau_shape, dtype=torch.float64)
            for placement in PLACEMENTS:
                y, _ = assert_equal_to_plain(drsn_ops.soft_threshold, mesh, [placement], x=x, tau=tau)
                assert y.placements == (Replicate() if placement.is_partial() else placement,)
        for placement in PLACEMENTS:
            assert_equal_to_plain(partial(drsn_ops.soft_threshold, tau=0.3), mesh, [placement], x=x)


@check
def abs_mean_of_shards():
    mesh = mesh_of()
    for shape in SHAPES:
        for placement in PLACEMENTS:
            for statistic in ("channel", "sample"):
                mean = partial(drsn_ops.abs_mean, statistic=statistic)
                y, _ = assert_equal_to_plain(mean, mesh, [placement], x=make_features(shape))
                assert not any(p.is_partial() for p in y.placements)


@check
def shrink_of_shards():
    mesh = mesh_of()
    for shape in SHAPES:
        n, c = shape[:2]
        x, residual = make_features(shape), make_features(shape)
        for placement in PLACEMENTS:
            for statistic in ("channel", "sample"):
                shrink = partial(drsn_ops.shrink, statistic=statistic)
                for alpha_shape in ((n, c), (n, 1), (c,)):
                    alpha = torch.rand(alpha_shape, dtype=torch.float64)
                    assert_equal_to_plain(shrink, mesh, [placement], x=x, alpha=alpha, residual=residual)
                assert_equal_to_plain(partial(shrink, alpha=0.7), mesh, [placement], x=x)


def second_derivatives(function, **tensors):
    """Of a number that is no sum over shards, and whose gradient is placed otherwise than the result."""
    y = function(**tensors)
    inputs = list(tensors.values())
    first = torch.autograd.grad(y.pow(3).sum() + y.sum().square(), inputs, create_graph=True)
    return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)


@check
def second_derivatives_of_shards():
    mesh, (n, c, length) = mesh_of(), (3, 4, 5)
    x, tau, alpha = make_features((n, c, length)), torch.rand(c, 1).double(), torch.rand(n, c).double()
    for statistic in ("channel", "sample"):
        shrink = partial(drsn_ops.shrink, statistic=statistic)
        for function, tensors in (
            (drsn_ops.soft_threshold, {"x": x, "tau": tau}),
            (partial(drsn_ops.abs_mean, statistic=statistic), {"x": x}),
            (shrink, {"x": x, "alpha": alpha, "residual": x.flip(0)}),
            (partial(shrink, alpha=0.7), {"x": x}),
        ):
            expected = second_derivatives(function, **{name: leaf(t) for name, t in tensors.items()})
            for placement in PLACEMENTS:
                sharded = {name: leaf(scatter(t, mesh, Replicate())) for name, t in tensors.items()}
                sharded["x"] = leaf(scatter(x, mesh, placement))
                for actual, wanted in zip(second_derivatives(function, **sharded), expected, strict=True):
                    torch.testing.assert_close(actual.full_tensor(), wanted)


@check
def complex_shards():
    mesh, x, tau = mesh_of(), torch.randn(5, 3, 7, dtype=torch.complex128), torch.rand(3, 1).double()
    for placement in PLACEMENTS:
        assert_equal_to_plain(drsn_ops.soft_threshold, mesh, [placement], x=x, tau=tau)


@check
def narrow_shards():
    """Statistics stay in float32, and thresholds may be in it; a gradient that has two ways to x is rounded twice."""
    mesh, x = mesh_of(), make_features((5, 3, 7)).bfloat16()
    shrink = partial(assert_equal_to_plain, drsn_ops.shrink, atol=0.02, rtol=0.02)
    for placement in (Replicate(), Shard(0), Shard(1), Shard(2)):
        assert_equal_to_plain(drsn_ops.soft_threshold, mesh, [placement], x=x, tau=torch.rand(3, 1))
        y, _ = shrink(mesh, [placement], x=x, alpha=torch.rand(5, 3), residual=x.flip(0))
        assert y.dtype == torch.bfloat16
        assert drsn_ops.abs_mean(scatter(x, mesh, placement)).dtype == torch.float32


@check
def thresholds_of_shards():
    """What return_threshold adds is differentiable and placed as PyTorch would."""
    mesh, x = mesh_of(), make_features((5, 4, 7))
    for alpha in (0.5, torch.rand(5, 4).double()):
        for placement in PLACEMENTS:
            for statistic in ("channel", "sample"):

                def both(x, alpha=alpha, statistic=statistic):
                    if isinstance(alpha, torch.Tensor) and isinstance(x, DTensor):
                        alpha = scatter(alpha, mesh, Replicate())
                    y, tau = drsn_ops.shrink(x, alpha, statistic=statistic, return_threshold=True)
                    return y * tau.square().sum()

                plain = leaf(x)
                sharded = leaf(scatter(x, mesh, placement))
                expected = torch.autograd.grad(both(plain).sum(), plain)[0]
                actual = torch.autograd.grad(both(sharded).sum(), sharded)[0]
                torch.testing.assert_close(actual.full_tensor(), expected)


@check
def shards_on_two_mesh_dimensions():
    """Each dimension in turn has both processes: also shards of one axis twice, and rows that are shared out."""
    x, tau, alpha = make_features((5, 3, 7)), torch.rand(3, 1).double(), torch.rand(5, 3).double()
    for mesh in (mesh_of(2, 1), mesh_of(1, 2)):
        for placements in (
            [Shard(0), Shard(1)],
            [Shard(2), Shard(1)],
            [Shard(0), Shard(0)],
            [Shard(2), Shard(2)],
            [Partial(), Shard(2)],
            [Replicate(), Shard(0)],
        ):
            assert_equal_to_plain(drsn_ops.soft_threshold, mesh, placements, x=x, tau=tau)
            for statistic in ("channel", "sample"):
                shrink = partial(drsn_ops.shrink, statistic=statistic)
                assert_equal_to_plain(shrink, mesh, placements, x=x, alpha=alpha, residual=x.flip(0))
                sharded = leaf(scatter(x, mesh, *placements))
                for actual, wanted in zip(
                    second_derivatives(partial(shrink, alpha=0.7), x=sharded),
                    second_derivatives(partial(shrink, alpha=0.7), x=leaf(x)),
                    strict=True,
                ):
                    torch.testing.assert_close(actual.full_tensor(), wanted)


@check
def channels_last_shards_keep_their_layout():
    x = make_features((4, 6, 5, 3)).contiguous(memory_format=torch.channels_last)
    mesh = mesh_of()
    local = x.chunk(2)[dist.get_rank()]
    sharded = DTensor.from_local(local, mesh, [Shard(0)], shape=x.shape, stride=x.stride())
    y = drsn_ops.shrink(sharded, 0.5)
    assert y.stride() == x.stride() and y.to_local().stride() == local.stride()
    torch.testing.assert_close(y.full_tensor(), drsn_ops.shrink(x, 0.5))


class Traffic(TorchDispatchMode):
    """The collectives of a call, each with the number of elements that it is given."""

    def __init__(self):
        super().__init__()
        self.sent = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # let it become what it does to shards
        name = function._schema.name.removeprefix("_c10d_functional::")
        if name in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"):
            self.sent.append((name, args[0].numel()))
        return function(*args, **(kwargs or {}))


def traffic(function, x, *tensors):
    """The collectives of a forward and a backward pass."""
    with CommDebugMode() as count, Traffic() as traffic:
        y = function(x, *tensors)
        torch.autograd.grad(y, [x, *tensors], torch.ones_like(y))
    assert count.get_total_counts() == len(traffic.sent), (count.get_comm_counts(), traffic.sent)
    return traffic.sent


@check
def x_is_not_moved():
    """Nothing at all is sent where rows are whole, and numbers of rows or samples where they are not."""
    mesh, (n, c, length) = mesh_of(), (4, 6, 100)
    tau = leaf(scatter(torch.rand(n, c, 1), mesh, Shard(0)))
    threshold = leaf(scatter(torch.rand(c, 1), mesh, Replicate()))

    def sharded(placement):
        return leaf(scatter(torch.randn(n, c, length), mesh, placement))

    for placement in (Shard(0), Shard(1)):
        x, alpha = sharded(placement), leaf(scatter(torch.rand(n, c), mesh, placement))
        assert traffic(drsn_ops.shrink, x, alpha) == []
        assert traffic(drsn_ops.abs_mean, x) == []
    assert traffic(drsn_ops.soft_threshold, sharded(Shard(0)), tau) == []
    assert traffic(drsn_ops.soft_threshold, sharded(Shard(0)), threshold) == []
    assert traffic(drsn_ops.soft_threshold, sharded(Shard(2)), threshold) == []
    alpha = leaf(scatter(torch.rand(n, c), mesh, Replicate()))
    for placement, statistic in ((Shard(2), "channel"), (Shard(2), "sample"), (Shard(1), "sample")):
        x = sharded(placement)
        means = n if statistic == "sample" else n * c
        assert traffic(partial(drsn_ops.abs_mean, statistic=statistic), x) == [("all_reduce", means)]
        sent = traffic(partial(drsn_ops.shrink, statistic=statistic), x, alpha)
        assert sent and all(size <= n * c for _, size in sent), sent


@check
def gradients_of_replicated_operands_are_partial_sums():
    mesh, x = mesh_of(), make_features((4, 6, 9))
    tau = torch.rand(6, 1).double()
    for placement, expected in ((Shard(0), Partial()), (Shard(1), Replicate()), (Replicate(), Replicate())):
        _, found = assert_equal_to_plain(drsn_ops.soft_threshold, mesh, [placement], x=x, tau=tau)
        assert found["x"].placements == (placement,) and found["tau"].placements == (expected,)


@check
def other_operands_follow_x():
    """tau, alpha and residual may be placed in any way, the gradient returns to where they are."""
    mesh, shape = mesh_of(), (4, 6, 9)
    x, alpha, residual = make_features(shape), torch.rand(4, 6).double(), make_features(shape)
    expected = drsn_ops.shrink(x, alpha, residual=residual)
    for of_x in (Shard(0), Shard(2), Replicate()):
        for placement in (Shard(0), Shard(1), Replicate(), Partial()):
            operands = [leaf(scatter(t, mesh, placement)) for t in (alpha, residual)]
            y = drsn_ops.shrink(scatter(x, mesh, of_x), operands[0], residual=operands[1])
            assert y.placements == (of_x,)
            torch.testing.assert_close(y.full_tensor(), expected)
            y.sum().backward()
            torch.testing.assert_close(operands[1].grad.full_tensor(), torch.ones_like(x))
            operands[1].grad.add_(1)  # it has memory of its own
            if not placement.is_partial():  # of a residual of a wider type, too
                y = drsn_ops.shrink(scatter(x.float(), mesh, of_x), 0.5, residual=operands[1])
                assert y.dtype == torch.float64 and y.placements == (of_x,)


@check
def a_number_may_be_a_plain_tensor():
    """Every process has it, and its gradient, like PyTorch's ``x - tau``; so a module need not be distributed."""
    mesh, x = mesh_of(), make_features((5, 3, 7))
    for shape in ((), (1,)):
        alone, tau = (leaf(torch.full(shape, 0.3, dtype=torch.float64)) for _ in range(2))
        drsn_ops.soft_threshold(x, alone).square().sum().backward()
        drsn_ops.soft_threshold(scatter(x, mesh, Shard(0)), tau).square().sum().backward()
        assert not isinstance(tau.grad, DTensor)
        torch.testing.assert_close(tau.grad, alone.grad)
    module = drsn_ops.SoftThreshold(init=0.3).double()
    torch.testing.assert_close(module(scatter(x, mesh, Shard(2))).full_tensor(), module(x))


@check
def a_process_outside_the_mesh():
    """It has nothing, and goes along."""
    mesh, x = DeviceMesh("cpu", [0]), make_features((4, 3, 7))
    for placement in (Shard(0), Shard(2)):
        sharded = leaf(distribute_tensor(x, mesh, [placement]))
        results = [
            drsn_ops.soft_threshold(sharded, 0.3),
            drsn_ops.abs_mean(sharded),
            drsn_ops.shrink(sharded, 0.5, residual=sharded),
        ]
        expected = [
            drsn_ops.soft_threshold(x, 0.3),
            drsn_ops.abs_mean(x),
            drsn_ops.shrink(x, 0.5, residual=x),
        ]
        for actual, wanted in zip(results, expected, strict=True):
            assert actual.shape == wanted.shape
            local = actual.to_local()
            torch.testing.assert_close(local, wanted if dist.get_rank() == 0 else wanted.new_empty(0))
            actual.sum().backward()


@check
def in_place_on_shards():
    mesh, x = mesh_of(), make_features((5, 3, 7))
    for placement in (Shard(0), Shard(1), Shard(2), Replicate()):
        start = leaf(scatter(x, mesh, placement))
        copy = start.clone()
        y = drsn_ops.shrink(copy, 0.5, inplace=True)
        assert y is copy
        torch.testing.assert_close(y.full_tensor(), drsn_ops.shrink(x, 0.5))
        y.sum().backward()
        plain = leaf(x)
        drsn_ops.shrink(plain, 0.5).sum().backward()
        torch.testing.assert_close(start.grad.full_tensor(), plain.grad)
        with torch.no_grad():
            assert drsn_ops.soft_threshold(copy, 0.1, inplace=True) is copy
        torch.testing.assert_close(copy.full_tensor(), drsn_ops.soft_threshold(drsn_ops.shrink(x, 0.5), 0.1))
        with pytest.raises(RuntimeError, match="leaf"):
            drsn_ops.soft_threshold(start, 0.1, inplace=True)


@check
def in_place_where_x_is_kept():
    """The backward pass of complex numbers and of the plain formulas is that of x before it was overwritten."""

    def gradient(function, start):
        function(start.clone(), 0.5, inplace=True).abs().square().sum().backward()
        return start.grad

    mesh, x = mesh_of(), make_features((5, 3, 7))
    z = torch.complex(x, x.flip(0))
    serves = autograd.serves
    for function, t, kernels in (
        (drsn_ops.soft_threshold, z, serves),
        (drsn_ops.soft_threshold, x, lambda x: False),
        (drsn_ops.shrink, x, lambda x: False),
    ):
        expected = gradient(function, leaf(t))
        for placement in (Shard(0), Shard(2), Replicate()):
            autograd.serves = kernels
            actual = gradient(function, leaf(scatter(t, mesh, placement)))
            autograd.serves = serves
            torch.testing.assert_close(actual.full_tensor(), expected)


@check
def errors_name_the_argument():
    mesh, other = mesh_of(), mesh_of(1, 2)
    x, tau = torch.randn(4, 6, 9), torch.rand(6, 1)
    sharded = scatter(x, mesh, Shard(0))
    for call in (
        lambda: drsn_ops.soft_threshold(sharded, tau),
        lambda: drsn_ops.soft_threshold(sharded, nn.Parameter(tau)),
    ):
        with pytest.raises(TypeError, match="^tau: got a plain tensor, expected a DTensor, as x is one"):
            call()
    with pytest.raises(TypeError, match="^tau: got a DTensor, expected a plain tensor, as x is one"):
        drsn_ops.soft_threshold(x, scatter(tau, mesh, Replicate()))
    with pytest.raises(TypeError, match="^alpha: got a plain tensor"):
        drsn_ops.shrink(sharded, torch.rand(6))
    with pytest.raises(TypeError, match="^residual: got a plain tensor"):
        drsn_ops.shrink(sharded, 0.5, residual=x)
    with pytest.raises(ValueError, match=r"^tau: got a DTensor on DeviceMesh\(.*, expected DeviceMesh\("):
        drsn_ops.soft_threshold(sharded, scatter(tau, other, Replicate(), Replicate()))
    with pytest.raises(ValueError, match=r"^alpha: got shape \(7,\), expected \(4, 6\), \(4, 1\) or \(6,\)"):
        drsn_ops.shrink(sharded, scatter(torch.rand(7), mesh, Replicate()))
    with pytest.raises(ValueError, match="^inplace: got True, expected False for an x with a pending"):
        drsn_ops.shrink(scatter(x, mesh, Partial()), 0.5, inplace=True)


@check
def the_module_on_shards():
    """The gate's parameters are replicated, or sharded by PyTorch's own tensor parallelism; x over batch or channel."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    mesh, x = mesh_of(), make_features((6, 4, 9))
    plans = {
        "replicated": lambda fc: distribute_module(fc, mesh),
        "parallel": lambda fc: parallelize_module(
            fc,
            mesh,
            {"0": ColwiseParallel(use_local_output=False), "3": RowwiseParallel(use_local_output=False)},
        ),
    }
    for thresholds in ("channel-wise", "channel-shared"):
        for norm in ("none", "layer", "rms"):
            for plan in plans if norm == "none" else ["replicated"]:
                torch.manual_seed(0)
                plain = drsn_ops.Shrinkage(4, thresholds, norm=norm).double()
                torch.manual_seed(0)
                module = drsn_ops.Shrinkage(4, thresholds, norm=norm).double()
                plans[plan](module.fc)
                source = leaf(x)
                plain(source, x).square().sum().backward()
                for placement in (Shard(0), Shard(1), Replicate()):
                    module.zero_grad()
                    sharded = leaf(scatter(x, mesh, placement))
                    module(sharded, sharded.detach()).square().sum().backward()
                    torch.testing.assert_close(sharded.grad.full_tensor(), source.grad)
                    for a, b in zip(module.parameters(), plain.parameters(), strict=True):
                        torch.testing.assert_close(a.grad.full_tensor(), b.grad)


class Normalised(nn.Module):
    """`batch_norm_shrink` with a BatchNorm in its gate."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.shrink = drsn_ops.Shrinkage(4)

    def forward(self, z):
        return drsn_ops.batch_norm_shrink(z, self.norm, self.shrink.fc, residual=z)


class Activated(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return drsn_ops.batch_norm_relu(x, self.norm)


@check
def batch_norms_on_shards():
    """They normalise over all shards, in training too."""
    try:
        distribute_module(nn.BatchNorm1d(4), mesh_of())(scatter(torch.randn(6, 4, 9), mesh_of(), Shard(0)))
    except NotImplementedError:
        pytest.skip("this PyTorch, 2.11, has no BatchNorm of shards")
    assert_modules_on_shards(
        (Normalised, (Shard(0),)),  # PyTorch's BatchNorm forgets to follow where channels are sharded
        (Activated, (Shard(0),)),
        (partial(drsn_ops.Shrinkage, 4), (Shard(0), Shard(1))),
    )


@check
def soft_thresholds_on_shards():
    """Each threshold of a SoftThreshold is a channel's."""
    assert_modules_on_shards((partial(drsn_ops.SoftThreshold, 4, 0.3), (Shard(0), Shard(1))))


def assert_modules_on_shards(*cases):
    """Each module that is made, in training and not, is on x of these placements what it is on the whole x."""
    mesh, x = mesh_of(), make_features((6, 4, 9))
    for make, placements in cases:
        start = randomise(make().double())
        for training in (True, False):
            for placement in placements:
                plain, module = (copy.deepcopy(start).train(training) for _ in range(2))
                distribute_module(module, mesh)
                source, sharded = leaf(x), leaf(scatter(x, mesh, placement))
                plain(source).square().sum().backward()
                module(sharded).square().sum().backward()
                torch.testing.assert_close(sharded.grad.full_tensor(), source.grad)
                for a, b in zip(module.parameters(), plain.parameters(), strict=True):
                    torch.testing.assert_close(a.grad.full_tensor(), b.grad)
                for a, b in zip(module.buffers(), plain.buffers(), strict=True):
                    torch.testing.assert_close(a.full_tensor(), b)


@check
def compiled_shards():
    """torch.compile takes calls on shards in one graph, with what they send to each other."""
    x, tau, alpha = make_features((5, 3, 7)), torch.rand(3, 1).double(), torch.rand(5, 3).double()

    def function(x, tau, alpha):
        return drsn_ops.shrink(drsn_ops.soft_threshold(x, tau), alpha)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert_equal_to_plain(compiled, mesh_of(), [Shard(2)], x=x, tau=tau, alpha=alpha)


class Denoiser(nn.Module):
    """Convolutions and a fused gate, by default with no statistics that couple samples."""

    def __init__(self, norm="layer"):
        super().__init__()
        self.first = nn.Conv1d(2, 6, 3, padding=1)
        self.shrink = drsn_ops.Shrinkage(6, norm=norm)
        self.threshold = drsn_ops.SoftThreshold(6)
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        h = self.first(x)
        return self.last(self.threshold(self.shrink(h, h)).mean(-1))


def denoiser(norm="layer"):
    torch.manual_seed(1)
    return Denoiser(norm).double()


def trained(network, x, y):
    """The losses and the parameters of a few steps, seen as whole tensors."""
    optimiser = torch.optim.SGD(network.parameters(), 0.5, momentum=0.9)
    losses = []
    for _ in range(3):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    whole = [p.full_tensor() if isinstance(p, DTensor) else p.detach() for p in network.parameters()]
    return torch.stack(losses), whole


def assert_trains_like_one_process(wrap):
    """Half the batch for each process: mean losses and parameters are those of one process with the whole batch."""
    x, y = torch.randn(8, 2, 21, dtype=torch.float64), torch.randint(0, 3, (8,))
    losses, parameters = trained(denoiser(), x, y)
    halves = (t.chunk(2)[dist.get_rank()] for t in (x, y))
    network = wrap(denoiser())
    found, actual = trained(network, *halves)
    dist.all_reduce(found)
    torch.testing.assert_close(found / 2, losses)
    torch.testing.assert_close(actual, parameters)
    return network, x


@check
def distributed_data_parallel():
    network, x = assert_trains_like_one_process(nn.parallel.DistributedDataParallel)
    assert "gated_shrink_" in operators_of(network, x)


def fully_sharded(network, **options):
    from torch.distributed.fsdp import fully_shard

    mesh = mesh_of()
    fully_shard(network.shrink, mesh=mesh, **options)
    return fully_shard(network, mesh=mesh, **options)


@check
def fully_sharded_data_parallel():
    network, x = assert_trains_like_one_process(fully_sharded)
    assert "gated_shrink_" in operators_of(network, x)


@check
def data_parallel_with_the_statistics_of_a_share():
    """The default gate, whose BatchNorm sees this process's samples: the fused operator is what its modules are."""
    x, y = torch.randn(4, 2, 21, dtype=torch.float64), torch.randint(0, 3, (4,))
    x += dist.get_rank()
    for wrap in (nn.parallel.DistributedDataParallel, fully_sharded):
        fused, modules = denoiser("batch"), denoiser("batch")
        modules.shrink.use_reference = True
        actual, expected = (trained(wrap(network), x, y) for network in (fused, modules))
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(fused.shrink.fc[1].running_var, modules.shrink.fc[1].running_var)
        assert "gated_shrink_" in operators_of(fused, x) and not operators_of(
            modules.shrink, x[:, :1].expand(4, 6, 21)
        )


@check
def fully_sharded_in_mixed_precision():
    """Parameters and activations in bfloat16, gradients and the optimiser in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    x, y = torch.randn(4, 2, 21), torch.randint(0, 3, (4,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fused, modules = denoiser().float(), denoiser().float()
    modules.shrink.use_reference = True
    actual, expected = (
        trained(fully_sharded(network, mp_policy=policy), x, y) for network in (fused, modules)
    )
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.005)
    assert fused.shrink.fc[0].weight.dtype == torch.float32


@check
def compiled_data_parallel():
    assert_trains_like_one_process(
        lambda network: torch.compile(
            nn.parallel.DistributedDataParallel(network), backend="aot_eager", dynamic=False
        )
    )


@check
def batch_norm_over_processes():
    """Values, gradients and running statistics of a BatchNorm over uneven shares, one of them empty."""
    for norm, shape in (
        (nn.BatchNorm1d, (7, 4)),
        (nn.BatchNorm1d, (7, 4, 5)),
        (nn.BatchNorm2d, (7, 4, 3, 5)),
    ):
        for options in ({}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}):
            for cut in (7, 4, 1):
                plain = randomise(norm(4, **options)).double()
                shared = copy.deepcopy(plain)
                share_batch_norms(shared)
                assert type(shared) is SharedBatchNorm
                x, weight = (torch.randn(shape, dtype=torch.float64) * 3 + 100 for _ in range(2))
                rows = (slice(None, cut), slice(cut, None))[dist.get_rank()]
                for _ in range(2):
                    source, part = leaf(x), leaf(x[rows])
                    expected, actual = plain(source), shared(part)
                    (expected * weight).sum().backward()
                    (actual * weight[rows]).sum().backward()
                    torch.testing.assert_close(actual, expected[rows])
                    torch.testing.assert_close(part.grad, source.grad[rows], atol=1e-9, rtol=1e-6)
                for mine, its in zip(shared.buffers(), plain.buffers(), strict=True):
                    torch.testing.assert_close(mine, its)
                for mine, its in zip(shared.parameters(), plain.parameters(), strict=True):
                    dist.all_reduce(mine.grad)
                    torch.testing.assert_close(mine.grad, its.grad, atol=1e-9, rtol=1e-6)
                torch.testing.assert_close(shared.eval()(x), plain.eval()(x))


@check
def batch_norm_keeps_its_digits():
    """Of float32 numbers far from 0 a variance as the difference of two mean squares would have no digit right."""
    norm = nn.BatchNorm1d(3)
    share_batch_norms(norm)
    x = torch.randn(64, 3) + 4096
    expected = nn.BatchNorm1d(3).double()(x.double())
    actual = norm(x.chunk(2)[dist.get_rank()])
    # a unit in the last place of the mean, 2 ** -12 at 4096, in units of a standard deviation of 1
    torch.testing.assert_close(actual.double(), expected.chunk(2)[dist.get_rank()], rtol=0, atol=2**-11)


@check
def batch_norm_refuses_one_value():
    norm = nn.BatchNorm1d(3)
    share_batch_norms(norm)
    with pytest.raises(ValueError, match="^x: got 1 values a channel in all processes, expected more"):
        norm(torch.randn(1 - dist.get_rank(), 3))
    with pytest.raises(ValueError, match=r"^x: got shape \(2, 4\), expected \(N, 3, \*spatial\)"):
        norm(torch.randn(2, 4))


@check
def the_gate_over_processes():
    """A Shrinkage with BatchNorm in its gate, on half a batch in each process, is that on the whole batch."""
    plain = randomise(drsn_ops.Shrinkage(4)).double()
    shared = copy.deepcopy(plain)
    share_batch_norms(shared)
    x = make_features((6, 4, 9))
    source, part = leaf(x), leaf(x.chunk(2)[dist.get_rank()])
    plain(source).square().sum().backward()
    shared(part).square().sum().backward()
    torch.testing.assert_close(part.grad, source.grad.chunk(2)[dist.get_rank()])
    torch.testing.assert_close(shared.fc[1].running_var, plain.fc[1].running_var)


@check
def sync_batch_norm_in_evaluation():
    """PyTorch's own conversion: the gate is called module by module, and in evaluation it is what it was."""
    plain = randomise(drsn_ops.Shrinkage(4)).double().eval()
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    x = make_features((6, 4, 9))
    assert type(converted.fc[1]) is nn.SyncBatchNorm
    with torch.no_grad():
        assert operators_of(plain, x) == ["gated_shrink"] and operators_of(converted, x) == [
            "abs_mean",
            "shrink",
        ]
        torch.testing.assert_close(converted(x), plain(x))


def assert_gradients_of_a_share(settings, data):
    """One step on an uneven share, with the L2 term: gradients are those of the whole batch."""

    def job(*shared_by):
        run = Run(settings, data, torch.device("cpu"), *shared_by)
        run.network.double()
        run.train_epoch(lambda: None)
        return run.network

    alone, shared = job(), job(Processes(dist.get_rank(), 2))
    assert alone.state_dict().keys() == shared.state_dict().keys()
    for (name, mine), its in zip(shared.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(
            mine.grad, its.grad, rtol=1e-7, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}"
        )


@check
def gradients_of_a_share_of_digits():
    settings = Settings("digits", "channel-wise", "drsn_ops", 1, 1437, 1e-3, 0.5, 0)
    data = load("digits", None, noise=0.5, seed=0)
    data = Dataset(*(Split(s.images.double(), s.labels) for s in data[:2]), data.mean.double())
    assert_gradients_of_a_share(settings, data)


@check
def gradients_of_a_share_of_augmented_images():
    """The recipe for CIFAR-10: its network, with SGD, on images that are shifted and mirrored at random."""
    settings = Settings("cifar10", "channel-shared", "drsn_ops", 1, 7, 0.1, 0.1, 0)
    split = Split(torch.rand(7, 3, 32, 32, dtype=torch.float64), torch.randint(0, 10, (7,)))
    assert_gradients_of_a_share(settings, Dataset(split, split, split.images.mean(0)))


@check
def recordings_are_shared():
    """An epoch of uneven shares, with weights of the classes: results, gradients and the weights that are kept."""

    def windows(count):
        labels = (torch.arange(count) % 7 == 0).long()
        return Windows(torch.randn(count, 2, 64, dtype=torch.float64), labels, torch.arange(count))

    reading = Reading(FileOptions(), Cutting(64, None, "none"))
    splits = [windows(count) for count in (27, 9, 3)]
    found = Recordings(*splits, ("a", "b"), (), reading, ())
    settings = RecordingSettings(
        "x", epochs=1, batch_size=9, lr=0.1, blocks=3, widths=(4, 4, 4), class_weights="balanced", points=64
    )

    def job(*shared_by):
        run = Run(settings, Loaded(found, ()), torch.device("cpu"), *shared_by)
        run.network.double()
        return run, run.epoch(lambda: None, lambda: None)

    (alone, expected), (shared, row) = job(), job(Processes(dist.get_rank(), 2))
    assert row.values()[:-1] == pytest.approx(expected.values()[:-1], rel=1e-7)
    assert shared.best.keys() == alone.best.keys()
    for name, tensor in shared.best.items():
        torch.testing.assert_close(tensor, alone.best[name], rtol=1e-7, atol=1e-9, msg=name)


@check
def the_leading_process_keeps_the_model():
    together = Processes(dist.get_rank(), 2)
    argv = (
        "train --data vibration --num-signals 48 --points 64 --blocks 3 --epochs 1 --output-dir run".split()
    )
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as out,
        TemporaryDirectory() as own,
    ):
        patch.setattr(train, "processes", lambda device: nullcontext(together))
        patch.chdir(own)
        assert main(argv) == 0
        assert Path("run/model.pt").exists() == Path("run/report.json").exists() == together.leads
        patch.undo()
    assert out.getvalue().count("by window: ") == together.leads


@check
def an_error_of_one_process_stops_all():
    together = Processes(dist.get_rank(), 2)
    for culprit in range(2):
        with pytest.raises((InputError, SystemExit)) as error, together.agreeing():
            if together.rank == culprit:
                raise InputError("files: not here")
        # the one that leads says what it was
        assert str(error.value) == ("files: not here" if together.leads else "2")
    with together.agreeing():
        pass


@check
def what_a_command_refuses_is_said_once():
    """By the process that leads; the other one ends in silence."""
    together = Processes(dist.get_rank(), 2)
    commands = (train, "train", "--resume", "nothing.pt"), (command, "experiment", "--column", "1")
    for module, *argv in commands:
        with pytest.MonkeyPatch.context() as patch, redirect_stderr(StringIO()) as err:
            patch.setattr(module, "processes", lambda device: nullcontext(together))
            assert status_of(main, argv) == 2
        assert err.getvalue().count(f"drsn_ops {argv[0]}: ") == err.getvalue().count("\n") == together.leads


@check
def an_experiment_of_two_processes():
    """Both agree on a folder, each trains half of the cells, and the one that leads reports on all."""
    together = Processes(dist.get_rank(), 2)
    argv = "experiment --num-signals 24 --points 64 --blocks 3 --epochs 1 --seeds 2 --noise-kind pink --snr 5".split()
    argv += ["--networks", "ResNet", "DRSN-CW", "--workers", "1"]
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(StringIO()) as out,
        TemporaryDirectory() as own,
    ):
        patch.setattr(command, "processes", lambda device: nullcontext(together))
        shared = [own]
        dist.broadcast_object_list(shared)
        patch.chdir(shared[0])
        assert main(argv) == 0
        dist.barrier()
        files = [path.name for path in Path("runs/experiment-small").rglob("*.*") if path.suffix != ".pt"]
        lines = Path("runs/experiment-small/results.csv").read_text().splitlines()
        dist.barrier()  # before the folder goes
        patch.undo()
    assert len(files) == 4 + 5 and len(lines) == 1 + 4, files
    printed = out.getvalue()
    assert printed.count(" dB  seed ") == 2
    assert printed.count("written:") == printed.count("0 of them done") == together.leads


NEED_EXTRAS = (
    "an_experiment_of_two_processes",
    "gradients_of_a_share_of_digits",
    "the_leading_process_keeps_the_model",
    "what_a_command_refuses_is_said_once",
)


@pytest.mark.parametrize("name", CHECKS)
def test_of_processes(outcomes, name):
    if name in NEED_EXTRAS:
        for package in ("sklearn", "matplotlib", "tqdm"):
            pytest.importorskip(package)
    for rank in range(PROCESSES):
        outcome = outcomes / f"{name}.{rank}"
        assert outcome.exists(), f"process {rank} did not come to it: another check failed or never ended"
        failure = outcome.read_text()
        if failure.startswith(SKIPPED):
            pytest.skip(failure.removeprefix(SKIPPED))
        assert not failure, failure
