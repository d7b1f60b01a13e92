"""scikit-learn's way through skorch: a pipeline with a DRSN, a search over recordings, early stopping, pickle.

Recordings of a simulated machine are cut into windows. Windows of one recording resemble each other, so all of them are
on one side of every split: by their groups in the search, by recordings kept back in the early stopping.

1. ``GridSearchCV`` tries DRSN-CW, DRSN-CS and the plain ResNet, each at two learning rates, in a ``Pipeline``.
2. The best is trained until the loss on the kept recordings stops falling. Its best epoch is saved in a folder, a
   temporary one unless its path is given on the command line.
3. The fitted pipeline is pickled and loaded; both give the same probabilities.

skorch hands ``module__...`` on to the network. Any network of `drsn_ops.models` may be in ``drsn``'s place: they return
logits, for which the criterion is ``CrossEntropyLoss``. Classes are numbers from 0. ``drop_last`` keeps a last batch of
one window out of the training, in which the gates' BatchNorm has nothing to normalise by.

Source of the networks: M. Zhao et al., "Deep Residual Shrinkage Networks for Fault Diagnosis", IEEE Transactions on
Industrial Informatics, 2020, DOI 10.1109/TII.2019.2943898.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint, EarlyStopping, LRScheduler
from skorch.dataset import Dataset
from skorch.helper import predefined_split

import drsn_ops
from drsn_ops.vibration import CLASSES, vibration

CHOSEN = ("healthy", "unbalance", "outer race", "inner race")
POINTS, WINDOWS = 512, 4  # of a window; of a recording
GRID = {
    "network__module__thresholds": ["channel-wise", "channel-shared", None],
    "network__lr": [0.01, 0.03],
}

Array = npt.NDArray[Any]


def make_windows(recordings: int, seed: int) -> tuple[Array, Array, Array]:
    """Windows of simulated recordings, (N, points), and for each its class and the number of its recording."""
    # of every class in turn
    made = vibration(recordings * len(CLASSES) // len(CHOSEN), points=POINTS * WINDOWS, seed=seed)
    names = np.array(CLASSES)[made.labels]
    kept = np.isin(names, CHOSEN)
    labels = np.array([CHOSEN.index(name) for name in names[kept]])
    x = made.x.numpy()[kept].reshape(-1, POINTS)
    return x, labels.repeat(WINDOWS), np.arange(len(labels)).repeat(WINDOWS)


def standardise(x: Array) -> Array:
    """Each window to mean 0 and standard deviation 1, as a network's input, (N, 1, points)."""
    return ((x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True))[:, None]


def make_pipeline(epochs: int) -> Pipeline:
    """The windows' preparation, and a classifier that trains on all it is given."""
    network = NeuralNetClassifier(
        drsn_ops.models.drsn,
        module__num_classes=len(CHOSEN),
        module__blocks=3,
        criterion=torch.nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        optimizer__weight_decay=1e-4,
        iterator_train__shuffle=True,
        iterator_train__drop_last=True,
        batch_size=32,
        max_epochs=epochs,
        callbacks=[("schedule", LRScheduler("CosineAnnealingLR", T_max=epochs))],
        train_split=None,
        verbose=0,
    )
    return Pipeline([("standardise", FunctionTransformer(standardise)), ("network", network)])


def search(x: Array, y: Array, recording: Array, epochs: int) -> GridSearchCV:
    """Every setting of the grid, each tested on recordings that it was not trained on."""
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
    found = GridSearchCV(make_pipeline(epochs), GRID, cv=folds, refit=False)
    return found.fit(x, y, groups=recording)


def train(
    chosen: dict[str, Any], x: Array, y: Array, kept: tuple[Array, Array], epochs: int, folder: Path
) -> Pipeline:
    """The chosen setting, trained until the loss on the kept windows stops falling, with the best epoch's weights."""
    windows, classes = kept
    pipeline = make_pipeline(epochs).set_params(
        **chosen,
        network__train_split=predefined_split(Dataset(standardise(windows), classes)),
        network__callbacks=[
            ("schedule", LRScheduler("CosineAnnealingLR", T_max=epochs)),
            ("save", Checkpoint(dirname=folder, load_best=True)),
            ("stop", EarlyStopping(patience=8)),
        ],
    )
    return pipeline.fit(x, y)


def main(folder: Path, epochs: int = 15, longest: int = 40, seed: int = 0) -> tuple[GridSearchCV, float]:
    """Search, train and pickle. Returns the search, and the share of the test windows that the result has right."""
    torch.manual_seed(seed)
    x, y, recording = make_windows(90, seed)
    found = search(x, y, recording, epochs)
    results = found.cv_results_
    for setting, score in zip(results["params"], results["mean_test_score"], strict=True):
        print(
            *(f"{name.rpartition('__')[2]} {value}," for name, value in setting.items()), f"{score:.1%} right"
        )

    # a fifth of the recordings, of every class alike
    later = recording >= 72
    pipeline = train(found.best_params_, x[~later], y[~later], (x[later], y[later]), longest, folder)
    best = pipeline["network"].history[-1]
    print(f"the best epoch on the kept recordings was number {best['epoch']}, {best['valid_acc']:.1%} right")

    path = folder / "pipeline.pickle"
    path.write_bytes(pickle.dumps(pipeline))
    loaded = pickle.loads(path.read_bytes())
    test_x, test_y, _ = make_windows(36, seed + 1)
    assert np.array_equal(loaded.predict_proba(test_x), pipeline.predict_proba(test_x))
    accuracy = float(loaded.score(test_x, test_y))
    print(f"on new recordings {accuracy:.1%} of the windows are right")
    return found, accuracy


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1] if len(sys.argv) > 1 else temporary))
