"""Where everything of a figure goes on a square picture, so that every letter and number can be read."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random

from perception_r1_jax.data.geometry_world.figure import Figure, Point, between

SIDE = 112
"""Pixels of a picture's side: one attention window of the vision tower."""

FONT = 11
"""Height of letters and numbers in pixels."""

MARGIN = 14
ATTEMPTS = 12
TURN = 30
"""Degrees that a figure is turned at most to either side: as in a textbook, what is drawn below stays below."""

GRID = 7
"""Letters and numbers stand on a grid of so many pixels, half a patch: a small model then needs fewer examples."""

MARK = 4.0
"""Half the length of a tick mark or an arrow head, in pixels."""

Line = tuple[Point, Point]


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Strokes and texts in pixels from the upper left corner.

    Arcs are (center, radius, start and end in degrees). The texts are the points' letters, then the lengths, then the
    angles, each in the figure's order.
    """

    lines: tuple[Line, ...]
    marks: tuple[Line, ...]
    arcs: tuple[tuple[Point, float, float, float], ...]
    circles: tuple[tuple[Point, float], ...]
    dots: tuple[Point, ...]
    texts: tuple[tuple[str, Point], ...]


def lay_out(figure: Figure, rng: random.Random) -> Drawing | None:
    """The figure turned, mirrored and sized at random; None where no attempt keeps all texts free of one another."""
    for _ in range(ATTEMPTS):
        drawing = _draw(_fit(figure, rng))
        if _readable(drawing):
            return drawing
    return None


def _fit(figure: Figure, rng: random.Random) -> Figure:
    """Turned, mirrored, scaled and moved to lie inside the margins. A figure's y rises, a picture's falls."""
    turn, flip = math.radians(rng.uniform(-TURN, TURN)), rng.choice((-1, 1))
    turned = {
        letter: (flip * (x * math.cos(turn) - y * math.sin(turn)), -(x * math.sin(turn) + y * math.cos(turn)))
        for letter, (x, y) in figure.points.items()
    }
    extent = list(turned.values())
    if figure.circle:
        (x, y), radius = turned[figure.circle[0]], figure.circle[1]
        extent += [(x - radius, y - radius), (x + radius, y + radius)]
    left, top = (min(axis) for axis in zip(*extent))
    width, height = (max(axis) - low for axis, low in zip(zip(*extent), (left, top)))
    room = SIDE - 2 * MARGIN
    scale = rng.uniform(0.85, 1.0) * room / max(width, height)
    dx, dy = (MARGIN + rng.uniform(0, room - scale * size) for size in (width, height))
    points = {letter: (dx + scale * (x - left), dy + scale * (y - top)) for letter, (x, y) in turned.items()}
    circle = figure.circle and (figure.circle[0], scale * figure.circle[1])
    return dataclasses.replace(figure, points=points, circle=circle)


def _draw(figure: Figure) -> Drawing:
    at = figure.points
    ticks = [mark for count, group in enumerate(figure.equal, 1) for name in group for mark in _ticks(at, name, count)]
    heads = [
        mark for count, group in enumerate(figure.parallel, 1) for name in group for mark in _arrows(at, name, count)
    ]
    return Drawing(
        lines=tuple((at[name[0]], at[name[-1]]) for name in figure.segments),
        marks=(*ticks, *heads, *(line for name in figure.rights for line in _square(at, name))),
        arcs=tuple(_arc(at, name) for name in figure.angles),
        circles=((at[figure.circle[0]], figure.circle[1]),) if figure.circle else (),
        dots=tuple(at.values()),
        texts=(
            *((letter, _snap(_beside_point(figure, letter))) for letter in at),
            *((str(value), _snap(_beside_segment(figure, name))) for name, value in figure.lengths.items()),
            *((f"{degrees}°", _snap(_inside_angle(at, name))) for name, degrees in figure.angles.items()),
        ),
    )


def _snap(point: Point) -> Point:
    return GRID * round(point[0] / GRID), GRID * round(point[1] / GRID)


def _direction(start: Point, end: Point) -> Point:
    distance = math.dist(start, end)
    return (end[0] - start[0]) / distance, (end[1] - start[1]) / distance


def _move(start: Point, direction: Point, distance: float) -> Point:
    return start[0] + distance * direction[0], start[1] + distance * direction[1]


def _beside_point(figure: Figure, letter: str) -> Point:
    """Off the point, in the middle of the widest gap between the lines that leave it."""
    at = figure.points
    rays = [_bearing(at[letter], at[end]) for name in figure.segments for end in _ends(name, letter, at)]
    if figure.circle and letter != figure.circle[0]:  # on the circle: keep away from both of its branches
        inward = _bearing(at[letter], at[figure.circle[0]])
        rays += [inward - math.pi / 2.5, inward + math.pi / 2.5]
    rays = sorted(ray % (2 * math.pi) for ray in rays) or [0.0]
    gaps = [(after - before, before) for before, after in itertools.pairwise([*rays, rays[0] + 2 * math.pi])]
    gap, start = max(gaps)
    bearing = start + gap / 2
    return _move(at[letter], (math.cos(bearing), math.sin(bearing)), 0.8 * FONT)


def _ends(name: str, letter: str, at: dict[str, Point]):
    """Where a line goes from a point: to its other end, or to both where the point lies inside it."""
    if letter in name:
        return [end for end in name if end != letter]
    start, end = at[name[0]], at[name[-1]]
    detour = math.dist(start, at[letter]) + math.dist(at[letter], end) - math.dist(start, end)
    return list(name) if detour < 0.01 * math.dist(start, end) else []


def _bearing(start: Point, end: Point) -> float:
    return math.atan2(end[1] - start[1], end[0] - start[0])


def _beside_segment(figure: Figure, name: str) -> Point:
    """Off the middle of the segment, on the side where the figure is not."""
    start, end = figure.points[name[0]], figure.points[name[1]]
    middle, (dx, dy) = between(start, end), _direction(start, end)
    inside = [sum(axis) / len(figure.points) for axis in zip(*figure.points.values())]
    outward = 1 if (inside[0] - middle[0]) * -dy + (inside[1] - middle[1]) * dx <= 0 else -1
    return _move(middle, (-dy * outward, dx * outward), 0.5 * FONT + 0.35 * FONT * abs(dy) + 1)


def _half_angle(at: dict[str, Point], name: str) -> tuple[Point, float]:
    """The direction that halves an angle, and half of it in radians."""
    first, second = (_direction(at[name[1]], at[end]) for end in (name[0], name[2]))
    middle = _direction((0, 0), (first[0] + second[0], first[1] + second[1]))
    return middle, math.acos(max(-1.0, min(1.0, first[0] * middle[0] + first[1] * middle[1])))


def _inside_angle(at: dict[str, Point], name: str) -> Point:
    middle, half = _half_angle(at, name)
    return _move(at[name[1]], middle, max(1.5 * FONT, 0.8 * FONT / math.sin(half)))


def _arc(at: dict[str, Point], name: str) -> tuple[Point, float, float, float]:
    middle, half = _half_angle(at, name)
    bearing = math.degrees(math.atan2(middle[1], middle[0]))
    return at[name[1]], 0.7 * FONT, bearing - math.degrees(half), bearing + math.degrees(half)


def _square(at: dict[str, Point], name: str) -> list[Line]:
    corner = at[name[1]]
    first, second = (_direction(corner, at[end]) for end in (name[0], name[2]))
    size = 0.6 * FONT
    far = _move(_move(corner, first, size), second, size)
    return [(_move(corner, first, size), far), (far, _move(corner, second, size))]


def _ticks(at: dict[str, Point], name: str, count: int) -> list[Line]:
    start, end = at[name[0]], at[name[1]]
    along = _direction(start, end)
    across = (-along[1], along[0])
    middles = [_move(between(start, end), along, 3.0 * (k - (count - 1) / 2)) for k in range(count)]
    return [(_move(middle, across, -MARK), _move(middle, across, MARK)) for middle in middles]


def _arrows(at: dict[str, Point], name: str, count: int) -> list[Line]:
    """Heads that point the same way on parallel segments, whatever the order of their letters."""
    start, end = sorted((at[name[0]], at[name[1]]))
    along = _direction(start, end)
    across = (-along[1], along[0])
    tips = [_move(between(start, end), along, 4.0 * k) for k in range(count)]
    backs = [[_move(_move(tip, along, -MARK), across, side * MARK) for side in (-1, 1)] for tip in tips]
    return [(tip, back) for tip, pair in zip(tips, backs) for back in pair]


def _readable(drawing: Drawing) -> bool:
    boxes = [_box(text, center) for text, center in drawing.texts]
    strokes = [*drawing.lines, *drawing.marks, *((dot, (dot[0] + 1, dot[1])) for dot in drawing.dots)]
    return (
        all(left >= 0 and top >= 0 and right <= SIDE and bottom <= SIDE for left, top, right, bottom in boxes)
        and not any(_overlap(first, second) for first, second in itertools.combinations(boxes, 2))
        and not any(_crosses(line, box) for box in boxes for line in strokes)
        and not any(_on_circle(circle, box) for box in boxes for circle in drawing.circles)
    )


def _box(text: str, center: Point) -> tuple[float, float, float, float]:
    """What a text takes, a little less than a full line of the font."""
    width, height = 0.29 * FONT * len(text), 0.36 * FONT
    return center[0] - width, center[1] - height, center[0] + width, center[1] + height


def _overlap(first, second) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _crosses(line: Line, box) -> bool:
    """Whether a line enters a box (clipping it against the four sides)."""
    (x, y), (dx, dy) = line[0], (line[1][0] - line[0][0], line[1][1] - line[0][1])
    enter, leave = 0.0, 1.0
    for position, step, low, high in ((x, dx, box[0], box[2]), (y, dy, box[1], box[3])):
        if abs(step) < 1e-9:
            if not low < position < high:
                return False
            continue
        near, far = sorted(((low - position) / step, (high - position) / step))
        enter, leave = max(enter, near), min(leave, far)
    return enter < leave


def _on_circle(circle: tuple[Point, float], box) -> bool:
    """Whether a circle's line runs through a box."""
    (x, y), radius = circle
    corners = [math.dist((x, y), corner) for corner in itertools.product((box[0], box[2]), (box[1], box[3]))]
    nearest = math.hypot(max(box[0] - x, 0, x - box[2]), max(box[1] - y, 0, y - box[3]))
    return nearest < radius < max(corners)
