"""Many rows of text cells at once, where every quote and every width is in order; all else is left to the csv module."""

from __future__ import annotations

import numpy as np
import polars as pl

from curation.read.blocks import INLINE, texts_at

QUOTE, LINE, RETURN = b'"\n\r'


def columns_of(
    block: bytes, delimiter: str, quoting: bool, width: int, last: bool, most: int = 1 << 40
) -> tuple[list[pl.Series], int] | None:
    """Return the columns of the whole rows of a block, and how many bytes they take; None where anything is odd.

    Whether a byte is between quotes follows from the number of quotes before it. Where each quote that opens stands at
    the beginning of a cell and each that closes at its end, but for pairs of them within one, this is what the csv
    module reads in strict mode. Blank lines are no rows.

    Args:
        block: whole lines of UTF-8, the first of which begins a row.
        delimiter: one character.
        quoting: whether quotes mean anything.
        width: how many cells a row has.
        last: whether the file ends with the block, and with it the last row.
        most: bytes that a row may take.
    """
    lone = block.count(b"\r") != block.count(b"\r\n")
    if lone or b"\0" in block or len(delimiter.encode()) > 1:
        return None
    block = block if block.endswith(b"\n") else block + b"\n"
    signs = np.frombuffer(block, np.uint8)
    marks = (signs == ord(delimiter)) | (signs == LINE)
    doubled = None
    if quoting and b'"' in block:
        quotes = signs == QUOTE
        within = np.bitwise_xor.accumulate(quotes.view(np.uint8)).view(bool)
        doubled = _doubled(signs, marks, np.flatnonzero(quotes), within)
        if doubled is None:
            return None
        marks &= ~within
    ends = np.flatnonzero(marks)
    rows = np.flatnonzero(signs[ends] == LINE)  # the last cell of each row
    if not len(rows) or (last and ends[rows[-1]] != len(block) - 1):
        return None
    ends, used = ends[: rows[-1] + 1], int(ends[rows[-1]]) + 1
    starts = np.concatenate([[0], ends[:-1] + 1])
    if b"\r" in block:
        ends = ends - ((signs[ends] == LINE) & (ends > starts) & (signs[ends - 1] == RETURN))
    full = _in_rows(starts, ends, rows, width)
    if full is None or (len(block) > most and (full[1][:, -1] - full[0][:, 0]).max(initial=0) > most):
        return None
    padded, columns = block + bytes(INLINE), zip(*(one.T for one in full), strict=True)
    return [_texts(padded, signs, starts, ends, doubled) for starts, ends in columns], used


def _doubled(signs: np.ndarray, marks: np.ndarray, at: np.ndarray, within: np.ndarray) -> np.ndarray | None:
    """Return the places of quotes that are doubled within a cell, None where a quote stands where none may."""
    opens = within[at]
    begins, closes = at[opens], at[~opens]
    before = begins[begins > 0] - 1
    after = closes + 1  # within the block, as that ends with a line
    again = signs[after] == QUOTE
    whole = (marks[before] | (signs[before] == QUOTE)).all() and (again | marks[after] | (signs[after] == RETURN)).all()
    return closes[again] if whole else None


def _in_rows(starts: np.ndarray, ends: np.ndarray, rows: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return starts and ends as (rows, width), without blank lines; None where a row has another width."""
    cells = np.diff(rows, prepend=-1)
    blank = (cells == 1) & (starts[rows] == ends[rows])
    if not ((cells == width) | blank).all():
        return None
    if blank.any():
        kept = np.ones(len(starts), bool)
        kept[rows[blank]] = False
        starts, ends = starts[kept], ends[kept]
    return starts.reshape(-1, width), ends.reshape(-1, width)


def _texts(padded: bytes, signs: np.ndarray, starts: np.ndarray, ends: np.ndarray, doubled: np.ndarray | None) -> pl.Series:
    """Return the cells of a column without their quotes, those doubled within taken once; without `doubled` as they are."""
    quoted = signs[starts] == QUOTE if doubled is not None else np.zeros(1, bool)
    if doubled is None or not quoted.any():
        return texts_at(padded, starts, ends)
    texts = texts_at(padded, starts + quoted, ends - quoted)
    pairs = np.flatnonzero(np.searchsorted(doubled, starts) < np.searchsorted(doubled, ends))
    return texts.scatter(pairs, texts.gather(pairs).str.replace_all('""', '"', literal=True)) if len(pairs) else texts
