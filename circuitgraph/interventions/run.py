"""Running the model under interventions, many sets of them in one forward pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.doors import DictionariesLike, ModelLike, as_dictionaries, as_model
from circuitgraph.errors import CircuitGraphError
from circuitgraph.interventions.checks import check_interventions
from circuitgraph.interventions.edits import ZERO, RunValues, edit_rows, sites_read, sites_written
from circuitgraph.interventions.freeze import frozen_sites
from circuitgraph.interventions.language import Delete, Intervention, Interventions, Patch, Steer
from circuitgraph.interventions.references import Prompts, References, prompt_tokens
from circuitgraph.models.model import Model, Replace
from circuitgraph.models.variants import BATCH_ROWS, variants_at_once
from circuitgraph.nodes import Site
from circuitgraph.progress import Progress, no_progress


@dataclass(frozen=True, eq=False)
class IntervenedRun:
    """Logits [batch, pos, vocab], and activations [batch, pos, ...] at the cached sites, after what was done there."""

    logits: Tensor
    activations: Mapping[Site, Tensor]

    def __repr__(self) -> str:
        tensors = {"logits": self.logits} | {str(site): values for site, values in self.activations.items()}
        return ", ".join(f"{name} {list(values.shape)}" for name, values in tensors.items())


def run_with_interventions(
    prompts: Prompts,
    model: ModelLike,
    dictionaries: DictionariesLike | None,
    interventions: Interventions,
    *,
    references: Mapping[str, Prompts] | None = None,
    freeze: Sequence[str | Site] = (),
    cache: Sequence[str | Site] = (),
    seed: int = 0,
) -> IntervenedRun:
    """What the model does with the prompts under interventions.

    Dictionaries are spliced in with their errors: without interventions the logits are the model's, bit for bit.
    Everything behind a change computes anew, dictionaries included.

    Args:
        prompts: A text, a `PromptPair`, a list of these, a prompt file, or token ids [batch, pos]; all of one length.
        model: A name, a folder, a loaded model of TransformerLens or Hugging Face, or a `Model`.
        dictionaries: A name, a folder, an SAE, or a list or mapping of these; None for none.
        interventions: One or several, as `language` describes them, or their text such as "mlp_out.1/f17@5=0".
        references: Runs to patch from, name -> prompts, one for each of ours or one for all. Pairs bring "corrupted",
            "mean" (over the corrupted prompts, per position) and "resample" (the corrupted run of another example).
        freeze: What keeps the value of the run without interventions: "attention" (patterns), "norms" (scales in the
            blocks), "final_norm" (the last scale), "mlp" (outputs, to which changes at mlp_out are added), or sites
            such as "mlp_out.3".
        cache: Sites whose activations are kept.
        seed: Of the draw of "resample".

    Raises CircuitGraphError, before anything runs, for an intervention that does not fit.
    """
    (run,) = run_intervention_sets(
        prompts, model, dictionaries, [interventions], references=references, freeze=freeze, cache=cache, seed=seed
    )
    return run


def run_intervention_sets(
    prompts: Prompts,
    model: ModelLike,
    dictionaries: DictionariesLike | None,
    sets: Sequence[Interventions],
    *,
    references: Mapping[str, Prompts] | None = None,
    freeze: Sequence[str | Site] = (),
    cache: Sequence[str | Site] = (),
    seed: int = 0,
    batch_rows: int = BATCH_ROWS,
    progress: Progress = no_progress,
) -> list[IntervenedRun]:
    """`run_with_interventions` of each set, many sets in one forward pass.

    Args:
        prompts: As there.
        model: As there.
        dictionaries: As there.
        sets: Sets of interventions; an empty one is the run without any.
        references: As there.
        freeze: As there.
        cache: As there.
        seed: As there.
        batch_rows: Rows of one forward pass.
        progress: Told (stage, sets done, sets in all).
    """
    loaded = as_model(model)
    found = as_dictionaries(dictionaries, loaded)
    tokens, engine = prepare(
        prompts, loaded, found, sets, references=references or {}, freeze=freeze, cache=cache, seed=seed
    )
    return engine.run(tokens, batch_rows=batch_rows, progress=progress)


def prepare(
    prompts: Prompts,
    model: Model,
    dictionaries: Dictionaries,
    sets: Sequence[Interventions],
    *,
    references: Mapping[str, Prompts],
    freeze: Sequence[str | Site] = (),
    cache: Sequence[str | Site] = (),
    seed: int = 0,
) -> tuple[Tensor, InterventionEngine]:
    """The prompts' token ids [batch, pos] and what runs them, as of `run_intervention_sets`.

    All is checked first; then the references that the sets use are run.
    """
    tokens, corrupted = prompt_tokens(model, prompts)
    others = References.of(model, tokens, corrupted, references, seed)
    frozen = frozen_sites(model, freeze)
    n_pos = tokens.shape[1]
    checked = [
        check_interventions(model, dictionaries, given, n_pos=n_pos, references=others, frozen=frozen) for given in sets
    ]
    cached = [Site.parse(site) if isinstance(site, str) else site for site in cache]
    for site in cached:
        if not model.has(site):
            raise CircuitGraphError(f"{model.name} has no site {site} to keep; it has {model.n_layers} layers")
    engine = InterventionEngine(model, dictionaries, checked, {}, frozen, tuple(cached))
    used = {one.reference for given in checked for one in given if isinstance(one, Patch)} - {ZERO}
    values = others.run(model, dictionaries, used, engine.sites_read | engine.sites_written)
    return tokens, replace(engine, references=values)


@dataclass(frozen=True, eq=False)
class InterventionEngine:
    """Sets of interventions that fit, with the runs that they patch from: ready to run on token ids."""

    model: Model
    dictionaries: Dictionaries
    sets: Sequence[Sequence[Intervention]]
    references: Mapping[str, RunValues]
    frozen: Collection[Site]
    cache: tuple[Site, ...]

    @property
    def sites_read(self) -> set[Site]:
        """Every site whose value in the run an intervention needs."""
        every = (one for given in self.sets for one in given)
        return {site for one in every for site in sites_read(self.model, self.dictionaries, one)}

    @property
    def sites_written(self) -> set[Site]:
        """Every site that an intervention changes."""
        every = (one for given in self.sets for one in given)
        return {site for one in every for site in sites_written(self.dictionaries, one)}

    def run(
        self, tokens: Tensor, *, batch_rows: int = BATCH_ROWS, progress: Progress = no_progress
    ) -> list[IntervenedRun]:
        """The runs of all sets on token ids [batch, pos]."""
        clean = self._clean_values(tokens)
        step = variants_at_once(tokens, batch_rows=batch_rows)
        runs: list[IntervenedRun] = []
        for first in range(0, len(self.sets), step):
            progress("running under interventions", first, len(self.sets))
            runs += self._run_variants(tokens, self.sets[first : first + step], clean)
        return runs

    def _clean_values(self, tokens: Tensor) -> Mapping[Site, Tensor]:
        """What is needed of the run without interventions: for what is frozen, and where many sets start late."""
        frozen = self.frozen if self.sites_written else set()
        if not frozen and len(self.sets) < 3:
            return {}
        ends = (Site("resid_post", layer) for layer in range(self.model.n_layers))
        return self.model.run(tokens, record=sorted({*ends, *frozen, *self.sites_read, *self.cache}))[1]

    def _run_variants(
        self, tokens: Tensor, sets: Sequence[Sequence[Intervention]], clean: Mapping[Site, Tensor]
    ) -> list[IntervenedRun]:
        """One forward pass. At each site new values come first, then additions. What precedes all changes is free."""
        at: dict[Site, dict[int, list[Intervention]]] = {}
        for i, given in enumerate(sets):
            for one in sorted(given, key=lambda one: isinstance(one, Steer | Delete)):
                for site in sites_written(self.dictionaries, one):
                    at.setdefault(site, {}).setdefault(i, []).append(one)
        frozen = {site for site in self.frozen if at and min(at).depth <= site.depth}
        read = {site for given in sets for one in given for site in sites_read(self.model, self.dictionaries, one)}
        edited: dict[Site, Tensor] = {}
        edits = {
            site: self._edit(site, at.get(site, {}), clean, frozen=frozen, edited=edited) for site in {*at, *frozen}
        }
        logits, observed = self.model.run_variants(tokens, edits, len(sets), clean=clean, read=read, observe=self.cache)
        after = {site: edited.get(site, observed[site]) for site in self.cache}
        return [IntervenedRun(logits[i], {site: value[i] for site, value in after.items()}) for i in range(len(sets))]

    def _edit(
        self,
        site: Site,
        sets: Mapping[int, Sequence[Intervention]],
        clean: Mapping[Site, Tensor],
        *,
        frozen: Collection[Site],
        edited: dict[Site, Tensor],
    ) -> Replace:
        """What the interventions of each set make of a site; the result is noted in `edited`."""
        before = RunValues(self.dictionaries, clean)

        def edit(x: Tensor, values: Mapping[Site, Tensor]) -> Tensor:
            here = {**values, site: x}
            x = (clean[site].expand_as(x) if site in frozen else x).clone()
            for i, interventions in sets.items():
                own = RunValues(self.dictionaries, {each: value[i] for each, value in here.items()})
                for one in interventions:
                    where = one.write.site if isinstance(one, Steer | Delete) else site
                    run = before if where in frozen else own  # what a frozen site holds is the clean run's
                    x[i] = edit_rows(self.model, self.dictionaries, site, one, x[i], run, self.references)
            edited[site] = x
            return x

        return edit
