"""Generation: sampling, the decoding loop, and the engine that compiles it per bucket."""

from perception_r1_jax.inference.engine import Engine, Generated
from perception_r1_jax.inference.sampling import Sampling

__all__ = ["Engine", "Generated", "Sampling"]
