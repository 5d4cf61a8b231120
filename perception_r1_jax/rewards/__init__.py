"""The reward terms and their sum. Imports here stay light: worker processes import this package too."""

from perception_r1_jax.rewards.accuracy import Accuracy, AccuracyPool, accuracy_reward
from perception_r1_jax.rewards.combine import combine
from perception_r1_jax.rewards.format import format_reward
from perception_r1_jax.rewards.repetition import repetition_penalty

__all__ = ["Accuracy", "AccuracyPool", "accuracy_reward", "combine", "format_reward", "repetition_penalty"]
