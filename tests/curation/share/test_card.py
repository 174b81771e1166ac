"""What the Hub would refuse in a card is found before it is asked."""

from __future__ import annotations

import pytest

from curation.core.card import card_problems, size_of, with_yaml
from curation.core.escape import markdown_table

GOOD = {
    "language": ["en", "zh-Hans", "code"],
    "license": "mit",
    "task_categories": ["text-retrieval"],
    "size_categories": ["n<1K"],
    "tags": ["sentence-transformers"],
    "configs": [{"config_name": "faq", "data_files": [{"split": "train", "path": "faq/train-*"}]}],
    "dataset_info": [{"config_name": "faq"}],
}
TWICE = {"configs": GOOD["configs"] * 2, "dataset_info": GOOD["dataset_info"] * 2}


def problems_of(head, text="# card\n"):
    return list(card_problems(with_yaml(head, text), ["faq/train-00000-of-00001.parquet"]))


def test_a_good_card_has_none():
    assert problems_of(GOOD) == []
    assert problems_of(GOOD | {"license": "other", "license_name": "mixture-1", "license_link": "https://example.org"}) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"license": "MIT"}, "license 'MIT' is not a licence that the Hub knows"),
        ({"license": None}, "license 'None' is not a licence that the Hub knows"),
        ({"license": "other"}, "license 'other' needs a license_name of small letters, digits, dots and dashes"),
        ({"license": "other", "license_name": "a"}, "license 'other' needs a license_link"),
        ({"language": ["English"]}, "language 'English' is not an ISO 639 code"),
        ({"language": "en"}, "'language' is not a list"),
        ({"tags": [""]}, "tags '' is not a text of 1 to 100 characters"),
        (
            {"task_categories": ["retrieval"]},
            "task_categories 'retrieval' is not one of text-retrieval, feature-extraction, sentence-similarity, text-classification",
        ),
        ({"size_categories": ["big"]}, "size_categories 'big' is not one of "),
        (
            {"configs": [{"config_name": "a b", "data_files": []}], "dataset_info": [{"config_name": "a b"}]},
            "config_name 'a b' contains characters that the Hub does not allow",
        ),
        ({"configs": [{"config_name": "faq", "data_files": [{"path": "nowhere/*"}]}]}, "no file matches 'nowhere/*'"),
        ({"dataset_info": []}, "dataset_info does not describe the configs in their order"),
        (TWICE, "two configs have the same name"),
        ({"model-index": [{"name": "m", "results": [{"task": {}}]}]}, "its model-index cannot be read ("),
        ({"model-index": ["m"]}, "its model-index cannot be read ("),
        ({"model-index": "m"}, "its model-index cannot be read ("),
        ({"model-index": {"name": "m"}}, "its model-index cannot be read ("),
    ],
)
def test_what_is_wrong_is_said(change, words):
    assert any(line.startswith(words) for line in problems_of(GOOD | change))


def test_a_card_without_yaml_or_with_a_broken_one():
    assert list(card_problems("# only text\n")) == ["it does not begin with YAML between two lines of dashes"]
    assert next(card_problems("---\na: [\n---\n")).startswith("its YAML cannot be read (")


def test_sizes_and_tables():
    assert [size_of(rows) for rows in (0, 999, 1000, 6_000_000, 2 * 10**9)] == ["n<1K", "n<1K", "1K<n<10K", "1M<n<10M", "n>1B"]
    assert markdown_table(("a", "b"), [("x|y\nz", 1234)]) == "| a | b |\n| --- | --- |\n| x\\|y z | 1,234 |"
