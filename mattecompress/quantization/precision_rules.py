"""Mixed precision in words: `decoder.*:w4a8` gives bits to the layers of a region or path, `head:float` leaves them."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mattecompress.facts import Precision
from mattecompress.modules.quantizer import check_bits
from mattecompress.options import OptionError


@dataclass(frozen=True)
class Rule:
    """Bits for the layers whose path or region matches a pattern.

    weight_bits, activation_bits: None leaves what the layer would have without the rule.
    stays_float: the layers are not quantized at all.
    """

    pattern: str
    weight_bits: int | None = None
    activation_bits: int | None = None
    stays_float: bool = False

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """From `PATTERN:w4a8`, `PATTERN:w4`, `PATTERN:a8` or `PATTERN:float`.

        Raises:
            OptionError: the text is none of these, or a quantizer cannot have so many bits.
        """
        pattern, _, what = text.rpartition(":")
        bits = re.fullmatch(r"(?:w(\d+))?(?:a(\d+))?", what)
        if not pattern or not what or (bits is None and what != "float"):
            raise OptionError(
                f"rule '{text}': expected PATTERN:w4a8, PATTERN:w4, PATTERN:a8 or PATTERN:float"
            )
        if bits is None:
            return cls(pattern, stays_float=True)
        weight, activation = (None if part is None else int(part) for part in bits.groups())
        for kind, count in (("w", weight), ("a", activation)):
            if count is not None:
                check_bits(count, f"rule '{text}': {kind}")
        return cls(pattern, weight, activation)

    def matches(self, labels: Iterable[str]) -> bool:
        """Whether the pattern fits a layer's path or region."""
        return matches_any(self.pattern, labels)

    def applied(self, precision: Precision) -> Precision:
        """The precision, with the rule's bits where it names some."""
        weight, activation = self.weight_bits, self.activation_bits
        return Precision(weight or precision.weight_bits, activation or precision.activation_bits)


def matches_any(pattern: str, labels: Iterable[str]) -> bool:
    """Whether a shell-like pattern fits one of the labels."""
    return any(fnmatchcase(label, pattern) for label in labels)


def last_match(rules: Sequence[Rule], labels: Sequence[str]) -> Rule | None:
    """The rule that decides: the last that matches."""
    return next((rule for rule in reversed(rules) if rule.matches(labels)), None)
