"""What `sarm-ray report` does."""

from dataclasses import dataclass
from typing import Literal

from sarm_ray.config.loading import require


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """What `sarm-ray report` does.

    Args:
        dataset: local folder, fsspec URL or Hub id of a LeRobotDataset; or a folder or URL that `serve --record` wrote.
        progress: its progress file; None is sarm_progress.parquet in the dataset's root, else in ./<name>/.
        output: the page; None is report.html beside the progress file, in ./<name>/ where that cannot be written to.
        labels: CSV of outcomes (episode_index, outcome); None takes the episode table's column `outcome`, if it has one.
        evaluation: JSON with figures to show; None is evaluation.json beside the progress file, if there is one.
        head_mode: `sparse` or `dense`; None is the sparse head where the file has it.
        chunk_size: horizon of RA-BC in frames, the policy's chunk_size.
        image_key: the camera to show; None is the first one.
        max_videos: episodes with a video; the others have pictures alone.
        overwrite: replace a page that exists.
        revision: of a Hub dataset.
    """

    dataset: str
    progress: str | None = None
    output: str | None = None
    labels: str | None = None
    evaluation: str | None = None
    head_mode: Literal["sparse", "dense"] | None = None
    chunk_size: int = 50
    image_key: str | None = None
    max_videos: int = 60
    overwrite: bool = False
    revision: str | None = None

    def __post_init__(self) -> None:
        require(self.chunk_size >= 1, f"chunk_size must be at least 1, not {self.chunk_size}")
        require(self.max_videos >= 0, f"max_videos must not be negative, not {self.max_videos}")
