"""From released files to an answer about a photo, as docs/photos.md shows it: three commands."""

import dataclasses
import functools
import json
import pickle

import jax
import numpy as np
import pytest
from PIL import Image
from reference.when_used import when_used

from twelve_in_one import predict
from twelve_in_one.convert import __main__ as convert
from twelve_in_one.convert import detectors, faster_rcnn
from twelve_in_one.convert.names import TIED_DECODER, WORD_TABLE, table
from twelve_in_one.data.encode.text import SPECIALS
from twelve_in_one.data.regions import extract, open_store
from twelve_in_one.data.regions.extractor import PixelExtractor
from twelve_in_one.models.detection.fpn import anchors
from twelve_in_one.models.detection.proposals import ProposalConfig
from twelve_in_one.models.detection.resize import Resizing
from twelve_in_one.models.two_stream.reference_config import to_reference
from twelve_in_one.predict.__main__ import main as ask

torch = when_used("torch")
WORDS = ("what", "is", "the", "red", "dog", "##s", "?")
ANSWERS = ["yes", "no", "a dog"]
BOXES = [(10, 10, 90, 80), (30, 40, 140, 100)]


@pytest.fixture(scope="module")
def files(shared_dir, tiny_config, tmp_path_factory):
    """Small released files of random numbers, and a photo: a folder."""
    folder = tmp_path_factory.mktemp("released")
    with np.load(shared_dir / "fixtures/pixels.npz") as arrays:
        prefix = "e2e_sd__"
        state = {n.removeprefix(prefix): arrays[n] for n in arrays.files if n.startswith(prefix)}
    state |= {f"rpn.anchor_generator.cell_anchors.{i}": a for i, a in enumerate(anchors())}
    model = {f"module.{name}": torch.from_numpy(value) for name, value in state.items()}
    torch.save({"model": model}, folder / "detectron_model.pth")
    (folder / "objects_vocab.txt").write_text("\n".join(f"thing {i}" for i in range(10)))
    config = tiny_config(
        text={"num_layers": 1},
        visual={"num_layers": 1},
        text_connections=(0,),
        visual_connections=(0,),
        vocab_size=len(SPECIALS) + len(WORDS),
        max_positions=300,
        num_tasks=20,
        region_feature_dim=32,
        num_vqa_answers=len(ANSWERS),
    )
    rng = np.random.default_rng(0)
    tensors = {e.name: rng.normal(0, 0.3, e.shape).astype(np.float32) for e in table(config)}
    tensors[TIED_DECODER] = tensors[WORD_TABLE]
    tensors = {name: torch.from_numpy(value) for name, value in tensors.items()}
    torch.save(tensors, folder / "multi_task_model.bin")
    (folder / "config.json").write_text(json.dumps(to_reference(config)))
    (folder / "vocab.txt").write_text("\n".join((*SPECIALS, *WORDS)) + "\n")
    (folder / "trainval_label2ans.pkl").write_bytes(pickle.dumps(ANSWERS))
    (folder / "photos").mkdir()
    coarse = rng.integers(0, 256, (8, 11, 3), np.uint8)
    Image.fromarray(coarse).resize((150, 110)).save(folder / "photos" / "kitchen.jpg")
    return folder


