"""`shipline inspect`: what it shows of versions, where two differ, and what it refuses to read."""

from __future__ import annotations

import json
from pathlib import Path

import artifacts
import fsspec
import pytest
from command_line import Run, files
from helpers import S3_SECRET, free_port

from shipline.artifact import CHANNELS, open_model
from shipline.checkpoint import CheckpointManifest
from shipline.store import Publication, open_store, write_pointers
from shipline.store.commit import MANIFEST


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
