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
ASKING = ("precompute", *COMPARE)  # may store a teacher's answers

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


def _rows(name, kind, default, help, notebooks=COMPARE, low=None, high=None, choices=None, optional=False, **own):
    """One row a notebook; a notebook that is named in `own` has that default instead."""
    row = Param(name, kind, default, help, low=low, high=high, choices=choices, optional=optional)
    assert own.keys() <= set(notebooks), (name, own)
    return [(notebook, replace(row, default=own.get(notebook, default))) for notebook in notebooks]


def _sections() -> dict[str, list]:
    p = _rows
    return {
        "data": [
            p("dataset", str, "digits", "digits (built in), cifar10, cifar100, an image folder, Parquet, or one of the Hub",
              IMAGES),
            p("dataset", str, None, "digits, cifar10, cifar100, an image folder, Parquet, or the Hub; None: the run's own",
              ("evaluate",), optional=True),
            p("dataset", str, "docstrings", "docstrings (built in), dbpedia, ag_news, a folder with CSV or Parquet, or the Hub",
              TEXT),
            p("split", str, "train", "split of the data set", (*SOURCES, *TEXT)),
            p("eval_split", str, "test", "held-out split for the linear probe; None: no probe", COMPARE, optional=True),
            p("eval_split", str, "test", "held-out split that judges", ("evaluate", *TEXT)),
            p("probe_samples", int, 10_000, "training images that the probe is fitted on, at most", PROBES, low=10),
            p("image_column", str, None, "column of the images; None: the only one", SOURCES, optional=True),
            p("text_columns", str, "", "columns of the texts, in order; empty: every column of strings", TEXT),
            p("label_column", str, None, "column of the labels; None: found by its type and name", (*SOURCES, *TEXT),
              optional=True),
            p("validation_split", float, 0.15, "share of the training texts that chooses models and settings", TEXT, low=0.01,
              high=0.9),
            p("max_train_samples", int, None, "labelled texts that the student learns from, drawn by class; None: all", TEXT,
              low=1, optional=True),
            p("max_val_samples", int, None, "validation texts, drawn by class; None: all", TEXT, low=1, optional=True),
            p("on_short", str, "refuse", "where more samples are asked for than there are: refuse or take_all", TEXT,
              choices=("refuse", "take_all")),
            p("max_length", int, 48, "tokens of a text, at most", TEXT, low=2),
            p("streaming", bool, False, "read a Hub data set without storing it", SOURCES),
            p("cache_dir", str, "outputs/cache_digits", "folder of the shards, from the project's root", IMAGES),
            p("cache_shard_size", int, 48, "images per shard", IMAGES, low=1),
            p("image_size", int, 32, "side of the stored images in pixels", IMAGES, low=1),
            p("resize", str, "crop", "crop: short side to image_size and centre crop; squash: both sides", IMAGES,
              choices=("crop", "squash")),
            p("storage", str, "uint8", "number format of the shards: uint8, float16 or float32", ("precompute",),
              choices=("uint8", "float16", "float32")),
            p("max_samples", int, None, "images to store; None: all", ("precompute",), low=1, optional=True),
            p("permutation_seed", int, 0, "store in a seeded random order; None: as they come", ("precompute",), low=0,
              optional=True),
            p("on_unreadable", str, "skip", "skip unreadable images (logged, recorded in the index) or refuse them",
              ("precompute",), choices=("skip", "refuse")),
            p("verify", bool, False, "compare every stored shard with its checksum first", ("precompute",)),
            p("part", int, 0, "which part of the shards this job makes, from 0", ("precompute",), low=0),
            p("parts", int, None, "jobs that share the shards; None: the processes that run this notebook together",
              ("precompute",), low=1, optional=True),
            p("num_workers", int, 0, "worker processes that read and decode; 0: none", IMAGES, low=0, high=256),
            p("use_cached", bool, True, "read the shards in cache_dir; false: decode the raw images on the fly"),
            p("persistent_workers", bool, False, "keep worker processes between epochs"),
            p("shuffle", str, "within_shards", "order inside an epoch, the same for every regime: none, within_shards or all",
              choices=("none", "within_shards", "all")),
            p("fixed_shards", int, 25, "shards that every epoch reads", ("train_fixed",), low=1),
            p("fixed_choice", str, "first", "the first shards, or a seeded choice", ("train_fixed",),
              choices=("first", "seeded")),
            p("samples_per_epoch", int, 1200, "random samples drawn per epoch; None: draw shards", ("train_random",), low=1,
              optional=True),
            p("shards_per_epoch", int, None, "random shards drawn per epoch; None: draw samples", ("train_random",), low=1,
              optional=True),
            p("draw", str, "independent", "independent: draw each epoch anew; dealt: without replacement", ("train_random",),
              choices=("independent", "dealt")),
            p("random_subset_seed", int, 0, "seed of the random or fixed subset", ("train_random", "train_fixed"), low=0),
        ],
        "models and loss": [
            p("teacher", str, "builtin", "builtin (trained here on the digits), a timm model, or a model folder", ASKING),
            p("teacher", str, "builtin", "builtin (trained here), a classifier of transformers, or its folder", TEXT),
            p("teacher_args", dict, {}, "keyword arguments of the teacher", ASKING),
            p("teacher_checkpoint", str, None, "file with the teacher's weights; None: pretrained from the Hub", ASKING,
              optional=True),
            p("teacher_head", str, "keep", "keep, or a new one for an untrained one: linear, finetune, labels (zero-shot)", TEXT,
              choices=("keep", "linear", "finetune", "labels")),
            p("student", str, "cifar_resnet8", "timm model"),
            p("student", str, "builtin", "builtin, a model of transformers, or its folder", TEXT),
            p("student_args", dict, {"width": 8}, "keyword arguments of the student"),
            p("feature_layers", list[int], [], "teacher layers to imitate beside the pooled features (cosine), by index", ASKING),
            p("student_layers", list[int], [], "the student's layers that imitate feature_layers"),
            p("teacher_tokens", bool, False, "imitate (and store) the teacher's patch tokens; the student needs as many", ASKING),
            p("loss", str, "mse", "what is imitated: mse (standardised features), cosine (their direction) or soft_targets",
              choices=("mse", "cosine", "soft_targets")),
            p("temperature", float, 2.0, "temperature of the soft targets", LOOPS, low=0.01, high=1000, soft_distill_text=3.0),
            p("alpha", float, 1.0, "weight of the distillation term; 1 needs no labels", LOOPS, low=0, high=1,
              soft_distill_text=0.7),
            p("augmentation", str, "simple", "clean, simple (crop and flip), or multicrop (two DINO-style global crops)", ASKING,
              choices=("clean", "simple", "multicrop")),
            p("crop_scale_min", float, 0.6, "smallest share of the image's area in a (global) crop", ASKING, low=0.01, high=1),
            p("horizontal_flip", bool, False, "mirror half of the views (a mirrored 3 is no digit)", ASKING),
            p("use_local_crops", bool, False, "multicrop: the student also sees small crops"),
            p("local_crops_number", int, 6, "local crops per image", low=1, high=64),
            p("local_crop_size", int, 16, "side of the local crops in pixels", low=1),
        ],
        "what is computed once and kept": [
            p("cache_teacher_features", bool, False, "store the teacher's answers and read them from then on"),
            p("cache_teacher_features", bool, False, "store the teacher's answers ahead of a training that has the same values",
              ("precompute",)),
            p("teacher_feature_dir", str, "outputs/cache_teacher", "folder of the teacher's answers", ASKING),
            p("teacher_views", int, None, "views per image, seen in turn, whose answers are stored; None: ever new ones", ASKING,
              low=1, optional=True),
            p("teacher_storage", str, "float16", "number format of the stored answers: float16 or float32", ASKING,
              choices=("float16", "float32")),
            p("teacher_top_k", int, None, "store only the k largest logits and the rest's mass; None: all", ASKING, low=1,
              optional=True),
            p("cache_teacher_logits", bool, True, "ask the teacher once and keep its answers; false: live", TEXT),
            p("cache_on_device", str, "auto", "keep the images of a run in GPU memory: true, false, or auto (where they fit)",
              choices=("auto", "true", "false")),
        ],
        "training": [
            p("epochs", int, 10, "passes over the data, or over what the regime draws of them", LOOPS, low=1, compare_regimes=5),
            p("max_steps_per_epoch", int, None, "optimizer steps after which an epoch ends; None: no cap", LOOPS, low=1,
              optional=True, train_optimized=40),
            p("batch_size", int, 32, "images per forward pass", ASKING, low=1),
            p("batch_size", int, 16, "texts per forward pass", TEXT, low=1),
            p("gradient_accumulation_steps", int, 1, "forward passes per optimizer step", LOOPS, low=1),
            p("learning_rate", float, 0.005, "peak learning rate of AdamW", LOOPS, low=0, soft_distill_text=0.001),
            p("weight_decay", float, 0.05, "weight decay of AdamW (matrices only)", LOOPS, low=0, soft_distill_text=0.01),
            p("warmup_steps", COUNT_OR_SHARE, 50, "steps of linear warm-up before the cosine decay, or their share of all steps",
              LOOPS, low=0, compare_regimes=5),
            p("clip_grad_norm", float, 1.0, "largest gradient norm; None: no clipping", LOOPS, low=0, optional=True),
            p("mixed_precision", str, "auto", "no, bf16, fp16, or auto: bf16 where the hardware has it", LOOPS,
              choices=("auto", "no", "bf16", "fp16")),
            p("gradient_checkpointing", bool, False, "less memory for about a third more time", TEXT),
            p("compile_student", bool, False, "compile the student with torch.compile"),
            p("batch_norm", str, "local", "several processes: statistics of each one's part of a batch, or (sync, GPUs) of all",
              choices=("local", "sync")),
            p("early_stopping", int, None, "stop after so many epochs without a better validation accuracy; None: never", TEXT,
              low=1, optional=True),
            p("seed", int, 0, "seed of initialisation, shuffling and views", ("precompute", *TRAIN, *TEXT), low=0),
        ],
        "the sweep": [
            p("sweep_temperatures", list[float], [1, 5], "temperatures of the sweep; empty: no sweep", TEXT),
            p("sweep_alphas", list[float], [0.5, 1], "alphas of the sweep", TEXT),
            p("sweep_epochs", int, 4, "epochs of each run of the sweep: enough to tell the settings apart", TEXT, low=1),
        ],
        "the comparison": [
            p("regimes", str, "full random_samples random_shards dealt fixed", "sampling regimes to compare",
              ("compare_regimes",)),
            p("baseline", str, "fixed", "the regime that the others are compared with", ("compare_regimes",),
              choices=("full", "random_samples", "random_shards", "dealt", "fixed")),
            p("subset_shards", int, 16, "size of an epoch's subset in shards, for every regime that has one",
              ("compare_regimes",), low=1),
            p("seeds", list[int], [0, 1, 2], "one run of each regime per seed; a permutation test needs 6 to reach 0.05",
              ("compare_regimes",)),
            p("parallel_runs", int, 2, "training notebooks at a time; 1 on a single GPU", ("compare_regimes",), low=1, high=64),
        ],
        "the run": [
            p("checkpoint_dir", str, None, "outputs/<run>, or several with commas; None: a short run on the digits, made now",
              ("evaluate",), optional=True),
            p("run_name", str, None, "folder below outputs; the same name resumes; None: notebook name and time", TRAIN,
              optional=True),
            p("run_name", str, None, "folder below outputs; the same name goes on; None: compare_regimes", ("compare_regimes",),
              optional=True),
            p("run_name", str, None, "folder below outputs for table and figures; None: evaluate and the time", ("evaluate",),
              optional=True),
            p("run_name", str, None, "folder below outputs/student_soft_distill; the same resumes; None: settings and time", TEXT,
              optional=True),
            p("save_every_steps", int, 100, "checkpoint every so many steps, beside one per epoch; None: epochs only",
              (*TRAIN, *TEXT), low=1, optional=True, soft_distill_text=None),
            p("keep_checkpoints", int, None, "how many checkpoints to keep; None: all", (*TRAIN, *TEXT), low=1, optional=True,
              soft_distill_text=1),
            p("processes", int, 1, "processes (GPUs) of this machine that train, followed from the notebook", TRAIN, low=1,
              high=64),
            p("tour_steps", int, 8, "steps that the tour measures each way of training for; 0: no tour", ("train_optimized",),
              low=0),
        ],
    }  # fmt: skip


def _table() -> dict[str, dict[str, Param]]:
    table = {notebook: {} for notebook in FIRST}
    for section, rows in _sections().items():
        for notebook, row in (entry for entries in rows for entry in entries):
            assert row.name not in table[notebook], f"{notebook} has {row.name} twice"
            table[notebook][row.name] = replace(row, section=section)
    for notebook, names in FIRST.items():
        first = {name: replace(table[notebook].pop(name), section="") for name in names.split()}
        table[notebook] = first | table[notebook]
    return table


TABLE = _table()  # notebook -> name -> Param, in the order of the notebook's parameters cell
