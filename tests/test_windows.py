"""From values to windows: cutting, normalisation, padding, channels, sampling rates, and readings that are kept."""

import io
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from drsn_ops.arguments import InputError
from drsn_ops.data.copies import Seen
from drsn_ops.data.rates import brought_to, common_rate, resampled
from drsn_ops.data.recordings import Reading, read_recordings
from drsn_ops.data.signals import FileOptions, Signal
from drsn_ops.data.windows import Cutting

PATH = Path("file.npy")


def cut(values, points=4, step=None, normalise="none", pad=False):
    return Cutting(points, step, normalise, pad).windows(PATH, np.asarray(values, float))


def test_cutting_by_hand():
    assert cut(range(9)).tolist() == [[[0, 1, 2, 3]], [[4, 5, 6, 7]]]
    assert cut(range(9), step=2).tolist() == [[[0, 1, 2, 3]], [[2, 3, 4, 5]], [[4, 5, 6, 7]]]
    channels = np.stack([np.arange(9), -np.arange(9)], 1)
    assert cut(channels).tolist() == [[[0, 1, 2, 3], [0, -1, -2, -3]], [[4, 5, 6, 7], [-4, -5, -6, -7]]]
    # windows as they come: of two of five points each, the last point of each is left
    pieces = np.arange(10).reshape(2, 5, 1)
    assert cut(pieces).tolist() == [[[0, 1, 2, 3]], [[5, 6, 7, 8]]]
    assert cut(pieces, step=1).tolist() == [[[0, 1, 2, 3]], [[1, 2, 3, 4]], [[5, 6, 7, 8]], [[6, 7, 8, 9]]]
    both = np.concatenate([pieces, -pieces], 2)
    assert cut(both).tolist() == [[[0, 1, 2, 3], [0, -1, -2, -3]], [[5, 6, 7, 8], [-5, -6, -7, -8]]]


def test_where_windows_start():
    for values, step, expected in (
        (np.zeros(9), None, [0, 4]),
        (np.zeros((9, 2)), 2, [0, 2, 4]),
        (np.zeros((2, 5, 1)), 1, [0, 1, 5, 6]),
        (np.zeros(3), None, [0]),
    ):
        cutting = Cutting(4, step, "none", pad=True)
        assert cutting.starts(values).tolist() == expected
        assert len(cutting.windows(PATH, values)) == len(expected)


def test_normalisation_by_hand():
    values = [0, 0, 4, 4, 7, 7, 7, 7]
    assert cut(values, normalise="mean").tolist() == [[[-2, -2, 2, 2]], [[0, 0, 0, 0]]]
    # a constant window has no scale
    assert cut(values, normalise="standard").tolist() == [[[-1, -1, 1, 1]], [[0, 0, 0, 0]]]
    channels = np.array([[0, 10], [0, 10], [4, 10], [4, 50]])
    assert cut(channels, normalise="mean").tolist() == [[[-2, -2, 2, 2], [-10, -10, -10, 30]]]
    by_channel = cut(channels, normalise="standard")[0]
    assert by_channel[0].tolist() == [-1, -1, 1, 1]
    np.testing.assert_allclose(by_channel[1], np.array([-1, -1, -1, 3]) / np.sqrt(3), rtol=1e-6)


def test_standard_windows_of_large_offsets():
    """A constant window is zeros though the mean of its values is rounded; a small vibration is whole."""
    assert cut([0.1] * 3000, points=1500, normalise="standard").tolist() == [[[0] * 1500]] * 2
    wave = np.sin(np.arange(100))
    plain, offset = (cut(1e-3 * wave + at, 50, normalise="standard") for at in (0, 1e6))
    np.testing.assert_allclose(offset, plain, atol=1e-6)
    np.testing.assert_allclose(plain.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(plain.std(-1), 1, atol=1e-6)
    assert plain.dtype == np.float32
    # even where float32 could not hold it
    np.testing.assert_allclose(cut(1e-44 * wave, 50, normalise="standard"), plain, atol=1e-6)


def test_one_channel_may_not_be_lost_beside_a_wider_one():
    channels = np.stack([1e6 * np.sin(np.arange(50)), 1e6 + 1e-3 * np.sin(np.arange(50))], 1)
    with pytest.raises(
        InputError, match="file.npy: holds values from 999999.999 to 1000000, .* --normalise mean"
    ):
        cut(channels, 50)
    cut(channels, 50, normalise="mean")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e300, 1.5e308, 1e-150, 1e-305, 3e-320])
