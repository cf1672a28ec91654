"""The one table of notebook parameters: name, type, default, meaning, notebooks, range.

The parameters cell of every notebook is written from it (`python -m kdnb.params --write`), so that a default stands here alone.
"""

from dataclasses import replace

from kdnb.params.param import COUNT_OR_SHARE, Param

TRAIN = ("train_optimized", "train_random", "train_fixed")
COMPARE = (*TRAIN, "compare_regimes")
IMAGES = ("precompute", *COMPARE)
SOURCES = (*IMAGES, "evaluate")
PROBES = (*COMPARE, "evaluate")
TEXT = ("soft_distill_text",)
LOOPS = (*COMPARE, *TEXT)
# A params file may serve precompute and the training on its cache: what belongs to the training alone does nothing there.
LATER = {"precompute": TRAIN}

# What decides a run, on top of the cell, in this order.
_TRAINING = "dataset cache_dir image_size teacher student loss {} epochs batch_size run_name"
FIRST = {
    "precompute": "dataset split cache_dir cache_shard_size image_size max_samples storage num_workers",
    "train_optimized": _TRAINING.format("max_steps_per_epoch"),
    "train_random": _TRAINING.format("samples_per_epoch shards_per_epoch"),
    "train_fixed": _TRAINING.format("fixed_shards"),
    "compare_regimes": _TRAINING.format("regimes baseline subset_shards seeds"),
    "soft_distill_text": "dataset teacher teacher_head student temperature alpha max_train_samples epochs batch_size run_name",
    "evaluate": "checkpoint_dir dataset split eval_split probe_samples image_column label_column run_name",
}

_MOST = 10**9  # of a whole number that has no bound of its own: more images, steps or pixels than anybody has
_MOST_EPOCHS = 10_000  # what each of them visits is counted before the first
_LARGEST_SIDE = 8192  # of a view: its square is the largest picture that is decoded (data/decode.py)
_LARGEST_SEED = 2**63 - 1  # an int64


def _p(name, kind, default, help, notebooks=COMPARE, **facts) -> list[tuple[str, Param]]:
    """One row a notebook. `facts` are fields of Param, or the default that one notebook has instead, by the notebook's name."""
    own = {notebook: facts.pop(notebook) for notebook in notebooks if notebook in facts}
    if kind in (int, COUNT_OR_SHARE):
        facts.setdefault("high", _MOST)
    return [(notebook, Param(name, kind, own.get(notebook, default), help, **facts)) for notebook in notebooks]


def _by_data(digits, other):
    """What None stands for with the built-in digits, and with other images."""
    return lambda values: digits if values["dataset"] == "digits" else other


def _student_args(values) -> dict:
    """On the digits, the default student has half the width of the built-in teacher; other students may know no width."""
    return {"width": 8} if (values["dataset"], values["student"]) == ("digits", "cifar_resnet8") else {}


