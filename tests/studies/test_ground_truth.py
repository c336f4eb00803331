"""Circuits that are known: the programs compute what they say, and patching finds their edges where the ablation lets it."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner
from support.close import assert_close
from support.compiled_programs import save_histogram, save_proportion

from circuitgraph.errors import CircuitGraphError
from circuitgraph.studies.ground_truth import candidate_edges, edge_effects, main, score
from circuitgraph.studies.programs import build_model, gate, histogram, read_tracr


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


def test_programs_in_tracrs_files_compute_what_they_say_and_are_found_where_signal_flows(tmp_path):
    """The two edges from positions to the head of `proportion` carry what no two inputs differ in: with them among 21 or
    more that have no effect, AUROC is (3 + 2 / 2) / 5."""
    counting, averaging = (read_tracr(save(tmp_path), n_examples=8) for save in (save_histogram, save_proportion))
    outputs, _ = build_model(counting).run(counting.clean)
    counts = (counting.clean[:, :, None] == counting.clean[:, None, 1:]).sum(-1)
    assert torch.equal(outputs[:, 1:].argmax(-1) + 1, counts[:, 1:]) and len(counts[:, 1:].unique()) >= 4
    outputs, _ = build_model(averaging).run(averaging.clean)
    shares = (averaging.clean[:, 1:] == 1).double().cumsum(-1) / torch.arange(1, 6)
    assert_close(outputs[:, 1:, 0], shares)
    assert score(counting, build_model(counting), "corrupted") == (1.0, 4)
    area, n_found = score(averaging, build_model(averaging), "corrupted")
    assert_close(area, 0.8)
    assert n_found == 3 and len(averaging.edges) == 5


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
