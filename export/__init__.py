"""Export: a proved artifact from a checkpoint."""

if (
    __name__ != "shipline.export"
):  # a bare `import export` from the repository's root would make a second copy of it all
    raise ImportError("This package is shipline.export; its folder is not meant to be imported as 'export'.")

import shipline.backends  # noqa: F401 -- before onnxruntime, which it keeps from telling others of this machine
from shipline.export.exporter import export
from shipline.export.huggingface import huggingface
from shipline.export.origins import Exportable, source_of
from shipline.export.passes.base import Finetune, GraphPass, Material, ModulePass, Pass
from shipline.export.plain import on_rows
from shipline.export.recipe import Recipe
from shipline.export.source import Evaluate, Source
from shipline.surface import make_callable

__all__ = [
    "Evaluate", "Exportable", "Finetune", "GraphPass", "Material", "ModulePass", "Pass", "Recipe", "Source", "export",
    "huggingface", "on_rows", "source_of",
]  # fmt: skip

make_callable(__name__, "shipline.compose:export")
