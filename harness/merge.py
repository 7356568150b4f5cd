"""Merge the rows of several studies, folders or machines into one set, each row once.

    python -m harness.merge OUT W1/demo W2/demo

IN is the folder of a study or a .parquet file. OUT is a new folder, which then also gets the token times and can be read by
`python -m harness.report OUT`, or a new .parquet file. A row keeps its `row_id` and its study. If two sets use one trial
number for different settings, the later set's trial gets a new number; if both have a run of one trial under the same number
(each machine measures the sentinel), the later set's run gets the next free number. Rows of different evaluation texts,
models, objectives or states of the experts' cache are refused, and so are different kinds of machine (processor, cores)
without --mixed-machines: their speeds are not comparable.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from engine.cli.program import guarded, make_parser
from harness.results.merge import write_merged


def main(arguments: Sequence[str], program: str = "python -m harness.merge") -> int:
    """Merge as the command line says; returns the exit status."""
    return guarded(lambda: _merge(arguments, program))


def _merge(arguments: Sequence[str], program: str) -> int:
    parser = make_parser(program, __doc__)
    parser.add_argument("out", type=Path, metavar="OUT", help="a new folder, or a new .parquet file")
    parser.add_argument("places", type=Path, nargs="+", metavar="IN", help="folder of a study, or a .parquet file")
    parser.add_argument("--mixed-machines", action="store_true", help="merge rows of different kinds of machine")
    given = parser.parse_args(arguments)
    places = [place.expanduser() for place in given.places]
    rows = write_merged(out := given.out.expanduser(), places, mixed_machines=given.mixed_machines)
    machines = rows.group_by(["machine", "cpu", "cores"]).aggregate([([], "count_all")]).sort_by("machine").to_pylist()
    for m in machines:
        print(f"{m['count_all']:>6} rows  machine {m['machine']} ({m['cpu']}, {m['cores']} cores)")
    print(f"{rows.num_rows:>6} rows  in {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
