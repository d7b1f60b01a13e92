"""The benchmark's logic, without a look at the times that it finds."""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from test_data import write_mnist

from benchmarks import __main__ as command
from benchmarks import commits, host, images, recordings, report, tables
from benchmarks import rows as rows_module
from benchmarks.grid import cpu_cases, cuda_cases, modes_of
from benchmarks.rows import environment, kept_for_backward, labels, peak_bytes, rows_of, slug
from drsn_ops import reference
from drsn_ops.benchmark import command as bench
from drsn_ops.benchmark import contest, formulas
from drsn_ops.benchmark.cases import DIRECTIONS, OPERATORS, Case, bytes_moved
from drsn_ops.benchmark.contest import Contender, Inputs, measure
from drsn_ops.benchmark.formulas import providers
from drsn_ops.machine import last_level_cache

SIZES = ((2, 3, 64), (4, 3, 64), (2, 3, 128))
KEYS = set(
    "operator direction shape dtype layout provider timer samples p20_us p50_us p80_us bytes copy_us fraction "
    "saved_bytes saved_bytes_per_element kept_bytes peak_bytes machine gpu driver cuda torch threads simd commit "
    "date".split()
)
CASES = [
    Case(operator, direction, shape)
    for operator in OPERATORS
    for direction in DIRECTIONS
    for shape in ((4, 4), (3, 5, 17), (2, 3, 4, 5))
    if operator not in ("abs_mean", "batch_norm_relu") or direction != "inference in place"
]


@pytest.fixture(autouse=True)
def small_pool(monkeypatch):
    """Two inputs, whatever their size."""
    monkeypatch.setattr(contest, "MAX_POOL", 2)


def test_pools_of_cold_inputs_are_together_larger_than_the_cache(monkeypatch):
    monkeypatch.setattr(contest, "MAX_POOL", 10_000)
    monkeypatch.setattr(contest, "last_level_cache", lambda: 1 << 20)
    small, large = (Case("shrink", "inference", (2, 4, length), timer="cold") for length in (1024, 1 << 18))
    for contenders in (1, 5, 11):
        pools = contenders * contest.pool_size(small, small.nbytes, contenders) * small.nbytes
        assert 2 << 20 <= pools < (2 << 20) + contenders * small.nbytes
        assert contest.pool_size(large, large.nbytes, contenders) == 1
    assert last_level_cache() >= 1 << 16


@pytest.mark.parametrize(("length", "cold"), [(64, True), (1 << 11, False)])
def test_cold_contenders_have_inputs_of_their_own_and_take_turns(length, cold, monkeypatch):
    """Until x itself is larger than what the cache is to forget; then they share it."""
    monkeypatch.setattr(contest, "last_level_cache", lambda: 1 << 12)
    calls = []
    call = Contender.call

    def recorded(self, index, state):
        calls.append(
            (self.name, index, self.inputs.x[index])
        )  # kept: of memory that is free, others take the address
        return call(self, index, state)

    monkeypatch.setattr(Contender, "call", recorded)
    results = measure(Case("shrink", "forward", (1, 4, length), timer="cold"), (), rounds=1, seconds=0.0)
    names = [runner.name for runner, _ in results[1:]]
    pointers = {x.data_ptr() for _, _, x in calls}
    assert names == ["drsn_ops", "eager/naive", "eager/tidy", "eager/strong"]
    if cold:
        turns = [(name, index) for index in range(2) for name in names]
        assert [one[:2] for one in calls[-2 * len(turns) :]] == 2 * turns and len(pointers) > len(turns)
        assert all(len(times) == 4 for _, times in results)
    else:
        assert len(pointers) == 2  # of the reference and of all others


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def by_reference(case, x, threshold, residual):
    """The case's operator in float64, the definition."""
    if case.operator == "soft_threshold":
        return reference.soft_threshold(x, threshold)
    if case.operator == "abs_mean":
        return reference.abs_mean(x)
    return reference.shrink(x, threshold, residual=residual)


