"""What importing the package costs, and what it must not bring in."""

import subprocess
import sys

LAYERS = (
    "import twelve_in_one.train, twelve_in_one.convert.__main__, twelve_in_one.parity.__main__, "
    "twelve_in_one.evaluate, twelve_in_one.predict.__main__, twelve_in_one.export, "
    "twelve_in_one.report, twelve_in_one.data.encode.examples, twelve_in_one.data.streams, "
    "twelve_in_one.data.build, twelve_in_one.data.real_samples, twelve_in_one.demo.__main__"
)


def in_a_new_process(code):
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return run.stdout


def test_package_itself_brings_nothing_in():
    """So that reading its version takes milliseconds."""
    before, after = (
        in_a_new_process(f"import sys{extra}; print(*sys.modules)").split()
        for extra in ("", ", twelve_in_one")
    )
    assert set(after) - set(before) == {"twelve_in_one"}


def test_entry_points_import_neither_tensorflow_nor_torch():
    loaded = in_a_new_process(f"{LAYERS}; import sys; print(*sys.modules)").split()
    assert "twelve_in_one.models.two_stream.trunk" in loaded
    assert {"tensorflow", "torch", "tensorflow_datasets"}.isdisjoint(loaded)


def test_entry_points_work_where_neither_is_installed():
    """A blocked import raises; what is optional must be imported only where it is used."""
    block = "import sys; sys.modules.update(tensorflow=None, tensorflow_datasets=None, torch=None)"
    assert in_a_new_process(f"{block}; {LAYERS}; print('fine')") == "fine\n"
