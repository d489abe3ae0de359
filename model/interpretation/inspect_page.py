"""The data of the page that scripts/inspect_model.py writes (scripts/pages/inspect_model.html).

Everything is computed here. The page's program only draws, and applies its sliders to the candidates.
Shapes use the notation of model/layers.py, with P components and K tokens shown per position.
"""

import json
from itertools import pairwise

import numpy as np
import torch

from model import metrics
from model.gpt import GPT
from model.interpretation.forward_pass import ForwardPass, attribution, logit_lens
from model.tokenization.bpe_trainer_plain import merge_pair
from model.tokenization.display import token_text
from model.tokenization.tokenizer import Tokenizer
from plumbing.page import packed

SHOWN = 5  # predictions per position and layer; the final ones are attributed to the components as well
PROMOTED = 3  # tokens per component: those whose logits it raises most
NEIGHBOURS = 8  # nearest tokens in the embedding
CANDIDATES = 15  # after each token, with a text; the page's sliders work on the whole vocabulary
MOST_LOGITS = 200_000  # that the page holds, 1 MB: of all tokens of a short prompt, else of its last ones


def inspect_page_data(model: GPT, tokenizer: Tokenizer, forward: ForwardPass, ids: list[int], prompt: str) -> dict:
    """Everything the page shows, ready for JSON."""
    logits = forward.logits.float().cpu()  # (T, V)
    kept = logits[-max(1, MOST_LOGITS // model.vocab_size) :]  # (T', V), T' at most T
    likeliest = kept.topk(min(CANDIDATES, model.vocab_size)).indices
    log_p = logits[:-1].log_softmax(dim=-1)[range(len(ids) - 1), ids[1:]]  # (T - 1) of the actual next tokens
    attention = forward.attention.float().cpu().numpy()[..., *np.tril_indices(len(ids))]  # row after row
    arrays = lens_data(model, forward, ids)
    arrays |= attribution_data(model, forward, arrays["lens_ids"][-1], ids)
    arrays |= {
        "attention": (attention * 65535).round().astype(np.uint16),  # (L, H, T (T + 1) / 2)
        "logits": kept.numpy(),  # (T', V)
        "surprise": metrics.bits(-log_p).numpy(),  # (T - 1) in bits
    }
    neighbours = nearest_tokens(model, ids)
    shown = {*ids, *arrays["lens_ids"].flat, *arrays["promoted"].flat, *likeliest.flatten().tolist()}
    shown |= {other for row in neighbours.values() for other, _ in row}
    return {
        "kind": tokenizer.kind,
        "n_layer": len(model.blocks),
        "n_head": model.blocks[0].attention.n_head,
        "vocab_size": model.vocab_size,
        "components": forward.components,
        "ids": ids,
        "bytes": [tokenizer.token_bytes(token).hex(" ") for token in ids],
        "texts": {int(token): token_text(tokenizer, token) for token in sorted(shown)},
        "merges": replay_merges(tokenizer, prompt),
        "neighbours": neighbours,
        **{name: packed(array) for name, array in arrays.items()},
    }


def replay_merges(tokenizer: Tokenizer, prompt: str) -> list[list[list[str]]]:
    """How BPE tokenizes a prompt: for each of its words, the symbols after every merge, from bytes to tokens.

    "def" gives [["d", "e", "f"], ["d", "ef"], ["def"]], as visible text. Each round joins the pair of neighbours whose
    merge was learned first, everywhere in the word, until no pair has a merge (Sennrich et al. 2015, arXiv:1508.07909,
    algorithm 1).
    """
    if tokenizer.kind != "bpe":
        return []
    rank = {tuple(pair): i for i, pair in enumerate(json.loads(tokenizer.json_text)["model"]["merges"])}
    words = []
    for word, _ in tokenizer.library.pre_tokenizer.pre_tokenize_str(prompt):
        rows = [tuple(word)]
        while pairs := rank.keys() & set(pairwise(rows[-1])):
            rows.append(merge_pair(rows[-1], *min(pairs, key=rank.get)))
        words.append([[token_text(tokenizer, tokenizer.library.token_to_id(s)) for s in row] for row in rows])
    return words


@torch.inference_mode()
def nearest_tokens(model: GPT, ids: list[int]) -> dict[int, list[tuple[int, float]]]:
    """For each token, the tokens with the most similar embeddings: (id, cosine similarity), nearest first."""
    table = torch.nn.functional.normalize(model.embedding.weight, dim=-1)  # (V, C)
    found = {}
    for token in dict.fromkeys(ids):
        top = (table @ table[token]).topk(min(NEIGHBOURS + 1, model.vocab_size))
        pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
        found[token] = [(other, round(cosine, 4)) for other, cosine in pairs if other != token][:NEIGHBOURS]
    return found


def lens_data(model: GPT, forward: ForwardPass, ids: list[int]) -> dict[str, np.ndarray]:
    """The logit lens after the embedding and each layer: ids and probabilities of the likeliest tokens, (L + 1, T, K),
    and probability and rank of the actual next token, (L + 1, T - 1)."""
    next_ids = torch.tensor(ids[1:], dtype=torch.long)[:, None]  # (T - 1, 1)
    layers = []
    for residual in forward.residual:
        logits = logit_lens(model, residual).float().cpu()  # (T, V)
        p = logits.softmax(dim=-1)
        lens_p, lens_ids = p.topk(min(SHOWN, model.vocab_size))
        next_rank = 1 + (logits[:-1] > logits[:-1].gather(1, next_ids)).sum(-1)
        layers.append((lens_ids, lens_p, p[:-1].gather(1, next_ids)[:, 0], next_rank))
    lens_ids, lens_p, next_p, next_rank = (torch.stack(rows).numpy() for rows in zip(*layers, strict=True))
    lens_ids, next_rank = lens_ids.astype(np.uint16), next_rank.astype(np.uint32)
    return {"lens_ids": lens_ids, "lens_p": lens_p, "next_p": next_p, "next_rank": next_rank}


def attribution_data(model: GPT, forward: ForwardPass, final_ids: np.ndarray, ids: list[int]) -> dict[str, np.ndarray]:
    """What each component adds: to the logits of the final predictions (T, K) and of the actual next token, (P, T,
    K + 1); the tokens that it promotes most, (P, T, PROMOTED); and the norm of its output relative to that of the whole
    residual stream, (P, T)."""
    actual = np.array([*ids[1:], ids[-1]])[:, None]  # the last position has no next token; the page leaves it out
    attributed_ids = np.concatenate([final_ids, actual], axis=1).astype(np.uint16)  # (T, K + 1)
    columns = torch.from_numpy(attributed_ids.astype(np.int64))
    added, promoted = [], []
    for component in range(len(forward.components)):
        adds = attribution(model, forward, component).float().cpu()  # (T, V)
        added.append(adds.gather(1, columns))
        promoted.append((adds - adds.mean(-1, keepdim=True)).topk(min(PROMOTED, model.vocab_size)).indices)
    relative_norm = forward.outputs.norm(dim=-1) / forward.residual[-1].norm(dim=-1)
    return {
        "attributed_ids": attributed_ids,
        "attribution": torch.stack(added).numpy(),
        "promoted": torch.stack(promoted).numpy().astype(np.uint16),
        "relative_norm": relative_norm.float().cpu().numpy(),
    }