def expected(contender, index):
    """What ``call`` has to return, from the definition in float64 on the same numbers."""
    case, inputs = contender.case, contender.inputs
    if case.operator == "batch_norm_relu":
        twin = Contender(
            case, "twin", formulas.functions(case, reference), inputs.first(case.shape[0], index)
        )
        twin.function.load_state_dict(contender.function.state_dict())
        made = twin.call(0, twin.fresh(0))
        return made if isinstance(made, tuple) else (made,)
    tensors = [inputs.x[0 if case.inplace else index], contender.threshold, inputs.residual[index]]
    x, threshold, residual = [
        None if t is None else t.detach().double().requires_grad_(case.trains) for t in tensors
    ]
    flat = threshold.reshape(case.shape[:2]) if case.operator.startswith("shrink") else threshold
    y = by_reference(case, x, flat, residual)
    if case.direction in ("backward", "forward+backward"):
        leaves = [x, threshold, residual][: 1 if case.operator == "abs_mean" else 3]
        leaves = [leaf for leaf in leaves if leaf is not None]
        return torch.autograd.grad(y, leaves, contender.grads[index].double().reshape(y.shape))
    return (y.detach(),)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_provider_gives_the_result_of_the_reference(case):
    inputs = Inputs(case)
    for name, function in providers(case, ()):
        contender = Contender(case, name, function, inputs)
        for index in range(len(inputs.x)):
            got = contender.call(index, contender.fresh(index))
            got = got if isinstance(got, tuple) else (got,)
            for tensor, truth in zip(got, expected(contender, index), strict=True):
                tensor = tensor.detach().double().reshape(truth.shape)
                torch.testing.assert_close(
                    tensor, truth, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
                )


def without_the_mean(x, threshold, relative):
    """The formula with a mean that has no derivative."""
    mean = formulas.row_mean(x.detach().abs())
    return formulas.tidy(x, threshold * mean if relative else threshold, False)


def of_the_other_sign(x, threshold, relative):
    return -formulas.tidy(x, threshold, relative)


