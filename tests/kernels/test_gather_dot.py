"""Promises of `gather_dot`, with PyTorch's private operator and without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circuitgraph_kernels import _torch as torch_backend
from circuitgraph_kernels import gather_dot


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("strided", [True, False])
def test_gather_dot_is_the_dot_product_of_rows(
    tolerance: Callable[..., float], monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype, strided: bool
) -> None:
    monkeypatch.setattr(torch_backend, "GATHER_ELEMENTS", 30)
    if not native:
        monkeypatch.setattr(torch_backend, "_native_gather_dot_works", lambda device, dtype: False)
    random = torch.Generator().manual_seed(0)
    vectors, W = (torch.randn(*shape, generator=random).to(dtype) for shape in ((3, 6, 13), (20, 13)))
    W = W.T.contiguous().T if strided else W
    rows, columns = torch.randint(6, (50,), generator=random), torch.randint(20, (50,), generator=random)
    expected = (vectors.double()[:, rows] * W.double()[columns]).sum(dim=-1)
    got = gather_dot(vectors, rows, W, columns)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.shape == (3, 50) and expected.abs().min() > 0
    assert (got - expected).abs().max() <= tolerance(got.dtype, 13, expected.abs().max() + 10)
    assert all(torch.equal(gather_dot(each, rows, W, columns), row) for each, row in zip(vectors, got, strict=True))
    assert gather_dot(vectors, rows[:0], W, columns[:0]).shape == (3, 0)
    assert gather_dot(vectors[0], rows[:0], W, columns[:0]).shape == (0,)


def test_the_native_gather_dot_is_in_use_here() -> None:
    assert torch_backend._native_gather_dot_works(torch.device("cpu"), torch.float32)
    assert torch_backend._native_gather_dot_works(torch.device("cpu"), torch.float64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": torch.tensor([0, 6])}, "rows spans 0 to 6, expected 0 to 5"),
        ({"columns": torch.tensor([-1, 3])}, "columns spans -1 to 3, expected 0 to 19"),
        (
            {"columns": torch.tensor([1])},
            r"columns is torch.int64 of shape \(1,\), expected torch.int64 of shape \[n\]",
        ),
        ({"rows": torch.tensor([0.0, 1.0])}, "rows is torch.float32"),
        ({"W": torch.zeros(20, 4)}, r"vectors and W have shapes \(6, 3\) and \(20, 4\)"),
        ({"W": torch.zeros(20, 3).double()}, "vectors is torch.float32 and W is torch.float64, convert one"),
        ({"W": torch.zeros(20, 3, device="meta")}, "tensors are on cpu, meta, expected one device"),
    ],
)
def test_gather_dot_refuses_what_does_not_fit(change: dict[str, Tensor], message: str) -> None:
    arguments = {"vectors": torch.zeros(6, 3), "rows": torch.tensor([0, 1]), "W": torch.zeros(20, 3)}
    with pytest.raises(ValueError, match=message):
        gather_dot(**(arguments | {"columns": torch.tensor([0, 1])} | change))
