"""Families of puzzles: each a function of a random generator."""

from __future__ import annotations

from perception_r1_jax.data.geometry_world.families import circles, lines, quadrilaterals, triangles

FAMILIES = {
    "angle sum": triangles.angle_sum,
    "isosceles": triangles.isosceles,
    "right triangle": triangles.right_triangle,
    "similar triangles": triangles.similar_triangles,
    "unequal sides": triangles.unequal_sides,
    "parallelogram sides": quadrilaterals.parallelogram_sides,
    "parallelogram angles": quadrilaterals.parallelogram_angles,
    "diameter": circles.on_diameter,
    "inscribed angle": circles.inscribed_angle,
    "parts of a segment": lines.parts_of_segment,
    "crossing lines": lines.crossing_lines,
    "between parallels": lines.between_parallels,
}
"""By the name that a problem's row tells."""
