"""Files of every format and dialect, made by the libraries themselves, and what is refused of them."""

import numpy as np
import pytest

from drsn_ops.arguments import InputError
from drsn_ops.data.cwru_files import CWRU_48_KHZ, CWRU_FAN_END, CWRU_NUMBERS, cwru_class, cwru_number
from drsn_ops.data.signals import FileOptions, read_signal, read_table

io = pytest.importorskip("scipy.io")
pandas = pytest.importorskip("pandas")
h5py = pytest.importorskip("h5py")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("pyarrow")
openpyxl = pytest.importorskip("openpyxl")

X = np.random.default_rng(0).standard_normal((60, 3))


@pytest.fixture
def file(tmp_path):
    """Writes a file of this content: bytes, or text as it is."""

    def write(name, content=b""):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def read(path, **options):
    return read_signal(path, FileOptions(**options))


def refused(path, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(str(path))


def assert_read(signal, values, channels=("0",), rate=None, record=None):
    values = np.asarray(values)
    values = values[:, None] if values.ndim == 1 else values
    # openpyxl writes 16 digits
    np.testing.assert_allclose(signal.values, values, rtol=1e-15, strict=False)
    assert signal.values.shape == values.shape
    assert signal[1:] == (channels, rate, record)


def table(*columns, delimiter=",", decimal=".", head=""):
    """Lines of numbers, each exact."""
    lines = (delimiter.join(map(repr, map(float, line))) for line in zip(*columns, strict=True))
    return head + "".join(line.replace(".", decimal) + "\n" for line in lines)


T = np.arange(60) / 8000


def dates(form, delimiter, *columns):
    """Lines that begin with a time of so many microseconds."""
    rows = zip(
        range(0, 60 * 125, 125), X[:, 0].tolist(), *(column.tolist() for column in columns), strict=True
    )
    return "".join(delimiter.join([form.format(time), *map(repr, row)]) + "\n" for time, *row in rows)


@pytest.mark.parametrize(
    "content, options, expected",
    [
        (table(X[:, 0]), {}, (X[:, 0],)),
        (table(X[:, 0], head="# a logger\n\nvalue\n\n") + "\n# end\n \n", {}, (X[:, 0], ("value",))),
        ("1 # c\n2\n# d\n3\n", {}, ([1, 2, 3],)),
        ("# a logger\n1.5\n2.5\n", {}, ([1.5, 2.5],)),
        ("Sensor 0 [g]\n1.5\n2.5\n", {}, ([1.5, 2.5], ("Sensor 0 [g]",))),
        ("1e3\r\n-2E-3\r\n+.5\r\n", {}, ([1e3, -2e-3, 0.5],)),
        # of the old Macintosh
        ("1.5\r2.5\r", {}, ([1.5, 2.5],)),
        (table(X[:, 0], decimal=",", head="x\n"), {}, (X[:, 0], ("x",))),
        ("0,05\n7\n-0,5\n", {}, ([0.05, 7, -0.5],)),
        ("1,5e-3\n2,25e-3\n", {}, ([1.5e-3, 2.25e-3],)),
        ("1,5\n2,5\n", {"decimal": ","}, ([1.5, 2.5],)),
        (10 * "1,-5\n2,5\n", {"channels": ("1",)}, (10 * [-5, 5], ("1",))),
        (20 * "1,5\n", {"delimiter": ",", "channels": ("1",)}, (20 * [5], ("1",))),
        ("a,b\n1,5\n2,5\n", {"channels": ("b",)}, ([5, 5], ("b",))),
        *(
            (table(*X.T, delimiter=mark, decimal=point), {"channels": ("2", "0")}, (X[:, [2, 0]], ("2", "0")))
            for mark, point in ((",", "."), (";", "."), (";", ","), ("\t", ","), (" ", "."), ("  ", ","), ("|", "."))
        ),
        # whole numbers first, then a decimal comma
        (200 * "1;2\n" + "1;2,5\n" + 200 * "1;2\n", {"channels": ("1",)}, ([*200 * [2], 2.5, *200 * [2]], ("1",))),
        # a delimiter at the end of each line
        ("".join(f"{i % 7},{i % 3},\n" for i in range(60)), {"channels": ("1",)}, (np.arange(60) % 3, ("1",))),
        ('"a, b",c\n1.5,2\n3.5,4\n', {"channels": ("a, b",)}, ([1.5, 3.5], ("a, b",))),
        (table(T, X[:, 0], head="time,x\n"), {}, (X[:, 0], ("x",), 8000)),
        (table(T, X[:, 0], head="# t, x\n"), {}, (X[:, 0], ("x",), 8000)),
        (table(T, X[:, 0]), {}, (X[:, 0], ("0",), 8000)),
        (table(T * 1e3, X[:, 0], head="Time;x\n(ms);(V)\n\n", delimiter=";"), {}, (X[:, 0], ("x",), 8000)),
        (table(T * 1e6, X[:, 0], decimal=",", delimiter=";", head="Zeit [µs];x\n"), {}, (X[:, 0], ("x",), 8000)),
        (table(X[:, 0], T, head="x,timestamp_s\n"), {}, (X[:, 0], ("x",), 8000)),
        (table(T, X[:, 0], T + 5, head="time,x,t\n"), {}, (X[:, 0], ("x",), 8000)),
        # dates, and times of day
        (f"when;x\n{dates('2026-05-04 09:59:59.{:06}', ';')}", {}, (X[:, 0], ("x",), 8000)),
        (f"{dates('2026/05/04T9:59:59,{:06}Z', ';')}", {}, (X[:, 0], ("0",), 8000)),
        (f"{dates('31.1.2026 9:59:59,{:06}', ';')}", {}, (X[:, 0], ("0",), 8000)),
        (f"time,x,y\n{dates('23:59:59.{:06}', ',', X[:, 1])}", {"channels": ("y",)}, (X[:, 1], ("y",), 8000)),
        # counted from 1970 in ms
        (table(np.arange(60) * 2 + 1.7e12, X[:, 0], head="timestamp,x\n"), {}, (X[:, 0], ("x",), 500)),
        # rounded to the fourth digit, which is no shorter than a step
        ("time x\n" + "".join(f"{i / 8000:.4f} {i % 7}\n" for i in range(600)), {}, (np.arange(600) % 7, ("x",), 8000)),
        ("time x\n" + "".join(f"{i / 8000:.4f} {i % 7}\n" for i in range(20)), {}, (np.arange(20) % 7, ("x",))),
        ("time x\n" + "".join(f"{i / 8e6:.4f} {i % 7}\n" for i in range(9999)), {}, (np.arange(9999) % 7, ("x",))),
        # an index says no rate
        (table(np.arange(60), X[:, 0], head="time,x\n"), {}, (X[:, 0], ("x",))),
        (table(np.arange(60) * 5, X[:, 0]), {}, (X[:, 0], ("0",))),
        # numbers count the channels, not the times
        (table(T, *X.T[:2]), {"channels": ("1", "0")}, (X[:, [1, 0]], ("1", "0"), 8000)),
        (table(T, X[:, 0], head="time,x\n"), {"channels": ("0",)}, (X[:, 0], ("x",), 8000)),
        (table(X[:, 0], T, X[:, 1], head="x,time,y\n"), {"channels": ("1",)}, (X[:, 1], ("y",), 8000)),
        (dates("9:59:59,{:06}", ";"), {"channels": ("0",)}, (X[:, 0], ("0",), 8000)),
        (table(T, X[:, 0]), {"channels": ("time",)}, (T, ("time",), 8000)),
        # what is said goes before a column that may be no time, and names no column
        (table(np.arange(60) / 10, X[:, 0], head="# fs: 10 kHz\n"), {}, (X[:, 0], ("0",), 10_000)),
        (table(T, X[:, 0], head="# fs: 10 kHz\ntime,x\n"), {}, (X[:, 0], ("x",), 8000)),
        (table(X[:, 0], head="Sampling rate: 10 kHz\n"), {"channels": ("x",)}, (X[:, 0], ("0",), 10_000)),
        # notes that say the rate
        *(
            (table(X[:, 0], head=f"{note}\n"), {}, (X[:, 0], ("0",), rate))
            for note, rate in (
                ("# Sampling rate: 10000 Hz", 10_000),
                ("# fs = 25.6kHz", 25_600),
                ("#  Abtastrate (kHz): 12", 12_000),
                ("# Sample frequency [Hz] = 50", 50),
                # thousands or decimals, no unit, two of them, another one
                ("# Sampling rate: 10.000 Hz", None),
                ("# Sampling rate: 10.000kHz", None),
                ("# Sampling rate: 10,000 Hz", None),
                ("# Sampling rate: 10000", None),
                ("# fs: 10 Hz\n# fs: 20 Hz", None),
                ("# filter fs: 10 Hz", None),
            )
        ),
        (table(T, X[:, 0], head="# fs: 10 Hz\ntime,x\n"), {}, (X[:, 0], ("x",), 8000)),
        (pandas.DataFrame({"x": X[:, 0]}).to_csv(), {}, (X[:, 0], ("x",))),
        (pandas.DataFrame(X[:, :1]).to_csv(), {}, (X[:, 0], ("0",))),
        (pandas.DataFrame(X).to_csv(index=False), {"channels": ("1",)}, (X[:, 1], ("1",))),
        # the only column is no time, nor is one that rises unevenly
        (table(T, head="t\n"), {}, (T, ("t",))),
        (table(T**2, X[:, 0]), {"channels": ("0",)}, (T**2, ("0",))),
        # the time, asked for
        (table(X[:, 0], T, head="x,time\n"), {"channels": ("time",)}, (T, ("time",), 8000)),
        # names are of columns, not of rows
        (table(*X.T, head="a,b,c\n"), {"layout": "channels-first", "channels": ("59",)}, (X[59], ("59",))),
        # as the gearbox data of Southeast University
        ("Title,A\n\nData\n" + table(*X.T[:2], delimiter="\t"), {"channels": ("0",)}, (X[:, 0], ("0",))),
        ("\n".join(",".join(map(repr, row)) for row in X.T.tolist()), {"channels": ("1",)}, (X[:, 1], ("1",))),
        ("1\nnan\n3\n", {}, ([1, np.nan, 3],)),
    ],
)  # fmt: skip
def test_text(file, content, options, expected):
    signal = read(file("a.csv", content), **options)
    expected = [*expected, *(("0",), None)[len(expected) - 1 :]]
    assert_read(signal, *expected)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings(file, encoding):
    path = file("a.txt", "Größe\n1.5\n2.5\n".encode(encoding))
    assert_read(read(path), [1.5, 2.5], ("Größe",))
    assert_read(read(path, encoding=encoding), [1.5, 2.5], ("Größe",))
    # with a mark of the byte order
    assert_read(read(path, encoding=encoding.removesuffix("-sig")), [1.5, 2.5], ("Größe",))
    refused(
        file("b.txt", "Größe\n1\n".encode("utf-16-le")), "b.txt: holds zero bytes, .* or --encoding with its"
    )
    assert_read(
        read(file("b.txt", "Größe\n1\n2\n".encode("utf-16-le")), encoding="utf-16-le"), [1, 2], ("Größe",)
    )
    refused(
        file("b.txt", "Größe\n1\n".encode("latin-1")), "not text in ascii: .* --encoding", encoding="ascii"
    )


@pytest.mark.parametrize(
    "content, options, message",
    [
        ("", {}, "is empty; remove it, or put its recording there"),
        ("\n \n# c\n", {}, "holds no numbers"),
        ("time\n", {}, "no line holds numbers alone, such as 'time'; .* --delimiter and --decimal"),
        ("1\n", {}, "holds one number, expected a signal"),
        ("1\n2\n\n3\n", {}, "line 3 is blank, a gap between numbers"),
        ("# g\nv\n1\n \t\n3\n", {}, "line 4 is blank, a gap between numbers"),
        (60 * "1\n" + '""\n1\n', {}, "line 61 "),
        ("1\n2\nx\n", {}, "line 3 holds 'x', expected a number"),
        ("x\n" + 999 * "1\n" + "1_0\n", {}, "line 1001 holds '1_0', expected a number"),
        ("1,2\n3\n1,2\n4.5,5\n", {}, "line 2 has 1 fields, the first line of numbers 2"),
        ("1,2,3\n1,2,3,4\n1,2,3\n", {}, "line 2 has 4 fields, the first line of numbers 3"),
        ("1,2,3\n1,,3\n1,2,3\n", {}, "line 2 has a gap, expected a number"),
        ("1\t2\t3\n1\t\t3\n1\t2\t3\n", {}, "line 2 has a gap, expected a number"),
        (9 * "1 \t\t 3\n", {}, "no line holds numbers alone"),
        ("1.5,2,\n1.5,2,\n1.5,2,7\n", {}, "line 3 has 3 fields"),
        ("1.0x\n" + 9 * "1\n", {}, "'1.0x' above the numbers is neither names nor 1 number"),
        ("-.5.\n" + 9 * "1\n", {}, "'-.5.' above the numbers is neither names nor"),
        ("1.5,,2\n" + 9 * "1,2,3\n", {}, "'1.5,,2' above the numbers is neither names nor 3 numbers"),
        (",1.5,2\n" + 9 * "1,2,3\n", {}, "',1.5,2' above the numbers is neither names nor 3 numbers"),
        ("a,b\n" + 60 * "1.5,2,3\n", {}, "its first line names 2 columns, the others have 3"),
        ("1,5\n2,5\n", {}, "'1,5' may be two numbers or one with a decimal comma; .* --delimiter , or --decimal ,"),
        ("1,5\n7\n", {}, "'1,5' may be two numbers or one with a decimal comma"),
        ("Rig 7\nx\n1,5\n2,5\n", {}, "'1,5' may be two numbers or one with a decimal comma"),
        ("0,05,0,07\n1,05,2,7\n", {}, "'0,05,0,07' may be several numbers or fewer with decimal commas"),
        ("x\n1.5,2\n3,4,5\n3,4,5\n", {}, "'1.5,2' above the numbers is neither names nor 3 numbers"),
        ("2026-05-04 09:59:59;1\n2026-13-04 09:59:59;2\n", {}, "its first column has dates .* none: "),
        ("2026-05-04 09:59:59;1\nnever;2\n2026-05-04 10:00:00;1\n", {}, "its first column has dates .* none: 'never'"),
        ("a,b\n0,05\n1,5\n", {}, "'0,05' may be two numbers or one with a decimal comma"),
        ("1.234,5\n2.345,5\n", {"delimiter": ";"}, "no line holds numbers alone, such as '1.234,5'"),
        (table(*X.T), {}, r"holds 3 channels, 0 to 2; .*, such as --channels 0 or --channels 0,1, or --layout windows"),
        (table(T, *X.T), {}, r"holds 3 channels beside the time, 0 to 2; expected --channels"),
        (table(T, *X.T[:2], head="time,a,b\n"), {}, r".* 'time' \(the time\), 'a', 'b'; .* a or --channels a,b$"),
        (table(T, *X.T[:2], head='time,"a, m",b c\n'), {}, ".* such as --channels 0 or --channels 0,'b c'$"),
        (table(T, X[:, 0]), {"channels": ("1",)}, "has no channel '1' .*, but 1 channel beside the time, 0$"),
        (table(*X.T, head="a,b,b\n"), {"channels": ("b",)}, "has several channels 'b' .--channels., but the"),
        (table(*X.T, head="a,b,c\n"), {"channels": ("d",)}, "has no channel 'd' .--channels., but the channels 'a', "),
        (table(*X.T), {"channels": ("3",)}, "has no channel '3' \\(--channels\\), but 3 channels, 0 to 2"),
        (table(*X.T), {"channels": ("1", "1")}, "--channels 1,1 has a channel twice"),
        (table(T[::-1], X[:, 0], head="time,x\n"), {}, "its times 'time' go back from .* to .* at point 1"),
        (table(np.r_[T[:30], T[40:]], X[:50, 0], head="time,x\n"), {}, "its times 'time' leap from .* at point 30"),
        (table(0 * T, X[:, 0], head="time,x\n"), {}, "its times 'time' stand still"),
        (table(T, X[:, 0], 2 * T, head="time,x,timestamp\n"), {}, "its times say 4000 Hz and 8000 Hz"),
        (b"PK\x03\x04\0\0", {}, "holds zero bytes, so it is no text in"),
        (b"\xff\xfe\x00", {}, "not text in utf-16"),
    ],
)  # fmt: skip
def test_text_that_is_refused(file, content, options, message):
    refused(file("a.csv", content), f"a.csv: {message}", **options)


def struct(**fields):
    """An array of structs, from a list for each field."""
    count = len(next(iter(fields.values())))
    array = np.zeros(count, [(name, object) for name in fields])
    for name, values in fields.items():
        array[name] = (
            [*values] if not isinstance(values[0], np.ndarray) else np.array([*values, None], object)[:-1]
        )
    return array


def paderborn(bearing="N15_M07_F10_K001_1"):
    """A file of Paderborn University: channels of several rasters, and the times of each."""
    names = ("force", "phase_current_1", "vibration_1", "torque")
    rasters = ("Mech_4kHz", "HostService", "HostService", "unknown")
    y = struct(Name=names, Data=(X[:, 0], X[:, 1], X[:, 2], X[:20, 0]), Raster=rasters)
    times = (np.arange(60) / 4000, np.arange(60) / 64_000, np.arange(20) / 1000)
    x = struct(Name=("Time", "Time", "Time"), Data=times, Raster=("Mech_4kHz", "HostService", "slow"))
    return {bearing: {"Info": {"Date": "2012"}, "X": x, "Y": y, "Description": "damaged"}}


@pytest.mark.parametrize(
    "variables, options, expected",
    [
        ({"x": X[:, :1]}, {}, (X[:, 0],)),
        ({"x": X[:1].T.T}, {}, (X[0],)),
        ({"x": X[:, :1], "rpm": 1797, "note": "text", "limits": [1.0, 2, 3]}, {}, (X[:, 0],)),
        ({"x": X, "fs": 25_600}, {"channels": ("2", "0")}, (X[:, [2, 0]], ("2", "0"), 25_600)),
        # channels in rows
        ({"x": X.T}, {"channels": ("1",)}, (X[:, 1], ("1",))),
        ({"a": X[:, 0], "b": X[:, 1]}, {"variable": ("c", "b")}, (X[:, 1],)),
        ({"a_1": X[:, 0], "b": X[:, 1]}, {"variable": ("[xyz]*", "a_*")}, (X[:, 0],)),
        ({"a": X[:, 0], "b": X[:, 1]}, {"channels": ("b", "a")}, (X[:, [1, 0]], ("b", "a"))),
        ({"x": X[:, 0], "t": T}, {}, (X[:, 0], ("0",), 8000)),
        ({"x": X[:, 0], "t": T}, {"variable": ("*",)}, (X[:, 0], ("0",), 8000)),
        ({"x": X[:, 0], "time_ms": T * 1000, "y": X[:, 1]}, {"variable": ("y",)}, (X[:, 1], ("0",), 8000)),
        # as of the Society for Machinery Failure Prevention Technology: the rate of the shaft is another one
        ({"bearing": {"sr": 48_828, "gs": X[:, 0], "load": 25, "rate": 25}}, {}, (X[:, 0], ("0",), 48_828)),
        ({"bearing": {"sr": 48_828, "gs": X[:, 0]}, "z": X}, {"variable": ("*.gs",)}, (X[:, 0], ("0",), 48_828)),
        ({"bearing": {"Sampling_Rate": 8, "gs": X[:, 0]}, "z": X}, {"variable": ("bearing",)}, (X[:, 0], ("0",), 8)),
        ({"s": {"x": X[:, 0]}, "Fs": 8, "r": {"fs": 9}}, {}, (X[:, 0], ("0",), 8)),
        # two numbers that are no one rate
        ({"x": X[:, 0], "fs": 8, "sr": 9}, {}, (X[:, 0],)),
        ({"runs": struct(x=[X[:, 0], X[:, 1]])}, {"variable": ("runs.1.x",)}, (X[:, 1],)),
        (paderborn(), {"variable": ("vibration_1",)}, (X[:, 2], ("0",), 64_000)),
        (paderborn(), {"variable": ("vibration*",)}, (X[:, 2], ("0",), 64_000)),
        (paderborn(), {"variable": ("force",)}, (X[:, 0], ("0",), 4000)),
        # by the only times of its length
        (paderborn(), {"variable": ("torque",)}, (X[:20, 0], ("0",), 1000)),
        (paderborn(), {"channels": ("vibration_1", "phase_current_1")},
         (X[:, [2, 1]], ("vibration_1", "phase_current_1"), 64_000)),
        ({"x": (X[:, 0] * 1000).astype(np.int16)}, {}, ((X[:, 0] * 1000).astype(np.int16),)),
        ({"x": X[:, 0].astype(np.float32)}, {}, (X[:, 0].astype(np.float32),)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("compressed", [False, True])
def test_matlab(tmp_path, variables, options, expected, compressed):
    io.savemat(tmp_path / "a.mat", variables, do_compression=compressed)
    signal = read(tmp_path / "a.mat", **options)
    values, channels, rate = [*expected, *(("0",), None)[len(expected) - 1 :]]
    assert_read(signal, values, channels, rate and pytest.approx(rate, rel=1e-9))
    assert signal.values.dtype == values.dtype


def write_hdf5(path, variables, matlab=True):
    """As MATLAB 7.3 writes it, or as plain HDF5: MATLAB's axes lie in the other order, and vectors have two."""

    def add(group, name, value):
        if isinstance(value, dict):
            inner = group.create_group(name)
            for field, one in value.items():
                add(inner, field, one)
        elif isinstance(value, np.ndarray) and value.dtype.names:
            inner = group.create_group(name)
            for field in value.dtype.names:
                held = [
                    hidden.create_dataset(f"{name}{field}{i}", data=one) for i, one in enumerate(value[field])
                ]
                inner.create_dataset(field, data=[[one.ref] for one in held], dtype=h5py.ref_dtype)
        else:
            kind = "char" if isinstance(value, str) else "double"
            value = (
                np.array([[ord(letter)] for letter in value], np.uint16)
                if kind == "char"
                else np.asarray(value)
            )
            stored = group.create_dataset(name, data=np.atleast_2d(value.T) if matlab else value)
            if matlab:
                stored.attrs["MATLAB_class"] = np.bytes_(kind)

    with h5py.File(path, "w", userblock_size=512) as file:
        hidden = file.create_group("#refs#")
        for name, value in variables.items():
            add(file, name, value)


@pytest.mark.parametrize(
    "variables, options, expected",
    [
        ({"x": X[:, :1]}, {}, (X[:, 0],)),
        ({"x": X, "note": "text", "fs": [[8.0]]}, {"channels": ("1",)}, (X[:, 1], ("1",), 8)),
        ({"x": X.T}, {"channels": ("1",)}, (X[:, 1], ("1",))),
        ({"bearing": {"sr": 48_828.0, "gs": X[:, :1], "load": 25.0}}, {}, (X[:, 0], ("0",), 48_828)),
        ({"runs": struct(x=[X[:, 0], X[:, 1]])}, {"variable": ("runs.x.1",)}, (X[:, 1],)),
    ],
)
def test_hdf5(tmp_path, variables, options, expected):
    values, channels, rate = [*expected, *(("0",), None)[len(expected) - 1 :]]
    write_hdf5(tmp_path / "a.mat", variables)
    assert_read(read(tmp_path / "a.mat", **options), values, channels, rate)
    write_hdf5(tmp_path / "a.h5", variables, matlab=False)
    assert_read(read(tmp_path / "a.h5", **options), values, channels, rate)
    # what MATLAB hides is not offered
    write_hdf5(tmp_path / "a.mat", {"runs": struct(x=[X[:, 0], X[:, 1]])})
    refused(tmp_path / "a.mat", r"a.mat: holds 'runs.x.0' \(60\), 'runs.x.1' \(60\); expected --variable")
    # MATLAB's layouts are those of MATLAB
    write_hdf5(tmp_path / "a.mat", {"x": X[:6, :]})
    refused(
        tmp_path / "a.mat",
        r"has shape \(6, 3\), and which side counts the points cannot be told; .* --layout",
    )


@pytest.mark.parametrize(
    "variables, options, message",
    [
        ({"a": X[:, 0], "b": X[:50]}, {}, r"holds 'b' \(50 x 3\), 'a' \(60\); expected --variable"),
        ({"fs": 8.0, "note": "text"}, {}, r"holds 'fs' \(one number\), 'note' \(text\); expected --variable"),
        ({"a": X[:, 0], "s": {"b": X}}, {"variable": ("b",)}, "no variable 'b' .--variable., but 's.b' .60 x 3., 'a'"),
        ({"a_1": X[:, 0], "a_2": X}, {"variable": ("a_*",)}, r"'a_\*' \(--variable\) fits a_1, a_2; expected one"),
        ({"a": "text"}, {"variable": ("a",)}, r"variable 'a' \(--variable\) is text, expected numbers"),
        ({"a": 3.0}, {"variable": ("a",)}, r"variable 'a' \(--variable\) is one number, expected numbers"),
        ({"a": X[:, 0] * 1j}, {"variable": ("a",)}, "holds complex128, expected real numbers"),
        ({"a": X[:, 0], "b": X[:50, 0]}, {"channels": ("b", "a")}, "channels differ in length: 'b' .50,., 'a' .60"),
        ({"x": X}, {}, "holds 3 channels, 0 to 2; expected --channels"),
        ({"x": np.zeros((9, 60, 3))}, {}, r"shape \(9, 60, 3\), expected .* or --layout windows for"),
        ({"x": np.zeros((9, 60, 3, 2))}, {}, r"shape \(9, 60, 3, 2\), expected .* at most three axes"),
        (paderborn(), {}, "holds 'force' .60., 'phase_current_1' .60., .* 'torque' .20., .* --variable"),
        ({f"x{i}": X[:, 0] for i in range(20)}, {}, "'x11' .60. and 8 more; expected --variable"),
    ],
)  # fmt: skip
def test_variables_that_are_refused(tmp_path, variables, options, message):
    io.savemat(tmp_path / "a.mat", variables)
    refused(tmp_path / "a.mat", f"a.mat: .*{message}", **options)


def cwru(path, *records, ends=("DE", "FE"), shape=(-1, 1)):
    """A file of Case Western Reserve University."""
    variables = {
        f"X{record:03d}_{end}_time": (X[:, ends.index(end)] + record) for record in records for end in ends
    }
    io.savemat(path, {name: values.reshape(shape) for name, values in variables.items()} | {"RPM": 1797})
    return path


def test_cwru(tmp_path):
    path = cwru(tmp_path / "105.mat", 105, ends=("DE", "FE", "BA"))
    assert_read(read(path), X[:, 0] + 105, ("DE",), 12_000, 105)
    assert_read(read(path, channels=("fe", "DE")), X[:, [1, 0]] + 105, ("FE", "DE"), 12_000, 105)
    assert_read(read(path, channels=("2",)), X[:, 2] + 105, ("BA",), 12_000, 105)
    assert_read(read(path, variable=("*_FE_time",)), X[:, 1] + 105, ("0",), 12_000, 105)
    refused(path, "105.mat: has no channel 'X' .* the channels 'DE', 'FE', 'BA'", channels=("X",))
    for record, rate in ((97, 48_000), (109, 48_000), (278, 12_000)):
        assert read(cwru(tmp_path / "any.mat", record))[2:] == (rate, record)
    # the variables of the largest faults have numbers of their own
    assert read(cwru(tmp_path / "3005.mat", 48)).record == 3005
    # of two records the one that the file is named after
    for name in ("99", "Normal_2", "normal_2_99", "99_Normal_2"):
        assert_read(read(cwru(tmp_path / f"{name}.mat", 98, 99)), X[:, 0] + 99, ("DE",), 48_000, 99)
    refused(cwru(tmp_path / "any.mat", 98, 99), "any.mat: holds the records 98, 99, and is named after none")
    assert_read(read(tmp_path / "any.mat", variable=("X098_FE_time",)), X[:, 1] + 98, ("0",), 48_000, 98)
    refused(
        cwru(tmp_path / "1.mat", 270, ends=("FE", "BA")),
        "1.mat: holds the channels 'FE', 'BA'; expected --channels",
    )
    refused(
        cwru(tmp_path / "105.mat", 105, shape=(30, 2)),
        r"X105_DE_time is float64 of shape \(30, 2\), expected a column",
    )


@pytest.mark.parametrize(
    "label, number, names",
    [
        ("normal", 98, "98 normal_1_98 Normal_1 98_Normal_1 Time_Normal_1_098 normal_1 48k_Normal_1_98"),
        ("normal", None, "normal Normal-baseline"),
        (
            "inner race 0.007",
            105,
            "105 0105 105_0 IR007_0_105 12k_Drive_End_IR007_0_105 ir007_105 12K_DE_IR007_0_105",
        ),
        ("inner race 0.028", 3004, "3004 IR028_3_3004"),
        ("ball 0.014", 186, "186 12k_Drive_End_B014_1_186 b014_1_186 186_1"),
        ("ball 0.014", None, "B014_1 B014 12k_Drive_End_B014_1 12kHz-B014-1"),
        ("outer race 0.014", 197, "OR014@6_0_197 OR014_6_0_197 197@6_0 12k_Drive_End_OR014@6_0_197"),
        ("outer race 0.007", None, "OR007@12_3 OR007@6_0 OR007_3 OR007@3_0"),
    ],
)
def test_names_of_cwru(tmp_path, label, number, names):
    for name in names.split():
        assert (cwru_class(tmp_path / f"{name}.mat"), cwru_number(tmp_path / f"{name}.mat")) == (
            label,
            number,
        )


@pytest.mark.parametrize(
    "message, names",
    [
        (
            "but one at 48 kHz, 109; move it away, or sort the files",
            "109 IR007_0_109 48k_Drive_End_IR007_0_109",
        ),
        ("but one at 48 kHz, 136; move", "OR007_6_1_136 48k_Drive_End_OR007@6_1_136 136@6_1"),
        ("but one at 48 kHz; move", "48k_Drive_End_IR007_0 48kHz_B014_1"),
        ("but one of the fan end's bearing, 2(78|94); move", "278 12k_Fan_End_IR007_0_278 294@6_0"),
        ("but one of the fan end's bearing; move", "12k_Fan_End_IR007_0 FE_B014_1"),
        (
            "such as 105 or IR007_0; expected one, or one folder a class",
            "157 303 304 308 314 bearing IR035_0 IR0071 OR028@6_0 OR007@6_0_3 105_x",
        ),
    ],
)
def test_names_that_are_none_of_cwrus(tmp_path, message, names):
    for name in names.split():
        wanted = (
            f"{name}.mat: not the number or name of a CWRU baseline or 12 kHz drive-end record, {message}"
        )
        with pytest.raises(InputError, match=wanted):
            cwru_class(tmp_path / f"{name}.mat")
    with pytest.raises(InputError, match="its name says ball 0.014, but number 105 is inner race 0.007"):
        cwru_class(tmp_path / "B014_1_105.mat")


def test_numbers_of_cwru():
    numbers = [number for numbers in CWRU_NUMBERS.values() for number in numbers]
    # 4 loads of the baseline and 15 faults, as the tables list them
    assert len(numbers) == len(set(numbers)) == 64
    assert set(numbers) & CWRU_48_KHZ == set(CWRU_NUMBERS["normal"])
    assert not CWRU_FAN_END & (CWRU_48_KHZ | set(numbers))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["f4", ">f8", "f2", "i2", "u1"])
def test_numpy(tmp_path, dtype, order):
    values = (100 * np.abs(X)).astype(dtype, order=order)
    np.save(tmp_path / "a.npy", values)
    signal = read(tmp_path / "a.npy", channels=("2",))
    assert_read(signal, values[:, 2], ("2",))
    assert signal.values.dtype == values.dtype
    np.savez(tmp_path / "a.npz", a=values, b=values[:, 0], fs=8)
    assert_read(read(tmp_path / "a.npz", variable=("b",)), values[:, 0], ("0",), 8)
    np.savez_compressed(tmp_path / "a.npz", values)
    assert_read(read(tmp_path / "a.npz", channels=("1",)), values[:, 1], ("1",))
    np.save(tmp_path / "a.npy", np.stack([T, X[:, 0]]))
    assert_read(read(tmp_path / "a.npy"), X[:, 0], ("0",), 8000)
    # a vector has no name, and goes by the one that a model knows
    np.save(tmp_path / "a.npy", X[:, 0])
    assert_read(read(tmp_path / "a.npy", channels=("DE",)), X[:, 0])


@pytest.mark.filterwarnings("error")
def test_numbers_near_the_limits_of_float64_are_no_times(file, tmp_path):
    values = np.stack([np.sort(np.r_[-1:1:60j]) * 1.7e308, X[:, 0]], 1)
    np.save(tmp_path / "a.npy", values)
    assert_read(read(tmp_path / "a.npy", channels=("0",)), values[:, 0])
    refused(
        file("a.csv", table(*values.T, head="time,x\n")), "a.csv: its times 'time' are not all finite numbers"
    )


UNTOLD = (
    "which side counts the points cannot be told; expected --layout points-first, channels-first or windows"
)


@pytest.mark.parametrize(
    "shape, layout, expected",
    [
        ((60,), "auto", lambda x: x[:, None]),
        ((1, 60, 1), "auto", lambda x: x[0]),
        ((640, 64), "auto", lambda x: x),
        ((3, 30), "auto", lambda x: x.T),
        ((6, 4), "points-first", lambda x: x),
        ((6, 4), "channels-first", lambda x: x.T),
        ((6, 4), "windows", lambda x: x[:, :, None]),
        ((60,), "windows", lambda x: x[None, :, None]),
        ((5, 60, 2), "windows", lambda x: x),
        ((5, 2, 60), "windows", lambda x: x.swapaxes(1, 2)),
        ((3, 29), "auto", UNTOLD),
        ((660, 66), "auto", UNTOLD),
        ((500, 2048), "auto", UNTOLD),
        ((5, 6, 4), "windows", UNTOLD),
        ((5, 60, 2), "auto", r"has shape \(5, 60, 2\), expected \(points, channels\), or --layout windows"),
        (
            (5, 6, 4, 2),
            "windows",
            r"has shape \(5, 6, 4, 2\), expected \(points, channels\), or at most three axes",
        ),
        ((0, 5), "auto", "holds no numbers"),
        ((1,), "auto", "holds one number"),
        ((), "auto", "holds one number"),
    ],
)
def test_layouts(tmp_path, shape, layout, expected):
    values = np.random.default_rng(0).standard_normal(shape)
    np.save(tmp_path / "a.npy", values)
    if isinstance(expected, str):
        refused(tmp_path / "a.npy", f"a.npy: .*{expected}", layout=layout)
        return
    channels = tuple(map(str, range(expected(values).shape[-1])))
    if values.ndim == 2 and layout == "windows":
        pandas.DataFrame(values, columns=[*"abcd"]).to_csv(tmp_path / "a.csv", index=False)
        assert_read(read(tmp_path / "a.csv", layout=layout), expected(values))
    assert_read(read(tmp_path / "a.npy", layout=layout, channels=channels), expected(values), channels)


@pytest.mark.parametrize("suffix, subtype", [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_24")])
def test_sound(tmp_path, suffix, subtype):
    path = tmp_path / f"a.{suffix}"
    values = np.round(X / 8 * 2**15) / 2**15
    soundfile.write(path, values[:, 0], 51_200, subtype=subtype)
    assert_read(read(path), values[:, 0], ("0",), 51_200)
    soundfile.write(path, values, 51_200, subtype=subtype)
    assert_read(read(path, channels=("2", "0")), values[:, [2, 0]], ("2", "0"), 51_200)
    refused(path, "holds 3 channels, 0 to 2; expected --channels, such as --channels 0 or --channels 0,1$")
    # however short
    soundfile.write(path, values[:4], 51_200, subtype=subtype)
    assert_read(read(path, channels=("0",)), values[:4, 0], ("0",), 51_200)


FRAME = pandas.DataFrame({"time": T, "x": X[:, 0], "y": X[:, 1]})


@pytest.mark.parametrize(
    "suffix, write",
    [
        ("parquet", lambda frame, path: frame.to_parquet(path)),
        ("xlsx", lambda frame, path: frame.to_excel(path, index=False)),
    ],
)
def test_frames(tmp_path, suffix, write):
    path = tmp_path / f"a.{suffix}"
    write(FRAME, path)
    assert_read(read(path, channels=("y",)), X[:, 1], ("y",), 8000)
    refused(path, r"the channels 'time' \(the time\), 'x', 'y'; expected --channels")
    write(FRAME[["x"]], path)
    assert_read(read(path), X[:, 0], ("x",))
    # a column of text alone is no channel; one that has numbers too is damaged
    write(FRAME[["x"]].assign(state="worn"), path)
    assert_read(read(path), X[:, 0], ("x",))
    for bad in (None, "bad"):
        write(
            FRAME.assign(
                y=FRAME["y"].where(FRAME["y"] != X[7, 1], bad).astype(object if bad is None else str)
            ),
            path,
        )
        refused(path, r"row \d+ of 'y' is empty or text, expected a number", channels=("x",))
    dates = pandas.Timestamp("2026-01-01") + pandas.to_timedelta(T, unit="s")
    write(FRAME.assign(time=dates).rename(columns={"time": "time" if suffix == "xlsx" else "when"}), path)
    # Excel's dates are whole milliseconds
    assert read(path, channels=("x",)).rate == (8000 if suffix == "parquet" else None)


def test_sheets(tmp_path):
    with pandas.ExcelWriter(tmp_path / "a.xlsx") as book:
        FRAME[[]][:0].to_excel(book, sheet_name="empty", index=False)
        FRAME[["x"]].to_excel(book, sheet_name="run 1", header=False, index=False)
        FRAME[["y"]].to_excel(book, sheet_name="run 2", header=False, index=False)
    assert_read(read(tmp_path / "a.xlsx", variable=("run 2",)), X[:, 1])
    refused(
        tmp_path / "a.xlsx",
        "holds the sheets 'empty', 'run 1', 'run 2'; expected one .* --variable with its name",
    )
    refused(
        tmp_path / "a.xlsx", "holds the sheets 'empty', 'run 1', 'run 2'; .* --variable", variable=("empty",)
    )


def test_sheets_with_units_and_empty_cells(tmp_path):
    book = openpyxl.Workbook()
    for row in (["rig", 7], ["time", "x"], ["[ms]", "g"], *zip((T * 1000).tolist(), range(60), strict=True)):
        book.active.append([None, *row])
    book.active.cell(70, 9).value = ""
    book.save(tmp_path / "a.xlsx")
    assert_read(read(tmp_path / "a.xlsx"), np.arange(60), ("x",), 8000)
    book.active.cell(20, 3).value = None
    book.save(tmp_path / "a.xlsx")
    refused(tmp_path / "a.xlsx", "row 20 of 'x' is empty or text")
    book.active.cell(3, 2).value = 7
    book.save(tmp_path / "a.xlsx")
    refused(tmp_path / "a.xlsx", "row 3 of sheet 'Sheet' has other columns of numbers than the last")


def test_tables(file):
    for name, mark in (("a_TRAIN.tsv", "\t"), ("a_TRAIN.txt", "  "), ("a_TRAIN.csv", ",")):
        lines = "".join(mark.join(["-1", *map(repr, row), "NaN"]) + "\n" for row in X.tolist())
        names, values = read_table(file(name, lines), FileOptions())
        np.testing.assert_array_equal(values, np.c_[np.full(60, -1), X, np.full(60, np.nan)])
        assert names == ()
    assert read_table(file("a.csv", "a,b\n1.5,2\n"), FileOptions()).names == ("a", "b")


def npy(shape, descr="<f8"):
    """A .npy file of 50 float64 that says it has another shape."""
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(400)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"\x93NUMPY\x01\x00", "cannot be read"),
        (b"PK\x03\x04" + bytes(60), "cannot be read: the magic string is not correct"),
        (npy("(99999999999999999,)"), f"holds 400 bytes of data where its header says {8 * (10**17 - 1)}"),
        (npy("(4294967296, 4294967296)"), "cannot be read: it holds 400 bytes of data where"),
        (npy("(-5, -10)"), "cannot be read: "),
        (b"\x93NUMPY\x03\x00" + bytes(60), "it is of .npy version 3.0, expected 1.0 or 2.0"),
        (npy("(49,)"), "cannot be read: it holds 400 bytes of data where its header says 392"),
        (npy("(50,)")[:-1], "cannot be read: it holds 399 bytes of data where its header says 400"),
        (npy("(50,)", "<f7"), "cannot be read"),
        (npy("((((50,)"), "cannot be read"),
        (npy("(50,)", "|O"), "cannot be read: it holds Python objects, expected numbers"),
        (npy("(50,)", "|b1")[:-350], "holds bool, expected real numbers"),
        (npy("(25,)", "<c16"), "holds complex128, expected real numbers"),
        (npy("(50,)", "<U2"), "holds <U2, expected real numbers"),
    ],
)
def test_damaged_npy(file, content, message):
    refused(file("a.npy", content), f"a.npy: .*{message}")


def write_mat(path):
    io.savemat(path, {"x": X})


@pytest.mark.parametrize(
    "suffix, write",
    [
        ("mat", write_mat),
        ("mat", lambda path: write_hdf5(path, {"x": X})),
        ("h5", lambda path: write_hdf5(path, {"x": X}, matlab=False)),
        ("npy", lambda path: np.save(path, X)),
        ("npz", lambda path: np.savez_compressed(path, x=X)),
        ("wav", lambda path: soundfile.write(path, X[:, 0] / 9, 8000)),
        ("flac", lambda path: soundfile.write(path, X[:, 0] / 9, 8000)),
        ("parquet", FRAME.to_parquet),
        ("xlsx", FRAME.to_excel),
    ],
)
def test_damaged_files(tmp_path, suffix, write):
    path = tmp_path / f"a.{suffix}"
    refused(path, "No such file or directory")
    write(path)
    whole = path.read_bytes()
    read(path, channels=("0",) if suffix != "xlsx" and suffix != "parquet" else ("x",))
    path.write_bytes(b"")
    refused(path, "is empty")
    # cut anywhere, another content, another format
    for content in (
        whole[:7],
        whole[: len(whole) // 2],
        whole[:-9],
        b"1.0\n2.0\n" * 99,
        bytes(999),
        b"PK\x03\x04" * 99,
    ):
        path.write_bytes(content)
        refused(path, f"a.{suffix}: cannot be read((?!version).)*$")


def test_endings(file, tmp_path):
    refused(file("a.dat", "1\n"), r"ends in '.dat', expected .mat, .csv, .*, .xlsx")
    assert_read(read(file("a.TXT", "1\n2\n")), [1, 2])
    (tmp_path / "a.npy").mkdir()
    refused(tmp_path / "a.npy", "a.npy: ")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"variable": "x"}, "variable: got 'x', expected a tuple of names"),
        ({"channels": (1,)}, r"channels: got \(1,\), expected a tuple of names"),
        (
            {"layout": "rows"},
            "layout: got 'rows', expected 'auto', 'points-first', 'channels-first' or 'windows'",
        ),
        ({"decimal": ";"}, "decimal: got ';', expected None, '.' or ','"),
        (
            {"delimiter": "ab"},
            "delimiter: got 'ab', expected a character that is in no number, 'tab' or 'space'",
        ),
        ({"delimiter": "1"}, "delimiter: got '1', expected a character"),
        ({"delimiter": ",", "decimal": ","}, "delimiter: got ',', expected a character"),
        *(
            ({"encoding": name}, f"encoding: got '{name}', expected one that Python knows, of text")
            for name in ("utf-9", "base64", "hex", "rot13", "zlib", "bz2", "undefined", "mbcs0")
        ),
    ],
)
def test_options(options, message):
    with pytest.raises(ValueError, match=message):
        FileOptions(**options)
    FileOptions(("a",), ("0",), "windows", "tab", ",", "latin-1")
    FileOptions(delimiter="\\t")
