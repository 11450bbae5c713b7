"""``hemlearn explain``: what a finished run looks at, and whether that means something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hemlearn.commands import read
from hemlearn.config.requests import ExplainRequest
from hemlearn.util.errors import ConfigError

HELP = """usage: hemlearn explain run=DIR out=DIR [KEY=VALUE ...]

Show where a finished run looks on its most telling test slices: hits, misses and false alarms in turn, each as a
picture with its map in log odds. A run with a sequence model is explained through it: the maps say where a slice
drove the score of its series, and a chart says which slices did.

For a new case without labels (a DICOM folder, NIfTI, PNG ...) use `hemlearn predict ... page=true`: its page holds the
maps of every label and the slices' shares.

options:
{options}

examples:
  hemlearn explain run=runs/head_ct/0123456789ab out=explained
  hemlearn explain run=runs/ct_ich/0123456789ab out=explained label=subdural cells=12 check=true
"""


def main(argv: list[str]) -> int:
    """Write overlays and checks, print what was found."""
    given = next((text for text in argv if text.startswith("input=")), None)
    if given is not None:
        raise ConfigError(
            f"{given}: explain looks at labelled test slices; a new case is explained on its page",
            remedy=f"hemlearn predict run=DIR {given} out=DIR page=true",
        )
    request = read(ExplainRequest, argv, HELP)
    if request is None:
        return 0
    from hemlearn.reading.explain.study import explain_run
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    print("\n".join(_report(explain_run(request), request.out)))
    return 0


def _report(content: dict[str, Any], out: Path) -> list[str]:
    """What was written and found, in lines."""
    kinds = [item["kind"] for item in content["slices"]]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    layer = "" if content["layer"] is None else f", layer {content['layer']}"
    lines = [f"{out}: {len(kinds)} slices of {content['label']} ({counts}); {content['method']}{layer}"]
    checks = content.get("checks")
    if not checks:
        return lines
    game, random = checks["pointing"], checks["randomised"]
    if game:
        lines += [
            line
            for name, found in (("all positive", game), ("detected", game["detected"]))
            if found
            for line in _pointing(name, found)
        ]
        lines.append(
            f"lesions cover {100 * game['lesion_share']:.1f} % of these slices; "
            f"{game['without_mask']} positive slices have no mask at this size"
        )
    if random:
        for stage in random["stages"]:
            hit = "" if "hit_rate" not in stage else f", hit rate {_number(stage['hit_rate'])}"
            likeness = f"rank correlation {_number(stage['spearman'])}, SSIM {_number(stage['ssim'])}"
            lines.append(
                f"randomised {stage['randomised']:20} ({100 * stage['share']:5.1f} % of weights): {likeness}{hit}"
            )
        lines.append(
            "maps of different slices of the trained network have a rank correlation of "
            f"{_number(random['between_slices'])}"
        )
    if checks["left_out"]:
        lines.append(f"{checks['left_out']} further positive slices were not checked: those above are spread evenly")
    return [*lines, *([checks["note"]] if "note" in checks else [])]


def _pointing(which: str, game: dict[str, Any]) -> list[str]:
    one = game["map"]
    lines = [f"pointing game, {one['n']} {which} slices of {one['patients']} patients:"]
    for name, text in (("map", "the map"), ("centre", "image centre"), ("mean_mask", "mean lesion of the others")):
        one = game[name]
        lines.append(f"  {text:25} hit rate {_interval(one)}, energy inside {_number(one['energy_inside'])}")
    return lines


def _interval(item: dict[str, Any]) -> str:
    return f"{_number(item['hit_rate'])} ({_number(item['low'])} to {_number(item['high'])})"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
