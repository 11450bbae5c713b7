"""Names, places and secrets: what is shown or sent holds none, working tables keep the user's ids."""

from __future__ import annotations

import hmac
import json
import logging
import re
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from pydicom import Dataset

from hemlearn.__main__ import main
from hemlearn.config.compose import conf_dir
from hemlearn.config.identity import run_hash
from hemlearn.config.schema import Config, to_dict
from hemlearn.data.ids import header_notes
from hemlearn.data.readers.dicom_personal import personal
from hemlearn.data.scan import read_headers
from hemlearn.data.splits import Split
from hemlearn.training.folder import RunFolder
from hemlearn.util.errors import ConfigError, RunError
from hemlearn.util.privacy import KEY_FILE, Pseudonyms, shown
from hemlearn.util.secrets import mask, masked
from hemlearn.util.tables import csv_text, read_csv
from tests.datamodules.slices import write_slice
from tests.reports.conftest import kfold_run

WHO = "MEIERHUBER_Hans_19610203"

# --- secrets ---


@pytest.mark.parametrize(
    "text",
    [
        "logger.tracking_uri=https://jane:geheim@host/x",
        "https://jane:ge@geheim@host",
        "token=geheim1 epochs=3",
        "logger.api_key='geheim 1'",
        '{"password": "geheim"}',
        "Authorization: Bearer geheimgeheim",
        "hf_geheimgeheimgeheimgeheim",
        "postgres://jane:ge/geheim@host/db",
        "PGPASSWORD=geheim",
        "db_pass=geheim",
        "Authorization: Basic geheim",
        "the key 0geheim0geheim0 of the environment",
        "--password geheim",
        "WANDB_API_KEY 0123456789geheim0123456789abcdef01234567",
        "wandb login 0123456789abcdef0123456789abcdef01234567",
        "password -> geheim",
        "<password>geheim</password>",
        '"password","geheim4711"',
        "machine host login jane password geheim",
        "Cookie: session=geheim",
        "xoxb-123456789012-geheimgeheim",
        "eyJhbGciOiJIUzI1NiJ9.eyJnZWhlaW0iOiIxIn0.geheimgeheim",
        "AIzaSyA1234567890geheim0123456789012345",
        "npm_geheimgeheim0123456789geheimgeheim01",
        "pw=geheim",
        "db_pw=geheim",
        "passwort: geheim",
    ],
)
def test_secrets_are_masked_wherever_they_stand(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "0geheim0geheim0")
    told = mask(text)
    assert "geheim" not in told
    assert "01234567" not in told
    assert "***" in told
    assert mask(told) == told
    assert "geheim" not in str(ConfigError(text, remedy=text))


def test_long_texts_are_masked_in_no_time() -> None:
    before = time.process_time()
    for text in ("-a", "://a:", "eyJ", '"token" ', "pw  "):
        assert mask(text * 8000) == text * 8000
    assert time.process_time() - before < 5


def test_whatever_stands_under_the_name_of_a_secret_is_masked() -> None:
    tree = {"token": ["geheim"], "password": {"value": "geheim"}, "api_key": 12345678, "class_token": True, "tokens": 4}
    assert masked(tree) == tree | {"token": ["***"], "password": {"value": "***"}, "api_key": "***"}


def test_no_shipped_setting_is_taken_for_a_secret() -> None:
    for file in [*conf_dir().rglob("*.yaml")]:
        tree = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert masked(tree) == tree, file
    for text in (
        "class_token=true reg_tokens=4 https://host/a n/a and/or",
        'the token vit_base_patch16_clip_224, ["cls_token", "blocks.0.norm1.weight"], password is wrong, login again',
        '{"api_key": null, "names": ["api_key", "password", "label"]}',
    ):
        assert shown(text) == text


def test_a_run_is_the_same_whatever_its_secret_and_writes_it_nowhere(tmp_path: Path) -> None:
    def made(secret: str) -> Config:
        uri = f"http://jane:{secret}@host"
        return Config(backbone={"options": {"api_token": secret}}, logger={"tracking_uri": uri})

    given: dict[str, Any] = {"manifest": "m", "weights": None, "split_file": None}
    assert run_hash(made("geheim1"), **given) == run_hash(made("geheim2"), **given)
    folder = RunFolder(tmp_path, "name", "0123456789ab")
    with suppress(ValueError), folder.open(to_dict(made("geheim1"))):
        logging.getLogger("hemlearn").warning("logged in: http://jane:geheim1@host, token=geheim1")
        folder.write_provenance(keep=None, command="hemlearn train token=geheim1")
        raise ValueError("no answer from http://jane:geheim1@host")
    assert "no answer" in str(folder.status()["error"])
    for file in (item for item in folder.path.rglob("*") if item.is_file()):
        assert "geheim" not in file.read_text(encoding="utf-8"), file


