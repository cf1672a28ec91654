"""Notebooks as jobs of one process or many: `python -m kdnb.papermill notebooks/train_fixed.ipynb out.ipynb -p fixed_shards 25`.

Alone it is papermill, with the same options; its kernels talk over Unix sockets instead of TCP ports. Under
`python -m torch.distributed.run --nproc-per-node 8 -m kdnb.papermill …` each rank runs the notebook in a kernel of its own, which
inherits its rank; rank 0 writes `out.ipynb`, the others keep theirs (`out.rank3.ipynb`) only when they fail.

A rank that fails says so and ends with an error, upon which torch.distributed.run ends the others. Ctrl-C, SIGTERM and SIGUSR1 go
on to the kernel, where training writes a checkpoint (`kdnb.distributed`); the exit code is then 75 (`os.EX_TEMPFAIL`): the same
command goes on. A second Ctrl-C ends notebook and kernel at once.

`train_on_processes` starts such a job from a notebook's cell.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import yaml

from kdnb import distributed
from kdnb.distributed import SIGNALS, Preempted
from kdnb.runs import Run, project_root

_GRACE_S = 8.0  # between SIGTERM and the kernel's end: a rank whose peer died waits for it in vain
_STOPPED = "the notebook was stopped by {}; the same command goes on from its last checkpoint"


def train_on_processes(run: Run, notebook: str, *, processes: int):
    """Train `run` of `notebook` with so many processes and print what rank 0 prints; does nothing for one, nor in one of them.

    Raises:
        RuntimeError: a process failed, with its last lines; or another job does the same.
        Preempted: the cell was interrupted; all processes have ended, after a checkpoint from which the run can go on.
    """
    if processes == 1 or distributed.world() > 1 or run.finished:
        return
    with run.only_job(".processes.lock"):  # the processes hold the run itself
        _train_on_processes(run, notebook, processes)


def _train_on_processes(run: Run, notebook: str, processes: int):
    root, parameters, out = project_root(), run.folder / "processes.yaml", run.folder / "processes.ipynb"
    parameters.write_text(yaml.safe_dump(run.parameters | {"run_name": run.name, "processes": 1}))
    command: list[str | Path] = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    command += ["-m", "kdnb.papermill", root / f"notebooks/{notebook}.ipynb", out]
    command += ["-f", parameters, "--log-output", "--no-progress-bar", "--kernel", "python3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=root)
    last_lines: list[str] = []
    try:
        for line in process.stdout:
            last_lines = [*last_lines[-20:], line]
            if "epoch " in line or "rank " in line:
                print(line.rstrip(), flush=True)
        if process.wait():
            raise RuntimeError(f"{processes} processes failed on {run.name}; the end of their output: {''.join(last_lines)}")
    except KeyboardInterrupt:
        process.terminate()
        process.communicate()
        if not run.checkpoints():
            raise
        step = int(run.checkpoints()[-1].stem.removeprefix("step_"))
        message = f"{run.name} was interrupted and has a checkpoint of step {step}; run this cell again to go on."
        raise Preempted(message) from None
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def main(arguments: list[str] | None = None) -> int:
    """Run papermill's command line with `arguments`; returns the exit code."""
    from click.exceptions import ClickException, Exit
    from papermill.cli import papermill as command

    arguments = sys.argv[1:] if arguments is None else arguments
    short = None if len(tempfile.gettempdir()) < 70 else "/tmp"  # a socket's path may have about 100 letters
    with tempfile.TemporaryDirectory(dir=short) as folder:
        _use_sockets(Path(folder))
        try:
            context = command.make_context("python -m kdnb.papermill", list(arguments))
            kept = Path(context.params["output_path"] or "out.ipynb")
            if distributed.rank() > 0:
                os.environ["KDNB_PROGRESS"] = "none"  # which the kernel inherits
                context.params |= {"output_path": str(Path(folder) / "out.ipynb"), "progress_bar": False, "log_output": False}
            code = _run(command, context)
        except Exit as done:  # --help
            return done.exit_code
        except ClickException as error:  # what is wrong with the command line
            error.show()
            return error.exit_code
        written = Path(context.params["output_path"] or "")
        if distributed.rank() > 0 and code not in (0, os.EX_TEMPFAIL) and written.is_file():
            shutil.copyfile(written, kept.with_name(f"{kept.stem}.rank{distributed.rank()}{kept.suffix}"))
    return code


