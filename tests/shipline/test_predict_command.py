"""`shipline predict`: what it takes, asks a server for and prints, and mistakes that it names."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import artifacts
import pytest
from command_line import Outcome, Run, files
from web_double import Asked, Say, double

from shipline.processing import Columns, Labels, Processing
from shipline.serve.server import BackgroundServer

UNREACHABLE = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server with a model of pictures, one of rows, and one that may answer NaN."""
    root = str(tmp_path_factory.mktemp("models"))
    for name, (graph, raw) in {"picture": artifacts.picture(), "table": artifacts.table()}.items():
        artifacts.publish(f"{root}/{name}", graph, raw=raw)
    steps = Processing([Columns(numeric=("a", "b"))], [Labels(names=("low", "high"))])
    artifacts.publish(f"{root}/log", artifacts.logarithm(), raw=artifacts.Raw(steps, [{"a": 1, "b": 2}]))
    with BackgroundServer(root) as background:
        yield background.url


def expected(graph: artifacts.Graph, raw: artifacts.Raw, item: Any) -> str:
    """What is printed for an item."""
    answer = artifacts.answers_of(graph, raw, [item])[0]
    return f"{answer['label']}  {answer['score']:.3f}\n"


def test_predict_prints_label_and_score_of_a_picture(
    run: Run, here: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "seven.png").write_bytes(artifacts.png(7))
    answer = expected(*artifacts.picture(), artifacts.png(7))
    assert run("predict", server, "picture", "seven.png") == Outcome(0, answer, "")
    assert run("predict", server, "picture", "seven.png", "--version", "1") == Outcome(0, answer, "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(artifacts.png(7))))
    assert run("predict", server, "picture", "-") == Outcome(0, answer, "")


def test_predict_takes_a_row_from_anywhere(run: Run, here: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"age": 1.5, "height": 2, "colour": "red"}
    answer = Outcome(0, expected(*artifacts.table(), row), "")
    (here / "row.json").write_text(json.dumps(row))
    assert run("predict", server, "table", "row.json") == answer
    assert run("predict", server, "table", json.dumps(row)) == answer
    assert run("predict", server, "table", json.dumps(row) + " " * 5000) == answer  # longer than a path can be
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(row).encode())))
    assert run("predict", server, "table", "-") == answer


def test_predict_prints_json_where_there_is_no_score(run: Run, server: str) -> None:
    outcome = run("predict", server, "log", '{"a": -1, "b": -1}')
    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out) == {"label": "low", "score": None, "scores": {"low": None, "high": None}}


