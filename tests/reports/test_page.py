from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.commands.runs import compare as main
from hemlearn.compare.comparison import compare
from hemlearn.compare.decisions import at_prevalence, decision_rows
from hemlearn.compare.files import FILES, plain, tex
from hemlearn.compare.material import curve_bands
from hemlearn.compare.wandb_report import log_report
from hemlearn.util.errors import ConfigError
from hemlearn.util.privacy import KEY_FILE
from tests.conftest import chromium, seal

from .conftest import configuration, predictions, write_run

HOSTILE = '<img src="http://evil.test/x.png" onerror=alert(1)>&"\'</style>'


class Reader(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self):
        super().__init__()
        self.tags, self.text, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(file):
    reader = Reader()
    reader.feed(file.read_text(encoding="utf-8"))
    reader.close()
    assert reader.open == []
    return reader


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Groups, patients, labels and a device whose names are markup; two groups, several slices, one failed run."""
    root = tmp_path_factory.mktemp("hostile")
    for i, noise in enumerate((1.5, 4.0)):
        config = configuration(backbone__name=f"{HOSTILE}{i}", task__kind="multilabel", task__labels=["any", "b<i>"])
        frame = predictions(config, range(60), 3, noise)
        frame["patient_id"] = frame["series_id"] = frame["patient_id"] + HOSTILE
        frame["slice_id"] = frame["slice_id"] + HOSTILE
        cost = {"fit_seconds": 12.5, "slices_per_second": 240.0, "epochs": 3, "parameters": 3_400_000}
        provenance = {"device": HOSTILE, "cost": cost}
        folder = write_run(root / "runs", f"r{i}", config, frame, provenance=provenance)
        metrics = json.loads((folder / "metrics.json").read_text())
        labels = {"train": {"any": {"positive": 3, "negative": 4, "unknown": 0}}}
        metrics["audits"] = {
            "verdict": [f"image size alone reaches 0.80 {HOSTILE}"],
            "labels": labels,
            "duplicates": {"exact": 1, "near": 2, "straddling": 0},
        }
        (folder / "metrics.json").write_text(json.dumps(metrics))
        seal(folder)
    write_run(root / "runs", "failed", configuration(), None, state="failed")
    result = compare([root / "runs"], root / "out")
    return result, root / "out"


def test_what_decisions_are_worth(hostile):
    result, out = hostile
    told = json.loads((out / "compare.json").read_text())["decisions"]
    assert [(row["level"], row["label"]) for row in told[:2]] == [("slice", "any"), ("series = patient", "any")]
    first = told[0]
    assert first["prevalence"] == pytest.approx(result.entries[0].first[1].y[:, 0].mean())
    row = result.table[(result.table["label"] == "any") & (result.table["level"] == "slice")].iloc[0]
    rates = row["sensitivity"], 1 - row["specificity"]
    assert first["lr_positive"]["value"] == pytest.approx(rates[0] / rates[1])
    slices, rare, *_ = decision_rows(result.entries, 0.02)
    assert slices["prevalence"] == first["prevalence"]  # 0.02 of patients says nothing of slices
    row = result.table[(result.table["label"] == "any") & (result.table["level"] == "patient")].iloc[0]
    rates = row["sensitivity"], 1 - row["specificity"]
    assert rare["ppv"].value == pytest.approx(rates[0] * 0.02 / (rates[0] * 0.02 + rates[1] * 0.98))
    assert (rare["prevalence"], rare["level"]) == (0.02, "series = patient")
    first, second = at_prevalence([slices, rare, rare], 0.02)
    assert first == second
    assert first.startswith("prevalence 0.02, series = patient, any: ")
    assert f" and NPV {100 * rare['npv'].value:.1f} (" in first
    assert "says nothing of these calls" in at_prevalence([slices], 0.02)[0]
    text = (out / "compare.md").read_text()
    assert "## Decisions" in text
    assert "&lt;0.0" not in text
    page = (out / "compare.html").read_text()
    assert '<section id="decisions">' in page
    assert "the prevalence of the test cases" in page
    for bad in ("0", "1", "often"):
        with pytest.raises(ConfigError, match="prevalence"):
            main([str(out.parent / "runs"), f"out={out.parent / 'bad'}", f"prevalence={bad}"])


def test_every_name_is_escaped_and_nothing_is_fetched(hostile):
    _, out = hostile
    page = read(out / "compare.html")
    assert not [tag for tag, _ in page.tags if tag in ("iframe", "object", "base", "form")]
    scripts = re.findall(r"<script>(.*?)</script>", (out / "compare.html").read_text(), flags=re.DOTALL)
    assert len(scripts) == len([tag for tag, _ in page.tags if tag == "script"]) == 1
    for tag, attributes in page.tags:
        for name, value in attributes.items():
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "srcset", "data", "action"):
                assert value.startswith(("data:", "#")), (tag, value)
    text = "".join(page.text)
    assert HOSTILE in text  # told as it is, as text
    policy = next(a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy  # this script, and no other
    outside = re.findall(
        r"url\((?!#)|@import|https?://(?!www\.w3\.org/|evil\.test)", (out / "compare.html").read_text()
    )
    assert not outside
    plots = [a for t, a in page.tags if t == "div" and a.get("class") == "plot"]
    assert len(plots) == 10  # four of both labels of slices; of `any` of patients, who have scores, two
    assert all(plot["aria-label"] for plot in plots)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = {a[name][1:] for _, a in page.tags for name in ("xlink:href", "clip-path") if a.get(name, "")[:1] == "#"}
    assert used <= set(ids)


def test_the_page_says_what_was_asked(hostile):
    result, out = hostile
    page = read(out / "compare.html")
    text = "".join(page.text)
    for wanted in (
        "What was compared?",
        "Is one really better?",
        "Could a shortcut explain it?",
        "3.4 M",
        "12 s",
        "image size alone reaches 0.80",
        "Duplicates, most in one run: exact 1, near 2, straddling 0",
        "Skipped run folders (1)",
        "state failed: TrainingError",
        "Most confident errors of",
        "true \\ predicted",
    ):
        assert wanted in text, wanted
    assert result.headline.better in text
    assert "corrected by Holm within its family" in text
    tables = [a for t, a in page.tags if t == "div" and a.get("class") == "scroll"]
    assert len(tables) > 6  # each scrolls inside its own box


def test_json_is_strict_and_whole(hostile, four_cells, tmp_path):
    result, out = hostile

    def refuse(name):
        raise AssertionError(name)

    content = json.loads((out / "compare.json").read_text(), parse_constant=refuse)
    assert [group["leaky"] for group in content["groups"]] == [False, False]
    assert len(content["table"]) == len(result.table)
    assert len(content["tests"]) == len(result.contrasts)
    assert content["headline"]["better"] == result.headline.better
    assert content["skipped"][0]["reason"].startswith("state failed")
    assert content["audits"]["with_audits"] == 2
    assert content["cost"][0]["parameters"] == 3_400_000
    for group in content["groups"]:
        assert np.sum(group["confusion"]["slice"]["any"]["counts"]) == 180
    assert plain({"a": float("nan"), "b": np.int64(3), "c": (np.float64(0.5), True), "d": None}) == {
        "a": None,
        "b": 3,
        "c": [0.5, True],
        "d": None,
    }


def test_tests_and_failures_are_tables(hostile):
    result, out = hostile
    tests = pd.read_csv(out / "tests.csv")
    assert len(tests) == len(result.contrasts)
    made = tests[tests["p"].notna()]
    assert (made["p_holm"] >= made["p"] - 1e-9).all()
    failures = pd.read_csv(out / "failures.csv")
    assert set(failures["error"]) <= {"missed", "false alarm"}
    cases = result.entries[0].cases["slice"]
    name = result.entries[0].name
    own = failures[(failures["group"] == name) & (failures["label"] == "any") & (failures["error"] == "false alarm")]
    wrong = (cases.y[:, 0] == 0) & cases.decision[:, 0]
    assert own["probability"].tolist() == pytest.approx(sorted(cases.p[wrong, 0], reverse=True)[:20])
    lines = (out.parent / KEY_FILE).read_text().split("\n")  # the files name nobody
    known = {key: value for line in lines if line for key, value in json.loads(line).items()}
    assert known[own["case"].iloc[0]] == cases.unit[wrong][np.argmax(cases.p[wrong, 0])]
    assert (own["groups"] == 2).all()
    assert own["groups_wrong"].between(1, 2).all()


def test_figures_are_drawn_with_bands(hostile):
    _, out = hostile
    for name in ("roc.png", "pr.png", "calibration.png", "decision.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 500
    rng = np.random.default_rng(0)
    y = (rng.random(400) < 0.4).astype(float)
    p = 1 / (1 + np.exp(-(2 * y - 1 + rng.normal(size=400))))
    roc, pr = curve_bands(y, p, np.arange(400))
    order = np.argsort(-p)
    tpr, fpr = np.cumsum(y[order]) / y.sum(), np.cumsum(1 - y[order]) / (1 - y).sum()
    for x in (0.1, 0.3, 0.7):
        at = np.searchsorted(fpr, x, side="right") - 1
        k = round(x * 100)
        assert roc.low[k] < tpr[at] < roc.high[k]
        assert 0.02 < roc.high[k] - roc.low[k] < 0.35
    middle = np.searchsorted(tpr, 0.5)
    precision = np.cumsum(y[order])[middle] / (middle + 1)
    assert pr.low[50] < precision < pr.high[50]
    clustered, _ = curve_bands(np.repeat(y[:100], 4), np.repeat(p[:100], 4), np.repeat(np.arange(100), 4))
    single, _ = curve_bands(y[:100], p[:100], np.arange(100))
    np.testing.assert_allclose(clustered.low, single.low)  # four copies of a patient tell nothing more
    assert curve_bands(np.zeros(20), p[:20], np.arange(20)) is None
    assert curve_bands(y[:100], p[:100], np.zeros(100)) is None


def test_latex_escapes_and_compiles(hostile, tmp_path):
    _, out = hostile
    assert tex("a_b & 50 % <x> ± é 頭") == r"a\_b \& 50 \% \textless{}x\textgreater{} $\pm$ é U+982D"
    text = (out / "compare.tex").read_text()
    assert r"\toprule" in text
    assert not re.search(r"(?<!\\)[#$&%_](?=evil|img)", text)
    if shutil.which("pdflatex") is None:
        pytest.skip("no pdflatex here")
    shutil.copy(out / "compare.tex", tmp_path)
    document = (
        "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n\\input{compare}\n\\end{document}\n"
    )
    (tmp_path / "paper.tex").write_text(document)
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 5000


@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_opens_it_without_error_or_request(hostile, tmp_path, width):
    _, out = hostile
    log, net, shot = tmp_path / "chrome.log", tmp_path / "net.json", tmp_path / "page.png"
    done = subprocess.run(
        [
            chromium(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--disable-sync",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--disable-extensions",
            "--enable-logging",
            f"--log-file={log}",
            "--v=0",
            f"--log-net-log={net}",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=2000",
            f"--window-size={width},1600",
            f"--screenshot={shot}",
            (out / "compare.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stderr + (log.read_text(errors="replace") if log.exists() else "")
    assert "CONSOLE" not in said, said
    with Image.open(shot) as image:
        assert image.size[0] == width
        assert len(image.convert("L").getcolors(256) or []) > 20  # not an empty page
    asked = re.findall(r'"url":\s*"([^"]+)"', net.read_text(errors="replace")) if net.exists() else []
    own = re.compile(r"https?://[\w.]*google(apis)?\.com/|file:|data:|chrome")  # the browser's own, which find no host
    assert not [url for url in asked if not own.match(url)]


def test_nothing_sticks_out_of_a_phone(hostile, tmp_path):
    """Laid out in a frame of 390 px, the body is no wider: tables scroll inside their boxes."""
    _, out = hostile
    text = (out / "compare.html").read_text()
    text = re.sub(r"<meta http-equiv[^>]*>", "", text)
    script = "<script>document.title = 'W' + document.documentElement.scrollWidth</script></body>"
    (tmp_path / "inner.html").write_text(text.replace("</body>", script))
    inner = (tmp_path / "inner.html").as_uri()
    frame = (
        f"<iframe id=f src='{inner}' style='width:390px;height:800px;border:0'></iframe>"
        "<script>f.onload = () => { document.body.dataset.width = f.contentDocument.title }</script>"
    )
    (tmp_path / "outer.html").write_text(f"<!DOCTYPE html><body>{frame}</body>")
    done = subprocess.run(
        [
            chromium(),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=3000",
            "--dump-dom",
            (tmp_path / "outer.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    width = re.search(r'data-width="W(\d+)"', done.stdout)
    assert width, done.stderr[-1000:] + done.stdout[:500]
    assert int(width.group(1)) <= 390


def test_weights_and_biases_takes_the_report_offline(hostile, monkeypatch, tmp_path):
    result, out = hostile
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert log_report(result, [out / name for name in FILES], "p") is None
    monkeypatch.setenv("WANDB_MODE", "offline")
    copied = shutil.copytree(out, tmp_path / "out")
    place = log_report(result, [copied / name for name in FILES], "project")
    assert place is not None
    assert place.is_relative_to(copied)
    assert list(place.glob("*.wandb"))
    assert os.environ["WANDB_MODE"] == "offline"
    import wandb

    wandb.teardown()  # the service of this process goes, so that the next test starts its own


def test_the_command_takes_every_option(hostile, tmp_path, capsys):
    result, out = hostile
    runs = out.parent / "runs"
    study = tmp_path / "s.yaml"
    study.write_text("title: Study\nfigures: [{metric: auroc, value: 0.9, interval: [0.8, 0.95], label: any}]\n")
    name = result.entries[1].group.values["backbone.name"]
    arguments = [
        str(runs),
        f"out={tmp_path / 'o'}",
        "margin=0.02",
        f"baseline=backbone={name}",
        "labels=all",
        "cases=common",
        f"reference={study}",
        "wandb=false",
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "better?" in printed
    assert "shortcut?" in printed
    assert "Study" in (tmp_path / "o" / "compare.html").read_text()
    tests = pd.read_csv(tmp_path / "o" / "tests.csv")
    assert {"non-inferiority", "published", "paired"} <= set(tests["kind"])
    assert "b<i>" in set(tests["label"])
    for argument, message in (
        ("margin=2%", "margin=2%"),
        ("margin=0", "margin=0"),
        ("cases=all", "cases=all"),
        ("wandb=yes", "wandb=yes"),
        ("reference=no.yaml", "reference=no.yaml: no such file"),
        ("baselin=x", "did you mean 'baseline'"),
    ):
        with pytest.raises(ConfigError, match=message):
            main([str(runs), argument])


def test_one_group_is_no_comparison(tmp_path):
    config = configuration()
    write_run(tmp_path, "a", config, predictions(config, range(40)))
    result = compare([tmp_path], tmp_path / "out", margin=0.02)
    assert result.headline.better.startswith("Nothing to compare it with")
    assert not [c for c in result.contrasts if c.made]
    assert read(tmp_path / "out" / "compare.html").tags
