"""Running the model under interventions.

In come the model, dictionaries, prompts and interventions (or their text); out come logits and activations. Many sets of
interventions run in one forward pass, from the lowest layer that they touch. What an intervention does at its site is
`edits`' knowledge; this module decides what runs, from where, and what is frozen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import CircuitGraphError, PromptError, did_you_mean
from circuitgraph.interventions.checks import check_interventions
from circuitgraph.interventions.edits import ZERO, RunValues, edit_rows, sites_read, sites_written
from circuitgraph.interventions.language import Delete, Intervention, Patch, Steer
from circuitgraph.models.model import Model, Replace
from circuitgraph.models.tokens import tokenize_pairs
from circuitgraph.nodes import Site
from circuitgraph.progress import Progress, no_progress
from circuitgraph.prompts import PromptPair

Prompts = Tensor | Sequence[str] | Sequence[PromptPair]
Interventions = Sequence[Intervention | str]

FREEZE = {
    "attention": ("pattern",),
    "norms": ("ln1_scale", "ln1_post_scale", "ln2_scale", "ln2_post_scale"),
    "final_norm": ("final_scale",),
    "mlp": ("mlp_out",),
}


@dataclass(frozen=True, eq=False)
class IntervenedRun:
    """Logits [batch, pos, vocab], and activations [batch, pos, ...] at the sites asked for, after what was done there."""

    logits: Tensor
    activations: Mapping[Site, Tensor]

    def __repr__(self) -> str:
        tensors = {"logits": self.logits} | {str(site): values for site, values in self.activations.items()}
        return ", ".join(f"{name} {list(values.shape)}" for name, values in tensors.items())


def run_with_interventions(
    model: Model,
    dictionaries: Dictionaries,
    prompts: Prompts,
    interventions: Interventions,
    *,
    references: Mapping[str, Prompts] | None = None,
    freeze: Sequence[str | Site] = (),
    cache: Sequence[Site] = (),
    seed: int = 0,
) -> IntervenedRun:
    """What the model does with the prompts (texts, pairs or token ids [batch, pos], of one length) under interventions.

    Dictionaries are spliced in with their errors: without interventions the logits are the model's, bit for bit. Everything
    behind a change computes anew, dictionaries included.
    references: runs to patch from, name -> prompts, one for each of ours or one for all. Pairs bring "corrupted", "mean"
    (over the corrupted prompts, per position) and "resample" (the corrupted run of another example, drawn with the seed).
    freeze: what keeps the value of the run without interventions: "attention" (patterns), "norms" (scales in the blocks),
    "final_norm" (the last scale), "mlp" (outputs, to which changes at mlp_out are added), or sites such as "mlp_out.3".
    Raises CircuitGraphError, before anything runs, for an intervention that does not fit.
    """
    (run,) = run_intervention_sets(
        model, dictionaries, prompts, [interventions], references=references, freeze=freeze, cache=cache, seed=seed
    )
    return run


def run_intervention_sets(
    model: Model,
    dictionaries: Dictionaries,
    prompts: Prompts,
    sets: Sequence[Interventions],
    *,
    references: Mapping[str, Prompts] | None = None,
    freeze: Sequence[str | Site] = (),
    cache: Sequence[Site] = (),
    seed: int = 0,
    batch_rows: int = 512,
    progress: Progress = no_progress,
) -> list[IntervenedRun]:
    """`run_with_interventions` of each set, many sets in one forward pass of at most batch_rows rows."""
    tokens, corrupted = prompt_tokens(model, prompts)
    others = _reference_tokens(model, tokens, corrupted, references or {})
    frozen = frozen_sites(model, freeze)
    names = {ZERO, *others} | (set() if corrupted is None else {"corrupted", "mean", "resample"})
    n_pos = tokens.shape[1]
    checked = [
        check_interventions(model, dictionaries, one, n_pos=n_pos, references=names, frozen=frozen) for one in sets
    ]
    for site in cache:
        if not model.has(site):
            raise CircuitGraphError(f"{model.name} has no site {site} to keep; it has {model.n_layers} layers")
    every = [one for chosen in checked for one in chosen]
    read = {site for one in every for site in sites_read(model, dictionaries, one)}
    written = {site for one in every for site in sites_written(dictionaries, one)}
    used = {one.reference for one in every if isinstance(one, Patch)} - {ZERO}
    found = _run_references(model, dictionaries, tokens, corrupted, others, used, read | written, seed)

    lowest = min((site.block for site in read | written | set(cache)), default=0)
    first = lowest if Site("embed") not in read | written | set(cache) else 0
    kept = sorted({site for site in frozen if site.layer is None or site.layer >= first})
    kept = kept if every else []
    entry = [Site("resid_post", first - 1)] if first else []
    base: Mapping[Site, Tensor] = {}
    if entry or kept:
        base = model.run(tokens, record=[*entry, *kept, *(read if kept else ())])[1]
    engine = _Engine(model, dictionaries, tokens, found, base, kept, first, tuple(cache))
    step = max(1, batch_rows // len(tokens))
    runs: list[IntervenedRun] = []
    for start in range(0, len(checked), step):
        progress("running under interventions", start, len(checked))
        runs += engine.run(checked[start : start + step])
    return runs


@dataclass(frozen=True, eq=False)
class _Engine:
    """Everything that the sets share; `base` is the run without interventions, at what is frozen and where runs start."""

    model: Model
    dictionaries: Dictionaries
    tokens: Tensor
    references: Mapping[str, RunValues]
    base: Mapping[Site, Tensor]
    frozen: Sequence[Site]
    first: int
    cache: tuple[Site, ...]

    def run(self, sets: Sequence[Sequence[Intervention]]) -> list[IntervenedRun]:
        """One forward pass; set i has the rows i * batch to (i + 1) * batch. New values first, then additions."""
        at: dict[Site, dict[int, list[Intervention]]] = {}
        for i, chosen in enumerate(sets):
            for one in sorted(chosen, key=lambda one: isinstance(one, Steer | Delete)):
                for site in sites_written(self.dictionaries, one):
                    at.setdefault(site, {}).setdefault(i, []).append(one)
        edited: dict[Site, Tensor] = {}
        replace = {site: self._replacement(site, at.get(site, {}), len(sets), edited) for site in {*at, *self.frozen}}
        read = {site for chosen in sets for one in chosen for site in sites_read(self.model, self.dictionaries, one)}
        start = None
        if self.first:
            start = (self.first, self.base[Site("resid_post", self.first - 1)].repeat(len(sets), 1, 1))
        logits, recorded = self.model.run(
            self.tokens.repeat(len(sets), 1),
            record=sorted(read | set(self.cache)),
            replace=replace,
            start=start,
        )
        kept = {site: edited.get(site, recorded[site]) for site in self.cache}
        batch = len(self.tokens)
        parts = [slice(i * batch, (i + 1) * batch) for i in range(len(sets))]
        return [IntervenedRun(logits[rows], {site: value[rows] for site, value in kept.items()}) for rows in parts]

    def _replacement(
        self, site: Site, chosen: Mapping[int, Sequence[Intervention]], n_sets: int, edited: dict[Site, Tensor]
    ) -> Replace:
        batch = len(self.tokens)
        frozen = RunValues(self.dictionaries, self.base)

        def edit(x: Tensor, recorded: Mapping[Site, Tensor]) -> Tensor:
            live = RunValues(self.dictionaries, {**recorded, site: x})
            x = self.base[site].repeat(n_sets, *[1] * (x.ndim - 1)) if site in self.frozen else x.clone()
            for i, interventions in chosen.items():
                rows = slice(i * batch, (i + 1) * batch)
                here = live.take(rows)
                for one in interventions:
                    held = one.write.site if isinstance(one, Steer | Delete) else site
                    run = frozen if held in self.frozen else here  # what a frozen site holds is the base run's
                    x[rows] = edit_rows(self.model, self.dictionaries, site, one, x[rows], run, self.references)
            edited[site] = x
            return x

        return edit


def prompt_tokens(model: Model, prompts: Prompts) -> tuple[Tensor, Tensor | None]:
    """Token ids [batch, pos] of the prompts, and of their corrupted counterparts where they are pairs."""
    if isinstance(prompts, Tensor):
        if prompts.ndim != 2 or not len(prompts) or prompts.is_floating_point():
            raise PromptError(f"the token ids have shape {tuple(prompts.shape)}; expected whole numbers [batch, pos]")
        return prompts.to(model.device), None
    if not len(prompts):
        raise PromptError("there are no prompts; expected at least one")
    pairs = [prompt for prompt in prompts if isinstance(prompt, PromptPair)]
    if len(pairs) == len(prompts):
        tokens = tokenize_pairs(model, pairs)
        corrupted = None if tokens.corrupted is None else tokens.corrupted.to(model.device)
        return tokens.clean.to(model.device), corrupted
    if pairs:
        raise PromptError(f"{len(pairs)} of {len(prompts)} prompts are pairs; expected all or none")
    rows = [model.tokens(str(prompt)) for prompt in prompts]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1 or not lengths[0]:
        raise PromptError(
            f"the prompts have {', '.join(map(str, lengths))} tokens; expected one length, since interventions name positions"
        )
    if lengths[0] > model.n_ctx:
        raise PromptError(f"{lengths[0]} tokens, but {model.name} reads at most {model.n_ctx}; shorten the prompt")
    for prompt, row in zip(prompts, rows, strict=True):
        if model.unknown_token is not None and model.unknown_token in row:
            raise PromptError(f"{str(prompt)!r} has a word that {model.name} does not know")
    return torch.tensor(rows, device=model.device), None


def frozen_sites(model: Model, freeze: Sequence[str | Site]) -> set[Site]:
    """The sites that these names mean; CircuitGraphError for a name that means none."""
    sites: set[Site] = set()
    for name in [freeze] if isinstance(freeze, str) else freeze:
        if name in FREEZE:
            layers = [None] if name == "final_norm" else range(model.n_layers)
            sites |= {s for kind in FREEZE[str(name)] for layer in layers if model.has(s := Site(kind, layer))}
            continue
        kinds = [kind for kinds in FREEZE.values() for kind in kinds]
        site = name if isinstance(name, Site) else Site.parse(name) if "." in name else None
        if site is None or site.layer is None or site.kind not in (*kinds, "attn_out") or not model.has(site):
            raise CircuitGraphError(
                f"{str(name)!r} cannot be frozen; expected {', '.join(FREEZE)}, or a site of {model.name} such as"
                f" mlp_out.0, attn_out.0 or pattern.0.{did_you_mean(str(name), [*FREEZE, *kinds])}"
            )
        sites.add(site)
    return sites


def resample_rows(n: int, seed: int) -> Tensor:
    """For each of n examples another one, drawn with the seed; CircuitGraphError for a single one."""
    if n < 2:
        raise CircuitGraphError(
            "'resample' takes the corrupted run of another example and needs at least two pairs; got 1"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    rows = torch.empty(n, dtype=torch.long)
    rows[order] = order.roll(1)
    return rows


def _reference_tokens(
    model: Model, tokens: Tensor, corrupted: Tensor | None, references: Mapping[str, Prompts]
) -> dict[str, Tensor]:
    found = {}
    for name, prompts in references.items():
        if name in (ZERO, "corrupted", "mean", "resample") or not name.isidentifier():
            raise CircuitGraphError(f"a run cannot be named {name!r}; expected a word that is not taken")
        other, _ = prompt_tokens(model, prompts)
        if other.shape[1] != tokens.shape[1] or len(other) not in (1, len(tokens)):
            raise CircuitGraphError(
                f"run {name!r} has {len(other)} prompts of {other.shape[1]} tokens; expected {len(tokens)} (or 1) of"
                f" {tokens.shape[1]}, as ours"
            )
        found[name] = other
    return found


def _run_references(
    model: Model,
    dictionaries: Dictionaries,
    tokens: Tensor,
    corrupted: Tensor | None,
    others: Mapping[str, Tensor],
    used: set[str],
    sites: Collection[Site],
    seed: int,
) -> dict[str, RunValues]:
    """The runs that are patched from, at these sites, one row per example."""
    record = sorted(sites)
    found = {}
    for name in used & set(others):
        values = model.run(others[name], record=record)[1]
        found[name] = {site: value.expand(len(tokens), *value.shape[1:]) for site, value in values.items()}
    if used - set(others) and corrupted is not None:
        values = model.run(corrupted, record=record)[1]
        if "corrupted" in used:
            found["corrupted"] = values
        if "mean" in used:
            found["mean"] = {site: value.mean(0, keepdim=True).expand_as(value) for site, value in values.items()}
        if "resample" in used:
            rows = resample_rows(len(tokens), seed)
            found["resample"] = {site: value[rows] for site, value in values.items()}
    return {name: RunValues(dictionaries, values) for name, values in found.items()}
