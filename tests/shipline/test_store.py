"""Stores, URLs and the errors that name them."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from helpers import S3_SECRET, free_port
from store_conformance import StoreConformance

from shipline.errors import ConfigError, MissingExtraError, NotFoundError, StoreError
from shipline.store import Store, join, open_store, redact, split
from shipline.store.urls import check_name


class TestStores(StoreConformance):
    """Local, memory and a real S3 API."""

    @pytest.fixture
    def store(self, url: str) -> Store:
        return open_store(url)


def test_local_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(str(tmp_path))
    store.write("x", b"old")

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        store.write("x", b"new")
    monkeypatch.undo()
    assert store.read("x") == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_file_urls_are_local(tmp_path: Path) -> None:
    open_store(f"file://{tmp_path}").write("x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:secret@host/x", "https://***@host/x"),
        ("s3://bucket/x?X-Amz-Signature=secret&a=1", "s3://bucket/x?X-Amz-Signature=***&a=1"),
        ("az://c/x?sig=secret", "az://c/x?sig=***"),
        ("s3://bucket/models", "s3://bucket/models"),
    ],
)
def test_urls_are_shown_without_credentials(url: str, shown: str) -> None:
    assert redact(url) == shown


def test_credentials_are_in_no_text_of_a_store() -> None:
    store = open_store("memory://user:hunter2@host/x")
    assert "hunter2" not in str(store) + repr(store)
    with pytest.raises(NotFoundError) as caught:
        store.read("y")
    assert "hunter2" not in str(caught.value)


def test_a_missing_bucket_is_named(s3: str) -> None:
    store = open_store("s3://no-such-bucket-here/x")
    with pytest.raises(NotFoundError, match="the bucket does not exist"):
        store.read("y")
    with pytest.raises(NotFoundError, match="the bucket does not exist"):
        store.list()


def test_an_unreachable_end_point(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StoreError, match="Check the network, the end point and the credentials") as caught:
        open_store(s3).list()
    assert S3_SECRET not in str(caught.value)


def test_missing_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(StoreError, match=r"[Cc]redentials"):
        open_store(s3).write("x", b"1")


class Refusing(BaseHTTPRequestHandler):
    """An S3 end point that takes no credentials."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.end_headers()
        self.wfile.write(b"<Error><Code>SignatureDoesNotMatch</Code><Message>wrong signature</Message></Error>")

    def do_PUT(self) -> None:
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_wrong_credentials(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        fsspec.filesystem("s3").clear_instance_cache()
        for action in (lambda: open_store(s3).list(), lambda: open_store(s3).write("x", b"1")):
            with pytest.raises(StoreError, match=r"access denied .* Check the credentials and their rights") as caught:
                action()
            assert S3_SECRET not in str(caught.value)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_unknown_protocol() -> None:
    with pytest.raises(ConfigError, match="nonsense"):
        open_store("nonsense://x")


def test_a_file_system_that_is_not_installed() -> None:
    with pytest.raises(MissingExtraError, match=r"pip install 'shipline\[gcs\]'"):
        open_store("gs://bucket/x")


def test_split_and_join() -> None:
    assert split("s3://bucket/models/digits/") == ("s3://bucket/models", "digits")
    assert split("models/digits") == ("models", "digits")
    assert split("digits") == (".", "digits")
    assert join("s3://bucket/", "a") == "s3://bucket/a"
    for url in ("s3://bucket", "/", ""):
        with pytest.raises(ConfigError, match="names no directory"):
            split(url)


@pytest.mark.parametrize(
    "name", ["../etc", "a/b", "", " ", "..", " ..", ".hidden", "a\n", "$(id)", "a;b", "x" * 129, "é", "%2e"]
)
def test_names_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no model name"):
        check_name("model", name)


@pytest.mark.parametrize("name", ["digits", "model..1", "a-b_c.d", "0", "x" * 128])
def test_names_that_are_fine(name: str) -> None:
    assert check_name("model", name) == name


def test_what_would_be_read_for_ever_is_no_file() -> None:
    with pytest.raises(StoreError, match="Cannot read /dev/zero: it is a device, and no file"):
        open_store("/dev").read("zero")
