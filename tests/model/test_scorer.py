import numpy as np
import pytest
import torch

from sarm_ray.core.progress import normalize_progress
from sarm_ray.core.windows import Window, window_slots
from sarm_ray.model.checkpoint import open_checkpoint
from sarm_ray.model.checkpoint_writer import save_checkpoint
from sarm_ray.model.scorer import HeadScores, Scorer
from tests.model.tiny import full_forward, margins, random_sarm, tiny_config

CONFIG = tiny_config()
NUM_FRAMES = 150
FIELDS = ("progress", "probabilities", "tau")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("sarm"))
    save_checkpoint(folder, CONFIG, random_sarm(CONFIG.shape))
    return open_checkpoint("tiny", folder)


@pytest.fixture
def episode() -> dict[str, np.ndarray]:
    """One episode, every frame of it scored in LeRobot's window: arguments of `score`."""
    rng = np.random.default_rng(0)
    window = Window(8, CONFIG.frame_gap)
    return {
        "features_FD": rng.standard_normal((NUM_FRAMES, CONFIG.image_dim), dtype=np.float32),
        "states_FS": rng.standard_normal((NUM_FRAMES, CONFIG.max_state_dim), dtype=np.float32),
        "text_E": rng.standard_normal(CONFIG.text_dim, dtype=np.float32),
        "slots_BT": window_slots(np.arange(NUM_FRAMES), NUM_FRAMES, window),
        "whole_B": np.ones(NUM_FRAMES, dtype=bool),
    }


def scorer_of(checkpoint, heads=("sparse", "dense"), readout=4, precision="fp32") -> Scorer:
    return Scorer(checkpoint, heads, readout, precision, "cpu")


def full_outputs(scorer: Scorer, episode, head: str):
    slots = episode["slots_BT"]
    vision, state = (torch.from_numpy(episode[name])[slots] for name in ("features_FD", "states_FS"))
    text = torch.from_numpy(episode["text_E"])[None].expand(len(slots), -1)
    return full_forward(scorer.model.float(), vision, text, state, head)


def assert_bit_equal(scores: HeadScores, expected: HeadScores, rows=slice(None)):
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(scores, name)[rows], getattr(expected, name)[rows])


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_scores_are_those_of_the_full_forward_pass(checkpoint, episode, head):
    scorer = scorer_of(checkpoint)
    scores = scorer.score(**episode)[head]
    probabilities, stages, tau = full_outputs(scorer, episode, head)
    clear = (margins(probabilities[:, :5]) > 1e-4).all(1).numpy()
    assert clear.mean() > 0.95
    np.testing.assert_allclose(scores.probabilities, probabilities[:, 4], atol=1e-6)
    np.testing.assert_allclose(scores.tau[clear], tau[clear, 4], atol=1e-6)
    expected = normalize_progress((stages[:, 4] + tau[:, 4]).numpy(), CONFIG.breakpoints(head))
    np.testing.assert_allclose(scores.progress[clear], expected[clear], atol=1e-6)
    assert len(np.unique(scores.probabilities.argmax(1))) > 1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_outputs_are_float32_one_per_window(checkpoint, episode, precision):
    for head, num_stages in (("sparse", 3), ("dense", 5)):
        scores = scorer_of(checkpoint, precision=precision).score(**episode)[head]
        assert [getattr(scores, name).dtype for name in FIELDS] == [np.float32] * 3
        assert scores.progress.shape == scores.tau.shape == (NUM_FRAMES,)
        assert scores.probabilities.shape == (NUM_FRAMES, num_stages)
        assert ((scores.progress >= 0) & (scores.progress <= 1)).all()
        np.testing.assert_allclose(scores.probabilities.sum(1), 1, atol=1e-6)


def test_progress_is_the_breakpoints_at_stage_plus_tau(checkpoint, episode):
    scores = scorer_of(checkpoint).score(**episode)["sparse"]
    low = np.array([0.0, 0.5, 0.75])[scores.probabilities.argmax(1)]
    share = np.array([0.5, 0.25, 0.25])[scores.probabilities.argmax(1)]
    np.testing.assert_allclose(scores.progress, low + share * scores.tau, atol=1e-6)


def test_only_the_heads_asked_for(checkpoint, episode):
    both, dense = scorer_of(checkpoint).score(**episode), scorer_of(checkpoint, ("dense",)).score(**episode)
    assert list(both) == ["sparse", "dense"]
    assert list(dense) == ["dense"]
    for name in FIELDS:
        np.testing.assert_allclose(getattr(dense["dense"], name), getattr(both["dense"], name), atol=1e-6)


def test_bf16_keeps_the_readout_in_float32(checkpoint):
    model = scorer_of(checkpoint, precision="bf16").model
    for net in (model.stage_model, model.subtask_model):
        assert {p.dtype for p in net.transformer.parameters()} == {torch.bfloat16}
        assert {p.dtype for p in (*net.heads.parameters(), *net.fusion_backbone.parameters())} == {torch.float32}


