"""Arguments of the module that the data knows: `link: {module.classes: data.classes}`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from shipline.config import Sources, arguments_of
from shipline.errors import ConfigError, nearest

EXAMPLE = "module.classes: data.classes"


def add_links(parser: ArgumentParser, sources: Sources, section: str = "") -> None:
    """Let arguments be computed as the section `link` of the files says; the data is then made before the module.

    Raises:
        ConfigError: a link is none: it goes from an attribute of the data to an argument of the module.
    """
    prefix = f"{section}." if section else ""
    for argument, attribute in _links(sources.section(section).get("link")).items():
        target = f"{prefix}module.init_args.{argument}"
        parser.link_arguments(f"{prefix}data", target, compute_fn=_reading(attribute), apply_on="instantiate")


def check_links(settings: Namespace, sources: Sources, section: str = "") -> None:
    """Refuse what a link would not do, and nobody would notice.

    Raises:
        ConfigError: the module has no such argument, or the link does not stand in a file.
    """
    links = _links(settings.link)
    if links != _links(sources.section(section).get("link")):
        raise ConfigError("link stands in a file only: it is needed before options are read.")
    known = arguments_of(settings.module.class_path)
    for argument in links:
        if argument not in known:
            raise ConfigError(
                f"link: {settings.module.class_path} has no argument {argument!r}.{nearest(argument, known)}"
            )


def _links(link: Any) -> dict[str, str]:
    """The attributes of the data by the arguments that are set to them; what is no mapping is the parser's error."""
    pairs = link.items() if isinstance(link, dict) else ()
    return {_part("module", target, link): _part("data", source, link) for target, source in pairs}


def _part(owner: str, name: Any, link: Any) -> str:
    part = str(name).removeprefix(f"{owner}.").removeprefix("init_args.")
    if not str(name).startswith(f"{owner}.") or not part.isidentifier():
        raise ConfigError(
            f"link: {name!r} in {link!r} links nothing: give an argument of the module and an attribute of the data, "
            f"such as {EXAMPLE}."
        )
    return part


def _reading(attribute: str) -> Callable[[Any], Any]:
    """What reads the attribute off the data, as soon as that is made."""

    def read(data: Any) -> Any:
        if not hasattr(data, attribute):
            known = [name for name in dir(data) if not name.startswith("_")]
            raise ConfigError(f"link: {type(data).__name__} has no {attribute!r}.{nearest(attribute, known)}")
        return getattr(data, attribute)

    return read
