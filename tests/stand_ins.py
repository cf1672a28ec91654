"""What the tests' Hub serves: small stand-ins for the repositories that params/ and the README name, in the layout in which those
are published. Pictures and texts are made here, so that nothing has to be there; weights are random."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

_CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
_DBPEDIA = [
    "Company", "EducationalInstitution", "Artist", "Athlete", "OfficeHolder", "MeanOfTransportation", "Building",
    "NaturalPlace", "Village", "Animal", "Plant", "Album", "Film", "WrittenWork",
]  # fmt: skip
_CARD = "---\n{}---\n# {}\n\nA stand-in with the layout of the published repository.\n"


def picture(label: int, number: int, *, width: int = 32, height: int = 32, kind: str = "PNG") -> bytes:
    """An encoded picture: stripes whose direction, width and colour tell the class, under noise that tells the picture."""
    generator = np.random.default_rng([label, number])
    y, x = np.mgrid[:height, :width]
    stripes = np.sin((x * np.cos(label) + y * np.sin(label)) * (0.2 + label % 7 / 10))
    colour = np.array([label * 37 % 256, label * 91 % 256, label * 151 % 256])
    pixels = 128 + stripes[..., None] * (colour - 128) + generator.normal(0, 30, (height, width, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def _class_label(names: list[str], indent: int = 6) -> str:
    lines = "".join(f"{' ' * (indent + 6)}'{number}': {name}\n" for number, name in enumerate(names))
    return f"{' ' * indent}class_label:\n{' ' * (indent + 2)}names:\n{lines}"


def _parquet_repo(folder: Path, config: str, features: str, splits: dict[str, list], title: str):
    """As `push_to_hub` leaves it: <config>/<split>-*.parquet, and a card that names features, sizes and files."""
    facts = [f"dataset_info:\n  config_name: {config}\n  features:\n{features}  splits:\n"]
    for split, tables in splits.items():
        paths = [folder / config / f"{split}-{n:05d}-of-{len(tables):05d}.parquet" for n in range(len(tables))]
        for path, table in zip(paths, tables, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            table.to_parquet(path)
        rows, size = sum(len(table) for table in tables), sum(path.stat().st_size for path in paths)
        facts += [f"  - name: {split}\n    num_bytes: {size}\n    num_examples: {rows}\n"]
    size = sum(path.stat().st_size for path in folder.rglob("*.parquet"))
    facts += [f"  download_size: {size}\n  dataset_size: {size}\nconfigs:\n- config_name: {config}\n  data_files:\n"]
    facts += [f"  - split: {split}\n    path: {config}/{split}-*\n" for split in splits] + ["  default: true\n"]
    (folder / "README.md").write_text(_CARD.format("".join(facts), title))


def _image_table(labels: dict[str, list[int]], features: dict, begin: int):
    import datasets

    rows = range(begin, begin + len(next(iter(labels.values()))))
    first = next(iter(labels.values()))
    pictures = [{"bytes": picture(label, row), "path": None} for row, label in zip(rows, first, strict=True)]
    return datasets.Dataset.from_dict({"img": pictures} | labels, datasets.Features({"img": datasets.Image()} | features))


def cifar(datasets_folder: Path, *, train: int = 240, test: int = 100):
    """uoft-cs/cifar10 (img, label) and uoft-cs/cifar100 (img, fine_label, coarse_label)."""
    import datasets

    coarse, fine = [f"kind_{n}" for n in range(20)], [f"thing_{n}" for n in range(100)]
    for name, config, columns in (
        ("cifar10", "plain_text", {"label": (_CIFAR10, 1)}),
        ("cifar100", "cifar100", {"fine_label": (fine, 1), "coarse_label": (coarse, 5)}),
    ):
        features = {column: datasets.ClassLabel(names=names) for column, (names, _) in columns.items()}
        first = len(next(iter(columns.values()))[0])
        splits = {}
        for split, begin, count in (("train", 0, train), ("test", train, test)):
            rows = range(begin, begin + count)
            labels = {column: [row % first // step for row in rows] for column, (_, step) in columns.items()}
            splits[split] = [_image_table(labels, features, begin)]
        text = "  - name: img\n    dtype: image\n"
        text += "".join(f"  - name: {c}\n    dtype:\n{_class_label(names)}" for c, (names, _) in columns.items())
        _parquet_repo(datasets_folder / "uoft-cs" / name, config, text, splits, name)


def imagenet(datasets_folder: Path, *, train: Sequence[int] = (24, 20, 28, 24, 24, 24), validation: Sequence[int] = (17, 3)):
    """timm/imagenet-1k-wds: tar files of so many samples, each of them <key>.cls, .jpg and .json."""
    folder = datasets_folder / "timm/imagenet-1k-wds"
    folder.mkdir(parents=True)
    number = 0
    for split, sizes, digits in (("train", train, 4), ("validation", validation, 2)):
        for file, size in enumerate(sizes):
            with tarfile.open(folder / f"imagenet1k-{split}-{file:0{digits}d}.tar", "w") as tar:
                for _ in range(size):
                    label = 100 * (number % 10) + 7
                    facts = {"filename": f"n{label:08d}_{number}.JPEG", "width": 80, "height": 64, "label": label}
                    members = {"cls": str(label).encode(), "json": json.dumps(facts).encode()}
                    members["jpg"] = picture(label, number, width=80, height=64, kind="JPEG")
                    for extension in ("cls", "jpg", "json"):
                        entry = tarfile.TarInfo(f"n{label:08d}_{number}.{extension}")
                        entry.size = len(members[extension])
                        tar.addfile(entry, io.BytesIO(members[extension]))
                    number += 1
    (folder / "_info.json").write_text(json.dumps({"splits": {"train": sum(train), "validation": sum(validation)}}))
    (folder / "README.md").write_text(_CARD.format("license: other\ntask_categories:\n- image-classification\n", "ImageNet-1k"))


def dbpedia_texts(split: str, per_class: int) -> list[tuple[int, str, str]]:
    """(label, title, content), classes in turn; a class has words of its own."""
    begin, rows = {"train": 0, "test": 10_000}[split], []
    for number in range(begin, begin + per_class):
        for label, name in enumerate(_DBPEDIA):
            own = [f"{name.lower()}{word}" for word in ("ish", "ness", "ward", "hood")]
            generator = np.random.default_rng([label, number])
            words = [*generator.choice(own, 3), *generator.choice(["the", "a", "of", "in", "was", "near"], 6)]
            rows.append((label, f"Item {number} {name[:3]}", " ".join(generator.permutation(words)) + f" {own[0]}."))
    return rows


def dbpedia(datasets_folder: Path, *, train: int = 20, test: int = 5):
    """fancyzhx/dbpedia_14 (label, title, content), so many texts of each class."""
    import datasets

    string = datasets.Value("string")
    features = {"label": datasets.ClassLabel(names=_DBPEDIA), "title": string, "content": string}
    splits = {}
    for split, count in (("train", train), ("test", test)):
        columns = zip(*dbpedia_texts(split, count), strict=True)
        rows = dict(zip(features, map(list, columns), strict=True))
        splits[split] = [datasets.Dataset.from_dict(rows, datasets.Features(features))]
    text = f"  - name: label\n    dtype:\n{_class_label(_DBPEDIA)}"
    text += "".join(f"  - name: {column}\n    dtype: string\n" for column in ("title", "content"))
    _parquet_repo(datasets_folder / "fancyzhx/dbpedia_14", "dbpedia_14", text, splits, "DBpedia")


def timm_model(models_folder: Path, name: str):
    """timm/<name> in its real architecture, with random weights in float16: config.json and model.safetensors."""
    import timm
    from safetensors.torch import save_file

    folder = models_folder / "timm" / name
    folder.mkdir(parents=True)
    with torch.device("meta"):
        model = timm.create_model(name)
    cfg = model.pretrained_cfg
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for key, value in model.state_dict().items():
        drawn = torch.empty(value.shape, dtype=torch.float16).normal_(0, 0.02, generator=generator)
        weights[key] = drawn + 1 if value.ndim == 1 and key.endswith("weight") else drawn  # of norms
    save_file(weights, folder / "model.safetensors")
    kept = ("tag", "custom_load", "input_size", "fixed_input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std",
            "num_classes", "pool_size", "first_conv", "classifier", "license")  # fmt: skip
    facts = {key: cfg[key] for key in kept if cfg.get(key) is not None}
    content = {"architecture": cfg["architecture"], "num_classes": model.num_classes, "num_features": model.num_features}
    (folder / "config.json").write_text(json.dumps(content | {"pretrained_cfg": facts}))
    (folder / "README.md").write_text(_CARD.format("library_name: timm\n", name))


def cifar_teacher(path: Path):
    """resnet56-4bfd9763.th of github.com/akamaster/pytorch_resnet_cifar10 in its layout, with random weights."""
    from kdnb.models.vision import build_model

    torch.manual_seed(0)
    weights = build_model("cifar_resnet56", num_classes=10).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {f"module.{name.replace('fc.', 'linear.')}": value for name, value in weights.items()}}, path)


def byte_pairs(corpus: list[str], special: list[str], vocab_size: int):
    """A byte-level BPE as Qwen's and DeepSeek's: what is decoded is what was encoded."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    parts = [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(corpus, trainer)
    return tokenizer


