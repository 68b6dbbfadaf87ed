"""Image classes and OCR-VQA of a generated world."""

import collections
import hashlib
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from twelve_in_one.data.images.sources import open_images
from twelve_in_one.world import class_scenes, covers, make
from twelve_in_one.world.__main__ import main
from twelve_in_one.world.class_scenes import GROUNDS_SEEN, THINGS
from twelve_in_one.world.scene import COLOURS, HEIGHT, SHAPES, WIDTH
from twelve_in_one.world.scenes import CURTAIN_WIDTH

_SETS = make.DecoderSets(class_pictures=5, covers=40, cover_side=48, cover_words=6)


@pytest.fixture(scope="module")
def folders(world, tmp_path_factory):
    """The same world without the sets and with them."""
    folder = tmp_path_factory.mktemp("decoder") / "raw"
    make.make(folder, 50, 3, 1, lambda line: None, decoder_sets=_SETS)
    return world, folder


@pytest.fixture(scope="module")
def raw(folders):
    return folders[1]


@pytest.fixture(scope="module")
def books(raw):
    return json.loads((raw / "ocr_vqa/dataset.json").read_text())


def _hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_everything_else_stays_as_it_is(folders):
    plain, more = map(_hashes, folders)
    changed = {name for name in plain if plain[name] != more.get(name)}
    assert changed == {"world.json", "contact_sheet.png"}, "which count and show all"
    new = {name.split("/")[0] for name in more.keys() - plain.keys()}
    assert new == {"classes", "ocr_vqa", "images"}
    about = [json.loads((folder / "world.json").read_text()) for folder in folders]
    assert about[0]["arguments"] == {"images": 50, "seed": 3}
    assert about[1]["arguments"] == about[0]["arguments"] | {
        "class_pictures": 5, "covers": 40, "cover_side": 48, "cover_words": 6
    }  # fmt: skip
    assert about[0]["counts"].items() <= about[1]["counts"].items()
    plain_sheet, sheet = (folder / "contact_sheet.png" for folder in folders)
    with Image.open(plain_sheet) as small, Image.open(sheet) as large:
        assert large.height > small.height
    assert make.is_made(folders[1], 50, 3, decoder_sets=_SETS)
    with pytest.raises(ValueError, match="holds another world"):
        make.is_made(folders[1], 50, 3)


def test_class_folders_are_balanced_and_disjoint(raw):
    seen = set()
    for image_set, names in class_scenes.SETS.items():
        for split, each in (("train", 3), ("val", 1), ("test", 1)):
            found = open_images(raw / "classes" / image_set / split)
            assert found.labels == tuple(sorted(names))
            examples = [found.read(i) for i in range(found.num_examples)]
            assert collections.Counter(x.label for x in examples) == dict.fromkeys(
                range(len(names)), each
            )
            digests = {x.data for x in examples}
            assert len(digests) == len(examples)
            assert seen.isdisjoint(digests)
            seen |= digests
    with Image.open(next((raw / "classes/things").rglob("*.jpg"))) as picture:
        assert picture.size == (WIDTH, HEIGHT)


def test_covers_are_also_in_folders_of_their_genres(raw, books):
    splits = {1: "train", 2: "val", 3: "test"}
    files = list((raw / "classes/genres").rglob("*.jpg"))
    assert {(*path.parts[-3:-1], path.stem) for path in files} == {
        (splits[book["split"]], book["genre"].lower(), key) for key, book in books.items()
    }
    assert files[0].read_bytes() == (raw / "images/ocr_vqa" / files[0].name).read_bytes()


def test_neither_shape_nor_colour_tells_the_class():
    assert len(THINGS) == 40
    shapes, colours = (collections.Counter(part) for part in zip(*THINGS.values(), strict=True))
    assert shapes == dict.fromkeys(SHAPES, 4)
    assert colours == dict.fromkeys(COLOURS, 5)
    assert len(set(THINGS.values())) == 40
    assert len(GROUNDS_SEEN) == 10


def test_the_class_is_that_of_the_largest_thing():
    rng = np.random.default_rng(0)
    counts = collections.Counter()
    for name, (shape, colour) in itertools.islice(THINGS.items(), 0, 40, 3):
        for _ in range(4):
            scene = class_scenes.sample("things", name, rng)
            main_thing, *others = scene.things
            assert (main_thing.shape, main_thing.colour, main_thing.shaded) == (
                shape,
                colour,
                False,
            )
            assert all(thing.radius < main_thing.radius / 1.5 for thing in others)
            assert all((thing.shape, thing.colour) != (shape, colour) for thing in others)
            for first, second in itertools.combinations(scene.things, 2):
                apart = max(abs(first.x - second.x), abs(first.y - second.y))
                assert apart > first.radius + second.radius
            for thing in scene.things:
                low = CURTAIN_WIDTH if scene.curtain == "left" else 0
                high = WIDTH - (CURTAIN_WIDTH if scene.curtain == "right" else 0)
                assert low < thing.x - thing.radius < thing.x + thing.radius < high
                assert 0 < thing.y - thing.radius < thing.y + thing.radius < HEIGHT
            counts[len(others)] += 1
    assert len(counts) > 3
    for name, (ground, curtain) in GROUNDS_SEEN.items():
        scene = class_scenes.sample("grounds", name, rng)
        assert (scene.ground, scene.curtain is not None) == (ground, curtain)


