"""What LLVM's machine model says of a loop: cycles a run, and the least that its busiest unit allows."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from mattecompress.backends.tvm.targets import Target

ANALYSER = "llvm-mca"
ITERATIONS = 100
BRANCH = re.compile(r"^((?:b|bl|b\.\w+|cbn?z|tbn?z)\s.*?)#?0x[0-9a-f]+$")
"""A branch and where it goes to, which is too far away once the loop stands alone."""


@dataclass(frozen=True)
class Cycles:
    """Cycles of one run of a loop: as scheduled, and if only the number of instructions for each unit counted."""

    scheduled: float
    limit: float


def estimate(target: Target, instructions: Sequence[str]) -> Cycles | None:
    """Cycles of a loop on a target; None where `llvm-mca` is not installed or does not know an instruction.

    instructions: one each, in the syntax of LLVM's assembler; a loop's last one may branch.
    """
    if shutil.which(ANALYSER) is None:
        return None
    command = [
        ANALYSER, f"-mtriple={target.triple}", f"-mcpu={target.cpu}", f"-mattr={','.join(target.features)}",
        f"-iterations={ITERATIONS}", "-json",
    ]  # fmt: skip
    text = "".join(BRANCH.sub(r"\1.", line.strip()) + "\n" for line in instructions)
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode or "error:" in done.stderr:
        return None
    summary = json.loads(done.stdout)["CodeRegions"][0]["SummaryView"]
    return Cycles(summary["TotalCycles"] / ITERATIONS, summary["BlockRThroughput"])
