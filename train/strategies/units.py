"""Which parts of a module are sharded together, and which compute their activations twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)

from shipline.errors import ConfigError

#: Classes of modules, or their names.
Kinds = Sequence[type[nn.Module] | str] | set[type[nn.Module]] | type[nn.Module] | str
#: Kinds, or a function of a module's name and itself.
Choice = Kinds | Callable[[str, nn.Module], bool]

_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def units(module: nn.Module, choice: Choice | None) -> Iterator[nn.Module]:
    """Return the parts that are sharded together, inner ones first.

    Raises:
        ConfigError: no part of the module is of a class that was named.
    """
    if choice is None:
        chosen = _repeated(module)
    elif callable(choice) and not isinstance(choice, type):
        chosen = {name for name, part in module.named_modules() if name and choice(name, part)}
    else:
        chosen = of_kinds(module, choice, "wrap")
    parts = dict(module.named_modules())
    for name in sorted(chosen, key=lambda name: -name.count(".")):
        if any(True for _ in parts[name].parameters()):
            yield parts[name]


def checkpointed(module: nn.Module, kinds: Kinds) -> None:
    """Let parts of these kinds compute their activations again in the backward pass, and not keep them."""
    names = of_kinds(module, kinds, "activation_checkpointing")
    chosen = {id(part) for name, part in module.named_modules() if name in names}
    apply_activation_checkpointing(
        module, checkpoint_wrapper_fn=checkpoint_wrapper, check_fn=lambda part: id(part) in chosen
    )


def of_kinds(module: nn.Module, kinds: Kinds, setting: str) -> set[str]:
    """Return the names of the parts that are of these kinds; ConfigError where there is none."""
    wanted = [kinds] if isinstance(kinds, type | str) else list(kinds)
    found = {name for name, part in module.named_modules() if name and any(_is_a(part, kind) for kind in wanted)}
    if not found:
        named = ", ".join(kind if isinstance(kind, str) else kind.__name__ for kind in wanted)
        have = sorted({type(part).__name__ for name, part in module.named_modules() if name})
        raise ConfigError(
            f"The strategy has {setting}={named}, and {type(module).__name__} has no such part; it has "
            f"{', '.join(have) or 'none'}."
        )
    return found


def _is_a(part: nn.Module, kind: type[nn.Module] | str) -> bool:
    return type(part).__name__ == kind if isinstance(kind, str) else isinstance(part, kind)


def _repeated(module: nn.Module) -> set[str]:
    """The layers of lists of layers, and PyTorch's own transformer layers."""
    found = set()
    for name, part in module.named_modules():
        if isinstance(part, nn.ModuleList):
            found |= {f"{name}.{child}" for child, _ in part.named_children()}
        elif name and isinstance(part, _LAYERS):
            found.add(name)
    return found
