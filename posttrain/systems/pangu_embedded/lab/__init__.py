"""What Pangu Embedded claims, on a laptop: four experiments, one in each module."""

from posttrain.lab.trial import Smoke
from posttrain.systems.pangu_embedded.lab import distillation, router, scheduler, thinking

PICTURE = "new"  # the measure that is drawn: accuracy on new problems, by way of distillation

ARMS = {**scheduler.ARMS, **thinking.ARMS, **distillation.ARMS, **router.ARMS}
CLAIMS = (*thinking.CLAIMS, *distillation.CLAIMS, *scheduler.CLAIMS, *router.CLAIMS)
SMOKE = Smoke(
    {
        "laptop": ["", "--no-adaptive"],
        "reinforce": [
            "--data {questions} --max-new 6 --kl 0.1 --curriculum --held-out {questions}",
            "--data {questions} --max-new 6 --also chat={questions}={classifier},more={questions}=exact",
        ],
    }  # the other stages are run in tests/test_pangu_embedded.py
)
