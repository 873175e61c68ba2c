"""The credit of every objective on one saved step: no rollout, no update."""
