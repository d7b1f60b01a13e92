"""Readers of recordings: windows and splits of small files in each format, and what is refused."""

import numpy as np
import pytest
import torch

from drsn_ops.arguments import InputError
from drsn_ops.data.cwru_files import CWRU_48_KHZ, CWRU_NUMBERS, cwru_class
from drsn_ops.data.recordings import read_recordings

io = pytest.importorskip("scipy.io")


def read(place, **options):
    """With the windows as they are, whose values are known."""
    return read_recordings(place, **{"normalise": "none", **options})


def ramp(number, points):
    """Values from which the recording of a window follows, and its place there."""
    return number + np.arange(points) / 1e4


def noise(seed, points=200):
    return np.random.default_rng(seed).standard_normal(points)


def write_cwru(path, number, values):
    """A file as published: columns of float64, named after the record."""
    channels = {f"X{number:03d}_{end}_time": values[:, None] for end in ("DE", "FE")}
    channels[f"X{number:03d}_FE_time"] = -values[:, None]
    io.savemat(path, {**channels, f"X{number:03d}RPM": [[1797]]})


def write_csv(path, values):
    path.write_text("".join(f"{value!r}\n" for value in values.tolist()))


@pytest.fixture
def numbered(tmp_path):
    """Four files of each of three classes with a fault, as published, and the baseline at four times the rate."""
    for number in (*range(105, 109), *range(118, 122), *range(197, 201)):
        write_cwru(tmp_path / f"{number}.mat", number, ramp(number, 100))
    for number in range(97, 101):
        # 80 Hz at 48 kHz, which is slow enough to come through the filter
        wave = number + np.sin(2 * np.pi * 80 / 48_000 * np.arange(2400))
        write_cwru(tmp_path / f"{number}.mat", number, wave)
    return tmp_path


@pytest.fixture
def plain(tmp_path):
    """Two classes of three recordings, in .npy and .csv."""
    for label, name in enumerate(("broken", "good")):
        (tmp_path / name).mkdir()
        for i in range(2):
            np.save(tmp_path / name / f"{i}.npy", ramp(10 * label + i, 50))
        write_csv(tmp_path / name / "2.csv", ramp(10 * label + 2, 50))
    return tmp_path


def both(data):
    """Every window with its class and recording, of both splits."""
    return [torch.cat(parts) for parts in zip(data.train, data.test, strict=True)]


def assert_split_by_recording(data, tested):
    """No recording is in both splits, every one is in one, and as many of each class are tested on."""
    train, test = (set(split.recording.tolist()) for split in (data.train, data.test))
    assert not train & test and train | test == set(range(len(data.files)))
    for label in range(len(data.classes)):
        assert len(set(data.test.recording[data.test.labels == label].tolist())) == tested
        assert (data.train.labels == label).any()
    for split in (data.train, data.test):
        assert split.x.dtype == torch.float32 and split.x.dim() == 3 and split.x.shape[1] == 1
        assert split.labels.dtype == split.recording.dtype == torch.int64
        assert len(split.x) == len(split.labels) == len(split.recording)


def test_cwru(numbered):
    data = read(numbered, points=30)
    assert data.classes == ("normal", "inner race 0.007", "ball 0.007", "outer race 0.014")
    assert_split_by_recording(data, tested=1)
    assert [path.name for path in data.files] == sorted(path.name for path in numbered.iterdir())
    x, labels, recording = both(data)
    faulty = labels > 0
    # three windows of 30 fit in 100 points, twenty in 600
    assert faulty.sum() == 3 * 12 and (~faulty).sum() == 20 * 4
    for window, label, i in zip(x[faulty, 0], labels[faulty], recording[faulty], strict=True):
        number = int(data.files[i].stem)
        assert number in CWRU_NUMBERS[data.classes[label]]
        first = round((window[0].item() - number) * 1e4)
        assert first in (0, 30, 60)
        torch.testing.assert_close(window, torch.from_numpy(ramp(number, 100)[first : first + 30]).float())


