"""What the page carries of the scores, of the stages and of RA-BC: figures against those that they stand for."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sarm_ray.core.frame_targets import stage_targets
from sarm_ray.core.progress import normalize_progress, stage_breakpoints
from sarm_ray.core.rabc import DeltaDistribution, progress_deltas, rabc_weights, summarize_weights
from sarm_ray.data.annotation_io import read_annotations
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.data.progress_io import progress_schema, write_progress
from sarm_ray.errors import DatasetError
from sarm_ray.report import page_data
from sarm_ray.report.page_data import (
    NO_DELTA,
    NO_VALUE,
    point_frames,
    quantize_deltas,
    quantize_progress,
    read_curves,
)
from sarm_ray.report.page_html import assemble_page, packed, safe_json
from sarm_ray.report.page_stages import NO_STAGE, read_lanes
from sarm_ray.report.page_weights import weights_object
from sarm_ray.report.scored import open_scores
from tests.datasets import SPARSE_STAGES, write_dataset

LENGTHS = (40, 30, 50)


def write(root, curves, lengths=LENGTHS, episodes=None, name="sarm_progress.parquet") -> str:
    episodes = range(len(lengths)) if episodes is None else episodes
    starts = np.concatenate([[0], np.cumsum(lengths)])
    columns = {
        "index": np.concatenate([starts[episode] + np.arange(lengths[episode]) for episode in episodes]),
        "episode_index": np.concatenate([np.full(lengths[episode], episode) for episode in episodes]),
        "frame_index": np.concatenate([np.arange(lengths[episode]) for episode in episodes]),
        "progress_sparse": np.concatenate([curves[episode] for episode in episodes]).astype(np.float32),
    }
    schema = progress_schema(("sparse",), {"reward_model_path": "somewhere"})
    write_progress(str(root / name), lambda: iter([pa.table(columns)]), schema)
    return str(root / name)


def write_probabilities(path: str, rows: list[list[float] | None]) -> None:
    columns = {"index": np.arange(len(rows)), "sparse": pa.array(rows, pa.list_(pa.float32()))}
    probabilities_of(path).parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), probabilities_of(path))


def probabilities_of(path: str) -> Path:
    return Path(f"{path}.run") / "stage_probabilities.parquet"


@pytest.fixture
def dataset(tmp_path):
    return open_dataset(str(write_dataset(tmp_path / "set", "v2.1", LENGTHS, annotated=True)))


def curves_of(lengths=LENGTHS):
    return {episode: np.linspace(0, 1 - episode / 10, length) for episode, length in enumerate(lengths)}


def distribution_of(deltas: np.ndarray) -> DeltaDistribution:
    distribution = DeltaDistribution()
    distribution.add(deltas)
    return distribution


def test_points_are_spread_and_have_both_ends():
    assert point_frames(5, 5).tolist() == [0, 1, 2, 3, 4]
    assert point_frames(100, 4).tolist() == [0, 33, 66, 99]
    assert point_frames(1, 1).tolist() == [0]
    for length, number in ((1000, 200), (777, 40)):
        frames = point_frames(length, number)
        assert (frames[0], frames[-1], len(frames)) == (0, length - 1, number)
        assert (np.diff(frames) >= 1).all()


def test_quantised_values_keep_what_matters():
    assert quantize_progress(np.array([0, 1, 0.5, np.nan, -0.1, 1.1])).tolist() == [0, 65534, 32767, NO_VALUE, 0, 65534]
    codes = quantize_deltas(np.array([0, 1e-9, -1e-9, 0.25, -0.25, np.nan, -1, 1]))
    assert codes.tolist() == [0, 1, -1, 8000, -8000, NO_DELTA, -32000, 32000]
    assert (quantize_progress(np.zeros(1)).dtype, codes.dtype) == (np.uint16, np.int16)


def test_curves_of_every_episode(tmp_path, dataset):
    curves = curves_of()
    curves[1][10:12] = np.nan
    curves[2][-1] = np.nan
    read = read_curves(write(tmp_path, curves), "sparse", dataset, chunk_size=7)
    assert read.rows.tolist() == [0, 1, 2]
    assert read.num_points.tolist() == list(LENGTHS)
    np.testing.assert_allclose(read.final, [1, 0.9, np.nan], rtol=1e-6)
    np.testing.assert_allclose(read.highest, [1, 0.9, curves[2][-2]], rtol=1e-6)
    np.testing.assert_array_equal(read.drawdown, [0, 0, 0])
    assert [[flag.kind for flag in flags] for flags in read.flags] == [[], ["unscored"], ["unscored"]]
    flat = np.concatenate([curves[episode] for episode in range(3)]).astype(np.float32)
    np.testing.assert_array_equal(read.progress, quantize_progress(flat))
    np.testing.assert_array_equal(read.deltas, quantize_deltas(progress_deltas(flat, np.array(LENGTHS), 7)))
    assert read.distribution.num_frames == sum(LENGTHS)


def test_many_episodes_are_thinned_out(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(page_data, "MAX_POINTS", 60)
    monkeypatch.setattr(page_data, "FEWEST_POINTS", 4)
    read = read_curves(write(tmp_path, curves_of()), "sparse", dataset, chunk_size=7)
    assert read.num_points.tolist() == [20, 20, 20]
    frames = point_frames(50, 20)
    np.testing.assert_array_equal(read.progress[40:], quantize_progress(curves_of()[2].astype(np.float32)[frames]))
    monkeypatch.setattr(page_data, "MAX_POINTS", 1)
    assert read_curves(write(tmp_path, curves_of()), "sparse", dataset, 7).num_points.tolist() == [4, 4, 4]


def test_a_file_with_some_of_the_episodes(tmp_path, dataset):
    read = read_curves(write(tmp_path, curves_of(), episodes=[2]), "sparse", dataset, chunk_size=7)
    assert read.rows.tolist() == [2]


def test_a_file_of_another_dataset_is_refused(tmp_path, dataset):
    path = write(tmp_path, curves_of((40, 31, 50)), (40, 31, 50))
    told = (
        r"p.parquet: episode 1 has 31 frames, but set has 30 in it: the file belongs to another dataset, or to another "
    )
    with pytest.raises(DatasetError, match=told.replace("p.parquet", "sarm_progress.parquet")):
        read_curves(path, "sparse", dataset, 7)
    path = write(tmp_path, curves_of((40, 30, 50, 9)), (40, 30, 50, 9), name="four.parquet")
    with pytest.raises(DatasetError, match=r"episode 3 has 9 frames, but set has no such episode"):
        read_curves(path, "sparse", dataset, 7)


@pytest.mark.parametrize("scale", [0.02, 0.3, 3.0])
def test_the_sums_give_the_weights_of_core_rabc(scale):
    rng = np.random.default_rng(3)
    deltas = np.clip(rng.normal(0.05 * scale, 0.1 * scale, 20_000), -1, 1).astype(np.float32).astype(np.float64)
    deltas[:500], deltas[500:700] = 0, np.nan
    distribution = distribution_of(deltas)
    panel = weights_object(distribution, 50, "/a b/p.parquet", "dense")
    assert panel["flags"][1:] == [
        "'--sample_weighting.progress_path=/a b/p.parquet'",
        "--sample_weighting.head_mode=dense",
    ]
    assert sum(panel["count"]) + panel["falling"] + panel["nan"] == panel["frames"] == 20_000
    assert len(panel["count"]) == len(panel["edges"]) + 1 <= 1100
    assert panel["edges"] == sorted(set(panel["edges"]))
    for edge in [0, 1, 17, len(panel["edges"]) // 2, len(panel["edges"]) - 1, *(each for _, each in panel["presets"])]:
        kappa = panel["edges"][edge] / 1e6
        summary = summarize_weights(distribution, kappa)
        above, soft = sum(panel["count"][edge + 1 :]), sum(panel["soft"][: edge + 1])
        assert (panel["nan"] + above + soft) / 20_000 == pytest.approx(summary.mean_weight, abs=1e-4)
        assert (panel["falling"] + sum(panel["zero"][: edge + 1])) / 20_000 == pytest.approx(summary.share_zero)
        assert (above + sum(panel["one"][: edge + 1])) / 20_000 == pytest.approx(summary.share_full)
        exact = rabc_weights(deltas, distribution.mean, distribution.std, kappa).mean()
        assert summary.mean_weight == pytest.approx(float(exact), abs=0.005)
    presets = {name: panel["edges"][edge] / 1e6 for name, edge in panel["presets"]}
    assert presets["LeRobot's"] == 0.01
    assert presets["auto"] == pytest.approx(summary.auto_kappa)


@pytest.mark.parametrize("deltas", [np.full(50, np.nan), np.zeros(50), np.full(50, -0.5), np.full(50, 1.0)])
def test_odd_deltas_make_a_panel_too(deltas):
    panel = weights_object(distribution_of(deltas), 50, "p", "sparse")
    json.dumps(panel, allow_nan=False)
    assert sum(panel["count"]) + panel["falling"] + panel["nan"] == 50
    assert panel["edges"][0] == 0
    assert len(panel["edges"]) > 100


def test_the_annotation_gives_stages_and_true_progress(tmp_path, dataset):
    path = write(tmp_path, curves_of())
    curves = read_curves(path, "sparse", dataset, 7)
    annotations = read_annotations(dataset)
    lanes = read_lanes(dataset, curves, open_scores(path, annotations), "sparse", np.full(3, np.nan))
    own = annotations["sparse"]
    assert lanes.names == tuple(SPARSE_STAGES)
    starts, ends = own.start[:3].tolist(), own.end[:3].tolist()
    stage, tau = stage_targets(list(own.stages), starts, ends, lanes.names, LENGTHS[0])
    points = stage_breakpoints(3, list(SPARSE_STAGES.values()))
    np.testing.assert_array_equal(lanes.annotated[:40], stage)
    np.testing.assert_array_equal(lanes.truth[:40], quantize_progress(normalize_progress(stage + tau, points)))
    assert lanes.predicted is None
    assert lanes.notices == ()


def test_a_failure_did_not_complete_its_last_stage(tmp_path, dataset):
    path = write(tmp_path, curves_of())
    curves, scores = read_curves(path, "sparse", dataset, 7), open_scores(path, read_annotations(dataset))
    lanes = read_lanes(dataset, curves, scores, "sparse", np.array([1.0, 0.0, np.nan]))
    unknown = read_lanes(dataset, curves, scores, "sparse", np.full(3, np.nan))
    differs = np.flatnonzero(lanes.truth != unknown.truth)
    assert (differs.min() > 40 + 0.8 * 30, differs.max()) == (True, 40 + 30 - 1)  # in the last stage of episode 1
    assert (lanes.truth[differs] < unknown.truth[differs]).all()
    np.testing.assert_array_equal(lanes.annotated, unknown.annotated)


def test_predicted_stages_by_name_with_holes_left_open(tmp_path, dataset):
    path = write(tmp_path, curves_of())
    rows: list[list[float] | None] = [[0.1, 0.8, 0.1]] * sum(LENGTHS)
    rows[1:5] = [None] * 4  # interpolated
    rows[5] = [0.0, 0.0, 1.0]
    rows[6:8] = [[float("nan")] * 3, None]  # not scored, and interpolated from there
    write_probabilities(path, rows)
    curves, scores = read_curves(path, "sparse", dataset, 7), open_scores(path, read_annotations(dataset))
    lanes = read_lanes(dataset, curves, scores, "sparse", np.full(3, np.nan))
    assert lanes.names == tuple(SPARSE_STAGES)
    assert lanes.predicted[:10].tolist() == [1, 1, 1, 1, 1, 2, NO_STAGE, NO_STAGE, 1, 1]
    bare = read_lanes(dataset, curves, open_scores(path, {}), "sparse", np.full(3, np.nan))
    assert bare.names == ("stage 0", "stage 1", "stage 2")
    assert (bare.truth, bare.annotated) == (None, None)


def test_a_head_of_one_stage_has_no_lane(tmp_path, dataset):
    path = write(tmp_path, curves_of())
    write_probabilities(path, [[1.0]] * sum(LENGTHS))
    curves = read_curves(path, "sparse", dataset, 7)
    lanes = read_lanes(dataset, curves, open_scores(path, {}), "sparse", np.full(3, np.nan))
    assert (lanes.names, lanes.predicted) == ((), None)


def test_broken_probabilities_are_a_notice(tmp_path, dataset):
    path = write(tmp_path, curves_of())
    probabilities_of(path).parent.mkdir()
    probabilities_of(path).write_bytes(b"PAR1 no")
    curves = read_curves(path, "sparse", dataset, 7)
    lanes = read_lanes(dataset, curves, open_scores(path, {}), "sparse", np.full(3, np.nan))
    assert lanes.notices[0].startswith(f"predicted stages are not shown ({probabilities_of(path)}: ")


def test_texts_cannot_leave_their_place_in_the_page():
    text = '</script><script>alert("x")</script> <!-- & {{data}} \u2028'
    page = assemble_page(f"{text} {{{{script}}}}", {"text": text}, {0: "QUJD"}).decode()
    assert page.count("</script>") == 3
    assert page.count("alert(") == 2  # in the title, and escaped in the data
    assert "&lt;/script&gt;&lt;script&gt;alert(&quot;x&quot;)" in page
    assert safe_json({"text": text}) in page
    assert json.loads(safe_json({"text": text})) == {"text": text}
    assert not set("<>&\u2028") & set(safe_json(text))
    assert '<script type="text/plain" id="media-0">QUJD</script>' in page
    assert "default-src 'none'" in page
    assert packed(np.array([1, 258], dtype=np.uint16)) == "AQACAQ=="
    assert packed(None) is None
