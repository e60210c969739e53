from __future__ import annotations

import json

import numpy as np
import pytest

from orchestrator.serve import protocol
from orchestrator.serve.errors import RequestError

SHAPE = (1, 2, 2)


def request(**changes: object) -> protocol.InferRequest:
    tensor: dict[str, object] = {
        "name": "image",
        "shape": [1, 1, 2, 2],
        "datatype": "FP32",
        "data": [0, 0.25, 0.5, 1],
    }
    return protocol.parse_request(json.dumps({"inputs": [tensor | changes]}).encode())


def test_flat_and_nested_data_are_the_same():
    flat = protocol.read_pixels(request(), SHAPE)
    nested = protocol.read_pixels(request(data=[[[[0, 0.25], [0.5, 1]]]]), SHAPE)
    assert flat.dtype == np.float32 and flat.shape == (1, *SHAPE)
    assert np.array_equal(flat, nested)


def test_bytes_stay_bytes():
    pixels = protocol.read_pixels(request(datatype="UINT8", data=[0, 1, 254, 255]), SHAPE)
    assert pixels.dtype == np.uint8 and pixels.ravel().tolist() == [0, 1, 254, 255]


def test_rounding_beyond_one_is_allowed():
    assert protocol.read_pixels(request(data=[0, 0, 0, 1.0000001]), SHAPE).max() > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "x"}, "one input, 'image'"),
        ({"datatype": "FP64"}, "datatype must be FP32"),
        ({"shape": [1, 2, 2]}, r"shape must be \[B, 1, 2, 2\]"),
        ({"shape": [1, 2, 2, 1]}, "shape must be"),
        ({"shape": [0, 1, 2, 2], "data": []}, "1 to 1024 images, got 0"),
        ({"shape": [2, 1, 2, 2]}, "needs 8 numbers, got 4"),
        ({"shape": [5000, 1, 2, 2]}, "1 to 1024 images"),
        ({"data": [0, 0.5, 1]}, "needs 4 numbers, got 3"),
        ({"data": [[0, 0.25], [0.5, 1]]}, "nested as"),
        ({"data": [[0, 0.25], [0.5]]}, "unevenly"),
        ({"data": [0, "1", 0, 0]}, "finite numbers"),
        ({"data": [0, None, 0, 0]}, "finite numbers"),
        ({"data": [True, False, True, True]}, "finite numbers"),
        ({"data": [10**400, 0, 0, 0]}, "finite numbers"),
        ({"data": [0, 0, 0, 200]}, r"0\.\.1"),
        ({"data": [-0.5, 0, 0, 0]}, r"0\.\.1"),
        ({"datatype": "UINT8", "data": [0, 0, 0, 256]}, r"0\.\.255"),
        ({"datatype": "UINT8", "data": [0, 0, 0, -1]}, r"0\.\.255"),
        ({"datatype": "UINT8", "data": [0, 0, 0, 0.5]}, r"0\.\.255"),
    ],
)
def test_wrong_tensors_are_refused_with_the_rule(changes, message):
    with pytest.raises(RequestError, match=message) as refused:
        protocol.read_pixels(request(**changes), SHAPE)
    assert refused.value.status == 400


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(word):
    body = (
        '{"inputs": [{"name": "image", "shape": [1,1,2,2], "datatype": "FP32", '
        f'"data": [0, 0, 0, {word}]}}]}}'
    )
    with pytest.raises(RequestError):
        protocol.read_pixels(protocol.parse_request(body.encode()), SHAPE)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[]", "object"),
        (b"{}", "inputs"),
        (b'{"inputs": [{"name": "image"}]}', r"inputs\.0\.shape.*inputs\.0\.datatype"),
        (b'{"inputs": [{"name":"image","shape":[-1],"datatype":"FP32","data":[]}]}', "shape"),
        (b"\xff\xfe", "JSON|utf"),
    ],
)
def test_bodies_that_are_no_requests(body, message):
    with pytest.raises(RequestError, match=message):
        protocol.parse_request(body)


def test_two_inputs_are_refused():
    body = {"inputs": [{"name": "image", "shape": [1], "datatype": "FP32", "data": [1]}] * 2}
    with pytest.raises(RequestError, match="one input"):
        protocol.read_pixels(protocol.parse_request(json.dumps(body).encode()), SHAPE)


def test_outputs_are_those_asked_for():
    both = protocol.parse_request(b'{"inputs": []}')
    assert protocol.wanted_outputs(both) == ("probabilities", "label")
    one = protocol.parse_request(b'{"inputs": [], "outputs": [{"name": "label"}]}')
    assert protocol.wanted_outputs(one) == ("label",)
    wrong = protocol.parse_request(b'{"inputs": [], "outputs": [{"name": "logits"}]}')
    with pytest.raises(RequestError, match="logits"):
        protocol.wanted_outputs(wrong)


def test_written_outputs():
    rows = np.array([[0.25, 0.75], [0.625, 0.375]], np.float32)
    made = protocol.write_outputs(rows, ("cat", "dog"), ("label", "probabilities"))
    assert (made[0].shape, made[0].datatype, made[0].data) == ([2], "BYTES", ["dog", "cat"])
    assert (made[1].shape, made[1].data) == ([2, 2], [0.25, 0.75, 0.625, 0.375])


def test_best_labels_are_sorted_and_cut():
    best = protocol.best_labels(np.array([0.2, 0.5, 0.3], np.float32), ("a", "b", "c"), 2)
    assert [one.label for one in best] == ["b", "c"]
    assert best[0].probability == pytest.approx(0.5)
