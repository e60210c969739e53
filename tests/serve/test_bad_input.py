"""What clients do wrong, by mistake or on purpose, against a real server on a loopback port."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from orchestrator.config.serving import ServeConfig
from orchestrator.serve.compute import local_backend
from orchestrator.serve.control.table import VersionSpec
from tests.serve.asking import (
    INFER,
    JPEG,
    NOISE,
    PNG,
    PREDICT,
    Gate,
    check_refused,
    check_says_nothing_of_us,
    head,
    tensor,
)
from tests.serve.live import Live, live_server
from tests.serve.serving import LABELS, encode, make_run, make_text_run

LIMITS = {"body_mb": 0.5, "megapixels": 4}


@pytest.fixture(scope="module")
def roots(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    return {"shoes": make_run(folder / "shoes"), "mail": make_text_run(folder / "mail")}


@pytest.fixture(scope="module")
def live(roots) -> Iterator[Live]:
    specs = [VersionSpec(name, "1", str(root)) for name, root in roots.items()]
    with live_server(specs, config=ServeConfig(limits=LIMITS, executor="torch")) as server:
        yield server


@pytest.fixture(scope="module")
def hasty() -> Iterator[Live]:
    """A server that waits for no body; whoever asks it must mean to be too slow."""
    config = ServeConfig(limits=LIMITS | {"receive_seconds": 0.4})
    with live_server(config=config, backend=local_backend([Gate()])) as server:
        yield server


def png_that_says(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes whose header has any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(99))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


# --- one request ---------------------------------------------------------------------------

IMAGES = [
    (b"", 400, "no image"),
    (b"hello", 400, "no PNG or JPEG"),
    (b"\x89PNG\r\n\x1a\n", 400, "no PNG or JPEG"),
    (encode(Image.fromarray(NOISE), "GIF"), 400, "no PNG or JPEG"),
    (PNG[: len(PNG) // 2], 400, "damaged or cut short"),
    (JPEG[: len(JPEG) // 2], 400, "damaged or cut short"),
    (PNG[:100] + b"\0" * 20 + PNG[120:], 400, "damaged"),
    (png_that_says(20_000, 20_000), 413, "pixels"),
    (png_that_says(2001, 2001), 413, "2001×2001"),
    (png_that_says(0, 5), 400, "no PNG"),
    (bytes(600_000), 413, "524,288 bytes"),
]


@pytest.mark.parametrize(("body", "status", "message"), IMAGES)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_images(live, body, status, message):
    check_refused(live.client.post(PREDICT, content=body), status, message)
    if status == 413 and len(body) > 500_000:
        return
    form = live.client.post(PREDICT, files={"image": ("shoe.png", body, "image/png")})
    check_refused(form, status, message)
    coded = base64.b64encode(body).decode()
    check_refused(live.client.post(PREDICT, json={"image": coded}), status, message)


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"content": b""}, 400, "JSON"),
        ({"content": b"{"}, 400, "JSON"),
        ({"content": b"\xff\xfe"}, 400, "JSON"),
        ({"content": PNG}, 400, "JSON"),
        ({"json": []}, 400, "object"),
        ({"json": {}}, 400, "inputs"),
        ({"json": {"inputs": []}}, 400, "one input"),
        ({"json": {"inputs": tensor()["inputs"] * 2}}, 400, "one input"),
        ({"json": tensor(name="pixels")}, 400, "'image'"),
        ({"json": tensor(datatype="FP64")}, 400, "FP32"),
        ({"json": tensor(shape=[1, 12, 12])}, 400, "[B, 1, 12, 12]"),
        ({"json": tensor(shape=[1, 3, 12, 12])}, 400, "[B, 1, 12, 12]"),
        ({"json": tensor(shape=[2, 1, 12, 12])}, 400, "288 numbers"),
        ({"json": tensor(shape=[0, 1, 12, 12], data=[])}, 400, "got 0"),
        ({"json": tensor(shape=[10**6, 1, 12, 12], data=[])}, 400, "got 1000000"),
        ({"json": tensor(shape=[10**40, 1, 12, 12], data=[])}, 400, "1 to 1024"),
        ({"json": tensor(data=[7] * 144)}, 400, "0..1"),
        ({"json": tensor(data=[10**400] * 144)}, 400, "finite"),
        ({"json": tensor(data=["a"] * 144)}, 400, "finite"),
        ({"content": json.dumps(tensor(data=[float("nan")] * 144))}, 400, "finite"),
        ({"content": b'{"inputs": ' + b"[" * 100_000}, 400, "recursion"),
        ({"content": b'{"a":' * 50_000 + b"1" + b"}" * 50_000}, 400, "recursion"),
        ({"content": b'{"id": ' + b"9" * 100_000 + b"}"}, 400, "id"),
        ({"json": tensor() | {"outputs": [{"name": "logits"}]}}, 400, "'label'"),
        ({"json": tensor() | {"parameters": {"timeout": -1}}}, 400, "timeout"),
        ({"json": tensor(), "headers": {"X-Orch-Deadline-Ms": "soon"}}, 400, "milliseconds"),
        ({"json": tensor(), "headers": {"X-Orch-Deadline-Ms": "nan"}}, 400, "milliseconds"),
        ({"json": tensor(), "headers": {"Inference-Header-Content-Length": "9"}}, 400, "JSON"),
        ({"json": tensor(), "headers": {"Inference-Header-Content-Length": "x"}}, 400, "length"),
        ({"json": tensor(data=[0.123456789] * 60_000)}, 413, "524,288 bytes"),
    ],
)
def test_tensors(live, request_, status, message):
    check_refused(live.client.post(INFER, **request_), status, message)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("POST", "/predict/shoe", 404, "did you mean 'shoes'"),
        ("POST", "/predict/shoes?version=2", 404, "version of shoes '2'"),
        ("POST", "/predict/shoes?top=0", 400, "top"),
        ("POST", "/predict/shoes?top=many", 400, "top"),
        ("POST", "/v2/models/zzz/infer", 404, "shoes"),
        ("POST", "/v2/models/shoes/versions/2/infer", 404, "'2'"),
        ("POST", "/v2/models/shoes/infer?version=2", 404, "'2'"),
        ("GET", "/v2/models/shoes/infer", 405, "Not Allowed"),
        ("DELETE", "/v2", 405, "Not Allowed"),
        ("PATCH", "/predict/shoes", 405, "Not Allowed"),
        ("GET", "/v2/models/..%2f..%2fetc%2fpasswd", 404, ""),
        ("GET", "/v2/models/%2e%2e", 404, ""),
        ("GET", "/v2/models/shoes%00", 404, "unknown model"),
        ("GET", "/v2/models/shoes/versions/1%00", 404, ""),
        ("GET", "/v2/models/%ff%fe", 404, "unknown model"),
        ("GET", "/v2/models/%F0%9F%91%9F", 404, "unknown model"),
        ("GET", "/v2/models/" + "a" * 8000, 404, "unknown model"),
        ("POST", "/predict/..%2f..%2fmail", 404, ""),
        ("GET", "/static/../../etc/passwd", 404, "Not Found"),
    ],
)
def test_names_and_methods(live, method, path, status, message):
    check_refused(live.client.request(method, path), status, message)


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"content": b"caf\xe9"}, 400, "no UTF-8"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain; charset=latin-1"}}, 415, "UTF"),
        ({"json": {"image": "aGk="}}, 400, "reads texts"),
        ({"json": {"texts": []}}, 400, "texts"),
        ({"json": {"texts": ["a"] * 1025}}, 400, "1 to 1024 texts"),
        ({"json": {"text": 7}}, 400, "text"),
        (
            {"content": b'{"text": "\\ud800"}', "headers": {"Content-Type": "application/json"}},
            400,
            "",
        ),
    ],
)
def test_texts(live, request_, status, message):
    check_refused(live.client.post("/predict/mail", **request_), status, message)


def test_a_text_tensor_that_is_no_utf_8(live):
    words = {
        "name": "text",
        "shape": [1],
        "datatype": "BYTES",
        "parameters": {"binary_data_size": 6},
    }
    head = json.dumps({"inputs": [words]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = live.client.post(
        "/v2/models/mail/infer", content=head + b"\2\0\0\0a\xff", headers=headers
    )
    check_refused(answer, 400, "no UTF-8")
    check_refused(live.client.post("/v2/models/mail/infer", json=tensor()), 400, "'text'")


@pytest.mark.parametrize(
    ("kind", "body", "message"),
    [
        ("multipart/form-data", b"x", "form"),
        ("multipart/form-data; boundary=x", b"--y\r\n", "form"),
        ("multipart/form-data; boundary=x", b"--x\r\nnonsense\r\n", "form"),
        ("application/json", b"{", "JSON"),
        ("application/json", b'{"image": "!!"}', "base64"),
        ("application/json", b'{"image": "aGk=", "text": "a"}', "one of"),
        ("application/json", b'{"file": "/etc/passwd"}', "file"),
        ("application/json", b'{"images": "x"}', "images"),
    ],
)
def test_forms_and_json_that_are_none(live, kind, body, message):
    answer = live.client.post(PREDICT, content=body, headers={"Content-Type": kind})
    check_refused(answer, 400, message)


def test_a_field_that_is_no_utf_8(live):
    head = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    for text, status in [(b"caf\xc3\xa9", 200), (b"caf\xe9", 400)]:
        answer = live.client.post(
            "/predict/mail", content=head + text + b"\r\n--x--\r\n", headers=kind
        )
        assert answer.status_code == status
    check_refused(answer, 400, "no UTF-8")


def test_fields_are_looked_for_where_they_are(live):
    """Each behind the part before it, so that a large part is not searched for every field."""
    field = b'--x\r\nContent-Disposition: form-data; name="text"\r\n\r\n%s\r\n'
    file = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n%s\r\n'
    # The file has what the wrong field would be in UTF-8.
    parts = [file % (200_000 * b"a" + b" caf\xc3\xa9"), field % b"a"]
    parts += [field % one for one in (b"caf\xe9", b"th\xc3\xa9", b"a", b"caf\xc3\xa9")]
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    answer = live.client.post("/predict/mail", content=b"".join(parts) + b"--x--\r\n", headers=kind)
    assert answer.status_code == 200, answer.text
    found = ["no UTF-8" in one.get("error", "") for one in answer.json()["answers"]]
    assert found == [False, False, True, False, False, False]


def test_one_bad_image_of_a_batch_fails_alone(live):
    files = [PNG, b"hello", JPEG, png_that_says(20_000, 20_000)]
    listed = {"images": [base64.b64encode(one).decode() for one in files] + ["no base64!"]}
    answer = live.client.post(PREDICT, json=listed)
    assert answer.status_code == 200
    first, second, third, fourth, fifth = answer.json()["answers"]
    alone = live.client.post(PREDICT, content=PNG).json()["predictions"]
    for mine, theirs in zip(first["predictions"], alone, strict=True):
        assert mine["label"] == theirs["label"]
        assert mine["probability"] == pytest.approx(theirs["probability"], abs=1e-5)
    assert {one["label"] for one in third["predictions"]} == set(LABELS)
    assert "no PNG or JPEG" in second["error"] and "pixels" in fourth["error"]
    assert "base64" in fifth["error"]
    check_says_nothing_of_us(answer.text)
    form = [("image", (f"{n}.png", one)) for n, one in enumerate(files)]
    assert [list(one) for one in live.client.post(PREDICT, files=form).json()["answers"]] == [
        ["predictions"],
        ["error"],
        ["predictions"],
        ["error"],
    ]
    bad = {"images": [base64.b64encode(b"hello").decode()] * 2}
    check_refused(live.client.post(PREDICT, json=bad), 400, "none of 2")


# --- bytes that lie ------------------------------------------------------------------------


def compressed(body: bytes, encoding: str) -> dict[str, Any]:
    return {"content": body, "headers": {"Content-Encoding": encoding}}


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        (compressed(gzip.compress(bytes(600_000)), "gzip"), 413, "524,288 bytes"),
        (compressed(zlib.compress(bytes(600_000)), "deflate"), 413, "524,288 bytes"),
        (compressed(gzip.compress(PNG)[:-9], "gzip"), 400, "cut short"),
        (compressed(gzip.compress(PNG) + b"x", "gzip"), 400, "has a rest"),
        (compressed(PNG, "gzip"), 400, "not compressed as"),
        (compressed(gzip.compress(PNG), "deflate"), 400, "not compressed as"),
        (compressed(PNG, "br"), 415, "gzip or deflate"),
        (compressed(gzip.compress(gzip.compress(PNG)), "gzip, gzip"), 415, "gzip or deflate"),
    ],
)
def test_compressed_bodies(live, request_, status, message):
    check_refused(live.client.post(PREDICT, **request_), status, message)
    sound = live.client.post(PREDICT, **compressed(gzip.compress(PNG), "gzip"))
    assert sound.status_code == 200


def test_bombs_do_not_take_memory(live):
    """A quarter of a GiB of zeros in 260 KB of gzip, and PNGs that say they have 81 megapixels."""
    squeezer = zlib.compressobj(9, wbits=31)
    bomb = b"".join(squeezer.compress(bytes(2**24)) for _ in range(16)) + squeezer.flush()
    assert len(bomb) < 300_000
    live.client.post(PREDICT, content=PNG)
    before = psutil.Process().memory_info().rss
    for _ in range(20):
        answer = live.client.post(PREDICT, **compressed(bomb, "gzip"))
        check_refused(answer, 413, "524,288 bytes")
        check_refused(live.client.post(PREDICT, content=png_that_says(9000, 9000)), 413, "pixels")
    assert psutil.Process().memory_info().rss - before < 64 * 2**20


def said(connection: socket.socket) -> bytes:
    """Everything that the server sends until it closes, or until nothing comes any more."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except (TimeoutError, ConnectionResetError):
        pass
    return found


