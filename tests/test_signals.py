"""Files of every format and dialect, made by the libraries themselves, and what is refused of them."""

import numpy as np
import pytest

from drsn_ops.arguments import InputError
from drsn_ops.data.signals import FileOptions, read_signal

io = pytest.importorskip("scipy.io")
pandas = pytest.importorskip("pandas")
h5py = pytest.importorskip("h5py")
soundfile = pytest.importorskip("soundfile")
pytest.importorskip("pyarrow")
pytest.importorskip("openpyxl")

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
    np.testing.assert_array_equal(signal.values, values)
    assert signal[1:] == (channels, rate, record)


def table(*columns, delimiter=",", decimal=".", head=""):
    """Lines of numbers, each exact."""
    lines = (delimiter.join(map(repr, map(float, line))) for line in zip(*columns, strict=True))
    return head + "".join(line.replace(".", decimal) + "\n" for line in lines)


T = np.arange(60) / 8000


@pytest.mark.parametrize(
    "content, options, expected",
    [
        (table(X[:, 0]), {}, (X[:, 0],)),
        (table(X[:, 0], head="# a logger\n\nvalue\n\n") + "\n# end\n \n", {}, (X[:, 0], ("value",))),
        ("1 # c\n2\n# d\n3\n", {}, ([1, 2, 3],)),
        ("1e3\r\n-2E-3\r\n+.5\r\n", {}, ([1e3, -2e-3, 0.5],)),
        # of the old Macintosh
        ("1.5\r2.5\r", {}, ([1.5, 2.5],)),
        (table(X[:, 0], decimal=",", head="x\n"), {}, (X[:, 0], ("x",))),
        ("0,05\n7\n-0,5\n", {}, ([0.05, 7, -0.5],)),
        ("1,5\n2,5\n", {"decimal": ","}, ([1.5, 2.5],)),
        (20 * "1,5\n", {"delimiter": ",", "channels": ("1",)}, (20 * [5], ("1",))),
        ("a,b\n1,5\n2,5\n", {"channels": ("b",)}, ([5, 5], ("b",))),
        *(
            (table(*X.T, delimiter=mark, decimal=point), {"channels": ("2", "0")}, (X[:, [2, 0]], ("2", "0")))
            for mark, point in ((",", "."), (";", "."), (";", ","), ("\t", ","), (" ", "."), ("  ", ","), ("|", "."))
        ),
        # whole numbers first, then a decimal comma
        (400 * "1;2\n" + "1;2,5\n", {"channels": ("1",)}, ([*(400 * [2]), 2.5], ("1",))),
        # a delimiter at the end of each line
        ("".join(f"{i % 7},{i % 3},\n" for i in range(60)), {"channels": ("1",)}, (np.arange(60) % 3, ("1",))),
        ('"a, b",c\n1.5,2\n3.5,4\n', {"channels": ("a, b",)}, ([1.5, 3.5], ("a, b",))),
        (table(T, X[:, 0], head="time,x\n"), {}, (X[:, 0], ("x",), 8000)),
        (table(T, X[:, 0], head="# t, x\n"), {}, (X[:, 0], ("x",), 8000)),
        (table(T, X[:, 0]), {}, (X[:, 0], ("1",), 8000)),
        (table(T * 1e3, X[:, 0], head="Time;x\n(ms);(V)\n\n", delimiter=";"), {}, (X[:, 0], ("x",), 8000)),
        (table(T * 1e6, X[:, 0], decimal=",", delimiter=";", head="Zeit [µs];x\n"), {}, (X[:, 0], ("x",), 8000)),
        (table(X[:, 0], T, head="x,timestamp_s\n"), {}, (X[:, 0], ("x",), 8000)),
        (table(T, X[:, 0], T + 5, head="time,x,t\n"), {}, (X[:, 0], ("x",), 8000)),
        # counted from 1970 in ms
        (table(np.arange(60) * 2 + 1.7e12, X[:, 0], head="timestamp,x\n"), {}, (X[:, 0], ("x",), 500)),
        # rounded to the fourth digit, a step has no more than two
        ("time x\n" + "".join(f"{i / 8000:.4f} {i % 7}\n" for i in range(60)), {}, (np.arange(60) % 7, ("x",), 8000)),
        # an index says no rate
        (pandas.DataFrame({"x": X[:, 0]}).to_csv(), {}, (X[:, 0], ("x",))),
        (pandas.DataFrame(X[:, :1]).to_csv(), {}, (X[:, 0], ("0",))),
        (pandas.DataFrame(X).to_csv(index=False), {"channels": ("1",)}, (X[:, 1], ("1",))),
        # the only column is no time, nor is one that rises unevenly
        (table(T, head="t\n"), {}, (T, ("t",))),
        (table(T**2, X[:, 0]), {"channels": ("0",)}, (T**2, ("0",))),
        # the time, asked for
        (table(X[:, 0], T, head="x,time\n"), {"channels": ("time",)}, (T, ("time",), 8000)),
        # as the gearbox data of Southeast University
        ("Title,A\n\nData\n" + table(*X.T[:2], delimiter="\t"), {"channels": ("0",)}, (X[:, 0], ("0",))),
        ("\n".join(",".join(map(repr, row)) for row in X.T.tolist()), {"channels": ("1",)}, (X[:, 1], ("1",))),
        ("1\nnan\n3\n", {}, ([1, np.nan, 3],)),
    ],
)  # fmt: skip
def test_text(file, content, options, expected):
    signal = read(file("a.csv", content), **options)
    expected = [*expected, *(("0",), None)[len(expected) - 1 :]]
    rate = expected[2] and pytest.approx(expected[2], rel=1e-2 if "0.0001 " in content else 1e-9)
    assert_read(signal, expected[0], expected[1], rate)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings(file, encoding):
    path = file("a.txt", "Größe\n1.5\n2.5\n".encode(encoding))
    assert_read(read(path), [1.5, 2.5], ("Größe",))
    assert_read(read(path, encoding=encoding), [1.5, 2.5], ("Größe",))
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
        ("", {}, "is empty"),
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
        ("1.5,2,\n1.5,2,\n1.5,2,7\n", {}, "line 3 has 3 fields"),
        ("1.0x\n" + 9 * "1\n", {}, "'1.0x' above the numbers is neither names nor 1 number"),
        ("-.5.\n" + 9 * "1\n", {}, "'-.5.' above the numbers is neither names nor"),
        ("1.5,,2\n" + 9 * "1,2,3\n", {}, "'1.5,,2' above the numbers is neither names nor 3 numbers"),
        (",1.5,2\n" + 9 * "1,2,3\n", {}, "',1.5,2' above the numbers is neither names nor 3 numbers"),
        ("a,b\n" + 60 * "1.5,2,3\n", {}, "its first line names 2 columns, the others have 3"),
        ("1,5\n2,5\n", {}, "'1,5' may be two numbers or one with a decimal comma; .* --delimiter , or --decimal ,"),
        ("1,5\n7\n", {}, "'1,5' may be two numbers or one with a decimal comma"),
        ("a,b\n0,05\n1,5\n", {}, "'0,05' may be two numbers or one with a decimal comma"),
        ("1.234,5\n2.345,5\n", {"delimiter": ";"}, "no line holds numbers alone, such as '1.234,5'"),
        (table(*X.T), {}, r"holds 3 channels, 0 to 2; expected --channels, or --layout windows"),
        (table(T, *X.T), {}, r"holds 4 channels, 0 to 3, of which 0 is the time; expected --channels"),
        (table(T, *X.T[:2], head="time,a,b\n"), {}, r".* 'time' \(the time\), 'a', 'b'; expected --channels$"),
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
