"""A user's own data set: one JSON object per line, about pictures in one folder.

    {"image": "a.jpg", "question": "what is it?", "answer": "a kettle"}            like vqa, gqa
    {"image": "a.jpg", "caption": "a kettle on a stove"}                           like coco
    {"image": "a.jpg", "expression": "the left cup", "box": [10, 20, 80, 90]}      like refcoco
    {"image": "a.jpg", "statement": "the stove is on", "label": "neutral"}         like snli_ve
    {"left": "a.jpg", "right": "b.jpg", "statement": "both show cups", "label": true}  like nlvr2

* `answers` instead of `answer`: a list of several people's answers, or {answer: score}. In a list,
  an answer scores the share of the people who gave it; from ten people on as in VQA, where three of
  ten nearly suffice.
* `captions` instead of `caption`: a list.
* `id`: of the record; without it, its line number, in the file of a split as "val-7".
* `split`: "train", "val" or "test", in every record or in none.
* "test" records may lack `answer` and `label`.

Files ending in .gz are decompressed. Rows of a Hugging Face dataset have the same keys, see
`hf_rows`.
"""

import collections
import dataclasses
import difflib
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from twelve_in_one.data.annotations import jsonl_fields
from twelve_in_one.data.formats import files
from twelve_in_one.data.formats.files import RecordError, shorten
from twelve_in_one.data.stored.records import (
    AnnotatedImage,
    Annotation,
    AnnotationSet,
    DataError,
    Skipped,
)
from twelve_in_one.tasks.kinds import KINDS, Name

SPLITS = ("train", "val", "test")
# Other names for these splits.
ROLES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MAX_SHOWN = 20
_KEYS = {
    "answer": ("question", ("answer", "answers")),
    "match": ("", ("caption", "captions")),
    "region": ("expression", ("box",)),
    "verdict": ("statement", ("label",)),
}

# (place in the file, record), as "line 3"
Rows = Iterable[tuple[str, Mapping[str, Any] | RecordError]]


@dataclasses.dataclass(frozen=True)
class Part:
    """Records of one file.

    Attributes:
      file: its path, or another name for the records.
      role: split that all of them belong to; "" if the records or nothing at all gives it.
      rows: the records.
    """

    file: str
    role: str
    rows: Rows


@dataclasses.dataclass(frozen=True)
class Rules:
    """How the records of a data set are read.

    Attributes:
      kind: of the task.
      images: pictures per example, 1 or 2.
      picture: name of a picture, as a record has it -> its file, or None if none is needed; a
        `RecordError` says why there is none.
      size_of: name of a picture -> its width and height in pixels; None if unknown.
      labels: for kind "verdict", in order.
      box_format: "xyxy" or "xywh".
      collection: that the pictures belong to, see `OwnTaskOptions`.
      val_share: share of the images to hold out for validation, if nothing else chooses them.
      test_share: the same for testing.
      max_skipped_share: largest share of unusable records; more is an error.
    """

    kind: Name
    images: int
    picture: Callable[[str], Path | None]
    size_of: Callable[[str], tuple[int, int] | None] = lambda name: None
    labels: tuple[str, ...] = ()
    box_format: str = "xyxy"
    collection: str = ""
    val_share: float = 0.1
    test_share: float = 0.1
    max_skipped_share: float = 0.05


@dataclasses.dataclass(frozen=True)
class Found:
    """Contents of the records.

    Attributes:
      splits: split -> annotations; skipped records are listed with their split, or with "train".
      pictures: image id -> file, for pictures that have one.
      names: image id -> its name in the records.
      repeated: records that repeat an earlier one; they count once.
      notes: lines for people.
    """

    splits: Mapping[str, AnnotationSet]
    pictures: Mapping[str, Path]
    names: Mapping[str, str]
    repeated: int
    notes: tuple[str, ...]