def test_cwru_baseline_is_resampled(numbered):
    data = read(numbered, points=100)
    x, labels, recording = both(data)
    wave = torch.sin(2 * torch.pi * 80 / 12_000 * torch.arange(600))
    for i in recording[labels == 0].unique():
        whole = x[recording == i].flatten() - int(data.files[i].stem)
        torch.testing.assert_close(whole[50:-50], wave[50:-50], rtol=0, atol=0.01)
        # the filter knows nothing of the wave beyond the ends, but its mean: an offset of 100 does not ring
        torch.testing.assert_close(whole, wave, rtol=0, atol=0.1)


def test_cwru_names_in_capitals_and_hidden_files(numbered):
    (numbered / "105.mat").rename(numbered / "105.MAT")
    (numbered / "._106.mat").write_bytes(b"of macOS")
    data = read(numbered, points=100)
    assert {path.name for path in data.files if "10" in path.stem} == {
        "100.mat",
        "105.MAT",
        "106.mat",
        "107.mat",
        "108.mat",
    }


@pytest.mark.parametrize("copy", ["IR007_0.mat", "0105.mat", "105.MAT"])
def test_a_record_in_two_files(numbered, copy):
    """As under its number and its name: windows of the one would be tested on, of the other trained on."""
    # the values may differ, as those of a copy that is cut short do
    write_cwru(numbered / copy, 105, ramp(0, 90))
    refused(numbered, r"/(105|IR007_0)\.(mat|MAT): holds record 105, as does .*/0?105\.")


def test_a_record_in_two_classes(tmp_path):
    for name, records in (("worn", (105, 106)), ("fine", (107, 105))):
        (tmp_path / name).mkdir()
        for record in records:
            write_cwru(tmp_path / name / f"{record}.mat", record, ramp(record, 64))
    refused(tmp_path, "worn/105.mat: holds record 105, as does .*fine/105.mat; expected each recording once")


def test_cwru_by_folder(tmp_path):
    for name, first in (("worn", 105), ("fine", 118)):
        (tmp_path / name).mkdir()
        for i in range(3):
            write_cwru(tmp_path / name / f"any{i}.mat", first + i, ramp(first + i, 64))
    data = read(tmp_path, points=64, test_share=0.5)
    assert data.classes == ("fine", "worn")
    # half of three is rounded to two
    assert_split_by_recording(data, tested=2)
    x, labels, _ = both(data)
    assert [round(window[0, 0].item()) < 110 for window in x] == labels.bool().tolist()


def test_published_numbers_and_names(tmp_path):
    numbers = [number for numbers in CWRU_NUMBERS.values() for number in numbers]
    # 4 loads of the baseline and 15 faults, as the tables list them
    assert len(numbers) == len(set(numbers)) == 64
    for name, label in (
        ("100", "normal"),
        ("Normal_3", "normal"),
        ("108", "inner race 0.007"),
        ("IR021_2", "inner race 0.021"),
        ("3004", "inner race 0.028"),
        ("B014_0", "ball 0.014"),
        ("3005", "ball 0.028"),
        ("160", "outer race 0.007"),
        ("OR007@12_3", "outer race 0.007"),
        ("OR021@6_0", "outer race 0.021"),
    ):
        assert cwru_class(tmp_path / f"{name}.mat") == label
    # at 48 kHz, of the fan end, of no such size
    for name in ("109", "157", "270", "IR028", "OR028@6_0", "bearing"):
        with pytest.raises(InputError, match=f"{name}.mat: not the number or name of a CWRU"):
            cwru_class(tmp_path / f"{name}.mat")


@pytest.mark.parametrize(
    "name, record, message",
    [
        ("105", 118, "named after record 105, but holds record 118"),
        ("105", 109, "named after record 105, but holds record 109 of 48 kHz"),
        ("105", 56, "named after record 105, but holds record 56"),
        ("3001", 57, "named after record 3001, but holds record 57"),
        ("IR007_3", 118, "named after inner race 0.007, but holds record 118"),
        # the published name of a record of 12 kHz and of one of 48
        ("IR007_3", 112, "named after inner race 0.007, but holds record 112 of 48 kHz"),
        ("Normal_1", 97, "named after record 98, but holds record 97"),
    ],
)
def test_a_file_that_holds_another_record_than_its_name_says(tmp_path, name, record, message):
    write_cwru(tmp_path / f"{name}.mat", record, noise(0, 400))
    write_cwru(tmp_path / "200.mat", 200, noise(1, 400))
    refused(tmp_path, f"{name}.mat: {message}")


