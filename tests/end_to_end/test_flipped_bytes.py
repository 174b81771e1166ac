"""Bytes that change on the disk: `curate verify` finds each, and the command that would use it says so or makes it again.

One small build is made of two sources, mined, trained on, exported and published; what is published is written to a folder
as a download leaves it. Then one byte of one file is another, or a file is gone, cut off, new, or of another source.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from curation.build.build import build
from curation.cli import curate
from curation.core import store
from curation.core.builds import read_build, receipts
from curation.core.errors import BuildError, UserError
from curation.read.lock import write_lock
from curation.recipe.manifest import load_manifest
from curation.report import page
from curation.share import export as exporting
from curation.share import publish as publishing
from curation.share.diff import open_side
from curation.share.importing import write_manifest
from curation.share.verify import problems, problems_of_model
from mining.mine import mine_build
from mining.show import mined_tuples
from tests.mining.small_build import files_of
from tests.training.tiny_build import tiny_model
from training import publish as model_publishing
from training import report
from training.checkpoint import average_checkpoints, export_checkpoint
from training.collection import read_collection
from training.model.files import find_model
from training.train import train

MANIFEST = """\
name: small
seed: 7
sources:
  - {{name: faq, files: faq.jsonl, task: retrieval, license: mit, holdout: 5, fields: {{query: q, positive: a}}}}
  - {{name: tips, files: tips.jsonl, task: retrieval, license: mit, mteb: [SciFact], fields: {{query: q, positive: a}}}}
