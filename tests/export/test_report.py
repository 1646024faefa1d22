"""The report: complete as JSON, safe and self-contained as a page."""

from __future__ import annotations

import copy
import json
import math
import threading
from datetime import datetime
from html.parser import HTMLParser
from typing import Any

import pytest

from shipline.artifact import Artifact
from shipline.export import report
from shipline.export.latency import ENOUGH_ROUNDS
from shipline.train import Run


class Page(HTMLParser):
    """What a browser would see: tags with their attributes, and text."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(data.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def content(artifacts: dict[str, Artifact]) -> dict[str, Any]:
    """The report of the int8 artifact."""
    loaded: dict[str, Any] = json.loads(artifacts["int8"].read("report.json"))
    return loaded


def test_it_says_what_was_exported_and_how(
    artifacts: dict[str, Artifact], content: dict[str, Any], trained: Run
) -> None:
    manifest = artifacts["int8"].manifest.model_dump(mode="json")
    for key in ("name", "version", "precision", "signature", "lineage"):
        assert content[key] == manifest[key]
    assert datetime.fromisoformat(content["created_at"]) == artifacts["int8"].manifest.created_at
    assert content["schema_version"] == 1
    assert content["recipe"]["precision"] == "int8"
    assert content["recipe"]["max_batch_size"] == 32
    assert content["metric"] == {"name": "val_acc", "mode": "max"}
    assert content["trained"]["rows"] == 300
    assert content["trained"]["proof_rows"] == 256
    assert content["trained"]["metrics"]["val_acc"] == pytest.approx(trained.checkpoint.manifest.metrics["val_acc"])
    assert {"python", "machine", "torch", "onnx", "onnxruntime"} <= set(content["exported_with"])


def test_it_says_what_was_measured_of_each_candidate(artifacts: dict[str, Artifact], content: dict[str, Any]) -> None:
    manifest = artifacts["int8"].manifest
    plain, chosen = content["candidates"]
    assert (plain["precision"], chosen["precision"]) == ("float32", "int8")
    assert chosen["bytes"] == manifest.files["model.onnx"].size < plain["bytes"]
    assert chosen["verdicts"] == [verdict.model_dump(mode="json") for verdict in manifest.verdicts]
    assert chosen["metrics"] == manifest.metrics
    assert [verdict["gate"] for verdict in plain["verdicts"]] == [
        "parity", "batch_invariance", "not_finite", "determinism", "metric",
    ]  # fmt: skip
    for candidate in (plain, chosen):
        assert [taken["batch"] for taken in candidate["latency"]] == [1, 32]
        for taken in candidate["latency"]:
            assert 0 < taken["p10_ms"] <= taken["median_ms"] <= taken["p90_ms"]
            assert len(taken["rounds_ms"]) >= ENOUGH_ROUNDS
            assert taken["speedup"] == pytest.approx(taken["float32_ms"] / taken["median_ms"])


def test_the_page_shows_what_the_json_says(artifacts: dict[str, Artifact], content: dict[str, Any]) -> None:
    page = Page(artifacts["int8"].read("report.html"))
    for verdict in content["candidates"][1]["verdicts"]:
        assert verdict["message"] in page.text
    assert "int8 on onnxruntime (published)" in page.text
    assert f"{content['candidates'][0]['bytes']:,}" in page.text
    assert f"{content['candidates'][1]['metrics']['val_acc']:.4f}" in page.text
    assert content["lineage"]["checkpoint_digest"] in page.text


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_the_page_needs_nothing_from_elsewhere(artifacts: dict[str, Artifact], precision: str) -> None:
    data = artifacts[precision].read("report.html")
    page = Page(data)
    policies = [
        a["content"] for tag, a in page.tags if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policies == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert {tag for tag, _ in page.tags}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    )
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href", "action", "data", "poster"):
                assert (value or "").startswith("#"), (tag, value)
    assert b"url(http" not in data
    assert b"@import" not in data


def test_the_page_has_two_plots_with_their_marks(artifacts: dict[str, Artifact]) -> None:
    data = artifacts["int8"].read("report.html")
    plots = [Page(part.partition(b"</svg>")[0]) for part in data.split(b"<svg")[1:]]
    latency, trade = (plot.text for plot in plots)
    for label in ("ms for a batch of 1\n", "ms for a batch of 32\n", "float32", "int8"):
        assert label in latency
    for label in ("size, MB", "val_acc", "float32", "int8", "trained module"):
        assert label in trade
    assert b"<?xml" not in data


def test_it_says_which_rows_differ_most(artifacts: dict[str, Artifact], content: dict[str, Any]) -> None:
    worst, parity = content["worst_rows"], content["candidates"][1]["verdicts"][0]
    assert len(worst) == 5
    assert [each["difference"] for each in worst] == sorted((each["difference"] for each in worst), reverse=True)
    assert worst[0]["difference"] == pytest.approx(parity["measured"], rel=0.05)
    page = Page(artifacts["int8"].read("report.html"))
    for each in worst:
        assert {"row", "difference", "output", "element", "values", "trained", "found", "shown"} == set(each)
        own, found = each["values"]
        assert f"output{each['element']}: {own:.6g} → {found:.6g}" in page.text
        assert each["trained"] in page.text
        assert each["found"] in page.text
        [part] = each["shown"]
        assert part["name"] == "x"
        assert part["text"].endswith(", … (64 numbers)")
        assert part["text"] in page.text


def test_it_says_how_many_rows_of_each_class_are_answered_alike(
    artifacts: dict[str, Artifact], content: dict[str, Any]
) -> None:
    for candidate in content["candidates"]:
        [agreement] = candidate["agreement"]
        assert (agreement["output"], agreement["rows"]) == ("output", 256)
        assert [each["name"] for each in agreement["classes"]] == [*"0123456789"]
        assert sum(each["rows"] for each in agreement["classes"]) == 256
        assert sum(each["agreed"] for each in agreement["classes"]) == agreement["agreed"] > 230
    assert content["candidates"][0]["agreement"][0]["agreed"] == 256
    text = Page(artifacts["int8"].read("report.html")).text
    assert f"in {content['candidates'][1]['agreement'][0]['agreed']} of 256" in text


def test_the_classes_that_agree_least_come_first(content: dict[str, Any]) -> None:
    many = copy.deepcopy(content)
    classes = [{"number": i, "name": f"<{i}>", "rows": 40, "agreed": i} for i in range(40)]
    many["candidates"][1]["agreement"] = [
        {"output": "output", "rows": 1600, "agreed": 780, "classes": classes[::-1]},
    ]
    text = Page(report.to_html(many)).text
    assert "The 30 of 40 classes that agree least:" in text
    places = [text.find(f"<{i}>") for i in range(40)]
    assert places[:30] == sorted(places[:30])
    assert -1 not in places[:30]
    assert set(places[30:]) == {-1}


def test_what_is_not_known_is_left_out(content: dict[str, Any]) -> None:
    little = copy.deepcopy(content)
    little["worst_rows"] = []
    for candidate in little["candidates"]:
        candidate["agreement"] = []
    text = Page(report.to_html(little)).text
    assert "None: all answers in the largest batches are the trained module's, to the last bit." in text
    assert "Agreement by class" not in text


def test_a_row_without_a_picture_is_told_in_words(content: dict[str, Any]) -> None:
    place = (content["worst_rows"][0]["row"], "x")
    images = [a for tag, a in Page(report.to_html(content, {place: b"PNG"})).tags if tag == "img"]
    assert images == [{"src": "data:image/png;base64,UE5H", "alt": f"row {place[0]}"}]


def test_a_difference_that_is_not_finite_is_said(content: dict[str, Any]) -> None:
    odd = copy.deepcopy(content)
    odd["worst_rows"][0] |= {"difference": None, "element": [], "values": []}
    assert "not finite" in Page(report.to_html(odd)).text


HOSTILE = [
    "<script>alert(1)</script>",
    "</title><img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "--><script>alert(1)</script><!--",
    "{{ 7 * 7 }}{% raw %}",
    r"$\frac{$ and $_$",
    "准确率 \N{ROCKET}",
    "javascript:alert(1)",
    "a\x1b[31mb",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_every_text_is_escaped_wherever_it_stands(content: dict[str, Any], text: str) -> None:
    hostile = copy.deepcopy(content)
    hostile["name"] = hostile["version"] = text
    hostile["lineage"]["config"] = {text: [text]}
    hostile["lineage"]["git_commit"] = text
    hostile["exported_with"][text] = text
    hostile["recipe"]["metric"] = text
    hostile["signature"]["inputs"][0]["name"] = text
    for measured in (hostile["trained"], *hostile["candidates"]):
        measured["metrics"][text] = 0.5
    hostile["metric"]["name"] = text
    for worst in hostile["worst_rows"]:
        worst["output"] = worst["trained"] = worst["found"] = text
        worst["shown"] = [{"name": text, "text": text, "columns": columns} for columns in ({}, {text: text})]
    for candidate in hostile["candidates"]:
        candidate["agreement"][0]["output"] = candidate["agreement"][0]["classes"][0]["name"] = text
        for verdict in candidate["verdicts"]:
            verdict["message"] = verdict["gate"] = text
    row = content["worst_rows"][0]["row"]
    page = Page(report.to_html(hostile, {(row, text): b"PNG"}))
    honest = Page(report.to_html(content, {(row, "x"): b"PNG"}))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in honest.tags}
    assert {name for _, attributes in page.tags for name in attributes} == {n for _, a in honest.tags for n in a}
    assert "alert" not in str([list(attributes.items()) for _, attributes in page.tags])
    if text.isprintable():
        assert page.text.count(text) > 10


def test_the_same_measurements_give_the_same_page(content: dict[str, Any]) -> None:
    assert report.to_html(content) == report.to_html(content)
    assert report.to_json(content) == report.to_json(content)


def test_a_failed_verdict_is_marked(content: dict[str, Any]) -> None:
    failed = copy.deepcopy(content)
    failed["candidates"][0]["verdicts"][0]["passed"] = False
    marked = [a for tag, a in Page(report.to_html(failed)).tags if tag == "td" and a.get("class") == "verdict failed"]
    assert len(marked) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_json_is_valid_whatever_a_module_logs(content: dict[str, Any], value: float) -> None:
    odd = copy.deepcopy(content)
    odd["trained"]["metrics"]["val_auc"] = value

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    assert json.loads(report.to_json(odd), parse_constant=refuse)["trained"]["metrics"]["val_auc"] is None
    assert report.to_html(odd)


def test_pages_may_be_made_at_once(content: dict[str, Any]) -> None:
    """A program may export from several threads; plots share no state."""
    pages: list[bytes] = []
    threads = [threading.Thread(target=lambda: pages.append(report.to_html(content))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [Page(page).text for page in pages] == [Page(report.to_html(content)).text] * 3
