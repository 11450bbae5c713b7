"""``hemlearn explain``: what a finished run looks at, and whether that means something."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hemlearn.commands.options import parse_options, whole_number
from hemlearn.util.errors import ConfigError

HELP = """usage: hemlearn explain run=DIR out=DIR [data=NAME data.root=DIR] [label=NAME] [slices=N] [method=NAME]
                        [cells=N] [attribution=NAME] [part=NAME] [check=true]

Show where a finished run looks on its most telling test slices: hits, misses and false alarms in turn, each as a
picture with its map in log odds. A run with a sequence model is explained through it: the maps say where a slice
drove the score of its series, and a chart says which slices did.

For a new case without labels (a DICOM folder, NIfTI, PNG ...) use `hemlearn predict ... page=true`: its page holds the
maps of every label and the slices' shares.

  run          folder of a finished run
  out          folder to write: overlays/*.png and explain.json
  data         another data set to explain it on (with data.root); without, the run's own test patients
  label        label to explain (default: any, else the first of the task)
  slices       how many slices (default 12)
  method       gradcam (default), gradcam++, or occlusion (slow: about 120 passes per slice)
  cells        places wanted along a side of the maps: the deepest layer with as many is taken (default: 6, the deepest
               layer of most networks at 192 to 224 pixels; a finer map is not always a truer one: compare with
               check=true)
  attribution  what drove the series: gradient (default), attention, removal
  part         test (default), or val
  check        true: randomise the weights from the output down and see the maps change (Adebayo 2018); where the data
               set has lesion masks (CT-ICH 1.3.1), play the pointing game beside the centre and the mean lesion

examples:
  hemlearn explain run=runs/head_ct/0123456789ab out=explained
  hemlearn explain run=runs/ct_ich/0123456789ab out=explained label=subdural cells=12 check=true
"""

_DEFAULTS = {
    "run": None,
    "out": None,
    "data": None,
    "data.root": None,
    "label": None,
    "slices": "12",
    "method": "gradcam",
    "cells": None,
    "attribution": "gradient",
    "part": "test",
    "check": "false",
}


def main(argv: list[str]) -> int:
    """Write overlays and checks, print what was found."""
    if "-h" in argv or "--help" in argv:
        print(HELP)
        return 0
    given = next((text for text in argv if text.startswith("input=")), None)
    if given is not None:
        raise ConfigError(
            f"{given}: explain looks at labelled test slices; a new case is explained on its page",
            remedy=f"hemlearn predict run=DIR {given} out=DIR page=true",
        )
    options = parse_options(argv, dict(_DEFAULTS), "explain")
    absent = [key for key in ("run", "out") if not options[key]]
    if absent:
        raise ConfigError(f"{', '.join(absent)} is not set", remedy="hemlearn explain --help shows an example")
    if options["check"] not in ("true", "false"):
        raise ConfigError(f"check={options['check']}", remedy="take true or false")
    if options["part"] not in ("test", "val"):
        raise ConfigError(f"part={options['part']}", remedy="take test or val: only those were predicted")
    from hemlearn.reading.explain.study import ExplainRequest, explain_run
    from hemlearn.util.console import set_up_logging

    set_up_logging()
    wanted = ExplainRequest(
        run=Path(str(options["run"])).expanduser(),
        out=Path(str(options["out"])).expanduser(),
        data=options["data"],
        root=options["data.root"],
        part=str(options["part"]),
        label=options["label"],
        slices=whole_number(options, "slices", 1),
        method=str(options["method"]),
        cells=None if options["cells"] is None else whole_number(options, "cells", 2),
        attribution=str(options["attribution"]),
        check=options["check"] == "true",
    )
    print("\n".join(_report(explain_run(wanted), wanted.out)))
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
