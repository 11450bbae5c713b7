"""The files of a run folder, which may be a stranger's: their names, their checksums, and the small ones as data.

When a run has ended, ``provenance.json`` holds the SHA-256 of every file that later commands read; whoever reads one
compares it (:func:`problems`). ``status.json``, written last, holds that of ``provenance.json``, which is compared
whenever that is read (:func:`read_provenance`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from hemlearn.util.documents import load_json, load_yaml, read_document
from hemlearn.util.errors import RunError
from hemlearn.util.files import known_sha256, sha256
from hemlearn.util.signatures import is_signed, sign

BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
STATUS, PROVENANCE = "status.json", "provenance.json"
PLACE = "weights_place"  # entry of provenance.json: where the weights lie, seen from the run folder
JOURNAL, SUMMARY = "journal.jsonl", "predict.json"  # of an output folder of `hemlearn predict`
COVARIATES = "covariates.parquet"  # of validation and test slices, where any are known
SEEN = "seen.parquet"  # patients and pictures that its weights have learnt from
_RESULTS = ("predictions.parquet", "metrics.json", "calibration.json", COVARIATES, SEEN)
READ = ("config.yaml", "split.csv", BEST, LAST, *_RESULTS)
ALL = (PROVENANCE, STATUS, *READ)
_NEEDED = ("config.yaml", "provenance.json", "split.csv", "predictions.parquet", "metrics.json")
KEPT = {"both": (BEST, LAST), "best": (BEST,), "last": (LAST,), "none": ()}  # checkpoints.keep -> what stays
AGAIN = "copy the run folder again, or train again"
UNSEALED = "status.json holds no checksum of it (older runs have none), so that it may be an edited one"
UNSIGNED = "not signed by you: somebody else's, or edited"
REMADE = "the command that made the run makes it whole again; of somebody else's run ask for another copy"


def checksums(path: Path) -> dict[str, str]:
    """SHA-256 of each file of a run folder that later commands read, by its name in the folder."""
    return {name: known_sha256(path / name) for name in READ if (path / name).is_file()}


def kept(path: Path, keep: str) -> dict[str, Any]:
    """Entries of ``provenance.json`` about a run that has ended.

    ``files``: checksums of what is to stay; ``keep``: ``checkpoints.keep``; ``tested``: the checkpoint that holds the
    weights which were tested, None where it goes.
    """
    found = checksums(path)
    same = [BEST, *([LAST] if found.get(BEST) == found.get(LAST) else [])]
    files = {name: digest for name, digest in found.items() if name not in let_go(keep)}
    return {"files": files, "keep": keep, "tested": next((name for name in same if name in KEPT[keep]), None)}


def let_go(keep: object) -> tuple[str, ...]:
    """The checkpoints that ``checkpoints.keep`` does without; none for a word it does not know."""
    return tuple(name for name in (BEST, LAST) if name not in KEPT.get(str(keep), (BEST, LAST)))


def tested(provenance: Mapping[str, Any]) -> str | None:
    """The checkpoint of a finished run that holds the weights which were tested; None where it was not kept."""
    name = provenance.get("tested", BEST)
    return str(name) if name in (BEST, LAST) else None


def problems(path: Path, provenance: Mapping[str, Any], names: Iterable[str] = ALL) -> dict[str, str]:
    """What is wrong with files of a complete run, by their name: missing, empty, changed, or without a checksum.

    Args:
        path: The run folder.
        provenance: Content of its ``provenance.json``, whose own checksum :func:`read_provenance` compares.
        names: The files looked at; one that is neither there nor told of is none of the run's. A checkpoint that was
            let go is none either, and one that is not ``tested`` may go at any time.
    """
    found, (told, was) = {}, (provenance.get(key) for key in ("files", "before"))
    told, was = (entry if isinstance(entry, Mapping) else {} for entry in (told, was))
    needed = {*_NEEDED, *told, tested(provenance)} - ({BEST, LAST} - {tested(provenance)})
    if provenance.get("pretraining"):  # which predicts nothing
        needed = needed - {"predictions.parquet"} | {SEEN}
    gone = let_go(provenance.get("keep"))
    for name in names:
        file = path / name
        if name in gone:
            continue
        if name == PROVENANCE:
            if problem := _seal_problem(path):
                found[name] = problem
        elif name == STATUS:  # written once more when the checksums stand
            if (own := read_json(file).get("hash")) != provenance.get("hash"):
                found[name] = f"of run {own}, but provenance.json of run {provenance.get('hash')}"
        elif not file.is_file() or not file.stat().st_size:
            if name in needed or (name in told and (file.exists() or file.is_symlink())):
                found[name] = "empty" if file.is_file() else "missing"
        elif name not in told:
            found[name] = "provenance.json holds no checksum of it"
        elif problem := _changed(file, (told[name], was.get(name)), PROVENANCE):
            found[name] = problem
    return found


def _changed(file: Path, told: tuple[Any, Any], where: str) -> str:
    """How a file differs from its checksum, and from the one before while it is exchanged; "" where it does not."""
    digest = known_sha256(file)
    if digest in told:
        return ""
    return f"changed after the run had ended (its SHA-256 is {digest[:12]}, {where} says {str(told[0])[:12]})"


def _seal_problem(path: Path) -> str:
    """What is wrong with ``provenance.json`` of a complete run, by the checksum in ``status.json``."""
    status = read_json(path / STATUS) if (path / STATUS).exists() else {}
    if status.get("state") != "complete":
        return ""
    if not (path / PROVENANCE).is_file():
        return "missing"
    told = status.get("provenance")
    return UNSEALED if told is None else _changed(path / PROVENANCE, (told, status.get("before")), STATUS)


def signature(status: Mapping[str, Any]) -> str | None:
    """This user's signature of what ``status.json`` says; None where he has no key and none can be written."""
    return sign("run", _signed_text(status), make=True)


