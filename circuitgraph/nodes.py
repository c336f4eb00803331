"""Sites of a transformer and the nodes of a circuit: names, order, text form.

A site is a place where activations are read or written. A node is one writer into the residual stream (or
the metric that reads it), at one position. The text form of a node is unique and parseable:

    z.2/f17@5            feature 17 of the dictionary at site z.2, position 5
    mlp_out.3/error@5    what that dictionary misses at position 5
    embed@2  pos_embed@2 token and positional embedding
    mlp_out.3/bias@5     the constant that site adds at position 5
    logit/t262@14        the logit of token 262 above the mean logit, at position 14
    resid_post.2/p0@14   what the first target of the graph reads there: a direction, a feature's encoder, a logit
                         difference
    metric@14            the metric, at the position whose logits it reads
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from circuitgraph.errors import GraphError, did_you_mean

NodeKind = Literal["feature", "error", "embedding", "pos_embedding", "bias", "probe", "logit", "metric"]
EdgeKind = Literal["ov", "q", "k", "mlp", "residual", "metric"]

NODE_KINDS: tuple[NodeKind, ...] = (
    "embedding",
    "pos_embedding",
    "bias",
    "feature",
    "error",
    "probe",
    "logit",
    "metric",
)
EDGE_KINDS: tuple[EdgeKind, ...] = ("ov", "q", "k", "mlp", "residual", "metric")

# Order inside one layer of a serial block: a site may read the sites before it.
LAYER_SITES = (
    "resid_pre",
    "ln1_scale",
    "rotary_cos",
    "rotary_sin",
    "q",
    "k",
    "v",
    "attn_scores",
    "pattern",
    "z",
    "ln1_post_scale",
    "attn_out",
    "ln2_scale",
    "ln2_normalized",
    "mlp_in",
    "mlp_gate",
    "mlp_pre",
    "mlp_post",
    "ln2_post_scale",
    "mlp_out",
    "resid_post",
)
GLOBAL_SITES = ("embed", "pos_embed", "final_scale", "logit", "metric")

# Kinds of sites where a dictionary may read or write, and where a direction can be traced into the stream.
DICTIONARY_SITES = ("resid_pre", "z", "attn_out", "ln2_normalized", "mlp_in", "mlp_post", "mlp_out", "resid_post")
# Those of them whose value is added to the residual stream, or is the stream.
STREAM_SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")

Part = Literal["embedding", "attention", "mlp", "stream", "output"]
_PARTS: dict[str, Part] = {
    "embed": "embedding",
    "pos_embed": "embedding",
    "resid_pre": "stream",
    "resid_post": "stream",
    "final_scale": "output",
    "logit": "output",
    "metric": "output",
    **dict.fromkeys(("ln1_scale", "rotary_cos", "rotary_sin", "q", "k", "v", "attn_scores", "pattern"), "attention"),
    **dict.fromkeys(("z", "ln1_post_scale", "attn_out"), "attention"),
    **dict.fromkeys(("ln2_scale", "ln2_normalized", "mlp_in", "mlp_gate", "mlp_pre", "mlp_post"), "mlp"),
    **dict.fromkeys(("ln2_post_scale", "mlp_out"), "mlp"),
}


@dataclass(frozen=True)
class Site:
    """A place in the model: a kind from `LAYER_SITES` with its layer, or one of `GLOBAL_SITES` (layer None)."""

    kind: str
    layer: int | None = None

    def __post_init__(self) -> None:
        known = GLOBAL_SITES if self.layer is None else LAYER_SITES
        if self.kind not in known:
            hint = did_you_mean(self.kind, LAYER_SITES + GLOBAL_SITES)
            raise GraphError(
                f"site {str(self)!r} is unknown: expected KIND.LAYER or one of {', '.join(GLOBAL_SITES)}.{hint}"
            )
        if self.layer is not None and self.layer < 0:
            raise GraphError(f"site {str(self)!r} has a negative layer: layers count from 0")

    def __str__(self) -> str:
        return self.kind if self.layer is None else f"{self.kind}.{self.layer}"

    @property
    def depth(self) -> int:
        """Rank along the forward pass: embeddings first, then layer by layer, the metric last."""
        if self.layer is None:
            return {
                "embed": -2,
                "pos_embed": -1,
                "final_scale": (1 << 30) - 2,
                "logit": (1 << 30) - 1,
                "metric": 1 << 30,
            }[self.kind]
        return self.layer * len(LAYER_SITES) + LAYER_SITES.index(self.kind)

    def __lt__(self, other: Site) -> bool:
        return self.depth < other.depth

    @property
    def part(self) -> Part:
        """The part of the model it belongs to: embedding, attention, mlp, stream (of the residual stream) or output."""
        return _PARTS[self.kind]

    @property
    def behind_neurons(self) -> bool:
        """Whether the value here depends on the MLP's neurons."""
        return self.kind in ("mlp_post", "mlp_out")

    @property
    def block(self) -> int:
        """The layer whose block must run to reach it: its layer, and 0 for sites that belong to none."""
        return self.layer or 0

    @property
    def output(self) -> Site:
        """Where what is written here joins the residual stream: z at attn_out, neurons at mlp_out, the rest here."""
        return Site({"z": "attn_out", "mlp_post": "mlp_out"}.get(self.kind, self.kind), self.layer)

    @classmethod
    def parse(cls, text: str) -> Site:
        """The site that `str(site)` wrote; GraphError otherwise."""
        kind, dot, layer = text.partition(".")
        if dot and not layer.isdecimal():
            raise GraphError(f"site {text!r} has no layer number after the dot: expected for instance 'mlp_out.3'")
        return cls(kind, int(layer) if dot else None)


