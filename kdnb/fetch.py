"""Everything that params files name, fetched ahead of a run on a machine without a network.

    python -m kdnb.fetch params/train_fixed.yaml params/soft_distill_dbpedia.yaml

on a cluster's login node fetches the weights, tokenizers and splits that the notebook of each file will read, into HF_HOME, and
prints a line for each: its name, what it is for, its bytes, and whether it was there already. What is local is not fetched, and
said where it is missing. Afterwards `HF_HUB_OFFLINE=1 papermill ... -f params/train_fixed.yaml` needs no network.
"""

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import yaml

from kdnb.data import prepare
from kdnb.data.cache import read_index
from kdnb.data.sources import PartSource, hub_name, is_local, open_source_of
from kdnb.data.splits import check_hub, copies_folder, open_split, prepared_before
from kdnb.evaluation.trained_run import data_to_judge_on, open_run
from kdnb.hub import hub_address, hub_answers, hub_home, is_offline, repo_folder
from kdnb.models.vision import build_model, require_model
from kdnb.params import TABLE, arguments_of, check_params
from kdnb.progress import format_bytes
from kdnb.runs import anchored, local_or_hub
from kdnb.text.classifier import fetch_classifier
from kdnb.text.texts import ALIASES

_STREAMED = (
    "not fetched; streaming is true, and a stream needs a network: run this notebook where there is one, or give "
    "`-p streaming false` both here and to the notebook, which takes twice the size of the files in HF_HOME."
)


class Item(NamedTuple):
    """One thing that a params file names.

    Attributes:
        name: as the Hub has it, or a path. purpose: the parameter that names it.
        fetch: fetches it and returns the bytes that it has on this disk; None where nothing is to be fetched.
        folders: those that grow where it is not there yet.
        remark: what else is said of it. missing: whether it is not here, cannot be fetched, and the run needs it.
    """

    name: str
    purpose: str
    fetch: partial[int] | None = None
    folders: tuple[Path, ...] = ()
    remark: str = ""
    missing: bool = False


def notebook_of(path: Path) -> str | None:
    """The notebook that a params file says it is for, in the last command of its comment; None where it does not say."""
    commands = re.findall(r"#\s+papermill \S*notebooks/(\w+)\.ipynb", path.read_text(encoding="utf-8"))
    return commands[-1] if commands else None


def read_params(path: Path, *, notebook: str | None = None, changes: dict | None = None) -> tuple[str, SimpleNamespace]:
    """(notebook, its checked parameters) of a params file.

    Args:
        notebook: where the file does not say. changes: parameters that replace the file's.

    Raises:
        FileNotFoundError, ValueError: no such file or notebook, or parameters that the notebook refuses.
    """
    if not path.is_file():
        raise FileNotFoundError("there is no such file; give the path of a YAML file, such as those in params/.")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"this is no YAML file ({' '.join(str(error).split())[:120]}).") from None
    notebook = notebook or notebook_of(path)
    if notebook is None or notebook not in TABLE:
        raise ValueError(f"the file does not say which notebook it is for; give --notebook, one of {', '.join(TABLE)}.")
    if not isinstance(values, dict):
        raise ValueError("the file holds no parameters; expected are lines such as `teacher: resnet18`.")
    defaults = {name: row.default for name, row in TABLE[notebook].items()}
    return notebook, check_params(defaults | values | (changes or {}), notebook)


def items_of(p: SimpleNamespace, notebook: str) -> Iterator[Item]:
    """What the notebook reads with the parameters `p`, in its order."""
    if notebook == "soft_distill_text":
        yield from (_texts(p.dataset, getattr(p, split), purpose=split) for split in ("split", "eval_split"))
        yield from (_text_model(getattr(p, role), role) for role in ("teacher", "student"))
    elif notebook == "evaluate":
        yield from _of_evaluation(p)
    elif notebook == "precompute":
        yield _split(p, p.split, "split")
        if p.cache_teacher_features:
            yield _teacher(p)
    else:
        yield from _of_training(p, notebook)


def _of_training(p: SimpleNamespace, notebook: str) -> Iterator[Item]:
    """Of a training notebook or of compare_regimes. A run reads its images from its cache, which precompute makes."""
    cached = (anchored(p.cache_dir) / "index.json").exists()
    if not p.use_cached:
        yield _split(p, p.split, "split")
    elif p.dataset != "digits":
        remark = "local" if cached else "local, not there yet; precompute makes it: fetch for its params file, too"
        yield Item(str(p.cache_dir), "cache_dir", remark=remark)
    if p.eval_split is not None:
        yield _split(p, p.eval_split, "eval_split", kept=prepare.held_out_batches)
    if notebook == "compare_regimes" and cached:
        yield from _probe_part(p)
    yield _teacher(p)
    if p.student.startswith("hf-hub:"):
        yield _timm(p.student, "student", pretrained=False, **p.student_args)
    else:
        require_model(p.student)  # untrained: nothing of it is fetched


