"""A notebook as a person has it open who edits cells and runs them."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
from nbclient import NotebookClient


@contextmanager
def kernel_of(project: Path, **environment: str) -> Iterator[NotebookClient]:
    """The client of a kernel that runs in the notebooks' folder of `project`."""
    client = NotebookClient(nbformat.v4.new_notebook(), kernel_name="python3")
    with client.setup_kernel(env=os.environ | {"PYTHONPATH": str(project)} | environment, cwd=str(project / "notebooks")):
        yield client


class Session:
    """A notebook in a kernel; variables that another one has left there are gone."""

    def __init__(self, path: Path, kernel: NotebookClient):
        self.notebook = nbformat.read(path, 4)
        self.cells = [cell for cell in self.notebook.cells if cell.cell_type == "code"]
        self.parameters, self.check = self.cells[:2]
        self.client = NotebookClient(self.notebook, timeout=300, km=kernel.km)
        self.client.kc = kernel.kc
        self.run_beside("%reset -f")

    def edit(self, **values):
        """Change defaults in the parameters cell."""
        for name, value in values.items():
            self.parameters.source, found = re.subn(
                rf"^({name}: \S+ =) .*?  #", rf"\1 {value!r}  #", self.parameters.source, flags=re.MULTILINE
            )
            assert found == 1, name

    def run(self, *cells):
        """Run `cells`, all of them by default."""
        for cell in cells or self.cells:
            self.client.execute_cell(cell, self.notebook.cells.index(cell))

    def fail(self, cell) -> nbformat.NotebookNode:
        """Run a cell that must end with an error, which is returned."""
        cell.metadata["tags"] = ["raises-exception"]  # or else a kernel may pass over cells that follow at once
        self.run(cell)
        cell.metadata["tags"] = []
        (error,) = [output for output in cell.outputs if output.output_type == "error"]
        return error

    def run_beside(self, source: str) -> nbformat.NotebookNode:
        """A cell that is not the notebook's, executed."""
        cell = nbformat.v4.new_code_cell(source)
        self.notebook.cells.append(cell)
        self.run(cell)
        return cell