@dataclass(frozen=True)
class Node:
    """One node of a circuit; `feature` is set for kind "feature", for "logit" to the token's id and for "probe" to its
    number among the targets."""

    kind: NodeKind
    site: Site
    pos: int
    feature: int | None = None

    def __str__(self) -> str:
        if self.kind in _NUMBERED:
            return f"{self.site}/{_NUMBERED[self.kind]}{self.feature}@{self.pos}"
        if self.kind in ("error", "bias"):
            return f"{self.site}/{self.kind}@{self.pos}"
        return f"{self.site}@{self.pos}"

    @property
    def fields(self) -> dict[str, str | int | None]:
        """Where the node stands, as the attributes that a graph carries: kind, site, layer, pos, feature."""
        site = self.site
        return {"kind": self.kind, "site": str(site), "layer": site.layer, "pos": self.pos, "feature": self.feature}

    @property
    def order(self) -> tuple[int, int, int, int]:
        """Sort key: forward pass, then position, then kind, then feature index."""
        feature = -1 if self.feature is None else self.feature
        return self.site.depth, self.pos, NODE_KINDS.index(self.kind), feature

    @classmethod
    @functools.lru_cache(maxsize=1 << 16)  # a graph names each node once per edge
    def parse(cls, text: str) -> Node:
        """The node that `str(node)` wrote; GraphError otherwise."""
        match = _NODE.fullmatch(text)
        if match is None:
            raise GraphError(
                f"node {text!r} does not parse: expected for instance 'mlp_out.3/f1024@5', 'z.2/error@5' or 'embed@2'"
            )
        site, part, pos = Site.parse(match["site"]), match["part"], int(match["pos"])
        if (site.kind == "logit") != (part is not None and part.startswith("t")) and not (part or "").startswith("p"):
            raise GraphError(f"node {text!r} does not parse: a token id stands behind logit and nowhere else")
        if part is None:
            if site.kind not in _GLOBAL_NODES:
                raise GraphError(f"node {text!r} names no feature, error or bias of its site")
            return cls(_GLOBAL_NODES[site.kind], site, pos)
        if part in ("error", "bias"):
            return cls(part, site, pos)  # type: ignore[arg-type]
        kind = next(kind for kind, letter in _NUMBERED.items() if part.startswith(letter))
        return cls(kind, site, pos, int(part[1:]))


_NUMBERED: dict[NodeKind, str] = {"feature": "f", "logit": "t", "probe": "p"}
_GLOBAL_NODES: dict[str, NodeKind] = {"embed": "embedding", "pos_embed": "pos_embedding", "metric": "metric"}
_NODE = re.compile(r"(?P<site>[a-z_0-9]+(\.\d+)?)(/(?P<part>[ftp]\d+|error|bias))?@(?P<pos>\d+)")
