"""Serving: answers from an artifact."""

import os

if __name__ != "shipline.serve":  # a bare `import serve` from the repository's root would make a second copy of it all
    raise ImportError("This package is shipline.serve; its folder is not meant to be imported as 'serve'.")

# onnxruntime records the path of the program and an id of the machine, and knows an address to send them to. It decides
# when it is imported, so this stands before any import of it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from shipline.surface import make_callable

make_callable(__name__, "shipline.serve.server:serve")
