"""Readers of recordings: windows and splits of small files in each format, and what is refused."""

import numpy as np
import pytest
import torch

from drsn_ops.arguments import InputError
from drsn_ops.data.cwru_files import CWRU_48_KHZ, CWRU_NUMBERS
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


def test_cwru_beside_what_is_none_of_it(numbered):
    """Also among folders without recordings."""
    (numbered / "labels.csv").write_text("1,2")
    (numbered / "figures").mkdir()
    (numbered / "figures" / "a.png").write_text("")
    data = read(numbered, points=100)
    assert len(data.files) == 16
    assert [path.name for path in data.passed_over] == ["a.png", "labels.csv"]


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


@pytest.mark.parametrize(
    "name, record, message",
    [
        ("105", 118, "named after record 105, but holds record 118"),
        ("105", 109, "named after record 105, but holds record 109 of 48 kHz"),
        ("105", 56, "named after record 105, but holds record 3001"),
        ("3001", 57, "named after record 3001, but holds record 3002"),
        ("IR007_3", 118, "named after inner race 0.007 at load 3, but holds record 118"),
        # the published name of a record of 12 kHz and of one of 48
        ("IR007_3", 112, "named after inner race 0.007 at load 3, but holds record 112 of 48 kHz"),
        ("IR007_3", 105, "named after inner race 0.007 at load 3, but holds record 105"),
        ("OR007@6_1", 133, "named after outer race 0.007 at load 1, but holds record 133"),
        ("B007", 105, "named after ball 0.007, but holds record 105"),
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
    refused(plain, r"good/\S*: holds the values of \S*; expected each recording once: remove one of them")
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


@pytest.mark.parametrize("normalise", ["none", "mean"])
def test_quiet_starts_are_no_copies(noisy, normalise):
    """What counts is the range of what is compared, of each channel, not that of a burst later, or beside it."""
    for label, name in enumerate(("broken", "good")):
        for i in range(2):
            quiet = 1e-3 * noise(2 * label + i, 50)
            burst = [100 * noise(9 + 2 * label + i, 50)] * i
            np.save(noisy / name / f"{i}.npy", np.concatenate([quiet, *burst]))
    assert len(read(noisy, points=50, normalise=normalise).files) == 4
    for label, name in enumerate(("broken", "good")):
        for i in range(2):
            values = np.stack([1e-3 * noise(2 * label + i), 100 * noise(9)], 1)
            np.save(noisy / name / f"{i}.npy", values)
    assert len(read(noisy, points=50, normalise=normalise, channels=(0, 1)).files) == 4
    np.save(noisy / "good" / "1.npy", np.stack([1e-3 * noise(0), 100 * noise(9)], 1).astype(np.float32))
    with pytest.raises(InputError, match="good/1.npy: holds the values of .*broken/0.npy"):
        read(noisy, points=50, normalise=normalise, channels=(0, 1))


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
        r"broken/0.npy: holds values from 99999\S* to 10000\S*, whose differences float32 loses; --normalise mean",
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
        with pytest.raises(
            InputError, match="good/0.npy: holds values .* float32 loses; --normalise standard"
        ):
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


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        read(path, points=50)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content, message",
    [
        (
            b"1\nnan\nnan\n" + 60 * b"1\n",
            "2.csv: holds values that are not finite, 2 of them, the first at point 1, ",
        ),
        (
            b"-inf\n" + 60 * b"1\n",
            "2.csv: holds values .* 1 of them, the first at point 0, counted from 0; fill gaps",
        ),
        (
            60 * b"1\n" + b"1e39\n",
            "2.csv: holds values up to 1e\\+39, too large for float32; --normalise standard takes them",
        ),
        (60 * b"1\n" + b"x\n", "2.csv: line 61 holds 'x', expected a number"),
        (
            b"1\n2\n",
            "2.csv: has 2 points, fewer than a window of 50 has; --points 2 or less fits all files, and --pad",
        ),
    ],
)
def test_files_that_are_no_recording(plain, content, message):
    (plain / "good" / "2.csv").write_bytes(content)
    refused(plain, message)


def test_a_file_that_holds_no_record(numbered):
    io.savemat(numbered / "105.mat", {"x": np.zeros(100)})
    refused(numbered, "105.mat: named after record 105, but holds no record of CWRU")


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
        ({"channels": None}, "channels: got None, expected a name, or several"),
        ({"channels": (0, True)}, "channels: got .*, expected a name, or several"),
        ({"variable": b"x"}, "variable: got b'x', expected a name, or several"),
        ({"classes": (None,)}, "classes: got .*, expected a name, or several"),
        ({"normalise": "std"}, "normalise: got 'std', expected 'none', 'mean' or 'standard'"),
    ],
)
def test_errors(plain, options, message):
    with pytest.raises(ValueError, match=message):
        read(plain, **options)
