"""SARM's outputs at the readout slot, and nothing that they do not depend on (spec/ours.md A).

The stage network's outputs at slots 0..r feed the subtask network's output at slot r. Under the causal mask

- no state token of a slot > r reaches the stage network's slots 0..r, so those tokens are left out;
- no stage token of a slot > r reaches the subtask network's slot r, likewise;
- vision, language and state tokens never see stage tokens, so all heads share them: each head adds its r + 1 stage tokens
  to the same sequence, and the mask keeps the heads apart;
- the last layer needs the queries of the tokens that are read out, and no others.

The result equals the full forward pass in exact arithmetic. Shape legend as in sarm.py; N tokens.
"""

import torch
from torch import nn
from torch.nn import functional

from sarm_ray.model.sarm import Sarm, TokenNet


def infer_readout(
    model: Sarm,
    vision_BTF: torch.Tensor,
    text_BF: torch.Tensor,
    state_BTF: torch.Tensor,
    readout: int,
    heads: list[str],
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Stage probabilities and tau at one slot.

    Args:
        model: in eval mode; its transformer may be bfloat16, its readout (fusion_backbone, heads) float32.
        vision_BTF, text_BF, state_BTF: image features, text features, normalised and padded states.
        readout: r, the slot that shows the scored frame.
        heads: which heads.

    Returns:
        head -> (probabilities (B, K) float32, tau (B,) float32). A head with one stage needs no stage network.
    """
    stages: dict[str, torch.Tensor] = {}
    probabilities: dict[str, torch.Tensor] = {}
    if any(model.shape.num_stages(head) > 1 for head in heads):
        slots_BRE = _stage_slots(model.stage_model, vision_BTF, text_BF, state_BTF, readout)
        for head in heads:
            logits_BRK = model.stage_model.heads[head](slots_BRE)
            stages[head] = logits_BRK.argmax(-1)
            probabilities[head] = logits_BRK[:, readout].softmax(-1)
    else:
        for head in heads:
            stages[head] = torch.zeros(len(vision_BTF), readout + 1, dtype=torch.int64, device=vision_BTF.device)
            probabilities[head] = torch.ones(len(vision_BTF), 1, device=vision_BTF.device)
    taus = _tau(model, vision_BTF, text_BF, state_BTF, readout, stages)
    return {head: (probabilities[head], taus[head]) for head in heads}


def _stage_slots(net: TokenNet, vision: torch.Tensor, text: torch.Tensor, state: torch.Tensor, readout: int):
    """Fused readout of slots 0..r: (B, r + 1, E) float32."""
    num_slots, kept = vision.shape[1], readout + 1
    tokens = torch.cat(net.project(vision, text, state[:, :kept]), dim=1)
    causal = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool, device=tokens.device).tril()
    read = torch.cat([torch.arange(kept) + stream * num_slots for stream in range(net.num_shared)])
    encoded = _encode(net.transformer, tokens, causal, read.to(tokens.device))
    slots = encoded.unflatten(1, (net.num_shared, kept)).permute(0, 2, 1, 3).flatten(2)
    return net.fusion_backbone(slots.float())


def _tau(model: Sarm, vision, text, state, readout: int, stages: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """tau of each head at slot r: (B,) float32."""
    net, num_slots, kept = model.subtask_model, vision.shape[1], readout + 1
    stage_streams = [net.stage_tokens(stage_BR) for stage_BR in stages.values()]
    tokens = torch.cat([*net.project(vision, text, state), *stage_streams], dim=1)
    num_streams, num_shared, num_tokens = net.num_shared, net.num_shared * num_slots, tokens.shape[1]
    visible = torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=tokens.device).tril()
    for position in range(1, len(stages)):
        first = num_shared + position * kept
        visible[first : first + kept, num_shared:first] = False
    shared = torch.arange(num_streams) * num_slots + readout
    own = num_shared + torch.arange(len(stages)) * kept + readout
    encoded = _encode(net.transformer, tokens, visible, torch.cat([shared, own]).to(tokens.device)).float()
    taus = {}
    for position, head in enumerate(stages):
        slot = torch.cat([encoded[:, :num_streams], encoded[:, num_streams + position, None]], dim=1).flatten(1)
        taus[head] = torch.sigmoid(net.heads[head](net.fusion_backbone(slot)).squeeze(-1))
    return taus


def _encode(encoder: nn.TransformerEncoder, x_BND: torch.Tensor, visible_NN: torch.Tensor, read: torch.Tensor):
    """Run the layers; the last one only for the tokens in `read`: (B, len(read), D)."""
    for layer in encoder.layers[:-1]:
        x_BND = _encode_layer(layer, x_BND, x_BND, visible_NN)
    return _encode_layer(encoder.layers[-1], x_BND[:, read], x_BND, visible_NN[read])


def _encode_layer(layer: nn.TransformerEncoderLayer, query_BQD, x_BND, visible_QN) -> torch.Tensor:
    """torch's post-norm TransformerEncoderLayer in eval mode, for some queries over all tokens."""
    attention = layer.self_attn
    width, num_heads = attention.embed_dim, attention.num_heads
    weight, bias = attention.in_proj_weight, attention.in_proj_bias
    if query_BQD is x_BND:
        q, k, v = functional.linear(x_BND, weight, bias).chunk(3, dim=-1)
    else:
        q = functional.linear(query_BQD, weight[:width], bias[:width])
        k, v = functional.linear(x_BND, weight[width:], bias[width:]).chunk(2, dim=-1)
    q, k, v = (part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=visible_QN).transpose(1, 2).flatten(2)
    hidden = layer.norm1(query_BQD + attention.out_proj(mixed))
    return layer.norm2(hidden + layer.linear2(functional.relu(layer.linear1(hidden))))
