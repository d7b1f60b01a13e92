"""Where recordings are found: class folders, UCR's tables, what is passed over and what is refused."""

import numpy as np
import pytest
import torch

from drsn_ops.arguments import InputError
from drsn_ops.data.places import recordings_within
from drsn_ops.data.recordings import Reading, read_labelled, read_recordings
from drsn_ops.data.signals import FileOptions
from drsn_ops.data.windows import Cutting


def noise(seed, points=40):
    return np.random.default_rng(seed).standard_normal(points)


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, noise(seed))


@pytest.fixture
def folder(tmp_path):
    """Two classes of three recordings."""
    for seed in range(6):
        save(tmp_path / ("good", "bad")[seed % 2] / f"{seed}.npy", seed)
    return tmp_path


def read(place, **options):
    return read_recordings(place, **{"points": 40, "normalise": "none", **options})


def refused(place, message, **options):
    with pytest.raises(InputError, match=message) as caught:
        read(place, **options)
    assert "\n" not in str(caught.value)


def test_files_of_a_class_may_lie_deeper(folder):
    save(folder / "good" / "monday" / "morning" / "0.npy", 6)
    data = read(folder)
    assert [str(path.relative_to(folder)) for path in data.files] == [
        *("bad/1.npy", "bad/3.npy", "bad/5.npy"),
        *("good/0.npy", "good/2.npy", "good/4.npy", "good/monday/morning/0.npy"),
    ]
    assert data.classes == ("bad", "good") and data.passed_over == ()
    for part in (data.train, data.test):
        for window, label, i in zip(part.x, part.labels, part.recording, strict=True):
            path = data.files[i]
            assert data.classes[label] == path.relative_to(folder).parts[0]
            assert torch.equal(window[0], torch.from_numpy(np.load(path)).float())


