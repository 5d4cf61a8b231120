"""The report of a run: one HTML page made from the files in its working directory."""

from perception_r1_jax.report.page import make_report

__all__ = ["make_report"]
