"""Write the demo data set: good and defective parts, masks and a video of the line, all from one seed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from rdedge.atomic import new_folder
from rdedge_train.sample_camera import photograph, sensor_noise, to_picture
from rdedge_train.sample_part import (
    BOLT_ANGLES_DEG,
    BORE_R,
    FINE,
    LETTERS,
    RIM_R,
    Array,
    Flaw,
    Scene,
    draw_scene,
    f32,
    fine_grid,
    fine_scale,
    nominal_layers,
    on_bolt_circle,
    opening_distance,
    polar,
    somewhere,
)

DEFECTS: tuple[str, ...] = ("dent", "missing", "scratch", "stain")

MASK_GREY = 4.0  # a pixel belongs to the defect where the noise-free picture changed by more than this
VISIBLE_GREY = 16.0  # the mean change inside a mask that an inspector cannot miss
VISIBLE_AREA = 40.0  # square design pixels
VIDEO_FPS = 10.0
VIDEO_DEFECTIVE = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePlan:
    """How many parts of each kind; defaults are the demo's."""

    train_good: int = 240
    test_good: int = 60
    test_per_defect: int = 20
    video_frames: int = 60
    size_hw: tuple[int, int] = (320, 320)
    seed: int = 7


def make_sample(
    out: Path, plan: SamplePlan = SamplePlan(), *, progress: Callable[[int, int], None] | None = None
) -> Path:
    """Write the data set to a new folder `out`, in the MVTec AD layout plus a video, and return it.

    `out` holds train/good, test/good, test/<defect>, ground_truth/<defect>/000_mask.png, line.mkv and
    line.truth.json.  It appears only once complete; an existing `out` raises UsageError.  The same
    plan gives the same bytes of every PNG.  The video is FFV1: OpenCV hands it to FFmpeg as BGR0, and
    reading it back gave every pixel unchanged (largest difference 0 grey levels), at about 130 kB a frame.
    """
    images = image_jobs(plan)
    total = len(images) + plan.video_frames

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, total)

    with new_folder(out) as work:
        for done, (split, index, folder, defect) in enumerate(images, 1):
            image_bgr_u8, mask_u8 = render_part(part_rng(plan, split, index), plan.size_hw, defect)
            write_png(work / folder / f"{index:03d}.png", image_bgr_u8)
            if defect is not None:
                write_png(work / "ground_truth" / defect / f"{index:03d}_mask.png", mask_u8)
            tell(done)
        write_video(work, plan, lambda frames: tell(len(images) + frames))
    return out


def image_jobs(plan: SamplePlan) -> list[tuple[int, int, str, str | None]]:
    """(split number, index, folder, defect) of every picture; splits never share a part."""
    splits: list[tuple[str, str | None, int]] = [
        ("train/good", None, plan.train_good),
        ("test/good", None, plan.test_good),
        *((f"test/{defect}", defect, plan.test_per_defect) for defect in DEFECTS),
    ]
    return [(s, i, folder, defect) for s, (folder, defect, n) in enumerate(splits) for i in range(n)]


def part_rng(plan: SamplePlan, split: int, index: int) -> np.random.Generator:
    """Each part's own random numbers, so that any part can be made alone."""
    return np.random.default_rng([plan.seed, split, index])


def write_png(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise OSError(f"cannot write {path}")


def write_video(folder: Path, plan: SamplePlan, tell: Callable[[int], None]) -> None:
    """Write line.mkv, one new part per frame, and line.truth.json."""
    split = 2 + len(DEFECTS)
    rng = part_rng(plan, split + 1, 0)
    kinds: list[str | None] = [None] * plan.video_frames
    chosen = rng.permutation(plan.video_frames)[: round(plan.video_frames * VIDEO_DEFECTIVE)]
    for i, frame in enumerate(chosen):
        kinds[frame] = DEFECTS[i % len(DEFECTS)]

    path = folder / "line.mkv"
    fourcc = cv2.VideoWriter.fourcc(*"FFV1")
    video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, fourcc, VIDEO_FPS, plan.size_hw[::-1])
    try:
        if not video.isOpened():
            raise OSError(f"cannot write {path}: this OpenCV has no FFV1 encoder")
        for frame, kind in enumerate(kinds):
            video.write(render_part(part_rng(plan, split, frame), plan.size_hw, kind)[0])
            tell(frame + 1)
    finally:
        video.release()
    truth = [{"frame": frame, "defect": kind} for frame, kind in enumerate(kinds)]
    (folder / "line.truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")