def _qwen2_weights(folder: Path, vocab_size: int, *, tie: bool, seed: int, ends: dict):
    """config.json, generation_config.json and model.safetensors (bfloat16) of a causal language model, 2 layers of width 32."""
    import transformers

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"num_key_value_heads": 1, "max_position_embeddings": 32768, "max_window_layers": 2, "vocab_size": vocab_size}
    shape |= {"tie_word_embeddings": tie}
    torch.manual_seed(seed)
    model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape, **ends, rms_norm_eps=1e-6, rope_theta=10000.0))
    model.to(torch.bfloat16).save_pretrained(folder)
    # As published: written by an older transformers, whose keys differ in part.
    published = {
        "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, **ends, "hidden_act": "silu", "initializer_range": 0.02,
        "model_type": "qwen2", "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 32768, **shape,
        "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True, "use_mrope": False,
        "use_sliding_window": False,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(published, indent=2))
    (folder / "generation_config.json").write_text(json.dumps(ends | {"do_sample": False, "max_new_tokens": 2048}))


def qwen(models_folder: Path, corpus: list[str]):
    """Qwen/Qwen2.5-0.5B: no beginning token, padding is the end of text."""
    folder = models_folder / "Qwen/Qwen2.5-0.5B"
    folder.mkdir(parents=True)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_pairs(corpus, special, 600)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    added = {str(tokenizer.token_to_id(token)): _added(token, special=True) for token in special}
    facts = {"add_bos_token": False, "add_prefix_space": False, "added_tokens_decoder": added, "bos_token": None,
             "additional_special_tokens": special[1:], "clean_up_tokenization_spaces": False, "eos_token": "<|endoftext|>",
             "errors": "replace", "model_max_length": 32768, "pad_token": "<|endoftext|>", "split_special_tokens": False,
             "tokenizer_class": "Qwen2Tokenizer", "unk_token": None}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, indent=2))
    end = tokenizer.token_to_id("<|endoftext|>")
    _qwen2_weights(folder, tokenizer.get_vocab_size(), tie=True, seed=1, ends={"bos_token_id": end, "eos_token_id": end})


