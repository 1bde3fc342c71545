from pathlib import Path

import pytest
import torch

from sarm_ray.errors import CheckpointError
from sarm_ray.model.checkpoint import load_model, open_checkpoint
from sarm_ray.model.checkpoint_writer import save_checkpoint
from sarm_ray.model.sarm import HEADS, Sarm
from sarm_ray.model.training import (
    SUMS,
    TrainingModel,
    count_slots,
    init_from,
    learning_rate_multiplier,
    leave_out_inputs,
    make_optimizer,
    mean_metrics,
    new_model,
    sarm_loss,
    trainable_parameters,
)
from tests.model.tiny import random_inputs, random_sarm, tiny_config

SHAPE = tiny_config().shape
ONE_STAGE = tiny_config(num_sparse_stages=1, sparse_subtask_names=["task"], sparse_temporal_proportions=[1.0])
NUM_WINDOWS, NUM_SLOTS = 8, 13


def make_batch(shape=SHAPE, seed: int = 0) -> dict[str, torch.Tensor]:
    """Eight windows, 9 to 13 slots valid, half of them shown the true stages; the last one has no dense target."""
    generator = torch.Generator().manual_seed(seed)
    vision, text, states = random_inputs(shape, NUM_WINDOWS, NUM_SLOTS, seed)
    lengths = torch.tensor([9, 10, 11, 12, 13, 9, 13, 11])
    batch = {"vision": vision, "text": text, "states": states, "lengths": lengths}
    batch["force"] = torch.arange(NUM_WINDOWS) % 2 == 0
    for head in HEADS:
        size = (NUM_WINDOWS, NUM_SLOTS)
        batch[f"stage_{head}"] = torch.randint(shape.num_stages(head), size, generator=generator)
        batch[f"tau_{head}"] = torch.rand(size, generator=generator)
        batch[f"weight_{head}"] = torch.ones(NUM_WINDOWS)
    batch["weight_dense"][-1] = 0.0
    return batch


def loss_of(model: Sarm, batch, heads=HEADS, counts=None, **options):
    return sarm_loss(model, batch, heads, counts or count_slots(batch, heads), **options)


