"""The data sets: splits, noise, augmentation, and readers that refuse what is damaged."""

import gzip
import io
import multiprocessing
import os
import pickle
import resource
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from drsn_ops.arguments import InputError
from drsn_ops.data import augment, load

pytest.importorskip("sklearn")


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_digits():
    digits = load("digits", None, noise=0, seed=0)
    assert digits.train.images.shape == (1437, 1, 8, 8) and digits.test.images.shape == (360, 1, 8, 8)
    for split in (digits.train, digits.test):
        assert split.images.dtype == torch.float32 and split.labels.dtype == torch.int64
        assert split.images.min() == 0 and split.images.max() == 1
        shares = torch.bincount(split.labels, minlength=10) / len(split.labels)
        assert ((shares - 0.1).abs() < 0.01).all()
    assert digits.mean.tolist() == [[[0]]]


def test_splits_do_not_mix():
    from sklearn.datasets import load_digits

    digits = load("digits", None, noise=0, seed=0)
    together = sorted(
        image.numpy().tobytes() for split in (digits.train, digits.test) for image in split.images
    )
    assert together == sorted((image / 16).astype(np.float32).tobytes() for image in load_digits().images)


def test_noise():
    clean = load("digits", None, noise=0, seed=0)
    noisy = load("digits", None, noise=0.5, seed=0)
    for before, after in ((clean.train, noisy.train), (clean.test, noisy.test)):
        noise = after.images - before.images
        assert torch.equal(before.labels, after.labels)
        # of U(0, 1/2): mean 1/4, standard deviation 1 / sqrt(48)
        assert noise.min() > -1e-6 and noise.max() < 0.5 + 1e-6
        assert noise.mean().item() == pytest.approx(0.25, abs=0.005)
        assert noise.std().item() == pytest.approx(48**-0.5, abs=0.005)
        # independent from pixel to pixel and from image to image
        centred = noise.flatten(1) - 0.25
        assert (centred[:, 1:] * centred[:, :-1]).mean().abs() < 0.001
        assert (centred[1:] * centred[:-1]).mean().abs() < 0.001


def test_noise_follows_the_seed():
    first, again, other = (load("digits", None, noise=0.5, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.test.images, again.test.images)
    assert not torch.equal(first.train.images, other.train.images)
    assert torch.equal(first.train.labels, other.train.labels)


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder, random):
    """Seven images to train on, gzipped, and three to test, plain."""
    arrays = {}
    for prefix, n in (("train", 7), ("t10k", 3)):
        arrays[prefix] = random.integers(0, 256, (n, 28, 28), np.uint8), random.integers(0, 10, n, np.uint8)
        for kind, array in zip(("images-idx3", "labels-idx1"), arrays[prefix], strict=True):
            path = folder / f"{prefix}-{kind}-ubyte"
            if prefix == "train":
                path.with_name(path.name + ".gz").write_bytes(gzip.compress(idx(array)))
            else:
                path.write_bytes(idx(array))
    return arrays


@pytest.fixture
def mnist(tmp_path, random):
    return tmp_path, write_mnist(tmp_path, random)


def test_mnist(mnist):
    folder, arrays = mnist
    data = load("mnist", folder, noise=0, seed=0)
    for split, prefix in ((data.train, "train"), (data.test, "t10k")):
        images, labels = arrays[prefix]
        assert torch.equal(split.images[:, 0], torch.from_numpy(images.astype(np.float32)) / 255)
        assert split.labels.tolist() == labels.tolist()


def change(path, edit):
    path.write_bytes(edit(path.read_bytes()))


LABELS, IMAGES = "t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte"


