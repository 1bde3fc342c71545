"""`sarm-ray evaluate`: how good a model is on a dataset whose annotations or outcomes are known.

    plan -> ingest (features that are missing) -> score_missing, each episode in up to three views -> figures

The views are scored by one pool, as several datasets would be: `offline` as recorded, `live` with the future cut at each
frame, and backwards where no regression is annotated that the model could miss.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa

from sarm_ray.config.evaluate import EvaluateConfig
from sarm_ray.config.loading import dump_config
from sarm_ray.config.score import ScoreConfig
from sarm_ray.console import say, tell
from sarm_ray.core.figures import summarize_episodes
from sarm_ray.core.metrics import EpisodeFacts, Prediction, measure_episode
from sarm_ray.core.probe import Probe
from sarm_ray.core.rabc import DeltaDistribution, progress_deltas, summarize_weights
from sarm_ray.data import progress_io, storage
from sarm_ray.data.failures import CHUNKS, write_failed
from sarm_ray.data.lease import hold_lease
from sarm_ray.data.lerobot import Dataset, fetch_files, open_dataset
from sarm_ray.data.outcomes import dataset_outcomes
from sarm_ray.data.progress_merge import merge_parts
from sarm_ray.errors import ConfigError, OutputExistsError, RunInterruptedError
from sarm_ray.pipelines.frame_features import StoredFeatures
from sarm_ray.pipelines.ingest import ingest
from sarm_ray.pipelines.ingest_plan import ChunkFailure, one_per_chunk
from sarm_ray.pipelines.runtime import Cluster, call_aside, connect
from sarm_ray.pipelines.score_chunks import score_missing
from sarm_ray.pipelines.score_plan import ScorePlan, plan_scores
from sarm_ray.pipelines.score_report import describe_plans
from sarm_ray.pipelines.single_frames import fit_single_frames, predict_single_frames
from sarm_ray.pipelines.stopping import MARKER_PREFIX, Stop, stop_on_signal
from sarm_ray.pipelines.truths import HeadTruths, read_truths
from sarm_ray.report.evaluation import EvaluateReport, HeadEvaluation, diagnose, evaluation_object

EVALUATION_FILE = "evaluation.json"
LEROBOT_KAPPA = 0.01


def evaluate(config: EvaluateConfig, quiet: bool = False) -> EvaluateReport:
    """Evaluate a model on a dataset.

    Raises:
        RunInterruptedError: asked to stop by SIGINT or SIGTERM; finished chunks are kept.
        SarmRayError: bad input; nothing was run.
    """
    started = time.monotonic()
    with connect(config.address, quiet) as cluster:
        plan = _plan(config, cluster)
        dataset, rows = plan.ingest.dataset, plan.ingest.rows
        grades = dataset_outcomes(dataset, config.labels)
        notices: list[str] = []
        truths = read_truths(dataset, plan.checkpoint.config, plan.heads, rows, grades, notices)
        views = _views(plan, truths)
        trained = _plan_training(config, plan, cluster, notices) if config.train_dataset else None
        if not quiet:
            describe_plans([plan], cluster)
            say(f"views     {', '.join(views)}; {_known(truths, grades, rows)}")
            tell(notices)
        with contextlib.ExitStack() as held:
            lease = held.enter_context(hold_lease(plan.run_folder))
            stop = held.enter_context(stop_on_signal(plan.run_folder))
            _prepare(plan, trained, config)
            failures = _score(views, trained, cluster, stop, quiet, notices)
            fitted = call_aside(fit_single_frames, *trained) if trained else {}
            facts, deltas = call_aside(_measure, views, truths, grades, config.chunk_size, fitted)
            report = _summarize(plan, config, facts, deltas, truths, grades, failures, notices, started)
            lease.check()
            write_failed(plan.run_folder, report.failures, CHUNKS)
            progress_io.write_json(plan.output, evaluation_object(report))
            progress_io.remove_files(plan.run_folder, progress_io.PARTS_PREFIX)
    return report


def _plan(config: EvaluateConfig, cluster: Cluster) -> ScorePlan:
    """How the dataset is scored offline, every frame of it; the output of that plan is the evaluation."""
    output = storage.absolute(config.output or _place_output(open_dataset(config.dataset, config.revision)))
    if storage.is_folder(output):
        raise ConfigError(f"{output} is a folder; give --output a file, such as {output}/{EVALUATION_FILE}")
    plan = plan_scores(_score_config(config, config.dataset, output, config.episodes, config.revision), cluster)[0]
    _refuse_finished(plan, config)
    return plan


def _plan_training(
    config: EvaluateConfig, plan: ScorePlan, cluster: Cluster, notices: list[str]
) -> tuple[ScorePlan, dict[str, HeadTruths]] | None:
    """The training dataset's plan and truths; None, and a notice, where it has none to fit a probe on.

    Episodes that are evaluated are no training data, also where they lie in the same dataset.
    """
    assert config.train_dataset is not None
    dataset = open_dataset(config.train_dataset)
    rows = np.arange(len(dataset.length))
    if dataset.root == plan.ingest.dataset.root:
        rows = np.setdiff1d(rows, plan.ingest.rows)
    if not len(rows):
        raise ConfigError(
            f"--train-dataset {config.train_dataset} is what is evaluated; leave some of it out with --episodes"
        )
    grades, said = dataset_outcomes(dataset, None), [f"{dataset.name}:"]
    truths = read_truths(dataset, plan.checkpoint.config, plan.heads, rows, grades, said)
    if not any(truth.annotated[rows].any() for truth in truths.values()):
        notices.append(f"no linear probe: {' '.join(said)}")
        return None
    episodes = ",".join(map(str, dataset.episode_index[rows]))
    return plan_scores(_score_config(config, config.train_dataset, plan.output, episodes, None), cluster)[0], truths


def _refuse_finished(plan: ScorePlan, config: EvaluateConfig) -> None:
    """Keep an output that is there, unless told otherwise or a run like this one was cut off after writing it."""
    if storage.exists(plan.output) and not config.overwrite and not storage.list_files(plan.parts_folder):
        raise OutputExistsError(f"{plan.output} exists; replace it with --overwrite, or choose another --output")


def _score_config(
    config: EvaluateConfig, name: str, output: str, episodes: str | None, revision: str | None
) -> ScoreConfig:
    """What `score` would be told of one of the datasets."""
    return ScoreConfig(
        dataset=name,
        model=config.model,
        output=output,
        head_mode=config.head_mode,
        episodes=episodes,
        image_key=config.image_key,
        state_key=config.state_key,
        task=config.task,
        state_stats=config.state_stats,
        encoder=config.encoder,
        precision=config.precision,
        cache=config.cache,
        revision=revision,
        overwrite=True,
    )


def _place_output(dataset: Dataset) -> str:
    if dataset.repo_id is None and storage.is_local(dataset.root) and storage.is_writable_folder(dataset.root):
        return storage.join(dataset.root, EVALUATION_FILE)
    return storage.join(dataset.name.rsplit("/", 1)[-1], EVALUATION_FILE)


def _views(plan: ScorePlan, truths: dict[str, HeadTruths]) -> dict[str, ScorePlan]:
    """The plans of all views. A past window shows no future, so that live is offline."""
    views = {"offline": plan}
    if plan.window.kind == "centered":
        views["live"] = replace(plan, window=replace(plan.window, live=True))
    dataset, rows = plan.ingest.dataset, plan.ingest.rows.tolist()
    known = (truth.of_episode(row, int(dataset.length[row])) for truth in truths.values() for row in rows)
    fall = [bool(truth.regressions(dataset.fps)) for truth in known if truth is not None and truth.completed]
    if fall and not any(fall):
        views["backwards"] = replace(plan, window=replace(plan.window, backwards=True))
    return views


def _known(truths: dict[str, HeadTruths], grades: np.ndarray, rows: np.ndarray) -> str:
    parts = [
        f"{int(truth.annotated[rows].sum())} of {len(rows)} episodes have {head} truth"
        for head, truth in truths.items()
    ]
    return ", ".join([*parts, f"{int(np.isfinite(grades[rows]).sum())} have an outcome"])


def _prepare(plan: ScorePlan, trained: tuple[ScorePlan, dict] | None, config: EvaluateConfig) -> None:
    _refuse_finished(plan, config)  # again: another run may have held the lease until now
    storage.remove_temporaries(storage.parent(plan.output))
    storage.remove_temporaries(plan.run_folder)
    progress_io.remove_files(plan.run_folder, MARKER_PREFIX)
    storage.write_file(storage.join(plan.run_folder, "config.yaml"), dump_config(config).encode())
    for camera in (*plan.cameras, *(trained[0].cameras if trained else ())):
        fetch_files(camera.dataset, camera.rows_to_read(), camera.camera)


def _score(
    views: dict[str, ScorePlan],
    trained: tuple[ScorePlan, dict] | None,
    cluster: Cluster,
    stop: Stop,
    quiet: bool,
    notices: list[str],
) -> list[ChunkFailure]:
    """Make the features and the scores that are missing; what of the evaluated dataset could not be read or scored."""
    plans = list(views.values())
    sources = [plans[0].cameras, *([trained[0].cameras] if trained else [])]
    ingested = ingest(sources, cluster, stop, quiet)
    scoring = score_missing(plans, cluster, stop, quiet)
    if stop.requested:
        raise RunInterruptedError("stopped; finished chunks are kept, run the same command again to go on")
    found = scoring.datasets[0].notices()
    if trained and ingested.failures[1]:
        first = ingested.failures[1][0]
        found.append(
            f"{trained[0].ingest.dataset.name}: {len(ingested.failures[1])} chunks are missing from the linear probe; "
            f"episode {first.episode_index}: {first.message}"
        )
    if not quiet:
        tell(found)
    notices += found
    return one_per_chunk([*ingested.failures[0], *(each for own in scoring.datasets for each in own.failures)])


def _measure(
    views: dict[str, ScorePlan],
    truths: dict[str, HeadTruths],
    grades: np.ndarray,
    chunk_size: int,
    fitted: dict[str, Probe],
) -> tuple[dict[str, list[EpisodeFacts]], dict[str, DeltaDistribution]]:
    """Each head's facts of each episode, and the deltas of its offline progress; one episode in memory at a time."""
    plan = views["offline"]
    dataset, heads = plan.ingest.dataset, plan.heads
    facts: dict[str, list[EpisodeFacts]] = {head: [] for head in heads}
    deltas = {head: DeltaDistribution() for head in heads}
    tables = {name: _episodes(view) for name, view in views.items()}
    stored = StoredFeatures(plan.cameras)
    for row in plan.ingest.rows.tolist():
        own = {name: next(tables[name]) for name in views}
        length, episode = int(dataset.length[row]), int(dataset.episode_index[row])
        single = predict_single_frames(fitted, stored, row, length)
        for head in heads:
            seen = {name: _prediction(table, head, plan) for name, table in own.items() if name != "backwards"}
            seen.setdefault("live", seen["offline"])
            seen["time"] = Prediction((np.arange(length) / max(length - 1, 1)).astype(np.float32))
            if head in single:
                seen["probe"] = Prediction(single[head])
            backwards = own["backwards"][f"progress_{head}"].to_numpy()[::-1] if "backwards" in own else None
            truth = truths[head].of_episode(row, length)
            facts[head].append(
                measure_episode(seen, truth, float(grades[row]), dataset.fps, chunk_size, episode, backwards)
            )
            deltas[head].add(progress_deltas(seen["offline"].progress, np.array([length]), chunk_size))
    return facts, deltas


