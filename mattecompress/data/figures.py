"""People made of smooth articulated shapes and strands of hair, drawn with exact coverage at any moment."""

from dataclasses import dataclass

import numpy as np

from mattecompress.data import drawing
from mattecompress.data.drawing import Array, Layer, Point, Texture, Window

SKIN = np.array(
    [
        [0.98, 0.85, 0.76],
        [0.93, 0.75, 0.62],
        [0.85, 0.63, 0.48],
        [0.70, 0.48, 0.34],
        [0.50, 0.33, 0.23],
        [0.32, 0.2, 0.14],
    ],
    np.float32,
)
HAIR = np.array(
    [[0.05, 0.04, 0.04], [0.18, 0.1, 0.06], [0.35, 0.2, 0.1], [0.6, 0.42, 0.2], [0.85, 0.7, 0.42], [0.5, 0.18, 0.08],
     [0.55, 0.55, 0.55], [0.88, 0.88, 0.86]],
    np.float32,
)  # fmt: skip
ARM_POSES = ((0.15, 0.1), (0.7, -1.5), (2.5, 0.5), (0.35, -1.9), (0.5, -2.4), (1.5, 0.2), (0.25, -0.5))


@dataclass(frozen=True)
class Wave:
    """A value that sways about `base`: the sum of sines with their own amplitudes, periods (frames), phases."""

    base: float
    sines: tuple[tuple[float, float, float], ...]

    def at(self, time: float) -> float:
        """The value at `time` frames."""
        sway = sum(a * np.sin(2 * np.pi * time / period + phase) for a, period, phase in self.sines)
        return float(self.base + sway)


def sample_wave(rng: np.random.Generator, base: float, amplitude: float, pace: float = 1.0) -> Wave:
    """A random wave of two sines with periods of 12 to 90 frames divided by `pace`."""
    sines = []
    for share in (1.0, 0.35):
        period = float(rng.uniform(30, 90) * (1.0 if share == 1 else 0.4) / pace)
        sines.append(
            (amplitude * share * float(rng.uniform(0.2, 1)), period, float(rng.uniform(0, 2 * np.pi)))
        )
    return Wave(base, tuple(sines))


@dataclass(frozen=True)
class Hair:
    """Strands rooted on the head: polar roots, shapes and shades; lengths in head heights, width in pixels."""

    colour: Array
    root: Array
    depth: Array
    length: Array
    spread: Array
    weight_down: Array
    curl: Array
    curl_turns: float
    phase: Array
    shade: Array
    width: float
    mass: Point
    behind: bool


@dataclass(frozen=True)
class Arm:
    """Angles of one arm in radians and whether it passes in front of the body."""

    side: int
    shoulder: Wave
    elbow: Wave
    front: bool
    open_hand: bool


@dataclass(frozen=True)
class Person:
    """Everything that stays the same about a person, and the waves that move them; sizes in head heights."""

    x: Wave
    y: Wave
    head: Wave
    lean: Wave
    tilt: Wave
    yaw: Wave
    stride: Wave
    sway: Wave
    arms: tuple[Arm, Arm]
    shoulders: float
    hips: float
    girth: float
    face: Point
    skin: Array
    top: Texture
    bottom: Texture
    hair: Hair
    cap: Array | None
    headphones: bool
    glasses: bool
    short_sleeves: bool
    light: float
    softness: float
    wrinkles: tuple[float, float, float]