def _use_sockets(folder: Path):
    """Let the kernels of this process talk through sockets in `folder`.

    Jupyter picks TCP ports, lets go of them and hopes that they are free a second later, when the kernel takes them. Ranks that
    start together take each other's now and then, which ends in "Kernel died before replying to kernel_info".
    """
    from papermill.engines import NBClientEngine, papermill_engines
    from traitlets.config import Config

    class SocketEngine(NBClientEngine):
        @classmethod
        def execute_managed_notebook(cls, *arguments, **settings):
            config = Config({"KernelManager": {"transport": "ipc", "ip": str(folder / "kernel")}})
            return super().execute_managed_notebook(*arguments, config=config, **settings)

    papermill_engines.register(None, SocketEngine)


def _run(command, context) -> int:
    """Execute the notebook; hand signals on to its kernel meanwhile, and turn what went wrong into a line and a code."""
    from click.exceptions import ClickException
    from papermill.exceptions import PapermillExecutionError

    forward = _Forward()
    before = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        with context:
            command.invoke(context)
    except ClickException:
        raise
    except PapermillExecutionError as error:
        if error.ename == "Preempted":
            return _say(os.EX_TEMPFAIL, error.evalue)
        if error.ename == "KeyboardInterrupt":
            return _say(os.EX_TEMPFAIL, _STOPPED.format(forward.signal_name or "an interrupt"))
        if distributed.world() == 1:
            raise  # as papermill does
        return _say(1, f"{error.ename}: {error.evalue}")
    except BaseException as error:
        if forward.signal_name:  # outside training nothing catches a signal: the kernel is gone, and what it wrote is whole
            return _say(os.EX_TEMPFAIL, _STOPPED.format(forward.signal_name))
        if distributed.world() == 1:
            raise
        return _say(1, f"{type(error).__name__}: {str(error).strip() or 'the kernel died'}")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        forward.timer.cancel()
    return 0


class _Forward:
    """A signal handler that hands signals on to the kernels, and ends them and this process some time after a SIGTERM.

    A second Ctrl-C, or one that no kernel is there for, ends the notebook.

    Attributes:
        signal_name: of the last signal, "" before the first.
    """

    def __init__(self):
        self.signal_name = ""
        self.timer = threading.Timer(float(os.environ.get("KDNB_GRACE_S", _GRACE_S)), self._end)
        self.timer.daemon = True

    def __call__(self, number: int, frame):
        kernels, before, self.signal_name = _kernels(), self.signal_name, signal.Signals(number).name
        if number == signal.SIGTERM and not self.timer.is_alive():
            self.timer.start()
        for kernel in kernels:
            kernel.send_signal(number)
        if number == signal.SIGINT and (before == "SIGINT" or not kernels):
            raise KeyboardInterrupt

    def _end(self):
        for kernel in _kernels():
            kernel.kill()
        _say(128 + signal.SIGTERM, "stopped by SIGTERM, to which the kernel did not react")
        os._exit(128 + signal.SIGTERM)


def _kernels() -> list:
    """The kernels that this process has started."""
    import psutil  # comes with ipykernel

    return psutil.Process().children()


def _say(code: int, sentence: str) -> int:
    """Print `sentence` on stderr, with the rank where there are several, and return `code`."""
    who = f"rank {distributed.rank()} of {distributed.world()}: " if distributed.world() > 1 else ""
    print(f"{who}{sentence}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
