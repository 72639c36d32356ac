"""Damaged forms of things that are read: of texts by word and line, of bytes by place, and hostile archives."""

import io
import zipfile

from hypothesis import strategies as st

HOSTILE = (
    "[" * 3000,
    "9" * 6000,
    "f32[99999999999,99999999999]",
    "f32[((]",
    "f32[a*b//0]",
    "%absent",
    "@../../etc/passwd",
    "@a..b",
    "aten.conv2d.default",
    "matte.pack_signs.default(",
    "precision=w4",
    "made=x",
    "region=",
    "FakeQuantize{bits=99}",
    "BatchNorm2d{features=999999999999}",
    "inf",
    "\x00",
    "\u2028",
)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> str:
    """A text with some of its lines and words lost, doubled, exchanged or replaced."""
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 4)):
            case 0:
                del lines[place]
            case 1:
                lines.insert(place, lines[draw(st.integers(0, len(lines) - 1))])
            case 2:
                words = lines[place].split(" ")
                words[draw(st.integers(0, len(words) - 1))] = draw(
                    st.one_of(st.sampled_from(HOSTILE), st.text(max_size=8), st.sampled_from(text.split()))
                )
                lines[place] = " ".join(words)
            case 3:
                lines[place] = lines[place][: draw(st.integers(0, len(lines[place])))]
            case _:
                lines = lines[: place + 1]
        if not lines:
            return ""
    return "\n".join([*lines, ""])


@st.composite
def spoilt(draw: st.DrawFn, raw: bytes) -> bytes:
    """Bytes cut short, or with some of them changed."""
    kept = bytearray(raw[: draw(st.one_of(st.just(len(raw)), st.integers(0, len(raw))))])
    if not kept:
        return b""
    for _ in range(draw(st.integers(0, 4))):
        kept[draw(st.integers(0, len(kept) - 1))] = draw(st.integers(0, 255))
    return bytes(kept)


def archive(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()
