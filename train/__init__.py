"""Training: a checkpoint from a module and data."""

import lazy_loader
import torch  # noqa: F401 -- nothing here works without it: who lacks it hears so at once

if __name__ != "shipline.train":  # a bare `import train` from the repository's root would make a second copy of it all
    raise ImportError("This package is shipline.train; its folder is not meant to be imported as 'train'.")

# What there is stands in the stub beside this file; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
