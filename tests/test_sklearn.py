"""Networks in skorch's NeuralNetClassifier: scikit-learn's clone, set_params, search and pickle, on few numbers."""

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("skorch")

from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch import NeuralNetClassifier
from skorch.callbacks import Checkpoint, EarlyStopping
from skorch.dataset import ValidSplit

from drsn_ops import Shrinkage, models

SIGNALS = ("drsn", "convnet", "rsnet18", "rsnet34")
NETWORKS = (*SIGNALS, "drsn_mnist", "drsn_cifar10")


def data(name, count=12):
    """Two classes that a network tells apart by their mean: signals of 64 points, or images of 8 x 8."""
    random = np.random.default_rng(0)
    y = np.arange(count) % 2
    shape = (1, 64) if name in SIGNALS else (3 if name == "drsn_cifar10" else 1, 8, 8)
    noise = random.standard_normal((count, *shape))
    return (noise + 2 * y.reshape(-1, *[1] * len(shape))).astype(np.float32), y


def classifier(name, **changed):
    small = {"module__blocks": 3} if name in ("drsn", "convnet") else {}
    return NeuralNetClassifier(
        getattr(models, name),
        module__num_classes=2,
        criterion=torch.nn.CrossEntropyLoss,
        verbose=0,
        **{"max_epochs": 2, "lr": 0.05, "train_split": None, **small, **changed},
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_clone_set_params_and_pickle(name):
    x, y = data(name)
    first = classifier(name).fit(x, y)
    # a clone has the parameters, and none of the weights
    other = clone(first).set_params(module__num_classes=3)
    assert not hasattr(other, "module_") and not hasattr(clone(other), "module_")
    assert other.initialize().predict_proba(x).shape == (12, 3)

    loaded = pickle.loads(pickle.dumps(first))
    assert np.array_equal(loaded.predict_proba(x), first.predict_proba(x))
    np.testing.assert_allclose(first.predict_proba(x).sum(1), 1, rtol=0, atol=1e-6)
    # momentum is kept too: both go on alike
    after = [net.partial_fit(x, y).predict_proba(x) for net in (first, loaded)]
    assert np.array_equal(*after)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_search_through_a_pipeline(name):
    x, y = data(name)
    pipeline = Pipeline([("negative", FunctionTransformer(np.negative)), ("network", classifier(name))])
    choice, values = (
        ("lr", [0.1, 0.2]) if name == "convnet" else ("module__thresholds", ["channel-shared", None])
    )
    found = GridSearchCV(pipeline, {f"network__{choice}": values}, cv=2, error_score="raise").fit(x, y)
    assert not np.isnan(found.cv_results_["mean_test_score"]).any()
    chosen = found.best_params_[f"network__{choice}"]
    best = found.best_estimator_["network"]
    assert best.get_params()[choice] == chosen and found.predict(x).shape == (12,)
    shrinks = any(isinstance(module, Shrinkage) for module in best.module_.modules())
    assert shrinks == (chosen == "channel-shared")


@pytest.mark.parametrize("name", NETWORKS)
def test_early_stopping_and_checkpoint(name, tmp_path):
    x, y = data(name, 20)
    # no epoch is that much better than the first
    stop = EarlyStopping(patience=1, threshold=100, threshold_mode="abs")
    save = Checkpoint(dirname=tmp_path)
    fitted = classifier(
        name, train_split=ValidSplit(5), max_epochs=9, callbacks=[("save", save), ("stop", stop)]
    ).fit(x, y)
    losses = fitted.history[:, "valid_loss"]
    assert len(losses) == 2
    again = classifier(name).initialize()
    again.load_params(checkpoint=save)
    assert len(again.history) == int(np.argmin(losses)) + 1
    assert np.array_equal(again.predict_proba(x), fitted.predict_proba(x)) == (losses[1] < losses[0])
