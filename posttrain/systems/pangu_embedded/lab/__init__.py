"""What Pangu Embedded claims, on a laptop: four experiments, one in each module."""

import posttrain as pt
from posttrain.systems.pangu_embedded.lab import distillation, router, scheduler, thinking

PICTURE = "new"  # the measure that is drawn: accuracy on new problems, by way of distillation

ARMS = {**scheduler.ARMS, **thinking.ARMS, **distillation.ARMS, **router.ARMS}
CLAIMS = (*thinking.CLAIMS, *distillation.CLAIMS, *scheduler.CLAIMS, *router.CLAIMS)
HEADLINE = pt.Headline("automatic mode keeps the accuracy of slow mode")
# the other stages are run in tests/test_pangu_embedded.py
# The other stages run in tests/test_pangu_embedded.py.
SMOKE = pt.Smoke("""
    laptop
    laptop --no-adaptive
    reinforce --data {questions} --max-new 6 --kl 0.1 --curriculum --held-out {questions}
    reinforce --data {questions} --max-new 6 --also chat={questions}={classifier},more={questions}=exact
""")