def _of_evaluation(p: SimpleNamespace) -> Iterator[Item]:
    """Of evaluate, by what each run was trained with."""
    if p.checkpoint_dir is None:
        yield Item("a run on the digits", "checkpoint_dir", remark="local, made by the notebook")
    for folder in filter(str.strip, (p.checkpoint_dir or "").split(",")):
        run = open_run(folder.strip(), parameter="checkpoint_dir")
        images = SimpleNamespace(**data_to_judge_on(run, **arguments_of(data_to_judge_on, p)))
        images.eval_split, images.probe_samples = p.eval_split, p.probe_samples
        yield _split(images, p.eval_split, "eval_split", kept=prepare.held_out_batches)
        yield from _probe_part(images)
        yield _teacher(run.p)


def _probe_part(p: SimpleNamespace) -> Iterator[Item]:
    """The training images that a probe is fitted on, where the run's cache does not hold them."""
    if is_local(p.dataset):
        return
    try:  # the classes are those of the cache, unless the two do not belong together, which the evaluation says
        classes = read_index(anchored(p.cache_dir))["classes"]
    except (FileNotFoundError, ValueError):
        classes = None
    if not prepare.holds_training_part(p.probe_samples, classes=classes, **arguments_of(prepare.holds_training_part, p)):

        def keep(**arguments):
            return prepare.training_batches(p.probe_samples, classes=classes, **arguments)

        arguments = arguments_of(prepare.training_batches, p)
        yield _split(p, p.split, "split, for the probe", kept=keep, arguments=arguments)


def _split(p: SimpleNamespace, split: str, purpose: str, *, kept: Callable | None = None, arguments: dict | None = None) -> Item:
    """A split of an image data set, as files; where it is streamed, `kept` keeps its decoded images in outputs/."""
    if is_local(p.dataset):
        return Item(p.dataset, purpose, remark="local")
    name = f"{hub_name(p.dataset)}/{split}"
    if p.streaming and kept is None:
        return Item(name, purpose, remark=_STREAMED, missing=True)
    if p.streaming:
        arguments = arguments_of(kept, p) if arguments is None else arguments
        remark = f", streamed: its images are kept decoded, in {prepare.STORE}"
        return Item(name, purpose, partial(_keep_decoded, kept, **arguments), (anchored(prepare.STORE),), remark)
    columns = {"image_column": p.image_column, "label_column": p.label_column}
    fetch = partial(_fetch_images, p.cache_dir, p.dataset, split, **columns)
    return Item(name, purpose, fetch, _folders_of_data(hub_name(p.dataset)))


def _keep_decoded(kept: Callable, **arguments) -> int:
    batches = kept(**arguments)
    return 0 if batches is None else _bytes_in(batches.dataset.reader.cache_dir)


def _fetch_images(cache_dir: str, dataset: str, split: str, **columns) -> int:
    """A split, or where there is none but train, of which precompute holds a part out, that one."""
    source = open_source_of(cache_dir, dataset, split=split, held_out=0.2, **columns)  # whatever the share, all of it is fetched
    return _copied_bytes(hub_name(dataset), "train" if isinstance(source, PartSource) else split)


def _texts(dataset: str, split: str, *, purpose: str) -> Item:
    if dataset == "docstrings" or Path(local_or_hub(dataset)).exists():
        return Item(dataset, purpose, remark="local")
    name = ALIASES.get(dataset, dataset)
    return Item(f"{name}/{split}", purpose, partial(_fetch_texts, dataset, split), _folders_of_data(name))


def _fetch_texts(dataset: str, split: str) -> int:
    name = ALIASES.get(dataset, dataset)
    check_hub(name, alias=dataset, builtin="docstrings")
    open_split(dataset, name, split)
    return _copied_bytes(name, split)


def _teacher(p: SimpleNamespace) -> Item:
    """The teacher of an image run: nothing of one that is trained here, or lies in a folder or file."""
    path = None if p.teacher_checkpoint is None else anchored(p.teacher_checkpoint)
    if p.teacher == "builtin":
        return Item("builtin", "teacher", remark="local, trained by the notebook")
    require_model(local_or_hub(p.teacher))
    if path is not None and not path.is_file():
        absent = "local, and not there; copy the file with the teacher's weights to this path"
        return Item(p.teacher_checkpoint, "teacher_checkpoint", remark=absent, missing=True)
    if path is not None and not p.teacher.startswith("hf-hub:"):
        return Item(p.teacher_checkpoint, "teacher_checkpoint", remark="local")
    return _timm(p.teacher, "teacher", pretrained=path is None, **p.teacher_args)


