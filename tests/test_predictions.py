"""The table of predictions: what is read in a disassembly, and what follows from it."""

import re
from pathlib import Path

import pytest

from tools import machine_code, predictions

ROOT = Path(__file__).parents[1]


def section(code, name="kernel"):
    """A section as nvdisasm prints it, of lines of code; a line that ends in a colon is a label."""
    lines = [f'\t.section\t.text.{name},"ax",@progbits', "\t.align\t128", f".text.{name}:", f"{name}:"]
    for i, line in enumerate(code.split("\n")):
        line = line.strip()
        lines.append(line if line.endswith(":") else f"        /*{16 * i:04x}*/                   {line} ;")
    return "\n".join(lines) + "\n"


def kernel(code, name="kernel", registers=32, shared=0):
    return machine_code.Kernel(name, registers, shared, machine_code.parse(section(code, name)))


def best(found):
    """The path with the most accesses."""
    return max(found.paths, key=lambda path: path.accesses)


# Two vectors, each with a rest that a loop moves, and a position that is found in 64 bits or in 32.
ELEMENTWISE = """S2R R0, SR_TID.X
@P0 BRA `(.L_long)
IMAD R2, R0, 0x10, RZ
BRA `(.L_found)
.L_long:
CALL.REL.NOINC `($__internal_0_$__cuda_sm20_div_s64)
IMAD.WIDE R2, R0, 0x10, RZ
.L_found:
LDG.E.128 R4, desc[UR6][R2.64]
@P1 BRA `(.L_whole)
.L_rest:
LDG.E R12, desc[UR6][R2.64]
@P2 BRA `(.L_rest)
.L_whole:
LDG.E.128 R8, desc[UR6][R2.64+0x1000]
FADD R4, R4, R14
STG.E.128 desc[UR6][R2.64], R4
@P3 STG.E.U8 desc[UR6][R16.64], R18
FADD R8, R8, R14
STG.E.128 desc[UR6][R2.64+0x1000], R8
@P3 STG.E.U8 desc[UR6][R16.64], R18
EXIT
.L_end:
BRA `(.L_end)
$__internal_0_$__cuda_sm20_div_s64:
IMAD R2, R2, R2, R2
IMAD R2, R2, R2, R2
RET.REL.NODEC R20 `(kernel)"""

# Sums of two vectors at once, with the rest of a vector on the way, and a sum over lanes behind the loop.
REDUCTION = """S2R R0, SR_TID.X
.L_main:
LDG.E.128 R4, desc[UR6][R2.64]
@P0 BRA `(.L_second)
.L_rest:
LDG.E R12, desc[UR6][R2.64]
FADD R13, R13, R12
@P2 BRA `(.L_rest)
.L_second:
LDG.E.128 R8, desc[UR6][R2.64]
FADD R1, R1, R4
FADD R1, R1, R8
@P1 BRA `(.L_main)
.L_lanes:
SHFL.BFLY PT, R3, R1, R5, 0x1f
FADD R1, R1, R3
@P3 BRA `(.L_lanes)
STG.E desc[UR6][R2.64], R1
EXIT"""

# Rows on chip: each step may find that the row has ended. Without the first addition it would be shorter.
ON_CHIP = """LDG.E.128 R4, desc[UR6][R2.64]
@P0 BRA `(.L_sum)
LDG.E.128 R8, desc[UR6][R2.64]
.L_sum:
FADD R1, R4, R5
@P0 BRA `(.L_result)
FADD R1, R1, R8
.L_result:
FADD R4, R4, R1
STG.E.128 desc[UR6][R2.64], R4
@P0 EXIT
FADD R8, R8, R1
STG.E.128 desc[UR6][R2.64], R8
EXIT"""


