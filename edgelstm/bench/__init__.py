"""Models measured side by side with other runtimes, each contestant in a process of its own.

    bench(models, against) -> BenchResult        result.to_json() -> dict; result.table() -> rich.table.Table

A process opens its contestant once and lives through all rounds, waiting on its standard input while others run;
rounds alternate (A B C A B C ...), so that what disturbs the machine disturbs all. All step through the same seeded
frames with the same number of threads, and before they are timed their outputs are compared with ours.

May import: workflows and every room below it.
"""

from edgelstm.bench.coordinator import bench
from edgelstm.bench.result import BenchResult, Entry, ModelResult

__all__ = ["BenchResult", "Entry", "ModelResult", "bench"]
