"""Bad input over HTTP: each is refused in the one shape of errors, and afterwards the server is as it was."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from pathlib import Path

import artifacts
import numpy as np
import pytest
from bad_requests import BAD, Bad, x
from PIL import Image
from raw_rows import png_that_claims
from serving import (
    GRAPHS,
    ROWS,
    check_error,
    check_works,
    connect,
    infer,
    path_only,
    post,
    publish_all,
    receive,
    talk,
    tensor,
    web,
)

from shipline.processing import DecodeImage, Grayscale, Layout, Normalize, Processing
from shipline.serve.http import body as bodies
from shipline.serve.server import BackgroundServer
from shipline.store.store import LocalStore

INFER = "/v2/models/linear/infer"
PICTURE = "/models/picture/predict"
LIMIT = 2000
POST = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n".encode()


@pytest.mark.parametrize("case", BAD, ids=[case.name for case in BAD])
def test_a_bad_body_is_400_and_the_server_works_on(url: str, case: Bad) -> None:
    check_error(web.post(f"{url}/v2/models/{case.model}/infer", content=case.body), 400, case.says)
    check_works(url)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[", b"null", b"[]", b'"x"', b"1", b"{}", b"[" * 120 + b"]" * 120, b"[" * 250_000, b"\xff", b"NaN",
        b'{"age": 1, "height": 2}',
        b'{"age": 1, "height": 2, "colour": "green"}',
        b'{"age": 1, "height": 2, "colour": 3}',
        b'{"age": 1, "height": 2, "colour": "red", "weight": 3}',
        b'{"age": "1", "height": 2, "colour": "red"}',
        b'{"age": true, "height": 2, "colour": "red"}',
        b'{"age": null, "height": 2, "colour": "red"}',
        b'{"age": [1], "height": 2, "colour": "red"}',
        b'{"age": NaN, "height": 2, "colour": "red"}',
        b'{"age": 1e39, "height": 2, "colour": "red"}',
        b'{"age": 1e400, "height": 2, "colour": "red"}',
        b'{"age": ' + b"9" * 5000 + b', "height": 2, "colour": "red"}',
        b'{"age": 1, "height": 2, "colour": "\\ud800"}',
        b'{"age": 1, "height": 2, "colour": "' + b"r" * 100_000 + b'"}',
        b'{"' + b"k" * 100_000 + b'": 1}',
    ],
    ids=range(26),
)  # fmt: skip
def test_a_bad_row_is_400(url: str, body: bytes) -> None:
    answer = web.post(f"{url}/models/table/predict", content=body)
    check_error(answer, 400)
    assert len(answer.content) < 500
    assert web.post(f"{url}/models/table/predict", json=ROWS.inputs[0]).status_code == 200


def in_format(name: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, name)
    return file.getvalue()


GOOD_PNG = artifacts.png(0)
NO_PICTURES = {
    "nothing": b"",
    "one byte": b"\x89",
    "text": b"this is no picture",
    "JSON": b"{}",
    "a signature alone": GOOD_PNG[:8],
    "cut in the header": GOOD_PNG[:20],
    "cut in the middle": GOOD_PNG[: len(GOOD_PNG) // 2],
    "a damaged header": GOOD_PNG[:16] + b"\xff" * 8 + GOOD_PNG[24:],
    "random bytes behind the header": GOOD_PNG[:33] + bytes(range(256)) * 4,
    "no pixels": png_that_claims(0, 0),
    "too few pixels": png_that_claims(64, 64),
    "a thousand million pixels": png_that_claims(1 << 15, 1 << 15),
    "sizes past 31 bits": png_that_claims(0xFFFFFFFF, 0xFFFFFFFF),
    "an SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
    "PostScript, which Pillow would run": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
    "a PPM, which is not in the list": in_format("PPM"),
    "an ICO, which is not in the list": in_format("ICO"),
    "a zip": b"PK\x03\x04" + b"\0" * 30,
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00",
}


@pytest.mark.parametrize("name", NO_PICTURES)
def test_what_is_no_picture_is_400(url: str, name: str) -> None:
    answer = web.post(url + PICTURE, content=NO_PICTURES[name], headers={"content-type": "image/png"})
    check_error(answer, 400, "no readable image|pixels; at most")
    assert web.post(url + PICTURE, content=GOOD_PNG).status_code == 200


@pytest.mark.parametrize("name", ["JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_pictures_of_other_kinds_are_taken(url: str, name: str) -> None:
    """So the refusals above are about what they say."""
    assert web.post(url + PICTURE, content=in_format(name)).status_code == 200


def test_a_prepared_row_that_the_model_does_not_take_is_400_and_not_the_models_failure(tmp_path: Path) -> None:
    """Without a step that resizes, a picture of another size passes every step; the signature refuses it."""
    graph, _ = artifacts.picture()
    raw = artifacts.Raw(Processing([DecodeImage(), Grayscale(), Normalize(), Layout()]), [artifacts.png(0)])
    artifacts.publish(f"{tmp_path}/picture", graph, raw=raw)
    with BackgroundServer(str(tmp_path)) as server:
        answer = web.post(server.url + PICTURE, content=artifacts.png(1, size=9))
        check_error(answer, 400, r"'image' must have shape \[-1, 1, 8, 8\]; got \[1, 1, 9, 9\]")
        assert web.post(server.url + PICTURE, content=artifacts.png(1)).status_code == 200


def test_a_row_that_makes_the_model_raise_is_500_and_says_nothing_of_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    inputs = [tensor("index", np.array([99]), "INT64")]
    answer = web.post(f"{url}/v2/models/lookup/infer", json={"inputs": inputs}, headers={"x-request-id": "poison-1"})
    check_error(answer, 500, r"^The model failed on this input\.$")
    assert "Model 'lookup' failed on request poison-1" in caplog.text  # the operator learns more
    assert "indices" in caplog.text
    check_works(url)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the limit on bodies small."""
    monkeypatch.setattr(bodies, "MAX_BODY_BYTES", LIMIT)