# --- pseudonyms ---


def test_equal_ids_have_equal_names_as_long_as_the_key_is_there(tmp_path: Path) -> None:
    first = Pseudonyms(tmp_path / "out")
    name = first.of(WHO)
    assert "MEIER" not in name
    key = tmp_path / KEY_FILE  # beside the output, which is handed on without it
    assert key.stat().st_mode & 0o777 == 0o600
    with key.open("a") as file:
        file.write('{"torn')  # a killed process
    again = Pseudonyms(tmp_path / "out")
    assert [again.of(WHO), again.of(WHO, "series")] == [name, name.replace("patient", "series")]
    assert Pseudonyms(tmp_path / "other").ids[name] == WHO
    assert Pseudonyms(tmp_path / "elsewhere" / "out").of(WHO) != name
    assert Pseudonyms(tmp_path / "out", show=True).of(WHO) == WHO


@pytest.mark.parametrize("planted", ["{}", "", "[1]", json.dumps({"salt": "0" * 64, "signature": "0" * 64}), "signed"])
def test_a_key_that_somebody_else_has_laid_is_not_used(
    tmp_path: Path, planted: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = tmp_path / KEY_FILE
    if planted == "signed":
        with monkeypatch.context() as patch:
            patch.setenv("HEMLEARN_CACHE", str(tmp_path / "theirs"))
            theirs = Pseudonyms(tmp_path / "out").of(WHO)
    else:
        key.write_text(planted)
        theirs = f"patient-{hmac.new(bytes(32), WHO.encode(), 'sha256').hexdigest()[:12]}"
    before = key.read_text()
    name = Pseudonyms(tmp_path / "out").of(WHO)
    assert name not in (WHO, theirs)
    assert Pseudonyms(tmp_path / "other").of(WHO) == name
    if planted:  # an empty file is what a power loss leaves, and nobody's
        assert key.read_text() == before
        assert caplog.text.count("made by somebody else, or before keys were signed: not used") == 1


def test_a_salt_further_down_in_a_key_file_changes_nothing(tmp_path: Path) -> None:
    name = Pseudonyms(tmp_path / "out").of(WHO)
    with (tmp_path / KEY_FILE).open("a") as file:
        file.write(json.dumps({"salt": "0" * 64}) + "\n")
    assert Pseudonyms(tmp_path / "out").of(WHO) == name


def test_without_a_cache_that_can_be_written_there_are_names_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEMLEARN_CACHE", str(tmp_path / "file" / "cache"))
    names = Pseudonyms(tmp_path / "out")
    assert names.of(WHO) == names.of(WHO) != WHO
    with pytest.raises(RunError, match=r"no run\.key in the cache(.|\n)*Fix: set \$HEMLEARN_CACHE"):
        Pseudonyms(tmp_path / "out").of(WHO)  # it may be anybody's by now
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", KEY_FILE]


def test_a_key_on_a_full_disk_is_told_and_its_ids_are_not_lost(tmp_path: Path) -> None:
    with room(0), pytest.raises(RunError, match="are free\n  Fix: free some space"):
        Pseudonyms(tmp_path / "out").of(WHO)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = Pseudonyms(tmp_path / "out")
    names.of("first")
    size = (tmp_path / KEY_FILE).stat().st_size
    with room(size + 20), pytest.raises(OSError):  # a part of the line fits, which is no error to the system
        names.of(WHO)
    assert Pseudonyms(tmp_path / "out").of(WHO) in Pseudonyms(tmp_path / "out").ids


@contextmanager
def room(size: int) -> Iterator[None]:
    """Files may not grow beyond so many bytes; the system says so as of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_texts_lose_ids_and_places_and_nothing_else(tmp_path: Path) -> None:
    names = Pseudonyms(tmp_path / "out")
    table = pd.DataFrame({"patient_id": [WHO, "Müller, Eva", "12"], "path": [f"{WHO}/CT/a.dcm", "b.dcm", "c.dcm"]})
    names.learn_table(table)
    names.place(tmp_path / "data", "DATA")
    for text in (
        f"patient {WHO!r}: {tmp_path}/data/{WHO}/CT/a.dcm: damaged",
        f"{WHO}/CT/other.dcm, {WHO}.",
        f"Müller, Eva and {'Müller, Eva'.encode('unicode_escape').decode()}",
    ):
        told = names.text(text)
        assert not any(word in told for word in ("MEIER", "Eva", str(tmp_path))), told
    assert re.fullmatch(r"patient patient-\w+: 12 slices", names.text("patient 12: 12 slices"))
    plain = "12 slices of 3 patients, AUROC 0.912 (0.8-0.9); runs/study/abc and a/b"
    assert names.text(plain) == plain
    assert shown(f"{Path.home()}/a b/c d.dcm") == "c d.dcm"
    assert shown(r"\\server\share\Doe Jane\c d.dcm") == "c d.dcm"
    assert shown(r"unreadable: \\server\share\Doe\1.dcm, skipped") == "unreadable: 1.dcm, skipped"


# --- headers ---


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({"PatientName": "Doe^Jane", "PatientBirthDate": "19610203"}, {"PatientName", "PatientBirthDate"}),
        ({"PatientName": "ANONYMOUS", "InstitutionName": "", "PatientBirthDate": "19000101"}, set()),
        ({"PatientName": "P01^P01", "PatientID": "P01"}, set()),
        (
            {"PatientName": "Doe", "InstitutionName": "St. Hildegard", "PatientIdentityRemoved": "YES"},
            {"InstitutionName"},
        ),
    ],
)
def test_headers_tell_who_people_are_unless_they_are_de_identified(tags: dict[str, str], expected: set[str]) -> None:
    data = Dataset()
    for name, value in tags.items():
        setattr(data, name, value)
    assert set(personal(data)) == expected


def test_header_notes_count_files_and_hold_no_value(tmp_path: Path) -> None:
    for number in range(3):
        tags: dict[str, Any] = {"PatientName": "Meierhuber^Hans"} if number else {}
        write_slice(tmp_path / f"{number}.dcm", 5.0 * number, number=number, InstitutionName="Hildegard", **tags)
    headers = read_headers([f"{number}.dcm" for number in range(3)], tmp_path, progress=False)
    (note,) = header_notes(headers)
    assert "3 of 3 files" in note
    assert "InstitutionName (3), PatientName (2)" in note
    assert "Meier" not in note + headers.to_csv()
    assert header_notes(headers.assign(personal="")) == []


# --- sharing ---


def test_doctor_looks_into_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = kfold_run(tmp_path / "runs", "0123456789ab", 0, patients=30)
    wish = ["doctor", f"run={folder}", "share=true"]
    assert main(wish) == 0
    assert "table of ids, ids" in capsys.readouterr().out
    assert main(["doctor", f"run={folder.parent / 'latest'}", "share=true"]) == 0
    assert str(folder) in capsys.readouterr().out
    (folder / "page.html").write_text("<p>a_p005/x</p> &lt;p007&gt; https://jane:geheim@host")
    assert main(wish) == 1
    told = capsys.readouterr().out
    assert "page.html" in told.partition("NOT CLEAN: 1")[2]
    assert "ids (2): line 1" in told
    assert "secrets (1): line 1" in told
    assert "geheim" not in told
    (folder / "page.html").unlink()
    Pseudonyms(folder).of("p01-9 x")  # ids that the key file alone knows
    (folder / "notes.json").write_text(json.dumps({"a": "of p01-9 x"}))
    assert main(wish) == 1
    assert main(["doctor", f"run={tmp_path / 'nowhere'}", "share=true"]) == 1
    assert "no folder with files" in capsys.readouterr().err


# --- tables ---


def test_no_cell_is_a_formula_and_every_id_comes_back(tmp_path: Path) -> None:
    ids = ["=1+1", "+a", "-a", "@SUM(A1)", "'=x", "''-y", "-1.5", "+3e5", "-", "a=b", "'quoted'"]
    table = pd.DataFrame({"patient_id": ids, "split": "train", "value": [-1.5] * len(ids)})
    text = csv_text(table, decimals="%.2f")
    assert "\n-1.5,train,-1.50\n" in text
    cells = [line.partition(",")[0] for line in text.splitlines()[1:]]
    assert not any(cell[:1] in "=@" or (cell[:1] in "+-" and cell not in ("-1.5", "+3e5", "-")) for cell in cells)
    (tmp_path / "x.csv").write_text(text)
    assert read_csv(tmp_path / "x.csv")["patient_id"].tolist() == ids
    split = Split(table[["patient_id", "split"]])
    split.save(tmp_path / "split.csv")
    assert Split.load(tmp_path / "split.csv").checksum == split.checksum
    assert csv_text(pd.DataFrame({"a": ["\tx", "\rx"]})).count("'") == 2