def gradients(model: Sarm, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_is_the_mean_over_valid_slots_of_windows_that_carry_the_head():
    model, batch = random_sarm(SHAPE), make_batch()
    loss, sums = loss_of(model, batch)
    inputs = [batch[name] for name in ("vision", "text", "states")]
    expected, slots = 0.0, []
    with torch.no_grad():
        for head in HEADS:
            logits = model.stage_model(*inputs, [head], batch["lengths"])[head]
            shown = logits.argmax(-1)
            shown[::2] = batch[f"stage_{head}"][::2]
            tau = model.subtask_model(*inputs, {head: shown}, batch["lengths"])[head]
            last = NUM_WINDOWS if head == "sparse" else NUM_WINDOWS - 1
            places = [(b, t) for b in range(last) for t in range(int(batch["lengths"][b]))]
            windows, times = torch.tensor(places).T
            true = batch[f"stage_{head}"][windows, times]
            expected -= logits[windows, times].log_softmax(-1)[torch.arange(len(places)), true].mean().item()
            expected += (tau - batch[f"tau_{head}"])[windows, times].square().mean().item()
            slots.append(len(places))
    assert loss.item() == pytest.approx(expected, abs=1e-5)
    assert sums[:, -1].tolist() == slots == [88, 77]


def test_metrics_are_means_over_slots():
    model, batch = random_sarm(SHAPE), make_batch()
    loss, sums = loss_of(model, batch)
    metrics = mean_metrics(sums, HEADS)
    assert list(metrics) == [
        f"{head}_{name}" for head in HEADS for name in ("stage_loss", "subtask_loss", "stage_accuracy", "tau_error")
    ]
    assert sum(value for name, value in metrics.items() if name.endswith("_loss")) == pytest.approx(loss.item())
    assert all(0 < metrics[f"{head}_stage_accuracy"] < 1 for head in HEADS)
    assert all(metrics[f"{head}_tau_error"] ** 2 < metrics[f"{head}_subtask_loss"] for head in HEADS)
    assert not sums.requires_grad


def test_heads_without_a_slot_cost_nothing_and_have_no_metrics():
    model, batch = random_sarm(SHAPE), make_batch()
    batch["weight_dense"][:] = 0.0
    loss, sums = loss_of(model, batch)
    assert list(mean_metrics(sums, HEADS)) == list(mean_metrics(sums[:1], HEADS[:1]))
    assert loss.item() == pytest.approx(loss_of(model, batch, ("sparse",)).loss.item(), abs=1e-6)
    dense = gradients(model, loss)["stage_model.heads.dense.weight"]
    assert not dense.any()  # zeros, not None: DDP waits for every gradient


def test_stage_loss_weight_scales_the_cross_entropy_alone():
    model, batch = random_sarm(SHAPE), make_batch()
    metrics = mean_metrics(loss_of(model, batch).sums, HEADS)
    expected = sum(3 * metrics[f"{head}_stage_loss"] + metrics[f"{head}_subtask_loss"] for head in HEADS)
    assert loss_of(model, batch, stage_loss_weight=3.0).loss.item() == pytest.approx(expected, rel=1e-6)


def test_padded_slots_change_nothing():
    model, batch = random_sarm(SHAPE), make_batch()
    before = loss_of(model, batch)
    expected = gradients(model, before.loss)
    for window, length in enumerate(batch["lengths"]):
        batch["vision"][window, length:] = 50.0
        batch["states"][window, length:] = -50.0
        for head in HEADS:
            batch[f"stage_{head}"][window, length:] = 2
            batch[f"tau_{head}"][window, length:] = 7.0
    after = loss_of(model, batch)
    assert after.loss.item() == pytest.approx(before.loss.item(), abs=1e-6)
    torch.testing.assert_close(after.sums, before.sums, rtol=1e-5, atol=1e-5)
    for name, gradient in gradients(model, after.loss).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cuts", [[4, 4], [1, 7], [3, 3, 2]])
def test_micro_batches_add_up_to_the_batch(cuts):
    model, batch = random_sarm(SHAPE), make_batch()
    counts = {head: float(count) for head, count in count_slots(batch, HEADS).items()}
    whole = loss_of(model, batch, counts=counts)
    expected = gradients(model, whole.loss)
    split = {name: tensor.split(cuts) for name, tensor in batch.items()}
    parts = [
        loss_of(model, {name: each[part] for name, each in split.items()}, counts=counts) for part in range(len(cuts))
    ]
    loss = torch.stack([part.loss for part in parts]).sum()
    assert loss.item() == pytest.approx(whole.loss.item(), abs=1e-6)
    torch.testing.assert_close(sum(part.sums for part in parts), whole.sums, rtol=1e-6, atol=1e-5)
    for name, gradient in gradients(model, loss).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_windows_that_fill_up_a_batch_are_not_there():
    model, batch = random_sarm(SHAPE), make_batch()
    expected = loss_of(model, batch)
    filled = {name: torch.cat([tensor, torch.zeros_like(tensor[:3])]) for name, tensor in batch.items()}
    assert filled["lengths"][-1] == 0
    loss, sums = loss_of(model, filled)
    assert loss.item() == pytest.approx(expected.loss.item(), abs=1e-6)
    torch.testing.assert_close(sums, expected.sums, rtol=1e-6, atol=1e-5)
    assert all(gradient.isfinite().all() for gradient in gradients(model, loss).values())
    outputs = []
    model.stage_model.register_forward_hook(lambda _module, _inputs, logits: outputs.extend(logits.values()))
    with torch.no_grad():  # other kernels
        loss_of(model, filled)
    assert len(outputs) == 2
    assert all(logits.isfinite().all() for logits in outputs)


def test_forced_windows_do_not_ask_the_stage_network_and_the_others_do_not_ask_the_labels():
    model, batch = random_sarm(SHAPE), make_batch()
    tau_loss = SUMS.index("subtask_loss")
    batch["force"][:] = False
    free = loss_of(model, batch).sums[:, tau_loss]
    for head in HEADS:
        batch[f"stage_{head}"][:] = 0
    torch.testing.assert_close(loss_of(model, batch).sums[:, tau_loss], free)
    batch["force"][:] = True
    forced = loss_of(model, batch).sums[:, tau_loss]
    assert (forced - free).abs().min() > 1e-3
    with torch.no_grad():
        for head in model.stage_model.heads.values():
            head.weight.neg_()
    torch.testing.assert_close(loss_of(model, batch).sums[:, tau_loss], forced)


def test_stages_that_are_shown_carry_no_gradient():
    model, batch = random_sarm(SHAPE), make_batch()
    batch["force"][:] = False
    found = gradients(model, loss_of(model, batch, stage_loss_weight=0.0).loss)
    assert not any(gradient.any() for name, gradient in found.items() if name.startswith("stage_model."))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_features_and_networks_of_lower_precision_give_a_float32_loss(dtype):
    model, batch = random_sarm(SHAPE), make_batch()
    batch["force"][:] = True
    expected = loss_of(model, batch).loss.item()
    rounded = {**batch, "vision": batch["vision"].to(dtype)}
    assert loss_of(model, rounded).loss.item() == pytest.approx(expected, rel=2e-2)
    if dtype == torch.bfloat16:
        loss = loss_of(model.to(dtype), batch).loss
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(expected, rel=5e-2)


def test_one_stage_never_runs_the_stage_network():
    model, batch = random_sarm(ONE_STAGE.shape), make_batch(ONE_STAGE.shape)

    def refuse(*_):
        raise AssertionError("the stage network ran")

    model.stage_model.register_forward_hook(refuse)
    parameters = trainable_parameters(model, ("sparse",))
    loss, sums = loss_of(model, batch, ("sparse",))
    metrics = mean_metrics(sums, ("sparse",))
    assert (metrics["sparse_stage_loss"], metrics["sparse_stage_accuracy"]) == (0.0, 1.0)
    assert gradients(model, loss).keys() == parameters.keys()
    assert {name.split(".")[0] for name in parameters} == {"subtask_model"}
    with pytest.raises(AssertionError, match="the stage network ran"):
        loss_of(model, batch, HEADS)


@pytest.mark.parametrize(
    ("shape", "heads", "frozen"),
    [
        (SHAPE, HEADS, []),
        (SHAPE, ("dense",), ["stage_model.heads.sparse", "subtask_model.heads.sparse"]),
        (SHAPE, ("sparse",), ["stage_model.heads.dense", "subtask_model.heads.dense"]),
        (ONE_STAGE.shape, HEADS, ["stage_model.heads.sparse"]),  # dense_only
        (ONE_STAGE.shape, ("sparse",), ["stage_model", "subtask_model.heads.dense"]),  # single_stage
    ],
)
def test_what_is_not_trained_gets_no_gradient_and_no_weight_decay(shape, heads, frozen):
    model, batch = random_sarm(shape).train(), make_batch(shape)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = trainable_parameters(model, heads)
    expected = {name for name in before if not any(name.startswith(each + ".") for each in frozen)}
    assert parameters.keys() == expected
    optimizer = make_optimizer(parameters.values(), weight_decay=0.5)
    loss_of(model, batch, heads).loss.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == expected
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == expected


@pytest.mark.parametrize(("inputs", "unseen", "seen"), [("vision", "states", "vision"), ("state", "vision", "states")])
def test_a_model_without_an_input_does_not_see_it_and_never_learns_to(inputs, unseen, seen):
    model, batch = random_sarm(SHAPE), make_batch()
    leave_out_inputs(model, inputs)
    parameters = trainable_parameters(model, HEADS, inputs)
    left_out = {name for name, _ in model.named_parameters()} - parameters.keys()
    layer = "state_proj.weight" if inputs == "vision" else "visual_proj.weight"
    assert left_out == {f"stage_model.{layer}", f"subtask_model.{layer}"}
    optimizer = make_optimizer(parameters.values(), lr=1e-2)
    loss_of(model, batch, HEADS).loss.backward()
    optimizer.step()
    loss = loss_of(model, batch, HEADS).loss
    assert torch.equal(loss_of(model, {**batch, unseen: batch[unseen] + 1}, HEADS).loss, loss)
    assert not torch.equal(loss_of(model, {**batch, seen: batch[seen] + 1}, HEADS).loss, loss)


def test_freezing_is_undone_for_a_run_that_trains_more():
    model = random_sarm(SHAPE)
    trainable_parameters(model, ("sparse",))
    assert trainable_parameters(model, HEADS).keys() == dict(model.named_parameters()).keys()


def test_training_model_is_the_loss_as_a_module():
    sarm, batch = random_sarm(SHAPE), make_batch()
    model = TrainingModel(sarm, HEADS, stage_loss_weight=2.0)
    counts = {head: float(count) for head, count in count_slots(batch, HEADS).items()}
    outputs = model.eval()(counts, **batch)
    expected = loss_of(sarm, batch, stage_loss_weight=2.0)
    assert type(outputs) is tuple
    assert torch.equal(outputs[0], expected.loss)
    assert torch.equal(outputs[1], expected.sums)
    assert {name.removeprefix("sarm.") for name, _ in model.named_parameters()} == set(sarm.state_dict())


def test_it_learns():
    model, batch = new_model(SHAPE, seed=3), make_batch()
    optimizer = make_optimizer(trainable_parameters(model, HEADS).values(), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = loss_of(model.train(), batch).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_optimizer_is_lerobots_preset():
    (group,) = make_optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups
    found = [group[name] for name in ("lr", "betas", "eps", "weight_decay")]
    assert found == [5e-5, (0.9, 0.999), 1e-8, 1e-3]


def test_learning_rate_warms_up_and_falls_to_the_floor():
    rates = [learning_rate_multiplier(step, 5000) for step in range(5001)]
    assert rates[0] == pytest.approx(1 / 51)
    assert rates[:51] == sorted(rates[:51])
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[2500] == pytest.approx(0.55)
    assert rates[5000] == learning_rate_multiplier(9999, 5000) == pytest.approx(0.1)
    assert learning_rate_multiplier(0, 10) == 1.0  # too short for a warm-up
    assert learning_rate_multiplier(499, 10**6) < 1.0


def test_new_model_has_the_same_bits_for_a_seed_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = new_model(SHAPE, 1).state_dict()
    assert torch.equal(torch.rand(3), expected)
    second, other = new_model(SHAPE, 1).state_dict(), new_model(SHAPE, 2).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stage_model.visual_proj.weight"], other["stage_model.visual_proj.weight"])
    assert not first["stage_model.first_pos"].any()
    assert {tensor.dtype for tensor in first.values()} == {torch.float32}


def checkpoint_of(folder: Path, **changes):
    config = tiny_config(**changes)
    save_checkpoint(str(folder), config, random_sarm(config.shape, seed=9))
    return open_checkpoint("user/old", str(folder))


def test_fine_tuning_takes_every_tensor_that_fits(tmp_path):
    checkpoint, model = checkpoint_of(tmp_path), new_model(SHAPE, 0)
    assert init_from(checkpoint, model) == []
    expected = load_model(checkpoint).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


def test_fine_tuning_keeps_the_fresh_head_where_the_number_of_stages_differs(tmp_path):
    checkpoint, model = (
        checkpoint_of(tmp_path, num_dense_stages=4, dense_temporal_proportions=None),
        new_model(SHAPE, 0),
    )
    fresh, old = new_model(SHAPE, 0).state_dict(), load_model(checkpoint).state_dict()
    kept = ["stage_model.heads.dense.bias", "stage_model.heads.dense.weight"]
    assert init_from(checkpoint, model) == kept
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (fresh if name in kept else old)[name]), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_dim": 16}, "stage_model.first_pos should be (1, 32), is (1, 16)"),
        ({"image_dim": 25}, "stage_model.visual_proj.weight should be (32, 24), is (32, 25)"),
        (
            {"num_layers": 1},
            "stage_model.transformer.layers.1.linear1.bias should be (128,), is absent",
        ),
        (
            {"num_layers": 3},
            "stage_model.transformer.layers.2.linear1.bias should be absent, is (128,)",
        ),
        ({"num_heads": 2}, "num_heads should be 4, is 2"),
    ],
)
def test_fine_tuning_from_other_networks_is_refused(tmp_path, changes, message):
    checkpoint, model = checkpoint_of(tmp_path, **changes), new_model(SHAPE, 0)
    with pytest.raises(CheckpointError) as caught:
        init_from(checkpoint, model)
    assert str(caught.value) == f"user/old: cannot be fine-tuned: {message}"
    unchanged = new_model(SHAPE, 0).state_dict()
    assert all(torch.equal(tensor, unchanged[name]) for name, tensor in model.state_dict().items())
