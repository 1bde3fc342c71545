"""DeepSpeed behind five functions: start, step, gather, restore, look.

The state that moves between stages, precisions and numbers of workers is fp32 weights and Adam's two moments by LeRobot's
names; DeepSpeed's own checkpoints are pickles tied to a world size and are not used.
"""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from sarm_ray.config.train import OptimizerOptions
from sarm_ray.model.sarm import Sarm
from sarm_ray.model.training import TrainingModel, make_optimizer, trainable_parameters
from sarm_ray.model.training_state import GROUPS, TrainingState, adam_moments, restore_adam

MOMENTS = GROUPS[1:]


@dataclass
class Engine:
    """A model under DeepSpeed.

    Args:
        deepspeed: DeepSpeed's engine.
        sarm: the networks inside it.
        trained: parameters that are trained, by LeRobot's names.
        frozen: the weights of the others, which never change.
        stage: ZeRO stage.
        num_workers, num_passes: how a step is cut.
    """

    deepspeed: Any
    sarm: Sarm
    trained: dict[str, torch.nn.Parameter]
    frozen: dict[str, torch.Tensor]
    stage: int
    num_workers: int
    num_passes: int

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The AdamW inside DeepSpeed's wrapper, if it has one."""
        outer = self.deepspeed.optimizer
        return getattr(outer, "optimizer", outer)

    @property
    def sharded(self) -> bool:
        """Whether DeepSpeed keeps fp32 weights and moments of its own beside the model's."""
        return not isinstance(self.deepspeed.optimizer, torch.optim.Optimizer)