@pytest.mark.parametrize("wrong", [without_the_mean, of_the_other_sign])
def test_a_wrong_provider_is_not_timed(wrong, monkeypatch, capsys, threads):
    monkeypatch.setitem(formulas.FORMULAS, "tidy", (wrong, formulas.tidy_))
    case = Case("shrink", "forward+backward", (3, 5, 17))
    message = rf"{re.escape(str(case))}: eager/tidy differs from the reference by .*, allowed are"
    with pytest.raises(contest.WrongResult, match=message):
        measure(case, (), rounds=1, seconds=0.0)
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench.run(parser.parse_args(["--shape", "3,5,17", "--no-compile"])) == 1
    out, err = capsys.readouterr()
    assert "forward+backward" not in out and "eager/tidy differs" in err
    monkeypatch.setattr(command, "cpu_cases", lambda quick: [case])
    assert command.main(["--no-compile", "--threads", "1"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and "eager/tidy differs" in err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("operator", OPERATORS)
def test_rounding_is_no_wrong_result(operator, dtype):
    for direction in ("inference", "backward"):
        measure(Case(operator, direction, (64, 4, 1024), dtype), (), rounds=1, seconds=0.0)


@pytest.mark.parametrize("direction", ["inference in place", "forward+backward"])
def test_a_compiled_formula_gives_the_result_of_the_reference(direction):
    case = Case("shrink+residual", direction, (2, 3, 16))
    inputs = Inputs(case)
    function = formulas.eager(case, "strong", inplace=False)
    function = formulas.in_place(function) if case.inplace else function
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    contender = Contender(case, "compile/strong", compiled, inputs)
    got = contender.call(1, contender.fresh(1))
    for tensor, truth in zip(got if isinstance(got, tuple) else (got,), expected(contender, 1), strict=True):
        torch.testing.assert_close(tensor.double().reshape(truth.shape), truth, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operator", ["soft_threshold", "shrink", "shrink+residual"])
def test_in_place_means_that_the_result_is_in_x(operator):
    case = Case(operator, "inference in place", (3, 5, 17))
    inputs = Inputs(case)
    before = [x.clone() for x in inputs.x]
    for name, function in providers(case, ()):
        contender = Contender(case, name, function, inputs)
        state = contender.fresh(1)
        assert contender.call(1, state).data_ptr() == state.data_ptr(), name
        assert contender.fresh(1).equal(inputs.x[0]), name
    assert all(x.equal(y) for x, y in zip(inputs.x, before, strict=True))


def test_every_formula_takes_part_and_every_mode():
    names = [
        name for name, _ in providers(Case("shrink", "forward", (1, 1, 1)), ("default", "reduce-overhead"))
    ]
    assert names == ["drsn_ops"] + [f"eager/{f}" for f in formulas.FORMULAS] + [
        f"compile/{f}/default" for f in formulas.FORMULAS
    ]
    on_cuda = Case("shrink", "forward+backward", (1, 1, 1), device="cuda", timer="graph")
    assert "compile/tidy/reduce-overhead" in [name for name, _ in providers(on_cuda, ("reduce-overhead",))]


def test_of_a_batch_norm_the_modules_take_part():
    case = Case("batch_norm_relu", "forward+backward", (4, 3, 5))
    assert [name for name, _ in providers(case, ("default",))] == [
        "drsn_ops",
        "eager/modules",
        "compile/modules/default",
    ]


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_compiled_module_takes_part(layout, monkeypatch):
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **_: compile_(module, backend="aot_eager"))
    case = Case("batch_norm_relu", "forward+backward", (4, 3, 2, 5), layout=layout, timer="cold")
    names = [runner.name for runner, _ in measure(case, ("default",), rounds=1, seconds=0.0)]
    assert names == ["copy", "drsn_ops", "eager/modules", "compile/modules/default"]


def test_channels_last_inputs_are_channels_last():
    inputs = Inputs(Case("shrink", "inference", (2, 3, 4, 5), layout="channels_last"))
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in inputs.x)


@pytest.mark.parametrize(
    ("operator", "direction", "dtype", "expected"),
    [
        # x of 2 * 3 rows of 16: 96 elements; 6 numbers a row of 4 bytes; two planes of 12 bytes, three of 6 * 2 each
        ("soft_threshold", "inference", torch.float32, 2 * 384 + 24),
        ("soft_threshold", "forward", torch.float32, 2 * 384 + 24 + 24),
        ("soft_threshold", "backward", torch.bfloat16, 2 * 192 + 24 + 24),
        ("abs_mean", "forward", torch.float32, 384 + 24 + 24),
        ("shrink", "inference in place", torch.float32, 2 * 384 + 48),
        ("shrink", "forward", torch.float32, 2 * 384 + 48 + 36),
        ("shrink", "backward", torch.float64, 2 * 768 + 144 + 36),
        ("shrink", "forward+backward", torch.float32, 4 * 384 + 48 + 72 + 2 * 36),
        ("shrink+residual", "forward", torch.float32, 3 * 384 + 48 + 36),
        ("batch_norm_relu", "inference", torch.float32, 2 * 384),
        ("batch_norm_relu", "forward+backward", torch.float32, 5 * 384),
    ],
)
def test_bytes_moved(operator, direction, dtype, expected):
    assert bytes_moved(Case(operator, direction, (2, 3, 16), dtype)) == expected


def test_a_row_of_odd_length_has_a_mask_of_whole_bytes():
    assert bytes_moved(Case("shrink", "forward", (2, 3, 17))) == 2 * 6 * 17 * 4 + 2 * 24 + 3 * 6 * 3


def test_the_copy_moves_the_bytes_of_the_case():
    for direction in DIRECTIONS:
        case = Case("shrink", direction, (4, 4, 64))
        copy = contest.Copy(case)
        copied = copy.call(0, copy.fresh(0))
        assert torch.cat(copied).equal(copy.sources[0]) and len(copied) == 1 + (
            direction == "forward+backward"
        )
        assert 2 * sum(part.nbytes for part in copied) == pytest.approx(bytes_moved(case), abs=8)
        again = copy.call(0, copy.fresh(0))
        assert (copied[0].data_ptr() == again[0].data_ptr()) == case.inplace


def contender_of(name, shape=(4, 8, 64)):
    case = Case("shrink", "forward+backward", shape)
    return Contender(case, name, dict(providers(case, ()))[name], Inputs(case))


def test_kept_for_backward():
    elements, rows = 4 * 8 * 64, 4 * 8
    beyond, total = kept_for_backward(contender_of("drsn_ops"))
    assert 0.375 * elements <= beyond <= total <= 0.375 * elements + 16 * rows
    # The strong formula keeps x, which it was given, and little else.
    beyond, total = kept_for_backward(contender_of("eager/strong"))
    assert beyond < elements
    assert total >= 4 * elements


def test_peak_bytes_counts_results_and_not_inputs():
    shape = (4, 8, 4096)
    tensor = 4 * 4 * 8 * 4096
    ours, naive = (peak_bytes(contender_of(name, shape)) for name in ("drsn_ops", "eager/naive"))
    assert 2 * tensor <= ours < 3 * tensor  # y and the gradient of x
    assert naive > ours


@pytest.fixture(scope="module")
def rows():
    """What a run over the table's cases records, with tensors small enough for a test in their place."""
    rows = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contest, "MAX_POOL", 1)
        patch.setattr(tables, "SIZES", SIZES)
        around = environment("cpu")
        for direction in ("inference", "inference in place", "forward+backward"):
            for size in SIZES:
                for dtype in (torch.float32, torch.bfloat16):
                    case = Case("shrink", direction, size, dtype, timer="cold")
                    rows += rows_of(case, measure(case, (), rounds=1, seconds=0.0), around)
        case = Case("batch_norm_relu", "forward+backward", (4, 1, 4, 8), layout="channels_last")
        rows += rows_of(case, measure(case, (), rounds=1, seconds=0.0), around)
        for operator, size in (("soft_threshold", (4, 4)), ("shrink", (1, 4, 4))):
            for direction in ("forward", "forward+backward"):
                case = Case(operator, direction, size)
                rows += rows_of(case, measure(case, (), rounds=1, seconds=0.0), around)
        yield json.loads(json.dumps(rows))


