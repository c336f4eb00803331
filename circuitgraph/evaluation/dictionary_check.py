"""Checking dictionaries on prompts: is the spliced model the model, what does each miss, and where does it matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from circuitgraph.attribution.attribute import Attribution, run_attribution
from circuitgraph.attribution.tables import NodeTable
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.doors import DictionariesLike, ModelLike, PairsLike, as_dictionaries, as_model, as_pairs, choose_pairs
from circuitgraph.errors import DictionaryError, PromptError
from circuitgraph.models.model import Model, Replace
from circuitgraph.nodes import Site
from circuitgraph.progress import Progress, no_progress
from circuitgraph.settings import DictionaryChecks, Nodes, resolve
from circuitgraph.text import table_text

# A spliced model may differ from the model by this many roundings of its largest logit.
_ROUNDINGS = 1000


@dataclass(frozen=True)
class ErrorToken:
    """A token at which the error node has `share` > 0.5 of the site's |attribution|. Examples count from 0."""

    example: int
    pos: int
    token: str
    share: float


@dataclass(frozen=True)
class SiteCheck:
    """One dictionary on the clean prompts; x is what the model has at the site that the dictionary writes.

    l0                  active features per token
    explained_variance  1 - |x - x_hat|^2 / |x - mean x|^2, both summed over all tokens; None if x does not vary
    error_norm          |x - x_hat| / |x|, mean over the tokens where x is not 0
    loss_zero           next-token loss with x set to 0 at every position
    loss_spliced        next-token loss with x_hat instead of x at every position: no error, here alone
    loss_recovered      (loss_zero - loss_spliced) / (loss_zero - loss_clean); None if the two are equal. It says little
                        where zeroing x hardly raises the loss: `loss_matters` is whether it does by 1 % or more
    error_share         |attribution| of the error nodes / |attribution| of all nodes of the site; None if that is 0
    n_error_tokens      tokens whose error node has more than half of the |attribution| at its position
    n_effect_tokens     tokens where any node of the site has an effect
    error_tokens        the first of them, largest |attribution| of the error first
    """

    site: str
    dictionary: str
    d_sae: int
    l0: float
    explained_variance: float | None
    error_norm: float
    loss_zero: float
    loss_spliced: float
    loss_recovered: float | None
    loss_matters: bool
    error_share: float | None
    n_error_tokens: int
    n_effect_tokens: int
    error_tokens: tuple[ErrorToken, ...]


@dataclass(frozen=True)
class DictionaryCheck:
    """All dictionaries of a model on the same prompts; max_difference is the splice with errors against the model."""

    model: str
    metric: str
    baseline: str
    n_examples: int
    n_pos: int
    max_difference: float
    tolerance: float
    loss_clean: float
    sites: tuple[SiteCheck, ...]

    def __repr__(self) -> str:
        return check_text(self).rstrip()

    def record(self) -> dict[str, Any]:
        """The check as JSON values."""
        return asdict(self)


def check_dictionaries(
    prompts: PairsLike,
    model: ModelLike,
    dictionaries: DictionariesLike,
    *,
    settings: DictionaryChecks | None = None,
    progress: Progress = no_progress,
    **changes: Any,
) -> DictionaryCheck:
    """Check every dictionary on the clean prompts, all positions counted, BOS included.

    First the splice: with x_hat + (x - x_hat) at every dictionary's site the logits must be the model's up to
    rounding. Loss is the mean next-token cross entropy. Loss recovered ablates to zero, not to the mean, as in the
    closing-quotation study. That study replaced x at the position before the answer only and counted the answer's loss;
    here every position is replaced and every next token of the prompt counts. Where the error node carries the effect
    is told from the attributions of the metric between clean and baseline.

    Args:
        prompts: A text, a `PromptPair`, a list of these, or a prompt file.
        model: A name, a folder, a loaded model of TransformerLens or Hugging Face, or a `Model`.
        dictionaries: A name, a folder, an SAE, or a list or mapping of these.
        settings: The defaults, or all settings at once.
        progress: Told (stage, steps done, steps in all).
        **changes: Fields of `settings.DictionaryChecks` over `settings`: metric, baseline, n_listed (tokens to list per
            site), length, examples, seed.

    Raises DictionaryError if the splice is not the model, and a CircuitGraphError for whatever does not fit.
    """
    checks = resolve(DictionaryChecks, settings, changes)
    given = as_pairs(prompts)
    loaded = as_model(model)
    found = as_dictionaries(dictionaries, loaded)
    pairs = choose_pairs(given, loaded, checks)
    if len(loaded.tokens(pairs[0].clean)) < 2:
        raise PromptError("the prompts have 1 token; the next-token loss needs at least 2")
    nodes = Nodes(metric=checks.metric, baseline=checks.baseline)
    run = run_attribution(loaded, found, pairs, nodes, progress=progress)
    tokens = run.tokens.clean
    max_difference, tolerance = check_splice(loaded, found, tokens, run.clean.logits)
    loss_clean = next_token_loss(run.clean.logits, tokens)
    rows = []
    for i, site in enumerate(found):
        progress("running each dictionary", i, len(found))
        rows.append(_check_site(run, site, loss_clean, checks.n_listed))
    return DictionaryCheck(
        model=loaded.name,
        metric=run.metric.name,
        baseline=run.baseline.kind,
        n_examples=tokens.shape[0],
        n_pos=tokens.shape[1],
        max_difference=max_difference,
        tolerance=tolerance,
        loss_clean=loss_clean,
        sites=tuple(rows),
    )


