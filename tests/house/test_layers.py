"""Who may import whom, read from the source: imports inside functions count, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import ROOT

FOLDERS = {"shipline": "shipline", "train": "shipline.train", "export": "shipline.export", "serve": "shipline.serve"}
PARTS = ("shipline.train", "shipline.export", "shipline.serve")
ML = ("torch", "ray", "onnx", "onnxruntime", "onnxscript", "openvino")
WEB = ("fastapi", "starlette", "uvicorn")

# package -> what none of its modules may import, but for the modules named with it
FORBIDDEN: dict[str, dict[str, tuple[str, ...]]] = {
    "shipline": {
        **dict.fromkeys((*ML, *WEB), ()),
        "onnxruntime": ("shipline.backends.onnx", "shipline.backends.onnx_gpu", "shipline.backends.examination"),
        "openvino": ("shipline.backends.openvino",),
        "torch": tuple(f"shipline.backends.{name}" for name in ("aotinductor", "exported", "torch", "torchscript")),
        **dict.fromkeys(PARTS, ("shipline", "shipline.compose", "shipline.commands")),
    },
    "train": {
        **dict.fromkeys(
            ("onnx", "onnxruntime", "onnxscript", "openvino", *WEB, "shipline.export", "shipline.serve"), ()
        ),
        "ray": ("shipline.train.launch", "shipline.train.submission"),
    },
    "export": dict.fromkeys(("ray", "openvino", *WEB, "shipline.train", "shipline.serve"), ()),
    "serve": {
        **dict.fromkeys((*ML, "shipline.train", "shipline.export"), ()),
        **dict.fromkeys(("grpc", "google"), ("shipline.serve.grpc",)),
        "opentelemetry": ("shipline.serve.tracing",),
    },
}
# The command line and what it is made of may know the parts, but only inside the function that runs a command.
LAZY = ("shipline.compose", "shipline.commands")


def modules(folder: str) -> Iterator[tuple[str, ast.Module]]:
    """The modules below a folder: their import names and syntax trees."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        name = ".".join((FOLDERS[folder], *parts)).removesuffix(".__init__")
        yield name, ast.parse(path.read_text())


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that the code imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide who imports whom"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def type_checking_only(tree: ast.Module) -> ast.Module:
    """The tree without what stands under `if TYPE_CHECKING`."""
    body = [
        node
        for node in tree.body
        if not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
    ]
    return ast.Module(body=body, type_ignores=[])


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_stay_within_the_layers(folder: str) -> None:
    broken = [
        f"{module} imports {name}"
        for module, tree in modules(folder)
        for name in imported(tree)
        for package, allowed in FORBIDDEN[folder].items()
        if is_below(name, package)
        and not any(module == a or (is_below(module, a) and a != "shipline") for a in allowed)
    ]
    assert broken == []


def test_the_command_line_knows_the_parts_only_inside_functions() -> None:
    for module, tree in modules("shipline"):
        if not any(is_below(module, lazy) for lazy in LAZY):
            continue
        top_level = [node for node in type_checking_only(tree).body if isinstance(node, ast.Import | ast.ImportFrom)]
        for node in top_level:
            for name in imported(ast.Module(body=[node], type_ignores=[])):
                assert not any(is_below(name, part) for part in PARTS), f"{module} imports {name} when it is imported"


def plain(call: ast.Call) -> bool:
    """Whether it is a `torch.load` that makes tensors and plain data alone."""
    return ast.unparse(call.func) == "torch.load" and "weights_only=True" in map(ast.unparse, call.keywords)


def test_nothing_unpickles() -> None:
    """No deserialiser that can run code is reachable: not from the network, not from a file."""
    for folder in FOLDERS:
        for module, tree in modules(folder):
            if is_below(module, "shipline.train.launch"):
                continue  # driver and workers of one run speak cloudpickle, over a cluster of their own
            for name in imported(tree):
                assert name.partition(".")[0] not in ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"), (
                    module
                )
            calls = {
                ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and not plain(node)
            }
            assert not calls & {"torch.load", "eval", "exec", "yaml.load", "np.load", "numpy.load"}, module


@pytest.mark.parametrize("folder", ["train", "export", "serve"])
def test_a_bare_import_is_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the repository's root, `import train` would find the folder and make a second copy of every module."""
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=f"This package is shipline.{folder}"):
        __import__(folder)


def test_no_file_is_too_long() -> None:
    """A file that passes 400 lines lacks a concept."""
    for folder in FOLDERS:
        for path in Path(ROOT / folder).rglob("*.py"):
            assert len(path.read_text().splitlines()) <= 400, path
