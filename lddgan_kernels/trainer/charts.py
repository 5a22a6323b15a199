"""Curves as inline SVG, with axes, units and room around them."""

import html
import math
from collections.abc import Mapping, Sequence

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
WIDTH, HEIGHT = 480, 260
LEFT, RIGHT, TOP, BOTTOM = 66, 16, 26, 44
DOTTED = 40  # points; more are a line alone
ROOM = 0.06  # of the range, above and below

Curves = Mapping[str, Sequence[tuple[float, float]]]


def chart(title: str, x_label: str, y_label: str, curves: Curves) -> str:
    """A figure of curves, each a list of points (x, y), with a legend below."""
    points = [point for curve in curves.values() for point in curve]
    x0, x1 = _range([x for x, _ in points], 0.02)
    y0, y1 = _range([y for _, y in points], ROOM)

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT)
        return LEFT + across, TOP + (y1 - y) / (y1 - y0) * (HEIGHT - TOP - BOTTOM)

    right, low = WIDTH - RIGHT, HEIGHT - BOTTOM
    marks = [
        f'<text x="{LEFT}" y="15" font-size="13" font-weight="600">{html.escape(title)}</text>',
        f'<path d="M{LEFT} {TOP}V{low}H{right}" fill="none" stroke="#888"/>',
    ]
    for value in ticks(y0, y1):
        y = at(x0, value)[1]
        marks.append(f'<path d="M{LEFT} {y:.1f}H{right}" stroke="#e4e4e4"/>')
        marks.append(
            f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>'
        )
    for value in ticks(x0, x1):
        x = at(value, y0)[0]
        marks.append(f'<path d="M{x:.1f} {low}v4" stroke="#888"/>')
        marks.append(
            f'<text x="{x:.1f}" y="{low + 16}" text-anchor="middle">{number(value)}</text>'
        )
    middle, below = (LEFT + right) / 2, HEIGHT - 8
    marks.append(
        f'<text x="{middle:.0f}" y="{below}" text-anchor="middle">{html.escape(x_label)}</text>'
    )
    centre = (TOP + low) / 2
    marks.append(
        f'<text transform="translate(13 {centre:.0f}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text>"
    )
    legend = []
    for i, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[i % len(COLOURS)]
        places = [at(*point) for point in curve]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        marks.append(
            f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        if len(places) <= DOTTED:
            marks += [
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in places
            ]
        legend.append(f'<span style="color:{colour}">{html.escape(name)}</span>')
    caption = f"<figcaption>{', '.join(legend)}</figcaption>" if len(legend) > 1 else ""
    return (
        f'<figure class="chart"><svg role="img" aria-label="{html.escape(title)}" '
        f'viewBox="0 0 {WIDTH} {HEIGHT}" font-size="11" fill="#222">{"".join(marks)}</svg>'
        f"{caption}</figure>"
    )


def _range(values: Sequence[float], room: float) -> tuple[float, float]:
    """Bounds with room; they include zero where it is near."""
    low, high = min(values), max(values)
    if low > 0 and low < 0.4 * high:
        low = 0.0
    if high < 0 and high > 0.4 * low:
        high = 0.0
    if low == high:
        half = abs(high) / 2 or 0.5
        low, high = low - half, high + half
    span = high - low
    return (low - room * span if low != 0 else low), (high + room * span if high != 0 else high)


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers within low..high."""
    raw = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, 1 - math.floor(math.log10(step)))
    return [round(i * step, digits) + 0.0 for i in range(first, last + 1)]


def number(value: float) -> str:
    """A number as people write it: 12,000, 0.25, 3.0e-07."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e9):
        return f"{value:.1e}"
    if float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
