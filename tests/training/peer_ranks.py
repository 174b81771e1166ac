"""What each process of test_deepspeed.py does: a run for each recipe, one after the other, in the group that it has joined.

`python peer_ranks.py JOBS.json`: [{"build", "recipe", "out"}, ...]; a job's error goes to `<out>.rank<N>.txt`.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path

import torch

from curation.core.errors import UserError
from curation.recipe.settings import Train
from training import ranks
from training.train import Stopped, train


def main() -> None:
    rank = ranks.ranks().rank
    with ranks.joined(torch.device("cpu"), True):
        ranks.joined = lambda device, needed: nullcontext()  # joining once is enough for all jobs
        for job in json.loads(Path(sys.argv[1]).read_text()):
            said = Path(f"{job['out']}.rank{rank}.txt")
            lines = []

            def say(line, lines=lines, job=job):
                lines.append(line)
                if job.get("stop") and line.startswith(f"step {job['stop']}/"):
                    import os
                    import signal

                    os.kill(os.getpid(), signal.SIGTERM)

            try:
                train(Path(job["build"]), Train.model_validate(job["recipe"]), out=Path(job["out"]), device="cpu", say=say)
            except (UserError, Stopped) as error:
                lines.append(str(error))
            said.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
