"""A recipe's settings: checked when it is made, and named in what is said of them."""

from __future__ import annotations

import math
from typing import Any, get_args

import pytest

import shipline as sl
from shipline.compose import parse_recipe
from shipline.errors import ConfigError, UnknownNameError
from shipline.export.passes.float16 import Float16
from shipline.export.passes.prune_channels import PruneChannels
from shipline.export.passes.pt2e_int8 import Pt2eInt8
from shipline.export.passes.static_int8 import StaticInt8
from shipline.export.plan import PRECISIONS, plan
from shipline.export.recipe import AUTO, Precision


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"precision": "int4"}, "precision='int4'; choose one of float32, bfloat16, float16, int8,"),
        ({"precision": None}, "precision=None; choose one of"),
        ({"precision": ["int8"]}, "choose one of float32, bfloat16"),
        ({"mode": "lowest"}, "mode='lowest'; choose 'min' or 'max'"),
        *(
            ({name: value}, f"{name}={value!r}; set a whole number from 1 on")
            for name in ("calibration_rows", "proof_rows", "golden_rows", "max_batch_size")
            for value in (0, -1, 2.5, True, "32", None)
        ),
        *(
            ({name: value}, f"{name}={value!r}; set a number from 0 on")
            for name in ("max_metric_drop", "tolerance", "min_speedup")
            for value in (-0.1, math.nan, math.inf, True, "0.1", "-1%", "half")
        ),
        ({"max_metric_drop": None}, "max_metric_drop=None; set a number from 0 on"),
        ({"tolerance": "0.5%"}, "tolerance='0.5%'; set a number from 0 on"),
        ({"objective": "fastest"}, "objective='fastest'; choose one of speed, latency, throughput, size"),
        ({"precision": "bfloat16"}, "onnxruntime has no bfloat16 on a CPU. Set backend='openvino', or 'aotinductor'"),
        ({"precision": "bfloat16", "backend": "onnxruntime"}, "Set backend='openvino'"),
        ({"precision": "int8-mixed-bfloat16"}, "onnxruntime has no bfloat16 on a CPU. Set backend='openvino'."),
        ({"precision": "auto", "passes": (Float16(),)}, "give passes, or the name of a precision"),
        ({"precision": "int8", "passes": (Float16(),)}, "Recipe has passes of a graph and precision='int8'"),
        *(
            ({"prune": value}, f"prune={value!r}; set a share from 0 to below 1, or 'auto'")
            for value in (1, -0.5, 1.5, math.nan, "0.5", True, False, None)
        ),
        *(
            ({"passes": (Pt2eInt8(),), "precision": name}, f"int8 already, and precision='{name}': give one of them")
            for name in ("int8", "auto")
        ),
        ({"passes": 5}, "passes=5; give a tuple of shipline.export.Pass"),
        *(({name: "no"}, f"{name}='no'; set True or False") for name in ("compiled", "remember")),
        ({"passes": (Pt2eInt8(), StaticInt8())}, "int8 already, and passes of a graph: give one of them"),
        ({"prune": "auto"}, "prune='auto' and precision='float32': only a search tries several shares"),
        ({"prune": "auto", "precision": "auto", "finetune_epochs": -1}, "finetune_epochs=-1"),
        ({"target": "20MB,fast"}, "'fast' is no limit"),
        ({"target": "avx3"}, "'avx3' is no limit. Did you mean 'avx2'?"),
        ({"target": ""}, "'' is no limit"),
        ({"target": "0MB"}, "'0mb' is no limit"),
        ({"target": "1MB,2MB"}, "says max_bytes twice"),
        ({"target": "avx2", "backend": "aotinductor"}, "a library has the instructions of the machine that makes it"),
        (
            {"target": "avx2", "backend": "openvino", "precision": "bfloat16"},
            "that processor, or this one, where it would be measured, has no instructions for it",
        ),
        ({"prune": 0.5, "finetune_epochs": -1}, "finetune_epochs=-1; set a whole number from 0 on"),
        ({"finetune_epochs": 3}, "finetune_epochs=3 and prune=0: nothing is trained. Set prune"),
        ({"prune": 0.5, "passes": (PruneChannels(),)}, "prune=0.5 and PruneChannels in passes: give one"),
        ({"prune": 0.5, "precision": "int8", "passes": (Float16(),)}, "Recipe has passes of a graph and precision"),
        ({"passes": ("float16",)}, "a str among its passes, which is no shipline.export.Pass"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sl.Recipe(**settings)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_metric_drop": 0, "min_speedup": 0, "tolerance": 0},
        {"tolerance": None},
        {"mode": "min"},
        {"precision": "bfloat16", "backend": "openvino"},
        {"precision": "auto", "max_metric_drop": "0.5%"},
        {"passes": (Float16(),)},
        {"passes": (PruneChannels(), Float16())},
        {"prune": 0.5, "passes": (Float16(),)},
        {"prune": 0.5, "precision": "auto", "finetune_epochs": 0},
    ],
)
def test_settings_that_are_fine(settings: dict[str, Any]) -> None:
    assert parse_recipe(settings) == sl.Recipe(**settings)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("max_metric_dorp", "no setting 'max_metric_dorp'. Did you mean 'max_metric_drop'? Known: precision, backend,"),
        ("calibration", "Did you mean 'calibration_rows'?"),
        ("zzz", "no setting 'zzz'. Known: precision"),
    ],
)
def test_an_unknown_setting_is_told_the_nearest(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_recipe({name: 1})
    assert said in str(caught.value)


def test_every_precision_has_its_name_in_the_type() -> None:
    assert {*get_args(Precision)} == {*PRECISIONS, AUTO}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"prune": 0.5}, "pruned-50% float32 on onnxruntime"),
        ({"prune": 0.125, "precision": "int8", "backend": "openvino"}, "pruned-12.5% int8 on openvino"),
        ({"passes": (PruneChannels(ratio=0.75), StaticInt8())}, "pruned-75% int8 on onnxruntime"),
    ],
)
def test_what_a_way_is_called(settings: dict[str, Any], name: str) -> None:
    assert str(sl.Recipe(**settings).plan()) == name


