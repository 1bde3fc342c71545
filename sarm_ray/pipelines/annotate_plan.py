"""What an annotation run will do, decided before it does anything: who is asked what about which episodes, at what cost."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import ray

from sarm_ray.config.annotate import AnnotateConfig
from sarm_ray.core.questions import (
    ANSWER_TOKENS,
    Question,
    count_prompt_tokens,
    picture_size,
    question_frames,
    shown_step_s,
)
from sarm_ray.core.subtasks import SubtaskRules
from sarm_ray.data import hub, storage
from sarm_ray.data.annotation_io import annotation_of, read_annotations
from sarm_ray.data.annotation_journal import BY_HAND, Entry, Journal
from sarm_ray.data.lerobot import Dataset, open_dataset
from sarm_ray.data.pictures import camera_shape
from sarm_ray.data.rows import episode_texts
from sarm_ray.errors import AnnotatorError, DatasetError
from sarm_ray.model.annotator_openai import Endpoint, check_endpoint
from sarm_ray.model.annotator_transformers import LocalVlm, check_vlm
from sarm_ray.pipelines.inputs import choose_camera, select_episodes
from sarm_ray.pipelines.runtime import Cluster

RUN_FOLDER = "annotation.run"
TASK = "task"  # LeRobot's name of the one sparse subtask that nobody asked for

# What a GPU with 80 GB does with Qwen3-VL-30B-A3B under transformers, assumed, never measured by us: for the estimate alone.
PROMPT_TOKENS_PER_S, ANSWER_TOKENS_PER_S = 6000.0, 25.0


@dataclass(frozen=True)
class AnnotatePlan:
    """An annotation run, decided.

    Args:
        dataset: what is annotated.
        root: where its changed metadata goes, its own root or a folder of the user's.
        run_folder: everything else of the run.
        rows: (N,) int64, the selected episodes, positions in the table. texts: their tasks.
        questions: kind -> what is asked.
        wanted: kind -> (N,) bool, selected episodes that are asked; false where they are skipped.
        automatic: (N,) bool, selected episodes that get the one sparse subtask "task".
        cameras, sizes: what is shown, side by side, (height, width) of each.
        push_to: Hub repository that gets the metadata, and its branch; None pushes nothing.
        notices: what the user should know.
    """

    dataset: Dataset
    root: str
    run_folder: str
    rows: np.ndarray
    texts: tuple[str, ...]
    questions: dict[str, Question]
    wanted: dict[str, np.ndarray]
    automatic: np.ndarray
    cameras: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    push_to: tuple[str, str | None] | None
    notices: tuple[str, ...]

    def frames(self, row: int) -> np.ndarray:
        """(k,) int64, the frames shown of an episode."""
        asked = next(iter(self.questions.values()))
        return question_frames(int(self.dataset.length[row]), self.dataset.fps, asked.frames_per_s, asked.max_frames)

    def rules(self, kind: str, row: int) -> SubtaskRules:
        """What an answer about an episode has to obey: it may be as far off as the frames shown are apart."""
        question, fps = self.questions[kind], self.dataset.fps
        return SubtaskRules(
            labels=question.labels,
            fps=fps,
            length=int(self.dataset.length[row]),
            tolerance_s=shown_step_s(self.frames(row), fps),
            allow_repeats=question.allow_repeats,
            allow_missing=question.allow_missing,
        )

    def todo(self, journal: Journal) -> dict[int, tuple[str, ...]]:
        """Episodes to ask about, by row the kinds: wanted, and without subtasks for this very question in the journal."""
        left: dict[int, tuple[str, ...]] = {}
        for number, row in enumerate(self.rows.tolist()):
            episode = int(self.dataset.episode_index[row])
            kinds = tuple(
                kind
                for kind, question in self.questions.items()
                if self.wanted[kind][number] and not self.answered(journal, kind, episode, question)
            )
            if kinds:
                left[row] = kinds
        return left

    def answered(self, journal: Journal, kind: str, episode: int, question: Question) -> bool:
        """Whether the journal has subtasks of an episode for this very question."""
        entry = journal.get((kind, episode))
        return entry is not None and self.is_answer(entry, question)

    def is_answer(self, entry: Entry, question: Question) -> bool:
        """Whether an entry says where an episode's subtasks are, as it is now, and to this very question or by hand."""
        length = self.dataset.length[np.searchsorted(self.dataset.episode_index, entry.episode_index)]
        return entry.question in (question.key, BY_HAND) and entry.length == length and entry.subtasks is not None

    def annotated(self, kind: str) -> np.ndarray:
        """(E,) bool, episodes that have subtasks of a kind."""
        return _annotated(self.dataset, self.root)[kind]

    def annotated_dataset(self) -> Dataset:
        """The dataset as its annotations are to be read, see `with_written_metadata`."""
        return with_written_metadata(self.dataset, self.root)


