"""SARM's two networks, under LeRobot's tensor names (spec/lerobot.md 1.8).

Shape legend: B windows, T slots, F = cameras x image_dim features, D model width, K stages, S token streams.

Tokens are stream-major, [vision t0..tT-1 | language x T | state x T], to which the subtask network adds [stage x T]. The
attention mask is strictly upper triangular over that sequence, so vision tokens see earlier vision only, while language,
state and stage tokens see all vision. `first_pos` marks vision slot 0; there is no other position code. The readout of a
slot concatenates its S tokens. Dropout layers of torch's TransformerEncoderLayer stand where LeRobot has them.

LeRobot has one camera. Ours may have several, as opensarm: each is a vision stream of its own, in order, with the same
projection and the same `first_pos`, so the readout grows by one token per camera and nothing else changes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

HEADS = ("sparse", "dense")


@dataclass(frozen=True)
class SarmShape:
    """Sizes of the networks, by LeRobot's config names; num_cameras is ours."""

    num_sparse_stages: int
    num_dense_stages: int
    hidden_dim: int = 768
    num_heads: int = 12
    num_layers: int = 8
    image_dim: int = 512
    text_dim: int = 512
    max_state_dim: int = 32
    dropout: float = 0.1
    num_cameras: int = 1

    @property
    def num_shared(self) -> int:
        """Streams that every head sees: one per camera, language, state."""
        return self.num_cameras + 2

    @property
    def relative_cost(self) -> float:
        """What a window costs, LeRobot's default shape being 1; with the smallest networks it is the data that costs."""
        return max((self.hidden_dim / 768) ** 2 * self.num_layers / 8, 0.05)

    def num_stages(self, head: str) -> int:
        return self.num_sparse_stages if head == "sparse" else self.num_dense_stages


class TokenNet(nn.Module):
    """What both networks share: projections of the streams, the encoder, the fused readout.

    Args:
        shape: sizes.
        num_streams: that a slot's readout concatenates: the shared ones, and in the subtask network the stage.
        head_dims: outputs of each head.
    """

    def __init__(self, shape: SarmShape, num_streams: int, head_dims: dict[str, int]):
        super().__init__()
        width, self.num_shared = shape.hidden_dim, shape.num_shared
        self.first_pos = nn.Parameter(torch.zeros(1, width))
        self.lang_proj = nn.Linear(shape.text_dim, width)
        self.visual_proj = nn.Linear(shape.image_dim, width)
        self.state_proj = nn.Linear(shape.max_state_dim, width)
        layer = nn.TransformerEncoderLayer(width, shape.num_heads, 4 * width, shape.dropout, batch_first=True)
        self.transformer = nn.TransformerEncoder(layer, shape.num_layers, enable_nested_tensor=False)
        self.fusion_backbone = nn.Sequential(
            nn.LayerNorm(num_streams * width), nn.Linear(num_streams * width, width), nn.ReLU()
        )
        self.heads = nn.ModuleDict({name: nn.Linear(width, dim) for name, dim in head_dims.items()})

    def project(self, vision_BTF: torch.Tensor, text_BF: torch.Tensor, state_BTF: torch.Tensor) -> list[torch.Tensor]:
        """The shared streams, (B, T, D) each: the cameras, language, state."""
        cameras = [self.visual_proj(each) for each in vision_BTF.split(self.visual_proj.in_features, dim=-1)]
        cameras = [torch.cat([each[:, :1] + self.first_pos, each[:, 1:]], dim=1) for each in cameras]
        language = self.lang_proj(text_BF)[:, None].expand(-1, vision_BTF.shape[1], -1)
        return [*cameras, language, self.state_proj(state_BTF)]

    def encode(self, streams: list[torch.Tensor], lengths: torch.Tensor | None) -> torch.Tensor:
        """Encode streams (B, T, D): (B, T, S, D).

        All see the shared ones; each of the others (the stages of one head) sees itself besides, and no other head's, so
        heads that share a pass come out as if each had one of its own.
        """
        num_windows, num_slots, _ = streams[0].shape
        tokens = torch.cat(streams, dim=1)
        stream = torch.arange(len(streams), device=tokens.device).repeat_interleave(num_slots)
        hidden = torch.ones(len(stream), len(stream), dtype=torch.bool, device=tokens.device).triu(1)
        hidden |= (stream[None] >= self.num_shared) & (stream[None] < stream[:, None])
        padding = None
        if lengths is not None:
            padding = torch.arange(num_slots, device=tokens.device)[None] >= lengths[:, None]
            padding = padding.repeat(1, len(streams))
        encoded = self.transformer(tokens, mask=hidden, src_key_padding_mask=padding)
        return encoded.view(num_windows, len(streams), num_slots, -1).transpose(1, 2)


class StageTransformer(TokenNet):
    """Which stage each slot shows."""

    def __init__(self, shape: SarmShape):
        super().__init__(shape, shape.num_shared, {head: shape.num_stages(head) for head in HEADS})

    def forward(self, vision_BTF, text_BF, state_BTF, heads: Iterable[str], lengths=None) -> dict[str, torch.Tensor]:
        """Stage logits of each head, all from one pass: head -> (B, T, K)."""
        encoded = self.encode(self.project(vision_BTF, text_BF, state_BTF), lengths)
        slots = self.fusion_backbone(encoded.flatten(2))
        return {head: self.heads[head](slots) for head in heads}


class SubtaskTransformer(TokenNet):
    """How far inside its stage each slot is, given the stages."""

    def __init__(self, shape: SarmShape):
        super().__init__(shape, shape.num_shared + 1, dict.fromkeys(HEADS, 1))

    def forward(
        self, vision_BTF, text_BF, state_BTF, stages: Mapping[str, torch.Tensor], lengths=None
    ) -> dict[str, torch.Tensor]:
        """tau in (0, 1) of each head, all from one pass: head -> (B, T). `stages` maps heads to (B, T) int64."""
        own = [self.stage_tokens(stage_BT) for stage_BT in stages.values()]
        encoded = self.encode([*self.project(vision_BTF, text_BF, state_BTF), *own], lengths)
        shared, own_stages = encoded[:, :, : self.num_shared], encoded[:, :, self.num_shared :]
        taus = {}
        for position, head in enumerate(stages):
            slots = torch.cat([shared, own_stages[:, :, position, None]], dim=2).flatten(2)
            taus[head] = torch.sigmoid(self.heads[head](self.fusion_backbone(slots)).squeeze(-1))
        return taus

    def stage_tokens(self, stage_BT: torch.Tensor) -> torch.Tensor:
        """One-hot stages, zero-padded to the model width: (B, T) int64 -> (B, T, D)."""
        return nn.functional.one_hot(stage_BT, self.first_pos.shape[-1]).to(self.first_pos.dtype)


class Sarm(nn.Module):
    """Both networks. `state_dict` has exactly LeRobot's tensors, `stage_model.*` then `subtask_model.*`."""

    def __init__(self, shape: SarmShape):
        super().__init__()
        self.shape = shape
        self.stage_model = StageTransformer(shape)
        self.subtask_model = SubtaskTransformer(shape)
