"""Products are products, with and without the operation that torch does not promise."""

from __future__ import annotations

import pytest
import torch

from outmodal.models.kernels import products
from outmodal.models.kernels.products import product


@pytest.mark.parametrize("public", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_is_a_product(
    public: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if public:
        monkeypatch.setattr(products, "_has_onednn", lambda: False)
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(33, 50, generator=g).to(dtype), torch.randn(70, 50, generator=g).to(dtype)
    for turned in (w, w.t().contiguous().t()):
        got = product(x, turned)
        assert got.is_contiguous()
        assert got.dtype is dtype
        torch.testing.assert_close(got.double(), x.double() @ w.double().T, atol=1e-4, rtol=1e-5)


def test_a_torch_without_it_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    products._has_onednn.cache_clear()
    try:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert not products._has_onednn()
    finally:
        products._has_onednn.cache_clear()
