"""From checked parameters to the pieces of `soft_distill_text.ipynb`: texts, teacher and its gate, student, runs."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch

from kdnb import distributed
from kdnb.distillation.teacher import LiveTeacher
from kdnb.distillation.train import train
from kdnb.distributed import find_device
from kdnb.evaluation.compare import ModelReport, compare_models
from kdnb.losses import DistillationLoss
from kdnb.runs import Run, anchored, local_or_hub, set_seed
from kdnb.text.batches import TextLoader
from kdnb.text.classifier import TextClassifier, explain_out_of_memory, load_classifier, save_classifier
from kdnb.text.small_text import make_small_classifier
from kdnb.text.texts import Texts, missing_classes, open_texts, split_validation, stratified_rows
from kdnb.text.tokens import tokenise


class LiveTextTeacher(LiveTeacher):
    """A text classifier that is asked anew for every batch, which holds its own tokens as "teacher_text"."""

    @torch.no_grad()
    def __call__(self, views: list, batch: dict) -> list[dict[str, torch.Tensor]]:
        """One answer to the batch's texts."""
        return [self.model(batch["teacher_text"])]


class CachedLogits:
    """A teacher whose logits [N, C] are known: a fixed text gets the same answer every epoch, from a frozen teacher.

    `batch["id"]` are rows of the table.
    """

    def __init__(self, logits: torch.Tensor):
        self.logits = logits

    def __call__(self, views: list, batch: dict) -> list[dict[str, torch.Tensor]]:
        """One answer to the batch's texts."""
        device = batch["text"]["input_ids"].device
        return [{"logits": self.logits[batch["id"]].to(device, non_blocking=True)}]


@dataclass(frozen=True)
class Data:
    """Texts of a run: `train` teaches the student, `validation` chooses, `test` judges; a teacher may learn from the `pool`."""

    pool: Texts
    train: Texts
    validation: Texts
    test: Texts

    @property
    def classes(self) -> list[str]:
        """Names of the classes."""
        return self.test.classes


def load_data(p: SimpleNamespace) -> Data:
    """Open, split and draw the texts, classes kept in proportion.

    Training texts without labels will do for alpha 1; validation texts are then split off the held-out ones.

    Raises:
        ValueError: a class that is missing from a split, more samples asked for than there are (on_short: refuse), labels
            that are missing where they are needed.
    """
    where = local_or_hub(p.dataset)
    columns = {"text_columns": p.text_columns.replace(",", " ").split() or None, "label_column": p.label_column}
    whole = open_texts(where, split=p.split, **columns)
    test = open_texts(where, split=p.eval_split, classes=whole.classes, **columns)
    if test.labels is None:
        raise ValueError(f"dataset {p.dataset}, split {p.eval_split}, has no labels to judge by; set label_column or eval_split.")
    if whole.labels is None and (p.alpha < 1 or p.teacher == "builtin"):
        need = f"alpha is {p.alpha}" if p.alpha < 1 else "the built-in teacher learns from labels"
        raise ValueError(f"dataset {p.dataset}, split {p.split}, has no labels, but {need}; set label_column, or alpha to 1 "
                         "with a trained teacher.")  # fmt: skip
    split = {"fraction": p.validation_split, "seed": p.seed}
    if whole.labels is None:
        pool, (test, validation) = whole, split_validation(test, **split)
    else:
        pool, validation = split_validation(whole, **split)
    chosen = {"seed": p.seed, "on_short": p.on_short}
    train, validation = (
        _draw(texts, getattr(p, name), name=name, **chosen)
        for texts, name in ((pool, "max_train_samples"), (validation, "max_val_samples"))
    )
    for texts, name in ((train, "training"), (validation, "validation"), (test, "test")):
        if texts.labels is not None and (missing := missing_classes(texts)):
            raise ValueError(f"{', '.join(missing)} has no {name} text; draw more samples, or choose another seed.")
    return Data(pool, train, validation, test)


def build_student(p: SimpleNamespace, data: Data) -> TextClassifier:
    """The student with its first weights; the seed alone decides a head that its checkpoint lacks."""
    name = local_or_hub(p.student)
    if p.student == "builtin":
        shape = {"kind": "modernbert", "vocab_size": 2048, "hidden": 64, "layers": 1, "dropout": 0.2}
        name = str(small_model(data, shape | {"max_length": p.max_length, "seed": p.seed}))
    set_seed(p.seed)
    checkpointing = p.gradient_checkpointing
    student = load_classifier(name, num_classes=len(data.classes), classes=data.classes, gradient_checkpointing=checkpointing)
    return student.to(find_device())


def build_loader(
    p: SimpleNamespace, texts: Texts, student: TextClassifier, teacher: TextClassifier | None = None, **settings
) -> TextLoader:
    """Batches of `texts`, tokenised for the student and, for a live teacher, for the teacher as well."""
    tables = {}
    for name, model in (("text", student), ("teacher_text", teacher)):
        if model is not None:
            table = tokenise(texts, model.tokenizer, max_length=p.max_length, cache_dir=anchored("outputs/cache_tokens"))
            tables[name] = (table, model.tokenizer.pad_token_id, "right")
    settings = {"batch_size": p.batch_size, "seed": p.seed} | settings
    return TextLoader(tables, texts.labels, device=find_device(), **settings)


