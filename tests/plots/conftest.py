"""What the figures' tests share."""

import warnings

import pytest


@pytest.fixture(autouse=True)
def drawn_without_a_warning(monkeypatch, tmp_path):
    """Every figure that a test makes is drawn to a file too; what matplotlib complains about is a failure.

    What others complain about in matplotlib's own code, such as pyparsing in matplotlib 3.9's, is not ours to mend.
    """
    import matplotlib.pyplot as plt

    plt.switch_backend("agg")
    made, subplots = [], plt.subplots

    def remembered(*args, **settings):
        figure, axes = subplots(*args, **settings)
        made.append(figure)
        return figure, axes

    monkeypatch.setattr(plt, "subplots", remembered)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="matplotlib|pyparsing")
        yield
        for figure in made:
            figure.savefig(tmp_path / "figure.png", dpi=50)
    assert not plt.get_fignums()  # nothing is kept alive, or shown a second time
