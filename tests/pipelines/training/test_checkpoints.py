"""The links of a training run, which a kill may have left behind its checkpoints."""

import torch

from sarm_ray.model.training_state import write_state
from sarm_ray.pipelines.training.checkpoints import mend_links, step_folder


def write_step(folder, **facts) -> None:
    write_state(str(step_folder(str(folder), facts["step"]) / "training_state"), {"w": torch.ones(1)}, {}, {}, facts)


def test_links_follow_the_last_checkpoint(tmp_path):
    mend_links(str(tmp_path))  # nothing there yet
    write_step(tmp_path, step=2, seed=0, best=0.5, best_step=2)
    write_step(tmp_path, step=4, seed=0, best=0.5, best_step=2)
    checkpoints = tmp_path / "checkpoints"
    (checkpoints / "last").symlink_to("000002")
    mend_links(str(tmp_path))
    assert {name: (checkpoints / name).readlink().name for name in ("last", "best")} == {
        "last": "000004",
        "best": "000002",
    }
    write_step(tmp_path, step=6, seed=0, best=0.25, best_step=6)
    mend_links(str(tmp_path))
    assert {(checkpoints / name).readlink().name for name in ("last", "best")} == {"000006"}


def test_a_best_checkpoint_that_is_gone_is_not_linked(tmp_path):
    write_step(tmp_path, step=4, seed=0, best=0.5, best_step=2)
    mend_links(str(tmp_path))
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["000004", "last"]
