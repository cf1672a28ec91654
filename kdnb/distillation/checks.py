"""What parameters say about each other, checked before anything is built: what would fail after minutes fails in a second.

A rule stands where it is raised in the work itself; here it is asked ahead of that, with what is known without a model or a
network. What is not known yet, such as the size of a cache that is not made, is left to the work.
"""

import contextlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace

from kdnb import distributed
from kdnb.data.cache import read_index
from kdnb.data.cache_writer import CacheError, check_space
from kdnb.data.datasets import CachedTensorDataset
from kdnb.data.order import EpochPlan, Order, even_shards, require_equal_shares
from kdnb.data.prepare import held_out_share, naming_eval_split
from kdnb.data.sources import HELD_OUT, is_local, is_table, open_source, open_source_of, require_dataset, require_there
from kdnb.data.splits import NoSplit
from kdnb.distillation import build
from kdnb.distillation.optim import count_steps, count_warmup_steps, precision_for, require_batch_norm
from kdnb.distillation.teacher import require_recurring_views, require_space
from kdnb.distillation.teacher_model import require_teacher_args
from kdnb.distillation.teacher_outputs import OutputCodec
from kdnb.distributed import find_device
from kdnb.evaluation import evaluate, sweep
from kdnb.losses import labels_fit
from kdnb.losses.methods import loss_weights, needs_labels
from kdnb.models.vision import FeatureModel, outline, require_as_many_layers, require_pretrained
from kdnb.models.weights import require_checkpoint
from kdnb.params import TABLE, ParameterError, arguments_of
from kdnb.runs import anchored, local_or_hub, require_run_name
from kdnb.text.text_data import TextData, require_labels

# The sampling regime of each training notebook, and the parameters that belong to it.
SUBSETS = {
    "train_optimized": ("full", ()),
    "train_random": ("random", ("samples_per_epoch", "shards_per_epoch", "draw", "random_subset_seed")),
    "train_fixed": ("fixed", ("fixed_shards", "fixed_choice", "random_subset_seed")),
}


def check_run(p: SimpleNamespace, notebook: str):
    """Refuse parameters that do not go together, or not with the cache.

    Args:
        p: from `check_params`. notebook: its name.

    Raises:
        ParameterError: one sentence a line for every fault.
    """
    if notebook == "soft_distill_text":
        rules = [_text_run_name, _precision, _sweep]
    elif notebook == "evaluate":
        rules = [_run_name]
    elif notebook == "precompute":
        rules = [_source, *([_views, _teacher, _checkpoint, _stored_outputs] if p.cache_teacher_features else [])]
    else:
        rules = [_run_name, _dataset, _eval_split, _views, _teacher, _checkpoint, _student, _layers, _multicrop, _labels, _loss]
        rules += [_stored_outputs]
        rules += [_precision, _baseline, _held_out, _comparison] if notebook == "compare_regimes" else []
        rules += [_precision, _batch_norm, _shares, lambda p: _regime(p, notebook)] if notebook in SUBSETS else []
    _refuse_faults(rules, p)


def check_texts(p: SimpleNamespace, data: TextData):
    """Refuse what does not go with the texts that were loaded: before a teacher is built or trained for them.

    Raises:
        ParameterError: one sentence a line for every fault.
    """
    order, labels = Order(shard_sizes=(len(data.train),)), data.train.labels
    plan = EpochPlan(order, drop_last=False, **arguments_of(EpochPlan, p))
    rules = [lambda p: require_labels(data.train, **arguments_of(require_labels, p)), _shares]
    rules += [lambda p: _warm_up(p, plan, p.epochs)]
    if p.sweep_temperatures and (p.cache_teacher_logits or p.teacher_head == "labels"):
        numbers = None if labels is None else labels.numpy()
        rules += [lambda p: labels_fit(numbers, len(data.classes), alpha=min(p.sweep_alphas, default=1))]
        rules += [lambda p: _warm_up(p, plan, p.sweep_epochs, where="in the sweep, of sweep_epochs: ")]
    _refuse_faults(rules, p)