def file_part(path: Path, role: str = "") -> Part:
    """The records of a JSON-lines file.

    Raises:
      DataError: during reading, if the file cannot be read.
    """
    rows = ((f"line {number}", record) for number, record in files.read_json_lines(path))
    return Part(str(path), role, rows)


def read(parts: Sequence[Part], rules: Rules) -> Found:
    """Reads all records and divides them into splits.

    Args:
      parts: the files; one with role "" is divided by its records' `split`, or by the images.
      rules: see `Rules`.

    Raises:
      DataError: too many records cannot be used: lists the first twenty with file, line, key and
        value; or nothing is left to train or validate on.
    """
    reader = _Reader(rules)
    for part in parts:
        for place, record in part.rows:
            reader.add(part, place, record)
    reader.check()
    return reader.found()


class _Reader:
    """Collects usable records, and the faults of the others."""

    def __init__(self, rules: Rules):
        self._rules = rules
        self._total = self._repeated = 0
        self._skipped: list[tuple[str, Skipped]] = []
        # (split or "", part's file, place, annotation)
        self._kept: list[tuple[str, str, str, Annotation]] = []
        self._ids: dict[tuple[str, str], str] = {}
        self._seen: set[tuple[Any, ...]] = set()
        self._images: dict[str, AnnotatedImage] = {}
        self._pairs: dict[str, tuple[str, str]] = {}
        self._pictures: dict[str, Path] = {}
        self._names: dict[str, str] = {}
        self._unread: collections.Counter[str] = collections.Counter()

    def add(self, part: Part, place: str, record: Mapping[str, Any] | RecordError) -> None:
        self._total += 1
        role = part.role
        try:
            if isinstance(record, RecordError):
                raise record
            role = self._role(part, record)
            made = self._annotations(place, record, role)
        except RecordError as error:
            self._skipped.append((role, Skipped(part.file, place, str(error))))
            return
        says = (role, *(dataclasses.replace(annotation, example_id="") for annotation in made))
        if says in self._seen:
            self._repeated += 1
            return
        for annotation in made:
            before = self._ids.setdefault((role, annotation.example_id), place)
            if before != place:
                given = f"'id' {annotation.example_id!r}"
                if record.get("id") is None:
                    given = f"the number of its line, {annotation.example_id!r},"
                reason = f"{given} is the id of {before}, too"
                self._skipped.append((role, Skipped(part.file, place, reason)))
                return
        self._seen.add(says)
        self._kept += [(role, part.file, place, annotation) for annotation in made]
        self._unread.update(key for key in record if key not in self._known_keys())

    def _known_keys(self) -> set[str]:
        text, answers = _KEYS[self._rules.kind]
        return {"image", "left", "right", "id", "split", text, *answers}

    def _role(self, part: Part, record: Mapping[str, Any]) -> str:
        if record.get("split") is None:
            return part.role
        name = files.field(record, "split", str)
        if name.lower() not in ROLES:
            raise RecordError(f"'split' must be train, val or test, is {shorten(name)}")
        role = ROLES[name.lower()]
        if part.role not in ("", role):
            raise RecordError(f"'split' is {name!r} in the file of {part.role}")
        return role

    def _annotations(
        self, place: str, record: Mapping[str, Any], role: str
    ) -> tuple[Annotation, ...]:
        """One annotation, or several for captions."""
        rules = self._rules
        sides = ("image",) if rules.images == 1 else ("left", "right")
        images = [self._image(record, side) for side in sides]
        key = images[0]
        if rules.images == 2:
            key = "&".join(images)
            self._pairs[key] = (images[0], images[1])
        number = place.rpartition(" ")[2]
        number = f"{role}-{number}" if role else number  # files of several splits count alike
        example_id = number if record.get("id") is None else files.text_id(record, "id")
        kind = KINDS[rules.kind]
        if kind.ranked:
            captions = jsonl_fields.captions(record)
            ids = [f"{example_id}#{i}" for i in range(len(captions))]
            ids = ids if len(captions) > 1 else [example_id]
            return tuple(Annotation(i, key, text) for i, text in zip(ids, captions, strict=True))
        text = jsonl_fields.text(record, _KEYS[rules.kind][0])
        answered = role != "test"
        if kind.noun == "answer":
            answers, scores = jsonl_fields.answers(record, needed=answered)
            return (Annotation(example_id, key, text, answers, scores),)
        if kind.noun == "label":
            label = jsonl_fields.label(record, rules.labels, needed=answered)
            return (Annotation(example_id, key, text, label=label),)
        return (Annotation(example_id, key, text, box=self._box(record, images[0])),)

    def _image(self, record: Mapping[str, Any], key: str) -> str:
        """Returns the id of a picture, and notes it."""
        name = files.text_id(jsonl_fields.required(record, key), key)
        image_id = image_id_of(name, self._rules.collection)
        if image_id not in self._images:
            path = self._rules.picture(name)
            coco_id = int(image_id) if self._rules.collection == "coco" else -1
            self._images[image_id] = AnnotatedImage(image_id, file_name=name, coco_id=coco_id)
            self._names[image_id] = name
            if path is not None:
                self._pictures[image_id] = path
        return image_id

    def _box(self, record: Mapping[str, Any], image_id: str) -> tuple[float, float, float, float]:
        size = self._rules.size_of(self._names[image_id])
        box = jsonl_fields.box(
            jsonl_fields.required(record, "box"), "box", self._rules.box_format, size
        )
        image = self._images[image_id]
        if box not in image.boxes:
            boxes = (*image.boxes, box)
            self._images[image_id] = dataclasses.replace(
                image, boxes=boxes, box_ids=tuple(range(len(boxes)))
            )
        return box

    def check(self) -> None:
        """Raises a DataError that lists the faults, if there are too many."""
        marked = [kept for kept in self._kept if kept[0]]
        if 0 < len(marked) < len(self._kept):
            for _, file, place, _ in (kept for kept in self._kept if not kept[0]):
                self._skipped.append(("", Skipped(file, place, "no 'split', which others have")))
            self._kept = marked
        if len(self._skipped) <= self._rules.max_skipped_share * self._total and self._kept:
            return
        if not self._total:
            raise DataError("the files hold no record")
        lines = [f"{s.file}: {s.record}: {s.reason}" for _, s in self._skipped[:_MAX_SHOWN]]
        more = len(self._skipped) - len(lines)
        raise DataError(
            f"{len(self._skipped):,} of {self._total:,} records cannot be used:\n  "
            + "\n  ".join(lines)
            + (f"\n  and {more:,} more" if more else "")
        )

    def found(self) -> Found:
        """The splits.

        Raises:
          DataError: nothing to train or validate on.
        """
        roles, notes = self._roles()
        splits = {}
        for split in SPLITS:
            annotations = tuple(
                kept[3] for kept, role in zip(self._kept, roles, strict=True) if role == split
            )
            if not annotations:
                continue
            keys = dict.fromkeys(annotation.image_id for annotation in annotations)
            pairs = {key: self._pairs[key] for key in keys if key in self._pairs}
            ids = [i for key in keys for i in pairs.get(key, (key,))]
            skipped = [skip for role, skip in self._skipped if (role or "train") == split]
            splits[split] = AnnotationSet(
                annotations, {i: self._images[i] for i in ids}, pairs, tuple(skipped)
            )
        for split in ("train", "val"):
            if split not in splits:
                raise DataError(
                    f"no record for {split}: {len(self._kept):,} records about "
                    f"{len(self._images):,} pictures; mark some with 'split', name val_jsonl, or "
                    "change val_share and test_share"
                )
        if KINDS[self._rules.kind].ranked and len(splits["train"].images) < 2:
            raise DataError(
                "captions are told apart from those of other pictures: name two at least"
            )
        counts = ", ".join(f"{len(s.annotations):,} {split}" for split, s in splits.items())
        notes.insert(0, f"{self._total:,} records: {counts}")
        if self._repeated:
            notes.append(f"{self._repeated:,} records say what an earlier one says: counted once")
        if self._skipped:
            notes.append(f"{len(self._skipped):,} records cannot be used")
        if self._unread:
            listed = ", ".join(f"{key} ({count:,})" for key, count in self._unread.most_common(8))
            notes.append(f"keys that are not read: {listed}")
        return Found(splits, self._pictures, self._names, self._repeated, tuple(notes))

    def _roles(self) -> tuple[list[str], list[str]]:
        """The split of every kept record, and notes on the decisions."""
        roles = [role for role, *_ in self._kept]
        shares, notes = {}, []
        if not any(roles):  # nothing is said of any
            shares["test"] = self._rules.test_share
        if "val" not in roles:
            shares["val"] = self._rules.val_share
        groups = self._groups()
        for split, share in shares.items():
            free = [role in ("", "train") for role in roles]
            names = {groups[a.image_id] for (*_, a), f in zip(self._kept, free, strict=True) if f}
            chosen = _held_out(split, names, share)
            roles = [
                split if f and groups[kept[3].image_id] in chosen else role
                for kept, role, f in zip(self._kept, roles, free, strict=True)
            ]
            if chosen:
                notes.append(f"{split}: {len(chosen):,} of {len(names):,} pictures, drawn by name")
        return [role or "train" for role in roles], notes

    def _groups(self) -> dict[str, str]:
        """Image or pair -> representative of all pictures that pairs connect with it."""
        parent: dict[str, str] = {}

        def root(name: str) -> str:
            while parent.get(name, name) != name:
                name = parent[name]
            return name

        for left, right in self._pairs.values():
            first, second = sorted((root(left), root(right)))
            parent[second] = first
        return {
            a.image_id: root(self._pairs.get(a.image_id, (a.image_id,))[0]) for *_, a in self._kept
        }


