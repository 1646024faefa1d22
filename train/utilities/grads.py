"""How large gradients are."""

from __future__ import annotations

from torch import nn

from shipline.errors import ConfigError


def grad_norm(module: nn.Module, norm_type: float | str, group_separator: str = "/") -> dict[str, float]:
    """Return the norm of each parameter's gradient and of all together, as `self.log_dict` takes them.

    Args:
        module: whose gradients; parameters without one are left out.
        norm_type: p of the p-norm, above 0; "inf" for the greatest.
        group_separator: between the prefix `grad_2.0_norm` and the parameter's name.

    Raises:
        ConfigError: p is not above 0.
    """
    norm_type = float(norm_type)
    if norm_type <= 0:
        raise ConfigError(f"grad_norm has norm_type={norm_type}; set a number above 0, or 'inf'.")
    prefix = f"grad_{norm_type}_norm{group_separator}"
    gradients = {name: p.grad.detach() for name, p in module.named_parameters() if p.grad is not None}
    norms = {f"{prefix}{name}": float(gradient.norm(norm_type)) for name, gradient in gradients.items()}
    if norms:
        norms[f"grad_{norm_type}_norm_total"] = float(nn.utils.get_total_norm(list(gradients.values()), norm_type))
    return norms
