"""Shrinkages with another rule: their values, gradients and state, and the tools that know them."""

import copy
import dataclasses
import functools
import io
import pickle
import warnings

import pytest
import torch
from checks import operators_of, randomise
from torch import nn

import drsn_ops
from drsn_ops import RSBU, Shrinkage, models, reference, rules
from drsn_ops.analysis.mistakes import GARROTE, HARD
from drsn_ops.modules import is_bare
from drsn_ops.variants.shrinkage import RULES

OTHERS = [rule for rule in RULES if rule != "soft"]
CW, CS = "channel-wise", "channel-shared"


def features(*shape, dtype=torch.float64, device="cpu"):
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=dtype).to(device)


def make(rule, *args, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return randomise(Shrinkage(*args, rule=rule, **options).double())


def by_hand(module, x, rule, statistic):
    """The module's result in plain PyTorch."""
    magnitude = x.abs().flatten(2) if x.dim() > 2 else x.abs()[..., None]
    means = magnitude.mean(-1)
    scope = means if statistic == "channel" else magnitude.mean((1, 2))[:, None]

    def spread(t):
        return (t * scope).reshape(len(x), -1, *(1,) * (x.dim() - 2))

    tau = spread(module.fc(means))
    if rule == "asymmetric":
        tau = torch.where(x < 0, spread(module.fc_negative(means)), tau)
        return x.sign() * (x.abs() - tau).relu()
    if rule == "learned-slope":
        slope = module.slope.reshape(1, -1, *(1,) * (x.dim() - 2))
        return torch.where(x.abs() <= tau, slope * x, x - x.sign() * (1 - slope) * tau)
    return getattr(rules, rule)(x, tau)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("thresholds, statistic", [(CW, None), (CS, None), (CW, "sample")])
@pytest.mark.parametrize("shape", [(3, 6), (3, 6, 49), (3, 6, 7, 9), (3, 6, 3, 4, 5)])
@pytest.mark.parametrize("rule", OTHERS)
def test_values_and_gradients(rule, shape, thresholds, statistic, device):
    module = make(rule, 6, thresholds, statistic=statistic, reduction=2).to(device)
    x = features(*shape, device=device).requires_grad_()
    residual = features(*shape, device=device).flip(0).requires_grad_()
    scope = statistic or {CW: "channel", CS: "sample"}[thresholds]
    inputs = (x, residual, *module.parameters())
    y = module(x, residual)
    close(y, by_hand(module, x, rule, scope) + residual)
    close(module(x), y - residual)
    g = features(*shape, device=device).flip(1)
    expected = torch.autograd.grad(by_hand(module, x, rule, scope) + residual, inputs, g, allow_unused=True)
    for actual, want in zip(torch.autograd.grad(y, inputs, g), expected, strict=True):
        close(actual, want)


@pytest.mark.parametrize("rule", OTHERS)
def test_gradcheck(rule, device):
    module = make(rule, 3, norm="none").to(device)
    x = features(2, 3, 5, device=device)
    with torch.no_grad():  # alpha is 1/2, and nothing lies at a kink
        for gate in module.fc, getattr(module, "fc_negative", module.fc):
            gate[3].weight.mul_(0.1)
            gate[3].bias.zero_()
    assert torch.autograd.gradcheck(module, x.requires_grad_())


def test_asymmetric_by_hand(device):
    """With weights of 0 and biases b, alpha is sigmoid(b): 1/2 above 0, 3/4 below."""
    module = Shrinkage(1, rule="asymmetric", norm="none").to(device)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    nn.init.constant_(module.fc_negative[3].bias, torch.logit(torch.tensor(0.75)).item())
    y = module(torch.tensor([[[4.0, 1.0, -1.0, -2.0]]], device=device))
    # the mean is 2: the thresholds are 1 and 1.5
    torch.testing.assert_close(y, torch.tensor([[[3.0, 0.0, 0.0, -0.5]]], device=device))


@pytest.mark.parametrize("rule", OTHERS)
def test_every_parameter_learns(rule):
    module = make(rule, 4, norm="none")
    module(features(3, 4, 20)).square().sum().backward()
    learning = {name for name, p in module.named_parameters() if p.grad.abs().sum() > 0}
    # hard: zeros, not None, as wrappers for several processes expect
    assert learning == (set() if rule == "hard" else set(dict(module.named_parameters())))


def test_a_hard_gate_says_that_it_does_not_learn():
    for rule in ("hard", rules.hard):
        with pytest.warns(UserWarning, match="'hard' passes no gradient") as caught:
            Shrinkage(4, rule=rule)
        assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rule in ("soft", "garrote", "slope"):
            Shrinkage(4, rule=rule)


class Power(nn.Module):
    """A rule of one's own, with a parameter."""

    def __init__(self):
        super().__init__()
        self.power = nn.Parameter(torch.tensor(2.0))

    def forward(self, x, tau):
        return x * (1 - (tau / (x.abs() + tau)) ** self.power)


def test_a_rule_of_ones_own(device):
    x = features(2, 3, 8, dtype=torch.float32, device=device)
    module = Shrinkage(3, rule=functools.partial(rules.firm, ratio=3)).to(device)
    tau = []
    module.rule = functools.partial(
        lambda x, t, keep: (keep(t), rules.firm(x, t, ratio=3))[1], keep=tau.append
    )
    torch.testing.assert_close(module(x), rules.firm(x, tau[0], ratio=3))
    assert tau[0].shape == (2, 3, 1)
    assert not torch._C._is_alias_of(Shrinkage(3, rule=lambda x, tau: x).to(device)(x), x)
    learned = Shrinkage(3, rule=Power()).to(device)
    learned(x).sum().backward()
    assert learned.rule.power.grad != 0 and "rule.power" in learned.state_dict()
    half = learned.to(torch.bfloat16)
    assert half(x.bfloat16()).dtype == torch.bfloat16


def test_the_paper_s_rule_as_a_function_is_the_fused_one():
    module = Shrinkage(3, rule=rules.soft)
    assert is_bare(module) and not any(is_bare(make(rule, 3)) for rule in OTHERS)


def test_a_batch_of_one_that_the_second_gate_alone_would_normalise():
    module = Shrinkage(4, rule="asymmetric")
    module.fc.eval()
    with pytest.raises(ValueError, match="x: got a batch of 1, expected at least 2 samples"):
        module(torch.zeros(1, 4, 8))


def test_errors():
    x = torch.zeros(2, 4, 8)
    for call, message in [
        (
            lambda: Shrinkage(4, rule="semi-soft"),
            "rule: got 'semi-soft', expected 'soft', 'hard', 'garrote', ",
        ),
        (lambda: Shrinkage(4, rule=None), "rule: got None, expected .* or a callable of"),
        (
            lambda: Shrinkage(4, rule="firm", inplace=True),
            "inplace: got True, expected False for another rule",
        ),
        (lambda: Shrinkage(3, rule="firm")(x), r"x: got shape \(2, 4, 8\), expected 3 channels on axis 1"),
        (lambda: Shrinkage(4, rule="firm")(x[:1]), "x: got a batch of 1, expected at least 2 samples"),
        (
            lambda: Shrinkage(4, rule="firm")(x, x[:1]),
            r"residual: got shape \(1, 4, 8\), expected \(2, 4, 8\)",
        ),
        (
            lambda: Shrinkage(4, rule=lambda x, tau: x[:1])(x),
            r"rule: returned shape \(1, 4, 8\), expected \(2, 4",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="rule: got int, expected a function that returns a tensor"):
        Shrinkage(4, rule=lambda x, tau: 1)(x)
    with pytest.raises(TypeError, match="x: got a tensor of torch.int64"):
        Shrinkage(4, rule="firm")(x.long())
    broken = Shrinkage(4, rule="firm", norm="none")
    broken.fc[3] = nn.Linear(4, 3)
    with pytest.raises(
        ValueError, match=r"gate: returned shape \(2, 3\), expected a tensor of shape \(2, 4\)"
    ):
        broken(x)


@pytest.mark.parametrize("rule", OTHERS)
def test_state_and_copies(rule):
    module = make(rule, 4)
    plain = set(Shrinkage(4).state_dict())
    more = {key.partition(".")[0] for key in set(module.state_dict()) - plain}
    assert more == {"asymmetric": {"fc_negative"}, "learned-slope": {"slope"}}.get(rule, set())
    assert f"inplace=False, rule='{rule}'" in repr(module)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    x = features(3, 4, 9)
    module.eval()
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False).eval()):
        assert torch.equal(other(x), module(x))
    fresh = make(rule, 4).eval()
    fresh.load_state_dict(module.state_dict())
    assert torch.equal(fresh(x), module(x))


