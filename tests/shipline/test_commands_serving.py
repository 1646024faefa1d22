"""The commands around serving: serve, inspect and predict."""

from __future__ import annotations

import io
import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import artifacts
import fsspec
import pytest
from command_line import Outcome, Run, files, in_process
from helpers import S3_SECRET, free_port
from web_double import Asked, Say, double

from shipline.artifact import CHANNELS, open_model
from shipline.checkpoint import CheckpointManifest
from shipline.processing import Columns, Labels, Processing
from shipline.serve.server import BackgroundServer
from shipline.store import Publication, open_store, write_pointers
from shipline.store.commit import MANIFEST

UNREACHABLE = "http://127.0.0.1:1"

# ---- serve -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "What to serve? Give a URL first, such as: shipline serve s3://bucket/models --port 8000"),
        (["models", "--prot", "1"], "unknown option --prot. Did you mean --port?"),
        (["models", "--port", "http"], "--port: expected int, got 'http'."),
        (["models", "more"], "there is no place for 'more': options begin with --."),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_a_mistake_in_a_serve_is_named(run: Run, arguments: list[str], message: str) -> None:
    run("serve", *arguments).refused(2, message)


@pytest.mark.usefixtures("unchanged")
def test_a_port_that_is_taken_or_does_not_exist_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        in_process("serve", "models", "--port", str(port)).refused(
            1, f"Cannot listen on 127.0.0.1:{port}: Address already in use. Stop what uses the port, or choose another."
        )
    in_process("serve", "models", "--port", "65536").refused(2, "port is 65536; choose one from 0 to 65535.")


@pytest.mark.usefixtures("unchanged")
def test_serving_nothing_ends() -> None:
    outcome = in_process("serve", "nothing", "--port", "0")
    assert outcome.code == 1
    assert outcome.err.endswith(
        "shipline serve: No artifact below nothing. Give a repository, a model or a version; "
        "`shipline export` makes one.\n"
    )
    assert "Traceback" not in outcome.err


def test_serving_a_damaged_artifact_ends(here: Path) -> None:
    artifact = artifacts.publish("models/m", artifacts.linear())
    path = Path(artifact.url) / artifact.manifest.files["model.onnx"].key
    path.write_bytes(path.read_bytes()[:-1])
    outcome = in_process("serve", "models", "--port", "0")
    assert outcome.code == 1
    assert "its manifest says" in outcome.err.splitlines()[-1]
    assert "do not use it, publish again" in outcome.err.splitlines()[-1]


def test_an_unreachable_store_is_said_without_the_credentials(
    s3: str, run: Run, monkeypatch: pytest.MonkeyPatch, here: Path
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    fsspec.filesystem("s3").clear_instance_cache()
    outcome = run("inspect", f"{s3}/models")
    assert outcome.code == 1
    assert f"Cannot read {s3}/models/{MANIFEST}: " in outcome.err
    assert "Check the network, the end point and the credentials." in outcome.err.splitlines()[-1]
    assert S3_SECRET not in outcome.out + outcome.err
    assert files(here) == {}


# ---- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_shows_versions_channels_and_what_is_stable(run: Run, here: Path) -> None:
    artifacts.publish("models/m", artifacts.linear())
    artifacts.publish("models/m", artifacts.linear(), version="2", precision="int8", metrics={"val_acc": 0.975})
    open_model("models/m").point("stable", "1")
    open_model("models/m").point("canary", "2")
    before = files(here)
    outcome = run("inspect", "models/m")
    assert (outcome.code, outcome.err) == (0, "")
    rows = {line.split("│")[1].strip(): line for line in outcome.out.splitlines() if line.count("│") == 7}
    assert "stable 100 %" in rows["1"]
    assert "val_acc 0.98" in rows["1"]
    assert "canary 100 %" in rows["2"]
    assert "int8" in rows["2"]
    for text in (
        "m version 1",
        "x: float32[-1, 4] -> y: float32[-1, 3]",
        "passed: equal enough",
        "c0ffee",
        "model.onnx",
    ):
        assert text in outcome.out
    assert "m version 2" not in outcome.out
    assert files(here) == before


def test_inspect_shows_one_version_or_every_model(run: Run, here: Path) -> None:
    for name in ("a", "b"):
        for version in ("1", "2"):
            artifacts.publish(f"models/{name}", artifacts.linear(), version=version)
    one = run("inspect", "models/a/1").out
    assert "a version 1" in one
    assert "channels" not in one
    both = run("inspect", "models/").out
    assert "a version 2" in both
    assert "b version 2" in both
    assert "version 1" not in both


def test_inspect_shows_where_two_versions_differ(run: Run, here: Path) -> None:
    verdict = {"gate": "parity", "passed": True, "measured": 0.004, "limit": 0.05, "message": "close"}
    artifacts.publish("models/m", artifacts.linear())
    artifacts.publish(
        "models/m", artifacts.linear(), version="2", precision="int8", metrics={"val_acc": 0.975}, verdicts=[verdict]
    )
    outcome = run("inspect", "--diff", "models/m/1", "models/m/2")
    assert (outcome.code, outcome.err) == (0, "")
    rows = {row[0]: row[1:] for row in cells(outcome.out)}
    assert rows["precision"] == ["float32", "int8", ""]
    assert rows["metrics.val_acc"] == ["0.98", "0.975", "-0.005"]
    assert rows["verdicts.parity"] == ["1e-07", "0.004", "+0.0039999"]
    assert not {"name", "signature", "lineage.seed", "bytes.model.onnx"} & set(rows)
    assert run("inspect", "models/m/2", "--diff", "models/m/1").out == outcome.out
    same = run("inspect", "--diff", "models/m/1", "models/m/1").out
    assert "m version 1 and m version 1 differ in nothing but their digests." in same


def test_inspect_compares_how_many_rows_of_each_class_are_answered_alike(run: Run, here: Path) -> None:
    for version, agreed in (("1", (10, 20)), ("2", (10, 15))):
        classes = [{"number": i, "name": "ab"[i], "rows": 10 + 10 * i, "agreed": agreed[i]} for i in range(2)]
        agreement = {"output": "y", "rows": 30, "agreed": sum(agreed), "classes": classes}
        candidates = [{"chosen": False, "agreement": []}, {"chosen": True, "agreement": [agreement]}]
        report = json.dumps({"candidates": candidates}).encode()
        artifacts.publish("models/m", artifacts.linear(), version=version, files={"report.json": report})
    rows = {row[0]: row[1:] for row in cells(run("inspect", "--diff", "models/m/1", "models/m/2").out)}
    assert rows["agreement.y.all"] == ["1", "0.833333", "-0.166667"]
    assert rows["agreement.y.class b"] == ["1", "0.75", "-0.25"]
    assert "agreement.y.class a" not in rows


def test_inspect_compares_what_has_no_such_report(run: Run, here: Path) -> None:
    for version, report in (("1", b"{}"), ("2", b'{"candidates": [{"chosen": true}]}')):
        artifacts.publish("models/m", artifacts.linear(), version=version, files={"report.json": report})
    rows = {row[0] for row in cells(run("inspect", "--diff", "models/m/1", "models/m/2").out)}
    assert not any(row.startswith("agreement") for row in rows)


def test_inspect_compares_versions_and_no_repositories(run: Run, here: Path) -> None:
    for name in ("a", "b"):
        artifacts.publish(f"models/{name}", artifacts.linear())
    run("inspect", "--diff", "models", "models/a").refused(2, "models holds 2 models; give one of them, or a version")
    run("inspect", "--diff", "models/a", "models/c").refused(1, "No artifact below models/c")


def cells(out: str) -> list[list[str]]:
    """The cells of a printed table."""
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in out.splitlines() if line[:1] == "│"]


