"""The demo part: a turned aluminium flange on a belt as a height map, and all that varies from shot to shot.

A defect changes the height map or the colour before the light falls on it (sample_camera.py), so it looks the way the
light shows it.

Lengths are in design pixels (pixels of a 320-pixel picture); work happens on a grid twice as fine as the
picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]
Size = tuple[int, int]

FINE = 2  # samples per picture pixel along each side
DESIGN_PX = 320.0
RADII_PER_PX = 4  # samples per design pixel in tables over the radius

RIM_R, FACE_R, HUB_R, BORE_R = 126.0, 121.5, 70.0, 38.0
BOLT_CIRCLE_R, BOLT_R, DOWEL_R = 101.0, 10.5, 4.5
BOLT_ANGLES_DEG = (0.0, 60.0, 120.0, 180.0, 240.0, 300.0)
DOWEL_ANGLE_DEG = 30.0
LETTERS = (
    *zip("DN40", (106.5, 95.5, 84.5, 73.5), strict=True),
    *zip("PN16", (253.5, 264.5, 275.5, 286.5), strict=True),
)
BELT_HEIGHT = -15.0  # the flange's face is 0, its hub 6
WALL_PARALLAX = 0.045  # how far the lower edge of a hole shifts towards the picture's centre


@dataclass(frozen=True, slots=True, kw_only=True)
class Light:
    """One lamp: the tilt of its half-way vector as x and y, its power, and how wide it reflects."""

    tilt_xy: tuple[float, float]
    power: float
    along: float
    across: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Everything about one shot but the defect and the noise."""

    size_hw: Size
    shift_xy: tuple[float, float]
    turn_rad: float
    lights: tuple[Light, ...]
    ambient: float
    groove: Array  # (n,) slope of the turning marks, by radius
    sheen: Array  # (n,) reflectance of the turning marks, by radius
    streaks: int
    streaks_turn_rad: float
    smudge: Array  # coarse field, about -1..1
    dust: tuple[tuple[float, float, float, float], ...]  # x, y, radius, brightness
    belt_xy: tuple[int, int]
    metal_bgr: tuple[float, float, float]
    engraving: float
    blur_px: float
    vignette: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Flaw:
    """What a defect changes: maps on the fine grid, in the picture's frame."""

    height: Array | None = None  # added, design pixels
    cut: Array | None = None  # 0..1, share of belt seen where metal broke away
    rough: Array | None = None  # 0..1, how far the turning marks are gone
    erased: Array | None = None  # 0..1, how far the engraving is gone
    stain: Array | None = None  # 0..1, opacity
    stain_bgr: tuple[float, float, float] = (1.0, 1.0, 1.0)
    undrilled: int | None = None  # the bolt hole that is not there


def f32(values: ArrayLike) -> Array:
    """As float32, copied only if it has to be."""
    return np.asarray(values, dtype=np.float32)


def fine_scale(size_hw: Size) -> float:
    """Fine-grid samples per design pixel."""
    return FINE * min(size_hw) / DESIGN_PX


@lru_cache(maxsize=4)
def fine_grid(size_hw: Size) -> tuple[Array, Array]:
    """x and y of every fine sample, in design pixels from the picture's centre."""
    y, x = (f32((np.arange(n * FINE) + 0.5 - n * FINE / 2) / fine_scale(size_hw)) for n in size_hw)
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return grid_x, grid_y


def on_bolt_circle(angle_deg: float) -> tuple[float, float]:
    """Where something at this angle of the bolt circle stands on the unturned part."""
    return (
        BOLT_CIRCLE_R * math.cos(math.radians(angle_deg)),
        BOLT_CIRCLE_R * math.sin(math.radians(angle_deg)),
    )


