from __future__ import annotations

import json
import struct

import numpy as np
import pytest

from orchestrator.serve.backend import Answer, Computed
from orchestrator.serve.cards import ModelCard
from orchestrator.serve.errors import RequestError
from orchestrator.serve.protocol.binary import pack_strings, split_body, unpack_strings
from orchestrator.serve.protocol.compression import chosen_encoding
from orchestrator.serve.protocol.messages import InferResponse, parse_request
from orchestrator.serve.protocol.outputs import (
    Wanted,
    top_classes,
    wanted_outputs,
    write_response,
)
from orchestrator.serve.protocol.people import best_labels, parse_predict
from orchestrator.serve.protocol.tensors import MAX_TEXT, read_inputs, read_text

CARD = ModelCard("pets", (1, 2, 2), ("cat", "dog"))
TEXTS = ModelCard("mail", (8,), ("ham", "spam"), reads="text")


def tensor(**changes: object) -> dict[str, object]:
    values = {"name": "image", "shape": [1, 1, 2, 2], "datatype": "FP32", "data": [0, 0.25, 0.5, 1]}
    return values | changes


def words(**changes: object) -> dict[str, object]:
    values = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["one", "two"]}
    return values | changes


def pixels(**changes: object) -> np.ndarray:
    request, blobs = split_body(json.dumps({"inputs": [tensor(**changes)]}).encode(), None)
    return read_inputs(request, blobs, CARD)


def texts(**changes: object) -> list[str]:
    request, blobs = split_body(json.dumps({"inputs": [words(**changes)]}).encode(), None)
    return read_inputs(request, blobs, TEXTS)


def binary(kind: str, data: bytes, **changes: object) -> tuple[bytes, str]:
    """A body whose only input comes as bytes, and its header's value."""
    given = {"parameters": {"binary_data_size": len(data)}, "datatype": kind} | changes
    one = (words if kind == "BYTES" else tensor)(**given)
    del one["data"]
    head = json.dumps({"inputs": [one]}).encode()
    return head + data, str(len(head))


def outputs(*listed: dict[str, object], **parameters: object) -> tuple[Wanted, ...]:
    body = {"inputs": [], "outputs": list(listed), "parameters": parameters}
    return wanted_outputs(parse_request(json.dumps(body).encode()))


# --- pixels in JSON ------------------------------------------------------------------------


def test_flat_and_nested_data_are_the_same():
    flat, nested = pixels(), pixels(data=[[[[0, 0.25], [0.5, 1]]]])
    assert flat.dtype == np.float32 and flat.shape == (1, 1, 2, 2)
    assert np.array_equal(flat, nested)


def test_bytes_stay_bytes():
    found = pixels(datatype="UINT8", data=[0, 1, 254, 255])
    assert found.dtype == np.uint8 and found.ravel().tolist() == [0, 1, 254, 255]


def test_rounding_beyond_one_is_allowed():
    assert pixels(data=[0, 0, 0, 1.0000001]).max() > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "x"}, "one input, 'image'"),
        ({"datatype": "FP64"}, "datatype must be FP32 or FP16"),
        ({"datatype": "BYTES"}, "datatype must be FP32"),
        ({"shape": [1, 2, 2]}, r"shape must be \[B, 1, 2, 2\]"),
        ({"shape": [1, 2, 2, 1]}, "shape must be"),
        ({"shape": [1] * 9}, "at most 8"),
        ({"shape": [1.5, 1, 2, 2]}, r"shape\.0"),
        ({"shape": [True, 1, 2, 2]}, r"shape\.0"),
        ({"shape": [10**30, 1, 2, 2]}, "1 to 1024 images"),
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
        ({"data": None}, "neither data nor binary_data_size"),
        ({"data": None, "parameters": {"shared_memory_region": "x"}}, "no shared memory"),
    ],
)
def test_wrong_tensors_are_refused_with_the_rule(changes, message):
    with pytest.raises(RequestError, match=message) as refused:
        pixels(**changes)
    assert refused.value.status == 400


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_refused(word):
    body = (
        '{"inputs": [{"name": "image", "shape": [1,1,2,2], "datatype": "FP32", '
        f'"data": [0, 0, 0, {word}]}}]}}'
    )
    with pytest.raises(RequestError):
        read_inputs(parse_request(body.encode()), {}, CARD)


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
        (b'{"inputs": []}' * 2, "trailing"),
        (b'{"inputs": ' + b"[" * 500 + b"]" * 500 + b"}", "recursion"),
        (b'{"inputs": [], "id": 7}', "id"),
        (b'{"inputs": [' + b"{}," * 99 + b"{}]}", "and 290 more"),
    ],
)
def test_bodies_that_are_no_requests(body, message):
    with pytest.raises(RequestError, match=message):
        parse_request(body)