def test_a_length_that_is_too_long_is_waited_for_in_vain(hasty):
    with hasty.connect() as connection:
        connection.sendall(head(len(PNG) + 100) + PNG)
        answer = said(connection)
    assert answer.startswith(b"HTTP/1.1 408 ") and b"connection: close" in answer.lower()
    assert b'{"error":"a request has to be there within 0.4 seconds; ' in answer


def test_a_length_that_is_too_short_cuts_the_image(live):
    with live.connect() as connection:
        connection.sendall(head(len(PNG) - 100) + PNG[:-100])
        first = b""
        while not first.endswith(b"}"):
            first += connection.recv(65536)
        # What is left of the image is no request: the server says so, and hangs up.
        connection.sendall(PNG[-100:])
        rest = said(connection)
    assert first.startswith(b"HTTP/1.1 400 ") and b"damaged or cut short" in first
    assert rest.startswith(b"HTTP/1.1 400 ") and b"connection: close" in rest


@pytest.mark.parametrize("length", ["-5", "abc", "1e3", "99999999999999999999999"])
def test_a_length_that_is_no_number(live, length):
    with live.connect() as connection:
        connection.sendall(
            f"POST {PREDICT} HTTP/1.1\r\nHost: here\r\nContent-Length: {length}\r\n\r\n".encode()
        )
        answer = said(connection)
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 413 "))
    check_says_nothing_of_us(answer.decode())


@pytest.mark.parametrize("chunked", [False, True])
def test_a_slow_sender_is_cut_off(hasty, chunked):
    """One byte now and then never fills the time of a whole request."""
    with hasty.connect() as connection:
        kind = "Transfer-Encoding: chunked" if chunked else "X-Nothing: here"
        begin = head(5000, kind)
        if chunked:
            begin = begin.replace(b"Content-Length: 5000\r\n", b"")
        connection.sendall(begin)
        connection.settimeout(0.05)
        found = b""
        for _ in range(200):
            try:
                connection.sendall(b"1\r\nx\r\n" if chunked else b"x")
                found += connection.recv(65536)
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                found += said(connection)  # it was told before
            if found:
                break
    assert found.startswith(b"HTTP/1.1 408 ")


def test_nothing_of_the_server_suffers(live, hasty):
    """After all of that it answers as ever, and holds nothing."""
    assert live.client.post(PREDICT, content=PNG).status_code == 200
    for one in (live, hasty):
        assert one.client.get("/v2/health/ready").json() == {"ready": True}
