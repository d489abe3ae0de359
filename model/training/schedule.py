"""The learning-rate schedule: linear warmup, plateau, linear decay to zero. To try another one, change it here."""


def learning_rate_at(step: int, max_steps: int, warmup_steps: int, decay_fraction: float) -> float:
    """The learning rate of a step, counted from 0, as a fraction of the peak rate.

    It decays over the last `decay_fraction` of the run. If a run is so short that warmup and decay overlap, the lower
    of the two applies. With 10 steps, 3 of warmup and a decay_fraction of 0.5:

        0.25  0.5  0.75  1  1  1  0.8  0.6  0.4  0.2
    """
    warmup = (step + 1) / (warmup_steps + 1)
    decay = max(0, max_steps - step) / max(1.0, decay_fraction * max_steps)  # 0 behind the end of a shortened run
    return min(1.0, warmup, decay)


EVALUATIONS = 10  # of a run, where --eval-every leaves their number open


def evaluation_interval(eval_every: int, max_steps: int) -> int:
    """Steps between evaluations, 0 for none before the end: --eval-every, or with -1 a tenth of the run."""
    return max(1, round(max_steps / EVALUATIONS)) if eval_every < 0 else eval_every