def opening_distance(x: Array, y: Array, undrilled: int | None) -> Array:
    """Distance to the nearest opening of the flange (bore, keyway, holes); negative inside one."""
    bore = np.hypot(x, y) - BORE_R
    keyway = np.maximum(np.abs(x) - 5.5, np.abs(y + 24.0) - 24.0)
    nearest = np.minimum(bore, keyway)
    holes = [(angle, BOLT_R) for i, angle in enumerate(BOLT_ANGLES_DEG) if i != undrilled]
    for angle_deg, radius in (*holes, (DOWEL_ANGLE_DEG, DOWEL_R)):
        centre_x, centre_y = on_bolt_circle(angle_deg)
        nearest = np.minimum(nearest, np.hypot(x - centre_x, y - centre_y) - radius)
    return f32(nearest)


@lru_cache(maxsize=16)
def nominal_layers(size_hw: Size, undrilled: int | None) -> Array:
    """(H, W, 3) of the unturned part: height, share of belt seen 0..1, depth of engraving 0..1."""
    x, y = fine_grid(size_hw)
    r = np.hypot(x, y)
    profile_r = (HUB_R, HUB_R + 2.5, HUB_R + 5, HUB_R + 8, HUB_R + 9, FACE_R, RIM_R)
    height = np.interp(r, profile_r, (6.0, 4.6, -1.0, -1.0, 0.0, 0.0, -2.6))
    upper = opening_distance(x, y, undrilled)
    lower = opening_distance(x / (1 - WALL_PARALLAX), y / (1 - WALL_PARALLAX), undrilled)
    height -= 0.6 * np.clip(2.8 - upper, 0, 2.8)
    # Between the upper and the lower edge of a hole the camera sees the hole's wall.
    depth = np.where(lower > 0, np.clip(-upper / np.maximum(lower - upper, 1e-3), 0, 1), 1.0) * (upper < 0)
    height += (BELT_HEIGHT - height) * depth
    height[r > RIM_R] = BELT_HEIGHT
    belt = np.clip(0.5 + np.maximum(r - RIM_R, -np.maximum(upper, lower)) * fine_scale(size_hw), 0, 1)
    return f32(np.dstack([height, belt, engraving_depth(size_hw)]))


