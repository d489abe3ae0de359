"""The whole model: token embedding, blocks, final norm, head. Shapes use the notation of layers.py.

The shape is the one that Hugging Face calls Qwen3 (without grouped queries), so a trained model can leave for other
tools without custom code; tests/test_model.py compares the two number by number.
"""

from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import Model
from model.by_hand import HeadLossByHand
from model.layers import Block, KeyValueCache, Linear, RMSNorm, by_hand, rotary_table


class GPT(nn.Module):
    """A decoder-only transformer. `architecture` holds the arguments it was made with, so that a file can rebuild it.

    n_embd must be a multiple of n_head, with an even quotient (rotary positions turn pairs of channels).
    """

    def __init__(self, vocab_size: int, **architecture):
        model = Model(**architecture)
        if model.n_embd % model.n_head or (model.n_embd // model.n_head) % 2:
            raise ValueError(
                f"n_embd / n_head must be an even whole number, and {model.n_embd} / {model.n_head} is not."
            )
        super().__init__()
        self.architecture = {"vocab_size": vocab_size, **asdict(model)}
        self.vocab_size, self.block_size = vocab_size, model.block_size
        self.embedding = nn.Embedding.from_pretrained(torch.empty(vocab_size, model.n_embd), freeze=False)
        self.blocks = nn.ModuleList(Block(model.n_embd, model.n_head, model.dropout) for _ in range(model.n_layer))
        self.norm = RMSNorm(model.n_embd)
        self.head = Linear(model.n_embd, vocab_size, bias=False)
        if model.tie_embeddings:
            self.head.weight = self.embedding.weight
        cos, sin = rotary_table(model.block_size, model.n_embd // model.n_head, model.rotary_base)
        self.register_buffer("cos", cos, persistent=False)  # (block_size, D), computed anew instead of saved
        self.register_buffer("sin", sin, persistent=False)
        if self.device.type != "meta":  # a model of shapes alone, which checkpoint.py compares files with
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw the initial weights from torch's generator.

        Output projections start at zero, so every block starts as the identity. The head starts small: its logits,
        whose deviation is 0.05 after a norm that makes each channel about 1, say next to nothing, and the loss of an
        untrained model is ln(vocab_size). A tied head is the embedding, which meets itself in the logit of its own
        token, and text repeats itself: in indentation, one character in four is the one before it. There the final
        norm starts small instead, so that this logit is 0.05 too.
        """
        n_embd, tied = self.architecture["n_embd"], self.architecture["tie_embeddings"]
        for block in self.blocks:
            for weight in (block.attention.qkv.weight, block.mlp.gate_up.weight):
                nn.init.normal_(weight, std=n_embd**-0.5)  # keeps the scale of its input
            nn.init.zeros_(block.attention.output.weight)
            nn.init.zeros_(block.mlp.down.weight)
        nn.init.normal_(self.embedding.weight)
        if tied:
            nn.init.constant_(self.norm.weight, 0.05 / n_embd)
        else:
            nn.init.normal_(self.head.weight, std=0.05 * n_embd**-0.5)

    def forward(self, idx: Tensor, cache: KeyValueCache | None = None, weights: list | None = None) -> Tensor:
        """Logits (B, T, vocab_size) of the token after each of idx (B, T).

        With a cache, idx continues the tokens that it holds, and it takes them up. Given a list as `weights`, every
        layer appends its attention weights (B, H, T, S) to it.
        """
        return self.head(self.features(idx, cache, weights))

    def features(self, idx: Tensor, cache: KeyValueCache | None = None, weights: list | None = None) -> Tensor:
        """forward() up to the head: (B, T, C)."""
        start = 0 if cache is None else cache.length
        end = start + idx.size(1)
        if end > self.block_size:
            raise ValueError(f"{end} tokens do not fit a block of {self.block_size}.")
        cos, sin = self.cos[start:end], self.sin[start:end]
        x = self.embedding(idx)  # (B, T, C)
        for layer, block in enumerate(self.blocks):
            x = block(x, cos, sin, cache, layer, weights)
        if cache is not None:
            cache.length = end
        return self.norm(x)

    def loss(self, idx: Tensor, targets: Tensor) -> Tensor:
        """Mean of -ln p of the targets (B, T), which are idx one token later: 0-dim fp32, in nats a token."""
        x, targets = self.features(idx).flatten(0, 1), targets.flatten()  # (B T, C), (B T)
        if by_hand(x) and torch.is_grad_enabled():
            dtype = self.head.compute
            return HeadLossByHand.apply(x.to(dtype), self.head.weight.to(dtype), targets)
        return F.cross_entropy(self.head(x).float(), targets)

    def compute_in(self, dtype: torch.dtype) -> "GPT":
        """Compute matrix products in this precision from now on; all else, and every weight, stays fp32."""
        for module in self.modules():
            if isinstance(module, Linear):
                module.compute = dtype
        return self

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def new_cache(self, batch: int = 1) -> KeyValueCache:
        """An empty cache for `batch` sequences, on the model's device and in the precision of its products."""
        a = self.architecture
        head_size = a["n_embd"] // a["n_head"]
        like = torch.empty(0, dtype=self.head.compute, device=self.device)
        return KeyValueCache(a["n_layer"], batch, a["n_head"], a["block_size"], head_size, like)

    def hidden_matrices(self) -> list[tuple[Tensor, int]]:
        """The weight matrices inside the blocks, which Muon updates, each with the number of matrices fused in it: q, k
        and v are one weight, as are gate and up."""
        return [
            pair
            for block in self.blocks
            for pair in (
                (block.attention.qkv.weight, 3),
                (block.attention.output.weight, 1),
                (block.mlp.gate_up.weight, 2),
                (block.mlp.down.weight, 1),
            )
        ]

    def parameters_by_part(self) -> dict[str, int]:
        """Number of weights in each part, in the order a token meets them. A tied head counts as none of its own."""
        blocks = list(self.blocks)
        tied = self.head.weight is self.embedding.weight

        def count(*modules: nn.Module) -> int:
            return sum(p.numel() for module in modules for p in module.parameters())

        return {
            "embedding": count(self.embedding),
            "attention": count(*(b.attention for b in blocks)),
            "mlp": count(*(b.mlp for b in blocks)),
            "norms": count(self.norm, *(b.attention_norm for b in blocks), *(b.mlp_norm for b in blocks)),
            "head": 0 if tied else count(self.head),
        }
