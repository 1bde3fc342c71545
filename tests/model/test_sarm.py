from dataclasses import replace

import pytest
import torch

from sarm_ray.model.sarm import HEADS, Sarm, SarmShape
from tests.model.tiny import random_inputs, random_sarm, tiny_config

SHAPE = tiny_config().shape


def lerobot_tensors(streams: int, heads: dict[str, int]) -> list[tuple[str, tuple[int, ...]]]:
    """One network's tensors at the default sizes, written from spec/lerobot.md 1.8."""
    names: list[tuple[str, tuple[int, ...]]] = [("first_pos", (1, 768))]
    for name, dim in (("lang_proj", 512), ("visual_proj", 512), ("state_proj", 32)):
        names += [(f"{name}.weight", (768, dim)), (f"{name}.bias", (768,))]
    for layer in range(8):
        prefix = f"transformer.layers.{layer}."
        names += [(f"{prefix}self_attn.in_proj_weight", (2304, 768)), (f"{prefix}self_attn.in_proj_bias", (2304,))]
        for name, size in (
            ("self_attn.out_proj", (768, 768)),
            ("linear1", (3072, 768)),
            ("linear2", (768, 3072)),
            ("norm1", (768,)),
            ("norm2", (768,)),
        ):
            names += [(f"{prefix}{name}.weight", size), (f"{prefix}{name}.bias", size[:1])]
    width = streams * 768
    names += [("fusion_backbone.0.weight", (width,)), ("fusion_backbone.0.bias", (width,))]
    names += [("fusion_backbone.1.weight", (768, width)), ("fusion_backbone.1.bias", (768,))]
    for head, dim in heads.items():
        names += [(f"heads.{head}.weight", (dim, 768)), (f"heads.{head}.bias", (dim,))]
    return names


def full_size(num_sparse: int, num_dense: int) -> Sarm:
    with torch.device("meta"):
        return Sarm(SarmShape(num_sparse, num_dense))


def test_state_dict_is_lerobots_by_name_order_and_shape():
    expected = [("stage_model." + name, size) for name, size in lerobot_tensors(3, {"sparse": 3, "dense": 5})]
    expected += [("subtask_model." + name, size) for name, size in lerobot_tensors(4, {"sparse": 1, "dense": 1})]
    state = full_size(3, 5).state_dict()
    assert [(name, tuple(tensor.shape)) for name, tensor in state.items()] == expected
    assert len(state) == 222
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}


def test_parameter_counts():
    model = full_size(3, 5)
    stage, subtask = (sum(p.numel() for p in net.parameters()) for net in (model.stage_model, model.subtask_model))
    assert stage + subtask == 119_182_858
    assert (round(stage / 1e6, 2), round(subtask / 1e6, 2)) == (59.30, 59.88)


def test_encoder_layers_are_post_norm_relu_without_final_norm():
    encoder = full_size(3, 5).stage_model.transformer
    layer = encoder.layers[0]
    assert encoder.norm is None
    assert not layer.norm_first
    assert layer.activation is torch.nn.functional.relu
    assert (layer.norm1.eps, layer.self_attn.num_heads, layer.dropout.p) == (1e-5, 12, 0.1)


def test_outputs_have_one_value_per_slot():
    model, (vision, text, state) = random_sarm(SHAPE), random_inputs(SHAPE, 2, 13)
    with torch.no_grad():
        logits = {head: model.stage_model(vision, text, state, [head])[head] for head in ("sparse", "dense")}
        tau = model.subtask_model(vision, text, state, {"dense": torch.zeros(2, 13, dtype=torch.int64)})["dense"]
    assert logits["sparse"].shape == (2, 13, 3)
    assert logits["dense"].shape == (2, 13, 5)
    assert tau.shape == (2, 13)
    assert ((tau > 0) & (tau < 1)).all()