class TestHotPath:
    def test_without_a_loop_it_takes_no_rest_and_no_long_way(self):
        path = best(kernel(ELEMENTWISE))
        assert path.accesses == machine_code.Accesses(loads=2, stores=2, bytes=2)
        assert path.cost == len(path.instructions) == 14
        opcodes = {instruction.opcode for instruction in path.instructions}
        assert "LDG.E" not in opcodes and "CALL.REL.NOINC" not in opcodes

    def test_a_called_function_counts(self):
        always = ELEMENTWISE.replace("@P0 BRA `(.L_long)", "BRA `(.L_long)")
        path = best(kernel(always))
        assert path.cost == len(path.instructions) + 3

    def test_of_a_reduction_it_is_once_through_the_loop(self):
        path = best(kernel(REDUCTION))
        assert path.accesses == machine_code.Accesses(loads=2)
        assert [i.opcode for i in path.instructions] == [
            "LDG.E.128",
            "BRA",
            "LDG.E.128",
            "FADD",
            "FADD",
            "BRA",
        ]

    def test_no_vector_is_left_out(self):
        path = best(kernel(ON_CHIP))
        assert path.accesses == machine_code.Accesses(loads=2, stores=2)
        assert sum(instruction.opcode == "FADD" for instruction in path.instructions) == 4

    def test_a_way_for_each_number_of_accesses(self):
        found = kernel(ON_CHIP)
        assert {(p.accesses.loads, p.accesses.stores) for p in found.paths} == {
            (1, 1),
            (1, 2),
            (2, 1),
            (2, 2),
        }

    def test_a_branch_of_diverged_threads_may_go_on(self):
        found = kernel("BRA.DIV UR4, `(.L_far)\nEXIT\n.L_far:\nFADD R1, R1, R2\nEXIT")
        assert found.blocks[0].next == [2, 1]


class TestInFlight:
    def test_until_one_is_used(self):
        found = kernel(ELEMENTWISE)
        assert found.in_flight(best(found)) == 2
        waits = ELEMENTWISE.replace("@P1 BRA", "FADD R7, R7, R7\n@P1 BRA")
        assert kernel(waits).in_flight(best(kernel(waits))) == 1

    def test_over_the_end_of_a_loop(self):
        loop = """.L_main:
            LDG.E.128 R8, desc[UR6][R2.64]
            FADD R1, R1, R4
            FADD R1, R1, R8
            LDG.E.128 R4, desc[UR6][R2.64]
            @P0 BRA `(.L_main)
            EXIT"""
        assert kernel(loop).in_flight(best(kernel(loop))) == 2


def test_registers_and_shared_memory_stand_in_other_sections():
    number = """	//----- nvinfo : EIATTR_REGCOUNT
	.align		4
        /*0000*/ 	.byte	0x04, 0x2f
        /*0002*/ 	.short	(.L_1 - .L_0)
	.align		4
.L_0:
        /*0004*/ 	.word	index@({})
        /*0008*/ 	.word	0x000000{}


"""
    text = (
        '\n\t.section\t.nv.info,"",@"SHT_CUDA_INFO"\n'
        + number.format("one", "24")
        + number.format("two", "60")
    )
    text += section("FADD R1, R1, R2\nEXIT", "one") + "\n" + section("EXIT", "two")
    text += '\n\t.section\t.nv.shared.two,"aw",@nobits\n\t.align\t8\n.nv.shared.two:\n\t.zero\t\t1152\n'
    found = list(machine_code.read(text))
    assert [(k.name, k.registers, k.shared, len(best(k).instructions)) for k in found] == [
        ("one", 0x24, 0, 2),
        ("two", 0x60, 1152, 1),
    ]
    assert [k.name for k in machine_code.read(text, lambda name: name == "two")] == ["two"]


@pytest.mark.parametrize(
    "threads, registers, shared, expected",
    [
        (256, 32, 0, 2048),
        (256, 33, 0, 1536),
        (256, 255, 0, 256),
        (512, 80, 0, 512),
        (32, 16, 0, 1024),
        (256, 32, 60000, 768),
    ],
)
def test_threads_of_a_multiprocessor(threads, registers, shared, expected):
    assert predictions.resident(threads, registers, shared) == expected


