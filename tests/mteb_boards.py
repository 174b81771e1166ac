"""Write curation/recipe/mteb_boards.json from the installed mteb: `python -m tests.mteb_boards`."""

from __future__ import annotations

import json
from typing import Any

from curation.recipe.mteb_boards import BOARDS_FILE


def recorded() -> dict[str, Any]:
    """Return mteb's boards of texts, the dataset of each of their tasks, and which tasks mteb counts as the same data."""
    import mteb
    from mteb.get_tasks import _SIMILAR_TASKS

    boards = {board.name: board for board in mteb.get_benchmarks()}
    texts = {name: board for name, board in boards.items() if all(set(task.modalities) == {"text"} for task in board.tasks)}
    datasets = {task.metadata.name: task.metadata.dataset["path"] for board in texts.values() for task in board.tasks}
    # mteb's `_collect_similar_tasks` follows the relation in both directions: what it collects is a connected part
    near: dict[str, set[str]] = {}
    for parent, children in _SIMILAR_TASKS.items():
        for child in children:
            near.setdefault(parent, set()).add(child)
            near.setdefault(child, set()).add(parent)
    families: list[list[str]] = []
    seen: set[str] = set()
    for name in sorted(near):
        family, waiting = set[str](), [name] if name not in seen else []
        while waiting:
            one = waiting.pop()
            waiting += near[one] - family
            family.add(one)
        seen |= family
        if family & datasets.keys():
            families.append(sorted(family))
    tasks = {name: sorted({task.metadata.name for task in board.tasks}) for name, board in sorted(texts.items())}
    return {
        "source": f"mteb {mteb.__version__}",
        "boards": tasks,
        "datasets": dict(sorted(datasets.items())),
        "families": families,
    }


def main() -> None:
    """Write the table, one line per board, dataset and family."""
    lines = []
    for key, value in recorded().items():
        if isinstance(value, str):
            lines.append(f'"{key}": {json.dumps(value)}')
            continue
        entries = (
            [json.dumps(one) for one in value]
            if isinstance(value, list)
            else [json.dumps({k: v})[1:-1] for k, v in value.items()]
        )
        ends = "[]" if isinstance(value, list) else "{}"
        lines.append(f'"{key}": {ends[0]}\n' + ",\n".join(entries) + f"\n{ends[1]}")
    BOARDS_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
