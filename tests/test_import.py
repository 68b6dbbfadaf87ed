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


# Raises, and says so: what is optional must be imported only where it is used.
BLOCK = """
import sys

class Blocked:
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets", "torch"):
            print("tried", name)
            raise ImportError(name)

sys.meta_path.insert(0, Blocked)
"""


def test_entry_points_import_neither_tensorflow_nor_torch():
    """Nor do they try, and so work where neither is installed."""
    *loaded, end = in_a_new_process(f"{BLOCK}{LAYERS}; print(*sys.modules); print('fine')").split()
    assert "twelve_in_one.models.two_stream.trunk" in loaded and end == "fine"
    assert "tried" not in loaded