def test_two_inputs_are_refused():
    request = parse_request(json.dumps({"inputs": [tensor(), tensor()]}).encode())
    with pytest.raises(RequestError, match="one input"):
        read_inputs(request, {}, CARD)


# --- binary --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("FP32", np.array([0, 0.1, 0.5, 1], "<f4")),
        ("FP16", np.array([0, 0.1, 0.5, 1], "<f2")),
        ("UINT8", np.array([0, 1, 254, 255], "u1")),
    ],
)
def test_bytes_are_numbers_wherever_they_begin(kind, values):
    for pad in range(8):
        body, length = binary(kind, values.tobytes(), more="x" * pad)
        found = read_inputs(*split_body(body, length), CARD)
        assert found.dtype == (np.uint8 if kind == "UINT8" else np.float32)
        assert np.array_equal(found.ravel(), values.astype(found.dtype))


def test_bytes_are_not_copied():
    body, length = binary("UINT8", bytes(range(4)))
    found = read_inputs(*split_body(body, length), CARD)
    assert np.shares_memory(found, np.frombuffer(body, np.uint8))


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        ("FP32", bytes(12), "needs 16 bytes, binary_data_size is 12"),
        ("UINT8", bytes(5), "needs 4 bytes"),
        ("FP16", b"\xff\x7f" * 4, "finite"),
        ("FP32", np.array([0, 0, 0, np.nan], "<f4").tobytes(), "finite"),
        ("FP32", np.array([0, 0, 0, 9], "<f4").tobytes(), r"0\.\.9"),
    ],
)
def test_wrong_bytes_are_refused(kind, data, message):
    with pytest.raises(RequestError, match=message):
        read_inputs(*split_body(*binary(kind, data)), CARD)


@pytest.mark.parametrize("header", ["-1", "1e3", "", "٣", "9" * 20, "100000", "0x10", "1_0"])
def test_a_length_that_is_none_is_refused(header):
    body, _ = binary("UINT8", bytes(4))
    with pytest.raises(RequestError, match="Inference-Header-Content-Length"):
        split_body(body, header)


def test_parts_that_do_not_fit_are_refused():
    body, length = binary("UINT8", bytes(4))
    with pytest.raises(RequestError, match="only 3 bytes are left"):
        split_body(body[:-1], length)
    with pytest.raises(RequestError, match="1 bytes more"):
        split_body(body + b"x", length)
    with pytest.raises(RequestError):
        split_body(body, None)
    both = json.dumps({"inputs": [tensor(parameters={"binary_data_size": 4})]}).encode()
    with pytest.raises(RequestError, match="both data and binary_data_size"):
        split_body(both + bytes(4), str(len(both)))
    for size in (-1, 1.5, "4", True):
        with pytest.raises(RequestError, match="binary_data_size"):
            split_body(*binary("UINT8", bytes(4), parameters={"binary_data_size": size}))


def test_strings_are_framed_by_their_lengths():
    packed = pack_strings(["", "grün", "x"])
    assert packed == struct.pack("<I", 0) + struct.pack("<I", 5) + "grün".encode() + b"\1\0\0\0x"
    assert unpack_strings(memoryview(packed), 3, "text") == [b"", "grün".encode(), b"x"]
    for data, count in [(packed, 2), (packed, 4), (packed[:-1], 3), (b"\xff" * 4, 1), (b"\1\0", 1)]:
        with pytest.raises(RequestError, match="BYTES elements"):
            unpack_strings(memoryview(data), count, "text")


# --- texts ---------------------------------------------------------------------------------


def test_texts_in_json_and_in_binary_are_the_same():
    body, length = binary("BYTES", pack_strings(["one", "zwö"]))
    assert read_inputs(*split_body(body, length), TEXTS) == texts(data=["one", "zwö"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "image"}, "one input, 'text'"),
        ({"datatype": "FP32"}, "must be BYTES"),
        ({"shape": [2, 1]}, r"shape must be \[B\]"),
        ({"shape": [0], "data": []}, "1 to 1024 texts"),
        ({"shape": [3]}, "needs 3 texts, got 2"),
        ({"data": ["a", 1]}, "must be strings"),
        ({"data": ["a", ["b"]]}, "must be strings"),
    ],
)
def test_wrong_texts_are_refused(changes, message):
    with pytest.raises(RequestError, match=message):
        texts(**changes)


def test_a_text_is_short_enough_utf_8():
    with pytest.raises(RequestError, match="byte 1 is no UTF-8") as refused:
        read_text(b"a\xff", "text")
    assert refused.value.status == 400
    with pytest.raises(RequestError, match="bytes") as refused:
        read_text(bytes(MAX_TEXT + 1), "text")
    assert refused.value.status == 413
    assert read_text(b"\xef\xbb\xbfa", "text") == "a"


