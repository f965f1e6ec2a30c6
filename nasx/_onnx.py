"""The packages of the extra `onnx`."""

from importlib.util import find_spec

_PACKAGES = "onnx", "onnxscript", "onnxruntime"


def missing() -> list[str]:
    """Return which of the packages are not installed."""
    return [package for package in _PACKAGES if find_spec(package) is None]


def check_installed(what: str) -> None:
    """Raise ImportError where a package is missing that `what` needs."""
    if found := missing():
        raise ImportError(f"{what} needs {', '.join(found)}: pip install 'nasx[onnx]'")
