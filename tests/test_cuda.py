"""What only a GPU can show: streams, captured graphs, several devices, sizes past 2^31, the end of its memory."""

import threading

import pytest
import torch
from checks import leaf, make_features, make_gate, randomise
from torch import nn

import drsn_ops
from drsn_ops import reference
from drsn_ops.functional import pre_activation

pytestmark = pytest.mark.cuda

LARGE = 2**31 + 2**20  # elements; as float16 4.3 GB
CYCLES = 100_000_000  # of the GPU's clock; some 50 ms


def make_steps(device):
    """Forward and backward of every operator, on sizes whose sums are split between blocks, and what they take."""
    torch.manual_seed(0)
    x = make_features((8, 16, 4096), device).float()
    last = make_features((8, 16, 31, 33), device).float().contiguous(memory_format=torch.channels_last)
    long = make_features((1, 2, 1_000_003), device).float()
    tau, alpha = torch.rand(16, 1).to(device), torch.rand(8, 16).to(device)  # the same on every device
    gate = make_gate(16, 16, 16).float().to(device)
    norm, norm_2d = (randomise(kind(16)).to(device) for kind in (nn.BatchNorm1d, nn.BatchNorm2d))
    parameters = [*gate.parameters()]

    def gated(x, *parameters):
        return drsn_ops.gated_shrink(x, gate)

    def normed(x, *parameters):
        return drsn_ops.batch_norm_shrink(x, norm, gate)

    def activated(x, *parameters):
        return drsn_ops.batch_norm_relu(x, norm)

    def strided(x, *parameters):
        """y and the shortcut of a residual unit's beginning."""
        return torch.cat([t.flatten() for t in pre_activation(x, norm if x.dim() == 3 else norm_2d, 2, 32)])

    return {
        "soft_threshold": (drsn_ops.soft_threshold, (x, tau)),
        "soft_threshold in place": (lambda x, tau: drsn_ops.soft_threshold(x * 1, tau, inplace=True), (x, tau)),
        "abs_mean": (drsn_ops.abs_mean, (x,)),
        "abs_mean of a sample": (lambda x: drsn_ops.abs_mean(x, statistic="sample"), (long,)),
        "shrink": (drsn_ops.shrink, (x, alpha)),
        "shrink of long rows": (lambda x, alpha: drsn_ops.shrink(x, alpha[:1, :2]), (long, alpha)),
        "shrink, channels last": (lambda x, alpha: drsn_ops.shrink(x, alpha, statistic="sample"), (last, alpha)),
        "gated_shrink": (gated, (x, *parameters)),
        "batch_norm_shrink": (normed, (x, *parameters, *norm.parameters())),
        "batch_norm_relu": (activated, (x, *norm.parameters())),
        "batch_norm_relu, strided": (strided, (x, *norm.parameters())),
        "batch_norm_relu, channels last": (strided, (last, *norm_2d.parameters())),
    }  # fmt: skip


STEPS = (
    "soft_threshold", "soft_threshold in place", "abs_mean", "abs_mean of a sample", "shrink", "shrink of long rows",
    "shrink, channels last", "gated_shrink", "batch_norm_shrink", "batch_norm_relu", "batch_norm_relu, strided",
    "batch_norm_relu, channels last",
)  # fmt: skip


@pytest.fixture(params=STEPS)
def step(request, device):
    """A function without arguments that returns a result and its gradients, and the inputs, which may be refilled."""
    function, inputs = make_steps(device)[request.param]
    inputs = [t if t.requires_grad else leaf(t) for t in inputs]
    # The same gradient each time, made of the input: no random numbers in a captured graph.
    wave = torch.sin(torch.arange(1 << 21, device=device, dtype=torch.float32))

    def run():
        y = function(*inputs)
        grad = wave[: y.numel()].as_strided(y.shape, y.stride())
        return y.detach(), *torch.autograd.grad(y, inputs, grad)

    return run, inputs


def same(results, others):
    """Whether all bits agree, as a tensor: nothing waits for the GPU."""
    pairs = zip(results, others, strict=True)
    return torch.stack([(a.eq(b) | (a.isnan() & b.isnan())).all() for a, b in pairs]).all()


def test_same_bits_in_a_thousand_runs(step):
    run, _ = step
    first = run()
    assert all(t.isfinite().all() for t in first)
    assert torch.stack([same(run(), first) for _ in range(1000)]).all()


