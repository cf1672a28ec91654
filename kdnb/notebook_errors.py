"""Errors in a notebook: what the user can mend is one sentence, with the traceback folded away below it.

Which errors those are follows from where they were raised: by a `raise` statement of kdnb, with a sentence. An interrupt of
kdnb's work is one, too. A bug in kdnb (a TypeError, say), an error of a library and one of the user's own code keep their
traceback, and so does every error outside IPython.
"""

import contextlib
import html
import opcode
import sys
import traceback

_INTERRUPTED = "the cell was interrupted; what it has written to disk is whole, and is used when the cell is run again."
_FOLDED = '<details class="kdnb-traceback"><summary>where this was raised</summary><pre>{}</pre></details>'
_HINT = "%tb shows where this was raised."
_RAISE = opcode.opmap["RAISE_VARARGS"]


def register():
    """Show errors so from now on, where IPython runs this process and nothing else has asked to show them."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if shell is not None and not shell.custom_exceptions:
        shell.set_custom_exc((Exception, KeyboardInterrupt), _show)


def find_sentence(error: BaseException) -> str | None:
    """Type and sentence of a raised `error` whose traceback would tell the user nothing more, else None."""
    level, in_kdnb, by_raise = error.__traceback__, [False], False
    while level:
        in_kdnb.append(level.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "kdnb")
        by_raise = level.tb_frame.f_code.co_code[level.tb_lasti] == _RAISE
        level = level.tb_next
    if isinstance(error, KeyboardInterrupt):
        return f"KeyboardInterrupt: {_INTERRUPTED}" if any(in_kdnb) else None
    meant = in_kdnb[-1] and by_raise and str(error) and not isinstance(error, AssertionError)  # which raises as `raise` does
    return f"{type(error).__name__}: {error}" if meant else None


def release_frames(error: BaseException | None):
    """Let the functions that `error`, and what led to it, went through drop their variables: tensors, of which the next run may
    need the memory. Those of the notebook itself stay, for `%debug`."""
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            if frame.f_globals.get("__name__") != "__main__":
                with contextlib.suppress(RuntimeError):  # of a function that still runs, as IPython's do
                    frame.clear()
        error = error.__cause__ or error.__context__


def _show(shell, kind: type[BaseException], error: BaseException, trace, tb_offset: int | None = None):
    """What IPython calls for an error that ends a cell."""
    from IPython.display import display

    sentence = find_sentence(error)
    if sentence is None or shell.call_pdb:  # %pdb: the user looks at the frames next
        shell.showtraceback(running_compiled_code=True)
        return
    vars(error)["_render_traceback_"] = lambda: [sentence]  # what IPython then shows; HTML can be no part of it
    shell.showtraceback(running_compiled_code=True)
    del vars(error)["_render_traceback_"]  # so that %tb shows the frames
    lines = "".join(traceback.format_exception(kind, error, trace.tb_next))  # without IPython's frame, which is the first
    display({"text/html": _FOLDED.format(html.escape(lines)), "text/plain": _HINT}, raw=True)
    release_frames(error)
