"""What the units so far yield on every frame of every clip, in one form of the program.

A state input reads what its output was on the frame before. Where the unit that makes it has not been reached yet,
that is what it was when the whole program ran over the clips in the same form, before any unit was changed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from mattecompress.program import Program
from mattecompress.reconstruction.forms import Form, replacement
from mattecompress.reconstruction.store import Store, Value
from mattecompress.reconstruction.units import Unit, cut_units, unit_module, whole_unit
from mattecompress.running.feed import CalibrationError, Feed
from mattecompress.side_by_side import side_by_side

Place = tuple[int, int]


class Prefix:
    """Units are run one after another in order; what no later unit reads is forgotten.

    program: with fake quantizers; its tensors may change between units.
    form: which of its quantizers act.
    """

    def __init__(self, program: Program, form: Form, feed: Feed, store: Store) -> None:
        self.program, self.form, self.feed, self.store = program, form, feed, store
        self.units = cut_units(program)
        self._replace = replacement(form, program)
        self._zeros = [feed.zeros(clip) for clip in range(len(feed))]
        outputs = program.outputs
        self._sources = {pair.input: outputs[pair.output] for pair in program.states}
        self._last = self._last_uses()
        if self._reads_ahead():
            self.run(whole_unit(program))

    @torch.no_grad()
    def run(self, unit: Unit) -> None:
        """Compute a unit on every frame, states carried through each clip, and keep what it yields.

        Raises:
            CalibrationError: a value is not finite.
        """
        module = unit_module(self.program, unit, self._replace)

        def run_clip(clip: int) -> None:
            for frame in range(self.feed.length(clip)):
                self._keep(unit, (clip, frame), module(*self.inputs(unit, (clip, frame))))

        side_by_side(run_clip, range(len(self.feed)))

    def _keep(self, unit: Unit, place: Place, outputs: Sequence[Value]) -> None:
        for node, value in zip(unit.outputs, outputs, strict=True):
            if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
                clip, frame = place
                raise CalibrationError(
                    f"%{node.name} holds values that are not finite on frame {frame + 1} of clip {clip + 1}: "
                    "check the clips and the weights"
                )
            self.store.put(self._key(node, place), value)

    def inputs(self, unit: Unit, place: Place) -> list[Value]:
        """What a unit reads on one frame."""
        return [self.value(node, place) for node in unit.inputs]

    def outputs(self, unit: Unit, place: Place) -> list[Value]:
        """What a unit yielded on one frame."""
        return [self.value(node, place) for node in unit.outputs]

    def value(self, node: fx.Node, place: Place) -> Value:
        """The value of an input of the program or of a unit's output on one frame."""
        clip, frame = place
        if node.op != "placeholder":
            return self.store.get(self._key(node, place))
        name = str(node.target)
        if name not in self._sources:
            return self.feed.frame(clip, frame)[name]
        return self._zeros[clip][name] if frame == 0 else self.value(self._sources[name], (clip, frame - 1))

    def forget(self, position: int) -> None:
        """Drop what no unit behind the one at `position` reads."""
        for node, last in self._last.items():
            if last == position:
                self._drop(node)
        for node in self.units[position].outputs:
            if self._last.get(node, -1) <= position:
                self._drop(node)

    def _drop(self, node: fx.Node) -> None:
        for place in self.feed.places:
            self.store.drop(self._key(node, place))

    def _key(self, node: fx.Node, place: Place) -> tuple[str, str, Place]:
        return self.form, node.name, place

    def _computed(self, node: fx.Node) -> fx.Node | None:
        """The computed node behind a value: through states, None for a frame."""
        seen = set()
        while node.op == "placeholder":
            if node in seen or str(node.target) not in self._sources:
                return None
            seen.add(node)
            node = self._sources[str(node.target)]
        return node

    def _last_uses(self) -> dict[fx.Node, int]:
        """The last unit that reads each value."""
        reads = [
            (self._computed(node), position)
            for position, unit in enumerate(self.units)
            for node in unit.inputs
        ]
        return {node: position for node, position in reads if node is not None}

    def _reads_ahead(self) -> bool:
        """Whether a unit reads a state that a later one makes."""
        made = {node: position for position, unit in enumerate(self.units) for node in unit.outputs}
        pairs = (
            (self._computed(node), position)
            for position, unit in enumerate(self.units)
            for node in unit.inputs
        )
        return any(node is not None and made[node] > position for node, position in pairs)