def test_a_function_goes_by_its_name():
    assert "rule='firm'" in repr(Shrinkage(4, rule=rules.firm)) and "rule='Power'" not in repr(
        Shrinkage(4, rule=Power())
    )
    assert "rule" not in repr(Shrinkage(4))


def test_the_slope_of_each_gate_output():
    assert Shrinkage(4, rule="learned-slope").slope.tolist() == pytest.approx([0.1] * 4)
    assert Shrinkage(4, CS, rule="learned-slope").slope.shape == (1,)


def test_a_pickle_from_before_there_were_rules():
    module = Shrinkage(4).eval()
    new = ("rule", "pooling", "channel_dim", "varied")
    state = {name: value for name, value in vars(module).items() if name not in new}
    old = pickle.loads(pickle.dumps(module))
    old.__dict__.clear()
    old.__setstate__(state)
    x = features(3, 4, 9, dtype=torch.float32)
    assert old.rule == "soft" and is_bare(old) and torch.equal(old(x), module(x))
    assert repr(old) == repr(module) and "rule" not in repr(old)


@pytest.mark.parametrize("rule", RULES)
def test_reset_parameters(rule):
    module = make(rule, 4)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    module.reset_parameters()
    changed = {key for key, value in module.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if "batches" not in key}


@pytest.mark.parametrize("rule", RULES)
def test_the_reference_computes_it(rule):
    module = make(rule, 4)
    x = features(3, 4, 9)
    expected = module(x)
    module.use_reference = True
    close(module(x), expected)
    assert operators_of(module, x) == []


