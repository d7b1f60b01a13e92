"""torch.fx.symbolic_trace: functions are nodes, modules are traced, and the graph computes the same."""

import copy
import io
import pickle

import pytest
import torch
from checks import operators_of, randomise
from torch import fx, nn
from torch.overrides import TorchFunctionMode

import drsn_ops
from drsn_ops import RSBU, Shrinkage, SoftThreshold, abs_mean, shrink, soft_threshold
from drsn_ops.models import convnet, drsn, drsn_cifar10, drsn_mnist, rsnet18, rsnet34
from drsn_ops.models.rsnet import RSNetBlock


class Learned(nn.Module):
    """A user's own module, which imports the functions by name."""

    def __init__(self):
        super().__init__()
        self.tau = nn.Parameter(torch.full((4, 1), 0.3))
        self.gate, self.norm = Shrinkage(4).fc, nn.BatchNorm1d(4)

    def forward(self, x):
        y = soft_threshold(x, self.tau) + soft_threshold(x, 0.5)
        y, tau = shrink(y, self.gate(abs_mean(y)), return_threshold=True, residual=x)
        z = drsn_ops.batch_norm_relu(y, self.norm)
        return drsn_ops.batch_norm_shrink(y, self.norm, self.gate) + tau.unsqueeze(2) + z


def converted():
    model = rsnet18(4, 3, thresholds=None)
    drsn_ops.convert(model, norm="layer")
    return model


MODULES = {
    "SoftThreshold": SoftThreshold,
    "SoftThreshold by channel": lambda: SoftThreshold(4),
    "Shrinkage": lambda: Shrinkage(4),
    "Shrinkage by group": lambda: Shrinkage(4, "channel-shared", norm="rms", inplace=True),
    "RSBU": lambda: RSBU(4, 6, stride=2, norm="layer"),
    "RSBU without thresholds": lambda: RSBU(4, 4, thresholds=None),
    "RSNetBlock": lambda: RSNetBlock(4, 6, stride=2),
    "functions": Learned,
    "drsn": lambda: drsn(4, 3, blocks=3),
    "convnet": lambda: convnet(4, 3, blocks=3),
    "drsn_mnist": lambda: drsn_mnist(4),
    "drsn_cifar10": lambda: drsn_cifar10(4),
    "rsnet18": lambda: rsnet18(4, 3, reduction=8),
    "rsnet34": lambda: rsnet34(4, 3, reduction=16, thresholds="channel-shared"),
    "converted": converted,
}
modules = pytest.mark.parametrize("name", MODULES)


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setattr(drsn_ops.models.rsnet, "WIDTHS", (4, 4, 8, 8))


def make(name):
    torch.manual_seed(0)
    module = randomise(MODULES[name]()).double()
    return module, fx.symbolic_trace(copy.deepcopy(module))  # it shares modules with what is traced


def make_inputs(name):
    shapes = (
        ((3, 4, 8, 8), (2, 4, 7, 9)) if name in ("drsn_mnist", "drsn_cifar10") else ((3, 4, 16), (2, 4, 33))
    )
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def step(module, x):
    """The result, the gradients and the statistics of a training step."""
    y = module(x * 1)  # which an in-place module may overwrite
    parameters = dict(module.named_parameters())
    gradients = torch.autograd.grad(y.square().sum(), list(parameters.values()))
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    return y, dict(zip(parameters, gradients, strict=True)), buffers


def pickled(traced):
    return pickle.loads(pickle.dumps(traced))


