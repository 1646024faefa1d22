"""The whole line on real data: train with two Ray workers, export, prove, serve, send a PNG, show what came out.

make demo
"""

import json
import time
from pathlib import Path

from digits import DigitsData
from rich.console import Console
from rich.table import Table

import shipline as sl
from shipline.commands import up
from shipline.config import parse, read_sources
from shipline.serve.server import BackgroundServer

HERE = Path(__file__).parent
console = Console(highlight=False, soft_wrap=True)


def main() -> None:
    began = time.monotonic()
    sources = read_sources([], str(HERE / "shipline.yaml"))
    parser = up.up_parser(sources)
    settings = parse(parser, sources)

    console.rule("1  train, on two Ray workers; export; prove")
    artifact = up.publish(parser, settings, sources)
    report = json.loads(artifact.read("report.json"))

    console.rule("2  serve, and send a PNG")
    with BackgroundServer("models") as server, sl.Client(server.url) as client:
        png, digit = a_scan()
        answer = client.predict("digits", png)
        console.print(f"A scan of a {digit}, {len(png)} bytes of PNG, sent to {server.url}/models/digits/predict")
        console.print(f"answer: {answer['label']}  {answer['score']:.3f}   (version {answer['model_version']})")

    console.rule("3  what was proved")
    console.print(summary(report))
    manifest = artifact.manifest
    console.print(f"Report: {artifact}/{manifest.files['report.html'].key}")
    console.print("Next:   .venv/bin/shipline serve models --port 8000")
    console.print(f"The whole took {time.monotonic() - began:.0f} s.")


def a_scan() -> tuple[bytes, int]:
    """A scan that the module was not trained on, and the digit on it."""
    data = DigitsData()
    data.setup("validate")
    return data.val_pngs[0], int(data.val[0][1])


def summary(report: dict) -> Table:
    """One row for the trained module and each graph made of it."""
    table = Table(title=f"digits version {report['version']}: {report['precision']} is published", title_justify="left")
    metric = report["metric"]["name"]
    batches = [taken["batch"] for taken in report["candidates"][0]["latency"]]
    for column in ("", metric, "bytes", *(f"ms, batch {batch}" for batch in batches), "parity", "passed"):
        table.add_column(column, justify="left" if column in ("", "passed") else "right")
    table.add_row("module", f"{report['trained']['metrics'][metric]:.4f}", f"{report['trained']['bytes']:,}")
    for candidate in report["candidates"]:
        verdicts = {verdict["gate"]: verdict for verdict in candidate["verdicts"]}
        table.add_row(
            candidate["precision"],
            f"{candidate['metrics'][metric]:.4f}",
            f"{candidate['bytes']:,}",
            *(f"{taken['median_ms']:.3f} ({taken['speedup']:.1f}x)" for taken in candidate["latency"]),
            f"{verdicts['parity']['measured']:.1e}",
            f"{sum(verdict['passed'] for verdict in verdicts.values())} of {len(verdicts)}",
        )
    return table


if __name__ == "__main__":
    main()