@pytest.mark.parametrize("rule", OTHERS)
def test_compiles_without_a_graph_break(rule):
    torch.compiler.reset()  # each rule is a recompilation of one function
    module = make(rule, 4, norm="layer").eval()
    call = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = features(3, 4, 9).requires_grad_()
    y = call(x, x)
    close(y, module(x, x))
    for actual, want in zip(
        torch.autograd.grad(y.square().sum(), [x, *module.parameters()]),
        torch.autograd.grad(module(x, x).square().sum(), [x, *module.parameters()]),
        strict=True,
    ):
        close(actual, want)
    assert call(features(5, 4, 7)).shape == (5, 4, 7)


@pytest.mark.parametrize("rule", [functools.partial(rules.firm, ratio=3), Power()], ids=["partial", "module"])
def test_rules_of_ones_own_compile_too(rule):
    torch.compiler.reset()
    module = make(rule, 4, norm="layer")
    x = features(3, 4, 9)
    close(torch.compile(module, fullgraph=True, backend="aot_eager")(x, x), module(x, x))


@pytest.mark.parametrize("rule", OTHERS)
def test_traced_and_exported(rule):
    module = make(rule, 4, norm="layer").eval()
    x = features(3, 4, 9)
    close(torch.fx.symbolic_trace(module)(x), module(x))
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    close(program.module()(features(5, 4, 9)), module(features(5, 4, 9)))


def test_hooks_on_the_gate_are_called():
    module, seen = make("garrote", 4), []
    for layer in (module.fc, *module.fc):
        layer.register_forward_hook(lambda *_: seen.append(1))
    module(features(3, 4, 9))
    assert len(seen) == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_types(dtype, device):
    x = features(4, 6, 30, device=device)
    for rule in OTHERS:
        module = make(rule, 6, norm="layer").to(device)
        expected = module(x.to(dtype).double())
        y = module.to(dtype)(x.to(dtype))
        assert y.dtype == dtype
        torch.testing.assert_close(y.double(), expected, rtol=0.05, atol=0.05)
        module.float()
        with torch.autocast(device.type if isinstance(device, torch.device) else device, torch.bfloat16):
            mixed = module(x.float())
        assert torch.equal(mixed, module(x.float()))