@pytest.mark.parametrize(
    "name, edit, message",
    [
        (IMAGES, lambda b: b[:-1], f"{IMAGES}: holds 2351 bytes of data where its header says 3 x 28 x 28"),
        (IMAGES, lambda b: b + b"0", f"{IMAGES}: holds 2353 bytes of data"),
        (IMAGES, lambda b: b[:10], f"{IMAGES}: cut short in its header, at 10 of 16 bytes"),
        (
            IMAGES,
            lambda b: b"",
            f"{IMAGES}: not an idx file of 3-axis bytes: starts with nothing, not 00000803",
        ),
        # of 2^95 bytes, which no file holds, and none of pixels
        (
            IMAGES,
            lambda b: b[:4] + b"\x7f\xff\xff\xff" * 3 + b[16:],
            f"{IMAGES}: holds 2352 bytes of data where its header says 2147483647 x 2147483647 x 2147483647",
        ),
        (IMAGES, lambda b: idx(np.zeros((3, 0, 28), np.uint8)), f"{IMAGES}: holds no images"),
        (LABELS, lambda b: b"\0\0\x0d\1" + b[4:], f"{LABELS}: not an idx file .* 00000d01, not 00000801"),
        (LABELS, lambda b: idx(np.zeros(4, np.uint8)), f"{LABELS}: t10k has 3 images but 4 labels"),
        (LABELS, lambda b: b[:-1] + b"\x0a", f"{LABELS}: labels run from . to 10, not from 0 to 9"),
        ("train-images-idx3-ubyte.gz", lambda b: b[:-20], r"train-images-idx3-ubyte\.gz: cannot be read"),
        ("train-images-idx3-ubyte.gz", lambda b: b"no", r"train-images-idx3-ubyte\.gz: cannot be read"),
        (
            "train-labels-idx1-ubyte.gz",
            lambda b: gzip.compress(idx(np.zeros(0, np.uint8))),
            "7 images but 0 labels",
        ),
    ],
)
def test_damaged_mnist(mnist, name, edit, message):
    folder, _ = mnist
    change(folder / name, edit)
    with pytest.raises(InputError, match=message) as caught:
        load("mnist", folder, noise=0, seed=0)
    assert "\n" not in str(caught.value)


def test_missing_mnist(mnist):
    folder, _ = mnist
    (folder / LABELS).unlink()
    with pytest.raises(InputError, match=f"{LABELS}: no such file, nor {LABELS}.gz"):
        load("mnist", folder, noise=0, seed=0)
    with pytest.raises(InputError, match="nowhere.*: no such file"):
        load("mnist", folder / "nowhere", noise=0, seed=0)
    with pytest.raises(
        InputError, match=r"nor t\S* with or without .gz; expected .* its raw or in its MNIST/raw"
    ):
        load("mnist", folder / "nowhere", noise=0, seed=0)
    with pytest.raises(InputError, match="mnist needs the folder that holds its files: --data-dir"):
        load("mnist", None, noise=0, seed=0)


@pytest.mark.parametrize("place", ["MNIST/raw", "raw"])
@pytest.mark.parametrize("separator", "-.")
def test_layouts_of_mnist(mnist, tmp_path, place, separator):
    """Torchvision's folders, of which either is given, and the names with a dot that some copies have."""
    folder, _ = mnist
    expected = load("mnist", folder, noise=0, seed=0)
    (tmp_path / "root" / place).mkdir(parents=True)
    for path in folder.glob("*ubyte*"):
        path.rename(tmp_path / "root" / place / path.name.replace("-idx", f"{separator}idx"))
    found = load("mnist", tmp_path / "root", noise=0, seed=0)
    assert torch.equal(found.train.images, expected.train.images)
    assert torch.equal(found.test.labels, expected.test.labels)


def test_a_compressed_file_of_more_than_its_header_says(mnist):
    """Refused before what is in it takes the memory: here, twice the memory that the process may have."""
    folder, _ = mnist
    path = folder / "train-images-idx3-ubyte.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(idx(np.zeros((0, 28, 28), np.uint8)))
        for _ in range(8):
            file.write(bytes(2**24))
    refused_by_a_process(
        "mnist", folder, f"{path}: holds {8 * 2**24} bytes of data where its header says", 2**26
    )


def refused_by_a_process(name, folder, message, memory):
    """The same as `load` would raise, from a forked process with so much more memory, which may end in a crash."""

    def attempt(pipe):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + memory,) * 2)
        torch.set_num_threads(1)  # a fork does not copy the pool's threads
        try:
            load(name, folder, noise=0, seed=0)
        except InputError as error:
            pipe.send(str(error))

    receiver, sender = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=attempt, args=(sender,))
    process.start()
    process.join()
    assert process.exitcode == 0 and receiver.poll()
    said = receiver.recv()
    assert "\n" not in said and message in said


NAMES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def write_cifar10(folder, random):
    """Four images a batch, pickled as the public files are: protocol 2, names in bytes."""
    batches = {}
    for name in NAMES:
        data = random.integers(0, 256, (4, 3072), np.uint8)
        batches[name] = {b"data": data, b"labels": random.integers(0, 10, 4).tolist(), b"batch_label": b"one"}
        (folder / name).write_bytes(pickle.dumps(batches[name], 2))
    return batches


@pytest.fixture(params=["", "cifar-10-batches-py"])
def cifar10(tmp_path, random, request):
    folder = tmp_path / request.param
    folder.mkdir(exist_ok=True)
    return folder, tmp_path, write_cifar10(folder, random)


