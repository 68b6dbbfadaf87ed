import os
import subprocess
import sys

import pytest

from twelve_in_one import atomic


@pytest.mark.parametrize("sync", [True, False])
def test_a_file_takes_the_place_of_another(tmp_path, sync):
    path = tmp_path / "a.json"
    for content, expected in (("é\r\n", b"\xc3\xa9\r\n"), (b"\xff", b"\xff")):
        atomic.write(path, content, sync=sync)
        assert path.read_bytes() == expected and list(tmp_path.iterdir()) == [path]
    with atomic.replacing(path, sync=sync) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".json")
        temporary.write_text("new")
        assert path.read_bytes() == b"\xff"
    assert path.read_text() == "new"


@pytest.mark.parametrize("alone", [True, False])
def test_what_a_killed_process_leaves(tmp_path, alone):
    path = tmp_path / "a.json"
    code = (
        "import os, pathlib, sys; from twelve_in_one import atomic\n"
        "with atomic.replacing(pathlib.Path(sys.argv[1]), alone=len(sys.argv) < 3) as temporary:\n"
        "    temporary.write_text('half'); os._exit(9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, path, *["shared"] * (not alone)])
    assert killed.returncode == 9
    (left,) = tmp_path.iterdir()
    atomic.write(path, "whole", alone=alone)
    assert path.read_text() == "whole" and left.exists() == (not alone)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("in it"), OSError(28, "full")])
def test_an_error_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("as it was")
    with pytest.raises(type(error)) as caught, atomic.replacing(path) as temporary:
        temporary.write_text("half")
        raise error
    assert path.read_text() == "as it was" and list(tmp_path.iterdir()) == [path]
    assert getattr(caught.value, "filename", str(path)) == str(path)


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_disk_that_fails_is_an_error_of_the_file(tmp_path, monkeypatch, failing):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match=r"Input/output error: '.*/a\.json'$"):
        atomic.write(tmp_path / "a.json", "text")
    assert not list(tmp_path.iterdir())


def test_errors_of_other_files_keep_their_names(tmp_path):
    with pytest.raises(OSError, match="'.*missing'$"), atomic.replacing(tmp_path / "a"):
        (tmp_path / "missing").read_text()
    with pytest.raises(OSError, match="'.*/nowhere/a'$"):
        atomic.write(tmp_path / "nowhere" / "a", "text")
