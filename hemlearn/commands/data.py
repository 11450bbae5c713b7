"""Around a run: ``index``, ``prepare``, ``phantom`` for its data, ``prune`` for the disk, ``doctor`` for it all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hemlearn.commands import read, take_config_dir
from hemlearn.config.requests import DoctorRequest, IndexRequest, PhantomRequest, PrepareRequest, PruneRequest
from hemlearn.util.console import print_table, tell
from hemlearn.util.errors import RunError, count


def index(argv: list[str]) -> int:
    """Print the report; problems that stop the data set from being used are errors."""
    words, config_dir = take_config_dir(argv)
    request = read(IndexRequest, words, "index")
    if request is None:
        return 0
    from hemlearn.config.compose import compose
    from hemlearn.data.manifest import FILES
    from hemlearn.util.files import refuse_to_replace

    config = compose(request.overrides, config_dir, request.key_names())
    folder = request.out or (Path("indexed") / str(config.data.name) if request.page else None)
    if folder:
        refuse_to_replace(folder, (*FILES, "duplicates.csv", "audits.json", "data.html"), "audits.json")
    from hemlearn.audits.audit import audit_manifest
    from hemlearn.data.store import scanned_store
    from hemlearn.datamodules.base import tasks_of
    from hemlearn.reports.tables import print_audits, print_manifest
    from hemlearn.training.build import build_datamodule
    from hemlearn.util.console import notes_apart, set_up_logging
    from hemlearn.util.files import size_text, write_json, write_text, writing
    from hemlearn.util.tables import csv_text

    set_up_logging()
    data = build_datamodule(config)
    with notes_apart():
        manifest = data.manifest
    print_manifest(manifest)
    store = scanned_store(manifest, size=data.image_size, fit=data.fit, cache_dir=data.cache)
    audits = audit_manifest(data)
    print_audits(audits, config.split.name)
    absent = [label for label in config.task.labels if label not in manifest.labels]
    if absent and manifest.labels:
        fit = " or ".join(tasks_of(manifest)) or "a task with its labels"
        tell(f"to train on it, use {fit} (task={config.task.name} wants {', '.join(absent)}, which it does not have)")
    if folder:
        with writing(f"out={folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            told = {name: found for name, found in audits.items() if name not in ("pairs", "sides")}
            write_json(folder / "audits.json", told, indent=2, allow_nan=False)  # first: it says whose the others are
            write_text(folder / "duplicates.csv", csv_text(audits["pairs"]))
            manifest.save(folder)
            if request.page:
                from hemlearn.reading.data_page import write_data_page
                from hemlearn.training.folder import command_line

                page = write_data_page(
                    folder,
                    manifest,
                    audits,
                    store=store,
                    size=data.image_size,
                    fit=data.fit,
                    command=command_line(),
                    split=config.split.name,
                )
                tell(f"page: {page} ({size_text(page.stat().st_size)}), with patient data: keep it on this disk")
        tell(f"written: {folder}")
    return 0


def prepare(argv: list[str]) -> int:
    """Build the store, or say that it is there; a shard does its part, and says whose parts are missing."""
    words, config_dir = take_config_dir(argv)
    request = read(PrepareRequest, words, "prepare")
    if request is None:
        return 0
    from hemlearn.config.compose import compose
    from hemlearn.data.store import open_store
    from hemlearn.training.build import build_datamodule
    from hemlearn.util.console import set_up_logging
    from hemlearn.util.shards import ShardsMissing, working_on

    config = compose(request.overrides, config_dir, request.key_names())
    set_up_logging()
    data = build_datamodule(config)
    place: Any = {"size": data.image_size, "fit": data.fit, "cache_dir": data.cache}
    vectors = None
    try:
        with working_on(request.shard):
            store = open_store(data.manifest, **place, repair=True, verify=request.verify)
            if request.embeddings:
                from hemlearn.training.runner import embed

                vectors = embed(config)
    except ShardsMissing as done:
        tell(f"{done.problem}; {done.remedy}")
        return 0
    size = store.array.nbytes / 2**20
    tell(
        f"store {store.folder}\n"
        f"{count(store.array.shape[0], 'slice')} of {store.array.shape[1]} x {store.array.shape[2]}, "
        f"{store.array.dtype} ({store.unit}), {size:.1f} MiB"
        + ("; all of it is as it was written" if request.verify else "")
    )
    if vectors is not None:
        slices, views, width = vectors.shape
        tell(f"embeddings {vectors.folder}\n{count(slices, 'slice')}, {count(views, 'view')} of {width} numbers")
    return 0


def phantom(argv: list[str]) -> int:
    """Write the set and print what it holds."""
    request = read(PhantomRequest, argv, "phantom")
    if request is None:
        return 0
    from hemlearn.phantom.layouts import write_phantom
    from hemlearn.util.console import counter

    with counter("Drawing synthetic heads") as progress:
        drawn = request.model_dump(include={"patients", "seed"})
        summary = write_phantom(request.layout, request.out, n_jobs=request.jobs, progress=progress, **drawn)
    kinds = ", ".join(f"{name} {number}" for name, number in sorted(summary.subtypes.items()))
    tell(
        f"{summary.out}: SYNTHETIC {summary.layout} data, {count(summary.patients, 'patient')}, "
        f"{count(summary.images, 'image')}, {summary.positives} {summary.finding} ({kinds}), seed {summary.seed}"
    )
    return 0


def prune(argv: list[str]) -> int:
    """Show what can be made again, and free it where asked to; 1 where something could not be removed."""
    request = read(PruneRequest, argv, "prune")
    if request is None:
        return 0
    from hemlearn.util.errors import printable
    from hemlearn.util.files import size_text
    from hemlearn.util.prune import KINDS, find, free

    if missing := [folder for folder in request.folders if not folder.is_dir()]:
        raise RunError(f"{missing[0]}: no such folder", remedy="name a cache folder, or a folder of runs")
    items = [item for place in request.folders for item in find(place, request.only, request.folders)]
    found = list({item.path.resolve(): item for item in items}.values())  # one folder may lie in another
    gone, left = free(found) if request.apply else ([], {item: item.busy for item in found if item.busy})
    may_go = gone if request.apply else [item for item in found if item not in left]
    for kind, how in KINDS.items():
        own = [item for item in may_go if item.kind == kind]
        if own:
            tell(f"{kind}: {count(len(own), 'item')}, {size_text(sum(item.bytes for item in own))}; made again {how}")
        for item in own[:_LISTED]:
            tell(printable(f"  {size_text(item.bytes):>10}  {item.path}"))
        if len(own) > _LISTED:
            tell(f"  and {len(own) - _LISTED} more")
    for item, why in left.items():
        tell(printable(f"left alone: {item.path} ({size_text(item.bytes)}): {why}"))
    total = size_text(sum(item.bytes for item in may_go))
    tell(f"freed: {total}" if request.apply else f"apply=true frees {total}" if may_go else "nothing to free")
    return 1 if any(why.startswith("cannot") for why in left.values()) else 0


_LISTED = 5  # items of each kind that are named


def doctor(argv: list[str]) -> int:
    """Print the report on the installation, or on a run folder."""
    request = read(DoctorRequest, argv, "doctor")
    if request is None:
        return 0
    if request.run is None:
        return _machine(request.output_dir)
    from hemlearn.training.run import pick_run

    folder = pick_run(request.run.expanduser())
    if not request.share:
        return _run(folder)
    from hemlearn.reading.share import report

    text, clean = report(folder)
    tell(text)
    return 0 if clean else 1


def _run(path: Path) -> int:
    """Whether each file is as it was when the run ended; 1 when one is not."""
    from hemlearn.plugins import untrusted_targets
    from hemlearn.training.run import Run
    from hemlearn.util.run_files import AGAIN, ALL, PROVENANCE, STATUS

    run = Run(path)
    state = run.status.get("state")
    if state is None:
        raise RunError(f"run={path}: no run folder", remedy="give OUTPUT_DIR/NAME/HASH")
    wrong = run.problems() | ({STATUS: run.misplaced} if run.misplaced else {})
    tell(f"{run.shown}: {state}, made by {'this user' if run.ours else 'somebody else, or on another machine'}")
    as_it_was = (
        "not looked at, since provenance.json tells of it" if PROVENANCE in wrong else "as it was when the run ended"
    )
    for name in ALL:
        if name in wrong or (path / name).exists():
            tell(f"  {name:24} {wrong.get(name, as_it_was)}")
    foreign = untrusted_targets(run.settings)
    tell(f"  code outside hemlearn: {', '.join(foreign) or 'none'}")
    if wrong or state != "complete":
        tell(f"  Fix: {AGAIN}")
        return 1
    if lean := run.frozen_layers():
        tell(f"  frozen layers: {lean}")
    return 0


def _machine(runs: Path) -> int:
    import os
    import platform

    import torch
    from rich.table import Table

    from hemlearn.config.compose import conf_dir
    from hemlearn.models.weights import offline_weights
    from hemlearn.training.folder import versions
    from hemlearn.training.loggers import wandb_mode
    from hemlearn.util.files import cache_dir

    facts = Table(title="hemlearn doctor", show_header=False)
    facts.add_row("python", platform.python_version())
    for name, version in versions().items():
        facts.add_row(name, version)
    facts.add_row("configuration", str(conf_dir()))
    for name, text in _sizes(cache_dir(None), runs):
        facts.add_row(name, text)
    facts.add_row("CPU", f"{count(os.cpu_count() or 1, 'core')}, {count(torch.get_num_threads(), 'torch thread')}")
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts.add_row("GPU", ", ".join(gpus) or "none (trainer=cpu)")
    facts.add_row("W&B", wandb_mode("auto"))
    print_table(facts)
    weights = Table(title="pretrained weights without network")
    for column in ("backbone", "available", "source"):
        weights.add_column(column)
    for name, available, source in offline_weights():
        weights.add_row(name, "yes" if available else "no", source)
    print_table(weights)
    return 0


def _sizes(cache: Path, runs: Path) -> list[tuple[str, str]]:
    """What the cache and the runs take on the disk, and what the cache may."""
    import shutil

    from hemlearn.util.disk import limit_of, used
    from hemlearn.util.files import size_text
    from hemlearn.util.prune import find

    now, limit, parts = used(cache), limit_of(cache), [item for item in find(cache) if item.known]
    told = f"{cache}: {size_text(now)}"
    if limit is not None:
        told += f", {100 * now / limit:.0f} % of its limit of {size_text(limit)}" if limit else ", its limit is 0"
    kinds = dict.fromkeys(item.kind for item in parts)
    sizes = {kind: sum(item.bytes for item in parts if item.kind == kind) for kind in kinds}
    rows = [("cache", told)]
    if sizes:
        rows.append(("  can be made again", ", ".join(f"{kind} {size_text(size)}" for kind, size in sizes.items())))
    rows.append(("  free on its disk", size_text(shutil.disk_usage(cache).free)))
    if runs.is_dir():
        number = sum(1 for _ in runs.rglob("status.json"))
        spare = sum(item.bytes for item in find(runs) if not item.busy)
        text = f"{runs}: {count(number, 'run')}, {size_text(used(runs))}"
        rows.append(("runs", text + (f"; `hemlearn prune {runs}` frees {size_text(spare)}" if spare else "")))
    return rows
