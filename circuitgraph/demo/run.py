"""The demo: the circuit of a task in the embedded model. It uses the same public functions as any other program."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import networkx as nx

from circuitgraph.dictionaries.load import load_dictionaries
from circuitgraph.discovery import discover
from circuitgraph.embedded import MODEL, circuit_dictionaries
from circuitgraph.errors import CircuitGraphError
from circuitgraph.evaluation.evidence import measure
from circuitgraph.files import check_writable
from circuitgraph.formats import save
from circuitgraph.graphs.pruning import prune
from circuitgraph.models.load import load_model
from circuitgraph.nodes import EDGE_KINDS, NODE_KINDS
from circuitgraph.progress import Progress, no_progress
from circuitgraph.settings import Demo, resolve
from circuitgraph.tasks import TASKS, make_pairs


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Args:
        circuit: The pruned graph with its evidence.
        files: Those that were written.
    """

    circuit: nx.MultiDiGraph
    files: tuple[Path, ...]

    def _others(self) -> str:
        others = self.circuit.graph["n_examples"] - 1
        return f" and {others} more" if others else ""

    def lines(self) -> list[str]:
        """What the command prints: counts, metric, evidence, files."""
        circuit = self.circuit
        evidence, metric = circuit.graph["evidence"], circuit.graph["metric"]
        nodes = Counter(kind for _, kind in circuit.nodes(data="kind"))
        edges = Counter(kind for *_, kind in circuit.edges(data="kind"))
        by_node_kind = ", ".join(f"{nodes[kind]} {kind}" for kind in NODE_KINDS if nodes[kind])
        by_edge_kind = ", ".join(f"{edges[kind]} {kind}" for kind in EDGE_KINDS if edges[kind])
        return [
            f"prompt {circuit.graph['provenance']['prompts'][0]['clean']!r}{self._others()}",
            f"nodes {len(circuit)} ({by_node_kind})",
            f"edges {circuit.number_of_edges()} ({by_edge_kind})",
            f"{metric['name']} clean {metric['clean']:.2f} corrupted {metric['corrupted']:.2f}",
            f"faithfulness {_figure(evidence['faithfulness'])} (errors kept)",
            f"faithfulness {_figure(evidence['faithfulness_errors_removed'])} (errors removed)",
            f"pearson r {_figure(evidence['pearson_r'])} (attribution against measured effect,"
            f" {evidence['n_patched']} nodes)",
            *map(str, self.files),
        ]


def run_demo(
    out: str | Path,
    *,
    settings: Demo | None = None,
    device: str | None = None,
    progress: Progress = no_progress,
    **changes: Any,
) -> DemoResult:
    """Find the circuit of a task in the embedded model, measure it, and write circuit.json, .svg and .html.

    Args:
        out: The folder to write into; it is made if needed.
        settings: The defaults, or all settings at once.
        device: Where to compute, as of `load_model`.
        progress: Called with (stage, done, total).
        **changes: Fields of `settings.Demo` over them:
            task: A name of `circuitgraph.tasks.TASKS`.
            n_pairs: How many held-out prompt pairs to average over.
            align: "position" takes the pairs of the task's first template; "role" takes those of all templates and
                matches tokens by the words that decide.
            max_nodes: The most nodes that the circuit may have, the metric included.
            seed: Seed of the pairs.

    Raises CircuitGraphError for an unknown task, a count that is too small, or a folder that cannot be written.
    """
    chosen = resolve(Demo, settings, changes)
    task, align = chosen.task, chosen.align
    pairs = make_pairs(task, chosen.n_pairs, seed=chosen.seed, template=None if align == "role" else 0)
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CircuitGraphError(f"cannot create folder {out}: {error.strerror}; choose another --out") from None
    files = tuple(out / f"circuit.{suffix}" for suffix in ("json", "svg", "html"))
    for path in files:
        check_writable(path)
    progress("loading the model", 0, 1)
    model = load_model(MODEL, device=device)
    dictionaries = load_dictionaries(circuit_dictionaries(), model)
    graph = discover(pairs, model, dictionaries, metric=TASKS[task].metric, align=align, progress=progress)
    circuit = prune(graph, max_nodes=chosen.max_nodes)
    circuit = measure(circuit, model, dictionaries, n_patched=50, n_edges=0, progress=progress)

    progress("writing", 0, 1)
    for path in files:
        save(circuit, path)
    return DemoResult(circuit, files)


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"