def render_part(
    rng: np.random.Generator, size_hw: tuple[int, int], defect: str | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One part: image_bgr_u8 (H, W, 3) and mask_u8 (H, W) 0/255, all zero for a good part.

    The same state of `rng` gives the same part, shot and noise whatever the defect.
    """
    scene_rng, flaw_rng, noise_rng = (np.random.default_rng(seed) for seed in rng.integers(2**63, size=3))
    scene = draw_scene(scene_rng, size_hw)
    picture = photograph(scene, Flaw())
    mask_u8 = np.zeros(size_hw, np.uint8)
    if defect is not None:
        picture, mask_u8 = _spoilt(flaw_rng, scene, picture, defect)
    return sensor_noise(noise_rng, picture), mask_u8


def _spoilt(rng: np.random.Generator, scene: Scene, good: Array, defect: str) -> tuple[Array, NDArray[np.uint8]]:
    """The same shot with a defect, and where it differs; draws again until an inspector would see it."""
    kinds = {"dent": _dent, "missing": _missing, "scratch": _scratch, "stain": _stain}
    if defect not in kinds:
        raise ValueError(f"unknown defect {defect!r}: one of {', '.join(DEFECTS)}")
    least_area = VISIBLE_AREA * (fine_scale(scene.size_hw) / FINE) ** 2
    while True:
        picture = photograph(scene, kinds[defect](rng, scene))
        change = np.abs(picture - good).max(axis=2)
        changed = (change > MASK_GREY).astype(np.uint8)
        mask = cv2.morphologyEx(changed, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        if mask.sum() >= least_area and change[mask > 0].mean() >= VISIBLE_GREY:
            return picture, (mask * 255).astype(np.uint8)


def _scratch(rng: np.random.Generator, scene: Scene) -> Flaw:
    """A ploughed line with a raised edge, never along the turning marks, where it would hide."""
    x, y = _place(rng, scene, margin=5.0)
    outwards_rad = math.atan2(y - scene.shift_xy[1], x - scene.shift_xy[0])
    heading_rad = outwards_rad + math.radians(rng.uniform(-60, 60))
    length, bend_rad = rng.uniform(22, 75), rng.uniform(-0.9, 0.9)
    t = np.linspace(-0.5, 0.5, 41)
    steps = np.exp(1j * (heading_rad + bend_rad * t)) * length / t.size
    path = np.cumsum(steps)
    path += x + 1j * y - path[t.size // 2]
    pressure = np.cos(np.pi * t) ** 0.8 * np.interp(t, np.linspace(-0.5, 0.5, 6), rng.uniform(0.6, 1.0, 6))

    scale = fine_scale(scene.size_hw)
    h, w = (n * FINE for n in scene.size_hw)
    u = np.rint((path.real * scale + w / 2) * 16).astype(int).tolist()
    v = np.rint((path.imag * scale + h / 2) * 16).astype(int).tolist()
    width = max(1, round(rng.uniform(1.0, 2.5) * FINE) - 1)  # the smooth edge of the line adds one
    line = np.zeros((h, w), np.uint8)
    for i in range(t.size - 1):
        grey = float(255 * pressure[i])
        cv2.line(line, (u[i], v[i]), (u[i + 1], v[i + 1]), grey, width, cv2.LINE_AA, shift=4)
    groove = _top(scene) * line / np.float32(255)
    groove = f32(cv2.GaussianBlur(groove, (0, 0), 0.25 * width + 0.2))
    ridge = cv2.GaussianBlur(groove, (0, 0), 0.6 * width)
    depth = rng.uniform(0.4, 0.9) * (width + 1) / scale
    return Flaw(height=f32(depth * (0.7 * ridge - groove)), rough=f32(0.6 * groove))


def _dent(rng: np.random.Generator, scene: Scene) -> Flaw:
    """A shallow oval dimple that the turning marks run through."""
    x, y = _place(rng, scene, margin=7.0)
    along, across = _around(scene, x, y, rng.uniform(0, math.pi))
    radius = rng.uniform(4.0, 8.5)
    q = (along**2 + (across * rng.uniform(1.0, 1.5)) ** 2) / radius**2
    steepness = rng.uniform(0.16, 0.45)
    return Flaw(height=f32(-steepness * radius * np.exp(-q / 2) * _top(scene)))


def _stain(rng: np.random.Generator, scene: Scene) -> Flaw:
    """A dried-on patch with a ragged, slightly darker edge."""
    x, y = _place(rng, scene, margin=4.0)
    inside = _blob(rng, scene, x, y, rng.uniform(7, 20), ragged=0.35)
    body = 1 / (1 + np.exp(-np.clip(inside, -30, 30)))
    edge = np.exp(-((inside - 1.5) ** 2) / 3.0)
    mottle = 1 + 0.12 * _noise(rng, scene, 2.0)
    colours = ((0.25, 0.48, 0.68), (0.24, 0.30, 0.36), (0.66, 0.48, 0.36))  # rust, old oil, tarnish
    opacity = rng.uniform(0.5, 0.9)
    return Flaw(
        stain=f32(opacity * np.clip(0.7 * body * mottle + 0.3 * edge, 0, 1)),
        stain_bgr=colours[rng.integers(3)],
    )


def _missing(rng: np.random.Generator, scene: Scene) -> Flaw:
    """Metal or work that is not there: a chipped edge, an undrilled hole, a gap in the engraving."""
    kind = rng.choice(["chip", "chip", "undrilled", "engraving"])
    if kind == "undrilled":
        return Flaw(undrilled=int(rng.integers(len(BOLT_ANGLES_DEG))))
    if kind == "engraving":
        letter_xy = on_bolt_circle(LETTERS[rng.integers(len(LETTERS))][1])
        x, y = _laid(scene, *(c + rng.uniform(-4, 4) for c in letter_xy))
        inside = _blob(rng, scene, x, y, rng.uniform(6, 11), ragged=0.2)
        return Flaw(erased=f32(np.clip(0.5 + inside, 0, 1)))

    edge_r = rng.choice([RIM_R, RIM_R, BORE_R])
    x, y = _laid(scene, *polar(edge_r, rng.uniform(0, 2 * math.pi)))
    inside = _blob(rng, scene, x, y, rng.uniform(6.0, 11.0), ragged=0.18)
    broken = np.clip(inside, 0, 4) * _top(scene)
    facets = _noise(rng, scene, cell=3.0) * np.clip(inside, 0, 1)
    cut = np.clip(0.5 + (inside - 3.0) * fine_scale(scene.size_hw), 0, 1)
    return Flaw(height=f32(0.8 * facets - 1.3 * broken), rough=f32(np.clip(inside, 0, 1)), cut=f32(cut))


def _place(rng: np.random.Generator, scene: Scene, margin: float) -> tuple[float, float]:
    """A random place on the metal, `margin` away from every opening and the rim, in the picture's frame."""
    while True:
        x, y = somewhere(rng, RIM_R - margin)
        if opening_distance(f32(x), f32(y), None) > margin:
            return _laid(scene, x, y)


def _laid(scene: Scene, x: float, y: float) -> tuple[float, float]:
    """Where a point of the unturned part lies in this shot."""
    c, s = math.cos(scene.turn_rad), math.sin(scene.turn_rad)
    return c * x - s * y + scene.shift_xy[0], s * x + c * y + scene.shift_xy[1]


def _top(scene: Scene) -> Array:
    """1 on the part's upper surface, 0 in holes and on the belt."""
    height = to_picture(scene, nominal_layers(scene.size_hw, None)[..., 0], scene.turn_rad)
    return (height > -4).astype(np.float32)


def _around(scene: Scene, x: float, y: float, turn_rad: float) -> tuple[Array, Array]:
    """Coordinates of the fine grid about a point, turned."""
    grid_x, grid_y = fine_grid(scene.size_hw)
    c, s = math.cos(turn_rad), math.sin(turn_rad)
    return f32(c * (grid_x - x) + s * (grid_y - y)), f32(c * (grid_y - y) - s * (grid_x - x))


def _blob(rng: np.random.Generator, scene: Scene, x: float, y: float, radius: float, *, ragged: float) -> Array:
    """About the distance inside an irregular oval, negative outside, in design pixels."""
    along, across = _around(scene, x, y, rng.uniform(0, math.pi))
    oval = radius - np.hypot(along, across * rng.uniform(1.0, 1.6))
    return f32(oval + ragged * radius * (0.7 * _noise(rng, scene, 7.0) + 0.3 * _noise(rng, scene, 2.5)))


def _noise(rng: np.random.Generator, scene: Scene, cell: float) -> Array:
    """Smooth noise of standard deviation near 1 that varies over about `cell` design pixels."""
    h, w = (n * FINE for n in scene.size_hw)
    step = cell * fine_scale(scene.size_hw)
    # Finer than the cell, then blurred: the lattice of a coarse grid would show as square corners.
    shape = (math.ceil(3 * h / step), math.ceil(3 * w / step))
    grains = cv2.GaussianBlur(rng.standard_normal(shape, dtype=np.float32), (0, 0), 1.2)
    return f32(cv2.resize(grains * 4.3, (w, h), interpolation=cv2.INTER_CUBIC))