@pytest.mark.parametrize("head", ["sparse", "dense"])
def test_bf16_is_near_fp32_where_stages_are_clear(checkpoint, episode, head):
    exact, rough = (scorer_of(checkpoint, precision=p).score(**episode)[head] for p in ("fp32", "bf16"))
    probabilities, _, _ = full_outputs(scorer_of(checkpoint), episode, head)
    clear = (margins(probabilities[:, :5]) > 0.05).all(1).numpy()  # heads here are far steeper than trained ones
    assert clear.sum() > 20
    np.testing.assert_array_equal(rough.probabilities.argmax(1)[clear], exact.probabilities.argmax(1)[clear])
    np.testing.assert_allclose(rough.progress[clear], exact.progress[clear], atol=2e-2)
    assert not np.array_equal(rough.tau, exact.tau)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_windows_with_a_hole_are_nan_and_the_others_stay_bit_equal(checkpoint, episode, precision):
    scorer = scorer_of(checkpoint, precision=precision)
    whole = scorer.score(**episode)
    episode["features_FD"][40] = np.nan
    episode["whole_B"] = (episode["slots_BT"] != 40).all(1)
    holes = ~episode["whole_B"]
    assert 0 < holes.sum() < NUM_FRAMES
    for head, scores in scorer.score(**episode).items():
        assert_bit_equal(scores, whole[head], episode["whole_B"])
        for name in FIELDS:
            assert np.isnan(getattr(scores, name)[holes]).all()


def test_nothing_whole(checkpoint, episode):
    episode["whole_B"][:] = False
    scores = scorer_of(checkpoint).score(**episode)["sparse"]
    assert all(np.isnan(getattr(scores, name)).all() for name in FIELDS)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_passes_are_cut_every_64_windows(checkpoint, episode, precision):
    scorer = scorer_of(checkpoint, precision=precision)
    together = scorer.score(**episode)
    for rows in (slice(0, 64), slice(64, 128), slice(128, 150)):
        part = {**episode, "slots_BT": episode["slots_BT"][rows], "whole_B": episode["whole_B"][rows]}
        for head, scores in scorer.score(**part).items():
            assert_bit_equal(scores, HeadScores(*(getattr(together[head], name)[rows] for name in FIELDS)))


def test_the_size_of_a_pass_changes_float_noise_only(checkpoint, episode):
    scorer = scorer_of(checkpoint)
    expected = scorer.score(**episode)
    scorer.windows_per_pass = 7
    for head, scores in scorer.score(**episode).items():
        for name in FIELDS:
            np.testing.assert_allclose(getattr(scores, name), getattr(expected[head], name), atol=1e-6)


def test_the_same_call_gives_the_same_bits(checkpoint, episode):
    first, second = (scorer_of(checkpoint).score(**episode) for _ in range(2))
    for head in first:
        assert_bit_equal(first[head], second[head])


def test_frames_outside_the_windows_do_not_matter(checkpoint, episode):
    scorer = scorer_of(checkpoint)
    some = {**episode, "slots_BT": episode["slots_BT"][:10], "whole_B": episode["whole_B"][:10]}
    before = scorer.score(**some)
    unused = np.setdiff1d(np.arange(NUM_FRAMES), some["slots_BT"])
    some["features_FD"][unused], some["states_FS"][unused] = np.nan, np.nan
    for head, scores in scorer.score(**some).items():
        assert_bit_equal(scores, before[head])


def test_no_windows(checkpoint, episode):
    episode["slots_BT"], episode["whole_B"] = episode["slots_BT"][:0], episode["whole_B"][:0]
    scores = scorer_of(checkpoint).score(**episode)["dense"]
    assert (scores.progress.shape, scores.probabilities.shape, scores.tau.shape) == ((0,), (0, 5), (0,))


def test_inputs_are_not_changed(checkpoint, episode):
    copies = {name: array.copy() for name, array in episode.items()}
    scorer_of(checkpoint).score(**episode)
    for name, array in episode.items():
        np.testing.assert_array_equal(array, copies[name])


def test_past_window_reads_the_last_slot_and_sees_no_future(checkpoint, episode):
    window = Window(8, CONFIG.frame_gap, "past")
    episode["slots_BT"] = window_slots(np.arange(NUM_FRAMES), NUM_FRAMES, window)
    scorer = scorer_of(checkpoint, readout=window.readout_slot)
    scores = scorer.score(**episode)["dense"]
    np.testing.assert_allclose(scores.probabilities, full_outputs(scorer, episode, "dense")[0][:, 8], atol=1e-6)
    before = {**episode, "slots_BT": episode["slots_BT"][:64], "whole_B": episode["whole_B"][:64]}
    before["features_FD"][64:] = 1e3
    assert_bit_equal(scorer.score(**before)["dense"], HeadScores(*(getattr(scores, name)[:64] for name in FIELDS)))
