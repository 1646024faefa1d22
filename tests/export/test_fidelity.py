"""How faithful answers are to a module's own."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import r2_score

from shipline.export.fidelity import Fidelity

IMAGES, LABELS = load_digits(return_X_y=True)
X, Y = torch.tensor(IMAGES[:300] / 16, dtype=torch.float32), torch.tensor(LABELS[:300])


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_fidelity_is_the_coefficient_of_determination(offset: float) -> None:
    """As scikit-learn computes it, which leaves pixels out that are the same in all rows."""
    own = X[:, X.std(0) > 0].double() + offset
    found = own + torch.randn(own.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) / 10
    fidelity = Fidelity()
    for start in range(0, 300, 64):
        fidelity.add(found[start : start + 64], own[start : start + 64])
    assert fidelity.value() == pytest.approx(r2_score(own, found, multioutput="variance_weighted"), abs=1e-9)


def test_fidelity_of_other_outputs() -> None:
    fidelity = Fidelity()
    constant, labels = torch.ones(300, 2), Y.clone()
    labels[:30] += 1
    fidelity.add({"constant": constant, "label": labels}, {"constant": constant, "label": Y})
    assert fidelity.value() == pytest.approx((1 + 0.9) / 2)
    off = Fidelity()
    off.add(constant * 2, constant)
    assert off.value() == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_an_output_that_differs_by_rounding_alone_is_the_same_for_all_rows(dtype: torch.dtype, size: float) -> None:
    """As a temperature does that a module gives with each row, or a sum of probabilities."""
    same = torch.full((300, 2), size, dtype=dtype)
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).to(dtype) * torch.finfo(dtype).eps
    for found, own, value in [(same * (1 + noise), same, 1), (same, same * (1 + noise), 1), (same * 1.1, same, 0)]:
        fidelity = Fidelity()
        fidelity.add(found, own)
        assert fidelity.value() == value