def saved(traced):
    file = io.BytesIO()
    torch.save(traced, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def agree(traced, module, name):
    for train in (True, False):
        module.train(train), traced.train(train)
        for x in make_inputs(name):
            torch.testing.assert_close(step(traced, x), step(module, x), rtol=1e-8, atol=1e-8)


@modules
def test_the_traced_module_computes_the_same(name):
    module, traced = make(name)
    agree(traced, module, name)


@modules
def test_copies_of_the_traced_module_compute_the_same(name):
    module, traced = make(name)
    traced.graph.lint()
    for copied in (pickled(traced), saved(traced), copy.deepcopy(traced)):
        agree(copied, copy.deepcopy(module), name)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    agree(traced, module, name)


@modules
def test_no_node_overwrites_another(name):
    """What was kept of every node is what it was: those who look for features read them from nodes."""
    _, traced = make(name)

    class Kept(fx.Interpreter):
        def run_node(self, node):
            y = super().run_node(node)
            if isinstance(y, torch.Tensor):
                kept[node] = y, y.detach().clone()
            return y

    kept = {}
    Kept(traced).run(make_inputs(name)[0])
    overwritten = {node.op for node, (now, then) in kept.items() if not torch.equal(now, then)}
    # a shrinkage that is to overwrite its input does so
    assert overwritten == ({"placeholder"} if name == "Shrinkage by group" else set())


def test_functions_are_nodes_and_gates_are_modules():
    traced = fx.symbolic_trace(Shrinkage(4, norm="none"))
    calls = [node.target for node in traced.graph.nodes if node.op in ("call_function", "call_module")]
    assert {abs_mean, shrink, "fc.0", "fc.2", "fc.3", "fc.4"} < set(calls)
    x, residual = torch.randn(2, 2, 4, 9)
    with torch.no_grad():
        assert operators_of(traced, x) == ["abs_mean", "shrink"]
    torch.testing.assert_close(traced(x, residual), traced(x) + residual)


def test_the_type_of_a_gate_is_not_fixed_by_the_trace():
    module = Shrinkage(4, norm="layer").eval()
    traced = fx.symbolic_trace(copy.deepcopy(module))
    x = torch.randn(2, 4, 9)
    for dtype in (torch.bfloat16, torch.float64):
        module.to(dtype), traced.to(dtype)
        for given in (x, x.to(dtype)):
            tolerance = 0.05 if dtype == torch.bfloat16 else 1e-6
            torch.testing.assert_close(traced(given), module(given), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    "name, shape, message",
    [
        (
            "SoftThreshold by channel",
            (2, 3, 8),
            r"x: got shape \(2, 3, 8\), expected 4 \(num_parameters\) on axis 1",
        ),
        ("Shrinkage", (2, 3, 8), r"x: got shape \(2, 3, 8\), expected 4 channels on axis 1"),
        ("RSBU", (2, 4), r"x: got shape \(2, 4\), expected \(N, 4, L1\)"),
        ("rsnet18", (2, 4, 8, 8), r"x: got shape \(2, 4, 8, 8\), expected \(N, 4, L1\)"),
    ],
)
def test_the_traced_module_checks_its_input(name, shape, message):
    _, traced = make(name)
    with pytest.raises(ValueError, match=message):
        traced(torch.zeros(shape, dtype=torch.float64))


def test_a_check_is_no_dead_code():
    traced = fx.symbolic_trace(nn.Sequential(SoftThreshold(4), RSBU(4, 6)))
    checks = [node.target.__name__ for node in traced.graph.nodes if not node.users and node.op != "output"]
    assert checks == ["require_channels", "require_input", "require_channels"]
    assert not traced.graph.eliminate_dead_code()
    traced.recompile()
    with pytest.raises(ValueError, match=r"x: got shape \(2, 3, 8\), expected 4"):
        traced(torch.zeros(2, 3, 8))


@pytest.mark.parametrize("name", ["RSBU", "drsn", "RSNetBlock", "rsnet18", "converted"])
def test_a_shrinkage_may_be_a_leaf(name):
    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, Shrinkage) or super().is_leaf_module(module, name)

    module, _ = make(name)
    traced = fx.GraphModule(module, Tracer().trace(module))
    targets = {node.target for node in traced.graph.nodes if node.op == "call_module"}
    shrinkages = {at for at, one in module.named_modules() if isinstance(one, Shrinkage)}
    assert shrinkages and shrinkages <= targets
    agree(traced, copy.deepcopy(module), name)


FUNCTIONS = {
    "soft_threshold": lambda x: soft_threshold(x, 0.5),
    "soft_threshold by a tensor": lambda x: soft_threshold(torch.ones(2, 3, 4), x),
    "abs_mean": lambda x: abs_mean(x, statistic="sample"),
    "shrink": lambda x: shrink(x, 0.5, residual=x),
    "gated_shrink": lambda x: drsn_ops.gated_shrink(x, Shrinkage(3, norm="none").fc.requires_grad_(False)),
}
functions = pytest.mark.parametrize("name", FUNCTIONS)


@functions
def test_a_subclass_of_tensor_comes_out_as_of_any_function_of_pytorch(name):
    class Own(torch.Tensor):
        seen = []

        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            cls.seen.append(function)
            return super().__torch_function__(function, types, args, kwargs)

    x = torch.rand(2, 3, 4)
    torch.manual_seed(0)
    y = FUNCTIONS[name](x.as_subclass(Own))
    assert type(y) is Own
    assert name == "gated_shrink" or {soft_threshold, abs_mean, shrink} & set(Own.seen)
    torch.manual_seed(0)
    torch.testing.assert_close(y.as_subclass(torch.Tensor), FUNCTIONS[name](x))


@functions
def test_a_mode_sees_the_function(name):
    class Seen(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **(kwargs or {}))

    seen = []
    x = torch.rand(2, 3, 4)
    torch.manual_seed(0)
    with Seen():
        y = FUNCTIONS[name](x)
    torch.manual_seed(0)
    assert torch.equal(y, FUNCTIONS[name](x))
    assert name == "gated_shrink" or {soft_threshold, abs_mean, shrink} & set(seen)


@pytest.mark.parametrize("requires_grad", [False, True])
@functions
def test_compile_under_a_default_device(name, requires_grad, no_caches):
    """A default device is a mode that every function is asked of."""
    x = torch.rand(2, 3, 4, requires_grad=requires_grad)
    torch.manual_seed(0)
    expected = FUNCTIONS[name](x)
    torch.manual_seed(0)
    with torch.device("cpu"):
        torch.testing.assert_close(torch.compile(FUNCTIONS[name], backend="aot_eager")(x), expected)
