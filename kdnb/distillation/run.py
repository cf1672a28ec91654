"""A whole image run in one call, without the notebook's figures and cards: for trials that are many and short."""

from types import SimpleNamespace

from kdnb import distributed
from kdnb.data.reader import ShardReader
from kdnb.distillation import build, device_memory, teacher
from kdnb.distillation.teacher import build_teacher_call, open_teacher
from kdnb.distillation.teacher_outputs import TeacherCache
from kdnb.distillation.train import train
from kdnb.models.vision import Student
from kdnb.params import arguments_of
from kdnb.runs import Run, anchored


def build_pieces(p: SimpleNamespace, *, regime: str = "full", student=None, frozen=None, **subset) -> tuple:
    """(student, answers, loader, views, loss) as an image training notebook puts them together from its parameters `p`.

    Args:
        student, frozen: a student and its `kdnb.distillation.teacher.Teacher`; made here where they are None.
    """
    loader, views = build.build_loader(p, regime=regime, **subset), build.build_views(p)
    frozen = teacher.open_teacher(**arguments_of(teacher.open_teacher, p)) if frozen is None else frozen
    student = build.build_student(p, frozen) if student is None else student
    answers = teacher.build_teacher_call(frozen, loader, views)
    loss = build.build_loss(p, frozen, answers, loader, views)
    memory = arguments_of(device_memory.maybe_cache_on_device, p)
    loader = device_memory.maybe_cache_on_device(loader, student, answers, views, loss, **memory)
    return student, answers, loader, views, loss


def train_trial(p: SimpleNamespace, run: Run, **subset) -> tuple[dict, Student]:
    """(history of `train`, student) of a run whose model is not saved; `subset` as in `build_pieces`."""
    student, answers, loader, views, loss = build_pieces(p, **subset)
    settings = build.training_settings(p) | {"save_model": None}
    return train(student, answers, loader, views=views, loss=loss, run=run, **settings), student


def store_teacher_outputs(p: SimpleNamespace, display) -> TeacherCache:
    """Ask the teacher about every view of every cached image, ahead of training; what is stored is not asked again.

    Several ranks take the batches in turn.

    Args:
        display: has `update(done)`, called with views answered.
    """
    teacher = open_teacher(**arguments_of(open_teacher, p))
    unseen = {"use_local_crops": False, "local_crops_number": 1, "local_crop_size": 1}  # by the teacher
    whole = {"use_cached": True, "shuffle": "none", "max_steps_per_epoch": None, "gradient_accumulation_steps": 1}
    whole |= {"num_workers": 0, "persistent_workers": False}
    p = SimpleNamespace(**unseen | vars(p) | whole)
    views = build.build_views(p)
    p.batch_size = min(p.batch_size, len(ShardReader(anchored(p.cache_dir))))
    loader = build.build_loader(p, regime="full")
    loader.drop_last = False
    answers, done = build_teacher_call(teacher, loader, views), 0
    for epoch in range(answers.repeats):
        for number, batch in enumerate(loader.batches(epoch)):
            ids = batch["id"].numpy()
            mine = number % distributed.world() == distributed.rank()
            if mine and not all(answers.store.read(ids, epoch * views.num_global + g)[1].all() for g in range(views.num_global)):
                answers(views(batch["image"], batch["id"], epoch)[: views.num_global], batch | {"epoch": epoch})
            done += len(ids) * views.num_global
            display.update(done)
    distributed.barrier()
    return answers.store