def test_prune_is_short_for_a_pass() -> None:
    made = PruneChannels(ratio=0.5, finetune_epochs=7)
    asked = sl.Recipe(prune=0.5, finetune_epochs=7, precision="int8").plan()
    assert asked == sl.Recipe(passes=(made,), precision="int8").plan()
    assert asked.module_passes == (made,)


def test_a_recipe_may_be_a_recipe_a_mapping_or_a_precision() -> None:
    recipe = sl.Recipe(precision="int8")
    assert parse_recipe(recipe) is recipe
    assert parse_recipe({"precision": "int8"}) == parse_recipe("int8") == recipe
    with pytest.raises(ConfigError, match="choose one of float32, bfloat16"):
        parse_recipe("int16")


@pytest.mark.parametrize(
    ("recipe", "precision", "allowed"),
    [
        (sl.Recipe(), "float32", 1e-4),
        (sl.Recipe(precision="int8"), "int8", 5e-2),
        (sl.Recipe(precision="int8", tolerance=0.3), "int8", 0.3),
        (sl.Recipe(precision="int8", tolerance=0.3), "float32", 1e-4),  # what it is compared with
        (sl.Recipe(tolerance=0.0), "float32", 0.0),
        (sl.Recipe(precision="auto", tolerance=0.3), "float32", 1e-4),
        (sl.Recipe(precision="auto", tolerance=0.3), "int8", 0.3),
    ],
)
def test_the_tolerance_is_that_of_the_precision(recipe: sl.Recipe, precision: str, allowed: float) -> None:
    assert recipe.allowed_difference(plan(precision, "onnxruntime")) == allowed


@pytest.mark.parametrize(
    ("set_to", "trained", "allowed"), [(0.01, 0.5, 0.01), ("0.5%", 0.8, 0.004), ("2 %", -3.0, 0.06)]
)
def test_a_budget_is_in_the_metrics_own_unit_or_a_share_of_it(
    set_to: float | str, trained: float, allowed: float
) -> None:
    assert sl.Recipe(max_metric_drop=set_to).allowed_drop(trained) == pytest.approx(allowed)


def test_an_unknown_backend_is_told_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown backend 'openvin'\. Did you mean 'openvino'\?"):
        sl.Recipe(backend="openvin")
