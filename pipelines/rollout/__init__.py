"""The rollout stage: prompts -> graded responses."""
