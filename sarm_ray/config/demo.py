"""What `sarm-ray demo` does."""

from dataclasses import dataclass

from sarm_ray.config.loading import require


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """What `sarm-ray demo` does.

    Args:
        output_dir: folder of the demo; a demo that was cut off there goes on.
        seed: of the scenes, the split and the weights.
        steps: of training.
        ablations: also train and evaluate a model that sees the images alone and one that sees the state alone.
    """

    output_dir: str = "sarm_demo"
    seed: int = 0
    steps: int = 800
    ablations: bool = False

    def __post_init__(self) -> None:
        require(self.seed >= 0, f"seed must not be negative, not {self.seed}")
        require(self.steps >= 1, f"steps must be at least 1, not {self.steps}")