def test_every_row_says_everything(rows):
    assert all(set(row) == KEYS for row in rows)
    assert {row["provider"] for row in rows} == {
        "copy",
        "drsn_ops",
        *(f"eager/{f}" for f in (*formulas.FORMULAS, "modules")),
    }
    for row in rows:
        assert 0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"]
        assert row["fraction"] == pytest.approx(row["copy_us"] / row["p50_us"])
        assert row["machine"] and row["torch"] == torch.__version__
        assert (row["saved_bytes"] is None) == (row["provider"] == "copy")


def test_the_report_is_made_from_the_rows(rows):
    changed = [dict(row) for row in rows]
    for row in changed:
        row["p50_us"] = {"drsn_ops": 100.0, "eager/strong": 450.0}.get(row["provider"], 800.0)
        row["fraction"] = 0.625
        row["date"] = "2001-02-03"
    changed.append({**changed[0], "provider": "compile/tidy/default", "p50_us": 175.0})
    (region, made), *others = report.texts(changed).items()
    assert region == "operators:cpu" and not others
    assert "2001-02-03" in made and changed[0]["machine"] in made
    assert (
        "| `shrink`, float32 | x | MB | inputs | ms | a copy: ratio | eager: ratio | torch.compile: ratio |"
        in made
    )
    assert "| no gradient | 2x3x64 | 0.0 | cold | 0.100 | 0.62 | 4.50 | 1.75 |" in made
    assert "| no gradient, in place | 2x3x128 | 0.0 | cold | 0.100 | 0.62 | 4.50 | – |" in made
    assert "| forward + backward | 4x3x64 | 0.0 | cold | 0.100 | 0.62 | 4.50 | – |" in made
    assert made.count("| forward + backward | 4x1x4x8, channels_last | 0.0 | hot |") == 1
    assert "| bfloat16, forward + backward | 1.00 | 1.00 | 1.00 |" in made
    assert "| drsn_ops | 0.375 | 8 |" in made
    assert "| `soft_threshold`, forward | 4x4 | 0.12 |" in made
    assert f"(../benchmarks/results/{slug(changed[0])}.png)" in made


def test_a_region_is_filled_where_it_is(tmp_path):
    pages = {
        tmp_path / "README.md": "<!-- a -->old<!-- /a -->",
        tmp_path / "docs" / "b.md": "1\n<!-- b -->\n<!-- /b -->\n2",
    }
    (tmp_path / "docs").mkdir()
    for path, text in pages.items():
        path.write_text(text)
    filled = report.with_regions(tmp_path, {"a": "new\n", "b": "\\1\n"})
    assert list(filled.values()) == ["<!-- a -->\nnew\n<!-- /a -->", "1\n<!-- b -->\n\\1\n<!-- /b -->\n2"]
    with pytest.raises(ValueError, match="<!-- c --> is in 0 pages"):
        report.with_regions(tmp_path, {"c": ""})
    (tmp_path / "docs" / "c.md").write_text("<!-- a -->")
    with pytest.raises(ValueError, match="<!-- a --> is in 2 pages"):
        report.with_regions(tmp_path, {"a": ""})


@pytest.fixture
def gpu_rows(rows):
    """A row of each provider in every case of the whole grid for a GPU, with times made up."""
    made = []
    for case in cuda_cases(quick=False):
        times = {"copy": 8.0, "drsn_ops": 10.0, "eager/tidy": 50.0, "eager/naive": 90.0, "eager/strong": 40.0}
        if modes_of(case, ("default",)):
            times["compile/tidy/default"] = 15.0
        for name, p50 in times.items():
            if name == "drsn_ops" and case.layout == "channels_last":
                p50 = 12.5
            if name == "drsn_ops" and case.shape == (512, 64, 1001) and case.direction == "backward":
                p50 = 16.0
            row = {**rows[0], **labels(case), "provider": name, "p50_us": p50, "fraction": 8.0 / p50}
            made.append({**row, "bytes": bytes_moved(case), "gpu": "GPU", "driver": "1", "cuda": "2"})
    return made