def deepseek(models_folder: Path, corpus: list[str]):
    """deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B: a byte-level BPE whose configuration calls it a LlamaTokenizerFast."""
    from tokenizers import processors

    folder = models_folder / "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    folder.mkdir(parents=True)
    begin, end = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    tokenizer = byte_pairs(corpus, [end, "<｜User｜>", "<｜Assistant｜>", begin], 700)
    first = [(begin, tokenizer.token_to_id(begin))]
    tokenizer.post_processor = processors.TemplateProcessing(f"{begin} $A", f"{begin} $A {begin} $B", special_tokens=first)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {name: {"__type": "AddedToken"} | _added(token) for name, token in (("bos", begin), ("eos", end), ("pad", end))}
    facts = {"add_bos_token": True, "add_eos_token": False, "bos_token": added["bos"], "clean_up_tokenization_spaces": False,
             "eos_token": added["eos"], "legacy": True, "model_max_length": 16384, "pad_token": added["pad"],
             "sp_model_kwargs": {}, "unk_token": None, "tokenizer_class": "LlamaTokenizerFast",
             "chat_template": "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(facts, ensure_ascii=False))
    ends = {"bos_token_id": tokenizer.token_to_id(begin), "eos_token_id": tokenizer.token_to_id(end)}
    _qwen2_weights(folder, tokenizer.get_vocab_size(), tie=False, seed=2, ends=ends)


def _added(token: str, *, special: bool | None = None) -> dict:
    facts = {"content": token, "lstrip": False, "normalized": special is None, "rstrip": False, "single_word": False}
    return facts if special is None else facts | {"special": special}


def bert_tiny(models_folder: Path, corpus: list[str]):
    """prajjwal1/bert-tiny: a configuration without model_type, pytorch_model.bin of BERT's pretraining, a bare vocab.txt."""
    import transformers
    from tokenizers import BertWordPieceTokenizer

    folder = models_folder / "prajjwal1/bert-tiny"
    folder.mkdir(parents=True)
    tokenizer = BertWordPieceTokenizer(lowercase=True)
    tokenizer.train_from_iterator(corpus, vocab_size=600, show_progress=False)
    tokenizer.save_model(str(folder))
    config = {
        "hidden_size": 128, "hidden_act": "gelu", "initializer_range": 0.02, "vocab_size": tokenizer.get_vocab_size(),
        "hidden_dropout_prob": 0.1, "num_attention_heads": 2, "type_vocab_size": 2, "max_position_embeddings": 512,
        "num_hidden_layers": 2, "intermediate_size": 512, "attention_probs_dropout_prob": 0.1,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(3)
    model = transformers.BertForPreTraining(transformers.BertConfig(**config))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    weights["bert.embeddings.position_ids"] = torch.arange(512)[None]  # as transformers once wrote
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "README.md").write_text(_CARD.format("license: mit\n", "bert-tiny"))


def data_sets(folder: Path):
    """All data sets, below `folder`."""
    import datasets

    datasets.utils.logging.disable_progress_bar()
    cifar(folder)
    imagenet(folder)
    dbpedia(folder)
    datasets.utils.logging.enable_progress_bar()


def language_models(folder: Path):
    """All models of transformers, below `folder`."""
    corpus = [f"{title}. {content}" for _, title, content in dbpedia_texts("train", 20)]
    for make in (qwen, deepseek, bert_tiny):
        make(folder, corpus)
