"""Modules that are copied, saved, moved and shared, and operators in other threads and processes."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from checks import make_features, randomise
from torch.func import functional_call, stack_module_state, vmap
from torch.utils.data import DataLoader, TensorDataset

import drsn_ops

ROOT = Path(drsn_ops.__file__).parents[1]
MODULES = {
    "SoftThreshold": lambda: drsn_ops.SoftThreshold(4, 0.2),
    "Shrinkage": lambda: drsn_ops.Shrinkage(4, reduction=2),
    "RSBU": lambda: drsn_ops.RSBU(4, 8, stride=2, thresholds="channel-shared"),
    "drsn": lambda: drsn_ops.models.drsn(4, 3, blocks=3),
}


@pytest.fixture(params=MODULES)
def module(request, device):
    return randomise(MODULES[request.param]()).to(device).eval()


@pytest.fixture
def x(device):
    return make_features((5, 4, 16), device).float()


def through_a_file(state, **options):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, **options)


def test_copies(module, x):
    expected = module(x)
    copies = {
        "deepcopy": copy.deepcopy(module),
        "pickle": pickle.loads(pickle.dumps(module)),
        "torch.save": through_a_file(module, weights_only=False),
    }
    for made in copies.values():
        assert made is not module and torch.equal(made(x), expected)
    with torch.no_grad():
        for parameter in copies["deepcopy"].parameters():
            parameter.add_(1)
    assert torch.equal(module(x), expected)


def test_a_copy_after_a_training_step_trains(module, x):
    module.train()
    module(x).sum().backward()
    twin = copy.deepcopy(module)
    for each in (module, twin):
        each.zero_grad()
        each(x).square().sum().backward()
    for a, b in zip(module.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_state_dict_from_a_file_of_weights_alone(module, x, request):
    state = through_a_file(module.state_dict(), weights_only=True)
    fresh = MODULES[request.node.callspec.params["module"]]().to(x.device).eval()
    assert not torch.equal(fresh(x), module(x))
    fresh.load_state_dict(state)
    assert torch.equal(fresh(x), module(x))


def test_on_meta_and_back(module, x, request):
    make = MODULES[request.node.callspec.params["module"]]
    with torch.device("meta"):
        empty = make().eval()
        y = empty(torch.empty_like(x, device="meta"))
    assert y.is_meta and y.shape == module(x).shape
    empty.to_empty(device=x.device).load_state_dict(module.state_dict())
    assert torch.equal(empty(x), module(x))
    with torch.device("meta"):
        assigned = make().eval()
    assigned.load_state_dict(module.state_dict(), assign=True)
    assert torch.equal(assigned(x), module(x))


def test_training_on_meta(module, x):
    """Shapes of gradients, of second ones too, without a number."""
    module = module.to("meta").train()
    leaf = x.to("meta").requires_grad_()
    y = module(leaf)
    grads = torch.autograd.grad(y.square().sum(), [leaf, *module.parameters()], create_graph=True)
    assert [g.shape for g in grads] == [leaf.shape, *(p.shape for p in module.parameters())]
    (second,) = torch.autograd.grad(grads[0].square().sum(), leaf)
    assert second.is_meta and second.shape == leaf.shape


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double", "to"])
def test_other_types(module, x, convert):
    converted = copy.deepcopy(module)
    converted = converted.to(torch.float16) if convert == "to" else getattr(converted, convert)()
    dtype = next(converted.parameters()).dtype
    y = converted(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), module(x), rtol=0.05, atol=0.05)


def test_functional_call_and_ensembles(module, x):
    others = [randomise(copy.deepcopy(module)) for _ in range(3)]
    for other in others:
        state = dict(other.state_dict())
        with torch.no_grad():  # as the state asks for no gradient
            assert torch.equal(functional_call(module, state, (x,)), other(x))
    base = copy.deepcopy(others[0]).to("meta")
    parameters, buffers = stack_module_state(others)
    found = vmap(lambda p, b: functional_call(base, (p, b), (x,)))(parameters, buffers)
    torch.testing.assert_close(found, torch.stack([other(x) for other in others]), rtol=1e-4, atol=1e-4)


def shrunk(item):
    return drsn_ops.soft_threshold(item[0], 0.5)


def collate(items):
    return torch.stack([shrunk(item) for item in items])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_of_a_data_loader(context):
    data = torch.randn(8, 3, 70_000)
    expected = drsn_ops.soft_threshold(data, 0.5)  # with PyTorch's threads, before there is a worker
    loader = DataLoader(
        TensorDataset(data),
        batch_size=2,
        num_workers=2 if context == "fork" else 1,  # a spawned one imports everything again
        collate_fn=collate,
        multiprocessing_context=context,
        timeout=300,
    )
    assert torch.equal(torch.cat(list(loader)), expected)


def test_fork_after_use():
    """As for PyTorch's own operators: one thread in the child, because a fork does not copy the pool's threads."""
    program = """
import os, signal, torch, drsn_ops
torch.set_num_threads(2)
x = torch.randn(64, 16, 1024, requires_grad=True)
shrinkage = drsn_ops.Shrinkage(16)
def step():
    return torch.autograd.grad(shrinkage(x).square().sum(), x)[0]
expected = step()
child = os.fork()
if child == 0:
    signal.alarm(120)
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(step(), expected) else 1)
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    # where there is a GPU, autograd has a thread for it, and refuses to run in the child
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, env=environment)


def add_one(module):
    torch.set_num_threads(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)


def test_shared_memory(x):
    module = drsn_ops.Shrinkage(4).eval()
    module.share_memory()
    assert all(parameter.is_shared() for parameter in module.parameters())
    expected = copy.deepcopy(module)
    add_one(expected)
    process = torch.multiprocessing.get_context("fork").Process(target=add_one, args=(module,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert torch.equal(module(x.cpu()), expected(x.cpu()))


def test_one_thread_more_or_less(x):
    module = drsn_ops.Shrinkage(4).eval()
    wide = torch.randn(64, 4, 4096)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(module(wide))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


def test_import_brings_no_heavy_package():
    """Nor does the command that prints what was built."""
    program = (
        "import sys, torch; before = set(sys.modules); import drsn_ops\n"
        "from drsn_ops.__main__ import main; assert main(['info']) == 0; print('imported:')\n"
        "heavy = {'sympy', 'onnx', 'lightning', 'matplotlib', 'sklearn', 'scipy', 'tqdm', 'torch._dynamo',\n"
        "         'torch._inductor', 'torch.distributed.tensor', 'torch.onnx._internal'}\n"
        "print(*sorted(heavy & (set(sys.modules) - before)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.stdout.splitlines()[-2:] == ["imported:", ""]
