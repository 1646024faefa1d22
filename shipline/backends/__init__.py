"""What runs a graph: the same class proves it at export and serves it.

A new backend is one module, one class, one line in `shipline/plugins.py`. Each imports its own runtime, and nobody
imports a backend but through the plug-ins: `import shipline` stays small.
"""

import os

# onnxruntime records the path of the program and an id of the machine, and knows an address to send them to. It decides
# when it is imported, so this stands before any import of it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Those of ours with `Backend.runs_code`. Servers have them in processes of their own, and need not import them to know.
RUN_CODE = frozenset({"aotinductor", "torch-export", "torchscript"})

# What a server may be told to compute on. A backend named `<backend>-<device>` computes there what `<backend>` does on
# the CPU; where there is none, the CPU does.
DEVICES = ("cpu", "cuda", "tensorrt")
