import os

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax as reference_softmax
from sklearn.metrics import accuracy_score, log_loss

from orchestrator.errors import DataError, RunFolderError
from orchestrator.run_folder.predictions import (
    Predictions,
    accuracy,
    nll,
    read_predictions,
    softmax,
    write_predictions,
)
from tests.ensemble.answers import draw


def test_what_is_written_is_read_back_to_the_bit(tmp_path):
    path = tmp_path / "predictions" / "val.parquet"
    before = draw(0, samples=1000, classes=7)
    write_predictions(path, before)
    after = read_predictions(path)
    for name in ("ids", "labels", "logits"):
        mine, theirs = getattr(before, name), getattr(after, name)
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == theirs.dtype
    assert [entry.name for entry in path.parent.iterdir()] == ["val.parquet"]


def test_columns_are_those_that_other_programs_read(tmp_path):
    write_predictions(tmp_path / "val.parquet", draw(0, samples=3, classes=4))
    schema = pq.read_schema(tmp_path / "val.parquet")
    assert schema.names == ["id", "label", "logits"]
    assert [str(field.type) for field in schema][:2] == ["int64", "int64"]
    assert schema.field("logits").type.list_size == 4
    assert str(schema.field("logits").type.value_type) == "float"


def test_predictions_of_no_samples(tmp_path):
    empty = Predictions(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 3), np.float32))
    write_predictions(tmp_path / "val.parquet", empty)
    assert read_predictions(tmp_path / "val.parquet").logits.shape == (0, 3)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(RunFolderError, match=r"no predictions of 'select'.*--resume"):
        read_predictions(tmp_path / "run" / "predictions" / "select.parquet")


@pytest.mark.parametrize("left", [0, 4, 100])
def test_a_truncated_file_is_refused(tmp_path, left):
    path = tmp_path / "val.parquet"
    write_predictions(path, draw(0))
    os.truncate(path, left)
    with pytest.raises(DataError, match="not a whole predictions file"):
        read_predictions(path)


def test_a_foreign_parquet_file_is_refused(tmp_path):
    import pyarrow as pa

    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    table = pa.table({"id": [1], "label": [0], "logits": ["text"]})
    pq.write_table(table, tmp_path / "b.parquet")
    for name in ("a", "b"):
        with pytest.raises(DataError, match="not a whole predictions file"):
            read_predictions(tmp_path / f"{name}.parquet")


def test_shapes_and_labels_must_fit():
    ids = np.arange(3)
    with pytest.raises(DataError, match="must hold"):
        Predictions(ids, np.zeros(2, np.int64), np.zeros((3, 2), np.float32))
    with pytest.raises(DataError, match="3 ids have 2 rows"):
        Predictions(ids, np.zeros(3, np.int64), np.zeros((2, 2), np.float32))
    with pytest.raises(DataError, match="label < 2"):
        Predictions(ids, np.array([0, 1, 2]), np.zeros((3, 2), np.float32))


@settings(max_examples=50)
@given(arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32)))
def test_softmax_accuracy_and_nll_equal_the_references(logits):
    labels = np.array([0, 1, 2, 0, 1])
    expected = reference_softmax(logits.astype(np.float64), axis=1)
    probabilities = softmax(logits)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12, atol=1e-300)
    assert accuracy(probabilities, labels) == accuracy_score(labels, expected.argmax(1))
    taken = np.log(expected[np.arange(5), labels])
    assert nll(probabilities, labels) == pytest.approx(-taken.mean(), rel=1e-12)


def test_nll_equals_scikit_learn_and_stays_finite():
    found = draw(3)
    expected = log_loss(found.labels, found.probabilities(), labels=range(4))
    assert nll(found.probabilities(), found.labels) == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(nll(np.array([[1.0, 0.0]]), np.array([1])))