def sample_person(rng: np.random.Generator, height: int, width: int) -> Person:
    """A random person placed for a frame of `height` x `width` pixels, from close-up to full body."""
    unit = min(height, width)
    view = rng.choice(["close", "call", "medium", "full"], p=[0.2, 0.4, 0.25, 0.15])
    low, high = {"close": (0.42, 0.6), "call": (0.26, 0.42), "medium": (0.16, 0.26), "full": (0.11, 0.14)}[
        str(view)
    ]
    head = unit * float(rng.uniform(low, high))
    top_of_head = (
        float(rng.uniform(-0.1, 0.35)) * unit if view != "full" else float(rng.uniform(0.02, 0.12)) * unit
    )
    pace = float(rng.choice([0.6, 1.0, 2.0], p=[0.4, 0.4, 0.2]))
    travel = unit * float(rng.choice([0.02, 0.08, 0.25], p=[0.45, 0.35, 0.2]))
    pose = float(rng.choice([0.06, 0.25, 0.6], p=[0.4, 0.4, 0.2]))
    skin = _mix(rng, SKIN)
    return Person(
        x=sample_wave(rng, width * float(rng.uniform(0.2, 0.8)), travel, pace),
        y=sample_wave(rng, top_of_head + head * 1.25, travel * 0.3, pace),
        head=sample_wave(rng, head, head * float(rng.uniform(0, 0.12)), pace * 0.7),
        lean=sample_wave(rng, float(rng.normal(0, 0.08)), 0.12 * pose / 0.25, pace),
        tilt=sample_wave(rng, float(rng.normal(0, 0.1)), 0.2, pace),
        yaw=sample_wave(rng, float(rng.normal(0, 0.4)), 0.5, pace),
        stride=sample_wave(rng, 0.0, pose, pace),
        sway=sample_wave(rng, 0.0, 0.25, pace * 1.5),
        arms=(_sample_arm(rng, -1, pose, pace), _sample_arm(rng, 1, pose, pace)),
        shoulders=float(rng.uniform(0.62, 0.95)),
        hips=float(rng.uniform(0.35, 0.6)),
        girth=float(rng.uniform(0.8, 1.35)),
        face=(float(rng.uniform(0.34, 0.42)), float(rng.uniform(0.46, 0.53))),
        skin=skin,
        top=drawing.sample_texture(rng, _cloth(rng), _cloth(rng)).fit(head),
        bottom=drawing.sample_texture(rng, _cloth(rng), _cloth(rng)).fit(head),
        hair=_sample_hair(rng, head),
        cap=_cloth(rng) if rng.random() < 0.12 else None,
        headphones=bool(rng.random() < 0.1),
        glasses=bool(rng.random() < 0.2),
        short_sleeves=bool(rng.random() < 0.4),
        light=float(rng.uniform(-0.35, 0.35)),
        softness=float(rng.choice([1.0, 1.4, 2.2, 3.5], p=[0.4, 0.35, 0.2, 0.05])) * max(1.0, unit / 288),
        wrinkles=(float(rng.uniform(0, 0.025)), float(rng.uniform(3, 9)), float(rng.uniform(0, 6))),
    )


def draw_person(layer: Layer, person: Person, time: float) -> None:
    """Draw `person` as they are at `time` (frames) on top of `layer`."""
    skeleton = _Skeleton(person, time)
    if person.hair.behind:
        _draw_hair_mass(layer, person, skeleton)
        _draw_strands(layer, person, skeleton, slice(0, None, 2))
    for arm in person.arms:
        if not arm.front:
            _draw_arm(layer, person, skeleton, arm, time)
    _draw_legs(layer, person, skeleton, time)
    _draw_torso(layer, person, skeleton)
    if not person.hair.behind:
        _draw_hair_mass(layer, person, skeleton)
    _draw_head(layer, person, skeleton)
    _draw_strands(layer, person, skeleton, slice(1, None, 2) if person.hair.behind else slice(None))
    _draw_accessories(layer, person, skeleton)
    for arm in person.arms:
        if arm.front:
            _draw_arm(layer, person, skeleton, arm, time)


def _mix(rng: np.random.Generator, palette: Array) -> Array:
    place = float(rng.uniform(0, len(palette) - 1))
    low = int(place)
    part = np.float32(place - low)
    colour = palette[low] * (1 - part) + palette[min(low + 1, len(palette) - 1)] * part
    return np.clip(colour + rng.normal(0, 0.03, 3).astype(np.float32), 0, 1)


def _cloth(rng: np.random.Generator) -> Array:
    grey = float(rng.beta(0.9, 1.1))
    vivid = float(rng.beta(1.0, 1.6))
    return np.clip(grey + vivid * rng.uniform(-0.5, 0.5, 3), 0.02, 0.98).astype(np.float32)


def _sample_arm(rng: np.random.Generator, side: int, pose: float, pace: float) -> Arm:
    shoulder, elbow = ARM_POSES[int(rng.choice(len(ARM_POSES), p=[0.34, 0.12, 0.1, 0.14, 0.1, 0.06, 0.14]))]
    shoulder += float(rng.normal(0, 0.12))
    elbow += float(rng.normal(0, 0.2))
    return Arm(
        side=side,
        shoulder=sample_wave(rng, shoulder, pose * 0.8, pace),
        elbow=sample_wave(rng, elbow, pose, pace * 1.4),
        front=bool(elbow < -1.2 or rng.random() < 0.6),
        open_hand=bool(rng.random() < 0.6),
    )


