"""From features, states and text to progress: the one inference path of score, evaluate, visualize and serve."""

from dataclasses import dataclass

import numpy as np
import torch

from sarm_ray.core.progress import normalize_progress
from sarm_ray.model.checkpoint import Checkpoint, load_model
from sarm_ray.model.inference import infer_readout

CPU_WINDOWS_PER_PASS = 64
GPU_WINDOWS_PER_PASS = 256


@dataclass(frozen=True)
class HeadScores:
    """One head's outputs for B windows.

    Args:
        progress: (B,) float32 in [0, 1], NaN where the window has a hole.
        probabilities: (B, K) float32 over stages.
        tau: (B,) float32, place inside the most probable stage.
    """

    progress: np.ndarray
    probabilities: np.ndarray
    tau: np.ndarray


class Scorer:
    """A loaded SARM.

    Args:
        checkpoint: which one.
        heads: heads to compute; they share their trunks.
        readout: slot of the window that shows the scored frame.
        precision: `fp32` or `bf16` (transformer in bfloat16, readout in float32).
        device: torch device.
    """

    def __init__(self, checkpoint: Checkpoint, heads: tuple[str, ...], readout: int, precision: str, device: str):
        self.heads, self.readout, self.device = heads, readout, device
        self.dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.model = load_model(checkpoint).to(device, self.dtype)
        for net in (self.model.stage_model, self.model.subtask_model):
            net.fusion_backbone.float()
            net.heads.float()
        self.breakpoints = {head: checkpoint.config.breakpoints(head) for head in heads}
        self.windows_per_pass = CPU_WINDOWS_PER_PASS if device == "cpu" else GPU_WINDOWS_PER_PASS

    @torch.inference_mode()
    def score(
        self,
        features_FD: np.ndarray,
        states_FS: np.ndarray,
        text_E: np.ndarray,
        slots_BT: np.ndarray,
        whole_B: np.ndarray,
    ) -> dict[str, HeadScores]:
        """Score windows over one episode's frames.

        Args:
            features_FD: (F, D) image features, D = num_cameras * image_dim.
            states_FS: (F, max_state_dim) float32, normalised and padded.
            text_E: (E,) float32 task feature.
            slots_BT: (B, T) int64, each window's frames as positions in F.
            whole_B: (B,) bool; a window that is not whole scores NaN. It still takes its place in the pass, so that
                the others come out the same to the last bit.

        Returns:
            head -> HeadScores.
        """
        features = torch.from_numpy(np.asarray(features_FD)).to(self.device, self.dtype)
        states = torch.from_numpy(states_FS).to(self.device, self.dtype)
        text = torch.from_numpy(text_E.copy()).to(self.device, self.dtype)[None]
        passes = torch.from_numpy(slots_BT).to(self.device).split(self.windows_per_pass)
        outputs = [self._infer(features[slots], states[slots], text.expand(len(slots), -1)) for slots in passes]
        return self._collect(outputs, whole_B)

    @torch.inference_mode()
    def score_windows(
        self, features_BTD: np.ndarray, states_BTS: np.ndarray, text_BE: np.ndarray, whole_B: np.ndarray
    ) -> dict[str, HeadScores]:
        """Score windows of as many episodes, as live sessions have them.

        Args:
            features_BTD: image features of each window's T frames.
            states_BTS: float32, normalised and padded.
            text_BE: float32, task features.
            whole_B: bool; a window that is not whole scores NaN.

        Returns:
            head -> HeadScores. Equal to `score` of the same windows but for the last bits, which depend on the pass.
        """
        arrays = (features_BTD, states_BTS, text_BE)
        tensors = [torch.from_numpy(np.asarray(array)).to(self.device, self.dtype) for array in arrays]
        split = zip(*(tensor.split(self.windows_per_pass) for tensor in tensors), strict=True)
        return self._collect([self._infer(*each) for each in split], whole_B)

    def _infer(self, features_BTD: torch.Tensor, states_BTS: torch.Tensor, text_BE: torch.Tensor):
        """head -> (probabilities (B, K), tau (B,)), one pass."""
        return infer_readout(self.model, features_BTD, text_BE, states_BTS, self.readout, list(self.heads))

    def _collect(self, passes: list[dict], whole_B: np.ndarray) -> dict[str, HeadScores]:
        return {head: self._join(head, [each[head] for each in passes], whole_B) for head in self.heads}

    def _join(self, head: str, passes: list[tuple[torch.Tensor, torch.Tensor]], whole_B: np.ndarray) -> HeadScores:
        probabilities = torch.cat([each[0] for each in passes]).cpu().numpy()
        tau = torch.cat([each[1] for each in passes]).cpu().numpy()
        probabilities[~whole_B], tau[~whole_B] = np.nan, np.nan
        stage_tau = np.where(whole_B, np.argmax(np.nan_to_num(probabilities), axis=1) + tau, np.nan)
        return HeadScores(normalize_progress(stage_tau, self.breakpoints[head]), probabilities, tau)
