"""Every kind of picture becomes upright RGB; every kind of source says what it holds, and what it lacks."""

import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from kdnb.data.decode import UnreadableImage, decode, decode_all, resize
from kdnb.data.sources import open_source


@pytest.fixture(autouse=True)
def arrow_copies(tmp_path_factory, monkeypatch):
    """Tests leave nothing in the user's cache of `datasets`."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")
    monkeypatch.setattr(datasets.utils.tqdm, "disable", True, raising=False)


def pixels(rows: int = 6, columns: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


# Pictures


def test_rgb_bytes_paths_and_pixels_are_the_same_picture(tmp_path):
    data = encoded(Image.fromarray(pixels()))
    (tmp_path / "a.png").write_bytes(data)
    for picture in (data, tmp_path / "a.png", pixels()):
        image = decode(picture)
        assert image.mode == "RGB" and np.array_equal(np.asarray(image), pixels())


def test_grey_is_the_same_in_all_three_channels():
    grey = pixels()[..., 0]
    for picture in (grey, encoded(Image.fromarray(grey))):
        assert np.array_equal(np.asarray(decode(picture)), np.stack([grey] * 3, axis=-1))


def test_black_and_white():
    image = Image.fromarray(np.array([[0, 255], [255, 0]], dtype=np.uint8)).convert("1")
    assert np.asarray(decode(encoded(image)))[..., 1].tolist() == [[0, 255], [255, 0]]


def test_cmyk_by_hand():
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))  # no cyan, full magenta and yellow: red
    red = np.asarray(decode(encoded(image, "JPEG", quality=95)))
    assert np.abs(red.astype(int) - [255, 0, 0]).max() < 12


def test_transparency_lies_on_white():
    image = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (200, 100, 0, alpha))
    left, middle, right = np.asarray(decode(encoded(image)))[0].astype(int)
    assert left.tolist() == [255, 255, 255] and right.tolist() == [200, 100, 0]
    by_hand = [200 * 128 / 255 + 127, 100 * 128 / 255 + 127, 127]  # alpha * colour + (1 - alpha) * 255
    assert np.abs(middle - by_hand).max() <= 1


def test_grey_with_alpha_lies_on_white():
    image = Image.new("LA", (2, 1), (50, 255))
    image.putpixel((0, 0), (50, 0))
    assert np.asarray(decode(encoded(image)))[0, :, 0].tolist() == [255, 50]


def test_palette_with_and_without_transparency():
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    assert np.asarray(decode(encoded(image))).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert np.asarray(decode(encoded(image, transparency=0))).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_rgb_with_a_transparent_colour():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], dtype=np.uint8))
    assert np.asarray(decode(encoded(image, transparency=(1, 2, 3)))).tolist() == [[[255, 255, 255], [4, 5, 6]]]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind):
    grey = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    assert np.asarray(decode(encoded(Image.fromarray(grey), kind)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_thirty_two_bits_that_hold_sixteen():
    grey = np.array([[0, 65535]], dtype=np.int32)
    assert np.asarray(decode(encoded(Image.fromarray(grey), "TIFF")))[0, :, 0].tolist() == [0, 255]


# What a viewer must do to each orientation's stored pixels, written with arrays instead of Pillow.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_exif_orientation_is_applied(orientation, mode):
    image = Image.fromarray(pixels()).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = np.asarray(decode(encoded(image, exif=exif)))
    assert np.array_equal(upright, UPRIGHT[orientation](np.asarray(image.convert("RGB"))))


def test_a_jpeg_from_a_turned_camera():
    corner = np.zeros((16, 32, 3), dtype=np.uint8)
    corner[:8, :8] = 255  # stored top left; orientation 6 is shown turned clockwise: top right
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = np.asarray(decode(encoded(Image.fromarray(corner), "JPEG", quality=95, exif=exif)))
    assert upright.shape == (32, 16, 3)
    assert upright[2, -3].min() > 240 and upright[2, 2].max() < 15 and upright[-3, -3].max() < 15


def test_broken_exif_is_no_reason_to_lose_a_picture():
    data = encoded(Image.fromarray(pixels()), "JPEG", exif=b"Exif\x00\x00not really")
    assert decode(data).size == (9, 6)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.asarray(decode(data))[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    "picture",
    [
        b"",
        b"this is no picture",
        encoded(Image.fromarray(pixels(64, 64)))[:300],
        encoded(Image.fromarray(pixels(64, 64)), "JPEG")[:-200],
        None,
        Path("there is no such file.png"),
        np.zeros((4, 4, 4), dtype=np.uint8),
        np.zeros((4, 4, 3), dtype=np.float32),
        np.zeros((0, 4, 3), dtype=np.uint8),
        encoded(Image.fromarray(np.zeros((2, 2), dtype=np.float32)), "TIFF"),
    ],
    ids=["empty", "text", "truncated png", "truncated jpeg", "null", "missing file", "4 channels", "float", "0 rows", "F"],
)
def test_an_unreadable_picture_is_one_kind_of_error(picture):
    with pytest.raises(UnreadableImage) as caught:
        decode(picture)
    assert isinstance(caught.value, ValueError) and str(caught.value)


def huge(kind: str, side: int, mode: str = "L", **options) -> bytes:
    return encoded(Image.new(mode, (side, side)), kind, **options)


@pytest.mark.parametrize(
    "picture",
    [huge("PNG", 8193), huge("JPEG", 8200, progressive=True), huge("BMP", 13_400, "1"), huge("GIF", 8200, "P")],
    ids=["png", "progressive jpeg", "beyond what Pillow opens", "gif"],
)
def test_a_picture_of_too_many_pixels_takes_no_memory(picture, tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    (tmp_path / "big.png").write_bytes(picture)
    with pytest.raises(UnreadableImage, match=r"big.png: it has [0-9,]+ pixels, more than the 67,108,864 that are read"):
        decode(tmp_path / "big.png")


def test_a_large_jpeg_is_read_at_half_its_size(monkeypatch):
    picture = encoded(Image.fromarray(pixels(64, 96)).resize((96, 64)), "JPEG")
    whole = decode(picture)
    monkeypatch.setattr("kdnb.data.decode.MAX_PIXELS", 5000)
    half = decode(picture)
    assert (whole.size, half.size) == ((96, 64), (48, 32))
    assert np.abs(resize(whole, 16, "crop").astype(int) - resize(half, 16, "crop")).mean() < 5


def test_a_pipe_is_no_picture(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UnreadableImage, match="pipe.png: there is no such file"):
        decode(tmp_path / "pipe.png")


# Sizes


@pytest.mark.parametrize("shape", [(50, 80), (80, 50), (64, 64), (33, 200), (20, 24), (375, 500)])
def test_crop_is_bitwise_what_torchvision_does(shape):
    from torchvision.transforms import InterpolationMode, v2

    image = Image.fromarray(pixels(*shape))
    theirs = v2.Compose([v2.Resize(32, interpolation=InterpolationMode.BICUBIC), v2.CenterCrop(32)])(image)
    assert np.array_equal(resize(image, 32, "crop"), np.asarray(theirs))


def test_squash_and_crop_by_hand():
    image = Image.fromarray(np.repeat(np.array([[0, 0, 100, 100, 200, 200]], dtype=np.uint8), 2, axis=0))
    assert np.unique(resize(image.convert("RGB"), 2, "crop")).tolist() == [100]
    squashed = resize(image.convert("RGB"), 2, "squash")
    assert squashed.shape == (2, 2, 3) and squashed[0, 0, 0] < 60 < 140 < squashed[0, 1, 0]


def test_scaling_down_is_antialiased():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize(Image.fromarray(stripes), 8, "crop")[:, 1:-1].astype(int) - 127.5).max() < 10


@pytest.mark.parametrize("shape", [(1, 20_001, 3), (20_000, 1, 3)])
def test_a_very_long_picture_gives_its_middle(shape):
    strip = np.zeros(shape, dtype=np.uint8)
    strip.reshape(-1, 3)[9_950:10_050] = 7
    assert np.unique(resize(Image.fromarray(strip), 64, "crop")).tolist() == [7]


def test_unknown_resize_is_refused():
    with pytest.raises(ValueError, match="resize is 'fit'; allowed are crop, squash"):
        resize(Image.new("RGB", (2, 2)), 2, "fit")


def test_workers_decode_the_same_in_the_same_order():
    items = [(i, encoded(Image.fromarray(pixels(seed=i)))) for i in range(150)]
    items[70] = (70, b"broken")
    here = list(decode_all(items, 8, "crop"))
    there = list(decode_all(items, 8, "crop", num_workers=2))
    assert [key for key, _ in here] == [key for key, _ in there] == [(i,) for i in range(150)]
    assert here[70][1] == there[70][1] and isinstance(here[70][1], str)
    assert all(np.array_equal(a, b) for (_, a), (_, b) in zip(here, there, strict=True))
    assert here[0][1].shape == (3, 8, 8) and list(decode_all([], 8, "crop")) == []


# Sources


def test_digits():
    train, test = open_source("digits"), open_source("digits", split="test")
    assert (train.num_images, test.num_images) == (1500, 297) and train.labelled
    assert train.classes == [str(digit) for digit in range(10)] and train.name == "digits/train"
    (first, image, label), _ = train.items([3, 5])
    assert (first, label, image.shape, image.dtype) == (3, 3, (32, 32, 3), np.uint8)
    assert image.max() > 200 and train.fingerprint != test.fingerprint
    assert len(list(test.items())) == 297


@pytest.fixture
def tree(tmp_path) -> Path:
    """Two splits of two classes; one class has no pictures in one split."""
    for number, name in enumerate(["train/cat/1.png", "train/cat/deep/2.JPG", "train/dog/3.png", "test/dog/4.png"]):
        path = tmp_path / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels(seed=number)).save(path)
    (tmp_path / "pets/test/cat").mkdir()
    (tmp_path / "pets/train/notes.txt").write_text("no picture")
    (tmp_path / "pets/train/.hidden.png").write_text("no picture")
    return tmp_path / "pets"


def test_a_folder_of_class_folders(tree):
    train, test = open_source(str(tree)), open_source(str(tree), split="test")
    assert train.classes == test.classes == ["cat", "dog"]
    assert [(i, path.name, label) for i, path, label in train.items()] == [(0, "1.png", 0), (1, "2.JPG", 0), (2, "3.png", 1)]
    assert [(i, label) for i, _, label in test.items()] == [(0, 1)]
    assert train.name == "pets/train" and train.num_images == 3
    assert decode(next(train.items([2]))[1]).size == (9, 6)
    assert open_source(str(tree / "train")).fingerprint == train.fingerprint


def test_every_folder_is_visited_once_and_only_files_are_taken(tree):
    before = open_source(str(tree))
    cat = tree / "train/cat"
    for link, target in {"up": "..", "top": "../..", "above": "../../..", "again": "../dog", "round": "round"}.items():
        (cat / link).symlink_to(target)
    os.mkfifo(cat / "pipe.jpg")
    (cat / "nowhere.png").symlink_to("nothing")
    (cat / "zero.png").symlink_to("/dev/zero")
    source = open_source(str(tree))
    assert (source.num_images, source.classes, source.fingerprint) == (3, ["cat", "dog"], before.fingerprint)
    assert before.note == "" and "4 folders that a link leads to once more" in source.note
    assert "4 broken links, pipes or devices" in source.note


def test_a_dataset_may_consist_of_links(tree, tmp_path):
    links = tmp_path / "links"
    links.mkdir()
    for name in ("train", "test"):
        (links / name).symlink_to(tree / name)
    source = open_source(str(links))
    assert source.fingerprint == open_source(str(tree)).fingerprint and source.note == ""


def test_a_folder_that_may_not_be_read_is_said(tree, monkeypatch):
    def scandir(path):
        if str(path).endswith("dog"):
            raise PermissionError(path)
        return os_scandir(path)

    os_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    source = open_source(str(tree))
    assert source.num_images == 2 and source.classes == ["cat", "dog"]
    assert source.note == f"{tree}: left out are 2 folders that cannot be read"


def test_names_that_are_no_utf8_can_be_printed(tree):
    folder = os.fsencode(tree) + b"/train/l\xe9on"
    os.mkdir(folder)
    with open(folder + b"/caf\xe9.png", "wb") as file:
        file.write(encoded(Image.fromarray(pixels())))
    (tree / "train" / os.fsdecode(b"l\xe9on") / "broken.png").touch()
    source = open_source(str(tree))
    assert source.classes == ["cat", "dog", "l\\xe9on"] and source.labels().tolist() == [0, 0, 1, 2, 2]
    with pytest.raises(UnreadableImage, match=r"train/l\\xe9on/broken.png: "):
        decode(list(source.items())[3][1])
    assert decode(list(source.items())[4][1]).size == (9, 6)


def test_a_folder_of_pictures_has_no_labels(tmp_path):
    Image.fromarray(pixels()).save(tmp_path / "a.png")
    source = open_source(str(tmp_path))
    assert not source.labelled and source.classes is None and next(source.items())[2] is None


def test_a_class_may_be_called_train(tmp_path):
    for name in ("boat", "train"):
        (tmp_path / name).mkdir()
        Image.fromarray(pixels()).save(tmp_path / name / "a.png")
    assert open_source(str(tmp_path)).classes == ["boat", "train"]


def test_a_fingerprint_tells_contents_not_places(tree, tmp_path):
    before = open_source(str(tree)).fingerprint
    moved = tree.rename(tmp_path / "elsewhere")
    assert open_source(str(moved)).fingerprint == before
    Image.fromarray(pixels(seed=77)).save(moved / "train/cat/1.png")
    assert open_source(str(moved)).fingerprint != before


def table(folder: Path, name: str = "train-00000-of-00001.parquet", *, rows: int = 5, **columns) -> Path:
    """A Parquet file as the Hub has it."""
    import datasets
    import pyarrow.parquet

    pictures = [{"bytes": encoded(Image.fromarray(pixels(seed=i))), "path": None} for i in range(rows)]
    columns = {"image": (pictures, datasets.Image())} | columns
    features = datasets.Features({key: feature for key, (_, feature) in columns.items()})
    folder.mkdir(exist_ok=True)
    path = folder / name
    rows = datasets.Dataset.from_dict({key: values for key, (values, _) in columns.items()}, features)
    pyarrow.parquet.write_table(rows.data.table, path)  # as it is: to_parquet would put bytes in the place of paths
    return path


def class_label(*names: str):
    import datasets

    return datasets.ClassLabel(names=list(names))


def value(kind: str):
    import datasets

    return datasets.Value(kind)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("single_file", [False, True])
def test_parquet(tmp_path, streaming, single_file):
    path = table(tmp_path / "set", label=([0, 1, 0, 1, None], class_label("a", "b")))
    source = open_source(str(path if single_file else path.parent), streaming=streaming)
    assert source.num_images == (None if streaming else 5)
    assert source.classes == ["a", "b"] and source.labelled
    rows = list(source.items())
    assert [(i, label) for i, _, label in rows] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, -1)]
    assert np.array_equal(np.asarray(decode(rows[3][1])), pixels(seed=3))
    assert [i for i, _, _ in source.items(range(2, 4))] == [2, 3]
    if not streaming:
        assert [i for i, _, _ in source.items([4, 0])] == [4, 0]
        assert [i for i, _, _ in pickle.loads(pickle.dumps(source)).items([1])] == [1]


def test_a_stream_has_no_random_access(tmp_path):
    source = open_source(str(table(tmp_path / "set")), streaming=True)
    with pytest.raises(ValueError, match="streamed, so its rows come in order"):
        next(source.items([3, 1]))


def test_columns_that_hold_paths_or_nothing(tmp_path):
    import datasets

    Image.fromarray(pixels(seed=8)).save(tmp_path / "near.png")
    Image.fromarray(pixels(seed=9)).save(tmp_path / "far.png")
    cells = [{"bytes": None, "path": "near.png"}, {"bytes": None, "path": str(tmp_path / "far.png")}, None]
    source = open_source(str(table(tmp_path, image=(cells, datasets.Image()))))
    near, far, nothing = (picture for _, picture, _ in source.items())
    assert np.array_equal(np.asarray(decode(near)), pixels(seed=8))
    assert np.array_equal(np.asarray(decode(far)), pixels(seed=9))
    assert nothing is None
    names = open_source(str(table(tmp_path / "names", image=(["../near.png"], value("string")))), image_column="image")
    assert np.array_equal(np.asarray(decode(next(names.items())[1])), pixels(seed=8))


@pytest.mark.parametrize(
    "columns, found",
    [
        ({}, (False, None)),
        ({"label": ([0] * 5, value("int64"))}, (True, None)),
        ({"width": ([0] * 5, value("int64"))}, (False, None)),
        ({"kind": ([0] * 5, class_label("x"))}, (True, ["x"])),
        ({"label": ([0] * 5, class_label("x")), "colour": ([0] * 5, class_label("y"))}, (True, ["x"])),
    ],
)
def test_the_label_column_is_found(tmp_path, columns, found):
    source = open_source(str(table(tmp_path / "set", **columns)))
    assert (source.labelled, source.classes) == found


def test_wrong_columns_list_what_there_is(tmp_path):
    import datasets

    pictures = [{"bytes": encoded(Image.fromarray(pixels())), "path": None}] * 5
    labels = {"fine": ([0] * 5, class_label("x")), "coarse": ([0] * 5, class_label("y"))}
    two = str(table(tmp_path / "two", thumbnail=(pictures, datasets.Image()), **labels, text=(["t"] * 5, value("string"))))
    there = r"image \(Image\), thumbnail \(Image\), fine \(ClassLabel\), coarse \(ClassLabel\), text \(string\)"
    cases = [
        ({}, f"has several columns of type Image; set image_column to one of its columns: {there}"),
        ({"image_column": "img"}, f"image_column is 'img', but the columns of .* are {there}"),
        ({"image_column": "fine"}, "image_column is 'fine', which holds no images, bytes or paths"),
        ({"image_column": "image"}, "has several columns of labels; set label_column to one of fine, coarse"),
        ({"image_column": "image", "label_column": "text"}, "label_column is 'text', but labels are ClassLabel or whole"),
        ({"image_column": "image", "label_column": "x"}, f"label_column is 'x', but the columns of .* are {there}"),
    ]
    for arguments, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            open_source(two, **arguments)
    assert open_source(two, image_column="thumbnail", label_column="coarse").classes == ["y"]
    none = str(table(tmp_path / "none", image=(["t"] * 5, value("string"))))
    with pytest.raises(ValueError, match=r"has no column of type Image; set image_column to one of .*: image \(string\)"):
        open_source(none)


def test_wrong_splits_list_what_there_is(tree, tmp_path):
    path = table(tmp_path / "set", "test-00000-of-00001.parquet")
    cases = [
        ("digits", "val", "split is 'val', but dataset digits has train, test"),
        (str(tree), "val", "split is 'val', but dataset .*pets has test, train"),
        (str(tree / "train"), "val", "split is 'val', but dataset .*train has train"),
        (str(path.parent), "val", "split is 'val', but dataset .*set has test"),
        (str(path), "val", "split is 'val', but dataset .*parquet has test"),
    ]
    for dataset, split, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            open_source(dataset, split=split)
    assert open_source(str(path), split="test").num_images == open_source(str(path)).num_images == 5


@pytest.mark.parametrize("path", ["photos/", "./photos", "../x", "/no/where", "a/b/c"])
def test_a_folder_that_is_not_there_is_a_sentence_and_no_name_of_the_hub(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^dataset is '{path}', but there is no file or folder /.*; give one that is there"):
        open_source(path)


def test_what_is_no_dataset_is_a_sentence(tmp_path):
    (tmp_path / "data.csv").write_text("a,b")
    (tmp_path / "empty").mkdir()
    cases = [
        ("", {}, "dataset is ''; allowed are 'digits', a folder"),
        (str(tmp_path / "data.csv"), {}, "allowed are 'digits', a folder of images, a Parquet file"),
        (str(tmp_path / "empty"), {}, "holds no Parquet files and no images"),
        ("digits", {"streaming": True}, "streaming is True, but dataset 'digits' has no columns and no stream"),
        ("digits", {"label_column": "label"}, "label_column is 'label', but dataset 'digits' has no columns"),
    ]
    for dataset, arguments, sentence in cases:
        with pytest.raises(ValueError, match=sentence):
            open_source(dataset, **arguments)
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"dataset .*broken.parquet could not be loaded: "):
        open_source(str(tmp_path / "broken.parquet"))


def test_a_hub_that_cannot_be_reached_is_a_sentence_and_never_a_substitute(tmp_path, monkeypatch):
    import datasets
    from huggingface_hub import HfApi

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: pytest.fail("something else was loaded"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError,
        match="dataset is 'cifar10' .short for uoft-cs/cifar10., which is no file or folder.*no route to host.*'digits'",
    ):
        open_source("cifar10")


# Real data


def test_cifar10(real_data):
    source = open_source(str(real_data / "cifar10"), split="test")
    assert source.num_images == 5000 and source.classes[6] == "frog"
    rows = list(source.items([4999, 0, 17]))
    assert [row for row, _, _ in rows] == [4999, 0, 17]
    for _, picture, label in rows:
        assert resize(decode(picture), 32, "crop").shape == (32, 32, 3) and 0 <= label < 10
    with pytest.raises(ValueError, match="split is 'val', but dataset .*cifar10 has train, test"):
        open_source(str(real_data / "cifar10"), split="val")


def test_imagenet_sample(real_data):
    source = open_source(str(real_data / "imagenet_sample"))
    assert source.num_images == 256 and not source.labelled
    for _, picture, _ in source.items(range(8)):
        image = decode(picture)
        assert resize(image, 224, "crop").shape == (224, 224, 3) and min(image.size) > 60
