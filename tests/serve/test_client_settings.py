"""What both clients are told: the key, which is secret, whom to trust, and settings that are wrong."""

from __future__ import annotations

import logging
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from clients import Twin
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from web_double import GOOD, Asked, Say, double, in_turn

from shipline.client import Client
from shipline.errors import ConfigError, ServingError

KEY = "key-5ec2e7"


def test_the_key_is_sent_and_never_shown(ask: Twin, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    keys = []

    def answer(asked: Asked) -> Say:
        keys.append(asked.headers.get("authorization"))
        return 401, {}, b'{"error": "no"}'

    with double(answer) as url:
        with pytest.raises(ServingError) as caught:
            ask(url, "predict", "m", 7, client={"api_key": KEY})
        with pytest.raises(ServingError) as with_both:
            ask(url.replace("//", "//me:hunter2@"), "predict", "m", 7, client={"api_key": KEY})
        with pytest.raises(ServingError):
            ask(url.replace("//", "//me:hunter2@"), "predict", "m", 7)
    assert keys == [f"Bearer {KEY}", f"Bearer {KEY}", "Basic bWU6aHVudGVyMg=="]
    shown = [str(caught.value), str(with_both.value), caplog.text, repr(vars(Client(url, api_key=KEY)))]
    shown.append(repr(ask.client("http://me:hunter2@h", api_key=KEY)))
    for text in shown:
        assert KEY not in text
        assert "hunter2" not in text
    assert "POST" in caplog.text


@pytest.mark.parametrize("key", ["", f"{KEY}\n", f"{KEY} x", f"{KEY}é"])
def test_what_is_no_key(key: str) -> None:
    with pytest.raises(ConfigError, match="api_key is empty, or has characters") as caught:
        Client("http://h", api_key=key)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"timeout": 0}, "timeout is 0; it must be more than 0 seconds"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"retries": -1}, "retries is -1; it must be at least 0"),
        ({"connections": 0}, "connections is 0; it must be at least 1"),
        ({"verify": "none.pem"}, "verify is 'none.pem', which is no file of certificates"),
    ],
)
def test_a_setting_that_is_wrong(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        Client("http://h", **settings)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for this machine that nobody has signed, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - timedelta(1)).not_valid_after(now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    path = tmp_path_factory.mktemp("tls") / "cert.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return path


def test_certificates_are_checked(ask: Twin, certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with double(in_turn(GOOD), context) as url:
        with pytest.raises(ServingError, match=r"Cannot reach https://.*certificate"):
            ask(url, "predict", "m", 7, client={"retries": 0})
        for verify in (str(certificate), certificate, False, ssl.create_default_context(cafile=certificate)):
            assert ask(url, "predict", "m", 7, client={"verify": verify}) == {"label": "7"}
