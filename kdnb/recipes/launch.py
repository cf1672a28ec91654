"""The same notebook on several processes of this machine, started from a cell and followed there.

The processes train the very run that the notebook has opened; afterwards the notebook finds it finished, and shows it.
"""

import subprocess
import sys
from types import SimpleNamespace

import yaml

from kdnb import ranks
from kdnb.preempt import Preempted
from kdnb.runs import Run, project_root


def train_on_processes(p: SimpleNamespace, notebook: str, run: Run):
    """Train `run` with `p.processes` processes and print what rank 0 says; does nothing for one, or where this is one of them.

    Raises:
        RuntimeError: a process failed, with its last lines.
        Preempted: the cell was interrupted; all processes have ended, after a checkpoint from which the run can go on.
    """
    if p.processes == 1 or ranks.world() > 1 or run.finished:
        return
    here = project_root()
    parameters, out = run.folder / "processes.yaml", run.folder / "processes.ipynb"
    parameters.write_text(yaml.safe_dump(vars(p) | {"run_name": run.name, "processes": 1}))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(p.processes), "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "kdnb.papermill", here / f"notebooks/{notebook}.ipynb", out]
    command += ["-f", parameters, "--log-output", "--no-progress-bar", "--kernel", "python3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=here)
    last: list[str] = []
    try:
        for line in process.stdout:
            last = [*last[-20:], line]
            if "epoch " in line or "rank " in line:
                print(line.rstrip(), flush=True)
        if process.wait():
            raise RuntimeError(f"{p.processes} processes failed on {run.name}; the end of what they said: {''.join(last)}")
    except KeyboardInterrupt:
        process.terminate()
        process.communicate()
        if not run.checkpoints():
            raise
        step = int(run.checkpoints()[-1].stem.removeprefix("step_"))
        said = f"{run.name} was interrupted and has a checkpoint of step {step}; run this cell again to go on."
        raise Preempted(said) from None
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