def is_ours(path: Path, names: Iterable[str] = (STATUS, "config.yaml")) -> bool:
    """Whether this user made a run, and its status, provenance and configuration (``names``) are what he has signed."""
    try:
        status = read_json(path / STATUS)
        signed = is_signed("run", _signed_text(status), status.get("signature"))
        return signed and not problems(path, read_provenance(path), names)
    except RunError:
        return False


def signs() -> bool:
    """Whether this user can sign: where his cache takes no key, nothing is told of runs that he has not signed."""
    return sign("run", "", make=True) is not None


def misplaced(path: Path, run: object) -> str:
    """What is wrong with ``status.json`` of ``run`` in a folder that is named as another run; "" where nothing is.

    A folder that people have named themselves says nothing of the run in it.
    """
    name = path.resolve().name
    hashed = re.fullmatch("[0-9a-f]{12}", name) is not None
    return f"of run {run}, but the folder is named as run {name}: copied over it" if hashed and run != name else ""


def checkpoint_signature(run: str, name: str, digest: str) -> str | None:
    """This user's signature of a checkpoint with that SHA-256 and, now or soon, that name; None: see `signature`."""
    return sign("checkpoint", f"{run}\0{name}\0{digest}", make=True)


def own_checkpoints(path: Path, run: str) -> tuple[dict[str, str], list[str]]:
    """Signatures of the checkpoints there that this user's run has written, and the names of the others.

    Known are those that ``status.json`` holds a signature of, and those in the provenance of a run that he has signed.
    Where he has no key, none is either.
    """
    status = read_json(path / STATUS) if (path / STATUS).exists() else {}
    told, files = status.get("checkpoints"), {}
    if is_ours(path, (STATUS,)):
        provenance = read_provenance(path)
        files = dict.fromkeys(set(provenance.get("files") or {}) - problems(path, provenance, (BEST, LAST)).keys())
    known, others = {}, []
    for name in (BEST, LAST):
        if not (path / name).is_file() or not (path / name).stat().st_size:
            continue
        if (own := checkpoint_signature(run, name, sha256(path / name))) is None:
            continue
        listed = told.get(name) if isinstance(told, Mapping) else None
        if name in files or (isinstance(listed, list) and own in listed):
            known[name] = own
        else:
            others.append(name)
    return known, others


def _signed_text(status: Mapping[str, Any]) -> str:
    return json.dumps({key: value for key, value in status.items() if key != "signature"}, sort_keys=True)


def read_json(file: Path, *, remedy: str = AGAIN) -> dict[str, Any]:
    """A JSON object.

    Raises:
        RunError: The file is missing, not JSON or no object.
    """
    try:
        content = load_json(read_document(file))
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: cannot be read, or is damaged: {line(error)}", remedy=remedy) from error
    if not isinstance(content, dict):
        raise RunError(f"{file}: not a JSON object", remedy=remedy)
    return content


def read_provenance(path: Path, *, sealed: bool = True) -> dict[str, Any]:
    """``provenance.json`` of a run folder.

    Args:
        path: The folder.
        sealed: Refuse that of a complete run of which ``status.json`` has no checksum, or another one.

    Raises:
        RunError: As :func:`read_json`; one of its tables is none; or it is not what the run wrote.
    """
    file = path / PROVENANCE
    if not file.exists():
        raise RunError(f"{file}: missing", remedy=REMADE)
    found = read_json(file)
    if sealed and (problem := _seal_problem(path)):
        raise RunError(f"{file}: {problem}", remedy=REMADE)
    for key in ("data", "checksums", "code", "files", "before", "batch"):
        if not isinstance(found.get(key) or {}, dict):
            raise RunError(f"{file}: {key}={found[key]!r:.80} is no table", remedy=AGAIN)
    for key, kind in (("parts", list), ("contents", str), ("sources", str)):  # of several data sets
        told = (found.get("data") or {}).get(key) or {}
        if not (isinstance(told, dict) and all(isinstance(item, kind) for item in told.values())):
            raise RunError(f"{file}: data.{key}={told!r:.80} is not as the run wrote it", remedy=AGAIN)
    if not all(isinstance(made, dict) for made in (found.get("code") or {}).values()):
        raise RunError(f"{file}: code={found['code']!r:.80} is no table of tables", remedy=AGAIN)
    return found


def parse_yaml(text: str) -> dict[str, Any]:
    """Parse a block-style mapping, such as ``config.yaml``.

    Runs of one sweep share most of their lines, so each top-level section is parsed once and remembered.

    Raises:
        ValueError: The text is not a YAML mapping.
    """
    if not any(mark in text for mark in ("&", "*", "\t", "---", "%")):
        sections: list[list[str]] = []
        for line in text.splitlines(keepends=True):
            if sections and (line[:1] in " #-\n" or not line.strip()):
                sections[-1].append(line)
            else:
                sections.append([line])
        try:
            parts = [_section("".join(lines)) for lines in sections]
        except ValueError:
            parts = []
        keys = [key for part in parts for key in part]
        if parts and all(len(part) == 1 for part in parts) and len(set(keys)) == len(keys):
            return {key: value for part in parts for key, value in part.items()}
    return _section(text)


@lru_cache(maxsize=4096)
def _section(text: str) -> dict[str, Any]:
    content = load_yaml(text)
    if not isinstance(content, dict):
        raise ValueError("not a YAML mapping")
    return content


def line(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