def _sample_hair(rng: np.random.Generator, head: float) -> Hair:
    style = rng.choice(["short", "curly", "long", "bald"], p=[0.36, 0.2, 0.38, 0.06])
    count, length, weight_down, curl, reach = {
        "short": (420, (0.08, 0.3), 0.1, 0.03, 1.9),
        "curly": (700, (0.2, 0.55), 0.15, 0.12, 2.1),
        "long": (800, (0.6, 1.9), 1.3, 0.05, 2.0),
        "bald": (60, (0.02, 0.08), 0.0, 0.02, 2.0),
    }[str(style)]
    count = int(count * rng.uniform(0.6, 1.3))
    longest = float(rng.uniform(*length))
    root = rng.uniform(-reach, reach, (count, 1))
    parted = np.clip(np.abs(root) / 0.9, 0.2, 1) if style == "long" else np.ones_like(root)
    mass = {"short": 0.05, "curly": 0.18, "long": 0.1, "bald": -0.05}[str(style)]
    wild = float(rng.uniform(0.15, 0.6))
    loose = rng.random((count, 1)) < rng.uniform(0.03, 0.25)
    heavy = weight_down * rng.uniform(0.7, 1.2) * np.where(loose, rng.uniform(0.1, 0.7, (count, 1)), 1)
    return Hair(
        colour=_mix(rng, HAIR) if rng.random() < 0.93 else _cloth(rng),
        root=root.astype(np.float32),
        depth=rng.uniform(0.75, 1.08, (count, 1)).astype(np.float32),
        length=(longest * parted * rng.uniform(0.45, 1.1, (count, 1))).astype(np.float32),
        spread=(rng.normal(0, wild, (count, 1)) * np.where(loose, 2, 1)).astype(np.float32),
        weight_down=np.minimum(heavy, 1).astype(np.float32),
        curl=(curl * rng.uniform(0, 1.5, (count, 1)) * rng.uniform(0.3, 1)).astype(np.float32),
        curl_turns=float(rng.uniform(3, 14)),
        phase=rng.uniform(0, 6.3, (count, 1)).astype(np.float32),
        shade=rng.uniform(0.7, 1.45, (count, 1)).astype(np.float32),
        width=float(np.clip(head * rng.uniform(0.004, 0.014), 0.12, 1.2)),
        mass=(mass, longest),
        behind=bool(style == "long"),
    )


class _Skeleton:
    """Joints of a person at one time, in pixels."""

    def __init__(self, person: Person, time: float) -> None:
        self.size = max(person.head.at(time), 4.0)
        lean, tilt = person.lean.at(time), person.lean.at(time) * 0.6 + person.tilt.at(time)
        self.down = np.array([-np.sin(lean), np.cos(lean)])
        self.right = np.array([np.cos(lean), np.sin(lean)])
        self.neck = np.array([person.x.at(time), person.y.at(time)])
        self.tilt = tilt
        self.head_down = np.array([-np.sin(tilt), np.cos(tilt)])
        self.head_right = np.array([np.cos(tilt), np.sin(tilt)])
        self.head = self.neck - self.head_down * 0.68 * self.size
        self.yaw = float(np.clip(person.yaw.at(time), -1, 1))
        self.sway = person.sway.at(time)

    def body(self, across: float, down: float) -> Point:
        place = self.neck + self.size * (self.right * across + self.down * down)
        return float(place[0]), float(place[1])

    def on_head(self, across: float, down: float) -> Point:
        place = self.head + self.size * (self.head_right * across + self.head_down * down)
        return float(place[0]), float(place[1])


def _paint(layer: Layer, window: Window, distance: Array, colour: Array, person: Person) -> None:
    colour = colour if colour.ndim == 3 else colour[:, None, None]
    layer.over(window, drawing.coverage(distance, person.softness), colour)


def _shaded(colour: Array, across: Array, light: float) -> Array:
    """Colour of a round limb: darker towards its sides, brighter on the side of the light."""
    side = np.clip(across, -1, 1)
    shade = np.float32(1.0) - np.float32(0.28) * side * side + np.float32(light) * side
    return np.clip((colour if colour.ndim == 3 else colour[:, None, None]) * shade, 0, 1)


