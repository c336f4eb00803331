"""Promises of the products with chosen rows, in every backend, with PyTorch's private operator and without it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from support.close import assert_close
from torch import Tensor

from circuitgraph_kernels import _torch_products as torch_backend
from circuitgraph_kernels import decode_entries, gather_dot

DEVICE = {"torch": "cpu", "triton": "cuda" if torch.cuda.is_available() else "cpu"}
BACKENDS = pytest.mark.parametrize("backend", ["torch", "triton"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])


@pytest.mark.parametrize("backend", ["torch", "torch in blocks", "triton"])
@DTYPES
@pytest.mark.parametrize("strided", [True, False])
def test_gather_dot_is_the_dot_product_of_rows(
    monkeypatch: pytest.MonkeyPatch, backend: str, dtype: torch.dtype, strided: bool
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
    assert_close(got, expected, n_terms=13, dtype=got.dtype, scale=expected.abs().max() + 10)
    assert all(torch.equal(dots(each, rows, columns), row) for each, row in zip(vectors, got, strict=True))
    assert dots(vectors, rows[:0], columns[:0]).shape == (3, 0)
    assert dots(vectors[0], rows[:0], columns[:0]).shape == (0,)


@BACKENDS
@DTYPES
@pytest.mark.parametrize("strided", [True, False])
def test_decode_entries_is_the_dense_product(backend: str, dtype: torch.dtype, strided: bool) -> None:
    random = torch.Generator().manual_seed(1)
    acts = torch.randn(7, 30, generator=random) * (torch.rand(7, 30, generator=random) < 0.4)
    acts[2] = 0  # a token without entries
    W = torch.randn(30, 21, generator=random).to(DEVICE[backend], dtype)
    W = W.T.contiguous().T if strided else W
    token, feature = acts.nonzero(as_tuple=True)
    values = acts[token, feature].to(W.device, torch.float64 if dtype == torch.float64 else torch.float32)
    got = decode_entries(token.to(W.device), feature.to(W.device), values, W, 7, backend=backend)
    expected = acts.to(W.device).double() @ W.double()
    assert got.shape == (7, 21) and not got[2].any() and expected[3:].abs().min() > 0
    assert_close(got, expected, n_terms=30, dtype=got.dtype, scale=60)
    few = token >= 3  # a token's sum does not depend on the others
    part = decode_entries(
        token[few].to(W.device) - 3, feature[few].to(W.device), values[few.to(W.device)], W, 4, backend=backend
    )
    assert torch.equal(part, got[3:])
    none = torch.zeros(0, dtype=torch.int64, device=W.device)
    assert not decode_entries(none, none, values[:0], W, 3, backend=backend).any()


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
    assert not rows.is_contiguous() and not columns.is_contiguous()
    results = []
    for r, c in ((rows, columns), (rows.contiguous(), columns.contiguous())):
        dots = gather_dot(vectors, r, W, c, backend=backend)
        results.append((dots, decode_entries(r, c, dots, W, 6, backend=backend)))
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
    assert_close(few, (vectors.double() * W.double()).sum(dim=1), n_terms=9001, dtype=dtype)


def at_offset(row: Tensor, offset: int, n: int) -> Tensor:
    """n copies of a row [1, d], one after the other in memory, the first at that many elements from its beginning."""
    memory = torch.zeros(offset + n * row.shape[1], dtype=row.dtype)
    return memory[offset:].view(n, -1).copy_(row.expand(n, -1))


WIDTHS = pytest.mark.parametrize(
    "d", [1, 2, 3, 5, 7, 9, 13, 15, 16, 17, 23, 31, 32, 33, 63, 64, 65, 127, 255, 257, 511, 512, 768, 769, 1023]
)


@WIDTHS
@DTYPES
@pytest.mark.parametrize("native", [True, False])
def test_the_place_of_a_row_does_not_change_its_dot_product(
    monkeypatch: pytest.MonkeyPatch, d: int, dtype: torch.dtype, native: bool
) -> None:
    """Odd widths put equal rows at every alignment, and so do tensors that begin anywhere in memory."""
    monkeypatch.setattr(torch_backend, "_native_gather_dot_works", lambda device, dtype: native)
    random = torch.Generator().manual_seed(d)
    left, right = torch.randn(2, 1, d, generator=random, dtype=torch.float64).to(dtype)
    rows, columns = torch.arange(17).repeat_interleave(17), torch.arange(17).repeat(17)
    alone = gather_dot(left, rows[:1], right, rows[:1])
    assert alone.shape == (1,) and alone.abs() > 0
    for first, second in ((0, 0), (1, 0), (0, 3), (5, 9)):
        vectors, W = at_offset(left, first, 17), at_offset(right, second, 17)
        assert torch.equal(gather_dot(vectors, rows, W, columns), alone.expand(289))
        assert torch.equal(gather_dot(vectors, rows[:40], W, columns[:40]), alone.expand(40))


@WIDTHS
@DTYPES
def test_the_place_of_a_token_does_not_change_its_decoding(d: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(d)
    W = torch.randn(9, d, generator=random, dtype=torch.float64).to(dtype)
    acts = torch.randn(13, generator=random).to(torch.float64 if dtype == torch.float64 else torch.float32)
    feature = torch.randint(9, (13,), generator=random)
    alone = decode_entries(torch.zeros(13, dtype=torch.int64), feature, acts, W, 1)
    assert alone.abs().max() > 0
    token = torch.arange(17).repeat_interleave(13)
    for offset in range(4):
        moved = torch.zeros(offset + W.numel(), dtype=dtype)[offset:].view(9, d).copy_(W)
        assert torch.equal(decode_entries(token, feature.repeat(17), acts.repeat(17), moved, 17), alone.expand(17, d))
    turned = W.T.contiguous().T
    assert torch.equal(decode_entries(token, feature.repeat(17), acts.repeat(17), turned, 17), alone.expand(17, d))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_native_dot_product_is_in_use_here(dtype: torch.dtype) -> None:
    assert torch_backend._native_gather_dot_works(torch.device("cpu"), dtype)


def fails(*arguments: Tensor) -> Tensor:
    raise NotImplementedError("not in this PyTorch")


def is_wrong(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    return (vectors[rows] * W[columns]).sum(dim=-1) * 1.001


def depends_on_the_place(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    dots = (vectors[rows] * W[columns]).sum(dim=-1)
    return torch.where(columns % 2 == 1, torch.nextafter(dots, torch.zeros_like(dots)), dots)


def depends_on_the_number(vectors: Tensor, rows: Tensor, W: Tensor, columns: Tensor) -> Tensor:
    dots = (vectors[rows] * W[columns]).sum(dim=-1)
    return torch.nextafter(dots, torch.zeros_like(dots)) if len(dots) > 1 else dots


@pytest.mark.parametrize("operator", [fails, is_wrong, depends_on_the_place, depends_on_the_number])
def test_an_operator_that_cannot_be_trusted_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, operator: Callable[..., Tensor]
) -> None:
    monkeypatch.setattr(torch_backend, "_native_gather_dot", operator)
    works = torch_backend._native_gather_dot_works.__wrapped__  # without its memory
    assert not works(torch.device("cpu"), torch.float32)
    assert "no native dot product of gathered rows for torch.float32 on cpu" in caplog.text


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