@pytest.mark.parametrize("rule", ["garrote", "asymmetric"])
def test_in_units_and_networks(rule):
    unit = randomise(RSBU(3, 6, stride=2, norm="none", rule=rule).double())
    x = features(4, 3, 9)
    h = unit.branch(x)
    close(unit(x), by_hand(unit.shrink, h, rule, "channel") + unit.shortcut(x))
    network = models.rsnet18().double().eval()
    block = network.conv2_x[0]
    block.shrinkage = make(rule, 64).eval()
    x = features(2, 64, 11).abs()
    h = torch.nn.Sequential(*list(block.residual_function)[:5])(x)
    close(block(x), (by_hand(block.shrinkage, h, rule, "channel") + x).relu())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("rule", ["garrote", "asymmetric"])
def test_in_the_paper_s_network(rule, training):
    """On the CPU its units are strided, and of few channels: what is fused there is the paper's rule alone."""
    network = randomise(models.drsn(blocks=3, rule=rule)).train(training)
    x, inputs = features(4, 1, 64, dtype=torch.float32), []
    for unit in network.units:
        unit.register_forward_hook(lambda unit, given, y: inputs.append((unit, given[0], y)))
    network(x)
    assert len(inputs) == 3
    for unit, given, y in inputs:
        exact = copy.deepcopy(unit).double()
        exact._forward_hooks.clear()
        given = given.double()
        h = exact.branch(given)
        expected = by_hand(exact.shrink, h, rule, "channel") + exact.shortcut(given)
        torch.testing.assert_close(y.double(), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("thresholds", [CW, CS])
def test_networks_have_the_rule_and_the_pooling(thresholds):
    network = models.drsn(blocks=3, thresholds=thresholds, rule="learned-slope", pooling="max", norm="layer")
    made = [unit.shrink for unit in network.units]
    assert {(one.rule, one.pooling, one.norm, one.thresholds) for one in made} == {
        ("learned-slope", "max", "layer", thresholds)
    }
    function = functools.partial(rules.firm, ratio=3)
    assert all(unit.shrink.rule is function for unit in models.drsn(blocks=3, rule=function).units)
    for fused in (models.drsn(blocks=3), models.drsn(blocks=3, rule=rules.soft, pooling="avg")):
        assert all(is_bare(unit.shrink) for unit in fused.units)
        operators = operators_of(fused.eval(), torch.randn(2, 1, 64))
        assert operators == operators_of(models.drsn(blocks=3).eval(), torch.randn(2, 1, 64)) != []


def test_networks_have_copies_of_a_rule_that_learns():
    """Their numbers are its own, which the networks' first weights do not replace."""

    class Rule(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.BatchNorm1d(4, eps=0.5), nn.Linear(3, 3, bias=False))

        def forward(self, x, tau):
            return x - tau

    rule = Rule()
    network = models.drsn(blocks=3, rule=rule)
    own = [unit.shrink.rule for unit in network.units]
    assert len({*own, rule}) == 4
    for one in own:
        assert torch.equal(one.layers[1].weight, rule.layers[1].weight) and one.layers[0].eps == 0.5
    network(torch.randn(2, 1, 64))


def test_first_weights_reach_both_gates():
    torch.manual_seed(0)
    network = models.drsn(widths=(64,), blocks=2, rule="asymmetric")
    for unit in network.units:
        for gate in (unit.shrink.fc, unit.shrink.fc_negative):
            assert gate[1].eps == 1e-5 and gate[1].weight.std() < 0.01
            for layer in (gate[0], gate[3]):
                std = (1.3 * 2 / 64) ** 0.5
                assert layer.weight.abs().max() <= 2 * std and not layer.bias.any()
                assert abs(layer.weight.std() / (0.8796 * std) - 1) < 0.05


def test_a_network_without_thresholds_takes_no_rule():
    for options, message in [
        ({"rule": "firm"}, "rule: got 'firm', expected 'soft' with thresholds=None"),
        ({"pooling": "max"}, "pooling: got 'max', expected 'avg' with thresholds=None"),
        ({"pooling": rules.soft}, "pooling: got <function soft.*, expected 'avg' with thresholds=None"),
    ]:
        for build in (models.drsn, functools.partial(RSBU, 4, 4)):
            with pytest.raises(ValueError, match=message):
                build(thresholds=None, **options)
    for options, message in [({"rule": "no"}, "rule: got 'no'"), ({"pooling": "no"}, "pooling: got 'no'")]:
        with pytest.raises(ValueError, match=message):
            models.drsn(**options)
    assert RSBU(4, 4, thresholds=None, rule=rules.soft).shrink is None


def test_a_network_of_another_rule_in_pytorch_s_tools():
    torch.compiler.reset()
    network = models.drsn(blocks=3, rule="garrote", pooling="avg+max", norm="layer").eval()
    x = torch.randn(3, 1, 64)
    expected = network(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(network)(x), expected)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(network))(x), expected)