def start_engine(
    sarm: Sarm,
    heads: Sequence[str],
    options: OptimizerOptions,
    stage_loss_weight: float,
    stage: int,
    precision: str,
    device: str,
    samples_per_pass: int,
    num_passes: int,
    state: TrainingState | None,
    inputs: str = "both",
) -> Engine:
    """Wrap a model; torch.distributed must be up.

    Args:
        sarm: float32 weights on the CPU, those of `state` if there is one.
        heads: to train.
        options: of AdamW.
        stage: ZeRO stage. precision: `fp32` or `bf16`. device: `cpu` or `cuda`.
        samples_per_pass, num_passes: of this process, per step.
        state: to go on from.
        inputs: that the model goes by, see `leave_out_inputs`.
    """
    deepspeed = import_deepspeed(device)
    trained = trainable_parameters(sarm, heads, inputs)
    whole = {name: p.detach().clone() for name, p in trained.items()} if precision == "bf16" else {}
    frozen = {name: p.detach().clone() for name, p in sarm.named_parameters() if name not in trained}
    model = TrainingModel(sarm, heads, stage_loss_weight)
    betas = (options.beta1, options.beta2)
    # stage 3 takes a step with zero gradients to make the optimiser's state: at lr 0 it changes no weight
    optimizer = make_optimizer(trained.values(), 0.0, betas, options.eps, options.weight_decay)
    settings = {
        "train_micro_batch_size_per_gpu": samples_per_pass,
        "gradient_accumulation_steps": num_passes,
        "gradient_clipping": options.grad_clip_norm,
        "bf16": {"enabled": precision == "bf16"},
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    wrapped, *_ = deepspeed.initialize(
        model=model,
        model_parameters=list(trained.values()),
        optimizer=optimizer,
        config=settings,
        dist_init_required=False,
    )
    num_workers = torch.distributed.get_world_size()
    engine = Engine(wrapped, sarm, trained, frozen, stage, num_workers, num_passes)
    if precision == "bf16":
        _set_masters(engine, whole)
    _restore(engine, state)
    wrapped.train()
    return engine


def import_deepspeed(device: str) -> Any:
    """DeepSpeed for this device, without the C++ extension that it would otherwise compile for one unused collective."""
    os.environ.setdefault("DS_ACCELERATOR", device)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def bound_waits(device: str, timeout_s: float) -> None:
    """Let processes wait for each other no longer than this, in DeepSpeed's collectives as in torch's. To be called by all.

    DeepSpeed makes a group of its own, which has torch's half hour whatever Ray Train's has, and there is no way to tell it.
    """
    import_deepspeed(device)
    from deepspeed.utils import groups

    groups._WORLD_GROUP = torch.distributed.new_group(timeout=timedelta(seconds=timeout_s))


def take_step(
    engine: Engine, passes: Sequence[tuple[Mapping[str, torch.Tensor], Mapping[str, float]]], lr: float
) -> tuple[torch.Tensor, float]:
    """One optimiser step.

    Args:
        passes: batch and global counts of each pass, see model/training.py.
        lr: learning rate.

    Returns:
        sums (H, 5) over this process's samples (`LossParts.sums_HM`), and the norm of the global gradient before clipping.
    """
    for group in engine.deepspeed.optimizer.param_groups:
        group["lr"] = lr
    sums, norm = None, 0.0
    # the engine averages over processes and passes, the loss is a sum over both: see `sarm_loss`
    scale = engine.num_workers * engine.num_passes
    for batch, counts in passes:
        loss, own = engine.deepspeed(dict(counts), **batch)
        engine.deepspeed.backward(loss * scale)
        sums = own if sums is None else sums + own
        if not engine.sharded and engine.deepspeed.is_gradient_accumulation_boundary():
            norm = float(torch.nn.utils.get_total_norm([p.grad for p in engine.trained.values() if p.grad is not None]))
        engine.deepspeed.step()
    assert sums is not None
    if engine.sharded:
        norm = float(engine.deepspeed.get_global_grad_norm())
    return sums, norm


def gather_state(engine: Engine, facts: Mapping[str, Any]) -> TrainingState:
    """The whole state, to be written at once. Collective: all processes call it."""
    if not engine.sharded:
        weights = {name: p.detach().clone().cpu() for name, p in engine.sarm.named_parameters()}
        return TrainingState(weights, *adam_moments(engine.optimizer, engine.trained), dict(facts))
    parts: dict[str, dict[str, torch.Tensor]] = {group: {} for group in GROUPS}
    for name, parameter in engine.trained.items():
        for group, tensor in zip(GROUPS, _full_tensors(engine, parameter), strict=True):
            parts[group][name] = tensor.detach().float().cpu().clone().reshape(parameter_shape(parameter))
    whole = {**engine.frozen, **parts["weights"]}
    weights = {name: whole[name] for name, _ in engine.sarm.named_parameters()}  # in LeRobot's order
    return TrainingState(weights, parts["exp_avg"], parts["exp_avg_sq"], dict(facts))


def parameter_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Its whole shape, also where stage 3 has left this process a slice."""
    return getattr(parameter, "ds_shape", parameter.shape)


@contextlib.contextmanager
def whole_model(engine: Engine) -> Iterator[Sarm]:
    """The networks in eval mode and float32 with all their weights, for inference. Collective.

    In float32 they share the weights that are being trained.
    """
    parameters = dict(engine.sarm.named_parameters())
    with contextlib.ExitStack() as gathered:
        if engine.stage == 3:
            import deepspeed

            gathered.enter_context(deepspeed.zero.GatheredParameters(list(parameters.values())))
        with torch.device("meta"):
            whole = Sarm(engine.sarm.shape)
        whole.load_state_dict({name: p.detach().float() for name, p in parameters.items()}, assign=True)
        yield whole.eval()


def _set_masters(engine: Engine, weights: Mapping[str, torch.Tensor]) -> None:
    """Give DeepSpeed's fp32 weights the digits that they lost: it makes them from a model that it has cast to bfloat16."""
    from deepspeed.utils import safe_set_full_fp32_param

    for name, parameter in engine.trained.items():
        safe_set_full_fp32_param(parameter, weights[name].to(parameter.device))


def _make_moments(engine: Engine) -> None:
    """Give AdamW the state that it would have after a step: stages 1 and 2 have none before, and nowhere to put moments.

    DeepSpeed ties parameters to their place in it after its first step, and has no public call for that.
    """
    for group in engine.optimizer.param_groups:
        for flat in group["params"]:
            zeros = {moment: torch.zeros_like(flat) for moment in MOMENTS}
            engine.optimizer.state[flat] = {"step": torch.tensor(0.0), **zeros}
    engine.deepspeed.optimizer._lazy_init_hp_params_optimizer_state()


def _full_tensors(engine: Engine, parameter: torch.nn.Parameter) -> tuple[torch.Tensor, ...]:
    """fp32 weight, exp_avg, exp_avg_sq of a sharded parameter, whole."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    moments = (safe_get_full_optimizer_state(parameter, moment) for moment in MOMENTS)
    return (safe_get_full_fp32_param(parameter), *moments)


def _restore(engine: Engine, state: TrainingState | None) -> None:
    """Adam's moments and its count of steps, which a first step of DeepSpeed's own may have set to 1."""
    if not engine.sharded:
        if state is not None:
            restore_adam(engine.optimizer, engine.trained, state)
        return
    step = 0 if state is None else int(state.facts["step"])
    if state is not None and step > 0:
        from deepspeed.utils import safe_set_full_optimizer_state

        if not engine.optimizer.state:
            _make_moments(engine)
        for name, parameter in engine.trained.items():
            for moment in MOMENTS:
                tensor = getattr(state, moment)[name]
                safe_set_full_optimizer_state(parameter, tensor.to(parameter.device), moment)
    for own in engine.optimizer.state.values():
        own["step"] = torch.tensor(float(step))
