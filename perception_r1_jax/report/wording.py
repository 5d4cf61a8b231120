"""Numbers in words, the same all over the page."""

from __future__ import annotations

import json

from perception_r1_jax.evaluation.shown import percent as percent

MINUS = "\u2212"
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def points(difference: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return _typeset(f"{100 * difference:+.1f}")


def interval(bounds: tuple[float, float]) -> str:
    """An interval of differences in percentage points."""
    return f"{points(bounds[0])} to {points(bounds[1])}"


def p_value(p: float) -> str:
    """A probability to two digits.

    >>> p_value(0.0386), p_value(0.00000123), p_value(1.0)
    ('0.039', '1.2×10⁻⁶', '1')
    """
    return _typeset(f"{p:.2g}")


def number(value: float | None) -> str:
    """A number to three digits, a whole one below a million in full; a dash for none.

    >>> number(0.12345), number(1810.0), number(2.5e-7), number(None)
    ('0.123', '1,810', '2.5×10⁻⁷', '–')
    """
    if value is None:
        return "\u2013"
    if float(value).is_integer() and abs(value) < 1e6:
        return _typeset(f"{value:,.0f}")
    return _typeset(f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}")


def counted(count: int, singular: str, plural: str = "") -> str:
    """A count with its noun.

    >>> counted(1, "problem"), counted(2300, "response")
    ('1 problem', '2,300 responses')
    """
    return f"{count:,} {singular if count == 1 else plural or singular + 's'}"


def duration(seconds: float) -> str:
    """Seconds as a reader says them.

    >>> duration(9.24), duration(432), duration(57600)
    ('9.2 s', '7 min 12 s', '16 h 0 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def setting_text(value: object) -> str:
    """A config's value as one writes it; a dash for a field that is not there."""
    return "\u2013" if value is None else json.dumps(value, ensure_ascii=False)


def _typeset(text: str) -> str:
    """A number as Python writes it, with a minus sign and a power of ten for "e"."""
    mantissa, e, exponent = text.partition("e")
    power = f"×10{str(int(exponent)).translate(SUPERSCRIPT)}" if e else ""
    return mantissa.replace("-", MINUS) + power
