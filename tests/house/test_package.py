"""The wheel holds what the source holds, extras keep heavy packages apart, the public surface grows on purpose."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from helpers import ROOT

import shipline

SURFACE = {
    "AsyncClient", "Callback", "Client", "DataModule", "EarlyStopping", "Limits", "ModelCheckpoint", "Module",
    "Processing", "Recipe", "ServerSettings", "ShiplineError", "Signature", "TensorSpec", "Trainer", "__version__",
    "export", "huggingface", "seed_everything", "serve",
}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the source."""
    where = tmp_path_factory.mktemp("wheel")
    copy = where / "source"
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in tracked:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(where), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(where.glob("*.whl"))


def test_the_wheel_holds_every_module(wheel: Path) -> None:
    """A subpackage that `packages` does not name is in an editable install, and missing from the wheel."""
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("shipline/")}
    expected = set()
    for folder, package in (
        ("shipline", "shipline"), ("train", "shipline/train"),
        ("export", "shipline/export"), ("serve", "shipline/serve"),
    ):  # fmt: skip
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and path.suffix in (".py", ".pyi", ".html", ".typed", ".proto", ".binpb"):
                expected.add(f"{package}/{path.relative_to(ROOT / folder)}")
    assert held == expected


def test_the_public_surface() -> None:
    """A change here is a change for users: announce it in the changelog."""
    assert set(shipline.__all__) == SURFACE
    for name in SURFACE:
        assert getattr(shipline, name) is not None
    assert set(dir(shipline)) >= SURFACE
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = shipline.Nonsense  # type: ignore[attr-defined]


def test_importing_shipline_is_light() -> None:
    program = "import shipline, sys, json; shipline.Client; shipline.Processing; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    assert not loaded & {"torch", "ray", "onnx", "onnxruntime", "fastapi", "s3fs", "matplotlib"}


def test_a_serving_install_has_neither_torch_nor_ray() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {
        item.partition(">")[0].partition("[")[0]
        for item in (*project["dependencies"], *project["optional-dependencies"]["serve"])
    }
    assert not names & {"torch", "ray", "onnx", "onnxscript", "matplotlib", "scikit-learn"}
    assert {"onnxruntime", "fastapi", "uvicorn"} <= names


def test_every_dependency_is_pinned() -> None:
    """`pip install -c constraints.txt` chooses nothing by itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    pinned = {
        line.partition("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    optional = {"gcsfs", "adlfs"}  # file systems that no test here needs
    for item in wanted:
        name = item.partition(">")[0].partition("[")[0].partition(";")[0].strip().lower().replace("_", "-")
        assert name in pinned | optional | {"shipline"}, name


def test_no_word_of_a_machine_or_a_registry() -> None:
    """The repository speaks of the project alone."""
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    here = str(Path.home()) + "/"
    for name in tracked:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yaml", ".html", "") and path.is_file():
            text = path.read_text(errors="ignore")
            assert "index-url" not in text or name == "tests/house/test_package.py", name
            assert here not in text, name