def test_inspect_shows_text_of_an_artifact_as_it_is(run: Run, here: Path) -> None:
    """Square brackets are markup to rich, which raises where they are not closed."""
    verdict = {"gate": "[/parity]", "passed": False, "measured": None, "limit": None, "message": "[bold]no[/bold] [x"}
    artifacts.publish("models/m", artifacts.linear(), verdicts=[verdict])
    outcome = run("inspect", "models/m")
    assert outcome.code == 0
    assert "[/parity]" in outcome.out
    assert "failed: [bold]no[/bold] [x" in outcome.out


def test_inspect_lets_no_text_of_an_artifact_move_the_cursor(run: Run, here: Path) -> None:
    """Escape sequences, and characters that turn the direction of a line, could hide what is shown."""
    verdict = {"gate": "parity", "passed": False, "measured": None, "limit": None, "message": "\x1b[2Jfailed\u202e é"}
    artifacts.publish("models/m", artifacts.linear(), verdicts=[verdict], metrics={"a\x1b[1m": 1.0})
    outcome = run("inspect", "models/m")
    assert outcome.code == 0
    assert "failed: \\x1b[2Jfailed\\u202e é" in outcome.out
    assert "a\\x1b[1m 1" in outcome.out
    assert "\x1b" not in outcome.out


def test_inspect_reads_channels_written_by_hand(run: Run, here: Path) -> None:
    artifacts.publish("models/m", artifacts.linear())
    write_pointers(open_store("models/m"), CHANNELS, {"stable": {"version": "1"}})
    assert "stable 100 %" in run("inspect", "models/m").out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "What to inspect? Give a URL first"),
        (["nothing"], 1, "No artifact below nothing."),
        (["train.yaml"], 1, "No artifact below train.yaml."),
        ([""], 2, "The URL is empty"),
        (["nonsense://x"], 2, "Protocol not known: nonsense"),
        (["gs://bucket/models"], 2, "pip install 'shipline[gcs]'"),
        (["models", "--verbose"], 2, "unknown option --verbose."),
    ],
)
@pytest.mark.usefixtures("unchanged")
def test_a_mistake_in_an_inspect_is_named(run: Run, arguments: list[str], code: int, message: str) -> None:
    run("inspect", *arguments).refused(code, message)


def test_inspecting_what_is_damaged_or_something_else_says_so(run: Run, here: Path) -> None:
    with Publication(open_store("run/checkpoints/a")) as publication:
        publication.commit(CheckpointManifest(module="m.M", epoch=0, global_step=1))
    run("inspect", "run/checkpoints/a").refused(1, "is no ArtifactManifest: ")
    artifacts.publish("models/m", artifacts.linear())
    (here / "models/m/1" / MANIFEST).write_bytes(b"{}")
    run("inspect", "models").refused(1, f"models/m/1/{MANIFEST} is no manifest of Shipline, or it is damaged.")


# ---- predict ---------------------------------------------------------------------------------------------------------


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
