"""Settings from files, the environment and the command line: jsonargparse reads them, and mistakes are said briefly.

`files` and `sources` know where settings come from, `parser` makes objects of them, `mistakes` says what is wrong,
`places` where.
"""

from shipline.config.mistakes import arguments_of, option_names
from shipline.config.parser import build, dumped, import_from, new_parser, parse
from shipline.config.sources import Sources, read_sources, variables

__all__ = [
    "Sources",
    "arguments_of",
    "build",
    "dumped",
    "import_from",
    "new_parser",
    "option_names",
    "parse",
    "read_sources",
    "variables",
]
