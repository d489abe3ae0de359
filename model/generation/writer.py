"""Temporary."""

import torch

from model.generation.one_token import OneToken
from model.generation.sampling import generate, read


def sample_text(model, tokenizer, settings, check=lambda: None):
    if not settings.sample_tokens:
        return ""
    dtype = model.head.compute
    model.eval().compute_in(torch.float32)
    try:
        prompt, cache, ids = [tokenizer.end_of_text_id], model.new_cache(), []
        whole = model.device.type == "cpu" and not hasattr(model, "set_requires_gradient_sync")
        one_token = OneToken(model, cache) if whole else None
        logits = read(model, prompt, cache)
        knobs = {n: getattr(settings, n) for n in "temperature top_k top_p min_p repetition_penalty seed".split()}
        for step in generate(model, prompt, logits[-1], cache, settings.sample_tokens, one_token=one_token, **knobs):
            check()
            ids.append(step.token)
    finally:
        model.train().compute_in(dtype)
    return tokenizer.decode(ids)
