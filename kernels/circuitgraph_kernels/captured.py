"""Attribution of few tokens as one CUDA graph: all launches are replayed at once.

At T = 16 the launches one by one cost more than the work. The results are those of `sae_attribution`, bit for bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from circuitgraph_kernels._entries import Entries, Inputs, full_precision
from circuitgraph_kernels.sae_attribution import SaeAttribution, backend_name, check_arguments
from circuitgraph_kernels.weights import SaeWeights, compute_dtype

WARM_UP = 3  # runs before the capture: they compile the kernels and fill the allocator


class CapturedAttribution:
    """`sae_attribution` for float32 tensors of fixed sizes, replayed as a CUDA graph.

        captured = CapturedAttribution(weights, n_tokens=16, capacity=16 * 512)
        result = captured(clean, baseline, gradient)

    Inputs are not checked for NaN. One object serves one thread and stream at a time.

    Args:
        weights: the dictionary, on a GPU, in float32 or narrower.
        n_tokens: T of every call.
        capacity: room for that many (token, feature) candidates. A call that needs more raises ValueError and says how
            many.
        n_gradients: K of every call.
        baseline: whether every call has a baseline, or none has.

    Raises ValueError without a GPU, and for weights in float64.
    """

    def __init__(
        self, weights: SaeWeights, n_tokens: int, capacity: int, *, n_gradients: int = 1, baseline: bool = True
    ) -> None:
        device = weights.W_enc.device
        if device.type != "cuda":
            raise ValueError(f"CapturedAttribution: the weights are on {device}, expected a CUDA device")
        if compute_dtype(weights.W_enc.dtype) != torch.float32:
            raise ValueError(
                f"CapturedAttribution: the weights are {weights.W_enc.dtype}, expected float32 or narrower"
            )
        backend_name("triton", device)
        from circuitgraph_kernels._triton import attribute_padded  # triton is imported only where it runs

        def rows(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float32, device=device)

        clean, clean_out = rows(n_tokens, weights.d_in), rows(n_tokens, weights.d_out)
        other, other_out = (torch.zeros_like(x) if baseline else None for x in (clean, clean_out))
        gradient = rows(n_gradients, n_tokens, weights.d_out)
        self._inputs = Inputs(clean, other, gradient, clean_out, other_out, weights)
        self.capacity = capacity
        with torch.no_grad(), torch.cuda.device(device), torch.autocast(device.type, enabled=False):
            stream = torch.cuda.Stream(device)
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP):
                    attribute_padded(self._inputs, capacity)
            torch.cuda.current_stream(device).wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, stream=stream):
                self._padded = attribute_padded(self._inputs, capacity)

    @full_precision
    def __call__(
        self,
        clean: Tensor,
        baseline: Tensor | None,
        gradient: Tensor,
        *,
        clean_out: Tensor | None = None,
        baseline_out: Tensor | None = None,
    ) -> SaeAttribution:
        """The attributions of these tensors, which are float32 and have the sizes of the capture.

        Arguments as for `sae_attribution`. The result owns its memory.
        """
        mine = self._inputs
        check_arguments(clean, baseline, gradient, clean_out, baseline_out, mine.weights)
        outs = clean if clean_out is None else clean_out, baseline if baseline_out is None else baseline_out
        given = (clean, baseline, gradient, *outs)
        buffers = (mine.clean, mine.baseline, mine.gradient, mine.clean_out, mine.baseline_out)
        for buffer, tensor in zip(buffers, given, strict=True):
            if (buffer is None) != (tensor is None):
                raise ValueError("CapturedAttribution: a baseline is given in every call or in none, as in the capture")
            if buffer is not None and tensor is not None:
                tensor = tensor[None] if tensor.ndim < buffer.ndim else tensor
                if tensor.shape != buffer.shape or tensor.dtype != torch.float32:
                    shape, expected = tuple(tensor.shape), tuple(buffer.shape)
                    raise ValueError(f"CapturedAttribution: {tensor.dtype} {shape}, expected torch.float32 {expected}")
                buffer.copy_(tensor)
        self._graph.replay()
        n_active, n_candidates = torch.stack((self._padded.n_active, self._padded.n_candidates[0])).tolist()
        if n_candidates > self.capacity:
            raise ValueError(f"CapturedAttribution: {n_candidates} candidates, expected at most {self.capacity}")
        found = self._padded.entries
        entries = Entries(
            found.token[:n_active].clone(),
            found.feature[:n_active].clone(),
            found.clean_acts[:n_active].clone(),
            found.baseline_acts[:n_active].clone(),
            found.attribution[:, :n_active].clone(),
            found.error.clone(),
        )
        shown = (
            entries
            if gradient.ndim == 3
            else entries._replace(attribution=entries.attribution[0], error=entries.error[0])
        )
        return SaeAttribution(*shown, "triton", "float32")
