"""Text that the model writes under interventions.

In come a model, dictionaries, prompts and interventions; out come continuations, token by token. Each token is one run of
everything before it, so that no cache can hide a change. This module decides only which positions an intervention reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import CircuitGraphError, PromptError
from circuitgraph.interventions.language import Intervention, Patch, Span, parse_intervention
from circuitgraph.interventions.run import Interventions, Prompts, prompt_tokens, run_with_interventions
from circuitgraph.models.model import Model


@dataclass(frozen=True, eq=False)
class Generation:
    """Token ids [batch, prompt + new], what was written as text, one for each prompt, and the logits [batch, new, vocab] that
    each new token was chosen from."""

    tokens: Tensor
    texts: tuple[str, ...]
    logits: Tensor

    def __repr__(self) -> str:
        shown = [repr(text) for text in self.texts[:5]]
        more = [f"and {len(self.texts) - 5} more"] if len(self.texts) > 5 else []
        return "\n".join([f"{self.logits.shape[1]} tokens after each of {len(self.texts)} prompts", *shown, *more])


def generate(
    model: Model,
    dictionaries: Dictionaries,
    prompts: Prompts,
    interventions: Interventions,
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
    references: Mapping[str, Sequence[str] | Tensor] | None = None,
) -> Generation:
    """What the model writes after the prompts (texts or ids, of one length); temperature 0 takes the likeliest token.

    An intervention at fixed positions (@5, @2:7) stays there; one without positions or with an open end (@4:) goes on over
    the tokens that are written. A patch reaches no further than the prompt, where the other run has values. Raises as
    `run_with_interventions` does.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise CircuitGraphError(
            f"max_new_tokens is {max_new_tokens} and temperature {temperature}; expected at least 1, and 0 or more"
        )
    tokens, corrupted = prompt_tokens(model, prompts)
    if corrupted is not None:
        raise PromptError("pairs cannot be continued; give the prompts of one side")
    n_prompt = tokens.shape[1]
    if n_prompt + max_new_tokens > model.n_ctx + 1:
        raise PromptError(
            f"{n_prompt} tokens and {max_new_tokens} new ones, but {model.name} reads at most {model.n_ctx}; write fewer"
        )
    given = [parse_intervention(one) if isinstance(one, str) else one for one in interventions]
    run_with_interventions(model, dictionaries, tokens, given, references=references)  # refuses what does not fit
    bounded = [_within_prompt(one, n_prompt) for one in given]
    others = {name: prompt_tokens(model, other)[0] for name, other in (references or {}).items()}
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for _ in range(max_new_tokens):
        extra = tokens[:, n_prompt:]
        longer = {name: torch.cat([other.expand(len(tokens), -1), extra], 1) for name, other in others.items()}
        logits = run_with_interventions(model, dictionaries, tokens, bounded, references=longer).logits[:, -1]
        chosen.append(logits)
        if temperature == 0:
            new = logits.argmax(-1, keepdim=True)
        else:
            new = torch.multinomial((logits.cpu() / temperature).softmax(-1), 1, generator=generator).to(tokens.device)
        tokens = torch.cat([tokens, new], 1)
    texts = tuple("".join(model.token_strings(row[n_prompt:].tolist())) for row in tokens)
    return Generation(tokens, texts, torch.stack(chosen, 1))


def _within_prompt(one: Intervention, n_prompt: int) -> Intervention:
    """A patch with an open end stops at the end of the prompt."""
    if not isinstance(one, Patch) or one.target.span.stop is not None or one.reference == "zero":
        return one
    return replace(one, target=replace(one.target, span=Span(one.target.span.start, n_prompt)))