def test_a_gpu_has_tables_of_its_own(gpu_rows):
    made = report.texts(gpu_rows)["operators:cuda"]
    assert "GPU, driver 1, CUDA 2" in made
    assert "| no gradient | 512x64x2048 | 805.6 | 0.010 | 0.80 | 4.00 | 1.50 |\n" in made
    assert "| backward, with the host | 64x4x1024 | 2.2 | 0.010 | 0.80 | 4.00 | 1.50 |\n" in made
    assert "| `shrink`, backward, 256 MB and more | 7 | 0.50 |\n" in made
    assert (
        "| rows that no vector divides, as a part of that of the aligned, contiguous twins | 9 | 0.62 |\n"
        in made
    )
    assert "| channels_last, as a part of that of the aligned, contiguous twins | 9 | 0.80 |\n" in made
    assert all(f"| {what} | " in made for what in tables.KINDS)
    assert "(../benchmarks/results/gpu.png)" in made
    assert slug(gpu_rows[0]) == "gpu"


def test_a_gpu_that_was_measured_in_part_has_a_part_of_the_tables(gpu_rows):
    cases = list(
        dict.fromkeys(str({key: row[key] for key in labels(cuda_cases(True)[0])}) for row in gpu_rows)
    )
    for count in range(1, len(cases), 15):
        part = [
            row
            for row in gpu_rows
            if str({key: row[key] for key in labels(cuda_cases(True)[0])}) in cases[:count]
        ]
        assert "| no gradient | 64x4x1024 |" in tables.operators_on_cuda(part)


@pytest.mark.parametrize("of_a_gpu", [False, True])
def test_the_plot_is_a_file(rows, gpu_rows, of_a_gpu, tmp_path):
    report.plot(gpu_rows if of_a_gpu else rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "page", ["", "<!-- a -->", "<!-- /a --> <!-- a -->", "<!-- a --><!-- /a --><!-- /a -->"]
)
def test_a_page_without_both_marks_is_refused(page):
    with pytest.raises(ValueError, match="needs <!-- a -->"):
        report.fill(page, "a", "")


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="no rows"):
        report.texts([])


def test_the_quick_grid_is_part_of_the_whole():
    for cases in (cpu_cases, cuda_cases):
        whole = cases(quick=False)
        assert len(whole) == len(set(whole))
        assert set(cases(quick=True)) <= set(whole)


def test_the_command_compares(capsys, threads):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench.run(parser.parse_args(["--shape", "2,3,16", "--no-compile", "--threads", "1"])) == 0
    printed = capsys.readouterr().out
    assert printed.count("drsn_ops  ") == 3 and printed.count("eager/strong") == 3


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--shape", "3"], "'3' has 1 axes, not two to five"),
        (["--shape", "3,-1"], "must be an integer from 1 to 2147483647, got '-1'"),
        (["--shape", "a,b"], "must be an integer from 1 to 2147483647, got 'a'"),
        (["--shape", "65536,32768"], "'65536,32768' has more than 2147483647 elements"),
        (["--threads", "0"], "must be an integer from 1 to 1024, got '0'"),
    ],
)
def test_bad_arguments_are_refused(arguments, why, capsys):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    with pytest.raises(SystemExit) as refused:
        parser.parse_args(arguments)
    assert refused.value.code == 2
    assert why in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--quick", "tax"], "--quick: expected the flags of tax behind it"),
        (["--record", "report"], "--record: expected the flags of report behind it"),
        (["--jobs", "2", "--no-compile"], "argument --jobs: got 2, expected none with --no-compile"),
    ],
)
def test_benchmarks_leave_no_flag_out(arguments, why, capsys, monkeypatch):
    for name in ("measure_all", "measure_the_tax", "make_report"):
        monkeypatch.setattr(command, name, lambda args: 0)
    with pytest.raises(SystemExit) as refused:
        command.main(arguments)
    assert refused.value.code == 2
    assert why in capsys.readouterr().err


def test_benchmarks_end_in_silence_on_an_interrupt(capsys, monkeypatch):
    monkeypatch.setattr(command, "make_report", interrupted)
    assert command.main(["report"]) == 130
    assert capsys.readouterr() == ("", "")


def interrupted(args):
    raise KeyboardInterrupt


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is there")
def test_a_device_that_is_not_there_is_one_line(capsys, threads):
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench.run(parser.parse_args(["--device", "cuda"])) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_cost_of_a_call(monkeypatch, threads):
    monkeypatch.setattr(host, "import_time", lambda: 5.0)
    rows = host.measure_host("cpu", 2)
    assert {row["call"] for row in rows} == {*host.host_calls("cpu"), "import drsn_ops, after torch"}
    assert all(0 < row["p20_us"] <= row["p50_us"] <= row["p80_us"] and row["threads"] == 1 for row in rows)
    rows[0]["p50_us"], rows[-1]["p50_us"] = 12.34, 40_000.0
    made = report.texts(rows, "host")["host:cpu"]
    assert f"| {rows[0]['call']} | 12.3 |" in made and made.count("\n| ") == len(rows)
    assert "`import drsn_ops, after torch`: 40 ms." in made and "; 1 thread, " in made


