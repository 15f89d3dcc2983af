"""The page's colours: seen on their background, and told apart by every reader."""

from __future__ import annotations

import itertools
import re

import numpy as np
import numpy.typing as npt
import pytest

from hpsbench.report.styles import page_style

Vector = npt.NDArray[np.float64]

#: Linear RGB as dichromats see it. Source: Machado, Oliveira and Fernandes, 2009, severity 1.
SIGHT = {
    "all cones": np.eye(3),
    "protanopia": np.array(
        [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]]
    ),
    "deuteranopia": np.array(
        [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]]
    ),
    "tritanopia": np.array(
        [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]]
    ),
}
RGB_TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
)
WHITE = RGB_TO_XYZ.sum(axis=1)


def palettes() -> list[dict[str, Vector]]:
    """Return the light and the dark palette, in linear RGB."""
    css = page_style()
    dark = re.findall(r"@media \(prefers-color-scheme: dark\) \{.*?\}", css, re.DOTALL)
    light = css
    for part in dark:
        light = light.replace(part, "")
    return [
        {name: linear(colour) for name, colour in re.findall(r"--(\w+): (#[0-9a-f]{6})", text)}
        for text in (light, "".join(dark))
    ]


def linear(colour: str) -> Vector:
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def cielab(rgb: Vector) -> Vector:
    scaled = RGB_TO_XYZ @ rgb.clip(0, 1) / WHITE
    x, y, z = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def contrast(one: Vector, other: Vector) -> float:
    """Return the ratio that the Web Content Accessibility Guidelines define."""
    brighter, darker = sorted((float(RGB_TO_XYZ[1] @ c) for c in (one, other)), reverse=True)
    return (brighter + 0.05) / (darker + 0.05)


def test_both_palettes_have_every_colour() -> None:
    light, dark = palettes()
    assert light.keys() == dark.keys()
    assert len(light) > 20


@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(palette: dict[str, Vector]) -> None:
    """The guidelines ask for 4.5 of text, and for 3 of lines."""
    for name in ("text", "muted", "bad", "unsure", "good", "gain"):
        assert contrast(palette[name], palette["page"]) >= 4.5, name
    for name in (f"v{number}" for number in range(8)):
        assert contrast(palette[name], palette["page"]) >= 3, name


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("names", [[f"v{n}" for n in range(6)], [f"s{n}" for n in range(5)]])
@pytest.mark.parametrize("palette", palettes(), ids=["light", "dark"])
def test_colours_of_one_chart_are_told_apart(
    palette: dict[str, Vector], names: list[str], sight: str
) -> None:
    """A distance of 2.3 in CIELAB is just noticeable."""
    seen = {name: cielab(SIGHT[sight] @ palette[name]) for name in names}
    for one, other in itertools.combinations(names, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 20, (one, other)