def with_written_metadata(dataset: Dataset, root: str) -> Dataset:
    """A dataset whose annotations are read from where they are written; elsewhere, where it cannot be written to itself."""
    written = root != dataset.root and storage.is_folder(storage.join(root, "meta"))
    return replace(dataset, root=root, repo_id=None) if written else dataset


def plan_annotation(config: AnnotateConfig) -> AnnotatePlan:
    """Resolve a config. Nothing is asked and nothing written.

    Raises:
        DatasetError, ConfigError: an input that cannot be used.
    """
    dataset = open_dataset(config.dataset, config.revision)
    notices: list[str] = [*dataset.notices]
    rows = select_episodes(config.episodes, dataset)
    if config.image_keys or config.asks:
        wanted = config.image_keys or (None,)
        cameras = tuple(choose_camera(dataset, camera) for camera in wanted)
    else:
        cameras = ()
    sizes = (
        tuple(picture_size([camera_shape(dataset, camera) for camera in cameras], config.max_pixels)) if cameras else ()
    )
    labels = {"sparse": config.sparse, "dense": config.dense}
    questions = {kind: _question(config, dataset.name, kind, names, cameras) for kind, names in labels.items() if names}
    root, run_folder = _places(config, dataset)
    annotated = _annotated(dataset, root)
    wanted_of = {
        kind: ~annotated[kind][rows] if config.skip_existing else np.ones(len(rows), dtype=bool) for kind in questions
    }
    automatic = (
        ~annotated["sparse"][rows] if not config.sparse and config.from_file is None else np.zeros(len(rows), bool)
    )
    push_to = hub.place_push(config.dataset, config.revision) if config.push_to_hub else None
    if root != dataset.root:
        notices.append(f"{dataset.root} cannot be written to; the changed metadata goes to {root}")
    return AnnotatePlan(
        dataset=dataset,
        root=root,
        run_folder=run_folder,
        rows=rows,
        texts=tuple(episode_texts(dataset, rows)) if config.asks else ("",) * len(rows),
        questions=questions,
        wanted=wanted_of,
        automatic=automatic,
        cameras=cameras,
        sizes=sizes,
        push_to=push_to,
        notices=tuple(notices),
    )


def choose_engine(config: AnnotateConfig, cluster: Cluster) -> LocalVlm | Endpoint:
    """Who answers, made sure of as far as can be before any work.

    Raises:
        AnnotatorError: an endpoint that does not answer or does not let us in; a model that is none; fewer GPUs than asked.
    """
    if config.endpoint is not None:
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not (key.isascii() and key.isprintable()):
            raise AnnotatorError("OPENAI_API_KEY has characters that are in no key; set it anew")
        endpoint = Endpoint(config.endpoint, config.model, config.timeout_s, key)
        check_endpoint(endpoint)
        return endpoint
    largest = max(gpus_of_nodes())
    if cluster.num_gpus and config.gpus_per_worker > largest:
        raise AnnotatorError(f"gpus_per_worker is {config.gpus_per_worker}; the largest node has {largest} of them")
    local = Path(config.model).expanduser()
    if not local.is_dir() and not hub.is_hub_id(config.model):
        raise AnnotatorError(f"{config.model}: no such folder, and no Hub id")
    num_gpus = config.gpus_per_worker if cluster.num_gpus else 0
    vlm = LocalVlm(
        name=config.model,
        folder=str(local.resolve()) if local.is_dir() else None,
        device=cluster.device,
        bf16=bool(cluster.num_gpus) and cluster.bf16,
        num_gpus=num_gpus,
    )
    check_vlm(vlm)
    return vlm


def gpus_of_nodes() -> list[int]:
    """GPUs of each node that is alive, as Ray counts them."""
    return [int(node["Resources"].get("GPU", 0)) for node in ray.nodes() if node["Alive"]] or [0]


