"""Beyond one process: models over several ranks, rollouts on other machines, and the scheduling between them."""
