"""The circuit that the embedded model uses to match a verb to its subject past an attractor, in a minute on a laptop.

python examples/quickstart.py [FOLDER]
"""

import sys
from pathlib import Path

import circuitgraph as cg
from circuitgraph import demo

folder = Path(sys.argv[1] if len(sys.argv) > 1 else "quickstart")
folder.mkdir(parents=True, exist_ok=True)

model = cg.load_model(demo.MODEL)
dictionaries = cg.load_dictionaries(demo.circuit_dictionaries(), model)
pairs = cg.make_pairs("subject-verb-agreement", 8, template=0)
graph = cg.discover(pairs, model, dictionaries)

print("nodes  faithfulness  without errors")
for max_nodes in (10, 30, 100, 300):
    circuit = cg.prune(graph, max_nodes=max_nodes)
    evidence = cg.evaluate(circuit, model, dictionaries, n_patched=10, n_edges=0, n_dropped=0, curves=False)
    print(f"{len(circuit) - 1:5}  {evidence.faithfulness:12.2f}  {evidence.faithfulness_errors_removed:14.2f}")

circuit = cg.prune(graph, max_nodes=60, top_k=6)
circuit = cg.attach_evidence(circuit, cg.evaluate(circuit, model, dictionaries))
cg.save(circuit, folder / "agreement.json")
cg.save(circuit, folder / "agreement.html")
print(folder / "agreement.html")
