"""https, and gRPC over TLS: a certificate and its key, from TLS 1.2 on, and what is wrong with other files."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from bad_requests import x
from commands import serve_fails
from helpers import free_port, wait_until

from shipline.errors import ConfigError
from shipline.serve.http import listening
from shipline.serve.server import BackgroundServer, Serving
from shipline.serve.settings import Limits, ServerSettings

INFER = "/v2/models/linear/infer"


@dataclass(frozen=True)
class Files:
    """A certificate for this machine, its key, and a key of another one."""

    cert: Path
    key: Path
    other_key: Path
    locked_key: Path

    def trusting(self) -> ssl.SSLContext:
        """A client's side that knows the certificate."""
        return ssl.create_default_context(cafile=self.cert)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """Made by openssl."""
    if shutil.which("openssl") is None:
        pytest.skip("this machine has no openssl to make a certificate with")
    root = tmp_path_factory.mktemp("tls")
    found = Files(root / "cert.pem", root / "key.pem", root / "other.pem", root / "locked.pem")
    elliptic = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    names = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    openssl("req", "-x509", *elliptic, *names, "-keyout", found.key, "-out", found.cert)
    openssl("req", "-x509", *elliptic, *names, "-keyout", found.other_key, "-out", root / "unused.pem")
    openssl("pkey", "-in", found.key, "-aes256", "-passout", "pass:words", "-out", found.locked_key)
    return found


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def server(repository: str, files: Files) -> Iterator[BackgroundServer]:
    """One that speaks TLS, and closes what does not soon shake hands."""
    limits = Limits(head_s=2, keep_alive_s=2)
    settings = ServerSettings(tls_cert=str(files.cert), tls_key=str(files.key), limits=limits)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listening, "SWEEP_S", 0.05)
        with BackgroundServer(repository, grpc_port=0, settings=settings) as server:
            yield server


def check_answers(url: str, files: Files) -> None:
    with httpx.Client(verify=files.trusting()) as client:
        answer = client.post(url + INFER, content=x())
        assert answer.status_code == 200
        assert client.get(f"{url}/v2/health/ready").json() == {"ready": True}


def test_it_answers_over_https(server: BackgroundServer, files: Files) -> None:
    assert server.url.startswith("https://127.0.0.1:")
    check_answers(server.url, files)
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{server.url}/v2", verify=ssl.create_default_context())


TRITON = """
import sys, numpy, tritonclient.grpc as triton
address, root, secure = sys.argv[1], sys.argv[2], sys.argv[3] == "secure"
x = triton.InferInput("x", [1, 4], "FP32")
x.set_data_from_numpy(numpy.ones((1, 4), numpy.float32))
with triton.InferenceServerClient(address, ssl=secure, root_certificates=root if secure else None) as client:
    try:
        print(client.infer("linear", [x], client_timeout=10).as_numpy("y").shape)
    except triton.InferenceServerException as error:
        print(error.status())
"""


@pytest.mark.parametrize(("how", "said"), [("secure", "(1, 3)"), ("plain", "StatusCode.UNAVAILABLE")])
def test_grpc_is_encrypted_with_the_same_certificate(
    server: BackgroundServer, files: Files, how: str, said: str
) -> None:
    """Triton's own client over TLS; and nobody who speaks without."""
    command = [sys.executable, "-c", TRITON, str(server.grpc_address), str(files.cert), how]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == said, done.stderr
    check_answers(server.url, files)


def dial(server: BackgroundServer) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((str(parts.hostname), parts.port), timeout=20)


@pytest.mark.parametrize(
    ("version", "spoken"), [(ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")]
)
def test_versions_that_are_spoken(server: BackgroundServer, files: Files, version: ssl.TLSVersion, spoken: str) -> None:
    context = files.trusting()
    context.minimum_version = context.maximum_version = version
    with dial(server) as raw, context.wrap_socket(raw, server_hostname="localhost") as secured:
        assert secured.version() == spoken


def test_an_old_version_is_refused(server: BackgroundServer, files: Files) -> None:
    assert listening.tls_context(str(files.cert), str(files.key)).minimum_version is ssl.TLSVersion.TLSv1_2
    hello = bytes.fromhex("160301002f0100002b0301") + bytes(32) + bytes.fromhex("000004c013c00a0100")  # TLS 1.0
    with dial(server) as raw:
        raw.sendall(hello)
        said = raw.recv(100)
    assert said[:1] in (b"", b"\x15")  # closed, or an alert: no hello of the server's
    check_answers(server.url, files)


@pytest.mark.parametrize(
    "first", [b"", b"\x16\x03\x01", b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", bytes(range(256)) * 100],
    ids=["nothing", "half a hello", "plain HTTP", "noise"],
)  # fmt: skip
def test_who_does_not_shake_hands_is_closed(server: BackgroundServer, files: Files, first: bytes) -> None:
    with dial(server) as raw:
        raw.sendall(first)
        try:
            while said := raw.recv(1 << 16):
                assert said[:1] == b"\x15"  # an alert, and nothing of an answer
        except ConnectionResetError:
            pass
    check_answers(server.url, files)


def test_deadlines_and_errors_are_those_of_http(server: BackgroundServer, files: Files) -> None:
    with dial(server) as raw, files.trusting().wrap_socket(raw, server_hostname="localhost") as secured:
        secured.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n")
        assert secured.recv(1 << 16).startswith(b"HTTP/1.1 408 ")
        assert secured.recv(1) == b""
    wait_until(lambda: not server._serving._server.server_state.connections)
    check_answers(server.url, files)


def test_health_on_its_own_port_is_plain(repository: str, files: Files) -> None:
    settings = ServerSettings(tls_cert=str(files.cert), tls_key=str(files.key), health_port=free_port())
    with BackgroundServer(repository, settings=settings) as server:
        check_answers(server.url, files)
        assert httpx.get(f"http://127.0.0.1:{settings.health_port}/v2/health/ready").json() == {"ready": True}


@pytest.mark.parametrize(
    ("cert", "key", "says"),
    [
        ("cert", "missing.pem", "tls_key is .*missing.pem, which cannot be read: No such file"),
        ("missing.pem", "key", "tls_cert is .*missing.pem, which cannot be read: No such file"),
        ("cert", "other_key", "cannot be used together: .*Give a certificate and its own private key"),
        ("key", "cert", "cannot be used together"),
        ("cert", "cert", "cannot be used together"),
        ("cert", "locked_key", "cannot be used together: .*without a password"),
        ("cert", None, "tls_key is not set; a certificate and its private key go together"),
        (None, "key", "tls_cert is not set"),
    ],
)
def test_files_that_are_not_good_for_it(files: Files, cert: str | None, key: str | None, says: str) -> None:
    def path(name: str | None) -> str | None:
        return None if name is None else str(getattr(files, name, files.cert.parent / name))

    with pytest.raises(ConfigError, match=says):
        Serving("nowhere", port=0, settings=ServerSettings(tls_cert=path(cert), tls_key=path(key)))


def test_the_command_line_says_what_is_wrong(files: Files) -> None:
    code, said = serve_fails("models", "--tls-cert", str(files.cert), "--tls-key", str(files.other_key))
    assert code == 2
    assert "cannot be used together" in said
    assert "Traceback" not in said
