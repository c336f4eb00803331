"""What interventions do to a metric and to the next token, as the text that `circuitgraph intervene` prints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from circuitgraph.doors import DictionariesLike, ModelLike, PairsLike, as_dictionaries, as_model, as_pairs, choose_pairs
from circuitgraph.interventions.language import Interventions, interventions_of
from circuitgraph.interventions.run import IntervenedRun, run_intervention_sets
from circuitgraph.metrics import build_metric
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.settings import Intervening, resolve
from circuitgraph.text import table_text


def report_interventions(
    prompts: PairsLike,
    model: ModelLike,
    dictionaries: DictionariesLike | None,
    interventions: Interventions,
    *,
    freeze: Sequence[str] = (),
    settings: Intervening | None = None,
    **changes: Any,
) -> str:
    """The metric without and with the interventions, its change, and the likeliest tokens that follow.

    Args:
        prompts: A text, a `PromptPair`, a list of these, or a prompt file.
        model: A name, a folder, a loaded model of TransformerLens or Hugging Face, or a `Model`.
        dictionaries: A name, a folder, an SAE, or a list or mapping of these; None for none.
        interventions: One or several, or their text.
        freeze: What keeps its value, as of `run_with_interventions`.
        settings: The defaults, or all settings at once.
        **changes: Fields of `settings.Intervening` over `settings`: metric, top_k, length, examples, seed.

    Raises CircuitGraphError as `run_with_interventions` does.
    """
    chosen = resolve(Intervening, settings, changes)
    given = interventions_of(interventions)
    loaded = as_model(model)
    found = as_dictionaries(dictionaries, loaded)
    pairs = choose_pairs(as_pairs(prompts), loaded, chosen)
    tokens = tokenize_pairs(loaded, pairs)
    metric = build_metric(chosen.metric, tokens.answers, tokens.wrong_answers)
    before, after = run_intervention_sets(pairs, loaded, found, [(), given], freeze=freeze, seed=chosen.seed)
    means = [float(metric(run.logits).mean()) for run in (before, after)]
    more = f" and {len(pairs) - 1} more" if len(pairs) > 1 else ""
    drawn = chosen.examples is not None or any("resample" in str(one) for one in given)
    lines = [
        f"prompt     {pairs[0].clean!r}{more}, {tokens.clean.shape[1]} tokens",
        *(f"set        {one}" for one in given),
        *([f"frozen     {', '.join(freeze)}"] if freeze else []),
        *([f"seed       {chosen.seed}"] if drawn else []),
        f"{metric.name} {means[0]:.4f} -> {means[1]:.4f}, {_change(*means)}",
        "",
    ]
    columns = [_likeliest(loaded, run, chosen.top_k) for run in (before, after)]
    lines += table_text(["as it is", "intervened"], list(zip(*columns, strict=True)))
    return "\n".join(lines) + "\n"


def _change(before: float, after: float) -> str:
    """How the metric changed; in percent where it fell from a positive value and did not change its sign."""
    if before > 0 and 0 <= after <= before:
        return f"reduced by {100 * (before - after) / before:.1f} %"
    return f"changed by {after - before:+.4f}"


def _likeliest(model: Model, run: IntervenedRun, n: int) -> list[str]:
    """The n likeliest tokens behind the first prompt, with their probabilities."""
    top = run.logits[0, -1].softmax(-1).topk(min(n, run.logits.shape[-1]))
    names = model.token_strings(top.indices.tolist())
    return [f"{name!r} {p:.3f}" for name, p in zip(names, top.values.tolist(), strict=True)]
