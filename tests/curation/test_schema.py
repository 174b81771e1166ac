"""Identity, rendering and randomness."""

from __future__ import annotations

import numpy as np

from curation.schema import draws, key_of, render_query


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
