"""Weights that timm's names stand for: copies on this machine, and a download that never hangs.

A name is looked up in the cache of the Hugging Face hub, then in the one of torch.hub, without a network. Only where
neither has it is the hub asked, and only if its host answers within seconds.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import socket
import threading
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemlearn.errors import WeightsError

SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")
_HUB = "https://huggingface.co"
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_TIMEOUT = 2.0  # seconds to find out whether a hub can be reached


@dataclass(frozen=True)
class WeightsFile:
    """One file of weights on this machine.

    Attributes:
        path: The file.
        source: Where it comes from, for the run's provenance.
        kind: ``file``, ``package``, ``run`` or ``cache``.
    """

    path: Path
    source: str
    kind: str

    def checksum(self) -> str:
        """SHA-256 of the file's bytes, as hex digits."""
        stat = self.path.stat()
        return _sha256(str(self.path), stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256(path: str, *_version: int) -> str:
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def checked(weights: WeightsFile) -> WeightsFile:
    """The same file, compared with the digest in its name (torch.hub's ``name-<hex>.pth``), where it has one.

    Raises:
        WeightsError: The content has another SHA-256.
    """
    digest = re.search(r"-([0-9a-f]{8,64})\.", weights.path.name)
    if digest and not weights.checksum().startswith(digest.group(1)):
        raise WeightsError(
            f"{weights.path}: its content has not the SHA-256 {digest.group(1)}... that its name promises",
            remedy="the file is truncated or altered: delete it and fetch it again",
        )
    return weights


@dataclass(frozen=True)
class Remote:
    """Where timm's record of a name says that its weights are.

    Attributes:
        repository: On the Hugging Face hub, or None.
        revision: Of that repository.
        files: Candidate files in it, best first.
        url: Address of a torch.hub-style file that can be read here, or None.
    """

    repository: str | None
    revision: str | None
    files: tuple[str, ...]
    url: str | None

    @property
    def url_name(self) -> str:
        """File name under which torch.hub keeps ``url``."""
        return urllib.parse.urlparse(self.url or "").path.rpartition("/")[2]


def remote(name: str) -> Remote | None:
    """Where the weights of a timm name are, or None where timm has none of that name."""
    import timm

    import hemlearn.models.classic  # noqa: F401 - registers AlexNet and GoogLeNet

    try:
        record: Any = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        return None
    if record is None:
        return None
    repository, _, revision = str(record.hf_hub_id or "").partition("@")
    files = (record.hf_hub_filename,) if record.hf_hub_filename else _HUB_FILES
    url = record.url[0] if isinstance(record.url, (tuple, list)) else record.url
    if url and Path(urllib.parse.urlparse(url).path).suffix not in SUFFIXES:
        url = None  # the original authors' format, such as JAX's .npz
    return Remote(repository or None, revision or None, files, url) if repository or url else None


def torch_hub() -> Path:
    """Folder where torch.hub keeps weights (``$TORCH_HOME/hub/checkpoints``)."""
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def cached(where: Remote) -> WeightsFile | None:
    """Weights that an earlier download left on this machine; asks no network.

    Raises:
        WeightsError: torch.hub's copy is damaged.
    """
    if where.repository:
        from huggingface_hub import try_to_load_from_cache

        for file in where.files:
            found = try_to_load_from_cache(where.repository, file, revision=where.revision)
            if isinstance(found, str) and Path(found).is_file():
                return WeightsFile(Path(found), f"hub {where.repository} ({file})", "cache")
    path = torch_hub() / where.url_name
    if where.url and path.is_file():
        return checked(WeightsFile(path, f"torch.hub {path.name}", "cache"))
    return None


def download(where: Remote) -> WeightsFile:
    """Fetch weights into the cache.

    Raises:
        OSError: No host can be reached, or the transfer failed; the text says which.
        WeightsError: What came is damaged.
    """
    try:
        if where.repository and _reachable(_HUB):
            from huggingface_hub import hf_hub_download
            from huggingface_hub.errors import EntryNotFoundError

            for file in where.files:
                try:
                    hf_hub_download(where.repository, file, revision=where.revision, etag_timeout=_TIMEOUT)
                except EntryNotFoundError:
                    continue
                break
        elif where.url and _reachable(where.url):
            import torch

            torch_hub().mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(where.url, str(torch_hub() / where.url_name), progress=False)
        else:
            raise OSError("this machine has no copy, and the host cannot be reached")
    except OSError:
        raise
    except Exception as error:  # network clients raise errors of many kinds, and all mean: not fetched
        raise OSError(f"fetching them failed: {error}") from error
    found = cached(where)
    if found is None:
        raise OSError(f"{where.repository} has none of {', '.join(where.files)}")
    return found


def _reachable(address: str) -> bool:
    """Whether the host of ``address`` (or the proxy before it) answers soon; never waits longer than that."""
    offline = (os.environ.get(key, "").lower() for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    if any(value in ("1", "on", "yes", "true") for value in offline):
        return False
    proxy = urllib.request.getproxies().get("https")
    if proxy:
        address = proxy if "://" in proxy else f"http://{proxy}"
    target = urllib.parse.urlparse(address)
    answered = threading.Event()

    def knock() -> None:
        port = target.port or (80 if target.scheme == "http" else 443)
        try:
            socket.create_connection((target.hostname or "", port), timeout=_TIMEOUT).close()
        except OSError:
            return
        answered.set()

    # Name resolution knows no time limit, so it may hang on in a thread of its own.
    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(_TIMEOUT)
    return answered.is_set()