def chunked(path: str, *sizes: int) -> Iterator[bytes]:
    """A request in chunks of these sizes, without its end."""
    yield f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    for size in sizes:
        yield f"{size:x}\r\n".encode() + b" " * size + b"\r\n"


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("path", [INFER, PICTURE, "/models/table/predict"])
@pytest.mark.parametrize("length", [LIMIT + 1, 10**12, 2**63 - 1])
def test_a_body_that_announces_too_much_is_413_before_it_is_sent(url: str, path: str, length: int) -> None:
    answer = talk(url, f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode())
    check_error(answer, 413, f"larger than {LIMIT} bytes")
    assert answer.closed
    check_works(url)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("path", [INFER, PICTURE])
@pytest.mark.parametrize("sizes", [(LIMIT + 1,), (LIMIT, 1), (1,) * (LIMIT + 1), (LIMIT // 2, LIMIT // 2, 1)])
def test_a_body_in_chunks_is_413_at_the_byte_that_crosses_the_limit(
    url: str, path: str, sizes: tuple[int, ...]
) -> None:
    """The body has no end: the answer comes without waiting for it."""
    answer = talk(url, *chunked(path, *sizes))
    check_error(answer, 413, f"larger than {LIMIT} bytes")
    assert answer.closed
    check_works(url)


@pytest.mark.usefixtures("small")
def test_a_body_of_just_the_limit_is_taken(url: str) -> None:
    padded = x() + b" " * (LIMIT - len(x()))
    for request in (
        post(INFER, padded),
        b"".join(chunked(INFER)) + f"{LIMIT:x}\r\n".encode() + padded + b"\r\n0\r\n\r\n",
    ):
        with connect(url) as connection:
            connection.sendall(request)
            assert receive(connection).status == 200


@pytest.mark.parametrize("path", [INFER, PICTURE])
def test_a_body_that_ends_early_leaves_nothing_waiting(url: str, path: str) -> None:
    with connect(url) as connection:
        connection.sendall(post(path, x())[:-10])
    with connect(url) as connection:
        connection.sendall(b"".join(chunked(path, 5)))
    check_works(url)


def test_a_huge_good_body_is_answered_while_others_are(url: str) -> None:
    """Six megabytes of JSON: parsed in a thread."""
    width = 1_000_000
    inputs = [tensor("x", np.full((1, width), 0.5, np.float32), "FP32")]
    answer = web.post(f"{url}/v2/models/total/infer", json={"inputs": inputs})
    assert answer.json()["outputs"][0]["data"] == [width / 2]


@pytest.mark.parametrize(
    "body",
    [b"[" * 5_000_000, b'"' + b"x" * 5_000_000, b'{"inputs": [' + b"{}," * 1_000_000 + b"{}]}", b"9" * 5_000_000],
)
def test_a_huge_bad_body_is_400(url: str, body: bytes) -> None:
    answer = web.post(url + INFER, content=body)
    check_error(answer, 400)
    assert len(answer.content) < 500
    check_works(url)


def test_a_connection_is_used_on_after_every_error(url: str) -> None:
    with connect(url) as connection:
        for request, status in (
            (post(INFER, b"no json"), 400),
            (post(INFER, b"x" * 100_000, "Content-Type: text/plain"), 415),
            (post(INFER, b"x" * 100_000, "Content-Encoding: br"), 415),
            (post(INFER, b"x" * 100_000, "Content-Encoding: gzip"), 400),
            (post("/v2/models/nobody/infer", b"x" * 100_000), 404),
            (post("/v2/models/linear", b"x" * 100_000), 405),
            (post(INFER, x()), 200),
        ):
            connection.sendall(request)
            assert receive(connection).status == status


def test_pipelined_requests_are_answered_in_their_order(url: str) -> None:
    widths = range(1, 40)
    requests = [
        f'{{"inputs": [{{"name": "x", "shape": [1, {n}], "datatype": "FP32", "data": {[1] * n}}}]}}'.encode()
        for n in widths
    ]
    with connect(url) as connection:
        connection.sendall(b"".join(post("/v2/models/total/infer", body) for body in requests))
        with connection.makefile("rb") as stream:
            found = [float(read_answer(stream).partition(b'"data":[')[2].partition(b"]")[0]) for _ in requests]
    assert found == list(widths)


def read_answer(stream: io.BufferedIOBase) -> bytes:
    """The body of one of several answers that follow each other."""
    length = 0
    while (line := stream.readline().strip()) != b"":
        if line.lower().startswith(b"content-length:"):
            length = int(line.partition(b":")[2])
    return stream.read(length)


@pytest.mark.parametrize(
    "request_",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: +5\r\n\r\n",
        POST + b"Content-Length: 1e30\r\n\r\n",
        POST + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n",
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST "
        + INFER.encode()
        + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\x1b[31m\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\rb\r\n\r\n",
    ],
    ids=range(11),
)
def test_what_is_no_http_is_400_and_the_connection_is_closed(url: str, request_: bytes) -> None:
    answer = talk(url, request_)
    check_error(answer, 400, "^This is not HTTP")
    assert answer.closed
    check_works(url)


HOSTILE_NAMES = [
    "..%2f..%2fetc%2fpasswd", "%2e%2e", "%2e%2e%2f", "%252e%252e%252f", "%00", "linear%00", "%5c..%5c", "..", ".",
    "linear%2f..%2flinear", "%2fetc%2fpasswd", "%ef%bc%8e%ef%bc%8e", "linear%20", "%20linear", "LINEAR", "linear.",
    "linear/", "$(id)", "%60id%60", ";id", "%27", "%22", "linear%0a", "%0d%0a", "file:%2f%2f%2fetc", "x" * 300,
    "http:%2f%2f169.254.169.254", "s3:%2f%2fbucket", "%ff%fe", "%25", "linear%3fx", "linear%23x", "data-0",
    "manifest.json", "channels.json", "%20", "%c3%a9",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_is_404_and_touches_no_storage(url: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    touched: list[str] = []
    for method in ("read", "list", "size", "write", "create", "remove", "at"):
        monkeypatch.setattr(LocalStore, method, lambda self, *arguments, method=method: touched.append(method))
    monkeypatch.setattr(Path, "open", lambda self, *arguments, **options: touched.append(str(self)))
    for method, path in (
        ("GET", f"/v2/models/{name}"),
        ("GET", f"/v2/models/{name}/ready"),
        ("GET", f"/v2/models/linear/versions/{name}"),
        ("POST", f"/v2/models/{name}/infer"),
        ("POST", f"/v2/models/linear/versions/{name}/infer"),
        ("POST", f"/models/{name}/predict"),
        ("POST", f"/models/{name}/versions/1/predict"),
    ):
        check_error(path_only(url, method, path, b"{}" if method == "POST" else None), 404)
    monkeypatch.undo()
    assert touched == []


def test_storage_that_is_gone_does_not_stop_the_server(tmp_path: Path) -> None:
    publish_all(tmp_path / "repository")
    with BackgroundServer(str(tmp_path / "repository")) as server:
        (tmp_path / "repository").rename(tmp_path / "gone")
        check_works(server.url)
        check_error(web.get(f"{server.url}/v2/models/nobody"), 404)


def test_bad_input_leaves_no_thread_and_no_growing_labels(url: str) -> None:
    """What clients send is no label of a metric, and starts no thread."""
    check_works(url)
    before = web.get(f"{url}/metrics").text.count("\n"), threading.active_count()
    for number in range(20):
        web.get(f"{url}/v2/models/nobody-{number}")
        web.post(f"{url}/v2/models/nobody-{number}/infer", content=b"{}")
        web.post(
            f"{url}/v2/models/lookup/versions/{number + 7}/infer",
            content=b"{}",
            headers={"x-request-id": f"id-{number}"},
        )
    infer(url)
    assert (web.get(f"{url}/metrics").text.count("\n"), threading.active_count()) == before


def test_every_model_still_answers(url: str) -> None:
    """Last in this file: after all of the above."""
    for name in ("linear", "total"):
        assert GRAPHS[name].signature.inputs[0].name == "x"
        infer(url, name, seed=5)
