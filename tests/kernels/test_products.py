"""Promises of the products with chosen rows, in every backend, with PyTorch's private operator and without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from circuitgraph_kernels import _torch_products as torch_backend
from circuitgraph_kernels import decode_entries, gather_dot, grouped_product

Tolerance = Callable[..., float]
DEVICE = {"torch": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}
BACKENDS = pytest.mark.parametrize("backend", ["torch", "triton"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


@pytest.mark.parametrize("backend", ["torch", "torch in blocks", "triton"])
@DTYPES
@pytest.mark.parametrize("strided", [True, False])
def test_gather_dot_is_the_dot_product_of_rows(
    tolerance: Tolerance, monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype, strided: bool
) -> None:
    monkeypatch.setattr(torch_backend, "GATHER_ELEMENTS", 30)
    if backend == "torch in blocks":
        monkeypatch.setattr(torch_backend, "_native_gather_dot_works", lambda device, dtype: False)
    name = backend.split()[0]
    random = torch.Generator().manual_seed(0)
    vectors, W = (torch.randn(*shape, generator=random).to(DEVICE[name], dtype) for shape in ((3, 6, 13), (20, 13)))
    W = W.T.contiguous().T if strided else W
    rows, columns = (torch.randint(n, (50,), generator=random).to(W.device) for n in (6, 20))
    expected = (vectors.double()[:, rows] * W.double()[columns]).sum(dim=-1)

    def dots(vectors: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        return gather_dot(vectors, rows, W, columns, backend=name)

    got = dots(vectors, rows, columns)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.shape == (3, 50) and expected.abs().min() > 0
    assert (got - expected).abs().max() <= tolerance(got.dtype, 13, expected.abs().max() + 10)
    assert all(torch.equal(dots(each, rows, columns), row) for each, row in zip(vectors, got, strict=True))
    assert dots(vectors, rows[:0], columns[:0]).shape == (3, 0)
    assert dots(vectors[0], rows[:0], columns[:0]).shape == (0,)


@BACKENDS
@DTYPES
def test_decode_entries_is_the_dense_product(tolerance: Tolerance, backend: str, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(1)
    acts = torch.randn(7, 30, generator=random) * (torch.rand(7, 30, generator=random) < 0.4)
    acts[2] = 0  # a token without entries
    W = torch.randn(30, 21, generator=random).to(DEVICE[backend], dtype)
    token, feature = acts.nonzero(as_tuple=True)
    values = acts[token, feature].to(W.device, torch.float64 if dtype == torch.float64 else torch.float32)
    got = decode_entries(token.to(W.device), feature.to(W.device), values, W, 7, backend=backend)
    expected = acts.to(W.device).double() @ W.double()
    assert got.shape == (7, 21) and not got[2].any() and expected[3:].abs().min() > 0
    assert (got - expected).abs().max() <= tolerance(got.dtype, 30, 60)
    few = token >= 3  # a token's sum does not depend on the others
    part = decode_entries(
        token[few].to(W.device) - 3, feature[few].to(W.device), values[few.to(W.device)], W, 4, backend=backend
    )
    assert torch.equal(part, got[3:])
    none = torch.zeros(0, dtype=torch.int64, device=W.device)
    assert not decode_entries(none, none, values[:0], W, 3, backend=backend).any()


@BACKENDS
@DTYPES
def test_a_grouped_product_is_one_product_per_group(tolerance: Tolerance, backend: str, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(2)
    readers, W = (torch.randn(*shape, generator=random).to(DEVICE[backend], dtype) for shape in ((75, 35), (40, 35)))
    columns = torch.randint(40, (101,), generator=random).to(W.device)
    reader_starts, column_starts = (torch.tensor(x, device=W.device) for x in ([0, 3, 3, 70, 75], [0, 70, 75, 80, 101]))
    got = grouped_product(readers, reader_starts, W, columns, column_starts, backend=backend)
    assert got.starts.tolist() == [0, 210, 210, 210 + 67 * 5, 210 + 67 * 5 + 5 * 21]
    for group, (m, n) in enumerate(((3, 70), (0, 5), (67, 5), (5, 21))):
        rows = slice(*reader_starts[group : group + 2].tolist())
        chosen = columns[slice(*column_starts[group : group + 2].tolist())]
        expected = readers[rows].double() @ W.double()[chosen].T
        assert got.block(group).shape == (m, n)
        if m:
            assert expected.abs().max() > 1
            assert (got.block(group) - expected).abs().max() <= tolerance(got.values.dtype, 35, 35)
    empty = grouped_product(readers[:0], reader_starts * 0, W, columns, column_starts, backend=backend)
    assert len(empty.values) == 0 and empty.block(3).shape == (0, 21)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"reader_starts": torch.tensor([0, 1])},
            r"reader_starts is not \[groups \+ 1\] int64 that ascends from 0 to 3",
        ),
        ({"column_starts": torch.tensor([0, 3, 2])}, "column_starts is not"),
        ({"columns": torch.tensor([0, 9])}, "columns spans 0 to 9, expected 0 to 3"),
        ({"readers": torch.zeros(3, 5, 5)}, r"readers has shape \(3, 5, 5\), expected \[m, d\]"),
    ],
)
def test_grouped_product_refuses_what_does_not_fit(change: dict[str, Tensor], message: str) -> None:
    arguments = {"readers": torch.zeros(3, 5), "W": torch.zeros(4, 5), "columns": torch.tensor([0, 3])}
    arguments |= {"reader_starts": torch.tensor([0, 1, 3]), "column_starts": torch.tensor([0, 1, 2])} | change
    with pytest.raises(ValueError, match=message):
        grouped_product(**arguments)


def test_decode_entries_refuses_an_unsorted_list_and_uneven_lengths() -> None:
    W, acts = torch.zeros(4, 5), torch.ones(2)
    with pytest.raises(ValueError, match="token is not sorted"):
        decode_entries(torch.tensor([1, 0]), torch.tensor([0, 1]), acts, W, 2)
    with pytest.raises(ValueError, match="token spans 0 to 2, expected 0 to 1"):
        decode_entries(torch.tensor([0, 2]), torch.tensor([0, 1]), acts, W, 2)
    with pytest.raises(ValueError, match="2 tokens, 1 features and 2 acts, expected as many"):
        decode_entries(torch.tensor([0, 1]), torch.tensor([0]), acts, W, 2)


@BACKENDS
def test_strided_indices_change_nothing(backend: str) -> None:
    random = torch.Generator().manual_seed(3)
    vectors, W = (torch.randn(*shape, generator=random).to(DEVICE[backend]) for shape in ((6, 13), (20, 13)))
    pairs = torch.stack((torch.arange(12) // 2, torch.randint(20, (12,), generator=random)), dim=1).to(W.device)
    rows, columns = pairs[:, 0], pairs[:, 1]
    starts = torch.tensor([[0, 9], [4, 9], [6, 9]], device=W.device)[:, 0]
    edges = torch.tensor([[0, 9], [5, 9], [12, 9]], device=W.device)[:, 0]
    flat = [x.contiguous() for x in (rows, columns, starts, edges)]
    assert not any(x.is_contiguous() for x in (rows, columns, starts, edges))
    results = []
    for r, c, s, e in ((rows, columns, starts, edges), flat):
        dots = gather_dot(vectors, r, W, c, backend=backend)
        decoded = decode_entries(r, c, dots, W, 6, backend=backend)
        results.append((dots, decoded, grouped_product(vectors, s, W, c, e, backend=backend).values))
    assert all(torch.equal(a, b) and b.abs().max() > 0 for a, b in zip(*results, strict=True))


@BACKENDS
def test_no_index_fits_into_nothing(backend: str) -> None:
    zero = torch.tensor([0], device=DEVICE[backend])
    empty, W = torch.zeros(0, 3, device=zero.device), torch.ones(2, 3, device=zero.device)
    with pytest.raises(ValueError, match="rows spans 0 to 0, expected 0 to -1"):
        gather_dot(empty, zero, W, zero, backend=backend)
    with pytest.raises(ValueError, match="feature spans 0 to 0, expected 0 to -1"):
        decode_entries(zero, zero, torch.ones(1, device=zero.device), empty, 1, backend=backend)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_rows_do_not_depend_on_threads_or_company(dtype: torch.dtype) -> None:
    """MKL would share out one long dot product between threads, but not many of them."""
    random = torch.Generator().manual_seed(4)
    vectors, W = torch.randn(2, 3, 9001, generator=random, dtype=dtype)
    many = torch.arange(3).repeat(1500)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        whole, few = gather_dot(vectors, many, W, many), gather_dot(vectors, many[:3], W, many[:3])
        torch.set_num_threads(1)
        alone = gather_dot(vectors, many[:1], W, many[:1])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(whole[:3], few) and torch.equal(few[:1], alone)
    assert torch.allclose(few, (vectors * W).sum(dim=1), rtol=1e-4)


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
            "rows has 2 indices and columns 1, expected as many",
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