def _draw_limb(
    layer: Layer, person: Person, ends: tuple[Point, Point], radii: Point, cloth: Texture | Array, size: float
) -> None:
    window = layer.window(list(ends), max(radii) + person.softness + 1)
    if window is None:
        return
    distance, along, across = drawing.capsule(window, ends[0], ends[1], radii)
    if isinstance(cloth, Texture):
        amplitude, turns, phase = person.wrinkles
        fold = np.sin(np.float32(turns) * 2 * along + across * 2 + np.float32(phase))
        distance = distance + np.float32(amplitude * size) * fold
        length = float(np.hypot(ends[1][0] - ends[0][0], ends[1][1] - ends[0][1])) / size
        colour = cloth.at(across * np.float32(radii[0] / size), along * np.float32(length))
        colour = colour * (1 + np.float32(3 * amplitude) * fold)
    else:
        colour = cloth
    _paint(layer, window, distance, _shaded(colour, across, person.light), person)


def _draw_arm(layer: Layer, person: Person, skeleton: _Skeleton, arm: Arm, time: float) -> None:
    size = skeleton.size
    start = np.array(skeleton.body(arm.side * person.shoulders, 0.32))
    angle = arm.shoulder.at(time)
    upper = skeleton.down * np.cos(angle) + skeleton.right * arm.side * np.sin(angle)
    elbow = start + upper * 1.25 * size
    angle += arm.elbow.at(time)
    lower = skeleton.down * np.cos(angle) + skeleton.right * arm.side * np.sin(angle)
    wrist = elbow + lower * 1.05 * size
    thick = size * person.girth**0.5
    points = [(float(p[0]), float(p[1])) for p in (start, elbow, wrist)]
    _draw_hand(layer, person, wrist, lower, size, arm.open_hand)
    sleeve: Texture | Array = person.skin if person.short_sleeves else person.top
    _draw_limb(layer, person, (points[1], points[2]), (0.17 * thick, 0.11 * thick), sleeve, size)
    _draw_limb(layer, person, (points[0], points[1]), (0.24 * thick, 0.185 * thick), person.top, size)


def _draw_hand(layer: Layer, person: Person, wrist: Array, along: Array, size: float, fingers: bool) -> None:
    side = np.array([-along[1], along[0]])
    palm = wrist + along * 0.17 * size
    if fingers:
        for place in (-0.1, -0.035, 0.035, 0.1):
            start = palm + side * place * size
            end = start + (along + side * place * 3) * 0.3 * size
            ends = ((float(start[0]), float(start[1])), (float(end[0]), float(end[1])))
            _draw_limb(layer, person, ends, (0.045 * size, 0.035 * size), person.skin, size)
    centre = (float(palm[0]), float(palm[1]))
    window = layer.window([centre], 0.2 * size + person.softness + 1)
    if window is not None:
        turn = float(np.arctan2(along[1], along[0]))
        distance, _, across = drawing.ellipse(window, centre, (0.19 * size, 0.14 * size), turn)
        _paint(layer, window, distance, _shaded(person.skin, across, person.light), person)


def _draw_legs(layer: Layer, person: Person, skeleton: _Skeleton, time: float) -> None:
    if skeleton.body(0, 2.2)[1] > layer.alpha.shape[0] + skeleton.size:
        return
    size, swing = skeleton.size, person.stride.at(time)
    for side in (-1, 1):
        angle = side * swing * 0.6
        hip = np.array(skeleton.body(side * person.hips * 0.7, 2.5))
        thigh = skeleton.down * np.cos(angle) + skeleton.right * np.sin(angle + 0.05 * side)
        knee = hip + thigh * 1.7 * size
        bend = angle - 0.3 * abs(swing)
        foot = knee + (skeleton.down * np.cos(bend) + skeleton.right * np.sin(bend)) * 1.6 * size
        joints = [(float(p[0]), float(p[1])) for p in (hip, knee, foot)]
        thick = size * person.girth**0.5
        _draw_limb(layer, person, (joints[1], joints[2]), (0.24 * thick, 0.15 * thick), person.bottom, size)
        _draw_limb(layer, person, (joints[0], joints[1]), (0.36 * thick, 0.25 * thick), person.bottom, size)
        toe = (joints[2][0] + side * 0.25 * size, joints[2][1] + 0.12 * size)
        _draw_limb(
            layer, person, (joints[2], toe), (0.16 * size, 0.12 * size), person.skin * np.float32(0.3), size
        )


