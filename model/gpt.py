"""The model: token embedding, transformer blocks, final norm, output head. layers.py has the blocks and the notation.

    idx (B, T) ── embedding ── block 0 ── ... ── block n_layer - 1 ── norm ── head ── logits (B, T, V)

The architecture is the one that Hugging Face calls Qwen3 (without grouped queries), so a trained model runs in other
tools without custom code. tests/model/test_model.py compares the two, number by number.
"""

if __name__ == "__main__":
    raise SystemExit("This file is the model, and no script: python train.py trains a model.")

from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Model
from model.by_hand import HeadLossByHand
from model.layers import Block, KeyValueCache, Linear, RMSNorm, by_hand, on_gpu, rotary_table


class GPT(nn.Module):
    """A decoder-only transformer.

    GPT(vocab_size, n_layer=6, ...) takes the fields of config.Model; those left out have the default there. All of
    them are kept in `architecture`, so GPT(**model.architecture) is a model of the same shape.
    """

    def __init__(self, vocab_size: int, **architecture):
        config = Model(**architecture)
        if config.n_embd % config.n_head or (config.n_embd // config.n_head) % 2:  # rotary positions take pairs
            raise ValueError(f"n_embd / n_head must be an even integer, not {config.n_embd} / {config.n_head}.")
        super().__init__()
        self.architecture = {"vocab_size": vocab_size, **asdict(config)}
        self.vocab_size, self.block_size = vocab_size, config.block_size
        # from_pretrained, because nn.Embedding(V, C) would draw initial weights that initialise() draws again
        self.embedding = nn.Embedding.from_pretrained(torch.empty(vocab_size, config.n_embd), freeze=False)
        self.blocks = nn.ModuleList(Block(config.n_embd, config.n_head, config.dropout) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.n_embd)
        self.head = Linear(config.n_embd, vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        cos, sin = rotary_table(config.block_size, config.n_embd // config.n_head, config.rotary_base)
        self.register_buffer("cos", cos, persistent=False)  # (block_size, D), recomputed instead of saved
        self.register_buffer("sin", sin, persistent=False)
        if self.device.type != "meta":  # "meta" tensors have a shape and no numbers: loading checks a file with them
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the initial weights from torch's default generator.

        With another --initial-weights than random, training/initial_weights.py then changes some of them.

        Output projections start at zero, so each block starts as the identity. The head starts small: after the final
        norm a channel is about 1, so the logits have a standard deviation of 0.05, and the loss of the untrained model
        is ln(vocab_size). A tied head cannot start small, because it is the embedding: every token would predict
        itself with a large logit, and text does repeat itself (in indented code, one character in four equals the one
        before it). With tied weights the final norm starts small instead, which makes this logit 0.05 as well.
        """
        n_embd, tied = self.architecture["n_embd"], self.architecture["tie_embeddings"]
        for block in self.blocks:
            for weight in (block.attention.qkv.weight, block.mlp.gate_up.weight):
                nn.init.normal_(weight, std=n_embd**-0.5)  # output as large as the input
            nn.init.zeros_(block.attention.output.weight)
            nn.init.zeros_(block.mlp.down.weight)
        nn.init.normal_(self.embedding.weight)
        if tied:
            nn.init.constant_(self.norm.weight, 0.05 / n_embd)
        else:
            nn.init.normal_(self.head.weight, std=0.05 * n_embd**-0.5)

    def forward(self, idx: Tensor, cache: KeyValueCache | None = None, weights: list | None = None) -> Tensor:
        """idx (B, T) -> logits (B, T, V) of the token that follows each one.

        With a cache, idx continues the tokens in it and is added to it. If `weights` is a list, each layer appends its
        attention weights (B, H, T, S) to it.
        """
        return self.head(self.features(idx, cache, weights))

    def features(self, idx: Tensor, cache: KeyValueCache | None = None, weights: list | None = None) -> Tensor:
        """forward() without the head: idx (B, T) -> (B, T, C)"""
        start = 0 if cache is None else cache.length
        end = start + idx.size(1)
        if end > self.block_size:
            raise ValueError(f"{end} tokens do not fit a block of {self.block_size}.")
        cos, sin = self.cos[start:end], self.sin[start:end]  # (T, D)
        x = self.embedding(idx)  # (B, T, C)
        if x.is_cuda:  # a GPU spends much of a step on reading and writing the residual stream
            x = x.to(self.head.compute)
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, cache, layer, weights)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean of -ln p of the targets, in nats per token: idx (B, T), targets (B, T) -> 0-dim fp32

        targets are the tokens one position later: targets[:, i] follows idx[:, i].
        """
        x = self.features(idx).flatten(0, 1)  # (B T, C)
        targets = targets.flatten()
        if torch.is_grad_enabled():
            weight, dtype = self.head.weight, self.head.compute
            if gpu := on_gpu(x):
                return gpu.head_loss(x, weight, dtype, targets)
            if by_hand(x):
                return HeadLossByHand.apply(x.to(dtype), weight.to(dtype), targets)
        return F.cross_entropy(self.head(x).float(), targets)

    def compute_in(self, dtype: torch.dtype) -> "GPT":
        """Compute matrix products in this precision from now on. Everything else, weights included, stays in fp32."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.compute = dtype
        return self

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def is_sharded(self) -> bool:
        """Whether fully_shard() has divided the weights among processes, so that none has all of them."""
        return hasattr(self, "set_requires_gradient_sync")

    def new_cache(self, batch: int = 1) -> KeyValueCache:
        """An empty KV cache for `batch` sequences, on the model's device and in the precision of its products."""
        a = self.architecture
        head_size = a["n_embd"] // a["n_head"]
        like = torch.empty(0, dtype=self.head.compute, device=self.device)
        return KeyValueCache(a["n_layer"], batch, a["n_head"], a["block_size"], head_size, like)

    def hidden_matrices(self) -> list[tuple[Tensor, int]]:
        """The weight matrices in the blocks, which Muon updates, each with the number of matrices stacked in it: qkv
        holds three for each head, gate_up two. The optimizer's state in a checkpoint has this order."""
        matrices = []
        for attention in (block.attention for block in self.blocks):
            matrices += (attention.qkv.weight, 3 * attention.n_head), (attention.output.weight, 1)
        matrices += [(block.mlp.gate_up.weight, 2) for block in self.blocks]
        return matrices + [(block.mlp.down.weight, 1) for block in self.blocks]

    def parameter_counts(self) -> dict[str, int]:
        """How many parameters each type of module has, in the order of the forward pass. A tied head counts as 0."""
        tied = self.head.weight is self.embedding.weight

        def count(*modules: nn.Module) -> int:
            return sum(p.numel() for module in modules for p in module.parameters())

        return {
            "embedding": count(self.embedding),
            "attention": count(*(block.attention for block in self.blocks)),
            "mlp": count(*(block.mlp for block in self.blocks)),
            "norms": count(self.norm, *(norm for b in self.blocks for norm in (b.attention_norm, b.mlp_norm))),
            "head": 0 if tied else count(self.head),
        }
