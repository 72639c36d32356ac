"""Drawing people: smooth articulated shapes and strands of hair, with exact coverage at any moment.

Lengths and places are given in head heights; a figure turns them into pixels.
"""

import numpy as np
from numpy.typing import NDArray

from mattecompress.data import drawing
from mattecompress.data.drawing import Array, Layer, Point, Texture, Window
from mattecompress.data.people import Arm, Person

Vector = NDArray[np.float64]

WHITE_OF_EYE = np.array([0.95, 0.94, 0.92], np.float32)
LIPS = np.array([0.85, 0.5, 0.5], np.float32)


def draw_person(layer: Layer, person: Person, time: float) -> None:
    """Draw `person` as they are at `time` (frames) on top of `layer`."""
    figure = _Figure(layer, person, time)
    long_hair = person.hair.behind
    if long_hair:
        figure.draw_hair_mass()
        figure.draw_strands(slice(0, None, 2))
    figure.draw_arms(front=False)
    figure.draw_legs()
    figure.draw_neck()
    figure.draw_torso()
    if not long_hair:
        figure.draw_hair_mass()
    figure.draw_head()
    figure.draw_strands(slice(1, None, 2) if long_hair else slice(None))
    figure.draw_accessories()
    figure.draw_arms(front=True)


class _Figure:
    """One person at one moment: the joints in pixels, and the strokes that draw the parts on a layer."""

    def __init__(self, layer: Layer, person: Person, time: float) -> None:
        self.layer, self.person, self.time = layer, person, time
        self.size = max(person.head.at(time), 4.0)
        lean = person.lean.at(time)
        self.tilt = lean * 0.6 + person.tilt.at(time)
        self.right, self.down = _axes(lean)
        self.head_right, self.head_down = _axes(self.tilt)
        self.neck: Vector = np.array([person.x.at(time), person.y.at(time)])
        self.head: Vector = self.neck - self.head_down * 0.68 * self.size
        self.turn = float(np.clip(person.yaw.at(time), -1, 1)) * 0.16
        self.sway = person.sway.at(time)

    def body(self, across: float, down: float) -> Point:
        """A place given from the neck along the axes of the body."""
        return _point(self.neck + self.size * (self.right * across + self.down * down))

    def on_head(self, across: float, down: float) -> Point:
        """A place given from the middle of the head along its axes."""
        return _point(self.head + self.size * (self.head_right * across + self.head_down * down))

    def paint(self, window: Window, distance: Array, colour: Array) -> None:
        """Lay a shape of the person's edge softness; colour (3,) or (3, h, w)."""
        filled = drawing.coverage(distance, self.person.softness)
        self.layer.over(window, filled, colour if colour.ndim == 3 else colour[:, None, None])

    def paint_round(self, window: Window, distance: Array, colour: Array, across: Array) -> None:
        """As `paint`, darker towards the sides (`across` = -1, 1) and brighter on the side of the light."""
        side = np.clip(across, -1, 1)
        shade = np.float32(1.0) - np.float32(0.28) * side * side + np.float32(self.person.light) * side
        colour = colour if colour.ndim == 3 else colour[:, None, None]
        self.paint(window, distance, np.clip(colour * shade, 0, 1))

    def limb(self, start: Point, end: Point, radii: Point, cloth: Texture | Array) -> None:
        """A tapered limb between two places in pixels; a texture gives it folds."""
        size = self.size
        sizes = (radii[0] * size, radii[1] * size)
        window = self.layer.window([start, end], max(sizes) + self.person.softness + 1)
        if window is None:
            return
        distance, along, across = drawing.capsule(window, start, end, sizes)
        if not isinstance(cloth, Texture):
            self.paint_round(window, distance, cloth, across)
            return
        amplitude, turns, phase = self.person.wrinkles
        fold = np.sin(np.float32(turns) * 2 * along + across * 2 + np.float32(phase))
        length = float(np.hypot(end[0] - start[0], end[1] - start[1])) / size
        colour = cloth.at(across * np.float32(radii[0]), along * np.float32(length))
        colour = colour * (1 + np.float32(3 * amplitude) * fold)
        self.paint_round(window, distance + np.float32(amplitude * size) * fold, colour, across)

    def dot(self, place: Point, radii: Point, colour: Array) -> None:
        """An ellipse on the head."""
        centre = self.on_head(*place)
        sizes = (max(radii[0] * self.size, 0.3), max(radii[1] * self.size, 0.3))
        window = self.layer.window([centre], max(sizes) + self.person.softness + 1)
        if window is not None:
            self.paint(window, drawing.ellipse(window, centre, sizes, self.tilt)[0], colour)

    def draw_arms(self, front: bool) -> None:
        """The arms that pass in front of the body, or those behind it."""
        for arm in self.person.arms:
            if arm.front is front:
                self._draw_arm(arm)

    def _draw_arm(self, arm: Arm) -> None:
        person, thick = self.person, self.person.girth**0.5
        start = np.array(self.body(arm.side * person.shoulders, 0.32))
        angle = arm.shoulder.at(self.time)
        upper = self.down * np.cos(angle) + self.right * arm.side * np.sin(angle)
        elbow = start + upper * 1.25 * self.size
        angle += arm.elbow.at(self.time)
        lower = self.down * np.cos(angle) + self.right * arm.side * np.sin(angle)
        wrist = elbow + lower * 1.05 * self.size
        self._draw_hand(wrist, lower, arm.open_hand)
        sleeve: Texture | Array = person.skin if person.short_sleeves else person.top
        self.limb(_point(elbow), _point(wrist), (0.17 * thick, 0.11 * thick), sleeve)
        self.limb(_point(start), _point(elbow), (0.24 * thick, 0.185 * thick), person.top)

    def _draw_hand(self, wrist: Vector, along: Vector, fingers: bool) -> None:
        side = np.array([-along[1], along[0]])
        palm = wrist + along * 0.17 * self.size
        for place in (-0.1, -0.035, 0.035, 0.1) if fingers else ():
            start = palm + side * place * self.size
            end = start + (along + side * place * 3) * 0.3 * self.size
            self.limb(_point(start), _point(end), (0.045, 0.035), self.person.skin)
        window = self.layer.window([_point(palm)], 0.2 * self.size + self.person.softness + 1)
        if window is not None:
            heading = float(np.arctan2(along[1], along[0]))
            radii = (0.19 * self.size, 0.14 * self.size)
            distance, _, across = drawing.ellipse(window, _point(palm), radii, heading)
            self.paint_round(window, distance, self.person.skin, across)

    def draw_legs(self) -> None:
        """Both legs in mid stride, with shoes."""
        if self.body(0, 2.2)[1] > self.layer.alpha.shape[0] + self.size:
            return
        person, size, thick = self.person, self.size, self.person.girth**0.5
        swing = person.stride.at(self.time)
        for side in (-1, 1):
            angle = side * swing * 0.6
            hip = np.array(self.body(side * person.hips * 0.7, 2.5))
            thigh = self.down * np.cos(angle) + self.right * np.sin(angle + 0.05 * side)
            knee = hip + thigh * 1.7 * size
            bend = angle - 0.3 * abs(swing)
            foot = knee + (self.down * np.cos(bend) + self.right * np.sin(bend)) * 1.6 * size
            self.limb(_point(knee), _point(foot), (0.24 * thick, 0.15 * thick), person.bottom)
            self.limb(_point(hip), _point(knee), (0.36 * thick, 0.25 * thick), person.bottom)
            toe = (foot[0] + side * 0.25 * size, foot[1] + 0.12 * size)
            self.limb(_point(foot), toe, (0.16, 0.12), person.skin * np.float32(0.3))

    def draw_neck(self) -> None:
        """The neck, a little darker than the face."""
        self.limb(self.on_head(0, 0.25), self.body(0, 0.25), (0.2, 0.24), self.person.skin * np.float32(0.92))

    def draw_torso(self) -> None:
        """The trunk with its neckline, folds and texture."""
        person, size = self.person, np.float32(self.size)
        corners = [self.body(s * (person.shoulders + 0.4), d) for s in (-1, 1) for d in (-0.1, 2.9)]
        window = self.layer.window(corners, 0.4 * self.size * person.girth)
        if window is None:
            return
        x, y = (window.x - np.float32(self.neck[0])) / size, (window.y - np.float32(self.neck[1])) / size
        u = x * np.float32(self.right[0]) + y * np.float32(self.right[1])
        v = x * np.float32(self.down[0]) + y * np.float32(self.down[1])
        amplitude, turns, phase = person.wrinkles
        fold = np.sin(np.float32(turns) * (v + np.float32(0.4) * u) + np.float32(phase))
        fold = fold * np.cos(np.float32(turns) * u)
        neckline = np.float32(0.34) - np.sqrt(u * u + v * v)
        distance = self._trunk(window) + np.float32(amplitude * self.size) * fold
        colour = person.top.at(u, v) * (1 + np.float32(4 * amplitude) * fold)
        across = u / np.float32(person.shoulders + 0.25)
        self.paint_round(window, np.maximum(distance, neckline * size), colour, across)

    def _trunk(self, window: Window) -> Array:
        person, size, girth = self.person, self.size, self.person.girth
        left, right = self.body(-person.shoulders, 0.36), self.body(person.shoulders, 0.36)
        distance, _, _ = drawing.capsule(window, left, right, (0.25 * size, 0.25 * size))
        parts = [(self.body(0, 0.5), self.body(0, 2.4), (0.45 * size, 0.4 * size * girth))]
        for side in (-1, 1):
            chest = self.body(side * person.shoulders * 0.62, 0.6)
            hip = self.body(side * person.hips * 0.6, 2.45)
            parts.append((chest, hip, (0.4 * size * girth**0.5, 0.38 * size * girth)))
        for start, end, radii in parts:
            part, _, _ = drawing.capsule(window, start, end, radii)
            distance = drawing.smooth_union(distance, part, 0.3 * size)
        return distance

    def draw_head(self) -> None:
        """Ears, face, eyes, brows, nose and mouth; the features slide with the turn of the head."""
        person, turn = self.person, self.turn
        for side in (-1, 1):
            self.dot((side * person.face[0], 0.03), (0.07, 0.12), person.skin * np.float32(0.85))
        centre = self.on_head(0, 0)
        window = self.layer.window([centre], self.size * 0.6 + person.softness)
        if window is None:
            return
        radii = (person.face[0] * self.size, person.face[1] * self.size)
        distance, u, v = drawing.ellipse(window, centre, radii, self.tilt)
        jaw = np.float32(0.12 * self.size) * np.clip(v, 0, 1) * np.abs(u)
        self.paint_round(window, distance + jaw, person.skin, u * np.float32(0.9))
        for side in (-1, 1):
            across = side * 0.15 + turn
            self.dot((across, -0.02), (0.065, 0.035), WHITE_OF_EYE)
            self.dot((across + turn * 0.15, -0.02), (0.03, 0.034), np.full(3, 0.1, np.float32))
            self.dot((across, -0.11), (0.085, 0.018), person.hair.colour * np.float32(0.7))
        self.dot((turn * 1.3, 0.12), (0.045, 0.08), person.skin * np.float32(0.88))
        self.dot((turn, 0.28), (0.11, 0.03), person.skin * LIPS)

    def draw_hair_mass(self) -> None:
        """The dense part of the hair under the strands."""
        hair, size = self.person.hair, self.size
        extra, length = hair.mass
        if extra < 0:
            return
        drop = min(length, 1.6) * 0.62 if hair.behind else 0.0
        lift = 0.0 if hair.behind else 0.6 * extra
        top = self.on_head(0, -0.12 - lift)
        bottom = self.on_head(0.15 * self.sway, drop - 0.06 - lift)
        radius = (self.person.face[0] + extra) * size
        window = self.layer.window([top, bottom], radius * 1.2 + self.person.softness)
        if window is None:
            return
        distance, along, across = drawing.capsule(window, top, bottom, (radius * 1.03, radius * 1.06))
        turns = np.float32(9 + hair.curl_turns)
        ripple = np.sin(across * turns + np.float32(self.person.wrinkles[2]))
        ripple = ripple * np.sin(along * 7 + across * 3)
        tone = np.float32(0.85) + np.float32(0.2) * np.sin(across * 2 * turns)
        colour = np.clip(hair.colour[:, None, None] * tone, 0, 1)
        self.paint(window, distance + np.float32(0.03 * size) * ripple, colour)

    def draw_strands(self, chosen: slice) -> None:
        """The strands `chosen`: each leaves its root outwards, curls, falls by its weight and sways."""
        hair, size = self.person.hair, self.size
        samples = int(np.clip(hair.mass[1] * size / 0.8, 4, 400))
        s = np.linspace(0, 1, samples, dtype=np.float32)[None, :]
        root, length, heavy = hair.root[chosen], hair.length[chosen], hair.weight_down[chosen]
        puff = max(hair.mass[0], 0)
        start_x = np.sin(root) * np.float32(self.person.face[0] + puff) * hair.depth[chosen]
        start_y = -np.cos(root) * np.float32(self.person.face[1] + puff * 0.6) * hair.depth[chosen]
        heading = root + hair.spread[chosen]
        way_x, way_y = np.sin(heading), -np.cos(heading)
        rise = s * (1 - heavy * s * np.float32(0.75))
        reach = 1 - np.float32(0.6) * heavy
        curl = hair.curl[chosen] * np.sin(s * np.float32(hair.curl_turns) + hair.phase[chosen]) * s
        x = start_x + length * way_x * rise * reach - curl * way_y
        x = x + np.float32(0.5 * self.sway) * length * s * s
        y = start_y - np.float32(0.04) + length * way_y * rise * reach + curl * way_x
        y = y + heavy * length * s * s
        right, down = (self.head_right * size).astype(np.float32), (self.head_down * size).astype(np.float32)
        weight = np.float32(hair.width) * (1 - np.float32(0.7) * s) * (length * np.float32(size / samples))
        shade = hair.shade[chosen] * (1 + np.float32(0.15) * np.sin(s * 6 + hair.phase[chosen]))
        drawing.splat_strands(
            self.layer,
            np.float32(self.head[0]) + x * right[0] + y * down[0],
            np.float32(self.head[1]) + x * right[1] + y * down[1],
            weight,
            shade,
            hair.colour,
        )

    def draw_accessories(self) -> None:
        """Glasses, cap, headphones."""
        person, turn = self.person, self.turn
        for side in (-1, 1) if person.glasses else ():
            centre = self.on_head(side * 0.16 + turn, -0.02)
            window = self.layer.window([centre], 0.16 * self.size + person.softness)
            if window is not None:
                radii = (0.12 * self.size, 0.09 * self.size)
                rim, _, _ = drawing.ellipse(window, centre, radii, self.tilt)
                frame = np.abs(rim) - np.float32(0.016 * self.size)
                self.paint(window, frame, np.full(3, 0.08, np.float32))
        if person.cap is not None:
            self.dot((0.0, -0.36), (person.face[0] * 1.12, 0.24), person.cap)
            left, right = self.on_head(-0.3 + 2 * turn, -0.27), self.on_head(0.3 + 2 * turn, -0.27)
            self.limb(left, right, (0.06, 0.06), person.cap * np.float32(0.8))
        for side in (-1, 1) if person.headphones else ():
            self.dot((side * (person.face[0] + 0.04), 0.0), (0.1, 0.17), np.full(3, 0.12, np.float32))


def _axes(angle: float) -> tuple[Vector, Vector]:
    """Unit vectors to the right and down, turned by `angle`."""
    cos, sin = float(np.cos(angle)), float(np.sin(angle))
    return np.array([cos, sin]), np.array([-sin, cos])


def _point(place: Vector) -> Point:
    return float(place[0]), float(place[1])