dedup: {{threshold: 0.8, across: yes}}
decontaminate: {{against: [{{name: probe, files: probe.jsonl, fields: {{query: q, positive: a}}}}]}}
mine: {{model: {model}, negatives: 2, range_min: 0, range_max: 10, max_score: 1, relative_margin: 0, max_tokens: 32, dtype: float32}}
train: {{model: {model}, batch: 8, negatives: 1, steps: 4, save_every: 2, keep: 2, warmup: 1, lr: 1.0e-3, max_tokens: 32, dtype: float32}}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """Return a folder with m.yaml, build/, f2llm/ and beir/ (exports), copy/ and model-copy/ (downloads)."""
    folder = tmp_path_factory.mktemp("flips")
    model = tiny_model(folder / "tiny")
    for name in ("faq", "tips", "probe"):
        words = [hashlib.sha1(f"{name}{i}".encode()).hexdigest() for i in range(24)]
        rows = [
            {"q": f"what is {word[:12]} {word[12:20]}?", "a": f"{word[20:28]} {word[:12]} {word[28:]} is it"} for word in words
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = folder / "m.yaml"
    recipe.write_text(MANIFEST.format(model=model))
    assert not write_lock(recipe, load_manifest(recipe), ["faq", "tips"])
    assert not build(recipe, folder / "build").failed
    mine_build(folder / "build")
    page.write(folder / "build")
    train(folder / "build", load_manifest(recipe).train, device="cpu")
    for form in ("f2llm", "beir"):
        exporting.export(folder / "build", folder / form, form, negatives=2 if form == "f2llm" else None)
    for place, pieces in (
        ("copy", publishing.plan(folder / "build", "org/small", allow=["faq", "tips"]).pieces),
        ("model-copy", model_publishing.plan_upload(folder / "build" / "train", "org/model", "mit").pieces),
    ):
        for name, piece in pieces.items():
            (folder / place / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / place / name).write_bytes(piece.content if isinstance(piece.content, bytes) else piece.content.read_bytes())
        (folder / place / ".gitattributes").write_text("*.parquet filter=lfs\n")
        (folder / place / ".cache/huggingface").mkdir(parents=True)
        (folder / place / ".cache/huggingface/README.md.metadata").write_text("of hf download\n")
    return folder


def artefacts(folder: Path) -> list[str]:
    """Return all files that something was written into; empty ones are locks."""
    skipped = (".cache/", ".gitattributes")
    return [name for name, data in files_of(folder).items() if data and not name.startswith(skipped)]


def of_each_kind(names: list[str]) -> list[str]:
    """Return one file of those whose names differ in the source, in numbers and digests alone."""
    return list({re.sub(r"faq|tips|[0-9a-f]{12,}|\d+", "*", name): name for name in names}.values())


def flipped(data: bytes, where: str) -> bytes:
    at = {"first": 0, "middle": len(data) // 2, "last": len(data) - 1}[where]
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


WHOLES = {
    "build": lambda folder: problems(folder / "build"),
    "f2llm": lambda folder: problems(folder / "f2llm"),
    "beir": lambda folder: problems(folder / "beir"),
    "copy": lambda folder: problems(folder / "copy"),
    "model-copy": lambda folder: problems_of_model(folder / "model-copy"),
}


POSITIONS = ("first", "middle", "last")


def missed(folder: Path, whole: str, every: bool) -> tuple[list[tuple[str, str]], int]:
    """Flip a byte of each file in turn, at each position; or at one, of a build in a file of each kind.

    Return the flips that verify did not find, and how many there were.
    """
    check, found, count, names = WHOLES[whole], [], 0, artefacts(folder / whole)
    for number, name in enumerate(of_each_kind(names) if whole == "build" and not every else names):
        path = folder / whole / name
        data = path.read_bytes()
        for where in POSITIONS if every else POSITIONS[number % 3 : number % 3 + 1]:
            path.write_bytes(flipped(data, where))
            found += [] if check(folder) else [(name, where)]
            count += 1
        path.write_bytes(data)
    return found, count


@pytest.mark.parametrize("whole", WHOLES)
def test_verify_finds_a_flipped_byte_in_a_file_of_each_kind(made, whole):
    assert WHOLES[whole](made) == []
    found, count = missed(made, whole, every=False)
    assert found == []
    assert count >= {"build": 100, "copy": 8}.get(whole, 3)


@pytest.mark.long
@pytest.mark.parametrize("whole", WHOLES)
def test_verify_finds_a_flipped_byte_at_every_place_of_every_file(made, whole):
    assert missed(made, whole, every=True)[0] == []


def removed(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def grown(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


EXEMPT = {
    "build": {"timings.json", "embeddings/encoders.json"}
}  # may be removed: one tells only of time, one is a note of what can be had again


@pytest.mark.parametrize("damage", [removed, cut, grown])
@pytest.mark.parametrize("whole", ["build", "copy", "model-copy", "f2llm"])
def test_verify_finds_files_that_are_gone_cut_off_or_longer(made, whole, damage):
    found = []
    names = artefacts(made / whole)
    for name in of_each_kind(names)[::4] if whole == "build" else names:
        if damage is removed and name in {*EXEMPT.get(whole, ()), "build.json", "done.json", "provenance.json"}:
            continue  # without its receipt a folder is no build, export or download
        path = made / whole / name
        data = path.read_bytes()
        damage(path)
        found += [] if WHOLES[whole](made) else [name]
        path.write_bytes(data)
    assert found == []


@pytest.mark.parametrize(
    "name",
    [
        "build/extra.txt",
        "build/curated/faq/x.parquet",
        "build/heldout/faq/x",
        "build/embeddings/x",
        "build/train/x.bin",
        "build/train/model/added_tokens.json",
        "copy/extra.parquet",
        "copy/faq/x.parquet",
        "model-copy/pytorch_model.bin",
        "f2llm/data/x",
    ],
)
def test_verify_finds_a_file_that_nobody_wrote(made, name):
    path = made / name
    if name == "build/embeddings/x":
        path = next((made / "build/embeddings").glob("*/meta.json")).with_name("x")
    path.write_text("x")
    try:
        assert [Path(one.where).name for one in WHOLES[name.split("/")[0]](made)] == [path.name]
    finally:
        path.unlink()


@pytest.mark.parametrize("stage", ["curated", "mined", "cleaned", "shaped", "near", "publish", "train/tokens/*", "candidates"])
def test_verify_finds_stages_of_two_sources_that_were_swapped(made, stage):
    first, second = (next((made / "build").glob(f"{stage}/{name}"), None) for name in ("faq", "tips"))
    assert first
    assert second
    aside = made / "aside"
    swaps = [(first, aside), (second, first), (aside, second)]
    if stage in ("candidates", "publish", "train/tokens/*"):  # nothing names their receipts; a file of the one in the other
        a, b = (sorted(path for path in folder.rglob("*") if path.is_file())[-1] for folder in (first, second))
        swaps = [(a, aside), (b, a), (aside, b)]
    for old, new in swaps:
        old.rename(new)
    try:
        assert problems(made / "build")
    finally:
        for old, new in swaps[::-1]:
            new.rename(old)
    assert problems(made / "build") == []


def mining(made: Path) -> None:
    mine_build(made / "build")


def mined_anew(made: Path, *gone: str) -> bool:
    """Mine again, without what was mined and what else is named, from what is left; tell whether the same files come out."""
    shutil.rmtree(made / "again", ignore_errors=True)
    shutil.copytree(made / "build", made / "again")
    for name in ("mined", *gone):
        shutil.rmtree(made / "again" / name)
    mine_build(made / "again")
    return all(files_of(made / "again" / name) == files_of(made / "build" / name) for name in ("mined", *gone))


def building(made: Path) -> None:
    for error in build(made / "m.yaml", made / "build").failed.values():
        raise error


def exporting_to(form: str, made: Path) -> None:
    exporting.export(made / "build", made / form, form, negatives=2 if form == "f2llm" else None)


def publish_plan(made: Path) -> None:
    publishing.plan(made / "build", "org/small", allow=["faq", "tips"])


def training(made: Path) -> None:
    train(made / "build", load_manifest(made / "build/manifest.yaml").train, device="cpu")


def training_elsewhere(made: Path) -> None:
    recipe = load_manifest(made / "m.yaml").train.model_copy(update={"steps": 1})
    shutil.rmtree(made / "elsewhere", ignore_errors=True)
    train(made / "build", recipe, out=made / "elsewhere", device="cpu")


def resuming(made: Path) -> None:
    """Go on from the checkpoints of a run that was stopped."""
    shutil.rmtree(made / "stopped", ignore_errors=True)
    shutil.copytree(made / "build/train/checkpoints", made / "stopped/checkpoints")
    train(made / "build", load_manifest(made / "m.yaml").train, out=made / "stopped", device="cpu")


def importing(made: Path) -> None:
    (made / "imported.yaml").unlink(missing_ok=True)
    write_manifest(str(made / "f2llm"), made / "imported.yaml")


def mean_of_checkpoints(made: Path) -> None:
    average_checkpoints(made / "build/train", made / "mean")


def a_command(*words: str) -> Callable[[Path], None]:
    """Return what runs `curate` on the build, an error raised."""
    return lambda made: curate.main([words[0], str(made / "build"), *words[1:]], standalone_mode=False)


USED = {  # pattern of files -> the commands that use them
    "build/build.json": [mining, publish_plan, training_elsewhere, a_command("stats"), a_command("show"), partial(exporting_to, "beir")],
    "build/manifest.yaml": [mining, publish_plan, lambda made: open_side(str(made / "build"))],
    "build/manifest.lock": [publish_plan],
    "build/ATTRIBUTION.md": [publish_plan, building],
    "build/report.html": [publish_plan, building],
    "build/overlaps.parquet": [lambda made: page.write(made / "build", again=True), building],
    "build/contamination.parquet": [lambda made: page.write(made / "build", again=True), building],
    "build/mteb_training_datasets.json": [building],
    "build/shaped/*/*": [building],
    "build/near/*/*": [building],
    "build/cleaned/*/*": [building],
    "build/across/*/**/*": [building],
    "build/decontaminate/*": [building],
    "build/heldout/*/**/*": [building, lambda made: read_collection(made / "build/heldout/faq")],
    "build/curated/*/*": [mining, publish_plan, training_elsewhere, lambda made: receipts(made / "build"), partial(exporting_to, "beir")],
    "build/mined/*/*": [
        mining, publish_plan, training_elsewhere, partial(exporting_to, "f2llm"), lambda made: open_side(str(made / "build")),
        lambda made: [mined_tuples(made / "build", name, 1) for name in ("faq", "tips")],
    ],
    "build/candidates/*/*/*": [mined_anew],
    "build/embeddings/**/*": [lambda made: mined_anew(made, "candidates")],
    "build/publish/*/*": [publish_plan],
    "build/train/tokens/*/*/*": [training_elsewhere],
    "build/train/checkpoints/*/*": [resuming, mean_of_checkpoints,
                                    lambda made: export_checkpoint(made / "build/train", made / "newest")],
    "build/train/model/**/*": [training, lambda made: find_model(str(made / "build/train/model")),
                               lambda made: model_publishing.plan_upload(made / "build/train", "org/model", "mit")],
    "build/train/done.json": [training, lambda made: model_publishing.plan_upload(made / "build/train", "org/model", "mit")],
    "build/train/timings.json": [lambda made: report.write_report(made / "build/train")],
    "build/train/log.jsonl": [lambda made: report.write_report(made / "build/train")],
    "f2llm/**/*": [partial(exporting_to, "f2llm"), importing],
    "beir/**/*": [partial(exporting_to, "beir"), lambda made: [read_collection(made / "beir/data" / name, "train") for name in ("faq", "tips")]],
    "model-copy/**/*": [lambda made: find_model(str(made / "model-copy"))],
}  # fmt: skip


def notices(command: Callable[[Path], object], made: Path) -> bool:
    """Tell whether a command refuses in one line, or gives the same result all the same."""
    try:
        return command(made) is True
    except UserError as error:
        return "\n" not in str(error) and bool(error.hint)


def noticed(made: Path, pattern: str, most: int) -> list[tuple[str, int]]:
    """Flip a byte in files of a pattern, and return those of which a command took no notice, and the command's number."""
    paths = [path for path in sorted(made.glob(pattern)) if path.is_file() and path.stat().st_size and path.name[0] != "."]
    paths = [path for path in paths if not {"README.md", "provenance.json", "encoders.json", ".cache"} & set(path.parts)]
    assert paths
    found = []
    for number, path in enumerate(paths[:: max(1, len(paths) // most)]):
        data = path.read_bytes()
        for at, command in enumerate(USED[pattern]):
            if "step-000002" in path.parts and command is not mean_of_checkpoints:
                continue  # others take the newest alone
            path.write_bytes(flipped(data, POSITIONS[number % 3]))
            found += [] if notices(command, made) or path.read_bytes() == data else [(path.relative_to(made).as_posix(), at)]
            path.write_bytes(data)
    return found


@pytest.mark.parametrize("pattern", USED)
def test_the_command_that_uses_a_file_notices_a_flipped_byte(made, pattern):
    assert noticed(made, pattern, most=2) == []
    if {building, mining} & set(USED[pattern]):
        building(made)  # a source that failed is left out of what the others were cleaned of
        mining(made)
    assert problems(made / "build") == []


@pytest.mark.long
@pytest.mark.parametrize("pattern", USED)
def test_the_command_that_uses_a_file_notices_a_flipped_byte_in_each(made, pattern):
    assert noticed(made, pattern, most=1000) == []
    building(made)
    mining(made)
    assert problems(made / "build") == []


def test_a_large_file_is_read_again_only_after_something_touched_it(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(store, "LARGE", 3)
    monkeypatch.setattr(store, "SETTLED", 0)
    read, whole = [], store.file_digest
    monkeypatch.setattr(store, "file_digest", lambda path: read.append(path.name) or whole(path))
    receipt = store.run_stage(
        tmp_path / "s", "d", lambda folder: {"n": (folder / "large").write_text("abcd") + (folder / "small").write_text("ab")}
    )[0]
    read.clear()
    store.check_files(tmp_path / "s", receipt)
    store.check_files(tmp_path / "s", receipt)
    assert sorted(read) == ["large", "small", "small"]
    before = (tmp_path / "s" / "large").stat()
    with (tmp_path / "s" / "large").open("r+b") as file:
        file.write(b"b")
    os.utime(tmp_path / "s" / "large", ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(BuildError, match="large: was changed since it was written"):
        store.check_files(tmp_path / "s", receipt)


def test_a_receipt_is_exactly_what_would_be_written_of_it(tmp_path):
    store.write_json(tmp_path / "done.json", {"a": [1, 2.5, None, "ü"], "b": {"c": True}})
    data = (tmp_path / "done.json").read_bytes()
    assert store.read_json(tmp_path / "done.json") == {"a": [1, 2.5, None, "ü"], "b": {"c": True}}
    for at in range(len(data)):
        for bit in range(8):
            (tmp_path / "done.json").write_bytes(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])
            with pytest.raises(BuildError):
                store.read_sealed(tmp_path / "done.json")


def test_a_model_of_somebody_else_needs_no_receipt(made, tmp_path):
    shutil.copytree(made / "build/train/model", tmp_path / "model")
    (tmp_path / "model/done.json").unlink()
    (tmp_path / "model/more.txt").write_text("a file of their own")
    assert find_model(str(tmp_path / "model")).weights()
    shutil.copy(made / "build/train/done.json", tmp_path)
    with pytest.raises(BuildError, match=r"is not the model that the run's done\.json names; delete .*model and write it again"):
        find_model(str(tmp_path / "model"))


def test_verify_tells_a_model_of_other_tuples(made, tmp_path):
    shutil.copytree(made / "build", tmp_path / "b")
    manifest = made / "m.yaml"
    other = tmp_path / "m.yaml"
    other.write_text(manifest.read_text().replace("negatives: 2", "negatives: 3"))
    for name in ("faq", "tips", "probe"):
        shutil.copy(made / f"{name}.jsonl", tmp_path)
    assert not build(other, tmp_path / "b").failed
    mine_build(tmp_path / "b")
    assert [(one.where, one.what) for one in problems_of_model(tmp_path / "b/train", tmp_path / "b")] == [
        (str(tmp_path / "b/mined" / name), "holds other tuples than the model was trained on") for name in ("faq", "tips")
    ]
    assert curate.main(["verify", "--model", str(made / "build/train"), "-q"], standalone_mode=False) == 0
    assert curate.main(["verify", "--model", str(tmp_path / "b/train"), "-q"], standalone_mode=False) == 1
    assert curate.main(["verify", str(made / "build"), "--model", str(tmp_path / "b/train"), "-q"], standalone_mode=False) == 0


def test_a_run_is_no_model_and_a_build_no_run(made):
    run = made / "build/train"
    with pytest.raises(UserError) as error:
        find_model(str(run))
    assert str(error.value) == f"{run}: is a run of `train`, not a model; give {run / 'model'}"
    with pytest.raises(BuildError, match=r"has no step in log\.jsonl; give the folder of a run"):
        report.write_report(made / "build")


def test_the_log_of_a_finished_run_that_was_removed_is_named(made, tmp_path):
    shutil.copytree(made / "build/train", tmp_path / "train")
    (tmp_path / "train/log.jsonl").unlink()
    with pytest.raises(BuildError, match=r"log\.jsonl: was removed since the run ended; `train --restart` repeats the run"):
        report.write_report(tmp_path / "train")


def test_a_receipt_nested_too_deep_is_one_line(made, tmp_path):
    (tmp_path / "build.json").write_text("[" * 100_000)
    with pytest.raises(BuildError, match="build.json: not readable as JSON"):
        read_build(tmp_path)