def _draw_torso(layer: Layer, person: Person, skeleton: _Skeleton) -> None:
    size, girth = skeleton.size, person.girth
    throat = (skeleton.on_head(0, 0.25), skeleton.body(0, 0.25))
    _draw_limb(layer, person, throat, (0.2 * size, 0.24 * size), person.skin * np.float32(0.92), size)
    corners = [skeleton.body(s * (person.shoulders + 0.4), d) for s in (-1, 1) for d in (-0.1, 2.9)]
    window = layer.window(corners, 0.4 * size * girth)
    if window is None:
        return
    left, right = skeleton.body(-person.shoulders, 0.36), skeleton.body(person.shoulders, 0.36)
    distance, _, _ = drawing.capsule(window, left, right, (0.25 * size, 0.25 * size))
    spine = (skeleton.body(0, 0.5), skeleton.body(0, 2.4))
    belly, _, _ = drawing.capsule(window, *spine, (0.45 * size, 0.4 * size * girth))
    distance = drawing.smooth_union(distance, belly, 0.3 * size)
    for side in (-1, 1):
        chest = skeleton.body(side * person.shoulders * 0.62, 0.6)
        hip = skeleton.body(side * person.hips * 0.6, 2.45)
        flank, _, _ = drawing.capsule(window, chest, hip, (0.4 * size * girth**0.5, 0.38 * size * girth))
        distance = drawing.smooth_union(distance, flank, 0.3 * size)
    x = (window.x - np.float32(skeleton.neck[0])) / np.float32(size)
    y = (window.y - np.float32(skeleton.neck[1])) / np.float32(size)
    u = x * np.float32(skeleton.right[0]) + y * np.float32(skeleton.right[1])
    v = x * np.float32(skeleton.down[0]) + y * np.float32(skeleton.down[1])
    neckline = np.sqrt(u * u + (v - np.float32(0.0)) ** 2) - np.float32(0.34)
    amplitude, turns, phase = person.wrinkles
    fold = np.sin(np.float32(turns) * (v + np.float32(0.4) * u) + np.float32(phase)) * np.cos(
        np.float32(turns) * u
    )
    distance = distance + np.float32(amplitude * size) * fold
    distance = np.maximum(distance, -neckline * np.float32(size))
    colour = person.top.at(u, v) * (1 + np.float32(4 * amplitude) * fold)
    _paint(
        layer,
        window,
        distance,
        _shaded(colour, u / np.float32(person.shoulders + 0.25), person.light),
        person,
    )


def _draw_head(layer: Layer, person: Person, skeleton: _Skeleton) -> None:
    size = skeleton.size
    for side in (-1, 1):
        _dot(
            layer,
            person,
            skeleton,
            (side * person.face[0], 0.03),
            (0.07, 0.12),
            person.skin * np.float32(0.85),
        )
    centre = skeleton.on_head(0, 0)
    window = layer.window([centre], size * 0.6 + person.softness)
    if window is None:
        return
    radii = (person.face[0] * size, person.face[1] * size)
    distance, u, v = drawing.ellipse(window, centre, radii, skeleton.tilt)
    jaw = np.float32(0.12 * size) * np.clip(v, 0, 1) * np.abs(u)
    _paint(layer, window, distance + jaw, _shaded(person.skin, u * np.float32(0.9), person.light), person)
    turn = skeleton.yaw * 0.16
    dark = person.hair.colour * np.float32(0.7)
    for side in (-1, 1):
        eye = (side * 0.15 + turn, -0.02)
        _dot(layer, person, skeleton, eye, (0.065, 0.035), np.array([0.95, 0.94, 0.92], np.float32))
        _dot(
            layer,
            person,
            skeleton,
            (eye[0] + turn * 0.15, eye[1]),
            (0.03, 0.034),
            np.full(3, 0.1, np.float32),
        )
        _dot(layer, person, skeleton, (eye[0], -0.11), (0.085, 0.018), dark)
    _dot(layer, person, skeleton, (turn * 1.3, 0.12), (0.045, 0.08), person.skin * np.float32(0.88))
    _dot(
        layer,
        person,
        skeleton,
        (turn, 0.28),
        (0.11, 0.03),
        person.skin * np.array([0.85, 0.5, 0.5], np.float32),
    )


def _dot(
    layer: Layer, person: Person, skeleton: _Skeleton, place: Point, radii: Point, colour: Array
) -> None:
    """An ellipse on the head; place and radii in head heights."""
    centre = skeleton.on_head(*place)
    sizes = (max(radii[0] * skeleton.size, 0.3), max(radii[1] * skeleton.size, 0.3))
    window = layer.window([centre], max(sizes) + person.softness + 1)
    if window is not None:
        distance, _, _ = drawing.ellipse(window, centre, sizes, skeleton.tilt)
        _paint(layer, window, distance, colour, person)


