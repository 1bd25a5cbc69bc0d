"""Cost against load, as SVG."""

import math
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 760, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 150, 50, 60

# Distinguishable for colour-blind readers too; and by their marks.
COLOURS = {"nobody": "#666666", "kprobe": "#0072b2", "tp_btf": "#009e73", "tcplife": "#d55e00", "tcpstates": "#aa4499"}


def steps(most):
    """The ends of an axis that begins at 0, and its marks: 1, 2 or 5 times a power of ten apart."""
    rough = most / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    count = math.ceil(most / step)
    return [step * number for number in range(count + 1)]


def draw(lines, machine):
    """SVG of the lines: for each name points of connections a second and CPU time in % of a processor."""
    x_marks = steps(max(x for points in lines.values() for x, _ in points))
    y_marks = steps(max(y for points in lines.values() for _, y in points))

    def x_of(value):
        return LEFT + (WIDTH - LEFT - RIGHT) * value / x_marks[-1]

    def y_of(value):
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * value / y_marks[-1]

    def text(x, y, words, anchor="middle", size=12, more=""):
        return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"{more}>{escape(words)}</text>'

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" fill="#222222">',
        "<title>CPU time against connections a second, with nobody, the library and its peers watching</title>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        text(LEFT, 22, "CPU time of client, server and watcher", "start", 15),
        text(LEFT, 39, f"Linux {machine['kernel']}, {machine['processors']} × {machine['processor']}", "start", 11),
    ]
    for mark in x_marks:
        out.append(
            f'<line x1="{x_of(mark):.1f}" y1="{TOP}" x2="{x_of(mark):.1f}" y2="{HEIGHT - BOTTOM}" stroke="#e5e5e5"/>'
        )
        out.append(text(x_of(mark), HEIGHT - BOTTOM + 18, f"{mark:,.0f}"))
    for mark in y_marks:
        out.append(
            f'<line x1="{LEFT}" y1="{y_of(mark):.1f}" x2="{WIDTH - RIGHT}" y2="{y_of(mark):.1f}" stroke="#e5e5e5"/>'
        )
        out.append(text(LEFT - 8, y_of(mark) + 4, f"{mark:g} %", "end"))
    title = "connections a second (last point of a line: as many as go)"
    out.append(text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 15, title))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out.append(text(16, middle, "% of one processor", more=f' transform="rotate(-90 16 {middle:.1f})"'))

    labels = []
    for name, points in lines.items():
        colour = COLOURS[name]
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if name == "nobody" else ""
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
        out += [f'<circle cx="{x_of(x):.1f}" cy="{y_of(y):.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        labels.append((name, colour))
    for place, (name, colour) in enumerate(labels):
        y = TOP + 14 + 22 * place
        shown = f"libtcpEvent, {name}" if name in ("kprobe", "tp_btf") else name
        dash = ' stroke-dasharray="5 4"' if name == "nobody" else ""
        out.append(
            f'<line x1="{WIDTH - RIGHT + 12}" y1="{y}" x2="{WIDTH - RIGHT + 34}" y2="{y}" stroke="{colour}" '
            f'stroke-width="2"{dash}/>'
        )
        out.append(text(WIDTH - RIGHT + 40, y + 4, shown, "start", 11))
    out.append("</svg>")
    return "\n".join(out) + "\n"