def _episodes(plan: ScorePlan) -> Iterator[pa.Table]:
    """The scored rows of each episode, in order."""
    dataset = plan.ingest.dataset
    merged = merge_parts(
        plan.parts_folder, plan.heads, plan.ingest.chunks, dataset.episode_index, dataset.length, dataset.from_index
    )
    lengths = iter(dataset.length[plan.ingest.rows].tolist())
    for table in merged:
        first = 0
        while first < table.num_rows:
            length = next(lengths)
            yield table.slice(first, length)
            first += length


def _prediction(table: pa.Table, head: str, plan: ScorePlan) -> Prediction:
    progress = table[f"progress_{head}"].to_numpy()
    num_stages = plan.checkpoint.config.shape.num_stages(head)
    flat = table[f"probabilities_{head}"].combine_chunks().flatten().to_numpy().reshape(-1, num_stages)
    if num_stages == 1:
        return Prediction(progress)
    known = np.isfinite(flat).all(axis=1)
    return Prediction(progress, np.where(known, np.argmax(np.nan_to_num(flat), axis=1), -1))


def _summarize(
    plan: ScorePlan,
    config: EvaluateConfig,
    facts: dict[str, list[EpisodeFacts]],
    deltas: dict[str, DeltaDistribution],
    truths: dict[str, HeadTruths],
    grades: np.ndarray,
    failures: Sequence[ChunkFailure],
    notices: Sequence[str],
    started: float,
) -> EvaluateReport:
    rows = plan.ingest.rows
    heads = {}
    for head in plan.heads:
        figures = summarize_episodes(facts[head])
        rabc = summarize_weights(deltas[head], LEROBOT_KAPPA)
        heads[head] = HeadEvaluation(figures, rabc, diagnose(figures, rabc, config.chunk_size))
    annotated = np.any([truth.annotated[rows] for truth in truths.values()], axis=0)
    return EvaluateReport(
        dataset=plan.ingest.dataset.name,
        model=config.model,
        output=plan.output,
        num_episodes=len(rows),
        num_annotated=int(annotated.sum()),
        num_graded=int(np.isfinite(grades[rows]).sum()),
        heads=heads,
        failures=[asdict(failure) for failure in failures],
        notices=(*plan.notices, *notices),
        seconds=time.monotonic() - started,
    )