@pytest.mark.parametrize(
    ("stream", "slot", "changed"),
    [
        ("vision", 8, range(9)),  # language and state tokens come after all vision tokens and see them
        ("vision", 0, range(9)),
        ("state", 8, [8]),
        ("state", 5, range(5, 9)),
    ],
)
def test_stage_network_sees_what_the_flattened_causal_mask_lets_it(stream, slot, changed):
    model, (vision, text, state) = random_sarm(SHAPE), random_inputs(SHAPE, 1, 9)
    with torch.no_grad():
        before = model.stage_model(vision, text, state, ["sparse"])["sparse"]
        (vision if stream == "vision" else state)[:, slot] += 1.0
        difference = (model.stage_model(vision, text, state, ["sparse"])["sparse"] - before).abs().amax((0, 2))
    assert [t for t in range(9) if difference[t] > 1e-5] == list(changed)
    assert all(difference[t] <= 1e-6 for t in range(9) if t not in changed)


@pytest.mark.parametrize(("stream", "changed"), [("state", range(9)), ("stage", range(5, 9))])
def test_subtask_network_sees_all_states_but_only_earlier_stages(stream, changed):
    model, (vision, text, state) = random_sarm(SHAPE), random_inputs(SHAPE, 1, 9)
    stages = torch.zeros(1, 9, dtype=torch.int64)
    with torch.no_grad():
        before = model.subtask_model(vision, text, state, {"sparse": stages})["sparse"]
        if stream == "state":
            state[:, 5] += 1.0
        else:
            stages[:, 5] = 2
        difference = (model.subtask_model(vision, text, state, {"sparse": stages})["sparse"] - before).abs()[0]
    assert [t for t in range(9) if difference[t] > 1e-6] == list(changed)


def test_slots_beyond_the_length_change_nothing_before_it():
    model, inputs = random_sarm(SHAPE), random_inputs(SHAPE, 2, 13)
    lengths, stages = torch.tensor([9, 11]), torch.zeros(2, 13, dtype=torch.int64)

    def outputs() -> list[torch.Tensor]:
        with torch.no_grad():
            logits = model.stage_model(*inputs, ["dense"], lengths)
            return [logits["dense"], model.subtask_model(*inputs, {"dense": stages}, lengths)["dense"]]

    before = outputs()
    for window, length in enumerate(lengths):
        inputs[0][window, length:] = 50.0
        inputs[2][window, length:] = -50.0
        stages[window, length:] = 4
    after = outputs()
    for old, new in zip(before, after, strict=True):
        for window, length in enumerate(lengths):
            torch.testing.assert_close(new[window, :length], old[window, :length], rtol=0, atol=1e-6)


def test_lengths_mask_the_padded_keys_of_every_stream():
    """Nine valid slots of thirteen come out as a window of nine does."""
    model, (vision, text, state) = random_sarm(SHAPE), random_inputs(SHAPE, 2, 13)
    with torch.no_grad():
        padded = model.stage_model(vision, text, state, ["sparse"], torch.tensor([9, 9]))["sparse"][:, :9]
        short = model.stage_model(vision[:, :9], text, state[:, :9], ["sparse"])["sparse"]
    torch.testing.assert_close(padded, short, rtol=0, atol=5e-6)


def test_first_pos_marks_vision_slot_0_alone():
    net, (vision, text, state) = random_sarm(SHAPE).stage_model, random_inputs(SHAPE, 2, 9)
    with torch.no_grad():
        marked = net.project(vision, text, state)
        plain = net.visual_proj(vision)
    assert torch.equal(marked[0][:, 0], plain[:, 0] + net.first_pos)
    assert torch.equal(marked[0][:, 1:], plain[:, 1:])
    assert torch.equal(marked[1], net.lang_proj(text)[:, None].expand(-1, 9, -1))
    assert torch.equal(marked[2], net.state_proj(state))


def test_stage_tokens_are_zero_padded_one_hots():
    tokens = random_sarm(SHAPE).subtask_model.stage_tokens(torch.tensor([[0, 4]]))
    assert tokens.shape == (1, 2, SHAPE.hidden_dim)
    assert tokens.dtype == torch.float32
    assert tokens.nonzero().tolist() == [[0, 0, 0], [0, 1, 4]]


