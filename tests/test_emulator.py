"""What the emulator of tests/emulator sees: kernels that are wrong, and right ones beside them."""

import subprocess

import pytest


@pytest.fixture(scope="session")
def run(device, emulator):
    """Runs a kernel of tests/emulator/broken.cu, with its order of threads and blocks."""

    def run(name, seed=0):
        return subprocess.run([emulator.parent / "broken", name, str(seed)], capture_output=True, text=True)

    return run


@pytest.mark.parametrize(
    "name",
    [
        "shared memory that is written",
        "a neighbour behind a barrier",
        "a neighbour of the warp behind a shuffle",
        "in place, one's own element",
        "another block's element behind a cluster's barrier",
        "a vector",
        "a shuffle",
        "early, waits",
        "early, waits for nothing it needs",
        "early, two behind one that has waited",
        "early, behind one with shared memory",
    ],
)
def test_right(run, name):
    result = run(name)
    assert result.returncode == 0, result.stderr
    assert "nan" not in result.stdout


@pytest.mark.parametrize(
    "name, message",
    [
        ("a neighbour behind no barrier", "a race with a"),
        ("a neighbour of another warp behind a shuffle", "a race with a"),
        ("a neighbour of the warp behind no shuffle", "a race with a"),
        ("in place, another block's element", "a race with a"),
        ("another block's element behind no barrier", "a race with a"),
        ("a cluster's barrier of some blocks", "a cluster's barrier that not every block reaches"),
        ("a cluster's barrier without a cluster", "a cluster's barrier in a launch without one"),
        ("a misaligned vector", "a misaligned access"),
        ("a misaligned vector of shared memory", "a misaligned access"),
        ("a shuffle of part of a warp", "a shuffle that not the whole warp reaches"),
        ("a barrier that some threads pass elsewhere", "a barrier that not every thread reaches"),
        ("early, reads before it waits", "without having waited"),
        ("early, writes before it waits", "without having waited"),
        ("early, does not wait in every thread", "without having waited"),
        ("early, two behind one that has not waited", "without having waited"),
    ],
)
def test_wrong(run, name, message):
    result = run(name)
    assert result.returncode != 0
    assert message in result.stderr
    assert "seed was 0" in result.stderr


def test_shared_memory_that_a_block_has_not_written_is_nan(run):
    assert "nan" in run("shared memory that is not written").stdout


def test_blocks_take_turns_in_an_order_that_the_seed_gives(run):
    orders = {seed: run("blocks", seed).stdout.split()[:-1] for seed in range(10)}
    assert len({tuple(order) for order in orders.values()}) > 5
    assert orders[3] == run("blocks", 3).stdout.split()[:-1]
    assert any(order[0] != order[1] for order in orders.values())


def test_one_of_the_two_builds_rounds_a_product_and_a_sum_once(run, emulator):
    assert (run("a product and a difference").stdout != "0\n") == (emulator.parent.name == "contracted")
