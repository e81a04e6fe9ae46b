"""Published weights, from a path or from a URL with a hash."""

from __future__ import annotations

import logging
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from varlab.errors import VarlabError
from varlab.files import require_writable
from varlab.files import sha256 as file_sha256

log = logging.getLogger(__name__)


def _download(url: str, path: Path, sha256: str) -> None:
    log.info("downloading %s to %s", url, path)
    require_writable(path.parent, "name a folder that can be written with TORCH_HOME=FOLDER")
    try:
        # writes a temporary file beside the path and renames it, so an interrupted download leaves nothing behind
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    except RuntimeError as error:
        raise VarlabError(f"The file at {url} does not have the sha256 {sha256}: {error}.") from error
    except OSError as error:
        raise VarlabError(
            f"Cannot download {url} ({error}): download it elsewhere and give its path instead."
        ) from error


def fetch_weights(source: str, sha256: str | None) -> Path:
    """The local file of published weights, with its hash checked.

    source: a path, or an http(s) URL, which is downloaded once into torch.hub's checkpoint folder. sha256: the file's hash
    or a prefix of it, required for a URL; None skips the check of a path.
    Raises VarlabError naming the file where it is missing, cannot be downloaded or has another hash.
    """
    path = Path(source)
    if urlparse(source).scheme in ("http", "https"):
        if not sha256:
            raise VarlabError(f"Weights from a URL need a sha256: give one for {source}.")
        name = Path(urlparse(source).path).name
        # projects use the same file names, so the hash becomes part of the name (torchvision's names contain it)
        path = Path(torch.hub.get_dir(), "checkpoints", name if sha256[:8] in name else f"{sha256[:8]}-{name}")
        if not path.exists():
            _download(source, path, sha256)
    if not path.is_file():
        raise VarlabError(f"There are no weights at {path}: give the path of a file, or a URL with its sha256.")
    if sha256:
        actual = file_sha256(path)
        if not actual.startswith(sha256.lower()):
            raise VarlabError(
                f"{path} is another file: its sha256 is {actual}, not {sha256}. Remove it or correct the hash."
            )
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """Read the state dict of a ``.pth`` file onto the CPU, without running code. Raises VarlabError if it holds none."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise VarlabError(f"{path} cannot be read as tensors: it is damaged, or not a PyTorch state dict.") from error
    if not isinstance(state, dict):
        raise VarlabError(f"{path} holds a {type(state).__name__} instead of a state dict.")
    return state


def as_constants(net: nn.Module) -> nn.Module:
    """Turn all parameters into buffers outside the state dict: they follow the device, but are not trained or saved."""
    for module in net.modules():
        tensors = {**module._parameters, **module._buffers}
        for name, value in tensors.items():
            if value is not None:
                delattr(module, name)
                module.register_buffer(name, value.detach().clone(), persistent=False)
    return net.eval()