def _refuse_faults(rules: list[Callable], p: SimpleNamespace):
    """Ask every rule, and raise one error with what they refuse."""
    faults = []
    for rule in rules:
        try:
            rule(p)
        except (ValueError, FileNotFoundError, CacheError) as error:
            faults.append(str(error))
    if faults:
        raise ParameterError("\n".join(dict.fromkeys(faults)))


@contextlib.contextmanager
def _about(what: str) -> Iterator[None]:
    """Put `what` it is about before the sentence of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}{error}") from None


def _run_name(p: SimpleNamespace, outputs: str = "outputs"):
    if (name := getattr(p, "run_name", None)) is not None:
        require_run_name(name, outputs=outputs)


def _text_run_name(p: SimpleNamespace):
    _run_name(p, "outputs/student_soft_distill")


def _dataset(p: SimpleNamespace):
    require_dataset(p.dataset)


def _source(p: SimpleNamespace):
    """The images to be stored, and room for them where they can be counted without a copy."""
    _dataset(p)
    require_there(p.dataset)
    if is_local(p.dataset):
        as_it_is = {"streaming": p.streaming or is_table(p.dataset)}  # without the copy that `datasets` makes
        source = open_source_of(**arguments_of(open_source_of, p) | as_it_is, cache_dir=p.cache_dir, dataset=p.dataset)
        if source.num_images is not None and _cached_shards(p) is None:
            rows = min(source.num_images, p.max_samples or source.num_images)
            shards = len(even_shards(rows, p.cache_shard_size))
            check_space(anchored(p.cache_dir), rows, shards=shards, image_size=p.image_size, storage=p.storage)


def _eval_split(p: SimpleNamespace):
    """The held-out split, or the part that the cache holds out, or will hold out where there is none yet."""
    if p.eval_split is None or not p.dataset:
        return
    require_there(p.dataset)
    if not is_local(p.dataset):
        return
    cached = _cached_shards(p) is not None
    share = held_out_share(p.cache_dir, p.dataset) if cached else TABLE["precompute"]["held_out"].default
    table = is_table(p.dataset)
    given = arguments_of(open_source, p) | {"split": p.eval_split, "held_out": share, "streaming": p.streaming or table}
    with naming_eval_split():
        try:
            open_source(p.dataset, **given)
        except NoSplit as error:
            held_out_of_table = table and not p.streaming and share and p.eval_split in ("test", HELD_OUT)
            if not held_out_of_table or error.splits != ["train"]:
                raise


def _views(p: SimpleNamespace):
    require_recurring_views(**arguments_of(require_recurring_views, p))


def _teacher(p: SimpleNamespace):
    require_teacher_args(p.teacher, **arguments_of(require_teacher_args, p))
    if p.teacher != "builtin":
        with _about("teacher: "):
            _outline_teacher(p)
            if p.teacher_checkpoint is None:
                require_pretrained(local_or_hub(p.teacher))


def _outline_teacher(p: SimpleNamespace) -> FeatureModel | None:
    """The teacher without weights; None where its name alone does not make it."""
    model = outline(local_or_hub(p.teacher), **p.teacher_args)
    return None if model is None else FeatureModel(model, layers=p.feature_layers)


def _checkpoint(p: SimpleNamespace):
    if p.teacher != "builtin" and p.teacher_checkpoint is not None:
        require_checkpoint(anchored(p.teacher_checkpoint))


def _student(p: SimpleNamespace):
    with _about("student: "):
        build.require_student(p.student, **arguments_of(build.require_student, p))


def _stored_outputs(p: SimpleNamespace):
    """Room for the pooled features of the images that are cached: the least that the teacher's stored outputs take."""
    folder, sizes = anchored(p.teacher_feature_dir), _cached_shards(p)
    if not p.cache_teacher_features or p.teacher == "builtin" or sizes is None or folder.exists():  # some may be stored there
        return
    with contextlib.suppress(ValueError):  # of which _teacher speaks
        if (teacher := _outline_teacher(p)) is not None:
            row = OutputCodec(feature_dim=teacher.feature_dim, layer_dims=teacher.layer_dims, storage=p.teacher_storage).row
            images = max(sizes) if "fixed_shards" in vars(p) else sum(sizes)
            count = f"{images:,} images x {p.teacher_views or 1} views x {row.itemsize:,} bytes or more"
            require_space(folder, images * (p.teacher_views or 1) * row.itemsize, count)


