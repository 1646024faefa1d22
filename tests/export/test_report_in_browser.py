"""The report as a real browser shows and prints it. Without Chromium these are skipped: apt-get install chromium."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from shipline.artifact import Artifact

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no Chromium here")

# Where each plot is, what it shows, and whether the page is wider than the window.
LOOK = """
<script>
addEventListener("load", () => {
  const plots = [...document.querySelectorAll("svg")].map(plot => {
    let title = plot;
    while (title && title.tagName !== "H2") title = title.previousElementSibling || title.parentElement;
    const place = plot.getBoundingClientRect();
    const parts = plot.querySelectorAll("use").length;
    return {title: title?.innerText, width: place.width, height: place.height, parts};
  });
  const wide = document.documentElement.scrollWidth - innerWidth;
  const loaded = performance.getEntriesByType("resource").map(each => each.name);
  document.body.innerHTML = "";
  document.body.innerText = JSON.stringify({plots, wide, loaded});
});
</script>
"""


@pytest.fixture(scope="module")
def page(artifacts: dict[str, Artifact]) -> str:
    return artifacts["int8"].read("report.html").decode()


def browse(page: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page as a file, and do what the options say."""
    (file := folder / "report.html").write_text(page)
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        f"--user-data-dir={folder}/profile", "--virtual-time-budget=5000", *options, file.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


def complaints(page: str, folder: Path) -> list[str]:
    """What the browser's console says."""
    return [line for line in browse(page, folder, "--dump-dom").stderr.splitlines() if ":CONSOLE" in line]


def looked_at(page: str, folder: Path, width: int) -> dict[str, Any]:
    """What a script finds in the page, which must be let in for that."""
    open_page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page).replace(
        "</body>", f"{LOOK}</body>"
    )
    body = re.search(
        r"<body>(.*?)</body>", browse(open_page, folder, "--dump-dom", f"--window-size={width},900").stdout, re.S
    )
    assert body is not None
    found: dict[str, Any] = json.loads(html.unescape(body[1]))
    return found


def test_the_console_has_nothing_to_say(page: str, tmp_path: Path) -> None:
    assert complaints(page, tmp_path) == []


def test_it_would_say_if_the_page_asked_others_for_something(page: str, tmp_path: Path) -> None:
    """The page's own policy forbids it."""
    asking = page.replace("</body>", '<img src="http://127.0.0.1:9/x.png"></body>')
    assert any("Content Security Policy" in line for line in complaints(asking, tmp_path))


def test_the_plots_are_there_to_see(page: str, tmp_path: Path) -> None:
    found = looked_at(page, tmp_path, 1200)
    plots = {plot["title"]: plot for plot in found["plots"]}
    assert {"Latency", "val_acc against throughput and size"} <= plots.keys()
    for plot in plots.values():
        assert plot["width"] > 300
        assert plot["height"] > 80
        assert plot["parts"] > 5, "an empty frame"
    assert found["loaded"] == []


@pytest.mark.parametrize("width", [1200, 500])
def test_it_is_no_wider_than_the_window(page: str, tmp_path: Path, width: int) -> None:
    assert looked_at(page, tmp_path, width)["wide"] <= 0


def test_it_prints(page: str, tmp_path: Path) -> None:
    def printed(content: str, name: str) -> bytes:
        browse(content, tmp_path, f"--print-to-pdf={tmp_path / name}")
        return (tmp_path / name).read_bytes()

    paper, empty = printed(page, "report.pdf"), printed("<body></body>", "empty.pdf")
    pages = re.compile(rb"/Type\s*/Page\b(?!s)")
    assert paper.startswith(b"%PDF")
    assert len(pages.findall(empty)) == 1
    assert len(pages.findall(paper)) >= 2
    assert len(paper) > 10 * len(empty)