def test_the_variables_of_the_largest_faults(tmp_path):
    """Their variables have other numbers than their files."""
    for number, variable in ((3001, 56), (3004, 59), (3005, 48), (3008, 51)):
        write_cwru(tmp_path / f"{number}.mat", variable, noise(number, 100))
    data = read(tmp_path, points=100)
    assert data.classes == ("inner race 0.028", "ball 0.028")
    assert_split_by_recording(data, tested=1)


def test_records_at_48_khz_are_resampled(tmp_path):
    """Beside those at 12 kHz, in folders of any name: otherwise the rate would tell them apart."""
    random = np.random.default_rng(0)
    for name, record in (("12", 105), ("12", 106), ("48", 109), ("48", 112)):
        (tmp_path / name).mkdir(exist_ok=True)
        rate = 48_000 if name == "48" else 12_000
        wave = np.sin(2 * np.pi * 80 / rate * np.arange(rate // 20) + 0.01 * record)
        noise = random.standard_normal(4 * len(wave))[: len(wave)] / 1000
        write_cwru(tmp_path / name / f"any{record}.mat", record, wave + noise)
    data = read(tmp_path, points=600)
    x, _, recording = both(data)
    assert recording.sort().values.tolist() == [0, 1, 2, 3]
    for window, i in zip(x[:, 0], recording.tolist(), strict=True):
        record = int(data.files[i].stem[3:])
        wave = torch.sin(2 * torch.pi * 80 / 12_000 * torch.arange(600) + 0.01 * record)
        torch.testing.assert_close(window[20:-20], wave[20:-20], rtol=0, atol=0.02)
    numbers = {number for numbers in CWRU_NUMBERS.values() for number in numbers}
    assert numbers & CWRU_48_KHZ == set(CWRU_NUMBERS["normal"])


@pytest.mark.parametrize("name", ["99", "Normal_2"])
def test_file_with_two_records(tmp_path, name):
    for label, stem, number in (
        ("normal", name, 99),
        ("normal", "a", 98),
        ("worn", "b", 105),
        ("worn", "c", 106),
    ):
        (tmp_path / label).mkdir(exist_ok=True)
        write_cwru(tmp_path / label / f"{stem}.mat", number, np.full(400, float(number)))
    path = tmp_path / "normal" / f"{name}.mat"
    io.savemat(path, {f"X{n:03d}_DE_time": np.full((400, 1), float(n)) for n in (98, 99)})
    data = read(tmp_path, points=100)
    x, _, recording = both(data)
    assert x[recording == data.files.index(path)][0, 0, 50].item() == pytest.approx(99, rel=0.01)


def test_folder(plain):
    data = read(plain, points=25)
    assert data.classes == ("broken", "good")
    assert_split_by_recording(data, tested=1)
    assert [str(path.relative_to(plain)) for path in data.files] == [
        f"{name}/{file}" for name in data.classes for file in ("0.npy", "1.npy", "2.csv")
    ]
    for window, label, i in zip(*both(data), strict=True):
        number = 10 * label + i - 3 * label
        first = 25 * round((window[0, 0].item() - number.item()) * 1e4 / 25)
        expected = torch.from_numpy(ramp(number.item(), 50)[first : first + 25]).float()
        torch.testing.assert_close(window[0], expected)


@pytest.mark.parametrize("name", ["good/copy.npy", "broken/0.npy"])
def test_a_copied_file(plain, name):
    values = np.load(plain / "good" / "0.npy")
    np.save(plain / name, values)
    refused(plain, r"good/\S*: holds the values of \S*; expected each recording once")
    with pytest.raises(InputError) as caught:
        read(plain, points=50)
    assert str(plain / name) in str(caught.value) and str(plain / "good" / "0.npy") in str(caught.value)


@pytest.fixture
def noisy(tmp_path):
    """Two classes of two recordings, all of other values."""
    for label, name in enumerate(("broken", "good")):
        (tmp_path / name).mkdir()
        for i in range(2):
            np.save(tmp_path / name / f"{i}.npy", noise(2 * label + i))
    return tmp_path


@pytest.mark.parametrize("normalise", ["none", "mean"])
@pytest.mark.parametrize(
    "copy",
    [
        lambda values: values.astype(np.float32),
        lambda values: values.astype(np.float16),
        lambda values: np.round(values, 4),
        lambda values: values[:150],
        lambda values: np.append(values, noise(9, 30)),
    ],
    ids=["float32", "float16", "printed", "shorter", "longer"],
)
def test_a_copy_in_another_precision_or_length(noisy, copy, normalise):
    """A network cannot tell it from the other, which it may have been trained on."""
    np.save(noisy / "good" / "2.npy", copy(noise(0)))
    with pytest.raises(InputError, match="good/2.npy: holds the values of .*broken/0.npy; expected each"):
        read(noisy, points=50, normalise=normalise)
    write_csv(noisy / "good" / "2.csv", copy(noise(0)))
    (noisy / "good" / "2.npy").unlink()
    with pytest.raises(InputError, match="good/2.csv: holds the values of .*broken/0.npy; expected each"):
        read(noisy, points=50, normalise=normalise)


def test_a_copy_with_another_offset(noisy):
    """To a network that sees windows less their mean it is a copy, to another one it is not."""
    np.save(noisy / "good" / "2.npy", noise(0) + 3)
    assert len(read(noisy, points=50).files) == 5
    with pytest.raises(InputError, match="good/2.npy: holds the values of .*broken/0.npy; expected each"):
        read(noisy, points=50, normalise="mean")


def test_recordings_that_differ_in_one_window_are_no_copies(noisy):
    values = noise(0)
    values[199] += 0.1
    np.save(noisy / "good" / "2.npy", values)
    assert len(read(noisy, points=50).files) == 5
    # what is left at the end is not seen
    refused_at(noisy, 60)


def refused_at(path, points):
    with pytest.raises(InputError, match="good/2.npy: holds the values of .*broken/0.npy"):
        read(path, points=points)


def test_cwru_copies_under_another_number(numbered):
    write_cwru(numbered / "107.mat", 107, ramp(105, 100).astype(np.float32))
    refused(numbered, "107.mat: holds the values of .*105.mat; expected each recording once")


def test_mean_of_each_window(noisy):
    for step in (None, 30):
        plain = both(read(noisy, points=50, step=step))
        less = both(read(noisy, points=50, step=step, normalise="mean"))
        torch.testing.assert_close(less[0], plain[0] - plain[0].mean(-1, keepdim=True), rtol=0, atol=1e-6)
        assert torch.equal(less[1], plain[1]) and less[0].dtype == torch.float32


def test_a_small_vibration_on_a_large_offset(noisy):
    """Float32 cannot hold both: the mean is subtracted before, or the file is refused."""
    expected = both(read(noisy, points=50, normalise="mean"))
    for path in noisy.rglob("*.npy"):
        np.save(path, np.load(path) + 1e6)
    refused(
        noisy,
        r"broken/0.npy: holds values from 99999\S* to 10000\S*, whose differences float32 loses;",
    )
    found = both(read(noisy, points=50, normalise="mean"))
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)
    # what float32 has room for is taken as it is
    for path in noisy.rglob("*.npy"):
        np.save(path, np.round((np.load(path) - 1e6) * 100).astype(np.int32) + 10_000_000)
    assert both(read(noisy, points=50))[0].min() > 9_999_000


def test_values_too_small_for_float32(noisy):
    np.save(noisy / "good" / "0.npy", noise(7) * 1e-44)
    for normalise in ("none", "mean"):
        with pytest.raises(InputError, match="good/0.npy: holds values .* whose differences float32 loses"):
            read(noisy, points=50, normalise=normalise)


def test_step(plain):
    for step, windows in ((None, 2), (25, 2), (10, 4), (20, 2), (50, 1)):
        x, _, _ = both(read(plain, points=20, step=step))
        assert len(x) == 6 * windows
    assert torch.equal(read(plain, points=20).train.x, read(plain, points=20, step=20).train.x)


def test_split_follows_the_seed(plain):
    for i in range(3, 12):
        np.save(plain / "good" / f"{i}.npy", ramp(20 + i, 50))
    tested = [tuple(read(plain, points=50, seed=seed).test.recording.tolist()) for seed in range(8)]
    again = [tuple(read(plain, points=50, seed=seed).test.recording.tolist()) for seed in range(8)]
    assert tested == again
    assert len(set(tested)) > 4
    # 3 of 12 and 1 of 3
    assert {len(recordings) for recordings in tested} == {4}


def test_columns(plain):
    for i, path in enumerate(tables(plain, ".npy")):
        np.save(path, table(i))
    for column in (0, 1, "0", "1"):
        x, _, recording = both(read(plain, points=50, channels=(str(column),)))
        for window, i in zip(x[:, 0], recording.tolist(), strict=True):
            assert torch.equal(window, torch.from_numpy(table(i)[:, int(column)]).float())
    refused(plain, r"broken/0\.npy: has 2 columns; expected one, or a column to be chosen")
    for column, message in (
        (2, "a column 2, counted from 0"),
        ("acceleration", "one of the name 'acceleration'"),
    ):
        with pytest.raises(InputError, match=rf"broken/0\.npy: has 2 columns; expected {message}"):
            read(plain, points=50, channels=(str(column),))


def tables(plain, suffix):
    """Two files of this format for each class, in the order in which they are read."""
    paths = []
    for name in ("broken", "good"):
        for path in (plain / name).iterdir():
            path.unlink()
        paths += [plain / name / f"{i}{suffix}" for i in range(2)]
    return paths


def table(i):
    """Two columns of 50 values, none of which another table has."""
    return np.stack([ramp(i, 50), ramp(100 + i, 50)], axis=1)


@pytest.mark.parametrize(
    "head", ["time,acceleration", '"time", "acceleration"', "# of a logger\n\ntime , acceleration"]
)
def test_named_columns(plain, head):
    for i, path in enumerate(tables(plain, ".csv")):
        path.write_text("\n".join([head, *(f"{a!r},{b!r}" for a, b in table(i).tolist())]))
    by_name, by_number = (read(plain, points=50, channels=(str(column),)) for column in ("acceleration", 1))
    assert torch.equal(by_name.train.x, by_number.train.x)
    for window, i in zip(by_name.train.x[:, 0], by_name.train.recording.tolist(), strict=True):
        assert torch.equal(window, torch.from_numpy(table(i)[:, 1]).float())
    # the time, which comes first, is not trained on unasked
    refused(
        plain,
        r"0\.csv: has 2 columns, 'time', 'acceleration'; expected one, or a column to be chosen",
    )
    for column, message in ((2, "a column 2, counted from 0"), ("speed", "one of the name 'speed'")):
        with pytest.raises(InputError, match=rf"has 2 columns, 'time', 'acceleration'; expected {message}"):
            read(plain, points=50, channels=(str(column),))


def test_two_columns_of_one_name(plain):
    for i, path in enumerate(tables(plain, ".csv")):
        path.write_text("\n".join(["g,g", *(f"{a!r},{b!r}" for a, b in table(i).tolist())]))
    with pytest.raises(InputError, match="has 2 columns, 'g', 'g'; expected one of the name 'g'"):
        read(plain, points=50, channels=("g",))


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        read(path, points=50)
    assert "\n" not in str(caught.value)


def npy(shape, descr="<f8"):
    """A .npy file of 50 float64 that says it has another shape."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(400)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("0.npy", b"", "0.npy: cannot be read"),
        ("0.npy", b"\x93NUMPY\x01\x00", "0.npy: cannot be read"),
        ("0.npy", b"PK\x03\x04" + bytes(60), "0.npy: cannot be read: the magic string is not correct"),
        (
            "0.npy",
            npy("(99999999999999999,)"),
            f"0.npy: .*holds 400 bytes of data where its header says {8 * (10**17 - 1)}",
        ),
        ("0.npy", npy("(4294967296, 4294967296)"), "0.npy: cannot be read: it holds 400 bytes of data where"),
        ("0.npy", npy("(-5, -10)"), "0.npy: cannot be read: "),
        (
            "0.npy",
            b"\x93NUMPY\x03\x00" + bytes(60),
            r"0.npy: .* it is of .npy version 3.0, expected 1.0 or 2.0",
        ),
        (
            "0.npy",
            npy("(49,)"),
            "0.npy: cannot be read: it holds 400 bytes of data where its header says 392",
        ),
        (
            "0.npy",
            npy("(50,)")[:-1],
            "0.npy: cannot be read: it holds 399 bytes of data where its header says 400",
        ),
        ("0.npy", npy("(50,)", "<f7"), "0.npy: cannot be read"),
        ("0.npy", npy("(50,)")[:40], "0.npy: cannot be read"),
        ("0.npy", npy("((((50,)"), "0.npy: cannot be read"),
        ("0.npy", b"\x93NUMPY\x09\x00" + npy("(50,)")[8:], "0.npy: cannot be read"),
        (
            "2.csv",
            b"1\n2\n\n3\n" + 60 * b"1\n",
            "2.csv: cannot be read: line 3 is blank, a gap between numbers",
        ),
        (
            "2.csv",
            b"# g\nv\n1\n \t\n3\n" + 60 * b"1\n",
            "2.csv: cannot be read: line 4 is blank, a gap between",
        ),
        ("2.csv", 60 * b"1\n" + b'""\n1\n', "2.csv: cannot be read"),
        ("2.csv", b"", "2.csv: cannot be read: it holds no numbers"),
        ("2.csv", b"time\n", "2.csv: cannot be read: it holds no numbers"),
        ("2.csv", b"1\n2\nx\n", "2.csv: cannot be read"),
        ("2.csv", b"1,2\n3\n", "2.csv: cannot be read"),
        ("2.csv", b"1.0x\n" + 60 * b"1\n", "2.csv: cannot be read: could not convert string '1.0x'"),
        ("2.csv", b"-.5.\n" + 60 * b"1\n", "2.csv: cannot be read: could not convert string '-.5.'"),
        ("2.csv", b"1,\n" + 60 * b"1\n", "2.csv: cannot be read"),
        ("2.csv", b"time,1\n" + 60 * b"1,2\n", "2.csv: cannot be read: could not convert string 'time'"),
        (
            "2.csv",
            b"a,b\n" + 60 * b"1\n",
            "2.csv: cannot be read: its first line names 2 columns, the others have 1",
        ),
        ("2.csv", b"nan\n" + 60 * b"1\n", "2.csv: holds values that are not finite"),
        ("2.csv", b"-inf\n" + 60 * b"1\n", "2.csv: holds values that are not finite"),
        ("2.csv", 60 * b"1\n" + b"nan\n", "2.csv: holds values that are not finite"),
        ("2.csv", 60 * b"1\n" + b"1e39\n", "2.csv: holds values that are not finite in float32"),
        ("2.csv", b"\xff\xfe\x00", "2.csv: cannot be read"),
        (
            "2.csv",
            b"1\n2\n",
            "2.csv: has 2 points, fewer than a window of 50 has; --points 2 or less fits all files, and --pad",
        ),
    ],
)
def test_damaged_files(plain, name, content, message):
    (plain / "good" / name).write_bytes(content)
    refused(plain, message)


def test_blank_lines_around_the_numbers(plain):
    expected = read(plain, points=50)
    for path in plain.rglob("2.csv"):
        lines = path.read_text().split("\n")
        path.write_text(
            "\n".join(["", "# of a logger", "value", "", *lines[:20], "# half", *lines[20:], "", " ", ""])
        )
    found = read(plain, points=50)
    assert torch.equal(found.train.x, expected.train.x) and torch.equal(found.test.x, expected.test.x)


@pytest.mark.parametrize("fortran", [False, True])
def test_arrays_in_either_order(plain, fortran):
    for i, path in enumerate(tables(plain, ".npy")):
        values = np.asfortranarray(table(i)) if fortran else table(i)
        np.save(path, values)
    x, _, recording = both(read(plain, points=50, channels=("1",)))
    for window, i in zip(x[:, 0], recording.tolist(), strict=True):
        assert torch.equal(window, torch.from_numpy(table(i)[:, 1]).float())


@pytest.mark.parametrize(
    "values, message",
    [
        (np.full(60, np.inf), "holds values that are not finite"),
        (np.full(60, 1e39), "holds values that are not finite in float32"),
        (np.zeros((1, 60)), "has 60 columns; expected one, or a column to be chosen"),
        (np.zeros(60, complex), "holds complex128, expected real numbers"),
        (np.array(["a"] * 60), "expected real numbers"),
        (np.array([{}] * 60), "cannot be read"),
        (np.zeros((2, 60, 3)), r"has shape \(2, 60, 3\), expected \(points,\) or \(points, columns\)"),
        (np.zeros(49), "has 49 points"),
    ],
)
def test_arrays_that_are_no_recording(plain, values, message):
    np.save(plain / "good" / "0.npy", values, allow_pickle=True)
    refused(plain, "0.npy: .*" + message)


def test_damaged_cwru(numbered):
    path = numbered / "105.mat"
    whole = path.read_bytes()
    for content in (b"", whole[:60], whole[: len(whole) // 2], b"x" * len(whole)):
        path.write_bytes(content)
        refused(numbered, "105.mat: not a MATLAB 5 file: ")
    for variables, message in (
        ({"X105_FE_time": np.zeros(60)}, "has no variable X..._DE_time"),
        ({"X106_DE_time": np.zeros(60), "X107_DE_time": np.zeros(60)}, "several and none of its number"),
        ({"X105_DE_time": np.full(60, np.nan)}, "holds values that are not finite"),
        ({"X105_DE_time": np.full(60, -1e39)}, "holds values that are not finite in float32"),
        ({"X105_DE_time": "text"}, "expected real numbers"),
        ({"X105_DE_time": np.full(60, 1j)}, "expected real numbers"),
        ({"X105_DE_time": {"x": np.zeros(60)}}, "expected real numbers"),
        ({"X105_DE_time": np.zeros((60, 2))}, r"X105_DE_time has shape \(60, 2\), expected one column"),
        ({"X105_DE_time": np.zeros(49)}, "has 49 points, fewer than a window of 50"),
    ):
        io.savemat(path, variables)
        refused(numbered, "105.mat: .*" + message)


def test_folders_that_hold_something_else(tmp_path, plain, numbered):
    refused(tmp_path / "nowhere", "nowhere: no such folder or file")
    refused(numbered, "holds both .mat files and folders")
    for path in numbered.glob("*.mat"):
        path.unlink()
    (plain / ".cache").mkdir()
    read(plain, points=50)
    (plain / "empty").mkdir()
    refused(plain, "empty: holds no files; expected recordings of a class")
    refused(plain / "empty", r"empty: holds no recordings \(.mat .csv .* nor folders of them")


def test_a_class_with_one_recording(plain, tmp_path):
    for name in ("0.npy", "2.csv"):
        (plain / "good" / name).unlink()
    refused(plain, "class 'good' has one recording, expected one to train on and one to test")


@pytest.mark.parametrize("share, tested", [(0.01, 1), (0.4, 1), (0.5, 2), (0.99, 2)])
def test_test_share(plain, share, tested):
    assert_split_by_recording(read(plain, points=50, test_share=share), tested)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"points": 0}, "points: got 0, expected an integer of at least 1"),
        ({"step": 0}, "step: got 0, expected an integer of at least 1"),
        ({"test_share": 0}, "test_share: got 0, expected a number between 0 and 1"),
        ({"test_share": 1.0}, "test_share: got 1.0, expected a number between 0 and 1"),
        ({"seed": -1}, "seed: got -1, expected an integer of at least 0"),
        ({"seed": True}, "seed: got True, expected an integer of at least 0"),
        ({"normalise": "std"}, "normalise: got 'std', expected 'none', 'mean' or 'standard'"),
    ],
)
def test_errors(plain, options, message):
    with pytest.raises(ValueError, match=message):
        read(plain, **options)
