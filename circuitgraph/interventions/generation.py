"""Text that the model writes under interventions.

Each token is one run of everything before it, so that no cache can hide a change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from circuitgraph.doors import DictionariesLike, ModelLike, as_dictionaries, as_model
from circuitgraph.errors import CircuitGraphError, PromptError
from circuitgraph.interventions.language import Intervention, Interventions, Patch, Span
from circuitgraph.interventions.references import Prompts, prompt_tokens
from circuitgraph.interventions.run import prepare


@dataclass(frozen=True, eq=False)
class Generation:
    """What was written after each prompt.

    tokens are ids [batch, prompt + new], texts what is new in them, and logits [batch, new, vocab] what each new token
    was chosen from.
    """

    tokens: Tensor
    texts: tuple[str, ...]
    logits: Tensor

    def __repr__(self) -> str:
        shown = [repr(text) for text in self.texts[:5]]
        more = [f"and {len(self.texts) - 5} more"] if len(self.texts) > 5 else []
        return "\n".join([f"{self.logits.shape[1]} tokens after each of {len(self.texts)} prompts", *shown, *more])


def generate(
    prompts: Prompts,
    model: ModelLike,
    dictionaries: DictionariesLike | None,
    interventions: Interventions,
    *,
    max_new_tokens: int = 20,
    temperature: float = 0.0,
    seed: int = 0,
    references: Mapping[str, Prompts] | None = None,
) -> Generation:
    """What the model writes after the prompts.

    An intervention at fixed positions (@5, @2:7) stays there; one without positions or with an open end (@4:) goes on
    over the tokens that are written. A patch reaches no further than the prompt, where the other run has values.

    Args:
        prompts: A text, a list of texts, or token ids [batch, pos]; all of one length.
        model: A name, a folder, a loaded model of TransformerLens or Hugging Face, or a `Model`.
        dictionaries: A name, a folder, an SAE, or a list or mapping of these; None for none.
        interventions: One or several, or their text.
        max_new_tokens: How many tokens to write.
        temperature: 0 takes the likeliest token; otherwise logits are divided by it and a token is drawn.
        seed: Of these draws.
        references: Runs to patch from, name -> prompts as long as ours.

    Raises as `run_with_interventions` does, before anything runs.
    """
    if max_new_tokens < 1 or temperature < 0:
        raise CircuitGraphError(
            f"max_new_tokens is {max_new_tokens} and temperature {temperature}; expected at least 1, and 0 or more"
        )
    loaded = as_model(model)
    found = as_dictionaries(dictionaries, loaded)
    tokens, corrupted = prompt_tokens(loaded, prompts)
    if corrupted is not None:
        raise PromptError("pairs cannot be continued; give the prompts of one side")
    n_prompt = tokens.shape[1]
    if n_prompt + max_new_tokens > loaded.n_ctx + 1:
        raise PromptError(
            f"{n_prompt} tokens and {max_new_tokens} new ones, but {loaded.name} reads at most {loaded.n_ctx}; write"
            " fewer"
        )
    _, engine = prepare(tokens, loaded, found, [interventions], references=references or {})
    engine = replace(engine, sets=[[_within_prompt(one, n_prompt) for one in engine.sets[0]]])
    generator = torch.Generator().manual_seed(seed)
    chosen = []
    for _ in range(max_new_tokens):
        (run,) = engine.run(tokens)
        logits = run.logits[:, -1]
        chosen.append(logits)
        if temperature == 0:
            new = logits.argmax(-1, keepdim=True)
        else:
            new = torch.multinomial((logits.cpu() / temperature).softmax(-1), 1, generator=generator).to(tokens.device)
        tokens = torch.cat([tokens, new], 1)
    texts = tuple("".join(loaded.token_strings(row[n_prompt:].tolist())) for row in tokens)
    return Generation(tokens, texts, torch.stack(chosen, 1))


def _within_prompt(one: Intervention, n_prompt: int) -> Intervention:
    """A patch with an open end stops at the end of the prompt."""
    if not isinstance(one, Patch) or one.target.span.stop is not None or one.reference == "zero":
        return one
    return replace(one, target=replace(one.target, span=Span(one.target.span.start, n_prompt)))
