"""Plugins: found by name, imported late, added by other packages, explained where they are missing."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib

import pytest
from helpers import ROOT, Install

from shipline import plugins
from shipline.errors import MissingExtraError, UnknownNameError
from shipline.plugins import BUILT_IN, EXTRAS, load, load_target, missing_extra
from shipline.processing import Processing, Resize


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, known in BUILT_IN.items() for name in known])
def test_everything_built_in_loads(kind: str, name: str) -> None:
    found = load(kind, name)
    assert callable(found)
    assert f"{found.__module__}:{found.__name__}" == BUILT_IN[kind][name]


def test_an_unknown_name_suggests_the_nearest_and_lists_the_known() -> None:
    with pytest.raises(UnknownNameError) as caught:
        load("backend", "onnxruntme")
    assert str(caught.value) == (
        "Unknown backend 'onnxruntme'. Did you mean 'onnxruntime'? "
        "Known: aotinductor, onnxruntime, onnxruntime-cuda, onnxruntime-tensorrt, openvino, torch-export, torchscript."
    )


def test_an_unknown_kind_has_no_names() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown spell 'fireball'\. Known: none\."):
        load("spell", "fireball")


STEP = """
from typing import Any, ClassVar
from shipline.processing import Step

class Double(Step):
    NAME: ClassVar[str] = "double"

    def __call__(self, value: Any) -> Any:
        return value * 2
"""


def test_an_entry_point_adds_a_step(install: Install) -> None:
    install("[shipline.step]\ndouble = ext_plugins:Double\n", STEP)
    assert "ext_plugins" not in sys.modules
    processing = Processing.from_json(b'{"schema_version": 1, "before": [{"step": "double"}], "after": []}')
    assert processing.prepare(21) == 42
    with pytest.raises(UnknownNameError, match=r"Did you mean 'double'\? Known: columns, decode_image, double, "):
        load("step", "duoble")


def test_an_entry_point_never_replaces_what_is_built_in(install: Install) -> None:
    install("[shipline.step]\nresize = ext_plugins:Double\n", STEP)
    assert load("step", "resize") is Resize


def test_an_entry_point_is_only_for_its_kind(install: Install) -> None:
    install("[shipline.backend]\ndouble = ext_plugins:Double\n", STEP)
    with pytest.raises(UnknownNameError, match="Unknown step 'double'"):
        load("step", "double")


def test_a_plugin_that_lacks_an_extra_says_what_to_install(install: Install) -> None:
    install("[shipline.step]\ndouble = ext_plugins:Double\n", "import gcsfs.core\n")
    with pytest.raises(MissingExtraError) as caught:
        load("step", "double")
    assert str(caught.value) == "This needs 'gcsfs', which is not installed. Run: pip install 'shipline[gcs]'"


def test_a_plugin_that_lacks_something_else_says_so_itself(install: Install) -> None:
    install("[shipline.step]\ndouble = ext_plugins:Double\n", "import no_such_package\n")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'") as caught:
        load("step", "double")
    assert not isinstance(caught.value, MissingExtraError)


def test_a_target_is_an_attribute_or_a_module() -> None:
    assert load_target("shipline.processing:Resize") is Resize
    assert load_target("shipline.plugins") is plugins


@pytest.mark.parametrize("name", ["Trainer", "train"])
def test_a_public_name_that_lacks_an_extra_says_what_to_install(name: str) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import shipline, shipline.errors\n"
        f"try: shipline.{name}\n"
        "except shipline.errors.MissingExtraError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "This needs 'torch', which is not installed. Run: pip install 'shipline[train]'\n", (
        done.stderr
    )


@pytest.mark.parametrize("package", EXTRAS)
def test_each_extra_brings_what_it_is_named_for(package: str) -> None:
    error = missing_extra(ModuleNotFoundError(f"No module named '{package}.sub'", name=f"{package}.sub"))
    assert f"pip install 'shipline[{EXTRAS[package]}]'" in str(error)
    assert package in brought(EXTRAS[package])


def test_every_optional_package_is_known_to_an_extra() -> None:
    """A package that an extra brings, and that is not listed, gives a bare 'No module named' when it is missing."""
    extras = set(optional()) - {"all", "dev"}
    assert {package for extra in extras for package in brought(extra)} <= set(EXTRAS)


def optional() -> dict[str, list[str]]:
    found: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    return found


_IMPORTED_AS = {
    "grpcio": "grpc",
    "mlflow-skinny": "mlflow",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "protobuf": "google",
    "pysimdjson": "simdjson",
}


def brought(extra: str) -> set[str]:
    """The import names of what `pip install shipline[extra]` adds."""
    names = {re.split(r"[>=;\[ ]", item)[0] for item in optional()[extra]}
    return {_IMPORTED_AS.get(name, name.replace("-", "_")) for name in names - {"shipline"}} | {
        package
        for item in optional()[extra]
        if (inner := re.fullmatch(r"shipline\[(\w+)\]", item))
        for package in brought(inner[1])
    }


def test_what_is_installed_is_not_called_missing() -> None:
    """The names in EXTRAS are import names, not those of the package index."""
    installed = [package for package in EXTRAS if package not in ("gcsfs", "adlfs")]
    assert [package for package in installed if importlib.util.find_spec(package) is None] == []
