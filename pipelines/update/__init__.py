"""The update stage: engines that train the policy, and what they minimise."""