def test_books_are_in_the_official_layout(raw, books):
    assert len(books) == 40
    for book_id, book in books.items():
        assert set(book) == {
            "imageURL", "authorName", "title", "genre", "split", "questions", "answers"
        }  # fmt: skip
        assert len(book["questions"]) == len(book["answers"]) == 5
        asked = dict(zip(book["questions"], book["answers"], strict=True))
        assert asked["What is the title of this book?"] == book["title"]
        assert {book["authorName"], book["genre"], "Yes", "No"} <= set(asked.values())
        assert book["imageURL"].endswith(f"/{book_id}.jpg")
        with Image.open(raw / f"images/ocr_vqa/{book_id}.jpg") as picture:
            assert (picture.size, picture.mode) == ((48, 48), "RGB")
    splits = collections.Counter(book["split"] for book in books.values())
    assert splits == {1: 32, 2: 4, 3: 4}
    for key in ("title", "authorName"):
        parts = [{b[key] for b in books.values() if b["split"] == n} for n in (1, 2, 3)]
        assert all(a.isdisjoint(b) for a, b in itertools.combinations(parts, 2))
    genres = collections.Counter(b["genre"] for b in books.values() if b["split"] == 1)
    assert genres == dict.fromkeys(covers.GENRES, 4)


def test_questions_alone_do_not_tell_yes_from_no(tmp_path):
    from twelve_in_one.world.writers import ocr_vqa

    def run(name, function, items):
        rng = np.random.default_rng(0)
        return [function(item, rng) for item in items]

    plan = np.random.default_rng(5)
    ocr_vqa.write(tmp_path, tmp_path / "images", tmp_path / "genres", 400, 16, 4, plan, run)
    found = json.loads((tmp_path / "dataset.json").read_text()).values()
    asked = collections.defaultdict(collections.Counter)
    for book in found:
        for question, answer in zip(book["questions"], book["answers"], strict=True):
            asked[question][answer] += 1
    verdicts = {q: c for q, c in asked.items() if set(c) <= {"Yes", "No"}}
    assert len(verdicts) == 2 * len(covers.GENRES)
    total = sum((c for c in verdicts.values()), collections.Counter())
    assert total["Yes"] == total["No"] == 400
    # The best that a guess by question can do.
    assert sum(max(c.values()) for c in verdicts.values()) / 800 < 0.57
    for question in ("What is the genre of this book?", "What type of book is this?"):
        assert max(asked[question].values()) < 0.2 * asked[question].total()


def test_text_and_motif_are_on_the_cover():
    cover = covers.Cover("Silent Garden", "Ann Abel", "Travel")

    def drawn(**change):
        other = covers.Cover(
            **({"title": cover.title, "author": cover.author, "genre": cover.genre} | change)
        )
        return covers.draw(other, 64, np.random.default_rng(3)).astype(int)

    # With the same randomness, only the lines that say something else differ.
    for change, rows in (
        ({"title": "Golden Garden"}, (0, 22)),
        ({"title": "Silent River"}, (18, 41)),
        ({"author": "Ben Abel"}, (34, 52)),
    ):
        differs = np.flatnonzero(np.abs(drawn(**change) - drawn()).max((1, 2)) > 40)
        assert len(differs), change
        assert rows[0] <= differs.min() <= differs.max() <= rows[1], change
    motifs = [drawn(genre=genre) for genre in covers.GENRES]
    for first, second in itertools.combinations(motifs, 2):
        assert (np.abs(first - second).max(2) > 30).mean() > 0.05


def test_every_line_fits(monkeypatch):
    placed = []
    text = covers.ImageDraw.ImageDraw.text

    def record(self, xy, text_, **options):
        placed.append((xy[0] + options["font"].getlength(text_), options["font"].size))
        text(self, xy, text_, **options)

    monkeypatch.setattr(covers.ImageDraw.ImageDraw, "text", record)
    rng = np.random.default_rng(0)
    longest = zip(
        _longest(covers.titles(40)), _longest(covers.authors(40)), covers.GENRES, strict=True
    )
    for title, author, genre in longest:
        covers.draw(covers.Cover(title, author, genre), 64, rng)
    ends, sizes = zip(*placed, strict=True)
    assert len(placed) == 32
    assert max(ends) <= 61
    assert min(sizes) >= 9, "small text cannot be read"


def _longest(texts):
    """Eight texts of the longest words."""
    parts = [set(words) for words in zip(*map(str.split, texts), strict=True)]
    assert list(map(len, parts)) == [40, 40]
    chosen = (sorted(words, key=len)[-8:] for words in parts)
    return [" ".join(words) for words in zip(*chosen, strict=True)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class_pictures", "4"], "class_pictures must be 0, or from 5 to 50,000, got 4"),
        (["--covers", "-1"], "covers must be 0, or from 10 to 50,000, got -1"),
        (["--covers", "20", "--cover_side", "8"], "cover_side must be from 48 to 1,024, got 8"),
        (["--covers", "20", "--cover_words", "99"], "cover_words must be from 4 to 40, got 99"),
        (["--cover_side", "96"], "cover_side is of covers, and there are none"),
    ],
)
def test_arguments_are_checked(tmp_path, capsys, arguments, message):
    assert main(["--out", str(tmp_path / "raw"), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
