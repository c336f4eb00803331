"""What every kernel test shares: new memory full of NaN, and one thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` gives NaN, so that reading a buffer before writing it cannot pass by luck."""
    threads = torch.get_num_threads()

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def make_poisoned(*arguments: object, **options: object) -> torch.Tensor:
            buffer = make(*arguments, **options)
            return buffer.fill_(float("nan")) if buffer.is_floating_point() else buffer

        return make_poisoned

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoned(torch.empty))
        patch.setattr(torch, "empty_like", poisoned(torch.empty_like))
        patch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))
        torch.set_num_threads(1)
        yield
    torch.set_num_threads(threads)
