"""A drawing of genuine and impostor scores, small enough to lie in Dagster's event log."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

_BINS = 40
_WIDTH, _HEIGHT, _BASE = 640, 280, 240


def score_plot(
    genuine: NDArray[Any],
    impostor: NDArray[Any],
    threshold: float | None,
    names: tuple[str, str] = ("genuine", "impostor"),
) -> str:
    """An SVG image of both distributions over cosine similarity, with the threshold as a line where there is one.

    genuine, impostor: (m,), (n,) scores, at least one together. names: what they are called in the picture. Both histograms have the same area however many scores
    there are, and only their shares are in the picture.
    """
    scores = np.concatenate([genuine, impostor])
    low, high = max(scores.min() - 0.01, -1.0), min(scores.max() + 0.01, 1.0)
    edges = np.linspace(low, high, _BINS + 1)

    def x(similarity: float) -> float:
        return 20 + (_WIDTH - 40) * (similarity - low) / (high - low)

    shares = [np.histogram(of, edges)[0] / max(len(of), 1) for of in (genuine, impostor)]
    tallest = max(of.max() for of in shares)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" font-family="sans-serif" '
        f'font-size="12"><rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    ]
    # Told apart by their outlines, too, where colours cannot be.
    styles = ((names[0], "#1b7837", "none", 20), (names[1], "#b2182b", "4 2", 150))
    for of, scored, (name, colour, dashes, place) in zip(shares, (genuine, impostor), styles, strict=True):
        heights = (_BASE - 60) * of / tallest
        steps = " ".join(
            f"{x(left):.1f},{_BASE - height:.1f} {x(right):.1f},{_BASE - height:.1f}"
            for left, right, height in zip(edges, edges[1:], heights, strict=False)
        )
        style = f'fill="{colour}" fill-opacity="0.3" stroke="{colour}" stroke-dasharray="{dashes}"'
        parts.append(f'<polygon points="{x(low):.1f},{_BASE} {steps} {x(high):.1f},{_BASE}" {style}/>')
        parts.append(f'<text x="{place}" y="16" fill="{colour}">{name} ({len(scored)})</text>')
    for tick in np.linspace(low, high, 6):
        parts.append(f'<text x="{x(tick):.1f}" y="{_BASE + 16}" text-anchor="middle">{tick:.2f}</text>')
    parts.append(f'<text x="{_WIDTH / 2}" y="{_BASE + 34}" text-anchor="middle">cosine similarity</text>')
    if threshold is not None:
        parts.append(f'<path d="M{x(threshold):.1f} 40V{_BASE}" stroke="black"/>')
        parts.append(f'<text x="{x(threshold):.1f}" y="34" text-anchor="middle">threshold {threshold:.4f}</text>')
    return "".join([*parts, "</svg>"])
