"""What can be frozen: activations that keep the value of the run without changes."""

from __future__ import annotations

from collections.abc import Sequence

from circuitgraph.errors import CircuitGraphError, did_you_mean
from circuitgraph.models.model import Model
from circuitgraph.nodes import Site

FREEZE = {
    "attention": ("pattern",),
    "norms": ("ln1_scale", "ln1_post_scale", "ln2_scale", "ln2_post_scale"),
    "final_norm": ("final_scale",),
    "mlp": ("mlp_out",),
}


def frozen_sites(model: Model, freeze: Sequence[str | Site]) -> set[Site]:
    """The sites that are frozen.

    Args:
        model: The model.
        freeze: "attention" (patterns), "norms" (their scales in the blocks), "final_norm" (its scale), "mlp"
            (outputs), or sites of these kinds and of attn_out, such as "mlp_out.3".

    Raises CircuitGraphError for anything else.
    """
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