def test_cifar10(cifar10):
    _, root, batches = cifar10
    data = load("cifar10", root, noise=0, seed=0)
    assert data.train.images.shape == (20, 3, 32, 32) and data.test.images.shape == (4, 3, 32, 32)
    red = batches["data_batch_2"][b"data"][1][:1024].reshape(32, 32)
    assert torch.equal(data.train.images[5, 0], torch.from_numpy(red.astype(np.float32)) / 255)
    assert data.train.labels[8:12].tolist() == batches["data_batch_3"][b"labels"]
    assert data.test.labels.tolist() == batches["test_batch"][b"labels"]


def test_cifar10_mean_is_that_of_the_noisy_training_images(cifar10):
    data = load("cifar10", cifar10[1], noise=0.1, seed=0)
    torch.testing.assert_close(data.mean.flatten(), data.train.images.mean((0, 2, 3)))
    clean = load("cifar10", cifar10[1], noise=0, seed=0)
    torch.testing.assert_close(data.mean - clean.mean, torch.full((3, 1, 1), 0.05), rtol=0, atol=0.002)


def test_pickles_of_the_old_numpy_core(cifar10):
    folder, root, _ = cifar10
    path = folder / "test_batch"
    old = path.read_bytes().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"cnumpy.core.multiarray\n" in old
    expected = load("cifar10", root, noise=0, seed=0)
    path.write_bytes(old)
    assert torch.equal(load("cifar10", root, noise=0, seed=0).test.images, expected.test.images)


def test_batches_of_python_2(cifar10):
    """As they are published: by cPickle, whose strings were bytes."""
    folder, root, batches = cifar10
    batch = batches["test_batch"]

    def string(content):
        return b"T" + struct.pack("<I", len(content)) + content

    content = (
        b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03("
        + b"".join(b"K" + bytes([label]) for label in batch[b"labels"])
        + b"eU\x04datacnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87Rq\x06"
        + b"(K\x01K\x04M\x00\x0c\x86cnumpy\ndtype\nq\x07U\x02u1K\x00K\x01\x87Rq\x08(K\x03U\x01|NNNJ\xff\xff\xff\xff"
        + b"J\xff\xff\xff\xffK\x00tb\x89"
        + string(batch[b"data"].tobytes())
        + b"tbu."
    )
    np.testing.assert_equal(pickle.loads(content, encoding="bytes")[b"data"], batch[b"data"])
    expected = load("cifar10", root, noise=0, seed=0)
    (folder / "test_batch").write_bytes(content)
    found = load("cifar10", root, noise=0, seed=0)
    assert torch.equal(found.test.images, expected.test.images)
    assert found.test.labels.tolist() == batch[b"labels"]


def pack(folder, archive, mode="w:gz", prefix="cifar-10-batches-py/"):
    with tarfile.open(archive, mode) as tar:
        for path in sorted(folder.iterdir(), reverse=True):
            tar.add(path, prefix + path.name)
            path.unlink()


@pytest.mark.parametrize("cifar10", ["batches"], indirect=True)
@pytest.mark.parametrize(
    "name, given, mode",
    [
        ("cifar-10-python.tar.gz", "", "w:gz"),
        ("cifar-10-python.tar.gz", "cifar-10-python.tar.gz", "w:gz"),
        ("other.tar", "other.tar", "w"),
    ],
)
def test_the_archive_of_cifar10(cifar10, name, given, mode):
    """In the folder, or named itself; nothing is unpacked."""
    folder, root, _ = cifar10
    expected = load("cifar10", folder, noise=0, seed=0)
    (folder / "readme.html").write_text("a page")
    pack(folder, root / name, mode)
    found = load("cifar10", root / given, noise=0, seed=0)
    assert torch.equal(found.train.images, expected.train.images)
    assert torch.equal(found.test.labels, expected.test.labels)
    assert {path.name for path in root.rglob("*")} == {"batches", name}


@pytest.mark.parametrize("cifar10", ["batches"], indirect=True)
@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda b: b[: len(b) // 2], "cifar-10-python.tar.gz: cannot be read: "),
        (lambda b: b"no archive", "cifar-10-python.tar.gz: cannot be read: "),
        (lambda b: b"", "cifar-10-python.tar.gz: cannot be read: "),
    ],
)
def test_damaged_archives(cifar10, edit, message):
    folder, root, _ = cifar10
    archive = root / "cifar-10-python.tar.gz"
    pack(folder, archive)
    change(archive, edit)
    refused(root, message)