@pytest.fixture(scope="module", autouse=True)
def small_photos():
    """The detector sees photos of 64 x 96 pixels: programs of the real size take long."""
    kind, _ = faster_rcnn.USES["x152"]
    settings = dict(
        canvases=((64, 96),),
        resizing=Resizing(64, 96),
        proposals=ProposalConfig(before=20, after=15, total=30),
        num_regions=6,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(faster_rcnn.USES, "x152", (kind, settings))
        # Opened once, on one device, and compiled once.
        opened = functools.cache(
            functools.partial(detectors.open_detector, devices=jax.devices()[:1])
        )
        patch.setattr(detectors, "open_detector", lambda spec, **options: opened(spec))
        yield


@pytest.fixture(scope="module")
def model(files):
    """The first command."""
    command = [
        files / "multi_task_model.bin",
        files / "official",
        "--config",
        files / "config.json",
    ]
    command += ["--words", files / "vocab.txt"]
    command += ["--answers", f"vqa={files / 'trainval_label2ans.pkl'}"]
    assert convert.main(list(map(str, command))) == 0
    return files / "official"


def test_three_commands(files, model, tmp_path, capsys):
    photo, detector = files / "photos" / "kitchen.jpg", f"x152:{files / 'detectron_model.pth'}"
    command = ["--images", files / "photos", "--out", tmp_path / "out", "--detector", detector]
    assert extract.main([*map(str, command), "--picture", str(tmp_path / "drawn")]) == 0
    assert (tmp_path / "drawn" / "kitchen.png").is_file()
    capsys.readouterr()

    loaded = predict.load(model, detector=detector)
    answer = loaded.answer(photo, "what is the red dog ?")
    with open_store(f"records:{tmp_path / 'out'}") as store:
        regions, origin = store.get("kitchen"), store.extractor
    assert origin.startswith("x152-1-6-") and len(regions.boxes) > 1
    np.testing.assert_allclose(answer.images[0].regions.boxes, regions.boxes, atol=1e-2)
    stored = loaded.answer(regions, "what is the red dog ?")
    assert stored.answer == answer.answer in ANSWERS
    np.testing.assert_allclose([p for _, p in stored.top], [p for _, p in answer.top], atol=1e-3)
    # Boxes of a user are described by the same detector.
    described = loaded._engine.reader.boxes(answer.images[0], BOXES)
    assert described.features.shape == (2, 32) and described.features.std() > 0
    assert loaded.ground(photo, "the red dog", boxes=BOXES).candidates[1:].tolist() == [
        list(box) for box in BOXES
    ]

    question = ["--image", str(photo), "--text", "what is the red dog ?"]
    command = ["answer", "--model", str(model), "--detector", detector, *question]
    assert ask([*command, "--picture", str(tmp_path / "answer.png")]) == 0
    assert answer.answer in capsys.readouterr().out and (tmp_path / "answer.png").is_file()


def test_another_detector_is_refused(files, model, tmp_path, capsys):
    @dataclasses.dataclass(frozen=True)
    class Small:
        name: str = "small-1-100-54ddaf3e"
        feature_dim: int = 32
        num_regions: int = 100

    both = "trained on regions of x152, the extractor is small-1-100-54ddaf3e"
    with pytest.raises(ValueError, match=both):
        predict.load(model, extractor=Small())
    with pytest.raises(ValueError, match="not both"):
        predict.load(model, detector="x152:a", extractor=Small())
    photo = str(files / "photos" / "kitchen.jpg")
    with pytest.raises(ValueError, match=r"regions of 'x152'; .*detector='x152:FILE'"):
        predict.load(model).answer(photo, "what ?")
    out = tmp_path / "pixels"
    assert extract.main(["--images", str(files / "photos"), "--out", str(out)]) == 0
    question = ["--image", "kitchen", "--text", "what ?", "--regions", f"records:{out}"]
    capsys.readouterr()
    assert ask(["answer", "--model", str(model), *question]) == 1
    both = f"trained on regions of x152, {out} has those of {PixelExtractor().name}"
    assert both in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "answers", "message"),
    [
        ([*SPECIALS, *WORDS[:-1]], ANSWERS, r"vocab.txt: 11 word pieces, the model has 12"),
        ([*SPECIALS, *WORDS], ANSWERS[:2], r"answers.json: 2 answers, the model's head has 3"),
        ([*SPECIALS, *WORDS], [1, 2, 3], r"answers.json: should be a list of answers"),
    ],
)
def test_files_that_do_not_belong_to_the_model(files, tmp_path, capsys, words, answers, message):
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    (tmp_path / "answers.json").write_text(json.dumps(answers))
    command = [files / "multi_task_model.bin", tmp_path / "out", "--config", files / "config.json"]
    command += ["--words", tmp_path / "vocab.txt", "--answers", f"vqa={tmp_path / 'answers.json'}"]
    assert convert.main(list(map(str, command))) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