def test_the_accuracy_of_images(tmp_path):
    """As the command trains them: the digits, and files of MNIST's format with both kinds of statistics."""
    write_mnist(tmp_path, np.random.default_rng(0))
    short = ("--epochs", "1")
    trainings = [images.digits(1)[0], images.mnist(tmp_path, 1)[2]]
    trainings = [training._replace(flags=(*training.flags, *short)) for training in trainings]
    plain, anew = images.measure_images(trainings, environment("cpu"), workers=2)
    assert (plain["seed"], plain["backend"]) == (0, "drsn_ops") and 0 < plain["test_accuracy"] < 1
    assert (anew["seed"], anew["choice"]) == (0, "--fresh-noise")
    names = ("test_accuracy", "test_batch_statistics_accuracy")
    assert all(0 <= anew[name] <= 1 for name in names) and names[1] not in plain


def accuracies(found):
    """In the place of trainings: each has a share and, of MNIST, nine tenths of it by running statistics."""

    def measure(flags):
        share = found.pop(0)
        if isinstance(share, BaseException):
            raise share
        by_batch = {"test_batch_statistics_accuracy": share} if "--batch-statistics" in flags else {}
        return {"test_accuracy": share - 0.1 * bool(by_batch), **by_batch}

    return measure


def test_accuracies_over_seeds(monkeypatch, tmp_path, threads):
    monkeypatch.setattr(images, "accuracies", accuracies([0.90278, 0.91389, 0.95, 0.93, 0.94, 0.92]))
    rows = images.measure_images(images.digits(3), environment("cpu"))
    made = report.texts(rows, "digits")["digits:cpu"]
    # 0.90278, 0.95 and 0.94 lie -0.02815, 0.01907 and 0.00907 off their mean
    assert made.splitlines()[2:] == [
        "| 0 | 90.28 | 91.39 |",
        "| 1 | 95.00 | 93.00 |",
        "| 2 | 94.00 | 92.00 |",
        "| mean ± standard deviation | 93.09 ± 2.49 | 92.13 ± 0.81 |",
        "| lowest to highest | 90.28 to 95.00 | 91.39 to 93.00 |",
        "",
        made.splitlines()[-1],
    ]
    assert made.splitlines()[-1].startswith("Trained on ")
    monkeypatch.setattr(images, "accuracies", accuracies([0.8, 0.5, 0.5, 0.5, 0.9, 0.5, 0.5, 0.75]))
    rows = images.measure_images(images.mnist(tmp_path, 2), environment("cpu"))
    rows[-1]["commit"], rows[0]["commit"] = "later", "first"
    for row in rows[1:-1]:
        row["commit"] = None
    made = report.texts(rows, "mnist")["mnist:cpu"]
    assert "| test accuracy, %, 2 seeds | running statistics: mean ± standard deviation |" in made
    assert "| the recipe | 75.00 ± 7.07 | 70.00 to 80.00 | 85.00 ± 7.07 | 80.00 to 90.00 |" in made
    assert "| `--epochs 10` | 52.50 ± 17.68 | 40.00 to 65.00 | 62.50 ± 17.68 | 50.00 to 75.00 |" in made
    assert made.endswith(", commit first, later.\n")


def test_trainings_that_were_cut_short_go_on(monkeypatch, tmp_path, capsys, threads):
    """Each is kept when it is done, also one of an earlier commit, but none of other versions."""
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(
        images, "accuracies", accuracies([0.5, 0.6, KeyboardInterrupt(), KeyboardInterrupt()])
    )
    assert command.main(["digits", "--seeds", "2", "--record"]) == 130
    (part,) = tmp_path.iterdir()
    first = json.loads(part.read_text())
    assert [row["test_accuracy"] for row in first] == [0.5, 0.6]
    first[0]["commit"], first[1]["torch"] = "earlier", "another"
    part.write_text(json.dumps(first))
    monkeypatch.setattr(images, "accuracies", accuracies([0.1, 0.2, 0.3]))
    assert command.main(["digits", "--seeds", "2", "--record"]) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-digits.json")
    rows = json.loads(path.read_text())
    assert [row["test_accuracy"] for row in rows] == [0.5, 0.1, 0.2, 0.3] and rows[0]["commit"] == "earlier"
    assert "3/3 train --seed 1 --backend reference: 30.00%" in capsys.readouterr().err


