"""A small world of drawn geometry problems: pictures, questions, answers, and all that is true of each picture."""

from perception_r1_jax.data.geometry_world.problems import WorldProblem, make_problem

__all__ = ["WorldProblem", "make_problem"]