def engraving_depth(size_hw: Size) -> Array:
    """Depth 0..1 of the stamped letters, each its own punch, upright in the unturned picture."""
    scale = fine_scale(size_hw)
    height, width = (n * FINE for n in size_hw)
    depth = np.zeros((height, width), np.float32)
    for letter, angle_deg in LETTERS:
        punch = np.zeros((96, 96), np.uint8)
        font = cv2.FONT_HERSHEY_SIMPLEX
        (w, h), _ = cv2.getTextSize(letter, font, 2.0, 7)
        cv2.putText(punch, letter, (48 - w // 2, 48 + h // 2), font, 2.0, 255, 7, cv2.LINE_AA)
        x, y = on_bolt_circle(angle_deg)
        turn_rad = math.radians(angle_deg - 90 if angle_deg < 180 else angle_deg + 90)
        zoom = scale * 16.0 / 44.0
        c, s = math.cos(turn_rad) * zoom, math.sin(turn_rad) * zoom
        u, v = x * scale + width / 2, y * scale + height / 2
        matrix = np.array([[c, -s, u - 48 * (c - s)], [s, c, v - 48 * (s + c)]])
        np.maximum(depth, f32(cv2.warpAffine(punch, matrix, (width, height))) / 255, out=depth)
    return f32(cv2.GaussianBlur(depth, (0, 0), 0.3 * scale))


@lru_cache(maxsize=4)
def streak_bank(size_hw: Size) -> tuple[Array, ...]:
    """Broken arcs along the turning direction, about -1..1: four drawings to choose from."""
    r, angle_rad = cv2.cartToPolar(*fine_grid(size_hw))
    bank = []
    for seed in range(4):
        noise = np.random.default_rng(seed).standard_normal((480, 1536), dtype=np.float32)
        noise = np.pad(noise, ((0, 0), (192, 192)), mode="wrap")
        arcs = np.zeros_like(noise)
        for length in (5.0, 50.0):
            blurred = cv2.GaussianBlur(noise, (0, 0), sigmaX=length, sigmaY=0.8)
            arcs += blurred / (2.5 * blurred.std())
        column = angle_rad * np.float32(1536 / (2 * np.pi)) + 192
        bank.append(f32(cv2.remap(arcs, column, r * np.float32(3.0), cv2.INTER_LINEAR)))
    return tuple(bank)


@lru_cache(maxsize=4)
def belt_tile(size_hw: Size) -> Array:
    """A stretch of belt larger than the picture: woven rubber with scuffs, reflectance about 1."""
    rng = np.random.default_rng(3)
    scale = fine_scale(size_hw)
    h, w = (n * FINE + 256 for n in size_hw)
    y, x = np.mgrid[:h, :w] / scale
    weave = np.sin((x + y) * 1.45) * np.sin((x - y) * 1.45)
    grain = f32(cv2.GaussianBlur(rng.standard_normal((h, w), dtype=np.float32), (0, 0), 0.7 * scale))
    scuffs = cv2.resize(rng.standard_normal((14, 40)), (w, h), interpolation=cv2.INTER_CUBIC)
    return f32(1 + 0.10 * weave + 0.16 * grain / grain.std() + 0.10 * scuffs)


def draw_scene(rng: np.random.Generator, size_hw: Size) -> Scene:
    """Everything that differs from one good part, and one shot, to the next."""
    azimuth = math.radians(rng.normal(-128, 3.5))
    side = azimuth + math.radians(rng.normal(72, 3.0))
    tilt = rng.normal(0.33, 0.012)
    lights = (
        Light(tilt_xy=polar(tilt, azimuth), power=rng.normal(1.0, 0.05), along=0.13, across=0.5),
        Light(tilt_xy=polar(0.42, side), power=rng.normal(0.36, 0.025), along=0.10, across=0.6),
    )
    groove, sheen = turning_marks(rng)
    dust = [(*somewhere(rng, RIM_R), rng.uniform(0.4, 0.8), rng.uniform(-0.4, 0.4)) for _ in range(rng.integers(12))]
    tint = rng.normal(0, 0.008)
    return Scene(
        size_hw=size_hw,
        shift_xy=(rng.uniform(-3, 3), rng.uniform(-3, 3)),
        turn_rad=math.radians(rng.uniform(-3, 3)),
        lights=lights,
        ambient=rng.normal(1.0, 0.03),
        groove=groove,
        sheen=sheen,
        streaks=int(rng.integers(4)),
        streaks_turn_rad=rng.uniform(0, 2 * math.pi),
        smudge=rng.standard_normal((9, 9)).astype(np.float32),
        dust=tuple(dust),
        belt_xy=(int(rng.integers(256)), int(rng.integers(256))),
        metal_bgr=(1.0 + tint, 1.0, 0.985 - tint),
        engraving=rng.uniform(0.9, 1.1),
        blur_px=rng.uniform(0.5, 0.7),
        vignette=rng.uniform(0.25, 0.31),
    )


def polar(length: float, angle_rad: float) -> tuple[float, float]:
    """x and y of a vector."""
    return length * math.cos(angle_rad), length * math.sin(angle_rad)


def somewhere(rng: np.random.Generator, radius: float) -> tuple[float, float]:
    """A random point of a disc."""
    return polar(radius * math.sqrt(rng.random()), rng.uniform(0, 2 * math.pi))


def turning_marks(rng: np.random.Generator) -> tuple[Array, Array]:
    """Slope and reflectance by radius: the feed of the tool plus the wander of a real lathe."""
    r = np.arange(int(RIM_R + 1) * RADII_PER_PX) / RADII_PER_PX
    wander = np.cumsum(rng.normal(0, 0.12, r.size))
    feed = np.sin(2 * np.pi * r / np.where(r < HUB_R + 5, 2.6, 3.1) + wander)
    fine, broad = (
        np.convolve(rng.standard_normal(r.size + n - 1), np.hanning(n) / math.sqrt(n / 3), "valid") for n in (6, 40)
    )
    groove = 0.07 * feed + 0.05 * fine + 0.02 * broad
    sheen = 1 + 0.035 * fine + 0.03 * broad
    return f32(groove), f32(sheen)