def test_mnist_that_is_not_there_is_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    assert command.main(["mnist", "--data", str(tmp_path), "--record"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"--data {tmp_path}: ") and "no such file" in err and err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_the_way_from_files_to_a_verdict():
    few = ("--epochs", "1", "--blocks", "3")
    rows = recordings.measure_recordings(None, *few, recordings=32, seconds=0.6, files=3)
    reading, training, predicting, small = rows
    assert [row["what"] for row in rows] == ["read", "train", "predict", "predict small"]
    # 7200 points are three windows side by side, and six at each half of one, as train has them
    assert (reading["recordings"], reading["windows"], reading["classes"]) == (32, 96, 8)
    assert (predicting["recordings"], predicting["windows"], small["recordings"]) == (32, 192, 3)
    assert all(0 <= share <= 1 for share in training["accuracy"].values())
    assert all(row["data"] == "simulated" and row["seconds"] > 0 for row in rows)
    reading["seconds"], training["seconds"], predicting["seconds"] = 0.123, 45.6, 0.02
    training["accuracy"] = {"window": 0.875, "recording": 1.0}
    regions = report.texts(rows, "recordings")
    made = regions["recordings:cpu"]
    assert "| read 32 recordings of 8 classes, cut into 96 windows | 0.12 s |" in made
    assert "| train: 87.5 % of the test windows and 100.0 % of the test recordings right | 46 s |" in made
    assert "| predict 32 recordings | 9,600 windows/s |" in made and "Measured on " in made
    assert regions["verdict:cpu"].startswith("```text\n") and "always guessing" in regions["verdict:cpu"]


def test_the_benchmark_of_recordings_names_a_folder_that_is_not_there(tmp_path, capsys):
    assert command.main(["recordings", "--data", str(tmp_path / "nowhere")]) == 2
    assert f"--data {tmp_path / 'nowhere'}: no such folder\n" == capsys.readouterr().err


def test_the_import_is_timed_in_a_process_of_its_own():
    assert host.import_time() > 0


def test_of_several_machines_the_newest_results_stay(tmp_path, monkeypatch):
    """Whatever the files are called; an experiment's table goes between the marks of its folder's name."""
    for machine, day in (("a", "2001-02-04"), ("b", "2001-02-03")):
        row = {
            **environment("cpu"),
            "call": "a call",
            "p50_us": 1.0,
            "machine": f"machine {machine}",
            "date": day,
        }
        (tmp_path / f"{machine}-host.json").write_text(json.dumps([row]))
    (tmp_path / "experiment-small").mkdir()
    (tmp_path / "experiment-small" / "table.md").write_text("| a table |\n")
    readme = tmp_path / "README.md"
    marks = ("host:cpu", "experiment-small")
    readme.write_text("".join(f"<!-- {mark} -->\n<!-- /{mark} -->\n" for mark in marks))
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "report", "--folder", str(tmp_path)])
    assert command.main() == 0
    made = readme.read_text()
    assert "machine a" in made and "machine b" not in made
    assert "<!-- experiment-small -->\n| a table |\n<!-- /experiment-small -->" in made


def small_grid(quick):
    return [Case("shrink", direction, (2, 3, 16)) for direction in ("forward", "backward")]


def set_up_benchmarks(monkeypatch, folder, *arguments):
    monkeypatch.setattr(command, "RESULTS", folder)
    monkeypatch.setattr(command, "cpu_cases", small_grid)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--record", "--no-compile", "--threads", "1", *arguments])


def run_benchmarks(monkeypatch, folder, *arguments):
    set_up_benchmarks(monkeypatch, folder, *arguments)
    assert command.main() == 0
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


def test_what_was_measured_before_a_run_was_cut_short_is_there(monkeypatch, tmp_path, threads):
    def cut_short(case, modes):
        if case.direction == "backward":
            raise KeyboardInterrupt
        return measure(case, modes, rounds=1, seconds=0.0)

    monkeypatch.setattr(command, "measure", cut_short)
    set_up_benchmarks(monkeypatch, tmp_path)
    assert command.main() == 130
    (part,) = tmp_path.iterdir()
    first = json.loads(part.read_text())
    assert {row["direction"] for row in first} == {"forward"}

    measured = []
    monkeypatch.setattr(
        command, "measure", lambda case, modes: measured.append(case) or measure(case, modes, rounds=1)
    )
    resumed = run_benchmarks(monkeypatch, tmp_path, "--resume")
    assert [case.direction for case in measured] == ["backward"]
    assert resumed[: len(first)] == first and len(resumed) == 2 * len(first)

    (path,) = tmp_path.iterdir()
    path.write_text(json.dumps([{**row, "commit": "another"} for row in resumed]))
    again = run_benchmarks(monkeypatch, tmp_path, "--resume")
    assert len(measured) == 3 and {row["commit"] for row in again} == {first[0]["commit"]}


