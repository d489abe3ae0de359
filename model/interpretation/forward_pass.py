"""One forward pass, taken apart. Shapes use the notation of model/layers.py.

The residual stream is a sum: the token's embedding plus the output of every head and every MLP. So a logit can be
attributed to the components that produced it, and a component can be ablated to see what it was good for (ablation.py).
Components have the names that the literature uses, counted from 0: L2H3 is head 3 of layer 2, L2MLP the MLP of layer 2.

trace_forward() computes the same as GPT.forward(); tests/interpretation/test_forward_pass.py holds the two together.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from model.device import require_memory
from model.gpt import GPT
from model.layers import Attention


@dataclass(frozen=True)
class ForwardPass:
    """Everything one forward pass over T tokens computed, for P components and L layers."""

    components: list[str]  # (P) embedding, L0H0, L0H1, ..., L0MLP, L1H0, ...
    outputs: Tensor  # (P, T, C) what each component adds to the residual stream; the sum is residual[-1]
    residual: Tensor  # (L + 1, T, C) the residual stream before the first layer and after each layer
    attention: Tensor  # (L, H, T, T) attention weights: row i says where token i looks, and sums to 1
    logits: Tensor  # (T, V) as GPT.forward gives them


@torch.inference_mode()
def trace_forward(model: GPT, ids: list[int]) -> ForwardPass:
    """Run a model in eval mode over T tokens and keep every intermediate result. Raises UserError for a model or text
    too large for that."""
    T, C, L, H = len(ids), *(model.architecture[name] for name in ("n_embd", "n_layer", "n_head"))
    numbers = (L * (H + 2) + 2) * T * C + L * H * T * T + T * model.vocab_size
    what = f"To follow {T:,} tokens through {L:,} layers with {H:,} heads"
    require_memory(2 * 4 * numbers, what)  # twice, because the parts are stacked
    x = model.embedding(torch.tensor(ids, device=model.device))  # (T, C)
    cos, sin = model.cos[:T], model.sin[:T]
    components, outputs, residual, attention = ["embedding"], [x], [x], []
    for layer, block in enumerate(model.blocks):
        a, normed, weights = block.attention, block.attention_norm(x), []
        x = x + a(normed[None], cos, sin, weights=weights)[0]
        value = a.qkv(normed).chunk(3, dim=-1)[2].view(T, a.n_head, -1).transpose(0, 1)  # (H, T, D)
        y = weights[0][0] @ value  # (H, T, D)
        for head in range(a.n_head):
            components.append(f"L{layer}H{head}")
            outputs.append(y[head] @ a.output.weight[:, head_columns(a, head)].T)  # (T, C)
        mlp = block.mlp(block.mlp_norm(x))
        x = x + mlp
        components.append(f"L{layer}MLP")
        outputs.append(mlp)
        residual.append(x)
        attention.append(weights[0][0])
    logits = model.head(model.norm(x))
    return ForwardPass(components, torch.stack(outputs), torch.stack(residual), torch.stack(attention), logits)


def head_columns(attention: Attention, head: int) -> slice:
    """The columns of the output matrix (C, C) that multiply one head's result: heads are concatenated before it."""
    size = attention.output.weight.size(1) // attention.n_head
    return slice(head * size, (head + 1) * size)


@torch.inference_mode()
def logit_lens(model: GPT, residual: Tensor) -> Tensor:
    """The logits (..., V) if the model ended here: its final norm and head applied to a residual stream (..., C).
    nostalgebraist 2020, "interpreting GPT: the logit lens"."""
    return model.head(model.norm(residual))


@torch.inference_mode()
def attribution(model: GPT, forward: ForwardPass, component: int) -> Tensor:
    """What one component (an index) adds to every logit, (T, V). Over all components this sums to the logits exactly.

    The final norm divides each position by one number and the head is linear, so each component can go through both on
    its own. Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", on direct paths.
    """
    x = forward.residual[-1]
    scale = (x.square().mean(-1, keepdim=True) + model.norm.eps).rsqrt()  # (T, 1)
    return model.head(forward.outputs[component] * scale * model.norm.weight)
