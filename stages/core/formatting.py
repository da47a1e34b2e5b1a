"""Numbers and durations as text, the same in tables, reports and benchmarks."""

from __future__ import annotations


def format_number(value: float | int | None) -> str:
    """Format a metric or a count.

    Three decimals below ten, one above; whole numbers from ten on without decimals and with separators of thousands;
    a dash for None and nan.
    """
    if value is None or value != value:
        return "–"
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 10):
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def format_duration(seconds: float) -> str:
    """Format seconds as ``0.4 s``, ``41 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