def image_id_of(name: str, collection: str = "") -> str:
    """The id, within its collection, of a picture that a record calls `name`.

    Raises:
      RecordError: a picture of COCO whose name does not end in a number.
    """
    stem = PurePosixPath(name).stem
    if collection == "coco":
        number = re.search(r"[0-9]{1,18}$", stem)
        if number is None:
            raise RecordError(f"{name!r} ends in no number, as the names of COCO's pictures do")
        return str(int(number[0]))
    # Stores of regions take no "/".
    return stem if collection else quote(str(PurePosixPath(name)), safe=" ")


def picture_in(folder: Path) -> Callable[[str], Path]:
    """Finds the pictures of records in a folder; a `RecordError` names similar files."""
    near: dict[Path, list[str]] = {}

    def picture(name: str) -> Path:
        path = folder / name
        if path.is_file():
            return path
        beside = path.parent
        if beside not in near:
            near[beside] = sorted(p.name for p in beside.iterdir()) if beside.is_dir() else []
        alike = difflib.get_close_matches(path.name, near[beside], n=2)
        hint = f"; did you mean {' or '.join(alike)}?" if alike else ""
        raise RecordError(f"picture {name!r}: no such file in {folder}{hint}")

    return picture


def _held_out(split: str, names: Iterable[str], share: float) -> set[str]:
    """Chooses a share between 0 and 1 of the names, by name alone; of a few names at least one.

    A picture stays in its split when others are added, and is in the same one in every data set.
    """
    if share <= 0:
        return set()

    def place(name: str) -> float:
        digest = hashlib.sha256(f"twelve_in_one {split}:{name}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64

    places = {name: place(name) for name in names}
    chosen = {name for name, where in places.items() if where < share}
    if not chosen and len(places) > 1:
        chosen = {min(places, key=places.__getitem__)}
    return chosen
