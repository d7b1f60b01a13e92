"""Reads kernels' machine code as nvdisasm prints it: registers, shared memory, and the instructions of the hot path."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

INSTRUCTION = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*) *(.*?) *;")
LABEL = re.compile(r"(\S+):$")
TARGET = re.compile(r"`\((\S+?)\)")
REGISTERS = re.compile(r"EIATTR_REGCOUNT\n(?:.*\n){1,6}?.*index@\((\S+)\)\n.*\.word\s+0x([0-9a-f]+)")
SHARED = re.compile(r"^\.nv\.shared\.(\S+):\n\s*\.zero\s+(\d+)", re.MULTILINE)
# HFMA2.MMA is how a register is set to 0
ARITHMETIC = re.compile(
    r"(F(ADD|MUL|FMA|MNMX|SETP?|SEL)|H(ADD|MUL|FMA|MNMX|SETP?)2(?!\.MMA)|D(ADD|MUL|FMA|SETP))\b"
)
ENDS = ("BRA", "EXIT", "RET")


class Instruction(NamedTuple):
    predicate: str
    opcode: str
    operands: str

    @property
    def base(self) -> str:
        return self.opcode.partition(".")[0]

    @property
    def target(self) -> str:
        return TARGET.search(self.operands)[1]

    @property
    def conditional(self) -> bool:
        """Of what ends a block: whether what follows may be reached too."""
        return (
            bool(self.predicate) or ".DIV" in self.opcode or (self.base == "BRA" and self.operands[0] != "`")
        )

    def registers(self) -> set[int]:
        return {int(n) for n in re.findall(r"\bR(\d+)", self.operands)}


class Accesses(NamedTuple):
    """To global memory: loads and stores of 16 bytes, accesses of a byte, which is one of the mask, and others."""

    loads: int = 0
    stores: int = 0
    bytes: int = 0
    others: int = 0

    def plus(self, more: Accesses) -> Accesses:
        return Accesses(*(a + b for a, b in zip(self, more, strict=True)))


def accesses(instruction: Instruction) -> Accesses:
    if instruction.base not in ("LDG", "STG"):
        return Accesses()
    parts = instruction.opcode.split(".")
    if "128" in parts:
        return Accesses(loads=1) if instruction.base == "LDG" else Accesses(stores=1)
    return Accesses(bytes=1) if "U8" in parts else Accesses(others=1)


@dataclass
class Block:
    instructions: list[Instruction] = field(default_factory=list)
    next: list[int] = field(default_factory=list)
    leaves: bool = False  # the kernel may end here
    called: int = 0  # instructions of the function that is called here

    def accesses(self) -> Accesses:
        total = Accesses()
        for instruction in self.instructions:
            total = total.plus(accesses(instruction))
        return total

    def arithmetic(self) -> int:
        return sum(bool(ARITHMETIC.match(instruction.opcode)) for instruction in self.instructions)


def walk(blocks: list[Block]) -> tuple[list[int], dict[int, set[int]]]:
    """The blocks, each after those that it leads to, loops cut open; and the blocks of each loop, by its first one."""
    order: list[int] = []
    on_the_way = {0: True}
    closing: list[tuple[int, int]] = []
    before: dict[int, list[int]] = {}
    way = [(0, iter(blocks[0].next))]
    while way:
        here, rest = way[-1]
        after = next(rest, None)
        if after is None:
            on_the_way[here] = False
            order.append(here)
            way.pop()
            continue
        before.setdefault(after, []).append(here)
        if after not in on_the_way:
            on_the_way[after] = True
            way.append((after, iter(blocks[after].next)))
        elif on_the_way[after]:
            closing.append((here, after))
    loops: dict[int, set[int]] = {}
    for last, first in closing:
        body = loops.setdefault(first, {first})
        ends = [last]
        while ends:
            here = ends.pop()
            if here not in body:
                body.add(here)
                ends += before[here]
    return order, loops


class Path(NamedTuple):
    accesses: Accesses
    arithmetic: int
    cost: int  # instructions, with those of called functions
    instructions: list[Instruction]


@dataclass
class Kernel:
    name: str
    registers: int
    shared: int
    blocks: list[Block]

    def __post_init__(self) -> None:
        self.order, self.loops = walk(self.blocks)
        loads = {
            first: sum(self.blocks[b].accesses().loads for b in body) for first, body in self.loops.items()
        }
        # where the main loop begins: the one that loads most, of those the smallest
        self.main = max(
            (first for first in loads if loads[first]),
            key=lambda first: (loads[first], -len(self.loops[first])),
            default=None,
        )

    @cached_property
    def paths(self) -> list[Path]:
        """For each number of accesses the hot path: once through the main loop, or without one through the kernel.

        It has the most arithmetic, which leaves no vector out, and of those the fewest instructions: no division in 64
        bits, no rest of a vector that is cut off. What other loops do does not count as done.
        """
        inside = set(self.order) if self.main is None else self.loops[self.main]
        first = 0 if self.main is None else self.main
        looped = {
            b for start, body in self.loops.items() if start != self.main and body <= inside for b in body
        }
        ready: dict[int, dict[Accesses, tuple[tuple[int, int], int | None, Accesses]]] = {}
        for (
            here
        ) in self.order:  # for what a way from there on accesses: its rank, the next block, and what is left
            if here not in inside:
                continue
            block = self.blocks[here]
            mine = (Accesses(), 0) if here in looped else (block.accesses(), block.arithmetic())
            cost = len(block.instructions) + block.called
            ways: list[tuple[int | None, Accesses, tuple[int, int]]] = []
            if block.leaves if self.main is None else first in block.next:
                ways.append((None, Accesses(), (0, 0)))
            for after in block.next:
                ways += [(after, rest, rank) for rest, (rank, _, _) in ready.get(after, {}).items()]
            best = ready[here] = {}
            for after, rest, rank in ways:
                total = mine[0].plus(rest)
                ranked = (rank[0] + mine[1], rank[1] - cost)
                if total not in best or ranked > best[total][0]:
                    best[total] = (ranked, after, rest)
        paths = []
        for total, ((arithmetic, cost), _, _) in ready[first].items():
            instructions, here, rest = [], first, total
            while here is not None:
                instructions += self.blocks[here].instructions
                _, here, rest = ready[here][rest]
            paths.append(Path(total, arithmetic, -cost, instructions))
        return paths

    def in_flight(self, path: Path) -> int:
        """The most vectors that a thread has asked for and not waited for; a loop is walked twice."""
        waiting: list[set[int]] = []
        most = 0
        for instruction in path.instructions * (1 if self.main is None else 2):
            named = instruction.registers()
            arrived = max((i + 1 for i, registers in enumerate(waiting) if named & registers), default=0)
            del waiting[:arrived]  # they arrive in their order
            if accesses(instruction).loads:
                register = int(re.match(r"R(\d+)", instruction.operands)[1])
                waiting.append(set(range(register, register + 4)))
            most = max(most, len(waiting))
        return most


def read(text: str, wanted: Callable[[str], object] = bool) -> Iterator[Kernel]:
    """The kernels of a cubin, all sections of which nvdisasm has printed, whose names are wanted."""
    registers = {name: int(number, 16) for name, number in REGISTERS.findall(text)}
    shared = {name: int(size) for name, size in SHARED.findall(text)}
    for section in text.split("\n\t.section\t.text.")[1:]:
        name, _, code = section.partition("\n\t.section\t")[0].partition(",")
        if wanted(name):
            yield Kernel(name, registers[name], shared.get(name, 0), parse(code))


def parse(code: str) -> list[Block]:
    blocks = [Block()]
    starts: dict[str, int] = {}
    for line in code.splitlines():
        if label := LABEL.match(line):
            if blocks[-1].instructions:
                blocks.append(Block())
            starts[label[1]] = len(blocks) - 1
        elif found := INSTRUCTION.match(line):
            instruction = Instruction((found[1] or "").strip(), found[2], found[3])
            blocks[-1].instructions.append(instruction)
            if instruction.base in ENDS:
                blocks.append(Block())
    functions = sorted(start for name, start in starts.items() if name.startswith("$"))
    for i, block in enumerate(blocks):
        for instruction in block.instructions:
            if instruction.base == "CALL":  # up to the next function: more than is run
                start = starts[instruction.target]
                end = min((f for f in functions if f > start), default=len(blocks))
                block.called += sum(len(b.instructions) for b in blocks[start:end])
        last = block.instructions[-1] if block.instructions else None
        if last is not None and last.base == "BRA":
            block.next.append(starts[last.target])
        block.leaves = last is not None and last.base == "EXIT"
        if i + 1 < len(blocks) and (last is None or last.base not in ENDS or last.conditional):
            block.next.append(i + 1)
    return blocks
