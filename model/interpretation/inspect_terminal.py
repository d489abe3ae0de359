"""One forward pass in the terminal: the short form that scripts/inspect_model.py prints."""

from model.gpt import GPT
from model.interpretation.forward_pass import ForwardPass, logit_lens
from model.interpretation.heads import attention_pattern
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer
from plumbing.text import bar

ROWS = 16  # of the prompt's tokens, the last so many are shown


def print_logit_lens(model: GPT, tokenizer: Tokenizer, forward: ForwardPass, ids: list[int]) -> None:
    """The likeliest next token after each token, if the model ended after the embedding, layer 0, ..."""
    names = ["embedding", *(f"layer {layer}" for layer in range(len(model.blocks)))]
    print("The logit lens: what the model would predict after each token if it ended there.")
    print("   after          " + "".join(f"{name:21}" for name in names) + "actual next token")
    p, top = logit_lens(model, forward.residual[:, -ROWS:]).float().softmax(dim=-1).max(dim=-1)  # (L + 1, ROWS)
    shown = ids[-ROWS:]
    for i, token in enumerate(shown):
        line = f"   {token_text(tokenizer, token)[:12]:14} "
        for p_here, best in zip(p[:, i].tolist(), top[:, i].tolist(), strict=True):
            line += f"{bar(p_here, 4)} {p_here:4.0%} {token_text(tokenizer, best)[:10]:10} "
        print(line + (token_text(tokenizer, shown[i + 1]) if i + 1 < len(shown) else ""))


def print_head(tokenizer: Tokenizer, forward: ForwardPass, ids: list[int], name: str) -> None:
    """The attention of one head, such as L0H1: for each token, the three tokens that it attends to most."""
    heads = [component for component in forward.components if "H" in component]
    attention = forward.attention.flatten(0, 1)[heads.index(name)]  # (T, T)
    previous, itself, first = attention_pattern(attention).tolist()
    print(f"Head {name}: {previous:.0%} to the previous token, {itself:.0%} to itself, {first:.0%} to the first.")
    for i in range(max(0, len(ids) - ROWS), len(ids)):
        top = attention[i, : i + 1].topk(min(3, i + 1))
        line = f"   {token_text(tokenizer, ids[i])[:12]:14}"
        for p, j in zip(top.values.tolist(), top.indices.tolist(), strict=True):
            where = f"({i - j} back)" if i > j else "(itself)"
            line += f" {bar(p, 6)} {p:4.0%} {token_text(tokenizer, ids[j])[:8]:8} {where:10}"
        print(line.rstrip())


def print_next_tokens(tokenizer: Tokenizer, forward: ForwardPass, show: int) -> None:
    """The likeliest tokens after the last one."""
    p = forward.logits[-1].float().softmax(dim=-1)
    top = p.topk(min(show, len(p)))
    print("The likeliest next tokens:")
    for p_token, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        print(f"   id {token:>5}  {token_text(tokenizer, token):14} {bar(p_token)} {p_token:7.2%}")