def _check_site(run: Attribution, site: Site, loss_clean: float, n_listed: int) -> SiteCheck:
    """The figures of the dictionary that writes first at the site."""
    dictionary, tokens, values = run.dictionaries[site], run.tokens.clean, run.clean.values
    x = values[site]
    acts = dictionary.encode(values[dictionary.reads])
    x_hat = run.dictionaries.reconstruct(site, values)
    zero, spliced = _losses_with(run.model, tokens, values, site, [torch.zeros_like(x), x_hat])
    error, total = error_effects(run.tables, site, *tokens.shape)
    return SiteCheck(
        site=str(site),
        dictionary=dictionary.name,
        d_sae=dictionary.d_sae,
        l0=float((acts != 0).sum(-1).to(x).mean()),
        explained_variance=explained_variance(x, x_hat),
        error_norm=relative_error(x, x_hat),
        loss_zero=zero,
        loss_spliced=spliced,
        loss_recovered=None if zero == loss_clean else (zero - spliced) / (zero - loss_clean),
        loss_matters=zero - loss_clean >= 0.01 * loss_clean,
        error_share=float(error.sum() / total.sum()) if bool(total.any()) else None,
        n_error_tokens=int((error > total / 2).sum()),
        n_effect_tokens=int((total > 0).sum()),
        error_tokens=_listed(run.model, tokens, error, total, n_listed),
    )


def check_splice(model: Model, dictionaries: Dictionaries, tokens: Tensor, logits: Tensor) -> tuple[float, float]:
    """(largest |logit difference| of the splice of all dictionaries with their errors, what rounding allows).

    Activations and error of each dictionary are those of the spliced run. DictionaryError, with the site that does most
    harm alone, if the difference is larger or not a number.
    """
    tolerance = _ROUNDINGS * model.eps * float(logits.abs().max())

    def difference(chosen: Dictionaries) -> float:
        replace = {site: _with_error(chosen, site) for site in chosen.written}
        largest = (model.run(tokens, record=chosen.reads, replace=replace)[0] - logits).abs().max()
        return float(largest.nan_to_num(nan=torch.inf))

    found = difference(dictionaries)
    if found > tolerance:
        alone = {site: difference(Dictionaries([dictionary])) for site, dictionary in dictionaries.items()}
        worst = max(alone, key=lambda site: alone[site])
        raise DictionaryError(
            f"dictionaries spliced in with their errors change the logits of {model.name} by {found:.2g}, where"
            f" rounding allows {tolerance:.2g}; most by {dictionaries[worst].name} at {worst}"
            f" ({alone[worst]:.2g} alone)."
            " Its reconstruction is not finite or too large for this precision"
        )
    return found, tolerance


def next_token_loss(logits: Tensor, tokens: Tensor) -> float:
    """Mean cross entropy of every token but the first, given those before it; logits [batch, pos, vocab]."""
    targets = tokens[:, 1:].to(logits.device)
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten()))


def explained_variance(x: Tensor, x_hat: Tensor) -> float | None:
    """1 - |x - x_hat|^2 / |x - mean|^2, both summed over the tokens of x [batch, pos, d]; None if x does not vary."""
    variance = (x - x.mean((0, 1))).pow(2).sum()
    return float(1 - (x - x_hat).pow(2).sum() / variance) if bool(variance > 0) else None