@torch.inference_mode()
def answers(p: SimpleNamespace, model: TextClassifier, texts: Texts, *, features: bool = False) -> torch.Tensor:
    """Logits float32 [N, C] of `texts`, or features [N, D], in their order, in eval mode; the mode is put back after."""
    loader, training, found = build_loader(p, texts, model, shuffle=False), model.training, []
    model.to(loader.device).eval()
    for batch in loader:
        output = model(batch["text"])
        found.append((output["features" if features else "logits"]).float().cpu())
    model.train(training)
    return torch.cat(found).clone()


def accuracy(p: SimpleNamespace, model: TextClassifier, texts: Texts, logits: torch.Tensor | None = None) -> float:
    """Share of `texts` that `model` classifies rightly; `logits` are its answers, where they are known."""
    logits = answers(p, model, texts) if logits is None else logits
    return (logits.argmax(1) == texts.labels).double().mean().item()


def distil(p: SimpleNamespace, data: Data, teacher, run: Run, **changes) -> tuple[TextClassifier, dict]:
    """Train a new student in `run`; `changes` replace parameters, such as temperature and alpha, for a sweep.

    Args:
        teacher: logits [N, C] of the training texts, or a live TextClassifier.

    Returns:
        The student with the weights of its best epoch by validation accuracy, and the history.
    """
    p = SimpleNamespace(**vars(p) | changes)
    student = build_student(p, data)
    live = isinstance(teacher, TextClassifier)
    names = ("max_steps_per_epoch", "gradient_accumulation_steps")
    loader = build_loader(p, data.train, student, teacher if live else None, **{name: getattr(p, name) for name in names})

    def validate(model):
        logits = answers(p, model, data.validation)
        loss = torch.nn.functional.cross_entropy(logits, data.validation.labels).item()
        return {"val_loss": loss, "val_accuracy": accuracy(p, model, data.validation, logits)}

    settings = (
        "epochs learning_rate weight_decay warmup_steps gradient_accumulation_steps clip_grad_norm mixed_precision seed "
        "save_every_steps keep_checkpoints"
    )
    memory = {name: getattr(p, name) for name in ("batch_size", "max_length", "gradient_accumulation_steps")}
    with explain_out_of_memory(**memory):
        history = train(
            student,
            LiveTextTeacher(teacher) if live else CachedLogits(teacher),
            loader,
            views=text_views,
            loss=DistillationLoss("soft_targets", temperature=p.temperature, alpha=p.alpha, log_accuracy=True),
            run=run,
            save_model=lambda model, folder: save_classifier(model, folder),
            validate=validate,
            early_stopping=p.early_stopping,
            **{name: getattr(p, name) for name in settings.split()},
        )
    best = load_classifier(run.folder / "best_model", classes=data.classes).to(find_device())
    return best, history


def text_views(tokens: dict, ids: torch.Tensor, epoch: int) -> list[dict]:
    """A text is its own and only view."""
    return [tokens]


text_views.num_global = 1


def sweep(p: SimpleNamespace, data: Data, logits: torch.Tensor, out: Run) -> dict[float, dict[float, float]]:
    """Best validation accuracy for each temperature and alpha of `p`, each a run of `sweep_epochs` below `out`; with alpha 0
    the temperature plays no part, and one run serves all. {temperature: {alpha: accuracy}}."""
    found: dict[float, dict[float, float]] = {}
    for temperature in p.sweep_temperatures:
        for alpha in p.sweep_alphas:
            first = next(iter(found.values()), {})
            if alpha == 0 and alpha in first:
                found.setdefault(temperature, {})[alpha] = first[alpha]
                continue
            run = Run(f"T{temperature:g}_A{alpha:g}", vars(p), prefix="sweep", outputs=out.folder / "sweep")
            changes = {"temperature": temperature, "alpha": alpha, "epochs": p.sweep_epochs}
            _, history = distil(p, data, logits, run, **changes)
            found.setdefault(temperature, {})[alpha] = max(epoch["val_accuracy"] for epoch in history["epochs"])
    return found


def compare(p: SimpleNamespace, teacher: TextClassifier, student: TextClassifier, data: Data, folder: Path, teacher_logits=None):
    """Teacher and student on the test texts, side by side: see `kdnb.evaluation.compare.compare_models`."""
    sides = []
    for name, model in (("teacher", teacher), ("student", student)):
        many = next(iter(build_loader(p, data.test, model, shuffle=False)))["text"]
        one = next(iter(build_loader(p, data.test, model, shuffle=False, batch_size=1)))["text"]
        given = teacher_logits if name == "teacher" else None
        logits = answers(p, model, data.test) if given is None else given
        calls = {"one": lambda model=model, one=one: model(one), "many": lambda model=model, many=many: model(many)}
        sides.append(ModelReport(name=name, model=model.model, logits=logits, batch_size=len(many["input_ids"]), **calls))
    return compare_models(*sides, labels=data.test.labels, classes=data.classes, device=find_device(), folder=folder)


def model_folders(run: Run) -> list[str]:
    """The model folders that `run` has written."""
    return sorted(path.parent.name for path in run.folder.glob("*_model/config.json"))


def _draw(texts: Texts, count: int | None, **how) -> Texts:
    return texts if count is None else texts.take(stratified_rows(texts.labels, count, num_rows=len(texts), **how))


def small_model(data: Data, settings: dict) -> Path:
    """Folder of a small classifier with random weights for these texts: found, or made now."""
    key = hashlib.sha256(f"{data.pool.fingerprint} {sorted(settings.items())}".encode()).hexdigest()[:16]
    folder = anchored("outputs/small_text") / key
    with distributed.rank_0_first():  # a tokenizer that is learnt twice is not quite the same
        if not folder.is_dir():
            make_small_classifier(folder, texts=data.pool.texts, classes=data.classes, **settings)
    return folder
