"""Where metrics go."""

import lazy_loader

# What there is stands in the stub beside this file; each is imported when it is first used.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
