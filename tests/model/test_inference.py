import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sarm_ray.model.inference import infer_readout
from sarm_ray.model.sarm import HEADS, SarmShape
from tests.model.tiny import full_forward, margins, random_inputs, random_sarm, tiny_config

SHAPE = tiny_config().shape


def infer(model, inputs, readout, heads=HEADS):
    with torch.inference_mode():
        return infer_readout(model, *inputs, readout, list(heads))


def check_against_full_forward(model, inputs, readout, heads):
    inferred = infer(model, inputs, readout, heads)
    assert list(inferred) == list(heads)
    for head in heads:
        probabilities, _, tau = full_forward(model, *inputs, head)
        torch.testing.assert_close(inferred[head][0], probabilities[:, readout], rtol=0, atol=1e-6)
        torch.testing.assert_close(inferred[head][1], tau[:, readout], rtol=0, atol=1e-6)


@pytest.mark.parametrize("readout", [4, 8], ids=["centered", "past"])
@pytest.mark.parametrize("heads", [("sparse",), ("dense",), HEADS, ("dense", "sparse")], ids=",".join)
def test_equals_the_full_forward(readout, heads):
    check_against_full_forward(random_sarm(SHAPE), random_inputs(SHAPE, 16, 9), readout, heads)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    num_stages=st.tuples(st.integers(1, 4), st.integers(1, 8)),
    num_heads=st.sampled_from([1, 2, 4]),
    head_width=st.sampled_from([8, 12]),
    num_layers=st.integers(1, 3),
    dims=st.tuples(st.integers(1, 20), st.integers(1, 20), st.integers(1, 9)),
    num_cameras=st.integers(1, 3),
    num_windows=st.integers(1, 3),
    num_slots=st.integers(1, 11),
    heads=st.sampled_from([("sparse",), ("dense",), HEADS]),
    seed=st.integers(0, 2**16),
    data=st.data(),
)
def test_equals_the_full_forward_for_any_shape(
    num_stages, num_heads, head_width, num_layers, dims, num_cameras, num_windows, num_slots, heads, seed, data
):
    shape = SarmShape(*num_stages, num_heads * head_width, num_heads, num_layers, *dims, num_cameras=num_cameras)
    readout = data.draw(st.integers(0, num_slots - 1), label="readout")
    model, inputs = random_sarm(shape, seed), random_inputs(shape, num_windows, num_slots, seed)
    for head in heads:  # a tie may fall either way
        assume(margins(full_forward(model, *inputs, head)[0]).min() > 1e-4)
    check_against_full_forward(model, inputs, readout, heads)


def test_heads_do_not_see_each_other():
    model, inputs = random_sarm(SHAPE), random_inputs(SHAPE, 16, 9)
    together = infer(model, inputs, 4)
    with torch.no_grad():
        model.stage_model.heads["sparse"].weight.neg_()
    changed = infer(model, inputs, 4)
    assert (together["sparse"][0].argmax(-1) != changed["sparse"][0].argmax(-1)).any()
    for part in range(2):
        torch.testing.assert_close(changed["dense"][part], together["dense"][part], rtol=0, atol=1e-7)
        torch.testing.assert_close(
            infer(model, inputs, 4, ["dense"])["dense"][part], together["dense"][part], rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("readout", [4, 8])
def test_windows_do_not_see_each_other(readout):
    model, inputs = random_sarm(SHAPE), random_inputs(SHAPE, 6, 9)
    together = infer(model, inputs, readout)
    for window in range(6):
        alone = infer(model, [part[window : window + 1] for part in inputs], readout)
        for head in HEADS:
            for part in range(2):
                torch.testing.assert_close(alone[head][part][0], together[head][part][window], rtol=0, atol=1e-6)


def test_state_after_the_readout_slot_never_reaches_the_stages():
    """In the full forward pass, so that leaving those tokens out is right; in ours, to the last bit."""
    model, (vision, text, state) = random_sarm(SHAPE), random_inputs(SHAPE, 4, 9)
    full, inferred = full_forward(model, vision, text, state, "dense")[0], infer(model, (vision, text, state), 4)
    state[:, 5:] = 1e3
    after, again = full_forward(model, vision, text, state, "dense")[0], infer(model, (vision, text, state), 4)
    torch.testing.assert_close(after[:, :5], full[:, :5], rtol=0, atol=1e-6)
    for head in HEADS:
        assert torch.equal(again[head][0], inferred[head][0])


def test_state_after_the_readout_slot_does_reach_tau():
    """Stage tokens come after all state tokens: none of those may be left out of the subtask network."""
    model, (vision, text, state) = random_sarm(SHAPE), random_inputs(SHAPE, 4, 9)
    before = infer(model, (vision, text, state), 4)["sparse"]
    state[:, 8] += 2.0
    after = infer(model, (vision, text, state), 4)["sparse"]
    assert torch.equal(after[0], before[0])
    assert (after[1] - before[1]).abs().min() > 1e-4


def test_stages_after_the_readout_slot_never_reach_tau_and_earlier_ones_do():
    model, inputs = random_sarm(SHAPE), random_inputs(SHAPE, 4, 9)
    stages = torch.ones(4, 9, dtype=torch.int64)
    late, early = stages.clone(), stages.clone()
    late[:, 5:] = 2
    early[:, :4] = 2
    with torch.inference_mode():
        tau, tau_late, tau_early = (
            model.subtask_model(*inputs, {"sparse": each})["sparse"][:, 4] for each in (stages, late, early)
        )
    torch.testing.assert_close(tau_late, tau, rtol=0, atol=1e-6)
    assert (tau_early - tau).abs().max() > 1e-4


def test_future_frames_do_matter():
    model, (vision, text, state) = random_sarm(SHAPE), random_inputs(SHAPE, 4, 9)
    before = infer(model, (vision, text, state), 4)["dense"]
    vision[:, 8] += 2.0
    after = infer(model, (vision, text, state), 4)["dense"]
    assert (after[0] - before[0]).abs().amax(-1).min() > 1e-5
    assert (after[1] - before[1]).abs().min() > 1e-5


@pytest.mark.parametrize("heads", [("sparse",), HEADS], ids=",".join)
def test_one_stage_heads_never_run_the_stage_network(heads):
    shape = tiny_config(num_sparse_stages=1, num_dense_stages=1).shape
    model, inputs = random_sarm(shape), random_inputs(shape, 5, 9)
    with torch.no_grad():
        for parameter in model.stage_model.parameters():
            parameter.fill_(float("nan"))
        zeros = torch.zeros(5, 9, dtype=torch.int64)
        expected = {head: model.subtask_model(*inputs, {head: zeros})[head][:, 4] for head in heads}
    for head, (probabilities, tau) in infer(model, inputs, 4, heads).items():
        assert torch.equal(probabilities, torch.ones(5, 1))
        torch.testing.assert_close(tau, expected[head], rtol=0, atol=1e-6)


def test_one_stage_head_beside_a_head_with_several():
    """dense_only: the sparse head has one stage, and shares the trunks all the same."""
    shape = tiny_config(num_sparse_stages=1).shape
    model, inputs = random_sarm(shape), random_inputs(shape, 5, 9)
    check_against_full_forward(model, inputs, 4, HEADS)
    assert torch.equal(infer(model, inputs, 4)["sparse"][0], torch.ones(5, 1))


def test_no_windows():
    inferred = infer(random_sarm(SHAPE), random_inputs(SHAPE, 0, 9), 4)
    assert {head: tuple(part.shape for part in parts) for head, parts in inferred.items()} == {
        "sparse": ((0, 3), (0,)),
        "dense": ((0, 5), (0,)),
    }
