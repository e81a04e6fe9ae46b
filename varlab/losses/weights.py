"""Published weights: by path, or by URL with the hash that the file must have."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from varlab.errors import VarlabError

log = logging.getLogger(__name__)


def _download(url: str, path: Path, sha256: str) -> None:
    log.info("downloading %s to %s", url, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # writes a temporary file beside the path and renames it, so an interrupted download leaves nothing behind
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    except RuntimeError as error:
        raise VarlabError(f"the file at {url} does not have the sha256 {sha256}: {error}.") from error
    except OSError as error:
        raise VarlabError(f"cannot download {url} ({error}): fetch it elsewhere and give its path instead.") from error


def fetch_weights(source: str, sha256: str | None) -> Path:
    """The local file of some published weights, checked.

    source: a path, or an http(s) URL, which is downloaded once into torch.hub's checkpoint folder. sha256: the hash the
    file must begin with (a prefix will do); required for a URL, None skips the check of a path.
    Raises VarlabError naming the file where it is missing, cannot be downloaded or has another hash.
    """
    path = Path(source)
    if urlparse(source).scheme in ("http", "https"):
        if not sha256:
            raise VarlabError(f"weights from a URL need the sha256 they must have: give one for {source}.")
        name = Path(urlparse(source).path).name
        # the hash keeps apart what different projects call by one name; torchvision's names carry theirs already
        path = Path(torch.hub.get_dir(), "checkpoints", name if sha256[:8] in name else f"{sha256[:8]}-{name}")
        if not path.exists():
            _download(source, path, sha256)
    if not path.is_file():
        raise VarlabError(f"there are no weights at {path}: give the path of a file, or a URL with its sha256.")
    if sha256:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if not found.startswith(sha256.lower()):
            raise VarlabError(f"{path} is not the file meant: its sha256 is {found}, and {sha256} was asked for.")
    return path


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file, on the CPU. Code in it never runs. VarlabError for anything but a state dict."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        raise VarlabError(f"{path} cannot be read as tensors: it is damaged, or not a PyTorch state dict.") from error
    if not isinstance(state, dict):
        raise VarlabError(f"{path} holds a {type(state).__name__}, and a state dict was expected.")
    return state


def as_constants(net: nn.Module) -> nn.Module:
    """All parameters become buffers that no state dict holds: they move with the device, never trained nor saved."""
    for module in net.modules():
        held = {**module._parameters, **module._buffers}
        for name, value in held.items():
            if value is not None:
                delattr(module, name)
                module.register_buffer(name, value.detach().clone(), persistent=False)
    return net.eval()
