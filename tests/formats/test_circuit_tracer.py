"""circuit-tracer's .pt graphs: tensors are read, objects are refused and never built."""

from __future__ import annotations

import os
import zipfile

import pytest
import torch
from support.graph_files import circuit_tracer_file

from circuitgraph.errors import GraphError
from circuitgraph.formats import graph_to_text, load
from circuitgraph.formats.neuronpedia_names import cantor
from circuitgraph.formats.neuronpedia_read import value_from_neuronpedia


def contents():
    """Two layers, two positions, two selected features of three active ones, two logits; the numbers of the JSON test."""
    order = ["f0", "f1", "e00", "e01", "e10", "e11", "t0", "t1", "l0", "l1"]
    links = [
        ("t0", "f0", 2.0),
        ("f0", "f1", 3.0),
        ("e01", "f1", 1.0),
        ("f1", "l0", 8.0),
        ("f1", "l1", 4.0),
        ("t1", "l0", -2.0),
    ]
    matrix = torch.zeros(10, 10)
    for source, target, weight in links:
        matrix[order.index(target), order.index(source)] = weight
    return {
        "input_string": "ab", "adjacency_matrix": matrix, "cfg": {"n_layers": 2}, "scan": "gemma-2-2b",
        "active_features": torch.tensor([[0, 1, 3], [0, 0, 9], [1, 1, 4]]), "selected_features": torch.tensor([0, 2]),
        "activation_values": torch.tensor([2.0, 5.0, 4.0]), "logit_probabilities": torch.tensor([0.75, 0.25]),
        "logit_targets": [["x", 7], ["y", 8]], "input_tokens": torch.tensor([5, 6]), "vocab_size": 10,
    }  # fmt: skip


def saved(path, **changes):
    torch.save({k: v for k, v in (contents() | changes).items() if v is not None}, path)
    return path


def test_a_file_of_tensors_is_read_with_weights_that_can_be_checked_on_paper(tmp_path):
    graph = load(saved(tmp_path / "g.pt"))
    assert set(graph) == {"embed@0", "embed@1", "mlp_out.0/f3@1", "mlp_out.1/f4@1", "mlp_out.0/error@1", "metric@1"}
    assert graph.edges["mlp_out.1/f4@1", "metric@1", "metric"]["weight"] == 0.75 * 8 + 0.25 * 4
    assert graph.nodes["mlp_out.0/f3@1"] | {"attribution": 3 * 1.75, "activation": 2.0} == graph.nodes["mlp_out.0/f3@1"]
    assert graph.graph["neuronpedia"]["logits"]["logit 1"] == {"label": "y", "probability": 0.25}
    graph_to_text(graph)


def test_the_json_of_the_same_graph_has_the_same_numbers(tmp_path):

    ours, theirs = load(saved(tmp_path / "g.pt")), value_from_neuronpedia(circuit_tracer_file())
    for name in ("weight", "local_weight"):
        assert {e[:3]: e[3] for e in ours.edges(keys=True, data=name)} == {
            e[:3]: e[3] for e in theirs.edges(keys=True, data=name)
        }
    assert cantor(1, 4) == 19


class Canary:
    """What a pickle could do: run a command when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("key", ["cfg", "logit_targets", "extra"])
def test_nothing_in_a_file_is_executed(key, tmp_path):
    path = saved(tmp_path / "g.pt", **{key: Canary(tmp_path / "canary")})
    with pytest.raises(GraphError, match="holds more than tensors and plain values .*create_graph_files"):
        load(path)
    assert not (tmp_path / "canary").exists()
    torch.load(path, weights_only=False)  # the canary is alive
    assert (tmp_path / "canary").exists()


BROKEN = {
    "shape": (
        {"adjacency_matrix": torch.zeros(9, 9)},
        r"shape \(9, 9\); 2 features, 2 layers, 2 positions and 2 logits make \(10, 10\)",
    ),
    "NaN": ({"activation_values": torch.tensor([2.0, float("nan"), 4.0])}, "activation_values holds NaN"),
    "beyond": ({"selected_features": torch.tensor([0, 3])}, "beyond the 3 active ones"),
    "layer": ({"active_features": torch.tensor([[9, 1, 3], [0, 0, 9], [1, 1, 4]])}, "feature 1 is .* does not exist"),
    "no cfg": ({"cfg": None}, "cfg.n_layers is None"),
    "huge cfg": ({"cfg": {"n_layers": 10**12}}, "cfg.n_layers is 1000000000000"),
    "no logits": ({"logit_targets": None}, "must name the 2 logits"),
    "no matrix": ({"adjacency_matrix": None}, "adjacency_matrix is NoneType; expected a tensor of 2 dimensions"),
    "sparse": (
        {"adjacency_matrix": torch.zeros(10, 10).to_sparse()},
        "adjacency_matrix is Tensor; expected a tensor of 2",
    ),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused(change, message, tmp_path):
    with pytest.raises(GraphError, match=message):
        load(saved(tmp_path / "g.pt", **change))


def test_what_is_no_such_file_is_refused(tmp_path):
    (tmp_path / "g.pt").write_bytes(b"nothing")
    with pytest.raises(GraphError, match="g.pt: it holds more than tensors"):
        load(tmp_path / "g.pt")
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * (32 << 20))
    with pytest.raises(GraphError, match="bomb.pt: it claims 33554432 bytes in a file of"):
        load(tmp_path / "bomb.pt")
    with pytest.raises(GraphError, match="does not exist"):
        load(tmp_path / "none.pt")
