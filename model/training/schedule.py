"""The learning rate over a run."""


def learning_rate_at(step: int, max_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """The learning rate of a step, counted from 0, as a fraction of its peak: a linear warm-up, a plateau, and a linear
    decay to zero at max_steps.

    The decay takes the last `decay_fraction` of the run. In a short run where both would overlap, the lower one holds.
    """
    warm_up = (step + 1) / (warmup_steps + 1)
    decay = (max_steps - step) / max(1.0, decay_fraction * max_steps)
    return min(1.0, warm_up, decay)
