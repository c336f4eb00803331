"""How attention and MLPs without a dictionary are treated, and which sites have nodes because of it."""

from __future__ import annotations

from dataclasses import dataclass

from circuitgraph.attribution.alignment import Alignment
from circuitgraph.attribution.gradients import mlp_slopes
from circuitgraph.attribution.runs import CleanRun
from circuitgraph.dictionaries.collection import Dictionaries
from circuitgraph.errors import CircuitGraphError, DictionaryError, did_you_mean
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site
from circuitgraph.paths.linear_maps import LinearMap, frozen_component
from circuitgraph.settings import TREATMENTS


@dataclass(frozen=True)
class ComponentTreatment:
    """What attention and MLPs without a dictionary are.

    "node"       one node per position, which nothing explains
    "frozen"     a linear map, frozen at the clean run, that paths pass
    "dropped"    left out: what they add is missing
    """

    attention: str = "node"
    mlp: str = "node"

    def __post_init__(self) -> None:
        for name, value in (("attention", self.attention), ("mlp", self.mlp)):
            if value not in TREATMENTS:
                raise CircuitGraphError(
                    f"{name} is {value!r}; expected one of {', '.join(TREATMENTS)}.{did_you_mean(value, TREATMENTS)}"
                )

    def of(self, site: Site) -> str:
        """How the component that writes at the site is treated."""
        return self.attention if site.part == "attention" else self.mlp


def component_sites(model: Model, dictionaries: Dictionaries) -> list[Site]:
    """One site per component that writes to the residual stream, in forward order: attention then MLP of each layer.

    Attention is taken at `attn_out` where a dictionary writes there, else at `z`; an MLP at `mlp_post` where a
    dictionary writes there, else at `mlp_out`. DictionaryError for dictionaries at both in one layer.
    """
    written = set(dictionaries.written)
    sites = []
    for layer in range(model.n_layers):
        for usual, other, part in (("z", "attn_out", "attention"), ("mlp_out", "mlp_post", "MLP")):
            if {Site(usual, layer), Site(other, layer)} <= written:
                raise DictionaryError(
                    f"dictionaries at {usual}.{layer} and {other}.{layer} explain the same {part}; give one of them"
                )
            sites.append(Site(other if Site(other, layer) in written else usual, layer))
    return sites


def node_sites(model: Model, dictionaries: Dictionaries, treatment: ComponentTreatment | None = None) -> list[Site]:
    """Every site that has nodes of its own besides the embeddings, in forward order: those where dictionaries write,
    and those of components that are treated as nodes."""
    treatment = treatment or ComponentTreatment()
    components = {site for site in component_sites(model, dictionaries) if treatment.of(site) == "node"}
    return sorted(components.union(dictionaries.written))


def frozen_outputs(model: Model, dictionaries: Dictionaries, treatment: ComponentTreatment) -> list[Site]:
    """The outputs of components without a dictionary that are frozen, in forward order."""
    sites = set(component_sites(model, dictionaries)) - set(dictionaries.written)
    return sorted(site.output for site in sites if treatment.of(site) == "frozen")


def error_targets(model: Model, dictionaries: Dictionaries, treatment: ComponentTreatment | None = None) -> list[Site]:
    """The sites whose errors can be targets, in forward order: those of components without a dictionary, and those
    where dictionaries write what they read. A transcoder's error is the difference of two components and stays a source
    only."""
    return [
        site
        for site in node_sites(model, dictionaries, treatment)
        if all(dictionary.reads == site for dictionary in dictionaries.writers(site))
    ]


def frozen_components(
    model: Model,
    dictionaries: Dictionaries,
    clean: CleanRun,
    treatment: ComponentTreatment,
    alignment: Alignment | None = None,
) -> dict[Site, LinearMap]:
    """The map of every frozen component, by its output site.

    Args:
        model: The model.
        dictionaries: Its dictionaries; a component that one of them explains is not frozen.
        clean: The clean run, with its autograd graph.
        treatment: How components are treated.
        alignment: Make maps between aligned positions; None for those of the run.
    """
    sites = frozen_outputs(model, dictionaries, treatment)
    slopes = mlp_slopes(clean, (), [site.layer for site in sites if site.part == "mlp"])
    if alignment is not None:
        slopes, clean = alignment.gather(slopes), alignment.of_run(model, clean)
    return {site: frozen_component(model, site, clean.values, slopes) for site in sites}
