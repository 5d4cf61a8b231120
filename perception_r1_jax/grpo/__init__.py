"""Group-relative policy optimisation: advantages, losses, log-probabilities and the update step."""
