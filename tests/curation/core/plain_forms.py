"""The normalised form, character by character in plain Python: what ours is checked against."""

from __future__ import annotations

import unicodedata

# Unicode 16, DerivedCoreProperties.txt: Default_Ignorable_Code_Point
IGNORABLE = [
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F),
    (0x202A, 0x202E), (0x2060, 0x206F), (0x3164, 0x3164), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF),
]  # fmt: skip
OTHERS = [(0x0, 0x8), (0xE, 0x1B), (0x7F, 0x84), (0x86, 0x9F), (0xFFF9, 0xFFFB)]  # controls, annotations
INVISIBLE = {point: None for first, last in [*IGNORABLE, *OTHERS] for point in range(first, last + 1)}
LETTERS = [(0x24B6, 0x24EA), (0x1F130, 0x1F14A), (0x1F150, 0x1F16A), (0x1F170, 0x1F18A)]  # in circles and squares
SIGNS = set("#%&*@\u2030\u2031\u066a\xa7")


def is_word(char: str) -> bool:
    category = unicodedata.category(char) if char else "Zs"
    return category[0] in "LM" or category in ("Nd", "Nl", "Pc") or any(a <= ord(char) < b for a, b in LETTERS if char)


def is_sign(char: str) -> bool:
    category = unicodedata.category(char)
    return char in SIGNS or ((category[0] == "S" or category == "No") and char not in "`\u2800")


def form(text: str) -> str | None:
    """Words and signs with one space between them, or None."""
    folded = unicodedata.normalize("NFKC", text.translate(INVISIBLE)).lower().replace("\u2044", "/").replace("\u2215", "/")
    parts = []
    for at, char in enumerate(folded):
        if is_word(char):
            parts.append(char)
        else:
            sign = placed(folded, at) if char in "-/!()" else char if is_sign(char) else ""
            parts.append(f" {sign} ")
    return " ".join("".join(parts).split()) or None


def placed(text: str, at: int) -> str:
    """The sign that one of - / ! ( ) is by its place, or nothing."""
    char, before, after = text[at], text[at - 1] if at else " ", text[at + 1 : at + 2]
    if char == "-":
        start = (" " + text[:at]).rstrip("-")[-1]
        opens = is_word(after) and (start.isspace() or start in "([{<>=+*/&|^~,:;!")
        closes = at > 0 and is_word(start) and (not after or after in ".;!?)")
        return "\u2212" if after != "-" and (after in ("=", ">") or start == "<" or opens or closes) else ""
    if char == "/":
        digits = all(one and one in "0123456789" for one in (before, after))
        return "/" if digits or not (is_word(before) and is_word(after)) else ""
    if char == "!":
        opens = before.isspace() or before in "([{<>=+*/&|^~,:;"
        return "\u00ac" if after == "=" or (opens and (is_word(after) or after == "(")) else ""
    eyes = before in ":;" or (before in "-'^" and at > 1 and text[at - 2] in ":;")
    return "" if not eyes or is_word(after) else "\u2639" if char == "(" else "\u263a"
