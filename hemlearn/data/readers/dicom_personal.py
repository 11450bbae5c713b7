"""Elements of a DICOM header that tell who a person is, as far as they are filled in."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydicom.datadict import tag_for_keyword

from hemlearn.data.ids import NOBODY

_OF_PATIENT = (
    *("PatientName", "PatientBirthDate", "OtherPatientNames", "OtherPatientIDs", "PatientMotherBirthName"),
    *("PatientAddress", "PatientTelephoneNumbers"),
)
# DICOM PS3.15 E: what a de-identified file lacks or has emptied, as far as it names people, places or cases.
PERSONAL = (
    *_OF_PATIENT,
    *("AccessionNumber", "InstitutionName", "InstitutionAddress", "ReferringPhysicianName"),
    *("PerformingPhysicianName", "NameOfPhysiciansReadingStudy", "RequestingPhysician", "OperatorsName"),
)
_TAGS = {name: tag_for_keyword(name) for name in PERSONAL}
_REMOVED = re.compile(r"anonym|de-?identif|pseudonym|removed|redacted|withheld|^[x0*._^ -]*$", re.IGNORECASE)
_NO_DATES = ("18000101", "18500101", "19000101")


def personal(data: Any) -> dict[str, str]:
    """Keyword -> value of the elements that tell who somebody is.

    What de-identification leaves does not count: nothing, ``ANONYMOUS`` and the like, a name that is the PatientID
    (0010,0020), and all about the patient where PatientIdentityRemoved (0012,0062) is YES.

    Example:
        >>> from pydicom import Dataset
        >>> data = Dataset()
        >>> data.PatientName, data.InstitutionName = "Doe^Jane", "ANONYMOUS"
        >>> personal(data)
        {'PatientName': 'Doe^Jane'}
    """
    removed = _text(data.get("PatientIdentityRemoved")).upper() == "YES"
    patient = _text(data.get("PatientID")).casefold()
    found = {}
    for keyword in (name for name, tag in _TAGS.items() if tag in data):
        value = "" if removed and keyword in _OF_PATIENT else _text(data.get(keyword)).strip(" ^\0")
        parts = set(re.split(r"[\\s^=]+", value.casefold()))
        if keyword.endswith("Name") and patient and parts == {patient}:
            continue
        if not _REMOVED.search(value) and value.casefold() not in NOBODY and value not in _NO_DATES:
            found[keyword] = value
    return found


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return "\\".join(map(str, value)) if isinstance(value, Sequence) else str(value)  # a name iterates its letters
