"""The Hugging Face Hub where there may be none: asked once whether it answers, instead of 23 seconds for every file.

`huggingface_hub` repeats a request five times before it looks into its cache, and libraries ask for several files of a model: on
a node without a network, weights that are not there would be missed after a minute.
"""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

WITHOUT_NETWORK = (
    "without a network, fetch it ahead on a machine that has one (a cluster's login node) with `python -m kdnb.fetch` and the "
    "params file that names it, with the same HF_HOME"
)
_PATIENCE_S = 5.0  # for the Hub's first answer
_KEPT_S = 60.0  # for which it counts
_last_answer: tuple[float, bool] | None = None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the Hub: what was not fetched before is not there."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def hub_address() -> str:
    """Where the Hub is: https://huggingface.co, or HF_ENDPOINT."""
    from huggingface_hub import constants

    return constants.ENDPOINT


def hub_home() -> Path:
    """Where what came from the Hub is kept: HF_HOME, by default ~/.cache/huggingface."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME)


def repo_folder(kind: str, name: str) -> Path:
    """Where the files of the Hub's repository `name` are kept; `kind` is models or datasets."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"{kind}--{name.replace('/', '--')}"


def hub_answers() -> bool:
    """Whether the Hub answers anything at all, within 5 s; False where HF_HUB_OFFLINE is set. An answer counts for a minute."""
    global _last_answer
    if is_offline():
        return False
    if _last_answer is None or time.monotonic() - _last_answer[0] > _KEPT_S:
        from huggingface_hub.utils import get_session

        try:
            get_session().head(hub_address(), timeout=_PATIENCE_S)
            answers = True
        except Exception:  # of many kinds, from version to version
            answers = False
        _last_answer = time.monotonic(), answers
    return _last_answer[1]


@contextlib.contextmanager
def without_retries() -> Iterator[None]:
    """Inside, a Hub that does not answer is not asked again: what was fetched before is read, and what was not fails at once."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    if not hub_answers():
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before
