"""What every script needs and no learner must read."""

import plumbing.interrupts
