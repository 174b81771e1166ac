"""`path:` gives the texts that `files:` gives: datasets in Hub layout are read as they are written."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet
import pytest

from curation.core.errors import SourceError
from curation.read.rows import ROW
from curation.read.sources import input_digests, table_rows, take
from curation.recipe.source import Source, Table

TEXTS = ["02108", "NA", "null", "1969-07-20", "1e5", "3.10", "True", "nan", "N/A", "007", "-", "12:30", "None"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def write(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    name = path.name.removesuffix(".gz")
    if name.endswith((".csv", ".tsv")):
        sign = "\t" if name.endswith(".tsv") else ","
        content = "".join(f"{q}{sign}{a}\n" for q, a in [("q", "a"), *((text, "x") for text in texts)])
    elif name.endswith(".jsonl") or path.parent.name == "lines":
        content = "".join(json.dumps({"q": text, "a": "x"}) + "\n" for text in texts)
    elif name.endswith(".json"):
        content = json.dumps([{"q": text, "a": "x"} for text in texts])
    elif name.endswith(".txt"):
        content = "".join(text + "\n" for text in texts)
    else:
        frame = pl.DataFrame({"q": texts, "a": ["x"] * len(texts)})
        frame.write_parquet(path) if name.endswith(".parquet") else frame.write_ipc(path, compat_level=pl.CompatLevel.oldest())
        return
    path.write_bytes(gzip.compress(content.encode()) if path.name.endswith(".gz") else content.encode())


def rows_of(table: Table, base: Path) -> pl.DataFrame:
    return pl.concat([rows.frame for rows in table_rows(table, base)], how="diagonal_relaxed")


def message(table: Table, base: Path) -> str:
    with pytest.raises(SourceError) as caught:
        rows_of(table, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def readme(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(f"---\n{text}---\n")


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "name",
    ["train.csv", "data/train.tsv", "train.json", "train.jsonl", "lines/train.json", "train.txt", "train.csv.gz",
     "train.jsonl.gz", "data/train-00000-of-00001.parquet", "train/x.arrow"],
)  # fmt: skip
def test_texts_arrive_as_written(tmp_path, name, first):
    write(tmp_path / "set" / name, TEXTS)
    column = "text" if name == "train.txt" else "q"
    keys = {"name": "s", "task": "retrieval", "fields": {"query": column, "positive": column}, "path": "set"}
    table = Source(**keys, sample="first", limit=len(TEXTS)) if first else Table(path="set")
    found = rows_of(table, tmp_path)
    assert found[column].to_list() == TEXTS
    assert found[ROW].to_list() == list(range(len(TEXTS)))
    assert set(input_digests(table, tmp_path)) == {name}


def test_what_a_readme_says_of_its_files(tmp_path):
    folder = tmp_path / "set"
    readme(folder, "configs:\n- {config_name: a, data_files: a.csv, sep: ';', names: [q, a]}\n")
    (folder / "a.csv").write_text("02108;x\nNA;y\n")
    assert rows_of(Table(path="set", config="a"), tmp_path)["q"].to_list() == ["02108", "NA"]
    readme(tmp_path / "json", "configs:\n- {config_name: b, data_files: b.json, field: rows}\n")
    (tmp_path / "json" / "b.json").write_text('{"rows": [{"q": "007", "a": "x"}]}')
    assert rows_of(Table(path="json"), tmp_path)["q"].to_list() == ["007"]
    readme(folder, "configs:\n- {config_name: a, data_files: a.csv, skiprows: 1}\n")
    said = "set: its README sets skiprows for its csv files, which is not read; name its files with `files:` and say how to read them"
    assert message(Table(path="set"), tmp_path) == said


def test_files_of_other_builders_are_refused(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.xml").write_text("<a/>")
    assert message(Table(path="set"), tmp_path) == (
        "set: holds files for the builder 'xml' of `datasets`, which are not read; name its files with `files:` and say how to read them"
    )


@pytest.mark.parametrize(
    ("split", "wanted"),
    [
        ("train", range(10)),
        ("train+test", [*range(10), 90, 91]),
        ("train[:3]", range(3)),
        ("train[8:]+test[1:]", [8, 9, 91]),
        ("train[:20%]", range(2)),
        ("train[-2:]", [8, 9]),
    ],
)
def test_splits_and_slices(tmp_path, split, wanted):
    for name, numbers in (("train-00000-of-00002", range(6)), ("train-00001-of-00002", range(6, 10)), ("test", (90, 91))):
        write(tmp_path / "set" / f"{name}.csv", [f"0{number}" for number in numbers])
    found = rows_of(Table(path="set", split=split), tmp_path)
    assert found["q"].to_list() == [f"0{number}" for number in wanted]
    assert found[ROW].to_list() == list(range(len(found)))


def test_a_split_that_is_none(tmp_path):
    write(tmp_path / "set" / "train.csv", ["1"])
    assert message(Table(path="set", split="dev"), tmp_path) == "set: no split 'dev'; there are: train"
    assert message(Table(path="set", split="train[x"), tmp_path).startswith("set: no split 'train[x'; such as train")


CLASSES = "dataset_info:\n  features:\n  - {name: q, dtype: string}\n  - name: label\n    dtype:\n      class_label: {names: {'0': bad, '1': good}}\n"


@pytest.mark.parametrize("name", ["train.csv", "train.jsonl", "train.parquet"])
def test_label_numbers_become_their_names(tmp_path, name):
    folder = tmp_path / "set"
    readme(folder, CLASSES)
    labels = [0, 1, -1, 1]
    if name == "train.csv":
        (folder / name).write_text("q,label\n" + "".join(f"x,{label}\n" for label in labels))
    elif name == "train.jsonl":
        (folder / name).write_text("".join(json.dumps({"q": "x", "label": label}) + "\n" for label in labels))
    else:
        pl.DataFrame({"q": ["x"] * 4, "label": labels}).write_parquet(folder / name)
    assert rows_of(Table(path="set"), tmp_path)["label"].to_list() == ["bad", "good", None, "good"]


def test_label_names_in_the_head_of_a_parquet_file(tmp_path):
    (tmp_path / "set").mkdir()
    features = {"info": {"features": {"label": {"names": ["bad", "good"], "_type": "ClassLabel"}}}}
    table = pa.table({"q": ["x", "y"], "label": [1, 0]}).replace_schema_metadata({"huggingface": json.dumps(features)})
    pyarrow.parquet.write_table(table, tmp_path / "set" / "train.parquet")
    assert rows_of(Table(path="set"), tmp_path)["label"].to_list() == ["good", "bad"]


def test_labels_that_are_names_or_none_at_all(tmp_path):
    folder = tmp_path / "set"
    readme(folder, CLASSES)
    (folder / "train.csv").write_text("q,label\nx,good\ny,0\n")
    assert rows_of(Table(path="set"), tmp_path)["label"].to_list() == ["good", "bad"]
    (folder / "train.csv").write_text("q,label\nx,7\n")
    assert message(Table(path="set"), tmp_path) == "set: '7' in column 'label' is not one of its labels; these are bad, good"


def test_limits_take_the_same_rows_as_of_files(tmp_path):
    write(tmp_path / "set" / "train.jsonl", [f"0{number}" for number in range(500)])
    keys = {"name": "s", "task": "retrieval", "fields": {"query": "q", "positive": "a"}}
    for sample in ("random", "first"):
        of_path, of_files = (
            take(Source(**keys, **where, sample=sample), 1, 20, tmp_path, lambda n: None)[0]
            for where in ({"path": "set"}, {"files": ["set/train.jsonl"]})
        )
        assert of_path.equals(of_files)


# --- what `path:` reads is what is digested ---


@pytest.mark.parametrize("name", ["csv", "text", "json", "parquet", "arrow", "pandas", "xml", "webdataset", "imagefolder"])
def test_a_builders_name_is_no_dataset(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.csv").write_text("q,a\n1,2\n")
    said = f"{name}: names neither a dataset of the Hub nor an existing folder; a Hub id is `org/name`; name files with `files:`, relative to the manifest's folder"
    assert message(Table(path=name), tmp_path / "elsewhere") == said
    with pytest.raises(SourceError, match="names neither"):
        input_digests(Table(path=name), tmp_path / "elsewhere")
    write(tmp_path / name / "train.csv", ["1"])  # a folder of that name is one
    assert rows_of(Table(path=name), tmp_path)["q"].to_list() == ["1"]


@pytest.mark.parametrize("path", ["hf://datasets/o/n", "https://x.org/a", "buckets/x", "a/b/c", "s3://x"])
def test_other_addresses_are_no_datasets(tmp_path, path):
    assert "names neither a dataset of the Hub nor an existing folder" in message(Table(path=path), tmp_path)


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("/etc/passwd", "outside of the dataset"),
        ("../secret.csv", "outside of the dataset"),
        ("data/../../secret.csv", "outside of the dataset"),
        ("~/secret.csv", "outside of the dataset"),
        ("https://example.org/x.csv", "which is elsewhere"),
        ("hf://datasets/o/private/x.csv", "which is elsewhere"),
        ("link.csv", "'link.csv' is a link that leads out of the dataset"),
        ("linked/secret.csv", "'linked/secret.csv' is a link that leads out of the dataset"),
        ("environ.csv", "leads into /proc"),
    ],
)
@pytest.mark.parametrize("form", ["text", "split", "hidden yaml"])
def test_data_files_stay_inside_the_folder(tmp_path, pattern, said, form):
    folder = tmp_path / "set"
    folder.mkdir()
    (tmp_path / "secret.csv").write_text("q,a\nsecret,x\n")
    (folder / "link.csv").symlink_to(tmp_path / "secret.csv")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "environ.csv").symlink_to("/proc/self/environ")
    files = f"'{pattern}'" if form != "split" else f"[{{split: train, path: ['{pattern}']}}]"
    text = f"configs:\n- {{config_name: a, data_files: {files}}}\n"
    if form == "hidden yaml":
        (folder / ".huggingface.yaml").write_text(text)
    else:
        readme(folder, text)
    for reading in (input_digests, rows_of):
        with pytest.raises(SourceError, match=f"^set: .*{re.escape(said)}"):
            reading(Table(path="set"), tmp_path)


def test_the_digest_covers_what_is_read_and_no_more(tmp_path):
    write(tmp_path / "set" / "train.csv", ["1"])
    write(tmp_path / "set" / "test.csv", ["2"])
    readme(
        tmp_path / "set",
        "configs:\n- config_name: a\n  data_files: [{split: train, path: train.csv}, {split: test, path: test.csv}]\n",
    )
    before = input_digests(Table(path="set"), tmp_path)
    assert list(before) == ["README.md", "train.csv"]
    write(tmp_path / "set" / "test.csv", ["3"])
    assert input_digests(Table(path="set"), tmp_path) == before
    write(tmp_path / "set" / "train.csv", ["3"])
    assert input_digests(Table(path="set"), tmp_path) != before
    assert rows_of(Table(path="set"), tmp_path)["q"].to_list() == ["3"]


def test_a_snapshot_of_the_hubs_cache_may_link_to_its_blobs(tmp_path):
    snapshot = tmp_path / "datasets--o--n" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "datasets--o--n" / "blobs").mkdir()
    (tmp_path / "datasets--o--n" / "blobs" / "1").write_text("q,a\n02108,x\n")
    (snapshot / "train.csv").symlink_to("../../blobs/1")
    assert rows_of(Table(path=str(snapshot)), tmp_path)["q"].to_list() == ["02108"]


@pytest.mark.parametrize(
    ("names", "values", "wanted"),
    [
        (["1", "2", "3"], ["0", "1", "2"], ["1", "2", "3"]),  # stars
        (["1", "0"], ["0", "1", "-1"], ["1", "0", None]),
        (["0", "1"], ["1", "0", ""], ["1", "0", None]),
        (["bad", "good"], ["0.0", "1.0", "-1.0"], ["bad", "good", None]),  # as pandas writes whole numbers beside a gap
        (["1", "2", "3"], ["3"], "'3' in column 'label' is not one of its labels; these are 1, 2, 3"),
    ],
)
@pytest.mark.parametrize("name", ["train.csv", "train.jsonl"])
def test_names_of_labels_that_look_like_numbers(tmp_path, name, names, values, wanted):
    readme(tmp_path / "set", CLASSES.replace("{'0': bad, '1': good}", json.dumps(names)))
    rows = [f"x,{value}\n" if name.endswith("csv") else f'{{"q": "x", "label": {value or "null"}}}\n' for value in values]
    (tmp_path / "set" / name).write_text(("q,label\n" if name.endswith("csv") else "") + "".join(rows))
    if isinstance(wanted, str):
        assert message(Table(path="set"), tmp_path) == f"set: {wanted}"
    else:
        assert rows_of(Table(path="set"), tmp_path)["label"].to_list() == wanted


def test_a_slice_that_cannot_be_taken(tmp_path):
    write(tmp_path / "set" / "train.csv", ["1", "2"])
    said = message(Table(path="set", split="train[:50%](pct1_dropremainder)"), tmp_path)
    assert said.startswith("set: split 'train[:50%](pct1_dropremainder)' cannot be taken (")
    assert said.endswith("; name rows, such as train[:50]")
