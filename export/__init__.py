"""Export: a proved artifact from a checkpoint."""

import os

if (
    __name__ != "shipline.export"
):  # a bare `import export` from the repository's root would make a second copy of it all
    raise ImportError("This package is shipline.export; its folder is not meant to be imported as 'export'.")

# onnxruntime records the path of the program and an id of the machine, and knows an address to send them to. It decides
# when it is imported, so this stands before any import of it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from shipline.export.exporter import export
from shipline.export.proof import Evaluate, Source
from shipline.export.recipe import Recipe
from shipline.surface import make_callable

__all__ = ["Evaluate", "Recipe", "Source", "export"]

make_callable(__name__, "shipline.compose:export")
