"""What interventions do to a metric and to the next token, as a text.

In come prompt pairs and interventions; out comes what `circuitgraph intervene` prints.
"""

from __future__ import annotations

from collections.abc import Sequence

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.interventions.language import Intervention
from circuitgraph.interventions.run import run_intervention_sets
from circuitgraph.metrics import build_metric
from circuitgraph.models.model import Model
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.prompts import PromptPair
from circuitgraph.text import table_text


def report_interventions(
    model: Model,
    dictionaries: Dictionaries,
    pairs: Sequence[PromptPair],
    interventions: Sequence[Intervention | str],
    *,
    metric: str = "logit_difference",
    freeze: Sequence[str] = (),
    top_k: int = 5,
    seed: int = 0,
) -> str:
    """The metric of the clean prompts without and with the interventions, its reduction in percent, and the likeliest tokens
    that follow the first prompt, as text."""
    tokens = tokenize_pairs(model, pairs)
    score = build_metric(metric, tokens.answers, tokens.wrong_answers)
    before, after = run_intervention_sets(model, dictionaries, pairs, [[], interventions], freeze=freeze, seed=seed)
    values = [float(score(run.logits).mean()) for run in (before, after)]
    reduction = f"{100 * (values[0] - values[1]) / values[0]:.1f} %" if values[0] else "undefined"
    lines = [
        f"prompt     {pairs[0].clean!r}" + (f" and {len(pairs) - 1} more" if len(pairs) > 1 else ""),
        *(f"set        {one}" for one in interventions),
        *([f"frozen     {', '.join(freeze)}"] if freeze else []),
        f"{score.name} {values[0]:.4f} -> {values[1]:.4f}, reduced by {reduction}",
        "",
    ]
    columns = []
    for run in (before, after):
        top = run.logits[0, -1].softmax(-1).topk(min(top_k, run.logits.shape[-1]))
        names = model.token_strings(top.indices.tolist())
        columns.append([f"{name!r} {p:.3f}" for name, p in zip(names, top.values.tolist(), strict=True)])
    lines += table_text(["as it is", "intervened"], list(zip(*columns, strict=True)))
    return "\n".join(lines) + "\n"
