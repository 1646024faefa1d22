"""Serving: answers from an artifact."""

if __name__ != "shipline.serve":  # a bare `import serve` from the repository's root would make a second copy of it all
    raise ImportError("This package is shipline.serve; its folder is not meant to be imported as 'serve'.")

from shipline.surface import make_callable

make_callable(__name__, "shipline.serve.server:serve")