@pytest.mark.parametrize("rule", OTHERS)
def test_converted_networks_have_it(rule):
    network = models.drsn(thresholds=None, blocks=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        report = drsn_ops.convert(network, rule=rule, norm="none")
    made = [module for module in network.modules() if isinstance(module, Shrinkage)]
    assert [module.rule for module in made] == [rule] * 3 and len(report.placements) == 3
    assert all(p.isfinite().all() for p in network.parameters())
    assert report.added == sum(p.numel() for module in made for p in module.parameters())
    network(torch.randn(2, 1, 64)).sum().backward()
    if rule == "learned-slope":
        assert all((module.slope == 0.1).all() for module in made)


def test_converted_networks_have_copies_of_a_rule_that_learns():
    network, rule = models.drsn(thresholds=None, blocks=3), Power()
    nn.init.constant_(rule.power, 3.5)
    drsn_ops.convert(network, rule=rule)
    own = [module.rule for module in network.modules() if isinstance(module, Shrinkage)]
    assert rule.power == 3.5 and [one.power.item() for one in own] == [3.5] * 3 and len({*own, rule}) == 4


@pytest.mark.parametrize("rule", RULES)
def test_inspection(rule, tmp_path):
    module = make(rule, 4, norm="none").eval()
    x = features(3, 4, 50)
    inspection = drsn_ops.inspect(module, x)
    (block,) = inspection.blocks
    close(block.passed, module(x))
    assert block.alpha.shape == block.tau.shape == (3, 4)
    close(block.tau, block.alpha * reference.abs_mean(x))
    close(block.zeroed, (module(x) == 0).double().mean(-1))
    assert (block.tau_negative is None) == (rule != "asymmetric")
    if block.tau_negative is not None:
        close(block.tau_negative, module.fc_negative(reference.abs_mean(x)) * reference.abs_mean(x))
        other = dataclasses.replace(block, tau_negative=3 * block.tau_negative)
        pictures = [
            dataclasses.replace(inspection, blocks=(one,)).plot(tmp_path / f"{i}.png").read_bytes()
            for i, one in enumerate((block, block, other))
        ]
        assert pictures[0] == pictures[1] != pictures[2]


@pytest.mark.parametrize("rule, mistake", [("hard", HARD), ("garrote", GARROTE), ("soft", None)])
def test_check_shrinkage_names_the_rule(rule, mistake):
    check = drsn_ops.check_shrinkage(make(rule, 8, norm="none"), 8)
    assert check.mistake == mistake and bool(check) == (rule == "soft")


@pytest.mark.parametrize("rule", ["firm", "smooth", "slope", "learned-slope", "asymmetric", "nonnegative"])
def test_check_shrinkage_finds_other_rules_wrong(rule):
    assert not drsn_ops.check_shrinkage(make(rule, 8, norm="none"), 8)
