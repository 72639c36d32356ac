"""Who is in a clip: proportions, clothes, hair and the waves that move each person."""

from dataclasses import dataclass

import numpy as np

from mattecompress.data import drawing
from mattecompress.data.drawing import Array, Point, Texture

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


def _mix(rng: np.random.Generator, palette: Array) -> Array:
    place = float(rng.uniform(0, len(palette) - 1))
    low = int(place)
    part = np.float32(place - low)
    colour = palette[low] * (1 - part) + palette[min(low + 1, len(palette) - 1)] * part
    near: Array = np.clip(colour + rng.normal(0, 0.03, 3).astype(np.float32), 0, 1)
    return near


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
