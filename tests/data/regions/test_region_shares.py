"""VinVL's files and grids of features, whose boxes are shares of pictures."""

import base64
import json

import numpy as np
import pytest

from twelve_in_one.data.regions import open_store
from twelve_in_one.data.regions.checks import check_regions
from twelve_in_one.data.regions.grid import GridStore
from twelve_in_one.data.regions.rows import region_rows
from twelve_in_one.data.regions.store import in_pixels
from twelve_in_one.data.regions.tsv import TsvStore
from twelve_in_one.data.stored.records import AnnotatedImage, DataError

WIDTH, HEIGHT = 640, 480
BOXES = np.array([[0, 0, 320, 480], [64, 48, 640, 96]], np.float32)
SHARES = BOXES / np.array([[WIDTH, HEIGHT] * 2], np.float32)


def vinvl_rows(dim=2048):
    features = np.random.default_rng(0).uniform(0, 9, (len(BOXES), dim)).astype(np.float32)
    return np.concatenate([features, SHARES, SHARES[:, 2:] - SHARES[:, :2]], 1)


def vinvl_line(key, rows, columns=2):
    text = base64.b64encode(rows.astype("<f4").tobytes()).decode()
    if columns == 3:
        return f"{key}\t{len(rows)}\t{text}\n"
    return f"{key}\t{json.dumps({'num_boxes': len(rows), 'features': text})}\n"


@pytest.mark.parametrize("columns", [2, 3])
@pytest.mark.parametrize("names", [("features.tsv", "hw.tsv"), ("val.feature.tsv", "val.hw.tsv")])
def test_vinvl(tmp_path, names, columns):
    rows = vinvl_rows()
    path, beside = (tmp_path / name for name in names)
    path.write_text(vinvl_line("COCO_val2014_000000000042", rows, columns))
    sizes = json.dumps([{"height": HEIGHT, "width": WIDTH}])
    beside.write_text(f"COCO_val2014_000000000042\t{sizes}\n")
    with open_store(str(path)) as store:
        assert isinstance(store, TsvStore) and list(store.ids()) == ["42"]
        regions = check_regions(store.get("42"), store="s", image_id="42", feature_dim=2054)
    np.testing.assert_array_equal(regions.features, rows)
    np.testing.assert_allclose(regions.boxes, BOXES, atol=1e-3)
    assert (regions.width, regions.height) == (WIDTH, HEIGHT)


def test_location_without_a_size(tmp_path):
    """Neither the file nor the annotations of questions say how large a picture is."""
    path = tmp_path / "features.tsv"
    path.write_text(vinvl_line("42", vinvl_rows(8)))
    with open_store(f"tsv:{path}") as store:
        shares = store.get("42")
    assert (shares.width, shares.height) == (0, 0)
    expected = np.concatenate([SHARES, (SHARES[:, 2:] - SHARES[:, :2]).prod(1)[:, None]], 1)
    for image in (AnnotatedImage("42"), AnnotatedImage("42", width=WIDTH, height=HEIGHT)):
        regions = check_regions(in_pixels(shares, image, "s"), store="s", image_id="42")
        assert regions.width == (image.width or 1)
        np.testing.assert_allclose(region_rows(regions)[1][1:], expected, atol=1e-6)
    drawn = AnnotatedImage("42", box_ids=(1,), boxes=((1.0, 2.0, 30.0, 40.0),))
    with pytest.raises(DataError, match=r"features.tsv: .*shares of a picture whose size"):
        in_pixels(shares, drawn, str(path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:, :5], "features of 5 numbers, without a box"),
        (lambda rows: rows[:, ::-1], "are no box x1, y1, x2, y2, width, height in shares"),
        (lambda rows: rows * np.float32(np.nan), "are no box"),
    ],
)
def test_vinvl_without_boxes(tmp_path, change, message):
    path = tmp_path / "features.tsv"
    path.write_text(vinvl_line("42", change(vinvl_rows(8))))
    with TsvStore(path) as store, pytest.raises(DataError, match=f"image '42': .*{message}"):
        store.get("42")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('42\t{"num_boxes": 2}\n', "no 'features'"),
        ('42\t{"num_boxes": "2", "features": "AAAA"}\n', "num_boxes must be a whole number"),
        ('42\t{"num_boxes": 2, "features": "AAAA"}\n', "3 bytes are no float32 of 2 regions"),
        ('42\t{"num_boxes": \n', "not JSON"),
        ("42\t2\t!!!!\n", "no base64 of float32"),
    ],
)
def test_damaged_vinvl_lines(tmp_path, line, message):
    path = tmp_path / "features.tsv"
    path.write_text(line + vinvl_line("43", vinvl_rows(8), line.count("\t") + 1) + "44\n")
    with TsvStore(path) as store:
        assert len(store.get("43").boxes) == len(BOXES)
        assert [skip.record for skip in store.damaged] == ["line 3"]
        assert "not 2 or 3" in store.damaged[0].reason or "as the first" in store.damaged[0].reason
        with pytest.raises(DataError, match=message):
            store.get("42")


def test_sizes_beside_vinvl_that_are_none(tmp_path):
    path = tmp_path / "features.tsv"
    path.write_text(vinvl_line("42", vinvl_rows(8)))
    path.with_name("hw.tsv").write_text('42\t[{"height": 0, "width": 4}]\n')
    with pytest.raises(DataError, match=r"hw.tsv: line 1: .* is no width and height"):
        TsvStore(path)


@pytest.mark.parametrize("batch", [(), (1,)])
def test_grids(tmp_path, batch):
    torch = pytest.importorskip("torch")
    cells = np.random.default_rng(0).normal(size=(16, 2, 3)).astype(np.float32)
    torch.save(torch.from_numpy(cells.reshape(*batch, 16, 2, 3)), tmp_path / "000000000042.pth")
    torch.save(torch.zeros(4), tmp_path / "43.pth")
    torch.save([torch.zeros(4)], tmp_path / "44.pth")
    with open_store(str(tmp_path)) as store:
        assert isinstance(store, GridStore) and sorted(store.ids()) == ["42", "43", "44"]
        regions = in_pixels(store.get("42"), AnnotatedImage("42"), "s")
        with pytest.raises(DataError, match=r"43.pth: .* which is no grid"):
            store.get("43")
        with pytest.raises(DataError, match=r"44.pth: .* holds a list"):
            store.get("44")
    np.testing.assert_array_equal(regions.features[4], cells[:, 1, 1])
    locations = region_rows(regions)[1][1:]
    np.testing.assert_allclose(locations[4], [1 / 3, 1 / 2, 2 / 3, 1, 1 / 6], atol=1e-6)
