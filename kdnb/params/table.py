"""The one table of notebook parameters: name, type, meaning, notebooks, range."""

from kdnb.params.param import Param

TRAIN = ("train_optimized", "train_random", "train_fixed")
COMPARE = (*TRAIN, "compare_regimes")
IMAGES = ("precompute", *COMPARE)
SOURCES = (*IMAGES, "evaluate")
PROBES = (*COMPARE, "evaluate")
TEXT = ("soft_distill_text",)
LOOPS = (*COMPARE, *TEXT)
ASKING = ("precompute", *COMPARE)  # may store a teacher's answers


def _table() -> dict[str, Param]:
    def p(name, kind, help, notebooks=COMPARE, low=None, high=None, choices=None, optional=False):
        return Param(name, kind, help, notebooks, low, high, choices, optional)

    rows = [
        p("dataset", str, "digits, cifar10, cifar100, an image folder, Parquet, or a data set on the Hub; evaluate: None is the "
          "run's own", (*SOURCES, *TEXT), optional=True),
        p("split", str, "split of the data set", (*SOURCES, *TEXT)),
        p("eval_split", str, "held-out split for the linear probe; None: no probe", (*PROBES, *TEXT), optional=True),
        p("probe_samples", int, "training images that the probe is fitted on, at most", PROBES, low=10),
        p("image_column", str, "column of the images; None: the only one", SOURCES, optional=True),
        p("label_column", str, "column of the labels; None: found by its type and name", (*SOURCES, *TEXT), optional=True),
        p("streaming", bool, "read a Hub data set without storing it", SOURCES),
        p("cache_dir", str, "folder of the shards, from the project's root", IMAGES),
        p("cache_shard_size", int, "images per shard", IMAGES, low=1),
        p("image_size", int, "side of the stored images in pixels", IMAGES, low=1),
        p("resize", str, "crop: short side to image_size and centre crop; squash: both sides", IMAGES,
          choices=("crop", "squash")),
        p("storage", str, "number format of the shards", ("precompute",), choices=("uint8", "float16", "float32")),
        p("max_samples", int, "images to store; None: all", ("precompute",), low=1, optional=True),
        p("permutation_seed", int, "store in a seeded random order (for sources sorted by class); None: as they come",
          ("precompute",), low=0, optional=True),
        p("on_unreadable", str, "skip unreadable images (logged, recorded in the index) or refuse them", ("precompute",),
          choices=("skip", "refuse")),
        p("verify", bool, "compare every stored shard with its checksum first", ("precompute",)),
        p("part", int, "which part of the shards this job makes, from 0", ("precompute",), low=0),
        p("parts", int, "jobs that share the shards; None: the processes that run this notebook together", ("precompute",), low=1,
          optional=True),
        p("num_workers", int, "worker processes; 0: none", IMAGES, low=0, high=256),
        p("use_cached", bool, "read the shards in cache_dir; false: decode the raw images on the fly"),
        p("tour_steps", int, "steps that the tour measures each way of training for; 0: no tour", ("train_optimized",), low=0),
        p("persistent_workers", bool, "keep worker processes between epochs"),
        p("fixed_shards", int, "shards that every epoch reads", ("train_fixed",), low=1),
        p("fixed_choice", str, "the first shards, or a seeded choice", ("train_fixed",), choices=("first", "seeded")),
        p("samples_per_epoch", int, "random samples drawn per epoch; None: draw shards", ("train_random",), low=1,
          optional=True),
        p("shards_per_epoch", int, "random shards drawn per epoch; None: draw samples", ("train_random",), low=1,
          optional=True),
        p("draw", str, "draw each epoch independently, or deal without replacement", ("train_random",),
          choices=("independent", "dealt")),
        p("random_subset_seed", int, "seed of the random or fixed subset", ("train_random", "train_fixed"), low=0),
        p("shuffle", str, "order inside an epoch", choices=("none", "within_shards", "all")),
        p("teacher", str, "timm model (text: of transformers), model folder, or builtin (trained here)", ("precompute", *LOOPS)),
        p("teacher_args", dict, "keyword arguments of the teacher", ASKING),
        p("teacher_checkpoint", str, "file with the teacher's weights; None: pretrained from the Hub", ASKING, optional=True),
        p("student", str, "timm model; text: a model of transformers, model folder, or builtin", LOOPS),
        p("student_args", dict, "keyword arguments of the student"),
        p("feature_layers", list, "teacher layers to imitate beside the pooled features (cosine), by index", ASKING),
        p("teacher_tokens", bool, "imitate (and store) the teacher's patch tokens (cosine); the student needs as many", ASKING),
        p("student_layers", list, "the student's layers that imitate feature_layers"),
        p("loss", str, "what the student imitates: standardised features, their direction, or soft targets",
          choices=("mse", "cosine", "soft_targets")),
        p("temperature", float, "temperature of the soft targets", LOOPS, low=0.01, high=1000),
        p("alpha", float, "weight of the distillation term; 1 needs no labels", LOOPS, low=0, high=1),
        p("augmentation", str, "clean, simple (crop and flip), or multicrop (two DINO-style global crops)",
          ASKING, choices=("clean", "simple", "multicrop")),
        p("crop_scale_min", float, "smallest share of the image's area in a (global) crop", ASKING, low=0.01, high=1),
        p("horizontal_flip", bool, "mirror half of the views", ASKING),
        p("use_local_crops", bool, "multicrop: the student also sees small crops"),
        p("local_crops_number", int, "local crops per image", low=1, high=64),
        p("local_crop_size", int, "side of the local crops in pixels", low=1),
        p("cache_teacher_features", bool, "store the teacher's answers and read them from then on", ASKING),
        p("teacher_feature_dir", str, "folder of the teacher's answers", ASKING),
        p("teacher_views", int, "keyed views per image, seen in turn, whose answers can be stored; None: new views every epoch",
          ASKING, low=1, optional=True),
        p("teacher_storage", str, "number format of the stored answers", ASKING, choices=("float16", "float32")),
        p("teacher_top_k", int, "store only the k largest logits and the rest's mass; None: all", ASKING, low=1, optional=True),
        p("cache_on_device", str, "keep the shards that a run visits in the device's memory; auto: on a GPU where they fit",
          choices=("auto", "true", "false")),
        p("epochs", int, "epochs", LOOPS, low=1),
        p("max_steps_per_epoch", int, "optimizer steps after which an epoch ends; None: no cap", LOOPS, low=1, optional=True),
        p("batch_size", int, "images (texts) per forward pass", ("precompute", *LOOPS), low=1),
        p("gradient_accumulation_steps", int, "forward passes per optimizer step", LOOPS, low=1),
        p("learning_rate", float, "peak learning rate of AdamW", LOOPS, low=0),
        p("weight_decay", float, "weight decay of AdamW (matrices only)", LOOPS, low=0),
        p("warmup_steps", int, "steps of linear warm-up before the cosine decay", LOOPS, low=0),
        p("clip_grad_norm", float, "largest gradient norm; None: no clipping", LOOPS, low=0, optional=True),
        p("mixed_precision", str, "no, bf16, fp16, or auto: bf16 where the hardware has it", LOOPS,
          choices=("auto", "no", "bf16", "fp16")),
        p("batch_norm", str, "several processes: statistics of each one's part of a batch, or of all of it (GPUs)",
          choices=("local", "sync")),
        p("compile_student", bool, "compile the student with torch.compile"),
        p("seed", int, "seed of initialisation, shuffling and views", ("precompute", *TRAIN, *TEXT), low=0),
        p("run_name", str, "folder below outputs (text: below outputs/student_soft_distill); the same name resumes; None: "
          "notebook name and time", (*PROBES, *TEXT), optional=True),
        p("save_every_steps", int, "checkpoint every so many steps, beside one per epoch; None: epochs only",
          (*TRAIN, *TEXT), low=1,
          optional=True),
        p("processes", int, "processes of this machine that train, followed from the notebook", TRAIN, low=1, high=64),
        p("keep_checkpoints", int, "how many checkpoints to keep; None: all", (*TRAIN, *TEXT), low=1, optional=True),
        p("regimes", str, "sampling regimes to compare: full, random_samples, random_shards, dealt, fixed",
          ("compare_regimes",)),
        p("baseline", str, "the regime that the others are compared with", ("compare_regimes",),
          choices=("full", "random_samples", "random_shards", "dealt", "fixed")),
        p("subset_shards", int, "size of an epoch's subset in shards, for every regime that has one", ("compare_regimes",),
          low=1),
        p("seeds", list, "one run of each regime per seed", ("compare_regimes",)),
        p("parallel_runs", int, "training notebooks at a time", ("compare_regimes",), low=1, high=64),
        p("checkpoint_dir", str, "folder of a run, or several with commas; None: a short run on the digits, made now",
          ("evaluate",), optional=True),
        p("text_columns", str, "columns of the texts, in order; empty: every column of strings", TEXT),
        p("validation_split", float, "share of the training texts that chooses models and settings", TEXT, low=0.01, high=0.9),
        p("max_train_samples", int, "labelled texts that the student learns from, drawn by class; None: all", TEXT, low=1,
          optional=True),
        p("max_val_samples", int, "validation texts, drawn by class; None: all", TEXT, low=1, optional=True),
        p("on_short", str, "where more samples are asked for than there are", TEXT, choices=("refuse", "take_all")),
        p("max_length", int, "tokens of a text, at most", TEXT, low=2),
        p("teacher_head", str, "a teacher without a trained head: keep (and refuse it), or give it one by linear (logistic "
          "regression), finetune, or labels (zero-shot)", TEXT, choices=("keep", "linear", "finetune", "labels")),
        p("cache_teacher_logits", bool, "ask the teacher once and keep its answers; false: live", TEXT),
        p("gradient_checkpointing", bool, "less memory for about a third more time", TEXT),
        p("early_stopping", int, "epochs without a better validation accuracy after which training stops; None: never", TEXT,
          low=1, optional=True),
        p("sweep_temperatures", list[float], "temperatures of the sweep; empty: no sweep", TEXT),
        p("sweep_alphas", list[float], "alphas of the sweep", TEXT),
        p("sweep_epochs", int, "epochs of each run of the sweep", TEXT, low=1),
    ]  # fmt: skip
    return {row.name: row for row in rows}


PARAMS = _table()
