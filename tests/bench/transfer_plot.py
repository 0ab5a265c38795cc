"""Bars as SVG."""

import html
import math

COLOURS = ("#1f6f8b", "#8bbccc", "#d1603d", "#e0a458", "#6a994e", "#b5838d", "#4d4c7d", "#999999", "#2a9d8f", "#e76f51", "#577590",
           "#cccccc", "#bbbbbb")
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 1080, 420, 60, 40, 40


def bars(groups, series, title):
    """`series`: {name: a value for each group}. A logarithmic axis, as memory is far ahead of sockets."""
    steps = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
    most = next((step for step in steps if step >= max(max(values) for values in series.values())), steps[-1])
    least = 0.1

    def height(value):
        return (HEIGHT - TOP - BOTTOM) * max(0.0, math.log(max(value, least) / least) / math.log(most / least))

    floor = HEIGHT - BOTTOM
    legend = 18 * len(series)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + legend}" font-family="sans-serif" font-size="12">',
             f'<rect width="100%" height="100%" fill="white"/><text x="{LEFT}" y="22" font-size="15">{html.escape(title)}</text>']
    for step in steps:
        if step <= most:
            y = floor - height(step)
            parts.append(f'<line x1="{LEFT}" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                         f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{step:g}</text>')
    group_width = (WIDTH - LEFT) / len(groups)
    bar = group_width * 0.9 / len(series)
    for number, (name, values) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        for group, value in enumerate(values):
            x = LEFT + group * group_width + number * bar
            parts.append(f'<rect x="{x:.1f}" y="{floor - height(value):.1f}" width="{bar * 0.9:.1f}" height="{height(value):.1f}" fill="{colour}">'
                         f"<title>{html.escape(name)}, {groups[group]}: {value:.2f}</title></rect>")
        y = HEIGHT + 18 * number
        parts.append(f'<rect x="{LEFT}" y="{y - 10}" width="12" height="12" fill="{colour}"/>'
                     f'<text x="{LEFT + 18}" y="{y}">{html.escape(name)}: {", ".join(f"{value:.2f}" for value in values)}</text>')
    for group, name in enumerate(groups):
        parts.append(f'<text x="{LEFT + (group + 0.45) * group_width:.1f}" y="{floor + 18}" text-anchor="middle">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
