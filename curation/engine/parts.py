"""Run a function over the parts of one source, in order. Parts and results, up to some ten MB each, travel as files."""

from __future__ import annotations

import io
import mmap
import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from curation.core.store import temporary
from curation.core.tables import buffer_of_frame, frame_of_buffer
from curation.engine.local import Here
from curation.engine.pool import Item, Result, Workers, held

ALIGNED = 64  # bytes; arrays begin at a multiple of it


def in_order(workers: Workers, function: Callable[[Item], Result], items: Iterable[Item], folder: Path) -> Iterator[Result]:
    """Yield the result for each item, in the order of the items.

    This process works with its threads. Outside of it, the function, the items and the results are written to a temporary
    folder in `folder`, which all workers see; so they must be such as `pickle` takes.

    Raises:
        Exception: the first one, in the order of the items, that the function raised.
    """
    if isinstance(workers, Here):
        for _, result in workers.run(function, items, workers.threads):
            yield result()
        return
    with temporary(folder / "parts") as place:
        place.mkdir()
        write_value(place / "function", function)

        def written() -> Iterator[Path]:
            for number, item in enumerate(items):
                path = place / f"item-{number}"
                write_value(path, item)
                yield path

        finished: dict[str, Callable[[], Path]] = {}
        number = 0
        for path, file_of in workers.run(partial(_work_on, place / "function"), written()):
            finished[path.name] = file_of
            while following := finished.pop(f"item-{number}", None):
                file = following()
                found = read_value(file)
                file.unlink()
                (place / f"item-{number}").unlink()
                number += 1
                yield found


def _work_on(function: Path, item: Path) -> Path:
    """Call a function of a file with the item of a file; return the file of its result."""
    work: Callable[[Any], Any] = held("function", str(function), partial(read_value, function))
    result = item.with_name(f"result-{item.name}")
    part = item.with_name(f"{os.urandom(8).hex()}-{item.name}")  # another worker may do the same, if this one is thought lost
    write_value(part, work(read_value(item)))
    part.replace(result)
    return result


class _Pickler(pickle.Pickler):
    """Pickles frames and series several times as fast as polars does, and their texts outside of the pickle."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, pl.DataFrame) and (buffer := buffer_of_frame(value)) is not None:
            return frame_of_buffer, (buffer,)
        if isinstance(value, pl.Series) and (buffer := buffer_of_frame(value.to_frame())) is not None:
            return _series_of_buffer, (buffer,)
        return NotImplemented


def _series_of_buffer(buffer: Any) -> pl.Series:
    return frame_of_buffer(buffer).to_series()


def write_value(path: Path, value: Any) -> None:
    """Write a value, and the arrays in it one after the other, so that `read_value` need not copy them."""
    buffers: list[pickle.PickleBuffer] = []
    body = io.BytesIO()
    _Pickler(body, protocol=5, buffer_callback=buffers.append).dump(value)
    parts = [body.getbuffer(), *(buffer.raw() for buffer in buffers)]
    head = pickle.dumps([(part.nbytes, part.readonly) for part in parts])
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for part in parts:
            file.write(bytes(-file.tell() % ALIGNED))
            file.write(part)


def read_value(path: Path) -> Any:
    """Return a value of `write_value`. Its arrays are mapped from the file; what is written to them stays in memory."""
    with path.open("rb") as file:
        whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
    end, parts = 8 + int.from_bytes(whole[:8], "little"), []
    for size, readonly in pickle.loads(whole[8:end]):
        start = end + -end % ALIGNED
        end = start + size
        parts.append(whole[start:end].toreadonly() if readonly else whole[start:end])
    return pickle.loads(parts[0], buffers=parts[1:])
