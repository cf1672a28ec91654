"""The table of parameters on the command line.

python -m kdnb.params train_fixed    type, range, default and meaning of every parameter of a notebook
python -m kdnb.params --write        write the parameters cells of all notebooks from the table
"""

import sys
from pathlib import Path

from kdnb.params.cell import assignment, write_cell
from kdnb.params.table import TABLE

_FREE = "; may be another value when the run is resumed"
_NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


def main(arguments: list[str]) -> int:
    """Do what the one argument says; returns the exit code."""
    if arguments == ["--write"]:
        for path in (_NOTEBOOKS / f"{notebook}.ipynb" for notebook in TABLE):
            print(f"{path.name}: {'written' if write_cell(path) else 'is as the table says'}")
    elif len(arguments) == 1 and arguments[0] in TABLE:
        section = ""
        for row in TABLE[arguments[0]].values():
            if row.section != section:
                print(f"\n# {row.section}")
                section = row.section
            print(f"{assignment(row)}\n    {row.help}\n    {row.allowed()}{_FREE if row.free else ''}")
    else:
        print(f"{__doc__}\nNotebooks: {', '.join(TABLE)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
