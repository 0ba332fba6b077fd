"""Run by `torchrun`: one of two processes sees dead steps, and each writes at which iteration it stopped."""

import sys
from pathlib import Path

from ignite.engine import Engine
from torch import distributed

from medgen.engines.health import HealthMonitor
from medgen.engines.trainer import join_ranks

if __name__ == "__main__":
    join_ranks()
    ill, folder = int(sys.argv[1]), Path(sys.argv[2])
    rank = distributed.get_rank()
    engine = Engine(lambda engine, batch: {"loss": 1.0, "g_norm": float("nan") if rank == ill else 1.0})
    HealthMonitor("stop", patience=50).attach(engine)
    engine.run(range(200))
    (folder / f"{ill}-{rank}.txt").write_text(str(engine.state.iteration))
    distributed.destroy_process_group()