def describe_plan(plan: AnnotatePlan, config: AnnotateConfig, journal: Journal) -> list[str]:
    """Lines for the user: what will be asked, of whom, and what it may cost."""
    todo, dataset = plan.todo(journal), plan.dataset
    asked = {kind: sum(kind in kinds for kinds in todo.values()) for kind in plan.questions}
    lines = [f"dataset   {dataset.name}: {len(plan.rows):,} of {len(dataset.length):,} episodes"]
    for kind, question in plan.questions.items():
        skipped = int((~plan.wanted[kind]).sum())
        known = len(plan.rows) - skipped - asked[kind]
        notes = [f"{known:,} answered before"] * bool(known) + [f"{skipped:,} skipped"] * bool(skipped)
        shown = f" ({', '.join(notes)})" if notes else ""
        lines.append(f"{kind:<9} {', '.join(question.labels)}: {asked[kind]:,} episodes to ask{shown}")
    if plan.automatic.any():
        lines.append(f"sparse    {TASK}, the whole of {int(plan.automatic.sum()):,} episodes; nobody is asked")
    if plan.questions:
        height, width = plan.sizes[0][0], sum(size[1] for size in plan.sizes)
        counts = [len(plan.frames(row)) for row in plan.rows.tolist()]
        shown = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
        lines.append(f"frames    {shown} an episode, {width} x {height} pixels, of {' and '.join(plan.cameras)}")
        where = config.endpoint or "the cluster's GPUs, by transformers"
        lines += [f"model     {config.model} at {where}", *_estimate(plan, todo, config)]
    return [*lines, f"output    {plan.root}/meta, {plan.run_folder}"]


def _estimate(plan: AnnotatePlan, todo: dict[int, tuple[str, ...]], config: AnnotateConfig) -> list[str]:
    height, width = plan.sizes[0][0], sum(size[1] for size in plan.sizes)
    num_asked = sum(map(len, todo.values()))
    prompts = sum(len(kinds) * count_prompt_tokens(len(plan.frames(row)), height, width) for row, kinds in todo.items())
    answers = num_asked * ANSWER_TOKENS
    tokens = (
        f"estimate  {num_asked:,} questions, about {_rounded(prompts)} prompt and {_rounded(answers)} answer tokens"
    )
    if config.endpoint is not None or not num_asked:
        return [tokens]
    hours = (prompts / PROMPT_TOKENS_PER_S + answers / ANSWER_TOKENS_PER_S) * config.gpus_per_worker / 3600
    return [
        f"{tokens}; {hours:.1f} GPU hours,",
        f"          if a GPU takes {PROMPT_TOKENS_PER_S:,.0f} and gives {ANSWER_TOKENS_PER_S:g} tokens a second (assumed; "
        "--episodes 0:20 measures it)",
    ]


def _rounded(number: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number:.0f}"


def _question(
    config: AnnotateConfig, dataset: str, kind: str, labels: Sequence[str], cameras: tuple[str, ...]
) -> Question:
    return Question(
        dataset=dataset,
        kind=kind,
        labels=tuple(labels),
        model=config.model,
        cameras=cameras,
        frames_per_s=config.frames_per_s,
        max_frames=config.max_frames,
        max_pixels=config.max_pixels,
        allow_repeats=config.allow_repeats,
        allow_missing=config.allow_missing,
    )


def _annotated(dataset: Dataset, root: str) -> dict[str, np.ndarray]:
    """Which episodes have subtasks of each kind, (E,) bool."""
    annotations = read_annotations(with_written_metadata(dataset, root))
    found = {kind: annotation_of(annotations, kind) for kind in ("sparse", "dense")}
    return {kind: own.annotated if own else np.zeros(len(dataset.length), dtype=bool) for kind, own in found.items()}


def _places(config: AnnotateConfig, dataset: Dataset) -> tuple[str, str]:
    """Where changed metadata goes, and the rest of the run."""
    own = dataset.repo_id is None and (not storage.is_local(dataset.root) or _is_writable(dataset.root))
    if own:
        root = dataset.root
    elif config.output_dir is not None:
        root = storage.absolute(config.output_dir)
    else:
        root = storage.absolute(dataset.name.replace("/", "_") if dataset.repo_id else Path(dataset.name).name)
    if config.output_dir is not None:
        return root, storage.absolute(config.output_dir) if own else storage.join(root, RUN_FOLDER)
    return root, storage.join(root, RUN_FOLDER)


def _is_writable(root: str) -> bool:
    """Whether a local dataset's metadata may be changed."""
    folders = [folder for name in ("meta", "meta/episodes") if storage.is_folder(folder := storage.join(root, name))]
    return all(storage.is_writable_folder(folder) for folder in (root, *folders))


def require_episodes(plan: AnnotatePlan) -> None:
    """Raise a DatasetError where the selection is empty."""
    if not len(plan.rows):
        raise DatasetError(f"{plan.dataset.name} has no episodes")
