"""Circuits that are known: the programs compute what they say, and patching finds their edges where the ablation lets it."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from support import ROOT

from circuitgraph.errors import CircuitGraphError
from circuitgraph.studies.ground_truth import candidate_edges, edge_effects, main, score
from circuitgraph.studies.programs import build_model, gate, histogram, read_tracr

TRACR = ROOT.parent / "shared" / "data" / "tracr"


@pytest.mark.parametrize(("name", "truth"), [("and", [0, 0, 0, 1]), ("or", [0, 1, 1, 1])])
def test_the_gates_are_gates(name, truth):
    outputs, _ = build_model(gate(name)).run(torch.arange(4)[:, None])
    assert outputs.flatten().tolist() == truth


def test_the_counting_program_counts():
    program = histogram(n_examples=20)
    outputs, _ = build_model(program).run(program.clean)
    own = (program.clean[:, :, None] == program.clean[:, None, 1:]).sum(-1)
    assert torch.equal(outputs[:, 1:].argmax(-1) + 1, own[:, 1:]) and len(own[:, 1:].unique()) >= 4


def test_one_at_a_time_patching_falls_for_the_gates():
    """A broken OR input changes nothing while the other is whole, a repaired AND input nothing while the other is broken."""
    inputs = [("a0.h0", "m0"), ("a0.h1", "m0")]
    for name, noising, denoising in (("and", 1.0, 0.0), ("or", 0.0, 1.0)):
        program = gate(name)
        model = build_model(program)
        for kind, expected in (("corrupted", noising), ("zero", noising), ("denoising", denoising)):
            effects = edge_effects(program, model, kind)
            assert [effects[edge] for edge in inputs] == [expected, expected], (name, kind)
            assert effects["m0", "logits"] == 1.0


def test_scores_of_the_gates():
    """21 edges, 5 true: with 1 of them found and 16 ties, AUROC is (1 + 4 / 2) / 5."""
    for name, kind, expected in (
        ("and", "corrupted", 1.0),
        ("and", "denoising", 0.6),
        ("or", "corrupted", 0.6),
        ("or", "denoising", 1.0),
    ):
        program = gate(name)
        assert len(candidate_edges(program)) == 21
        assert score(program, build_model(program), kind)[0] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["mean", "resample", "corrupted", "denoising"])
def test_the_edges_of_the_counting_program_are_found(kind):
    program = histogram(n_examples=10)
    assert score(program, build_model(program), kind) == (1.0, 4)


def test_zero_ablation_of_the_value_path_breaks_what_is_constant_too():
    """The value of BOS never changes between inputs, and yet the program needs it."""
    program = histogram(n_examples=10)
    model = build_model(program)
    assert ("embed", "a0.h0<v>") not in program.edges
    assert edge_effects(program, model, "zero")["embed", "a0.h0<v>"] > 0.01
    assert edge_effects(program, model, "corrupted")["embed", "a0.h0<v>"] == 0


@pytest.mark.skipif(not TRACR.exists(), reason="needs the compiled programs beside the checkout")
def test_compiled_programs_compute_their_examples_and_are_found_where_signal_flows():
    import json

    for name, expected in (("hist", (1.0, 4)), ("xproportion", (0.8, 3))):
        program = read_tracr(TRACR / f"{name}.npz", n_examples=8)
        model = build_model(program)
        facts = json.loads((TRACR / f"{name}.json").read_text())
        for ids, words in facts["examples"]:
            outputs, _ = model.run(torch.tensor([ids]))
            if facts["categorical"]:
                assert [str(i) for i in outputs[0, 1:].argmax(-1).tolist()] == words[1:]
            else:
                assert outputs[0, 1:, 0].tolist() == pytest.approx([float(word) for word in words[1:]], abs=1e-4)
        value, found = score(program, model, "corrupted")
        assert (pytest.approx(value, abs=0.02), found) == expected


def test_what_is_no_program_is_refused(tmp_path):
    with pytest.raises(CircuitGraphError, match="none.npz is no compiled program: FileNotFoundError"):
        read_tracr(tmp_path / "none.npz")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "bad.npz").write_bytes(b"")
    with pytest.raises(CircuitGraphError, match="bad.npz is no compiled program"):
        read_tracr(tmp_path / "bad.npz")
    with pytest.raises(CircuitGraphError, match="gate 'xor' is unknown"):
        gate("xor")


def test_the_command_prints_the_table():
    lines = CliRunner().invoke(main, []).stdout.splitlines()
    assert lines[0] == "| program | edges | zero | mean | resample | corrupted | denoising |" and len(lines) == 5
    assert lines[2].startswith("| AND | 21 | 1.00 (5/5)") and lines[3].startswith("| OR | 21 | 0.60 (1/5)")