_SECTIONS = {
    "data": [
        _p("dataset", str, "digits", "digits (built in), cifar10, cifar100, an image folder, Parquet, or one of the Hub", IMAGES),
        _p("dataset", str, None, "digits, cifar10, cifar100, an image folder, Parquet, or the Hub; None: the run's own",
           ("evaluate",), optional=True),
        _p("dataset", str, "docstrings", "docstrings (built in), dbpedia, ag_news, a folder with CSV or Parquet, or the Hub",
           TEXT),
        _p("split", str, "train", "split of the data set", (*SOURCES, *TEXT)),
        _p("eval_split", str, "test", "held-out split for the linear probe; None: no probe", COMPARE, optional=True),
        _p("eval_split", str, "test", "held-out split that is predicted and scored", ("evaluate", *TEXT)),
        _p("probe_samples", int, 10_000, "training images that the probe is fitted on, at most", PROBES, low=10),
        _p("image_column", str, None, "column of the images; None: the only one", SOURCES, optional=True),
        _p("text_columns", str, "", "columns of the texts, in order; empty: every column of strings", TEXT),
        _p("label_column", str, None, "column of the labels; None: found by its type and name", (*SOURCES, *TEXT), optional=True),
        _p("validation_split", float, 0.15, "share of the training texts that chooses models and settings", TEXT, low=0.01,
           high=0.9),
        _p("max_train_samples", int, None, "labelled texts that the student learns from, drawn by class; None: all", TEXT, low=1,
           optional=True),
        _p("max_val_samples", int, None, "validation texts, drawn by class; None: all", TEXT, low=1, optional=True),
        _p("on_short", str, "refuse", "where more samples are asked for than there are: refuse or take_all", TEXT,
           choices=("refuse", "take_all")),
        _p("max_length", int, 48, "tokens of a text, at most", TEXT, low=2, high=100_000),
        _p("streaming", bool, False, "read a Hub data set without storing it", SOURCES, free=True),
        _p("cache_dir", str, "outputs/cache_digits", "folder of the shards, from the project's root", IMAGES),
        _p("cache_shard_size", int, 48, "images per shard", IMAGES, low=1),
        _p("image_size", int, 32, "side of the stored images in pixels", IMAGES, low=1, high=_LARGEST_SIDE),
        _p("resize", str, "crop", "crop: short side to image_size and centre crop; squash: both sides", IMAGES,
           choices=("crop", "squash")),
        _p("storage", str, "uint8", "number format of the shards: uint8, float16 or float32", ("precompute",),
           choices=("uint8", "float16", "float32")),
        _p("max_samples", int, None, "images to store; None: all", ("precompute",), low=1, optional=True),
        _p("permutation_seed", int, 0, "store in a seeded random order; None: as they come", ("precompute",), low=0,
           high=_LARGEST_SEED, optional=True),
        _p("held_out", float, 0.2, "share of each class held out where labelled images have no split but train; 0: none",
           ("precompute",), low=0, high=0.9),
        _p("on_unreadable", str, "skip", "skip unreadable images (logged, recorded in the index) or refuse them", ("precompute",),
           choices=("skip", "refuse")),
        _p("verify", bool, False, "compare every stored shard with its checksum first", ("precompute",)),
        _p("part", int, 0, "which part of the shards this job makes, from 0", ("precompute",), low=0),
        _p("parts", int, None, "jobs that share the shards; None: the processes that run this notebook together", ("precompute",),
           low=1, optional=True),
        _p("num_workers", int, 0, "worker processes that read and decode; 0: none", IMAGES, low=0, high=256, free=True),
        _p("use_cached", bool, True, "read the shards in cache_dir; false: decode the raw images on the fly"),
        _p("persistent_workers", bool, False, "keep worker processes between epochs", free=True),
        _p("shuffle", str, "within_shards", "order inside an epoch, the same for every regime: none, within_shards or all",
           choices=("none", "within_shards", "all")),
        _p("fixed_shards", COUNT_OR_SHARE, 0.8, "shards that every epoch reads, or their share of all", ("train_fixed",),
           above=0),
        _p("fixed_choice", str, "first", "the first shards, or a seeded choice", ("train_fixed",), choices=("first", "seeded")),
        _p("samples_per_epoch", COUNT_OR_SHARE, 0.8, "random samples, or a share of all, drawn per epoch; None: draw shards",
           ("train_random",), above=0, optional=True),
        _p("shards_per_epoch", COUNT_OR_SHARE, None, "random shards, or a share of all, drawn per epoch; None: draw samples",
           ("train_random",), above=0, optional=True),
        _p("draw", str, "independent", "independent: draw each epoch anew; dealt: without replacement", ("train_random",),
           choices=("independent", "dealt")),
        _p("random_subset_seed", int, 0, "seed of the random or fixed subset", ("train_random", "train_fixed"), low=0,
           high=_LARGEST_SEED),
    ],
    "models and loss": [
        _p("teacher", str, "builtin", "builtin (trained here on the digits), a timm model, or a model folder", IMAGES),
        _p("teacher", str, "builtin", "builtin (trained here), a classifier of transformers, or its folder", TEXT),
        _p("teacher_args", dict, {}, "keyword arguments of the teacher", IMAGES),
        _p("teacher_checkpoint", str, None, "file with the teacher's weights; None: pretrained from the Hub", IMAGES,
           optional=True),
        _p("teacher_head", str, "keep", "keep, or a new one for an untrained one: linear, finetune, labels (zero-shot)", TEXT,
           choices=("keep", "linear", "finetune", "labels")),
        _p("student", str, "cifar_resnet8", "timm model"),
        _p("student", str, "builtin", "builtin, a model of transformers, or its folder", TEXT),
        _p("student_args", dict, None, "arguments of the student; None: width 8 for cifar_resnet8 on the digits, else none",
           optional=True, stands_for=_student_args),
        _p("feature_layers", list[int], [], "teacher layers to imitate beside the pooled features (cosine), by index", IMAGES),
        _p("student_layers", list[int], [], "the student's layers that imitate feature_layers"),
        _p("teacher_tokens", bool, False, "imitate (and store) the teacher's patch tokens; the student needs as many", IMAGES),
        _p("projection_width", int, None, "hidden layer of the projection to the teacher's features; None: it is linear", low=1,
           high=65_536, optional=True),
        _p("loss", str, "mse", "what is imitated: mse (standardised features), cosine, soft_targets ... (docs/losses.md)",
           choices=("mse", "cosine", "cosine_smooth_l1", "phi_s", "relational", "similarity", "probabilistic", "soft_targets",
                    "logit_standardised", "decoupled", "dist", "normalised")),
        _p("loss_args", dict, None, "weights of the loss, such as beta for dist; None: those of its paper (docs/losses.md)",
           optional=True),
        _p("temperature", float, 2.0, "temperature of the soft targets", LOOPS, low=0.01, high=1000, soft_distill_text=3.0),
        _p("alpha", float, 1.0, "weight of the distillation term; 1 needs no labels", LOOPS, low=0, high=1,
           soft_distill_text=0.7),
        _p("augmentation", str, "simple", "clean, simple (crop and flip), or multicrop (two DINO-style global crops)", IMAGES,
           choices=("clean", "simple", "multicrop")),
        _p("crop_scale_min", float, None, "smallest share of an image in a (global) crop; None: 0.6 on the digits, else 0.4",
           IMAGES, low=0.01, high=1, optional=True, stands_for=_by_data(0.6, 0.4)),
        _p("horizontal_flip", bool, None, "mirror half of the views; None: not the digits (a mirrored 3 is no digit)", IMAGES,
           optional=True, stands_for=_by_data(False, True)),
        _p("use_local_crops", bool, False, "multicrop: the student also sees small crops"),
        _p("local_crops_number", int, 6, "local crops per image", low=1, high=64),
        _p("local_crop_size", int, 16, "side of the local crops in pixels", low=1, high=_LARGEST_SIDE),
    ],
    "what is computed once and kept": [
        _p("cache_teacher_features", bool, False, "store the teacher's outputs and read them from then on"),
        _p("cache_teacher_features", bool, False, "store the teacher's outputs ahead of a training that has the same values",
           ("precompute",)),
        _p("teacher_feature_dir", str, "outputs/cache_teacher", "folder of the stored teacher outputs", IMAGES),
        _p("teacher_views", int, None, "views per image, seen in turn, whose outputs are stored; None: ever new ones", IMAGES,
           low=1, high=1000, optional=True),
        _p("teacher_storage", str, "float16", "number format of the stored outputs: float16 or float32", IMAGES,
           choices=("float16", "float32")),
        _p("teacher_top_k", int, None, "store only the k largest logits and the rest's mass; None: all", IMAGES, low=1,
           optional=True),
        _p("cache_teacher_logits", bool, True, "compute the teacher's outputs once and keep them; false: in every step", TEXT),
        _p("cache_on_device", str, "auto", "keep the images of a run in GPU memory: true, false, or auto (where they fit)",
           choices=("auto", "true", "false"), free=True),
    ],
    "training": [
        _p("epochs", int, 10, "passes over the data, or over what the regime draws of them", LOOPS, low=1, high=_MOST_EPOCHS,
           compare_regimes=5),
        _p("max_steps_per_epoch", int, None, "optimizer steps after which an epoch ends; None: no cap", LOOPS, low=1,
           optional=True, train_optimized=40),
        _p("batch_size", int, 32, "images per forward pass", IMAGES, low=1),
        _p("batch_size", int, 16, "texts per forward pass", TEXT, low=1),
        _p("gradient_accumulation_steps", int, 1, "forward passes per optimizer step", LOOPS, low=1),
        _p("learning_rate", float, 0.005, "peak learning rate of AdamW", LOOPS, above=0, high=100, soft_distill_text=0.001),
        _p("weight_decay", float, 0.05, "weight decay of AdamW (matrices only)", LOOPS, low=0, high=100,
           soft_distill_text=0.01),
        _p("warmup_steps", COUNT_OR_SHARE, 0.1, "steps of linear warm-up before the cosine decay, or their share of all steps",
           LOOPS, low=0),
        _p("clip_grad_norm", float, 1.0, "largest gradient norm; None: no clipping", LOOPS, above=0, optional=True),
        _p("mixed_precision", str, "auto", "no, bf16, fp16, or auto: bf16 where the hardware has it", LOOPS,
           choices=("auto", "no", "bf16", "fp16")),
        _p("gradient_checkpointing", bool, False, "less memory for about a third more time", TEXT),
        _p("compile_student", bool, False, "compile the student with torch.compile"),
        _p("batch_norm", str, "local", "several processes: statistics of each one's part of a batch, or (sync, GPUs) of all",
           choices=("local", "sync")),
        _p("early_stopping", int, None, "stop after so many epochs without a better validation accuracy; None: never", TEXT,
           low=1, optional=True),
        _p("seed", int, 0, "seed of initialisation, shuffling and views", ("precompute", *TRAIN, *TEXT), low=0,
           high=_LARGEST_SEED),
    ],
    "the sweep": [
        _p("sweep_temperatures", list[float], [1, 5], "temperatures of the sweep; empty: no sweep", TEXT, low=0.01, high=1000),
        _p("sweep_alphas", list[float], [0.5, 1], "alphas of the sweep", TEXT, low=0, high=1),
        _p("sweep_epochs", int, 4, "epochs of each run of the sweep: enough to tell the settings apart", TEXT, low=1,
           high=_MOST_EPOCHS),
    ],
    "the comparison": [
        _p("regimes", str, "full random_samples fixed", "of full, random_samples, random_shards, dealt, fixed",
           ("compare_regimes",), free=True),
        _p("baseline", str, "fixed", "the regime that the others are compared with", ("compare_regimes",),
           choices=("full", "random_samples", "random_shards", "dealt", "fixed"), free=True),
        _p("subset_shards", COUNT_OR_SHARE, 0.5, "shards, or their share of all, in an epoch's subset, the same for every regime",
           ("compare_regimes",), above=0),
        _p("seeds", list[int], [0, 1, 2], "one run of each regime per seed; a permutation test needs 6 to reach 0.05",
           ("compare_regimes",), low=0, high=_LARGEST_SEED, free=True),
        _p("parallel_runs", int, 2, "training notebooks at a time; 1 on a single GPU", ("compare_regimes",), low=1, high=64,
           free=True),
    ],
    "the run": [
        _p("checkpoint_dir", str, None, "outputs/<run>, or several with commas; None: a short run on the digits, made now",
           ("evaluate",), optional=True),
        _p("run_name", str, None, "folder below outputs; the same name resumes; None: notebook name and time", TRAIN,
           optional=True),
        _p("run_name", str, None, "folder below outputs; the same name resumes; None: compare_regimes", ("compare_regimes",),
           optional=True),
        _p("run_name", str, None, "folder below outputs for table and figures; None: evaluate and the time", ("evaluate",),
           optional=True),
        _p("run_name", str, None, "folder below outputs/student_soft_distill; the same resumes; None: settings and time", TEXT,
           optional=True),
        _p("save_every_steps", int, 100, "checkpoint every so many steps, beside one per epoch; None: epochs only",
           (*TRAIN, *TEXT), low=1, optional=True, soft_distill_text=None, free=True),
        _p("keep_checkpoints", int, None, "how many checkpoints to keep; None: all", (*TRAIN, *TEXT), low=1, optional=True,
           soft_distill_text=1, free=True),
        _p("processes", int, 1, "processes (GPUs) of this machine that train, followed from the notebook", TRAIN, low=1, high=64,
           free=True),
        _p("tour_steps", int, 8, "steps that the tour measures each way of training for; 0: no tour", ("train_optimized",), low=0,
           free=True),
    ],
}  # fmt: skip


def _table() -> dict[str, dict[str, Param]]:
    table: dict[str, dict[str, Param]] = {notebook: {} for notebook in FIRST}
    for section, rows in _SECTIONS.items():
        for notebook, row in (entry for entries in rows for entry in entries):
            assert row.name not in table[notebook], f"{notebook} has {row.name} twice"
            table[notebook][row.name] = replace(row, section=section)
    for notebook, names in FIRST.items():
        first = {name: replace(table[notebook].pop(name), section="") for name in names.split()}
        table[notebook] = first | table[notebook]
    return table


TABLE = _table()  # notebook -> name -> Param, in the order of the notebook's parameters cell
FREE = {name for rows in TABLE.values() for name, row in rows.items() if row.free}  # may change when a run is resumed
