"""outputs  become  outputs, features F and taught F*: what an encoder hands on, and what its teacher's would, of

    L = mean over all elements of (F - F*)^2

with the teacher's encoder written beside the student's and frozen: its tensors are constants that no optimizer sees.
The training loop puts the loss on the two, and the loss of the routed share on the routers that it finds.

Source: MEMatte (AAAI 2025), section 3.4 and its published program, whose teacher is the ViTMatte that the student was
made from; of the student's attention the paper compares nothing, so neither is tapped.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from mattecompress.analysis.scopes import handed_on, lies_in
from mattecompress.grafting import graft
from mattecompress.pipeline import Context, Pass, PreconditionError, expect
from mattecompress.program import Level, Program, owner_of

FEATURES = "features"
TAUGHT = "taught"
TEACHER = "teacher"


@dataclass(frozen=True)
class AttachDistillation(Pass):
    """Let a program also return what distillation compares; afterwards its features and a teacher's are outputs.

    encoder: path of the module whose features are compared, in student and teacher.
    remove: take both and the teacher off again, before the program is lowered.
    """

    encoder: str = "backbone"
    remove: bool = False
    name: ClassVar[str] = "attach-distillation"

    def requires(self, program: Program) -> None:
        """The encoder hands on one tensor, and nothing is lowered."""
        if not self.remove:
            expect(program.level is not Level.LOWERED, "the program is lowered: nothing can be learned")
            self._features(program)

    def ensures(self, program: Program) -> None:
        """Both are outputs, or neither is."""
        found = FEATURES in program.output_names, TAUGHT in program.output_names
        expect(found == (not self.remove,) * 2, f"outputs are {', '.join(program.output_names)}")

    def apply(self, program: Program, context: Context) -> str | None:
        """The teacher is that of the context: in a pipeline that begins with a float program, this program.

        Raises:
            PreconditionError: there is no teacher, or it has other inputs or no such encoder.
        """
        if (FEATURES in program.output_names) != self.remove:
            return None
        if self.remove:
            program.keep_outputs(*(name for name in program.output_names if name not in (FEATURES, TAUGHT)))
            program.scopes = {
                scope: kind for scope, kind in program.scopes.items() if not lies_in(scope, TEACHER)
            }
            return "teacher removed"
        teacher = _frozen(self._teacher(program, context))
        inputs = dict(zip(program.input_names, program.inputs, strict=True))
        taught = graft(program, teacher, inputs, TEACHER, program.graph.output_node())[TAUGHT]
        program.add_output(FEATURES, self._features(program))
        program.add_output(TAUGHT, taught)
        return f"features of {self.encoder} beside those of {teacher.name}"

    def _teacher(self, program: Program, context: Context) -> Program:
        given = context.teacher
        if given is None:
            raise PreconditionError(
                "there is no teacher: begin the pipeline with the float program, or give Context(teacher=...)"
            )
        expect(
            given.input_names == program.input_names,
            f"the teacher takes {', '.join(given.input_names)}, the program {', '.join(program.input_names)}",
        )
        teacher = given.clone()
        features = self._features(teacher)
        teacher.keep_outputs()
        teacher.add_output(TAUGHT, features)
        teacher.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        teacher.scopes = {
            scope: kind for scope, kind in teacher.scopes.items() if lies_in(scope, self.encoder)
        }
        kinds = {type(teacher.module(node)).__name__ for node in teacher.called_modules()}
        expect(not kinds, f"the teacher's encoder holds {', '.join(sorted(kinds))}, which training moves")
        return teacher

    def _features(self, program: Program) -> fx.Node:
        """The one tensor that others read from the encoder."""
        read = handed_on(program, self.encoder)
        expect(read, f"no operation of {program.name} comes from a module '{self.encoder}'")
        expect(len(read) == 1, f"{len(read)} tensors leave '{self.encoder}', expected one")
        return read[0]


def _frozen(teacher: Program) -> Program:
    """The program with constants instead of parameters."""
    module = teacher.graph_module
    for name, value in list(module.named_parameters()):
        owner, leaf = owner_of(module, name)
        delattr(owner, leaf)
        owner.register_buffer(leaf, value.detach())
    return teacher