def test_work_follows_the_current_stream(step):
    run, inputs = step
    with torch.no_grad():
        inputs[0].mul_(2)
    expected = run()
    with torch.no_grad():
        inputs[0].div_(2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)  # what another stream computed meanwhile would be of the old input
        with torch.no_grad():
            inputs[0].mul_(2)
        found = run()
    torch.cuda.current_stream().wait_stream(stream)
    assert same(found, expected)


def test_captured_graph_and_its_replays(step):
    run, inputs = step
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for scale in (1.0, -0.5, 3.0):
        with torch.no_grad():
            inputs[0].mul_(scale)
        expected = run()
        for _ in range(3):
            for t in captured:
                t.fill_(torch.nan)
            graph.replay()
            assert same(captured, expected)


@pytest.mark.parametrize("name", STEPS)
def test_threads_with_streams_of_their_own(device, name):
    def prepare():
        function, inputs = make_steps(device)[name]
        inputs = [leaf(t) for t in inputs]

        def run():
            y = function(*inputs)
            return y.detach(), *torch.autograd.grad(y.square().sum(), inputs[:1])

        return run

    runs = [prepare() for _ in range(2)]  # here: random numbers have one seed
    expected = runs[0]()
    torch.cuda.synchronize()
    verdicts = {}

    def work(index):
        with torch.cuda.stream(torch.cuda.Stream()):
            verdicts[index] = all(bool(same(runs[index](), expected)) for _ in range(50))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verdicts == {0: True, 1: True}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", STEPS)
def test_tensors_of_a_device_that_is_not_the_current_one(device, name):
    current = torch.device("cuda", torch.cuda.current_device())
    results = []
    for place in (torch.device("cuda", 1 - current.index), current):
        function, inputs = make_steps(place)[name]
        inputs = [leaf(t) for t in inputs]
        y = function(*inputs)
        (dx,) = torch.autograd.grad(y.square().sum(), inputs[0])
        assert y.device == dx.device == place
        results.append((y.detach().cpu(), dx.cpu()))
    assert same(*results)


