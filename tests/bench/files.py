"""CPU seconds of writing and reading graph files: 50,000 edges, without and with loadings of 12 heads on three quarters of them.

    python tests/bench/files.py [--edges 50000] [--repeat 7]

prints one line per graph: the median over the repeats.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import networkx as nx

from circuitgraph.formats import load, save
from circuitgraph.nodes import Node, Site


def random_graph(n_edges: int, heads: int) -> nx.MultiDiGraph:
    """1,001 nodes in ten layers and so many edges of four kinds."""
    rng = random.Random(0)
    graph = nx.MultiDiGraph()
    graph.graph.update(
        tokens={"clean": [" a"] * 10, "corrupted": [" b"] * 10}, metric={"name": "logit", "clean": 2.0, "corrupted": 1.0},
        n_layers=10, n_examples=1, provenance={}, reports=[],
    )  # fmt: skip
    nodes = [Node("feature", Site("mlp_out", i % 10), i // 10 % 10, i) for i in range(1000)]
    for node in [*nodes, Node("metric", Site("metric"), 9)]:
        graph.add_node(str(node), **node.fields, attribution=rng.random())
    while graph.number_of_edges() < n_edges:
        source, target = sorted(rng.sample(nodes, 2), key=lambda node: node.site.depth)
        if source.site == target.site or graph.has_edge(str(source), str(target)):
            continue
        for kind in ("mlp", "ov", "q", "k"):
            more = {"heads": [rng.gauss(0, 1) for _ in range(heads)]} if heads and kind != "mlp" else {}
            numbers = {name: rng.gauss(0, 1) for name in ("weight", "local_weight", "weight_abs")}
            graph.add_edge(str(source), str(target), key=kind, kind=kind, **numbers, **more)
    return graph


def seconds(work: Callable[[], object], repeat: int) -> float:
    """The median CPU time."""
    found = []
    for _ in range(repeat):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return statistics.median(found)


def main() -> None:
    """Parse, build, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", type=int, default=50_000)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.json"
        for heads in (0, 12):
            graph = random_graph(options.edges, heads)
            write = seconds(lambda graph=graph: save(graph, file), options.repeat)
            read = seconds(lambda: load(file), options.repeat)
            size = file.stat().st_size / (1 << 20)
            print(
                f"{graph.number_of_edges()} edges, {heads} heads: write {write:.2f}, read {read:.2f} CPU s, {size:.0f} MiB"
            )


if __name__ == "__main__":
    main()