@pytest.mark.parametrize("pad", [False, True])
def test_values_near_the_limits_of_float64(scale, pad):
    values = np.random.default_rng(0).uniform(-1, 1, (64, 2))
    expected = cut(values, 64, normalise="standard")
    length = 50 if pad else 64
    expected = cut(values[:length], 64, normalise="standard", pad=pad)
    # beside a channel of another size
    made = np.stack([values[:length, 0] * scale, values[:length, 1]], 1)
    np.testing.assert_allclose(cut(made, 64, normalise="standard", pad=pad), expected, rtol=1e-3, atol=1e-3)
    for normalise in ("none", "mean"):
        with pytest.raises(InputError, match="file.npy: holds values .* float32"):
            cut(made, 64, normalise=normalise, pad=pad)


@pytest.mark.parametrize("normalise", ["none", "mean", "standard"])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_whole_numbers_that_float64_loses(normalise, dtype):
    values = np.arange(8, dtype=dtype) + np.iinfo(dtype).max // 2 + np.iinfo(dtype).max // 4
    cutting = Cutting(4, None, normalise)
    with pytest.raises(
        InputError, match="file.npy: holds whole numbers from .* whose differences float64 loses"
    ):
        cutting.windows(PATH, values)
    # over the whole range nothing is lost
    wide = np.array([np.iinfo(dtype).min, np.iinfo(dtype).max] * 4, dtype=dtype)
    assert np.ptp(cutting.windows(PATH, wide)) > 1


def test_padding_by_hand():
    assert cut([1, 3], pad=True).tolist() == [[[2, 1, 3, 2]]]
    assert cut([1, 2, 6], pad=True).tolist() == [[[1, 2, 6, 3]]]
    assert cut([1, 3], pad=True, normalise="mean").tolist() == [[[0, -1, 1, 0]]]
    # by the deviation of its own points
    assert cut([1, 5], points=5, pad=True, normalise="standard").tolist() == [[[0, -1, 1, 0, 0]]]
    assert cut([[1, 10], [3, 30]], pad=True, normalise="standard").tolist() == [[[0, -1, 1, 0]] * 2]
    assert cut([5], pad=True, normalise="standard").tolist() == [[[0, 0, 0, 0]]]
    # long ones are cut as ever
    assert cut(range(5), pad=True).tolist() == cut(range(5)).tolist()
    with pytest.raises(InputError, match="file.npy: has 3 points, a window 4; --pad fills it up"):
        cut([1, 2, 6])


def signal(rate, values=(), record=None):
    return Signal(np.asarray(values, float)[:, None], (), rate, record)


def common(rates, wanted=None, resample=False, records=()):
    signals = [signal(rate) for rate in rates]
    for i in records:
        signals[i] = signals[i]._replace(record=100 + i)
    return common_rate([Path(f"{i}") for i in range(len(rates))], signals, wanted, resample)


def test_the_rate_of_all():
    assert common([None, None]) is None
    assert common([None, 100.0, None]) == 100
    assert common([100.0, 100.05, 99.99]) == 99.99
    assert common([200.0, 100.0], resample=True) == 100
    assert common([200.0, None], wanted=50.0) == 50
    # CWRU's baseline beside its faults, and a record beside files of any other rate
    assert common([48_000.0, 12_000.0, None], records=[0, 1]) == 12_000
    assert common([48_000.0, 25_600.0], records=[0]) == 25_600
    assert common([48_000.0, 48_000.0], records=[0, 1]) == 48_000
    for rates, message in (
        ([100.0, 100.2], "1: is sampled at 100.2 Hz, 0 at 100; --resample brings all to the lowest"),
        ([None, 200.0, 100.0], "1: is sampled at 200 Hz, 2 at 100; --resample"),
    ):
        with pytest.raises(InputError, match=message):
            common(rates)
    with pytest.raises(InputError, match="1: is sampled at 25600 Hz, 0 at 12000"):
        common([12_000.0, 25_600.0], records=[0])