def test_a_case_without_one_of_its_modes_is_not_done():
    case = Case("shrink", "inference", (2, 3), device="cuda", timer="graph")
    rows = [{**labels(case), "provider": name} for name in ("drsn_ops", "compile/tidy/default")]
    assert command.is_among(rows, case) and command.is_among(rows, case, ("default",))
    assert not command.is_among(rows, case, ("default", "reduce-overhead"))
    on_cpu = Case("shrink", "inference", (2, 3))
    rows = [{**labels(on_cpu), "provider": "compile/tidy/default"}, *rows]
    assert not command.is_among([{**rows[0], "dtype": "float16"}], on_cpu)


def test_a_case_that_is_compiled_ahead_leaves_the_compilers_cache_filled(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(formulas, "FORMULAS", {"tidy": formulas.FORMULAS["tidy"]})
    contest.compile_case(Case("soft_threshold", "inference", (2, 3, 16)), ("default",))
    assert any(tmp_path.rglob("*.so")) or any(tmp_path.rglob("fxgraph/*"))


def test_a_case_that_there_is_no_memory_for_is_left_out(monkeypatch, tmp_path, threads, capsys):
    def no_memory(case, modes):
        if case.direction == "forward":
            raise RuntimeError("CUDA out of memory: drsn_ops asked PyTorch for a tensor of shape (2, 3)")
        return measure(case, modes, rounds=1, seconds=0.0)

    monkeypatch.setattr(command, "measure", no_memory)
    assert {row["direction"] for row in run_benchmarks(monkeypatch, tmp_path)} == {"backward"}
    assert "left out: CUDA out of memory" in capsys.readouterr().err


def test_compiling_ahead_is_not_what_ends_a_run(capfd):
    contest.compile_ahead([Case("shrink", "inference", (1 << 20, 1 << 20, 1 << 6))], ("default",), 1)
    assert "not compiled ahead: " in capfd.readouterr().err


def test_results_do_not_change_the_commit(tmp_path, monkeypatch):
    def git(*words):
        return subprocess.run(["git", *words], cwd=tmp_path, check=True, capture_output=True)

    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    files = [
        tmp_path / name for name in ("benchmarks/results/a.json", "README.md", "docs/page.md", "source.py")
    ]
    for file in files:
        file.write_text("1")
    git("init", "-q")
    git("add", "-A")
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    monkeypatch.setattr(rows_module, "__file__", str(tmp_path / "benchmarks" / "rows.py"))
    name = rows_module.commit()
    for file, changed in zip(files, (name, name, name, f"{name}-dirty"), strict=True):
        file.write_text("2")
        assert rows_module.commit() == changed


WRONG = """
from torch.nn import Identity as Shrinkage

def soft_threshold(x, tau):
    return x
"""


def two_commits(*flags):
    parser = argparse.ArgumentParser()
    commits.add_arguments(parser)
    return parser.parse_args(
        ["A", "B", "--shape", "2", "3", "8", "--only", "no gradient", "--rounds", "1", *flags]
    )


def test_two_commits_that_differ_are_not_compared(tmp_path):
    package = tmp_path / "wrong" / "drsn_ops" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text(WRONG)
    right = tmp_path / "right"
    right.symlink_to(commits.ROOT)
    with pytest.raises(contest.WrongResult, match="^soft_threshold, no gradient: B differs"):
        commits.times_of([right, package.parents[1]], two_commits())


def test_two_commits_take_turns(monkeypatch, capsys):
    """Each is built; the ratio is that of the medians."""
    turns = []

    @contextlib.contextmanager
    def built(commit, folder):
        turns.append(f"build {commit}")
        yield folder
        turns.append(f"remove {commit}")

    def sample(tree, args, results):
        turns.append(tree.name)
        torch.save({"a call": torch.ones(3)}, results)
        return {"a call": {"first": 2e-6, "second": 3e-6}[tree.name]}

    monkeypatch.setattr(commits, "built", built)
    monkeypatch.setattr(commits, "sample", sample)
    assert commits.run(two_commits("--rounds", "2")) == 0
    assert turns[2:-2] == ["first", "second", "second", "first"] and turns[:2] == ["build A", "build B"]
    out = capsys.readouterr().out
    assert re.search(r"^a call +2\.00 +3\.00 +1\.500$", out, re.MULTILINE)