@pytest.mark.parametrize("cifar10", ["batches"], indirect=True)
def test_archives_without_every_batch(cifar10):
    """A link is none, wherever it leads, nor is a member that is mostly a hole or too large."""
    folder, root, _ = cifar10
    archive = root / "cifar-10-python.tar.gz"
    (root / "elsewhere").write_bytes((folder / "test_batch").read_bytes())
    (folder / "test_batch").unlink()
    (folder / "test_batch").symlink_to(root / "elsewhere")
    pack(folder, archive)
    refused(
        root, "cifar-10-python.tar.gz/test_batch: no such file; expected data_batch_1 to 5 and test_batch"
    )
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("test_batch")
        member.size = 2**28 + 1
        tar.addfile(member, io.BytesIO(bytes(2**28 + 1)))
    refused(root, "cifar-10-python.tar.gz/test_batch: of 268435457 bytes, expected at most 268435456")


def refused(folder, message):
    with pytest.raises(InputError, match=message) as caught:
        load("cifar10", folder, noise=0, seed=0)
    assert "\n" not in str(caught.value)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a batch of CIFAR-10's Python version"),
        (b"not a pickle", "not a batch of CIFAR-10's Python version"),
        (pickle.dumps(Harmful(), 2), r"it names (posix|nt)\.mkdir, which a data file has no use for"),
        (pickle.dumps([1, 2]), "its 'data' is not an array of N x 3072 bytes"),
        (pickle.dumps({b"data": np.zeros((2, 3072)), b"labels": [0, 0]}, 2), "its 'data' is not"),
        (pickle.dumps({b"data": np.zeros((2, 9), np.uint8), b"labels": [0, 0]}, 2), "its 'data' is not"),
        (
            pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [0]}, 2),
            "not a list of 2 integers",
        ),
        (
            pickle.dumps({b"data": np.zeros((1, 3072), np.uint8), b"labels": [10]}, 2),
            "labels run from 10 to 10",
        ),
        (pickle.dumps({b"data": np.zeros((0, 3072), np.uint8), b"labels": []}, 4), "holds no images"),
    ],
)
@pytest.mark.parametrize("cifar10", [""], indirect=True)
def test_damaged_cifar10(cifar10, content, message, monkeypatch):
    folder, root, _ = cifar10
    monkeypatch.chdir(root)
    (folder / "test_batch").write_bytes(content)
    refused(root, f"test_batch: .*{message}")
    assert not (root / "harmed").exists()