# --- outputs -------------------------------------------------------------------------------


def test_outputs_are_those_asked_for():
    both = (Wanted("probabilities"), Wanted("label"))
    assert wanted_outputs(parse_request(b'{"inputs": []}')) == both
    assert outputs({"name": "label"}) == (Wanted("label"),)
    assert outputs(binary_data_output=True) == tuple(Wanted(one.name, True) for one in both)
    assert outputs(
        {"name": "label", "parameters": {"binary_data": False}},
        {"name": "probabilities", "parameters": {"classification": 2}},
        binary_data_output=True,
    ) == (Wanted("label"), Wanted("probabilities", True, 2))


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ([{"name": "logits"}], "logits"),
        ([{"name": "label"}] * 2, "twice"),
        ([{"name": "label", "parameters": {"classification": 1}}], "no number"),
        ([{"name": "probabilities", "parameters": {"classification": 0}}], "classification"),
        ([{"name": "probabilities", "parameters": {"binary_data": "yes"}}], "binary_data"),
        ([{"name": "label", "parameters": {"shared_memory_region": "x"}}], "no shared memory"),
    ],
)
def test_outputs_that_can_not_be_given(listed, message):
    with pytest.raises(RequestError, match=message):
        outputs(*listed)


ROWS = np.array([[0.25, 0.75], [0.625, 0.375]], np.float32)


def test_an_answer_in_json():
    body, length = write_response(
        CARD, Answer(Computed(ROWS), "3"), "7", (Wanted("label"), Wanted("probabilities"))
    )
    said = InferResponse.model_validate_json(body)
    assert length is None and (said.model_version, said.id, said.parameters) == ("3", "7", None)
    label, probabilities = said.outputs
    assert (label.shape, label.datatype, label.data) == ([2], "BYTES", ["dog", "cat"])
    assert (probabilities.shape, probabilities.data) == ([2, 2], [0.25, 0.75, 0.625, 0.375])


def test_an_answer_in_binary_keeps_the_order_of_its_outputs():
    wanted = (Wanted("label", True), Wanted("probabilities", True))
    body, length = write_response(CARD, Answer(Computed(ROWS), "3"), None, wanted)
    said = json.loads(body[:length])
    assert [one["parameters"]["binary_data_size"] for one in said["outputs"]] == [14, 16]
    assert "id" not in said and all("data" not in one for one in said["outputs"])
    assert body[length:] == pack_strings(["dog", "cat"]) + ROWS.tobytes()


def test_an_ensemble_says_who_answered():
    # Of the version that answered, whatever the card says of another one.
    answer = Answer(Computed(ROWS, members=3, late=True), "1", members=4)
    body, _ = write_response(CARD, answer, None, (Wanted("label"),))
    assert json.loads(body)["parameters"] == {"members": 3, "members_total": 4, "late": True}


def test_top_classes_are_value_index_label():
    assert top_classes(ROWS, ("cat", "dog"), 1) == ["0.75:1:dog", "0.625:0:cat"]
    assert top_classes(ROWS, ("cat", "dog"), 9)[:2] == ["0.75:1:dog", "0.25:0:cat"]
    tied = np.full((1, 3), 1 / 3, np.float32)
    assert [one.split(":")[1] for one in top_classes(tied, "abc", 3)] == ["0", "1", "2"]
    assert np.float32(top_classes(tied, "abc", 1)[0].split(":")[0]) == tied[0, 0]


def test_best_labels_are_sorted_and_cut():
    best = best_labels(np.array([0.2, 0.5, 0.3], np.float32), ("a", "b", "c"), 2)
    assert [one.label for one in best] == ["b", "c"]
    assert best[0].probability == pytest.approx(0.5)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"image": "a", "text": "b"}',
        b'{"images": []}',
        b'{"images": null}',
        b'{"image": 7}',
        b'{"picture": "a"}',
        b'{"images": ["a", 7]}',
    ],
)
def test_predict_bodies_that_are_none(body):
    with pytest.raises(RequestError):
        parse_predict(body)


@pytest.mark.parametrize(
    ("accept", "size", "encoding"),
    [
        ("gzip, deflate, br", 5000, "gzip"),
        ("deflate", 5000, "deflate"),
        ("gzip;q=0, deflate;q=0.5", 5000, "deflate"),
        ("gzip", 100, None),
        ("br", 5000, None),
        ("", 5000, None),
    ],
)
def test_answers_are_compressed_where_it_pays(accept, size, encoding):
    assert chosen_encoding(accept, size) == encoding