@pytest.mark.xdist_group("memory")
class TestPast2To31:
    """In slices against float64: both ends, and where a signed 32-bit index of elements or bytes turns over."""

    @pytest.fixture(autouse=True)
    def memory(self, device):
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info(device)
        if free < 40e9:
            pytest.skip(f"needs 40 GB of the GPU's memory, and {free / 1e9:.0f} GB are free")
        yield
        torch.cuda.empty_cache()

    @staticmethod
    def slices(numel):
        return [slice(max(start, 0), start + 4096) for start in (0, 2**30 - 2048, 2**31 - 2048, numel - 4096)]

    @pytest.mark.parametrize("numel", [LARGE, LARGE + 1])
    def test_soft_threshold(self, device, numel):
        x = torch.empty(numel, dtype=torch.float16, device=device).uniform_(-1, 1)
        inputs = leaf(x), torch.tensor(0.5, device=device, requires_grad=True)
        y = drsn_ops.soft_threshold(*inputs)
        grad = torch.empty_like(x).uniform_(-1, 1)
        dx, dtau = torch.autograd.grad(y, inputs, grad)
        for part in self.slices(numel):
            expected = reference.soft_threshold(x[part].double(), 0.5)
            assert torch.equal(y[part], expected.half())
            assert torch.equal(dx[part], torch.where(x[part].abs() > 0.5, grad[part], 0))
        sums = sum(
            -(g.double() * v.sign() * (v.abs() > 0.5)).sum()
            for v, g in zip(x.split(2**26), grad.split(2**26), strict=True)
        )
        assert abs(dtau.item() - sums.item()) < 1.0  # of some 1.9e4, the root of a third of 2^30 terms

    @pytest.mark.parametrize(
        "shape, channels_last",
        [
            ((2, 4, LARGE // 8), False),
            ((2, 5, LARGE // 10 + 3), False),
            ((LARGE // 28 + 1, 4, 7), False),
            ((2, 8, LARGE // 16), True),
        ],
        ids=str,
    )
    def test_shrink(self, device, shape, channels_last):
        n, c, length = shape
        memory = torch.empty(n * c * length, dtype=torch.float16, device=device).uniform_(-1, 1)
        x = memory.view(n, length, c).mT if channels_last else memory.view(shape)
        x, alpha = leaf(x), torch.rand(n, c, device=device, requires_grad=True)
        y, tau = drsn_ops.shrink(x, alpha, return_threshold=True)
        grad = torch.empty_like(x).uniform_(-1, 1)
        dx, dalpha = torch.autograd.grad(y, (x, alpha), grad)
        rows = [(0, 0), (n // 2, c // 2), (n - 1, c - 1)]
        for row in rows:
            wide, g = x.detach()[row].double(), grad[row].double()
            mean = wide.abs().mean()
            threshold = tau.detach()[row].double()
            torch.testing.assert_close(threshold, alpha.detach()[row].double() * mean, rtol=1e-6, atol=0)
            expected = reference.soft_threshold(wide, threshold)
            torch.testing.assert_close(y[row].double(), expected, rtol=2**-11, atol=1e-6)
            active = wide.abs() > threshold
            along = (g * wide.sign() * active).sum()
            torch.testing.assert_close(
                dalpha[row].double(), -along * mean, rtol=1e-4, atol=1e-4 * length**0.5
            )
            share = -along * alpha.detach()[row].double() / length
            torch.testing.assert_close(
                dx[row].double(), g * active + share * wide.sign(), rtol=2**-10, atol=1e-5
            )

    @pytest.mark.parametrize(
        "shape, channels_last", [((2, 4, LARGE // 8), False), ((2, 8, LARGE // 16), True)], ids=str
    )
    def test_batch_norm_relu(self, device, shape, channels_last):
        n, c, length = shape
        memory = torch.empty(n * c * length, dtype=torch.float16, device=device).uniform_(-1, 1)
        x = leaf(memory.view(n, length, c).mT if channels_last else memory.view(shape))
        norm = nn.BatchNorm1d(c, momentum=1.0).to(device)
        y = drsn_ops.batch_norm_relu(x, norm)
        grad = torch.empty_like(x).uniform_(-1, 1)
        dx, dweight, dbias = torch.autograd.grad(y, (x, norm.weight, norm.bias), grad)
        for channel in (0, c // 2, c - 1):
            wide = x.detach()[:, channel].double()
            var, mean = torch.var_mean(wide)
            torch.testing.assert_close(norm.running_mean[channel].double(), mean, rtol=0, atol=1e-5)
            torch.testing.assert_close(norm.running_var[channel].double(), var, rtol=1e-5, atol=0)
            xhat = (wide - mean) * (var + norm.eps).rsqrt()
            torch.testing.assert_close(y.detach()[:, channel].double(), xhat.relu(), rtol=2**-10, atol=1e-5)
            g = grad[:, channel].double() * (xhat > 0)
            atol = 1e-4 * g.numel() ** 0.5
            torch.testing.assert_close(dbias[channel].double(), g.sum(), rtol=1e-4, atol=atol)
            torch.testing.assert_close(dweight[channel].double(), (g * xhat).sum(), rtol=1e-4, atol=atol)
            expected = (g - g.mean() - xhat * (g * xhat).mean()) * (var + norm.eps).rsqrt()
            far = xhat.abs() > 1e-5  # rounding puts no such element on the other side of 0
            torch.testing.assert_close(dx[:, channel].double()[far], expected[far], rtol=2**-10, atol=1e-5)


@pytest.mark.xdist_group("memory")
class TestTheEndOfTheMemory:
    """Refused with PyTorch's words and nothing written, and the process goes on."""

    @pytest.fixture
    def limit(self, device):
        """A function that leaves no room for more than what is there."""
        total = torch.cuda.get_device_properties(device).total_memory

        def leave_no_room():
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)

        yield leave_no_room
        torch.cuda.set_per_process_memory_fraction(1.0)

    @pytest.mark.parametrize("inplace", [False, True])
    @pytest.mark.parametrize("name, shape", [("soft_threshold", (64, 1)), ("shrink", (64,))])
    def test_is_survived(self, device, limit, name, shape, inplace):
        function = getattr(drsn_ops, name)
        x = torch.randn(256, 64, 4096, device=device)
        before = x.clone()
        threshold = torch.full(shape, 0.5, device=device, requires_grad=True)
        limit()
        # in place, what there is no room for is the mask, of 2 or 3 bits an element
        with pytest.raises(
            torch.OutOfMemoryError, match=r"CUDA out of memory: drsn_ops asked PyTorch for a tensor of shape"
        ):
            function(x, threshold, inplace=inplace)
        torch.cuda.set_per_process_memory_fraction(1.0)
        assert torch.equal(x, before)
        y = function(x, threshold)
        y.sum().backward()
        assert y.isfinite().all() and threshold.grad.isfinite().all()