@pytest.mark.parametrize(
    "rate, points", [(100, 400), (50, 200), (25, 100), (150, 600), (40, 160), (99.95, 400)]
)
def test_resampling(rate, points):
    """A wave of 3 Hz for 4 seconds, sampled at 100 Hz, is the same wave at another rate."""
    made = signal(100.0, 7 + np.sin(2 * np.pi * 3 * np.arange(400) / 100))
    found = brought_to(PATH, made, float(rate), True)
    assert found.shape == (points, 1)
    if rate != 99.95:
        expected = 7 + np.sin(2 * np.pi * 3 * np.arange(points) / rate)
        np.testing.assert_allclose(found[15:-15, 0], expected[15:-15], atol=0.01)
        # an offset does not ring beyond the ends
        np.testing.assert_allclose(found[:, 0], expected, atol=0.2)


def test_which_signals_are_resampled():
    values = np.arange(40.0)
    for made in (signal(None, values), signal(100.0, values), signal(100.09, values)):
        assert brought_to(PATH, made, 100.0, False) is made.values
    assert brought_to(PATH, signal(None, values), None, False).shape == (40, 1)
    for resample in (False, True):
        with pytest.raises(
            InputError, match="file.npy: is sampled at 7 Hz, but .* said no rate; .* --sampling-rate"
        ):
            brought_to(PATH, signal(7.0, values), None, resample)
    with pytest.raises(
        InputError, match="file.npy: is sampled at 200 Hz, not at 100; --resample brings it there"
    ):
        brought_to(PATH, signal(200.0, values), 100.0, False)
    assert len(brought_to(PATH, signal(200.0, values), 100.0, True)) == 20
    assert len(brought_to(PATH, signal(200.0, values, record=97), 100.0, False)) == 20
    with pytest.raises(InputError, match="is sampled at 50 Hz, not at 100"):
        brought_to(PATH, signal(50.0, values, record=97), 100.0, False)
    with pytest.raises(InputError, match="is sampled at 100000 Hz, too far from 1 to be resampled"):
        brought_to(PATH, signal(100_000.0, values), 1.0, True)


def test_channels_and_pieces_are_resampled_by_themselves():
    values = np.random.default_rng(0).standard_normal((3, 60, 2))
    found = resampled(values, Fraction(1, 4))
    assert found.shape == (3, 15, 2)
    for i in range(3):
        for channel in range(2):
            alone = resampled(values[i, :, channel, None], Fraction(1, 4))
            assert np.array_equal(found[i, :, channel], alone[:, 0])


def reading(**options):
    return Reading(FileOptions(**options), Cutting(4, None, "none"))


def test_an_array_is_cut_as_a_file_is(tmp_path):
    values = np.random.default_rng(0).standard_normal((50, 2))
    np.save(tmp_path / "0.npy", values)
    chosen = reading(channels=("0", "1"))
    assert np.array_equal(chosen.cut(values), chosen.windows(tmp_path / "0.npy"))
    assert chosen.cut(values).shape == (12, 2, 4)
    assert np.array_equal(chosen.cut(values.T), chosen.cut(values))
    assert np.array_equal(reading(layout="channels-first").cut(values.T), chosen.cut(values))
    assert reading().cut(values[:, 0]).shape == (12, 1, 4)
    assert reading().cut(values[:, 0].tolist()).shape == (12, 1, 4)
    assert reading(layout="windows").cut(values[:12].reshape(6, 4)).tolist() == (
        values[:12].reshape(6, 1, 4).astype(np.float32).tolist()
    )
    fast = replace(chosen, sampling_rate=100.0, resample=True)
    # views are writable, as PyTorch expects
    torch.from_numpy(fast.cut(values)).zero_()
    assert fast.cut(values, rate=200).shape == (6, 2, 4) and fast.cut(values).shape == (12, 2, 4)


@pytest.mark.parametrize(
    "values, rate, message",
    [
        (
            np.zeros((2, 50, 3)),
            None,
            r"x: has shape \(2, 50, 3\), expected \(points,\) or \(points, channels\)",
        ),
        (np.zeros((0, 2)), None, r"x: has shape \(0, 2\), expected"),
        (np.zeros((3, 2)), None, "x: has 3 points, expected at least the 4 of a window; a cutting with pad"),
        (
            np.full((50, 2), np.nan),
            None,
            "x: holds .* not finite, 100 of them, the first at point 0 of channel 0",
        ),
        (np.zeros((50, 2), complex), None, "x: holds complex128, expected real numbers"),
        (np.zeros((50, 2)), 200.0, "rate: got 200 Hz, expected 100; a reading with resample=True resamples"),
        (np.full((50, 2), 1e9) + np.eye(50, 2), None, "x: holds values .*, whose differences float32 loses$"),
    ],
)
def test_arrays_that_cannot_be_cut(values, rate, message):
    made = replace(reading(channels=("a", "b")), sampling_rate=100.0)
    with pytest.raises(ValueError, match=message):
        made.cut(values, rate)


