"""CPU seconds of evaluating the embedded model: patch effects of 500 features, and a CPR/CMD curve on many pairs.

    OMP_NUM_THREADS=1 python tests/bench/evaluation.py [--pairs 64]

prints one line each, loading not counted.
"""

from __future__ import annotations

import argparse
import resource
import time

import circuitgraph as cg
from circuitgraph import embedded
from circuitgraph.evaluation.evidence import evaluate


def cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=64)
    n_pairs = parser.parse_args().pairs
    model = cg.load_model(embedded.MODEL)
    dictionaries = cg.load_dictionaries(embedded.circuit_dictionaries(), model)
    few = {"n_edges": 0, "n_dropped": 0, "baselines": ()}
    for pairs, settings in ((8, {"n_patched": 500, "curves": False}), (n_pairs, {"n_patched": 0, "curves": True})):
        graph = cg.discover(cg.make_pairs("ioi", pairs, template=0), model, dictionaries, edge_threshold=1e-4)
        began, started = cpu(), time.time()
        found = evaluate(graph, model, dictionaries, **few, **settings)
        what = (
            f"{found.n_patched} nodes patched" if not settings["curves"] else f"CPR {found.cpr:.3f} CMD {found.cmd:.3f}"
        )
        print(f"{pairs} pairs: {what}: {cpu() - began:.1f} CPU s, {time.time() - started:.1f} s")


if __name__ == "__main__":
    main()
