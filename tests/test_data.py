"""The data sets: splits, noise, augmentation, and readers that refuse what is damaged."""

import gzip
import os
import pickle
import struct

import numpy as np
import pytest
import torch

from drsn_ops.data import InputError, augment, load

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
        (IMAGES, lambda b: b"", f"{IMAGES}: not an idx file of 3-axis bytes: starts with"),
        (LABELS, lambda b: b"\0\0\x0d\1" + b[4:], f"{LABELS}: not an idx file .* 00000d01, not 00000801"),
        (LABELS, lambda b: idx(np.zeros(4, np.uint8)), "t10k has 3 images but 4 labels"),
        (LABELS, lambda b: b[:-1] + b"\x0a", "labels run from . to 10, not from 0 to 9"),
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
    with pytest.raises(InputError, match="mnist needs the folder that holds its files: --data-dir"):
        load("mnist", None, noise=0, seed=0)


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
    with pytest.raises(InputError, match=f"test_batch: .*{message}") as caught:
        load("cifar10", root, noise=0, seed=0)
    assert "\n" not in str(caught.value) and not (root / "harmed").exists()


@pytest.mark.parametrize("cifar10", [""], indirect=True)
def test_truncated_and_missing_cifar10(cifar10):
    folder, root, _ = cifar10
    path = folder / "data_batch_4"
    change(path, lambda b: b[: len(b) // 2])
    with pytest.raises(InputError, match="data_batch_4: not a batch"):
        load("cifar10", root, noise=0, seed=0)
    path.unlink()
    with pytest.raises(InputError, match="data_batch_4: no such file"):
        load("cifar10", root, noise=0, seed=0)


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
