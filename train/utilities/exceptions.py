"""The error that a wrong setting raises, by Lightning's name."""

from shipline.errors import ConfigError as MisconfigurationException

__all__ = ["MisconfigurationException"]