def relative_error(x: Tensor, x_hat: Tensor) -> float:
    """Mean over tokens of |x - x_hat| / |x|, where x is not 0."""
    size = x.norm(dim=-1)
    there = size > 0
    return float(((x - x_hat).norm(dim=-1)[there] / size[there]).mean()) if bool(there.any()) else 0.0


def error_effects(tables: Sequence[NodeTable], site: Site, n_examples: int, n_pos: int) -> tuple[Tensor, Tensor]:
    """|attribution| of the site's error nodes and the sum of |attribution| of all its nodes, [examples, pos] each.

    Both are 0 where the sum is nothing but rounding beside the largest of the site.
    """
    here = [table for table in tables if table.site == site]
    total = here[0].attribution.new_zeros(n_examples, n_pos)
    error = torch.zeros_like(total)
    for table in here:
        effect = table.attribution.abs()
        total.index_add_(1, table.pos, effect)
        if table.kind == "error":
            error.index_add_(1, table.pos, effect)
    real = total > _ROUNDINGS * torch.finfo(total.dtype).eps * total.max()
    return error * real, total * real


def _listed(model: Model, tokens: Tensor, error: Tensor, total: Tensor, n: int) -> tuple[ErrorToken, ...]:
    """The n tokens with the largest |error attribution| where it is more than half; ties in reading order."""
    most = (error > total / 2).nonzero().tolist()
    most.sort(key=lambda at: -float(error[tuple(at)]))
    return tuple(
        ErrorToken(
            example,
            pos,
            model.token_strings([int(tokens[example, pos])])[0],
            float(error[example, pos] / total[example, pos]),
        )
        for example, pos in most[:n]
    )


def _with_error(dictionaries: Dictionaries, site: Site) -> Replace:
    def edit(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
        x_hat = dictionaries.reconstruct(site, recorded)
        return x_hat + (x - x_hat)

    return edit


def _losses_with(
    model: Model, tokens: Tensor, clean: Mapping[Site, Tensor], site: Site, instead: Sequence[Tensor]
) -> list[float]:
    """The next-token loss with each of these values at the site; everything before the site is as in the clean run."""
    edits: dict[Site, Replace] = {site: lambda x, values: torch.stack(list(instead))}
    logits, _ = model.run_variants(tokens, edits, len(instead), clean=clean)
    return [next_token_loss(each, tokens) for each in logits]


def check_text(check: DictionaryCheck) -> str:
    """What `circuitgraph check` prints."""
    header = ["site", "features", "L0", "explained", "error norm", "loss zero", "loss spliced", "recovered"]
    rows = [
        [
            row.site,
            str(row.d_sae),
            f"{row.l0:.1f}",
            _figure(row.explained_variance),
            f"{row.error_norm:.3f}",
            f"{row.loss_zero:.4f}",
            f"{row.loss_spliced:.4f}",
            _figure(row.loss_recovered) + ("" if row.loss_matters else " ?"),
            _figure(row.error_share),
            f"{row.n_error_tokens} of {row.n_effect_tokens}",
        ]
        for row in check.sites
    ]
    tokens = [
        [row.site, str(token.example), str(token.pos), repr(token.token), f"{token.share:.2f}"]
        for row in check.sites
        for token in row.error_tokens
    ]
    n_all = sum(row.n_error_tokens for row in check.sites)
    lines = [
        f"model    {check.model}, {check.n_examples} examples of {check.n_pos} tokens, loss {check.loss_clean:.4f}",
        f"splice   with errors the logits differ by at most {check.max_difference:.2g}"
        f" (rounding allows {check.tolerance:.2g})",
        f"effects  attributions of {check.metric}, baseline {check.baseline}",
        "",
        *table_text([*header, "error share", "error > half"], rows),
    ]
    if not all(row.loss_matters for row in check.sites):
        lines.append("? setting this site to zero raises the loss by less than 1 %: there is little to recover")
    lines += [
        "",
        f"the error node carries more than half of the effect at {n_all} tokens" + (", of which:" if tokens else ""),
    ]
    if tokens:
        lines += table_text(["site", "example", "pos", "token", "share"], tokens)
    return "\n".join(lines) + "\n"


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
