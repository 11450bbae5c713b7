from pathlib import Path

import pandas as pd
import pytest

from hemlearn.data.duplicates import duplicate_pairs
from hemlearn.data.manifest import Manifest, build_manifest
from hemlearn.util.tables import read_csv


@pytest.fixture(scope="session")
def head_ct(head_ct_root: Path) -> Manifest:
    """The real Head-CT set."""
    table = read_csv(head_ct_root / "labels.csv")
    names = table["id"].str.zfill(3)
    rows = pd.DataFrame({"slice_id": names, "patient_id": names, "hemorrhage": table["hemorrhage"]})
    rows["path"] = "head_ct/head_ct/" + names + ".png"
    return build_manifest(rows, root=head_ct_root, labels=["hemorrhage"], source="head_ct", progress=False)


@pytest.fixture(scope="session")
def head_ct_pairs(head_ct: Manifest) -> pd.DataFrame:
    """Its duplicate pairs."""
    return duplicate_pairs(head_ct)
