"""What scripts take from Lightning's package of this name, with the same meaning."""

from shipline.train.accelerators.devices import to_device as move_data_to_device
from shipline.train.data.combined import CombinedLoader
from shipline.train.utilities.grads import grad_norm
from shipline.train.utilities.rank_zero import rank_zero_debug, rank_zero_info, rank_zero_only, rank_zero_warn

__all__ = [
    "CombinedLoader",
    "grad_norm",
    "move_data_to_device",
    "rank_zero_debug",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
]
