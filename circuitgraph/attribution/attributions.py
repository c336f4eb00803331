"""Every node's attribution as columns: to rank, select, tabulate, save and load."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from circuitgraph.attribution.tables import FeatureTable, NodeTable
from circuitgraph.errors import CircuitGraphError, GraphError
from circuitgraph.files import check_writable, write_atomically
from circuitgraph.nodes import NODE_KINDS, Node, NodeKind, Site
from circuitgraph.text import table_text

if TYPE_CHECKING:
    import pandas

_FORMAT = "circuitgraph.attributions"
_VERSION = 1
_COLUMNS = ("site", "kind", "pos", "feature", "attribution", "activation", "baseline_activation")


@dataclass(frozen=True, eq=False)
class Attributions:
    """n nodes in forward order, as columns.

        sites                  the sites that `site` counts in
        site, kind             [n] int64: which of `sites`, which of `nodes.NODE_KINDS`
        pos, feature           [n] int64: token position; feature's index, -1 for nodes that have none
        attribution            [batch, n]: estimated contribution to the metric, clean minus baseline, per example
        activation, baseline_activation   [batch, n]: of features; NaN for other nodes
        facts                  metric {name, clean, corrupted}, model, dictionaries, prompts, settings as plain values

    A node that is active in no run of any example is not listed: its attribution is 0.
    """

    sites: tuple[Site, ...]
    site: Tensor
    kind: Tensor
    pos: Tensor
    feature: Tensor
    attribution: Tensor
    activation: Tensor
    baseline_activation: Tensor
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pos)

    def __repr__(self) -> str:
        rows = [[str(node), f"{value:+.4f}"] for node, value in self.top(10)]
        lines = table_text(["strongest nodes", "attribution"], rows)
        return "\n".join([f"{len(self)} nodes at {len(self.sites)} sites, {len(self.attribution)} examples", *lines])

    @classmethod
    def of_tables(cls, tables: Sequence[NodeTable], facts: Mapping[str, Any] | None = None) -> Attributions:
        """The columns of these tables, one after the other."""
        sites = sorted({table.site for table in tables})
        parts: dict[str, list[Tensor]] = {name: [] for name in _COLUMNS}
        for table in tables:
            nothing = torch.full_like(table.attribution, torch.nan)
            features = table if isinstance(table, FeatureTable) else None
            column: dict[str, Tensor] = {
                "site": torch.full_like(table.pos, sites.index(table.site)),
                "kind": torch.full_like(table.pos, NODE_KINDS.index(table.kind)),
                "pos": table.pos,
                "feature": torch.full_like(table.pos, -1) if features is None else features.feature,
                "attribution": table.attribution,
                "activation": nothing if features is None else features.acts,
                "baseline_activation": nothing if features is None else features.baseline_acts,
            }
            for name, values in column.items():
                parts[name].append(values.detach().cpu())
        columns = {name: torch.cat(values, -1) for name, values in parts.items()}
        return cls(tuple(sites), **columns, facts=dict(facts or {}))

    @property
    def mean(self) -> Tensor:
        """[n]: the mean over the examples."""
        return self.attribution.mean(0)

    @property
    def total(self) -> Tensor:
        """[n]: the sum over the examples."""
        return self.attribution.sum(0)

    def node(self, column: int) -> Node:
        """The node of one column."""
        kind, feature = NODE_KINDS[int(self.kind[column])], int(self.feature[column])
        return Node(kind, self.sites[int(self.site[column])], int(self.pos[column]), None if feature < 0 else feature)

    def nodes(self) -> list[Node]:
        """The nodes of all columns."""
        columns = zip(*(x.tolist() for x in (self.site, self.kind, self.pos, self.feature)), strict=True)
        return [Node(NODE_KINDS[k], self.sites[s], p, None if f < 0 else f) for s, k, p, f in columns]

    def take(self, columns: Tensor) -> Attributions:
        """These columns only (indices [m] or a mask [n])."""
        return replace(self, **{name: getattr(self, name)[..., columns] for name in _COLUMNS})

    def top(self, n: int = 10) -> list[tuple[Node, float]]:
        """The n nodes with the largest |mean attribution|, largest first; ties keep forward order."""
        if n < 0:
            raise CircuitGraphError(f"n is {n}; expected 0 or more")
        mean = self.mean
        order = mean.abs().argsort(descending=True, stable=True)[:n].tolist()
        return [(self.node(i), float(mean[i])) for i in order]

    def above(self, threshold: float, *, signed: bool = False) -> Attributions:
        """The nodes whose |mean attribution| (signed: mean attribution) is above the threshold, in forward order."""
        mean = self.mean
        return self.take((mean if signed else mean.abs()) > threshold)

    def by_site(self) -> dict[Site, Attributions]:
        """The nodes of each site, in forward order."""
        return {site: self.take(self.site == i) for i, site in enumerate(self.sites) if bool((self.site == i).any())}

    def of_kind(self, kind: NodeKind) -> Attributions:
        """The nodes of one kind, for instance "feature" or "error"."""
        if kind not in get_args(NodeKind):
            raise CircuitGraphError(f"kind {kind!r} is unknown; expected one of {', '.join(NODE_KINDS)}")
        return self.take(self.kind == NODE_KINDS.index(kind))

    def to_pandas(self) -> pandas.DataFrame:
        """One row per node, with means over the examples.

        Columns: node, kind, site, layer, pos, feature, attribution, activation, baseline_activation.

        Raises CircuitGraphError where pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise CircuitGraphError("to_pandas needs pandas, which is not installed; pip install pandas") from None
        nodes = self.nodes()
        columns: dict[str, Any] = {"node": [str(node) for node in nodes]}
        columns |= {name: [node.fields[name] for node in nodes] for name in ("kind", "site", "layer", "pos", "feature")}
        columns |= {name: getattr(self, name).mean(0).numpy() for name in _COLUMNS[4:]}
        return pandas.DataFrame(columns)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything into one safetensors file, which `load_attributions` reads.

        Sites and facts are JSON in its header.
        """
        from safetensors.torch import save

        check_writable(path)
        header = {
            "format": _FORMAT,
            "version": _VERSION,
            "sites": list(map(str, self.sites)),
            "facts": dict(self.facts),
        }
        tensors = {name: getattr(self, name).contiguous() for name in _COLUMNS}
        write_atomically(path, save(tensors, metadata={_FORMAT: json.dumps(header, ensure_ascii=False)}))


def load_attributions(path: str | os.PathLike[str]) -> Attributions:
    """What `Attributions.save` wrote.

    Args:
        path: The safetensors file.

    Raises GraphError, in one line, for any other file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise GraphError(f"attribution file {os.fspath(path)} does not exist")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_FORMAT, "")
            tensors = {name: file.get_tensor(name) for name in file.keys() if name in _COLUMNS}  # noqa: SIM118
        header = json.loads(text or "{}")
    except (SafetensorError, OSError, ValueError) as error:
        raise GraphError(f"attribution file {os.fspath(path)} cannot be read: {error}") from None
    return _checked(os.fspath(path), header, tensors)