def test_readout_gathers_a_slots_tokens_from_all_streams():
    net, (vision, text, state) = random_sarm(SHAPE).stage_model, random_inputs(SHAPE, 1, 9)
    with torch.no_grad():
        outputs = net(vision, text, state, ["sparse"])["sparse"]
        mask = torch.nn.Transformer.generate_square_subsequent_mask(27)
        encoded = net.transformer(torch.cat(net.project(vision, text, state), dim=1), mask=mask)[0]
        slot = torch.cat([encoded[3], encoded[9 + 3], encoded[18 + 3]])
        by_hand = net.heads["sparse"](net.fusion_backbone(slot))
    torch.testing.assert_close(outputs[0, 3], by_hand, rtol=0, atol=5e-6)


def test_each_head_has_its_own_weights_in_both_networks():
    model, (vision, text, state) = random_sarm(SHAPE), random_inputs(SHAPE, 1, 9)
    stages = torch.zeros(1, 9, dtype=torch.int64)
    with torch.no_grad():
        tau = model.subtask_model(vision, text, state, {"sparse": stages})["sparse"]
        model.subtask_model.heads["dense"].weight.zero_()
        model.subtask_model.heads["dense"].bias.zero_()
        assert torch.equal(model.subtask_model(vision, text, state, {"sparse": stages})["sparse"], tau)
        assert torch.equal(
            model.subtask_model(vision, text, state, {"dense": stages})["dense"], torch.full((1, 9), 0.5)
        )


@pytest.mark.parametrize("lengths", [None, torch.tensor([9, 11, 13])])
def test_heads_that_share_a_pass_come_out_as_from_passes_of_their_own(lengths):
    model, inputs = random_sarm(SHAPE), random_inputs(SHAPE, 3, 13)
    generator = torch.Generator().manual_seed(1)
    stages = {head: torch.randint(SHAPE.num_stages(head), (3, 13), generator=generator) for head in HEADS}
    with torch.no_grad():
        logits = model.stage_model(*inputs, HEADS, lengths)
        taus = model.subtask_model(*inputs, stages, lengths)
        for head in HEADS:
            alone = model.stage_model(*inputs, [head], lengths)[head]
            torch.testing.assert_close(logits[head], alone, rtol=0, atol=1e-6)
            alone = model.subtask_model(*inputs, {head: stages[head]}, lengths)[head]
            torch.testing.assert_close(taus[head], alone, rtol=0, atol=1e-6)


def test_each_camera_is_a_vision_stream_of_its_own():
    """In order: a camera's tokens see those before it and none after; all have the same projection and first_pos."""
    shape = replace(tiny_config().shape, num_cameras=2)
    model, one = random_sarm(shape), random_sarm(tiny_config().shape)
    width, net = shape.hidden_dim, model.stage_model
    found, single = model.state_dict(), one.state_dict()
    differing = {name: tuple(found[name].shape) for name in found if found[name].shape != single[name].shape}
    assert differing == {
        f"{network}_model.fusion_backbone.{layer}": (width, tokens * width)
        if layer == "1.weight"
        else (tokens * width,)
        for network, tokens in (("stage", 4), ("subtask", 5))
        for layer in ("0.weight", "0.bias", "1.weight")
    }
    vision, text, state = random_inputs(shape, 3, 9)
    swapped = torch.cat([vision[..., shape.image_dim :], vision[..., : shape.image_dim]], dim=-1)
    with torch.inference_mode():
        streams, other = net.project(vision, text, state), net.project(swapped, text, state)
        assert [tuple(stream.shape) for stream in streams] == [(3, 9, width)] * 4
        assert torch.equal(streams[0], other[1])
        assert torch.equal(streams[1], other[0])
        encoded = net.encode(streams, None)
        second = vision.clone()
        second[..., shape.image_dim :] += 1
        after = net.encode(net.project(second, text, state), None)
    assert torch.equal(after[:, :, 0], encoded[:, :, 0])
    for stream in (1, 2, 3):
        assert (after[:, :, stream] - encoded[:, :, stream]).abs().amax(-1).min() > 1e-4