def test_predict_answers_many_in_their_order(
    run: Run, here: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"age": age, "height": 2, "colour": "red"} for age in (1.5, 30, 60)]
    answers = [expected(*artifacts.table(), row) for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (here / "rows.jsonl").write_text(lines + "\n")
    (here / "row.json").write_text(json.dumps(rows[0]))
    outcome = run("predict", server, "table", "row.json", "rows.jsonl", json.dumps(rows[1]))
    names = ["row.json", "rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3", json.dumps(rows[1])]
    shown = [answers[0], *answers, answers[1]]
    assert outcome == Outcome(0, "".join(f"{n}: {a}" for n, a in zip(names, shown, strict=True)), "")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    outcome = run("predict", server, "table", "-", "--output", "out.jsonl")
    assert outcome == Outcome(0, "", "")
    written = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [record["input"] for record in written] == ["-:1", "-:2", "-:3"]
    assert [f"{record['label']}  {record['score']:.3f}\n" for record in written] == answers
    assert {record["model_version"] for record in written} == {"1"}


def test_predict_takes_a_directory_of_pictures(run: Run, here: Path, server: str) -> None:
    (here / "pictures" / "more").mkdir(parents=True)
    for name, seed in (("b.PNG", 1), ("a.png", 2)):
        (here / "pictures" / name).write_bytes(artifacts.png(seed))
    (here / "pictures" / "notes.txt").write_text("no picture")
    shown = [expected(*artifacts.picture(), artifacts.png(seed)) for seed in (2, 1)]
    outcome = run("predict", server, "picture", "pictures")
    assert outcome == Outcome(0, f"pictures/a.png: {shown[0]}pictures/b.PNG: {shown[1]}", "")


def test_one_that_fails_leaves_the_others_answered(run: Run, here: Path, server: str) -> None:
    row = {"age": 1.5, "height": 2, "colour": "red"}
    (here / "rows.jsonl").write_text("\n".join(map(json.dumps, [row, {"agee": 1}, row])))
    outcome = run("predict", server, "table", "rows.jsonl")
    assert (outcome.code, outcome.err) == (1, "shipline predict: 1 of 3 inputs failed; the others were answered.\n")
    first, second, third = outcome.out.splitlines(keepends=True)
    assert first == f"rows.jsonl:1: {expected(*artifacts.table(), row)}"
    assert "rows.jsonl:2: failed: " in second
    assert "Unknown column 'agee'" in second
    assert third == f"rows.jsonl:3: {expected(*artifacts.table(), row)}"
    outcome = run("predict", server, "table", "rows.jsonl", "--output", "out.jsonl")
    outcome.refused(1, "1 of 3 inputs failed")
    written = [json.loads(line) for line in (here / "out.jsonl").read_text().splitlines()]
    assert [("label" in record, "error" in record) for record in written] == [
        (True, False),
        (False, True),
        (True, False),
    ]


def test_a_damaged_row_is_named_before_anything_is_asked(run: Run, here: Path) -> None:
    (here / "rows.jsonl").write_text('{"age": 1}\n\n{"age"\n')
    run("predict", UNREACHABLE, "table", "rows.jsonl").refused(2, "Line 3 of 'rows.jsonl' is no JSON value: ")


def test_predict_sends_the_key_of_a_file(run: Run, here: Path) -> None:
    (here / "key").write_text("key-1\n")
    keys = []

    def answer(asked: Asked) -> Say:
        keys.append(asked.headers.get("authorization"))
        return 200, {}, b'{"output": 7}'

    with double(answer) as url:
        outcome = run("predict", url, "m", "7", "--api-key-file", "key")
    assert (outcome.out, keys) == ('{"output": 7}\n', ["Bearer key-1"])


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        ("digits", "7", "answered 404: There is no such model here."),
        ("../admin", "7", "answered 40"),
        ("table", '{"agee": 1}', "answered 400: Unknown column 'agee'. Did you mean 'age'?"),
        (
            "table",
            '{"age": true, "height": 1, "colour": "red"}',
            "answered 400: Column 'age' must be a number; got True.",
        ),
        ("picture", "no.png", "answered 400: The body is no readable image"),
        ("picture", "7", "answered 415: Send the bytes of an image file"),
        ("table", "no.png", "answered 415: Send application/json."),
    ],
)
def test_what_the_server_refuses_is_passed_on(
    run: Run, here: Path, server: str, model: str, given: str, message: str
) -> None:
    (here / "no.png").write_bytes(b"no png")
    run("predict", server, model, given).refused(1, f"shipline predict: {server} {message}")
    assert set(files(here)) == {"no.png"}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "the following arguments are required: url, model, input"),
        ([UNREACHABLE, "digits"], 2, "the following arguments are required: input"),
        ([UNREACHABLE, "digits", "seven.png"], 2, "'seven.png' is neither a file nor a JSON value. Check the path."),
        ([UNREACHABLE, "digits", ""], 2, "'' is neither a file nor a JSON value."),
        ([UNREACHABLE, "digits", "."], 2, "'.' is a directory without pictures (.bmp, .gif,"),
        ([UNREACHABLE, "digits", "7", "--api-key-file", "none"], 2, "Cannot read the key in 'none': No such file"),
        ([UNREACHABLE, "digits", "7", "--timeout", "0"], 2, "timeout is 0.0; it must be more than 0 seconds."),
        ([UNREACHABLE, "digits", "7", "--output", "no/out.jsonl"], 2, "Cannot write 'no/out.jsonl': No such file"),
        ([UNREACHABLE, "digits", '{"age": 4'], 2, "is neither a file nor a JSON value."),
        ([UNREACHABLE, "digits", "x" * 5000], 2, "is neither a file nor a JSON value."),
        ([UNREACHABLE, "digits", "a\0b"], 2, "is neither a file nor a JSON value."),
        ([UNREACHABLE, "digits", "NaN"], 1, "The input is no JSON value"),
        ([UNREACHABLE, "digits", '{"age": 1e999}'], 1, "The input is no JSON value"),
        ([UNREACHABLE, "digits", "7"], 1, "Cannot reach http://127.0.0.1:1: "),
        (["127.0.0.1:1", "digits", "7"], 1, "Cannot reach 127.0.0.1:1: Request URL is missing an 'http://'"),
        (["http://127.0.0.1:http", "digits", "7"], 2, "'http://127.0.0.1:http' is no URL of a server: Invalid port"),
        ([UNREACHABLE, "digits", "7", "--verson", "1"], 2, "unknown option --verson. Did you mean --version?"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unchanged")
def test_a_mistake_in_a_predict_is_named(run: Run, arguments: list[str], code: int, message: str) -> None:
    outcome = run("predict", *arguments)
    outcome.refused(code, message)
    assert len(outcome.err) < 400
