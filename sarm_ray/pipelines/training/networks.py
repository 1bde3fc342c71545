"""The networks of a run: the config of the model that comes out, and the checkpoint it starts from."""

from sarm_ray.config.train import TrainConfig
from sarm_ray.errors import CheckpointError, EncoderError, name_list
from sarm_ray.model.checkpoint import Checkpoint, SarmConfig, open_checkpoint
from sarm_ray.model.encoder import EncoderInfo
from sarm_ray.pipelines.inputs import model_folder
from sarm_ray.pipelines.training.labels import HeadLabels


def model_config(config: TrainConfig, labels: dict[str, HeadLabels], encoder: EncoderInfo, camera: str) -> SarmConfig:
    """LeRobot's config. single_stage keeps the fixed names that LeRobot forces on it."""
    sparse, dense = labels["sparse"], labels.get("dense")
    values = {
        "num_sparse_stages": len(sparse.stages),
        "sparse_subtask_names": list(sparse.stages),
        "sparse_temporal_proportions": sparse.proportions.tolist(),
    }
    if dense is not None:
        values |= {
            "num_dense_stages": len(dense.stages),
            "dense_subtask_names": list(dense.stages),
            "dense_temporal_proportions": dense.proportions.tolist(),
        }
    model, augmentation = config.model, config.augmentation
    sizes = {name: getattr(model, name) for name in type(model).__dataclass_fields__}
    return SarmConfig(
        annotation_mode=config.annotation_mode,
        image_dim=encoder.image_dim,
        text_dim=encoder.text_dim,
        stage_loss_weight=config.stage_loss_weight,
        rewind_probability=augmentation.rewind_probability,
        language_perturbation_probability=augmentation.language_perturbation_probability,
        image_key=camera,
        state_key=config.state_key,
        batch_size=config.batch_size,
        **sizes,
        **values,
    )


def open_parent(name: str, model: SarmConfig, encoder: EncoderInfo, num_cameras: int) -> Checkpoint:
    """The checkpoint to fine-tune.

    Raises:
        CheckpointError, EncoderError: its networks or its encoder are others than this run's.
    """
    parent = open_checkpoint(name, model_folder(name))
    if parent.sidecar is not None and parent.sidecar.encoder_weights != encoder.weights:
        raise EncoderError(
            f"{name} was trained on features of {parent.sidecar.encoder}; give --encoder {parent.sidecar.encoder}"
        )
    if parent.shape.num_cameras != num_cameras:
        theirs = f"{parent.shape.num_cameras} ({name_list(parent.cameras)})"
        raise CheckpointError(f"{name} has cameras {theirs}, this run {num_cameras}; give as many with --image-key")
    for size in ("hidden_dim", "num_heads", "num_layers", "max_state_dim", "image_dim", "text_dim"):
        own, theirs = getattr(model, size), getattr(parent.config, size)
        if own != theirs:
            way_out = "give its --encoder" if size in ("image_dim", "text_dim") else f"give --set model.{size}={theirs}"
            raise CheckpointError(f"{name} has {size} {theirs}, this run {own}; {way_out}")
    return parent