class Reduced:
    """Pickles as a call, and the state that its result is to take."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def array(shape, content, code="u1", state=(3, "|", None, None, None, -1, -1, 0), fortran=False):
    """An array as NumPy pickles it, of a dtype as the file says."""
    reconstruct, arguments, _ = np.zeros(1, np.uint8).__reduce__()
    dtype = Reduced(np.dtype, (code, False, True), state)
    return Reduced(reconstruct, arguments, (1, shape, dtype, fortran, content))


def batch(data, labels=(0,)):
    return pickle.dumps({b"data": data, b"labels": list(labels)}, 2)


def assigned(values):
    """The assignment of an array to a row of another, in the instructions of a pickle, which reads its elements."""
    row = pickle.dumps(np.zeros((1, 1), np.uint8), 2)[:-1] + b"K\x00" + pickle.dumps(values, 2)[2:-1] + b"s"
    return row + b"."


FALSE_OBJECTS = array((1,), b"\x41" * 8, "O8")


@pytest.mark.parametrize("cifar10", [""], indirect=True)
@pytest.mark.parametrize(
    "content",
    [
        assigned(FALSE_OBJECTS),
        # an index of 16 GB, a key whose hash overflows the stack
        b"\x80\x02Nr\xff\xff\xff\x7f}" + b"N" + b"s.",
        b"\x80\x02})" + 3 * 10**5 * b"\x85" + b"Ns.",
    ],
    ids=["objects", "memo", "nested key"],
)
def test_pickles_that_would_crash(cifar10, content):
    folder, root, _ = cifar10
    (folder / "test_batch").write_bytes(content)
    refused_by_a_process("cifar10", root, "test_batch: ", 2**32)


@pytest.mark.parametrize("cifar10", [""], indirect=True)
@pytest.mark.parametrize(
    "content, message",
    [
        (batch(FALSE_OBJECTS), "its 'data' is not an array of N x 3072 bytes"),
        (batch(array((1, 3072), bytes(3072), "V1")), "its 'data' is not"),
        (
            batch(
                array(
                    (1, 3072), bytes(3072), "V1", (3, "|", None, ("a",), {"a": (np.dtype("u1"), 0)}, 1, 1, 16)
                )
            ),
            "its 'data' is not",
        ),
        (
            batch(array((1, 3072), bytes(3072), state=(3, "|", None, None, None, -1, -1, 63))),
            "its 'data' is not",
        ),
        (batch(array((2, 3072), bytes(3072))), "its 'data' is not"),
        (batch(array((-1, -3072), bytes(3072))), "its 'data' is not"),
        (batch(array((1, 3072.0), bytes(3072))), "its 'data' is not"),
        (batch(array((2**40, 2**40, 0), b"")), "not a batch of CIFAR-10's Python version"),
        (batch(array((2**62, 3072), bytes(3072))), "its 'data' is not"),
        (batch(array([1, 3072], bytes(3072))), "its 'data' is not"),
        (batch(Reduced(np.ndarray, ((1, 3072), "u1"))), "its 'data' is not"),
        (
            batch(Reduced(np.frombuffer, (bytes(3072), "u1"))),
            "it names numpy.*frombuffer, which a data file has no",
        ),
        (batch(np.zeros((1, 3072), np.uint8), [10**30]), "not a list of 1 integers"),
        # state for a name, a call of a value, what only classes need, sets
        (b"\x80\x02cnumpy\nndarray\n}b.", "its 'data' is not"),
        (b"\x80\x02K\x01)R.", "not a batch"),
        (b"\x80\x02cnumpy\ndtype\n)\x81.", "not a batch"),
        (b"\x80\x02\x82\x01.", "not a batch"),
        (b"\x80\x04\x8f(K\x01\x90.", "it has opcode 0x8f, which a data file has no use for"),
        # room that is made for as many bytes as the file says
        (b"\x80\x05\x96" + (2**20).to_bytes(8, "little") + b".", "it has opcode 0x96"),
        (b"\x80\x02}(U\x01au.", "not a batch"),
        (b"\x80\x02t.", "not a batch"),
        (b"\x80\x02N", "not a batch"),
    ],
)
def test_pickles_of_something_else(cifar10, content, message):
    folder, root, _ = cifar10
    (folder / "test_batch").write_bytes(content)
    refused(root, f"test_batch: .*{message}")


@pytest.mark.parametrize("cifar10", [""], indirect=True)
@pytest.mark.parametrize("protocol", range(5))
def test_every_protocol_that_keeps_an_array_in_its_state(cifar10, protocol):
    folder, root, batches = cifar10
    expected = load("cifar10", root, noise=0, seed=0)
    (folder / "test_batch").write_bytes(pickle.dumps(batches["test_batch"], protocol))
    assert torch.equal(load("cifar10", root, noise=0, seed=0).test.images, expected.test.images)


@pytest.mark.parametrize("cifar10", [""], indirect=True)
def test_an_array_in_the_order_of_fortran(cifar10):
    folder, root, batches = cifar10
    data = batches["test_batch"][b"data"]
    expected = load("cifar10", root, noise=0, seed=0)
    (folder / "test_batch").write_bytes(
        pickle.dumps({**batches["test_batch"], b"data": np.asfortranarray(data)}, 2)
    )
    assert torch.equal(load("cifar10", root, noise=0, seed=0).test.images, expected.test.images)


@pytest.mark.parametrize("cifar10", [""], indirect=True)
def test_truncated_and_missing_cifar10(cifar10):
    folder, root, _ = cifar10
    path = folder / "data_batch_4"
    change(path, lambda b: b[: len(b) // 2])
    with pytest.raises(InputError, match="data_batch_4: not a batch"):
        load("cifar10", root, noise=0, seed=0)
    path.unlink()
    refused(
        root, "data_batch_4: no such file; expected .* in its cifar-10-batches-py, or cifar-10-python.tar.gz"
    )


def test_augment_crops_and_flips():
    """Every result is a window of the padded image or of its mirror image, and all of them occur."""
    torch.manual_seed(0)
    image = torch.arange(1.0, 2 * 5 * 6 + 1).reshape(1, 2, 5, 6)
    windows = set()
    for mirrored in (image, image.flip(-1)):
        padded = torch.nn.functional.pad(mirrored, [1] * 4)
        windows |= {
            padded[0, :, i : i + 5, j : j + 6].contiguous().numpy().tobytes()
            for i in range(3)
            for j in range(3)
        }
    results = augment(image.repeat(500, 1, 1, 1), padding=1)
    assert results.shape == (500, 2, 5, 6) and results.is_contiguous()
    assert {result.numpy().tobytes() for result in results} == windows
    torch.manual_seed(0)
    assert torch.equal(results, augment(image.repeat(500, 1, 1, 1), padding=1))


def test_augment_pads_by_four_as_the_program_does():
    """One of the 81 windows on a single pixel and its border of four holds the pixel."""
    assert augment(torch.ones(20_000, 1, 1, 1)).mean().item() == pytest.approx(1 / 81, rel=0.2)
