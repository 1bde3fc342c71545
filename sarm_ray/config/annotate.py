"""What `sarm-ray annotate` does."""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from sarm_ray.config.loading import as_tuple, check_cameras, require


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig:
    """What `sarm-ray annotate` does.

    Args:
        dataset: local folder, fsspec URL or Hub id of a LeRobotDataset.
        sparse_subtasks, dense_subtasks: names in order, "a,b" or a list (whose names may contain commas). With neither, and
            with `dense_only`, every episode gets the one sparse subtask "task".
        dense_only: ask for dense subtasks alone.
        from_file: import segments instead of asking: a CSV, JSON or parquet file, or a column of the dataset with them
            (`language_persistent`, `subtask_index`, `reward`).
        image_key: the camera, or a list of them, shown side by side.
        episodes: Python-like selection, `0:10,15`; None is all.
        model: the VLM: folder, Hub id, or its name at the endpoint.
        engine: `transformers` on the cluster's GPUs, or `openai`: any OpenAI-compatible endpoint.
        endpoint: its URL, up to `/v1`; the key is OPENAI_API_KEY of the environment.
        num_workers: actors, "MIN:MAX" or a number; None is as many as there are GPUs, or 1.
        gpus_per_worker: over which an actor spreads its model.
        concurrency: questions under way at once, per actor, to an endpoint.
        timeout_s: of one answer of an endpoint.
        frames_per_s, max_frames, max_pixels: what the VLM sees of an episode; pixels are a frame's, all cameras together.
        skip_existing: leave episodes alone that have subtasks of the kind being annotated.
        allow_repeats: a subtask may come again later, as after a drop.
        allow_missing: subtasks may be missing, as in an episode that failed.
        output_dir: everything of the run but the dataset's metadata; None is annotation.run in a writable dataset, else in
            ./<name>/, where the changed metadata then goes too.
        num_visualizations, visualize_type: episodes to draw at the end, and which subtasks of them.
        visualize_only: draw what is annotated and ask nothing.
        allow_failures: exit with 0 while at most this many episodes failed.
        overwrite: forget the answers of earlier runs.
        dry_run: print the plan and ask nothing.
        push_to_hub: upload the changed metadata to the dataset's Hub repository.
        revision: of a Hub dataset.
        address: Ray cluster to join; None is the job's own cluster, else a local one.
    """

    dataset: str
    sparse_subtasks: str | list[str] | None = None
    dense_subtasks: str | list[str] | None = None
    dense_only: bool = False
    from_file: str | None = None
    image_key: str | list[str] | None = None
    episodes: str | None = None
    model: str = "Qwen/Qwen3-VL-30B-A3B-Instruct"
    engine: Literal["transformers", "openai"] = "transformers"
    endpoint: str | None = None
    num_workers: str | int | None = None
    gpus_per_worker: int = 1
    concurrency: int = 8
    timeout_s: float = 300.0
    frames_per_s: float = 1.0
    max_frames: int = 128
    max_pixels: int = 150_000
    skip_existing: bool = False
    allow_repeats: bool = False
    allow_missing: bool = False
    output_dir: str | None = None
    num_visualizations: int = 5
    visualize_type: Literal["sparse", "dense", "both"] = "both"
    visualize_only: bool = False
    allow_failures: int = 0
    overwrite: bool = False
    dry_run: bool = False
    push_to_hub: bool = False
    revision: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        for name in ("allow_failures", "num_visualizations"):
            require(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("gpus_per_worker", "concurrency"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        require(self.frames_per_s > 0, f"frames_per_s must be above 0, not {self.frames_per_s}")
        require(self.timeout_s > 0, f"timeout_s must be above 0, not {self.timeout_s}")
        require(2 <= self.max_frames <= 768, f"max_frames must be 2 to 768, not {self.max_frames}")
        require(4096 <= self.max_pixels <= 2**22, f"max_pixels must be 4,096 to 4,194,304, not {self.max_pixels}")
        require(not self.dense_only or bool(self.dense), "dense_only needs dense_subtasks")
        require(not (self.dense_only and self.sparse), "dense_only asks for no sparse_subtasks; leave one of them out")
        require(
            not self.dense or bool(self.sparse) or self.dense_only or self.from_file is not None,
            'dense_subtasks alone: add sparse_subtasks, or dense_only for the one sparse subtask "task"',
        )
        for kind, names in (("sparse", self.sparse), ("dense", self.dense)):
            twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
            require(not twice, f"{kind}_subtasks names {', '.join(map(repr, twice))} more than once")
        asks = self.asks
        require(
            not asks or self.engine == "transformers" or self.endpoint is not None, "engine openai needs an endpoint"
        )
        require(self.endpoint is None or self.engine == "openai", "an endpoint is asked by engine openai")
        require(
            self.endpoint is None or self.endpoint.startswith(("http://", "https://")),
            f"endpoint must begin with http:// or https://, not {self.endpoint!r}",
        )
        parts = urlsplit(self.endpoint or "")
        require(
            not (parts.username or parts.password or parts.query),
            "endpoint must hold no password or key; the key is OPENAI_API_KEY of the environment",
        )
        check_cameras(self.image_keys)
        self.pool  # noqa: B018  # a malformed one is said now

    @property
    def sparse(self) -> tuple[str, ...]:
        """Names of the sparse subtasks."""
        return _names(self.sparse_subtasks)

    @property
    def dense(self) -> tuple[str, ...]:
        """Names of the dense subtasks."""
        return _names(self.dense_subtasks)

    @property
    def asks(self) -> bool:
        """Whether a VLM is asked at all."""
        return self.from_file is None and not self.visualize_only and bool(self.sparse or self.dense)

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The cameras asked for; none where that is left open."""
        return as_tuple(self.image_key)

    @property
    def pool(self) -> tuple[int, int] | None:
        """Fewest and most actors, or None where that is left open."""
        if self.num_workers is None:
            return None
        fewest, _, most = str(self.num_workers).partition(":")
        numbers = [int(text) if text.isdigit() else 0 for text in (fewest, most or fewest)]
        require(
            1 <= numbers[0] <= numbers[1],
            f"num_workers must be a number or MIN:MAX from 1 up, not {self.num_workers!r}",
        )
        return numbers[0], numbers[1]


def _names(given: str | list[str] | None) -> tuple[str, ...]:
    """One text holds names between commas, as LeRobot's tool has it; in a list each is a name as it stands."""
    names = given.split(",") if isinstance(given, str) else given or []
    return tuple(name.strip() for name in names if name.strip())
