"""Identity, rendering and randomness."""

from __future__ import annotations

import unicodedata

import numpy as np
import polars as pl

from curation.core.record import UNSURE, draws, key_of, render_query


def test_an_instruction_is_rendered_once():
    assert render_query("Find it", "what?") == "Instruct: Find it\nQuery: what?"
    assert render_query("", "what?") == "what?"


def test_key_is_identity_and_nothing_coarser():
    assert key_of("caf\u00e9") == key_of("cafe\u0301")
    assert key_of("find . -size 0k") != key_of("find . ! -size 0k")
    assert len(key_of("")) == 16


def test_draws_depend_on_nothing_but_seed_purpose_and_number():
    some, more = draws(1, "a", np.arange(3)), draws(1, "a", np.arange(1000))
    assert (some == more[:3]).all()
    assert len(set(more.tolist())) == 1000
    assert not (draws(2, "a", np.arange(3)) == some).any()
    assert not (draws(1, "b", np.arange(3)) == some).any()
    assert some.tolist() == [12764799229332509812, 6748480807561188557, 13046323003626822187]  # forever: builds hang on it
    assert abs(float((more / 2**64).mean()) - 0.5) < 0.05


def test_characters_that_need_no_look_are_never_changed_and_never_joined():
    signs = pl.Series([chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000])
    sure = signs.filter(~signs.str.contains(UNSURE)).to_list()
    assert len(sure) > 30_000
    assert not [sign for sign in sure if not unicodedata.is_normalized("NFC", sign) or unicodedata.combining(sign)]
    # what joins to the letter before it is a mark or a jamo
    assert not [sign for sign in sure if unicodedata.category(sign)[0] == "M" or "\u1100" <= sign < "\u1200"]