def _checked(path: str, header: Any, tensors: dict[str, Tensor]) -> Attributions:
    """The value of a file's header and tensors; GraphError unless they fit together."""
    if not isinstance(header, dict) or header.get("format") != _FORMAT or set(tensors) != set(_COLUMNS):
        raise GraphError(f"{path} holds no attributions; expected a file that Attributions.save wrote")
    if header.get("version") != _VERSION:
        raise GraphError(f"{path} is of version {header.get('version')}; this circuitgraph reads version {_VERSION}")
    sites = tuple(map(Site.parse, header["sites"]))
    n = len(tensors["pos"])
    counts = all(tensors[name].dtype == torch.int64 and tensors[name].shape == (n,) for name in _COLUMNS[:4])
    values = {tuple(tensors[name].shape) for name in _COLUMNS[4:]}
    if not counts or len(values) != 1 or next(iter(values))[-1:] != (n,):
        raise GraphError(f"{path}: its columns have different lengths or types; the file is broken")
    for name, known in (("site", sites), ("kind", NODE_KINDS)):
        if n and not 0 <= int(tensors[name].min()) <= int(tensors[name].max()) < len(known):
            raise GraphError(f"{path}: column {name!r} counts beyond its {len(known)} names; the file is broken")
    return Attributions(sites, **tensors, facts=header["facts"])