def _draw_hair_mass(layer: Layer, person: Person, skeleton: _Skeleton) -> None:
    extra, length = person.hair.mass
    if extra < 0:
        return
    size = skeleton.size
    drop = min(length, 1.6) * 0.62 if person.hair.behind else 0.0
    lift = 0.0 if person.hair.behind else 0.6 * extra
    top, bottom = (
        skeleton.on_head(0, -0.12 - lift),
        skeleton.on_head(0.15 * skeleton.sway, drop - 0.06 - lift),
    )
    radius = (person.face[0] + extra) * size
    window = layer.window([top, bottom], radius * 1.2 + person.softness)
    if window is None:
        return
    distance, along, across = drawing.capsule(window, top, bottom, (radius * 1.03, radius * 1.06))
    turns = np.float32(9 + person.hair.curl_turns)
    ripple = np.sin(across * turns + np.float32(person.wrinkles[2])) * np.sin(along * 7 + across * 3)
    distance = distance + np.float32(0.03 * size) * ripple
    colour = person.hair.colour[:, None, None] * (
        np.float32(0.85) + np.float32(0.2) * np.sin(across * 2 * turns)
    )
    _paint(layer, window, distance, np.clip(colour, 0, 1), person)


def _draw_strands(layer: Layer, person: Person, skeleton: _Skeleton, chosen: slice) -> None:
    hair, size = person.hair, skeleton.size
    samples = int(np.clip(hair.mass[1] * size / 0.8, 4, 400))
    s = np.linspace(0, 1, samples, dtype=np.float32)[None, :]
    root, spread = hair.root[chosen], hair.spread[chosen]
    out_x, out_y = np.sin(root), -np.cos(root)
    start_x = out_x * np.float32(person.face[0] + max(hair.mass[0], 0)) * hair.depth[chosen]
    start_y = out_y * np.float32(person.face[1] + max(hair.mass[0], 0) * 0.6) * hair.depth[
        chosen
    ] - np.float32(0.04)
    way_x, way_y = np.sin(root + spread), -np.cos(root + spread)
    length = hair.length[chosen]
    heavy = hair.weight_down[chosen]
    rise = s * (1 - heavy * s * np.float32(0.75))
    curl = hair.curl[chosen] * np.sin(s * np.float32(hair.curl_turns) + hair.phase[chosen]) * s
    x = start_x + length * way_x * rise * (1 - np.float32(0.6) * heavy) - curl * way_y
    x = x + np.float32(0.5 * skeleton.sway) * length * s * s
    y = start_y + length * way_y * rise * (1 - np.float32(0.6) * heavy) + curl * way_x
    y = y + heavy * length * s * s
    right, down = skeleton.head_right * size, skeleton.head_down * size
    centre = skeleton.head
    px = (np.float32(centre[0]) + x * np.float32(right[0]) + y * np.float32(down[0])).astype(np.float32)
    py = (np.float32(centre[1]) + x * np.float32(right[1]) + y * np.float32(down[1])).astype(np.float32)
    step = length * np.float32(size / samples)
    weight = np.float32(hair.width) * (1 - np.float32(0.7) * s) * step
    shade = hair.shade[chosen] * (1 + np.float32(0.15) * np.sin(s * 6 + hair.phase[chosen]))
    drawing.splat_strands(layer, px, py, weight, shade, hair.colour)


def _draw_accessories(layer: Layer, person: Person, skeleton: _Skeleton) -> None:
    size, turn = skeleton.size, skeleton.yaw * 0.16
    if person.glasses:
        for side in (-1, 1):
            centre = skeleton.on_head(side * 0.16 + turn, -0.02)
            window = layer.window([centre], 0.16 * size + person.softness)
            if window is not None:
                ring, _, _ = drawing.ellipse(window, centre, (0.12 * size, 0.09 * size), skeleton.tilt)
                _paint(
                    layer,
                    window,
                    np.abs(ring) - np.float32(0.016 * size),
                    np.full(3, 0.08, np.float32),
                    person,
                )
    if person.cap is not None:
        brim = (skeleton.on_head(-0.3 + 2 * turn, -0.27), skeleton.on_head(0.3 + 2 * turn, -0.27))
        _dot(layer, person, skeleton, (0.0, -0.36), (person.face[0] * 1.12, 0.24), person.cap)
        _draw_limb(layer, person, brim, (0.06 * size, 0.06 * size), person.cap * np.float32(0.8), size)
    if person.headphones:
        for side in (-1, 1):
            _dot(
                layer,
                person,
                skeleton,
                (side * (person.face[0] + 0.04), 0.0),
                (0.1, 0.17),
                np.full(3, 0.12, np.float32),
            )