class TestNumbers:
    row = predictions.Row("words", "kernelI{}Li{}E", sizes=2, mask=1 / 4)

    def test_of_a_path(self):
        found = predictions.numbers(self.row, [kernel(ELEMENTWISE, "kernelIfLi4E")], "f", 256)
        assert found.instructions == 14 / 8 and found.share == 1 and found.registers == 32
        assert found.bytes_in_flight == 2 * 16 * 2048

    def test_each_vector_is_written(self):
        found = predictions.numbers(self.row, [kernel(ON_CHIP, "kernelIfLi4E")], "f", 256)
        assert found.instructions == 12 / 8

    def test_the_share_is_of_what_can_be_issued_while_the_bytes_move(self):
        slow = ELEMENTWISE.replace("FADD R4, R4, R14", "\n".join(["FADD R4, R4, R14"] * 1000))
        found = predictions.numbers(self.row, [kernel(slow, "kernelIfLi4E")], "f", 256)
        assert found.share == pytest.approx(5.7929 * 8.25 / (1013 / 8), rel=1e-3)

    def test_stores_that_the_compiler_has_split_are_taken_as_they_are(self):
        split = re.sub(r"STG.E.128 (.*), R(\d)", r"STG.E \1, R\2\nSTG.E \1, R\2", ELEMENTWISE)
        found = predictions.numbers(self.row, [kernel(split, "kernelIfLi4E")], "f", 256)
        assert found.instructions == 16 / 8

    def test_a_kernel_that_is_not_among_these(self):
        assert predictions.numbers(self.row, [kernel(ELEMENTWISE, "kernelIfLi1E")], "f", 256) is None

    def test_a_path_that_the_row_does_not_tell_of(self):
        row = predictions.Row("words", "kernelI{}Li{}E", sizes=2, streams=3)
        with pytest.raises(SystemExit, match=r"no path of kernelIfLi4E is what 'words' says.*\(2, 2, 2, 0\)"):
            predictions.numbers(row, [kernel(ELEMENTWISE, "kernelIfLi4E")], "f", 256)


# They move few bytes beside others of their call, or are of a type that the table has not.
WITHOUT_A_ROW = {
    "add_pieces",
    "channel_statistics",
    "convert_all",
    "fold_channel_sums",
    "fold_kernel",
    "gate_backward_layers",
    "gate_layers",
    "input_gradients",
    "sample_statistics_kernel",
    "shrink_backward_rows",
    "soft_threshold_complex",
}


def test_every_kernel_has_a_row_or_is_known_to_have_none():
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu*"))
    kernels = set(re.findall(r"__global__ void\s+(?:__launch_bounds__\(.*?\)\s+)?(\w+)\(", sources))
    summed = set(
        re.findall(r"^struct (\w+Sums?) {", sources, re.MULTILINE)
    )  # by reduce_rows or reduce_columns
    patterns = " ".join(row.kernel for row in predictions.TABLE)
    named = set(re.findall(r"\\d(\w+?)I{}", patterns)) | set(re.findall(r"\d(reduce_\w+)I", patterns))
    assert named | WITHOUT_A_ROW == kernels | summed and not named & WITHOUT_A_ROW


def test_a_table_that_lacks_a_kernel_is_not_written(monkeypatch, tmp_path):
    page = tmp_path / "README.md"
    page.write_text("<!-- predictions -->\nas it was\n<!-- /predictions -->\n")
    monkeypatch.setattr(predictions, "PAGE", page)
    monkeypatch.setattr(predictions, "find", lambda program: "true")  # which prints nothing
    monkeypatch.setattr(predictions, "compiled", lambda folder: [Path(folder, "shrink.cubin")])
    monkeypatch.setattr("sys.argv", ["predictions"])
    with pytest.raises(SystemExit, match="no kernel of each type is named .*soft_threshold_kernel"):
        predictions.main()
    assert "as it was" in page.read_text()


def test_nvdisasm_is_asked_for_before_anything_is_compiled(monkeypatch):
    def find(program):
        raise SystemExit(program)

    monkeypatch.setattr(predictions, "find", find)
    monkeypatch.setattr("sys.argv", ["predictions"])
    with pytest.raises(SystemExit, match="nvdisasm"):
        predictions.main()


def test_a_file_that_is_not_machine_code(monkeypatch):
    monkeypatch.setattr(predictions, "find", lambda program: "false")
    monkeypatch.setattr("sys.argv", ["predictions", "some.cubin"])
    with pytest.raises(SystemExit, match="^false failed on some.cubin"):
        predictions.main()


def test_a_program_that_is_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match="^no nvdisasm-of-no-toolkit in CUDA_HOME, .venv, PATH"):
        predictions.find("nvdisasm-of-no-toolkit")


def test_the_page_has_the_rows_of_the_script():
    page = (ROOT / "csrc" / "cuda" / "README.md").read_text()
    region = page.partition("<!-- predictions -->")[2].partition("<!-- /predictions -->")[0]
    assert re.findall(r"^\| (.*?) \|", region, re.MULTILINE)[1:] == [row.words for row in predictions.TABLE]
