"""A whole image run in one call, without the notebook's figures and cards: for trials that are many and short."""

from types import SimpleNamespace

from kdnb.models.vision import Student
from kdnb.recipes import images, teacher
from kdnb.runs import Run
from kdnb.train import train


def build_pieces(p: SimpleNamespace, *, regime: str = "full", student=None, frozen=None, **subset) -> tuple:
    """(student, answers, loader, views, loss) as an image training notebook puts them together from its parameters `p`.

    Args:
        student, frozen: a student and its `kdnb.recipes.teacher.Teacher`; made here where they are None.
    """
    loader, views = images.build_loader(p, regime=regime, **subset), images.build_views(p)
    frozen = teacher.open_teacher(p) if frozen is None else frozen
    student = images.build_student(p, frozen) if student is None else student
    answers = teacher.build_answers(p, frozen, loader, views)
    loss = images.build_loss(p, frozen, answers, loader, views)
    return student, answers, images.place_data(p, loader, student, answers, views, loss), views, loss


def train_trial(p: SimpleNamespace, run: Run, **subset) -> tuple[dict, Student]:
    """(history of `train`, student) of a run whose model is not saved; `subset` as in `build_pieces`."""
    student, answers, loader, views, loss = build_pieces(p, **subset)
    settings = images.training_settings(p) | {"save_model": None}
    return train(student, answers, loader, views=views, loss=loss, run=run, **settings), student
