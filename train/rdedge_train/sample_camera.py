"""Photographs the demo part from above: light, shadow, lens and sensor.

Light falls on the slopes of the height map, the turning marks smear reflections across the grooves (the "bow-tie" of
every turned face), the camera blurs, darkens the corners and adds noise.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge_train.sample_part import (
    BELT_HEIGHT,
    FINE,
    RADII_PER_PX,
    Array,
    Flaw,
    Scene,
    belt_tile,
    f32,
    fine_grid,
    fine_scale,
    nominal_layers,
    streak_bank,
)


def to_picture(scene: Scene, layers: Array, turn_rad: float) -> Array:
    """Turn and shift layers drawn for the unturned part to where the part lies in this shot."""
    h, w = layers.shape[:2]
    scale = fine_scale(scene.size_hw)
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), -math.degrees(turn_rad), 1.0)
    matrix[0, 2] += scene.shift_xy[0] * scale
    matrix[1, 2] += scene.shift_xy[1] * scale
    return f32(cv2.warpAffine(layers, matrix, (w, h), borderMode=cv2.BORDER_REPLICATE))


def photograph(scene: Scene, flaw: Flaw) -> Array:
    """(H, W, 3) BGR picture in grey levels 0..255, before sensor noise."""
    layers = to_picture(scene, nominal_layers(scene.size_hw, flaw.undrilled), scene.turn_rad)
    height, belt, letters = (f32(layer) for layer in cv2.split(layers))
    # A flaw is too small to cast a shadow of its own: what it changes stays where it is.
    shadow, nook = shadows(scene, height)
    x0, y0 = scene.belt_xy
    ground = belt_tile(scene.size_hw)[y0 : y0 + belt.shape[0], x0 : x0 + belt.shape[1]]
    if flaw.height is not None:
        height = height + flaw.height
    if flaw.cut is not None:
        height = f32(np.where(flaw.cut > 0.5, BELT_HEIGHT, height))
        ground = ground * (1 - 0.6 * flaw.cut * (1 - belt))  # little light gets down into a break
        belt = np.maximum(belt, flaw.cut)
    if flaw.erased is not None:
        letters = letters * (1 - flaw.erased)
    glint, glow = lit_metal(scene, height - 1.2 * scene.engraving * letters, flaw)

    size_wh = scene.size_hw[::-1]
    metal = (1 - belt) * (1 - 0.35 * letters)  # grime settles in the letters
    parts = cv2.merge([glint * metal, glow * metal, ground * belt])
    small = cv2.resize(parts, size_wh, interpolation=cv2.INTER_AREA)
    glint, glow, ground = (f32(part) for part in cv2.split(small))
    smudge = 1 + 0.03 * cv2.resize(scene.smudge, size_wh, interpolation=cv2.INTER_CUBIC)
    glint *= shadow * smudge
    glow *= nook * (0.55 + 0.45 * shadow) * smudge
    ground *= 0.03 * nook * (0.35 + 0.65 * shadow)
    stain = f32(0.0 if flaw.stain is None else cv2.resize(flaw.stain, size_wh, interpolation=cv2.INTER_AREA))
    bgr = []
    for c, (warm, cool, rubber) in enumerate(((0.93, 1.05, 1.04), (0.985, 1.0, 1.05), (1.03, 0.96, 0.95))):
        surface = (glint * warm + glow * cool) * scene.metal_bgr[c]
        bgr.append(surface * (1 - stain * (1 - flaw.stain_bgr[c])) + ground * rubber)
    return exposed(scene, f32(np.dstack(bgr)))


def lit_metal(scene: Scene, height: Array, flaw: Flaw) -> tuple[Array, Array]:
    """Mirror-like and diffuse light coming back from the metal, per fine sample."""
    scale = fine_scale(scene.size_hw)
    x, y = fine_grid(scene.size_hw)
    x, y = x - scene.shift_xy[0], y - scene.shift_xy[1]
    r = cv2.magnitude(x, y) + np.float32(1e-3)
    x /= r
    y /= r  # from here on (x, y) is the unit vector away from the part's centre, across the grooves
    slope_x = cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=scale / 8)
    slope_y = cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=scale / 8)
    index = np.minimum((r * RADII_PER_PX).astype(np.int32), scene.groove.size - 1)
    streaks = to_picture(scene, streak_bank(scene.size_hw)[scene.streaks], scene.streaks_turn_rad)
    groove = scene.groove[index] + 0.035 * streaks
    worn: Array | float = 0.0
    if flaw.rough is not None:
        groove *= 1 - flaw.rough
        worn = flaw.rough
    across = slope_x * x + slope_y * y + groove
    along = slope_y * x - slope_x * y

    glint = np.zeros_like(r)
    for light in scene.lights:
        tilt_x, tilt_y = light.tilt_xy
        # Lamp and camera are near, so the half-way vector leans outwards with the radius.
        a = (across + tilt_x * x + tilt_y * y - 0.0009 * r) / (light.across + 0.3 * worn)
        b = (along + tilt_y * x - tilt_x * y) / (light.along + 0.4 * worn)
        glint += light.power * (1 - 0.5 * worn) * cv2.exp(-(a * a + b * b))
    lamp_x, lamp_y = scene.lights[0].tilt_xy
    facing = (1 - 2.2 * (slope_x * lamp_x + slope_y * lamp_y)) / cv2.sqrt(1 + across * across + along * along)
    sheen = scene.sheen[index] * (1 + 0.05 * streaks)
    return 0.78 * glint * sheen, 0.13 * scene.ambient * np.maximum(facing, 0.08) * sheen


def shadows(scene: Scene, fine_height: Array) -> tuple[Array, Array]:
    """Share of the main lamp, and of the light from all around, that reaches each picture pixel."""
    height = f32(cv2.resize(fine_height, scene.size_hw[::-1], interpolation=cv2.INTER_AREA))
    scale = fine_scale(scene.size_hw) / FINE
    h, w = scene.size_hw
    lamp_x, lamp_y = scene.lights[0].tilt_xy
    norm = math.hypot(lamp_x, lamp_y)
    covered = np.zeros_like(height)
    for step in range(1, 9):
        reach = 2.2 * step
        move = np.array([[1, 0, -reach * scale * lamp_x / norm], [0, 1, -reach * scale * lamp_y / norm]])
        taller = f32(cv2.warpAffine(height, move, (w, h), borderMode=cv2.BORDER_REPLICATE))
        np.maximum(covered, taller - height - 0.75 * reach, out=covered)
    shadow = cv2.exp(-0.6 * cv2.GaussianBlur(covered, (0, 0), 1.3 * scale))
    around = cv2.GaussianBlur(height, (0, 0), 7 * scale)
    return f32(shadow), f32(cv2.exp(-0.11 * np.maximum(around - height, 0)))


def exposed(scene: Scene, light_bgr: Array) -> Array:
    """Through the lens and the tone curve: dust, vignetting, bloom, blur, grey levels 0..255."""
    h, w = scene.size_hw
    scale = fine_scale(scene.size_hw) / FINE
    y, x = (f32(axis) for axis in np.ogrid[-h / 2 : h / 2, -w / 2 : w / 2])
    through = f32(1 - scene.vignette * (x * x + y * y) / (w * w / 4 + h * h / 4))
    for dust_x, dust_y, radius, brightness in scene.dust:
        column, row = (np.exp(-((a / radius) ** 2) / 2) for a in (x - dust_x * scale, y - dust_y * scale))
        through = f32(through * (1 + brightness * column * row))
    light_bgr = light_bgr * through[..., None]
    bloom = cv2.resize(light_bgr, (w // 4, h // 4), interpolation=cv2.INTER_AREA)
    light_bgr += 0.04 * cv2.resize(cv2.GaussianBlur(bloom, (0, 0), 2.5), (w, h))
    light_bgr = np.maximum(cv2.GaussianBlur(light_bgr, (0, 0), scene.blur_px), 0)
    return f32(255 * cv2.pow(1 - cv2.exp(-1.5 * light_bgr), 1 / 2.2))


def sensor_noise(rng: np.random.Generator, picture: Array) -> NDArray[np.uint8]:
    """Shot noise grows with the light, read noise does not; then 8 bits."""
    noise = rng.standard_normal(picture.shape, dtype=np.float32)
    noise *= cv2.sqrt(1.0 + 0.012 * picture)
    return np.asarray(np.clip(np.rint(picture + noise), 0, 255), dtype=np.uint8)