def test_what_is_no_recording_is_passed_over(folder):
    """And named. Hidden files are not even that."""
    noted = [
        "README.md",
        "good/README.txt",
        "good/notes.xlsx",
        "good/monday/sensor.txt",
        "good/Notes on the rig.csv",
        "bad/plot.png",
        "labels.csv",
        "figures/spectrum.pdf",
    ]
    for name in (
        *noted,
        "bad/.DS_Store",
        "good/._0.npy",
        ".git/x.npy",
        "__MACOSX/0.npy",
        "good/.cache/1.npy",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("not a recording")
    data = read(folder)
    assert len(data.files) == 6
    assert {str(path.relative_to(folder)) for path in data.passed_over} == set(noted)


def test_text_alone_is_recordings(tmp_path):
    for seed in range(4):
        path = tmp_path / "ab"[seed % 2] / f"{seed}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(repr, noise(seed).tolist())))
    assert len(read(tmp_path).files) == 4


def test_folders_that_hold_something_else(folder, tmp_path):
    (folder / "worse").mkdir()
    refused(folder, "worse: holds no files; expected recordings of a class")
    refused(folder / "worse", r"worse: holds no recordings \(.*\.npy.*\), nor folders of them")
    (folder / "worse" / ".keep").write_text("")
    refused(folder, "worse: holds no files")
    refused(
        folder / "good", r"good: holds recordings such as 0.npy, but no folders; expected one for each class"
    )
    refused(
        folder / "good" / "0.npy", r"0.npy: is a file; expected a folder of recordings, or a table \(.tsv"
    )
    refused(folder / "nowhere", "nowhere: no such folder")
    (folder / "worse" / ".keep").unlink()
    (folder / "worse").rmdir()
    (folder / "bad").rename(folder / "good" / "bad")
    refused(folder, "holds one class, 'good'; expected a folder for each of several")


def test_given_folders_pass_over_what_is_beside_them(tmp_path):
    for seed in range(8):
        save(tmp_path / ("train", "test")[seed // 4] / "ab"[seed % 2] / f"{seed}.npy", seed)
    save(tmp_path / "unlabelled" / "0.npy", 8)
    (tmp_path / "train" / "README").write_text("")
    data = read(tmp_path)
    assert len(data.train.x) == len(data.test.x) == 4
    assert [str(path.relative_to(tmp_path)) for path in data.passed_over] == [
        "unlabelled/0.npy",
        "train/README",
    ]


@pytest.mark.parametrize("other", ["val", "eval"])
def test_parts_are_not_taken_for_classes(tmp_path, other):
    """Nor are classes for parts, where their files lie in their folders."""
    for seed in range(8):
        save(tmp_path / ("train", other)[seed // 4] / "ab"[seed % 2] / f"{seed}.npy", seed)
    refused(
        tmp_path,
        "holds (val and )?train|train and val, named after parts? of a split, but no test; expected train",
    )
    refused(tmp_path, f"; or a part alone, as .*{tmp_path.name}/", split="recording")
    with pytest.raises(InputError, match="holds .*but no test"):
        read_labelled(tmp_path, Reading(FileOptions(), Cutting(20, None, "none")), ("a", "b"), 1)
    assert read(tmp_path / "train").classes == ("a", "b")


def test_classes_named_as_parts(tmp_path):
    for seed in range(4):
        save(tmp_path / ("train", "bus")[seed % 2] / f"{seed}.npy", seed)
    assert read(tmp_path).classes == ("bus", "train")
    save(tmp_path / "train" / "monday" / "4.npy", 4)
    refused(tmp_path, "holds train, named after part of a split, but no test; .* or classes of other names")
    (tmp_path / "train" / "monday").rename(tmp_path / "validation")
    refused(tmp_path, "holds train and validation, named after parts of a split, but no test")


def test_published_files_in_one_part(tmp_path):
    for name in ("train/105", "train/97", "eval/106", "eval/98"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.mat").write_text("")
    refused(tmp_path, "holds train, named after part of a split, but no test")


def test_links_are_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    save(elsewhere / "inner" / "6.npy", 6)
    (folder / "good" / "day").symlink_to(elsewhere)
    # round in circles, and to what is read already
    (elsewhere / "inner" / "up").symlink_to(elsewhere)
    (folder / "good" / "self").symlink_to(folder / "good")
    (folder / "good" / "gone").symlink_to(folder / "nowhere")
    data = read(folder)
    assert len(data.files) == 7 and folder / "good" / "day" / "inner" / "6.npy" in data.files
    assert data.passed_over == ()


def test_endings_that_nothing_reads_are_named(tmp_path):
    for name in ("a/1.XLS", "a/2.xls", "b/1.doc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    refused(tmp_path, r"holds no recordings \(.*\), nor folders of them, but files that end in .doc, .xls$")


def test_texts_beside_fewer_others_are_recordings(tmp_path):
    """A stray file of another ending does not make notes of them; a note a recording does."""
    for seed in range(6):
        path = tmp_path / "ab"[seed % 2] / f"{seed}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(map(repr, noise(seed).tolist())))
    save(tmp_path / "a" / "stray.npy", 6)
    data = read(tmp_path)
    assert len(data.files) == 7 and data.passed_over == ()
    assert recordings_within(tmp_path) == (sorted(data.files), [])
    (tmp_path / "labels.csv").write_text("file,class\n")
    assert recordings_within(tmp_path) == (sorted(data.files), [tmp_path / "labels.csv"])
    (tmp_path / "labels.csv").unlink()
    for seed in (0, 2, 4):
        save(tmp_path / "a" / f"{seed}.npy", seed)
    (tmp_path / "a" / "stray.npy").unlink()
    data = read(tmp_path)
    assert len(data.files) == 6 and [path.name for path in data.passed_over] == ["0.txt", "2.txt", "4.txt"]


SERIES = {
    "TRAIN": [(2, noise(0, 8)), (-1, noise(1, 8)), (10, noise(2, 8)), (2, noise(3, 8)), (-1, noise(4, 6))],
    "TEST": [(10, noise(5, 8)), (2, noise(6, 8)), (-1, noise(7, 8))],
}


def lines_of(series, delimiter, length=8):
    """As in the archive: the label first, and NaN beyond the end of a short series."""
    rows = [[label, *values.tolist(), *["NaN"] * (length - len(values))] for label, values in series]
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def write_tables(folder, suffix=".tsv", delimiter="\t"):
    folder.mkdir(exist_ok=True)
    for part, series in SERIES.items():
        (folder / f"Toy_{part}{suffix}").write_text(lines_of(series, delimiter))
    return folder


@pytest.mark.parametrize("suffix, delimiter", [(".tsv", "\t"), (".csv", ","), (".txt", "  ")])
def test_tables_of_labelled_series(tmp_path, suffix, delimiter):
    folder = write_tables(tmp_path, suffix, delimiter)
    (folder / "README.md").write_text("Toy")
    data = read(folder, points=6)
    assert data.split == "given"
    # numbers by size, in as many digits as they need
    assert data.classes == ("-1", "2", "10")
    assert [data.classes[label] for label in data.train.labels] == ["2", "-1", "10", "2", "-1"]
    assert [data.classes[label] for label in data.test.labels] == ["10", "2", "-1"]
    for part, windows in (("TRAIN", data.train), ("TEST", data.test)):
        expected = torch.from_numpy(np.stack([values[:6] for _, values in SERIES[part]])).float()
        torch.testing.assert_close(windows.x[:, 0], expected)
        assert [data.files[i].name for i in windows.recording] == [
            f"Toy_{part}{suffix}:{line}" for line in range(1, len(expected) + 1)
        ]
    assert [path.name for path in data.passed_over] == ["README.md"]


def test_short_series(tmp_path):
    """The largest window that fits is named; padding keeps all."""
    folder = write_tables(tmp_path)
    refused(
        folder,
        "Toy_TRAIN.tsv:5: has 6 points, fewer than a window of 8 has; --points 6 or less fits all files, and --pad",
        points=8,
    )
    data = read(folder, points=8, pad=True, normalise="mean")
    short = torch.from_numpy(SERIES["TRAIN"][4][1]).float()
    torch.testing.assert_close(data.train.x[4, 0, 1:7], short - short.mean())
    assert data.train.x[4, 0, 0] == data.train.x[4, 0, 7] == pytest.approx(0, abs=1e-6)


def test_validation_of_series(tmp_path):
    data = read(write_tables(tmp_path), points=6, validation_share=0.4)
    # of the one series of class 10 nothing can be taken
    assert sorted(data.validation.labels.tolist()) == [0, 1] and len(data.train.x) == 3


def test_one_table(tmp_path):
    folder = write_tables(tmp_path)
    path = folder / "all.csv"
    path.write_text(lines_of(SERIES["TRAIN"] + SERIES["TEST"], ","))
    data = read(path, points=6)
    assert data.split == "recording" and len(data.train.x) + len(data.test.x) == 8 and len(data.files) == 8
    path.write_text("label,a,b,c,d,e,f,g,h\n" + lines_of(SERIES["TRAIN"] + SERIES["TEST"], ","))
    named = read(path, points=6)
    assert torch.equal(named.train.x, data.train.x) and named.files[0].name == "all.csv:2"
    path.write_text(lines_of(SERIES["TEST"], ","))
    refused(path, "class '-1' has one recording", points=6)


def test_copies_in_tables(tmp_path):
    """Published ones have some, by chance too: those between parts are told."""
    folder = write_tables(tmp_path)
    train, test = (folder / f"Toy_{part}.tsv" for part in SERIES)
    train.write_text(lines_of(SERIES["TRAIN"] + SERIES["TRAIN"][:1], "\t"))
    data = read(folder, points=6)
    assert len(data.train.x) == 6 and data.copies == ()
    test.write_text(lines_of(SERIES["TEST"] + SERIES["TRAIN"][:1], "\t"))
    data = read(folder, points=6)
    # two of the training are the same
    assert data.copies == ((train.with_name("Toy_TRAIN.tsv:1"), test.with_name("Toy_TEST.tsv:4")),)
    assert len(data.test.x) == 4


def test_copies_in_tables_that_are_split_in_time(tmp_path):
    """Each series is in both parts, and so is its copy."""
    series = [(i % 2, noise(i, 40)) for i in range(4)]
    (tmp_path / "all.csv").write_text(lines_of([*series, series[0]], ","))
    data = read(tmp_path / "all.csv", points=6, split="time")
    assert [tuple(path.name for path in pair) for pair in data.copies] == [("all.csv:1", "all.csv:5")]


@pytest.mark.parametrize("options", [{"variable": "x"}, {"channels": 0}, {"layout": "windows"}])
def test_tables_have_neither_variables_nor_channels(tmp_path, options):
    refused(
        write_tables(tmp_path),
        "Toy_TRAIN.tsv: a table, whose lines are recordings of one channel; expected no --variable, --channels or",
        points=6,
        **options,
    )


def test_tables_that_hold_something_else(tmp_path):
    folder = write_tables(tmp_path)
    (folder / "Toy_TEST.txt").write_text("another copy")
    assert len(read(folder, points=6).files) == 8
    for part in SERIES:
        (folder / f"Other_{part}.tsv").write_text("")
    refused(folder, "holds the tables of 2 data sets, Other, Toy; expected a folder for each")
    for part in SERIES:
        (folder / f"Other_{part}.tsv").unlink()
        (folder / f"Toy_{part}.tsv").write_text("1\n2\n3\n")
    refused(folder, "Toy_TRAIN.tsv: has one column, expected a label and a series in each line")
    (folder / "Toy_TRAIN.tsv").write_text(lines_of([("NaN", noise(0, 8)), (1, noise(1, 8))], "\t"))
    refused(folder, "Toy_TRAIN.tsv: line 1 has the label nan, expected a number")


def test_labels_in_words(tmp_path):
    (tmp_path / "all.csv").write_text(lines_of([("good", noise(0, 8)), ("bad", noise(1, 8))], ","))
    refused(
        tmp_path / "all.csv", "all.csv: .*; a line of a table is a label, which is a number, and a series"
    )


def test_all_recordings_for_an_evaluation(folder):
    reading = Reading(FileOptions(), Cutting(20, None, "none"))
    classes = ("other", "good", "bad")
    (folder / "good" / "notes.txt").write_text("")
    windows, files, passed_over = read_labelled(folder, reading, classes, 1)
    assert len(files) == 6 and windows.x.shape == (12, 1, 20)
    assert passed_over == (folder / "good" / "notes.txt",)
    assert windows.recording.tolist() == [i for i in range(6) for _ in range(2)]
    assert [classes[label] for label in windows.labels] == [files[i].parent.name for i in windows.recording]
    values = np.stack([np.load(files[i])[:20] for i in range(6)])
    torch.testing.assert_close(windows.x[::2, 0], torch.from_numpy(values).float())
    with pytest.raises(
        InputError,
        match="bad/1.npy: is of class 'bad', as its .*; expected one of 'other', 'good'",
    ):
        read_labelled(folder, reading, classes[:2], 1)
    # one class is enough
    for path in (folder / "bad").iterdir():
        path.unlink()
    (folder / "bad").rmdir()
    assert len(read_labelled(folder, reading, classes, 1).files) == 3


def test_all_series_for_an_evaluation(tmp_path):
    folder, reading = write_tables(tmp_path), Reading(FileOptions(), Cutting(6, None, "none"))
    assert len(read_labelled(folder, reading, ("-1", "2", "10"), 1).files) == 8
    windows, files, _ = read_labelled(folder / "Toy_TEST.tsv", reading, ("-1", "2", "10"), 1)
    assert windows.labels.tolist() == [2, 1, 0] and files[2].name == "Toy_TEST.tsv:3"


def test_the_same_again(folder):
    for seed in (0, 1):
        first, again = (read(folder, seed=seed, validation_share=0.3, points=20) for _ in range(2))
        for ours, theirs in zip(first[:3], again[:3], strict=True):
            assert all(map(torch.equal, ours, theirs))
        assert first[3:] == again[3:]
