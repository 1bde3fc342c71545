"""What `sarm-ray visualize` does."""

from dataclasses import dataclass
from typing import Literal

from sarm_ray.config.loading import as_tuple, check_cameras, require

SCORING = ("state_key", "state_stats", "task", "encoder", "cache")


@dataclass(frozen=True, kw_only=True)
class VisualizeConfig:
    """What `sarm-ray visualize` does.

    Args:
        dataset: local folder, fsspec URL or Hub id of a LeRobotDataset.
        model: SARM checkpoint that scores the chosen episodes first: local folder or Hub id.
        progress: a progress file that is there; None is the dataset's: in its root, else in ./<name>/.
        type: `predictions` (a picture per episode and head), `videos` (the same as an mp4 beside the episode) or
            `annotations`; None is predictions where there is a progress file or a model, else annotations.
        visualize_type: which heads or kinds of annotation; `both` is those that there are.
        num_visualizations: how many episodes, if `episodes` does not say which.
        episodes: Python-like selection of episodes, `0:10,15`; None is the first ones that can be drawn.
        image_key: the camera that is shown; None is the one that was scored, else the first that has files. A list is for
            a model of several cameras, of which the first is shown.
        output_dir: folder of the pictures; None is ./sarm_viz/<name>.
        revision: of a Hub dataset.
        state_key, state_stats, task, encoder, cache: of the scoring run, see ScoreConfig; they go with `model`.
        address: of the Ray cluster that scores.
    """

    dataset: str
    model: str | None = None
    progress: str | None = None
    type: Literal["annotations", "predictions", "videos"] | None = None
    visualize_type: Literal["sparse", "dense", "both"] = "both"
    num_visualizations: int = 5
    episodes: str | None = None
    image_key: str | list[str] | None = None
    output_dir: str | None = None
    revision: str | None = None
    state_key: str | None = None
    state_stats: Literal["checkpoint", "dataset"] | None = None
    task: str | None = None
    encoder: str | None = None
    cache: str | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        require(bool(self.dataset), "dataset is missing; give it as an argument or in --config")
        require(self.num_visualizations >= 1, f"num_visualizations must be at least 1, not {self.num_visualizations}")
        require(
            self.model is None or self.progress is None, "model and progress are both given; the scores come from one"
        )
        source = "model" if self.model else "progress"
        require(
            self.type != "annotations" or (self.model is None and self.progress is None),
            f"{source} is given, but annotations are drawn without scores; leave it out, or leave type out",
        )
        astray = [name for name in SCORING if getattr(self, name) is not None and self.model is None]
        require(not astray, f"{', '.join(astray)}: for scoring only; give a model too, or leave it out")
        check_cameras(self.image_keys)

    @property
    def image_keys(self) -> tuple[str, ...]:
        """The cameras asked for; none where that is left open."""
        return as_tuple(self.image_key)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Heads or kinds of annotation asked for."""
        return ("sparse", "dense") if self.visualize_type == "both" else (self.visualize_type,)