def _layers(p: SimpleNamespace):
    require_as_many_layers(p.student_layers, p.feature_layers)


def _multicrop(p: SimpleNamespace):
    build.require_multicrop(**arguments_of(build.require_multicrop, p))


def _labels(p: SimpleNamespace):
    """Labels against the data's own classes; whether they fit a teacher's head, the teacher tells."""
    if needs_labels(p.loss, alpha=p.alpha) and _cached_shards(p) is not None:
        cached = CachedTensorDataset(anchored(p.cache_dir))
        labels_fit(cached.labels, build.num_classes(cached.labels, cached.classes), alpha=p.alpha, loss=p.loss)


def _loss(p: SimpleNamespace):
    loss_weights(p.loss, p.loss_args)
    build.require_whole_logits(**arguments_of(build.require_whole_logits, p))


def _precision(p: SimpleNamespace):
    precision_for(p.mixed_precision, find_device())


def _batch_norm(p: SimpleNamespace):
    require_batch_norm(p.batch_norm, find_device(), processes=_processes(p))


def _shares(p: SimpleNamespace):
    require_equal_shares(p.batch_size, _processes(p))


def _regime(p: SimpleNamespace, notebook: str):
    """The subset against the images, the batch against the subset, warm-up against all steps."""
    regime, names = SUBSETS[notebook]
    subset = {name: getattr(p, name) for name in names}
    if (sizes := _shards(p)) is not None:
        plan = EpochPlan(Order(shard_sizes=sizes, regime=regime, **subset), **arguments_of(EpochPlan, p))
        _warm_up(p, plan, p.epochs)
    elif p.max_steps_per_epoch is not None:  # there may be fewer steps, but never more
        count_warmup_steps(p.warmup_steps, total_steps=p.epochs * p.max_steps_per_epoch)


def _warm_up(p: SimpleNamespace, plan: EpochPlan, epochs: int, where: str = ""):
    steps = count_steps(plan, epochs=epochs, gradient_accumulation_steps=p.gradient_accumulation_steps)
    with _about(where):
        count_warmup_steps(p.warmup_steps, total_steps=steps)


def _baseline(p: SimpleNamespace):
    if p.baseline not in p.regimes.replace(",", " ").split():
        raise ValueError(f"baseline is {p.baseline}, but regimes is {p.regimes!r}; it must be among them.")


def _held_out(p: SimpleNamespace):
    evaluate.require_held_out(p.eval_split)


def _comparison(p: SimpleNamespace):
    if (sizes := _shards(p)) is not None:
        run, *_ = sweep.plan_runs("check", shards=sizes, **vars(p))
        count_warmup_steps(p.warmup_steps, total_steps=run.parameters["max_steps_per_epoch"] * p.epochs)


def _sweep(p: SimpleNamespace):
    if p.sweep_temperatures and not p.sweep_alphas:
        raise ValueError("sweep_alphas is empty, but sweep_temperatures is not; give at least one alpha, or no temperatures.")


def _processes(p: SimpleNamespace) -> int:
    return max(getattr(p, "processes", 1), distributed.world())


def _shards(p: SimpleNamespace) -> tuple[int, ...] | None:
    """Rows of each shard that the run will read: the cache's, or those that the digits are cut into; None: not known yet."""
    cached = _cached_shards(p) if p.use_cached else None
    if cached is None and p.dataset == "digits":
        digits = open_source(p.dataset, **arguments_of(open_source, p))
        return even_shards(digits.num_images or 0, p.cache_shard_size)
    return cached


def _cached_shards(p: SimpleNamespace) -> tuple[int, ...] | None:
    """Rows of each shard of the cache; None where there is none yet, or a broken one, of which the next cell speaks."""
    try:
        return tuple(entry["rows"] for entry in read_index(anchored(p.cache_dir))["shards"]) or None
    except (FileNotFoundError, ValueError):
        return None