def _timm(name: str, purpose: str, *, pretrained: bool, **arguments) -> Item:
    """A timm model's weights, or without `pretrained` the configuration of one of the Hub; built, which checks its arguments."""
    import timm

    if Path(local_or_hub(name)).exists():
        return Item(name, purpose, remark="local")
    if name.startswith("hf-hub:"):
        repo = name.removeprefix("hf-hub:").partition("@")[0]
    else:
        require_model(name)
        known = timm.get_pretrained_cfg(name)
        repo = (known.hf_hub_id if known else None) or f"timm/{name}"
    folder = repo_folder("models", repo)
    return Item(repo, purpose, partial(_fetch_timm, folder, name, pretrained=pretrained, **arguments), (folder,))


def _fetch_timm(folder: Path, name: str, **arguments) -> int:
    build_model(name, **arguments)
    return _bytes_in(folder)


def _text_model(name: str, purpose: str) -> Item:
    if name == "builtin" or Path(local_or_hub(name)).exists():
        return Item(name, purpose, remark="local, made by the notebook" if name == "builtin" else "local")
    return Item(name, purpose, partial(_fetch_text_model, name), (repo_folder("models", name),))


def _fetch_text_model(name: str) -> int:
    fetch_classifier(name)
    return _bytes_in(repo_folder("models", name))


def _folders_of_data(name: str) -> tuple[Path, ...]:
    """Where a data set's files lie, and the Arrow copies that `datasets` makes of them."""
    return repo_folder("datasets", name), copies_folder(name)


def _copied_bytes(name: str, split: str) -> int:
    table = prepared_before(name, split)
    return sum(os.path.getsize(file["filename"]) for file in table.cache_files) if table is not None else 0


def _bytes_in(folder: Path) -> int:
    """Bytes of the files below `folder`; what links point to counts where it lies."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def fetch(item: Item) -> int | None:
    """Fetch one thing and print its line; by how many bytes the disk got fuller, or None where the run will miss it."""
    line = _line(item)
    if item.fetch is None:
        print(f"{line}: {item.remark}", flush=True)
        return None if item.missing else 0
    before = sum(_bytes_in(folder) for folder in item.folders)
    try:
        size = item.fetch()
    except Exception as error:
        print(f"{line}: not fetched; {' '.join(str(error).split())}", flush=True)
        return None
    grown = sum(_bytes_in(folder) for folder in item.folders) - before
    print(f"{line}: {size:,} bytes, {'fetched' if grown > 0 else 'already there'}{item.remark}", flush=True)
    return grown


def _line(item: Item) -> str:
    return f"  {item.name:<45} {item.purpose}"


def main(arguments: list[str] | None = None) -> int:
    """Fetch what the params files on the command line name; 0 where their runs will find everything."""
    parser = argparse.ArgumentParser("python -m kdnb.fetch", description=__doc__.partition("\n")[0])
    parser.add_argument("params", nargs="+", type=Path, help="YAML files with parameters of a notebook")
    parser.add_argument("--notebook", choices=TABLE, help="the notebook, where a file does not say it in a comment")
    change = "a parameter that replaces the files', as papermill's -p"
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help=change)
    options = parser.parse_args(arguments)
    plans = []
    for path in options.params:
        try:
            notebook, p = read_params(path, notebook=options.notebook, changes=dict(options.p))
            plans.append((path, notebook, list(items_of(p, notebook))))
        except (ValueError, OSError) as error:
            print(f"{path}: {error}", file=sys.stderr)
            return 1
    if any(item.fetch for _, _, items in plans for item in items) and not hub_answers():
        why = "HF_HUB_OFFLINE is set; unset it" if is_offline() else f"{hub_address()} does not answer; check the network"
        print(f"Nothing can be fetched here: {why}, or run this where there is a network (a login node).", file=sys.stderr)
        return 1
    grown: dict[str, int | None] = {}  # files may name the same
    for path, notebook, items in plans:
        print(f"{path}, for notebooks/{notebook}.ipynb:", flush=True)
        for item in items:
            key = repr(item._replace(purpose=""))
            if item.fetch is None or grown.get(key) is None:
                grown[key] = fetch(item)
            else:
                print(_line(item) + ": see above", flush=True)
    print(f"{format_bytes(sum(filter(None, grown.values())))} were fetched; HF_HOME is {hub_home()}", flush=True)
    if None in grown.values():
        print("Not everything is there: see the lines above.", file=sys.stderr)
        return 1
    print("Run with the same HF_HOME and with HF_HUB_OFFLINE=1; no network is needed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