def test_a_reading_is_kept():
    made = Reading(
        FileOptions(("X*_DE_time", "gs"), ("a", "1"), "windows", ";", ",", "latin-1"),
        Cutting(64, 16, "standard", pad=True),
        12_000.0,
        True,
        25_600.0,
        ("a", "b"),
    )
    for kept in (made, reading()):
        buffer = io.BytesIO()
        torch.save(kept.plain(), buffer)
        buffer.seek(0)
        assert Reading.of(torch.load(buffer, weights_only=True)) == kept


@pytest.mark.parametrize("rate", [0, -1.0, float("inf"), float("nan"), "12000"])
def test_bad_rates(rate):
    with pytest.raises(ValueError, match="sampling_rate: got .*, expected a positive number of Hz, or None"):
        Reading(FileOptions(), Cutting(4, None, "none"), rate)


def write(folder, values):
    for i in range(4):
        path = folder / "ab"[i % 2] / f"{i}.npy"
        path.parent.mkdir(exist_ok=True)
        np.save(path, values(np.random.default_rng(i)))


def test_several_channels_of_a_folder(tmp_path):
    write(tmp_path, lambda random: random.standard_normal((60, 3)))
    data = read_recordings(tmp_path, points=20, channels=(2, 0), normalise="none")
    assert data.train.x.shape == (6, 2, 20) and data.reading.channels == ("2", "0")
    for window, i in zip(data.train.x[::3], data.train.recording[::3], strict=True):
        expected = torch.from_numpy(np.load(data.files[i])[:20, [2, 0]].T).float()
        assert torch.equal(window, expected)
        assert torch.equal(torch.from_numpy(data.reading.windows(data.files[i])[0]), expected)
    one = read_recordings(tmp_path, points=20, channels=2, normalise="none")
    assert torch.equal(one.train.x[:, 0], data.train.x[:, 0])


def test_what_was_found_out_is_noted(tmp_path):
    """The rate for other files; the names of channels for people: another file may call its only one otherwise."""
    for i in range(4):
        path = tmp_path / "ab"[i % 2] / f"{i}.csv"
        path.parent.mkdir(exist_ok=True)
        values = np.random.default_rng(i).standard_normal(60)
        lines = [f"{at / 400:.4f},{value!r}\n" for at, value in enumerate(values.tolist())]
        path.write_text("".join(["time,g\n", *lines]))
    reading = read_recordings(tmp_path, points=20).reading
    assert reading.sampling_rate == 400 and reading.channels == ("g",) and reading.options == FileOptions()
    np.save(tmp_path / "other.npy", values)
    np.testing.assert_allclose(reading.windows(tmp_path / "other.npy"), reading.windows(path), rtol=1e-6)
    path.write_text("".join(["time,m/s2\n", *lines]))
    assert read_recordings(tmp_path, points=20).reading.channels == ("0",)


def test_windows_are_standard_by_default(tmp_path):
    write(tmp_path, lambda random: 5 + 3 * random.standard_normal(60))
    windows = read_recordings(tmp_path, points=20).train.x.double()
    torch.testing.assert_close(windows.mean(-1), torch.zeros(6, 1).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(windows.std(-1, correction=0), torch.ones(6, 1).double(), rtol=0, atol=1e-6)


def test_copies_in_a_set_of_thousands():
    """Found among all, and only those."""
    random, seen = np.random.default_rng(0), Seen()
    made = random.standard_normal((3000, 1, 1, 30)).astype(np.float32)
    assert [list(seen.add(windows)) for windows in made] == [[]] * 3000
    for i in random.integers(0, 3000, 20):
        assert list(seen.add(made[i] * np.float32(1 + 1e-6)))[0] == i
        other = made[i].copy()
        other[0, 0, 29] += 1
        assert list(seen.add(other)) == []
