from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hemlearn.data import duplicates
from hemlearn.data.duplicates import connected, duplicate_groups, duplicate_pairs, kept_duplicate_pairs
from hemlearn.data.manifest import Manifest
from hemlearn.data.scan_cache import perceptual_hash
from hemlearn.util.errors import ConfigError
from tests.data.heads import bare_manifest, build, folder_of_heads, save


def found(pairs: pd.DataFrame) -> dict[tuple[str, str], str]:
    return {(row.slice_a, row.slice_b): row.kind for row in pairs.itertuples()}


def reexported(root: Path) -> Manifest:
    """Thirty heads; 030 to 034 are head 3 again: exact, same pixels, resized, cropped and windowed, as JPEG."""
    rows = folder_of_heads(root, 35)
    source = Image.open(root / "img/003.png")
    (root / "img/030.png").write_bytes((root / "img/003.png").read_bytes())
    source.save(root / "img/031.png", compress_level=1)
    source.resize((160, 175), Image.Resampling.BICUBIC).save(root / "img/032.png")
    pixels = np.asarray(source)
    windowed = np.clip(pixels.astype(float) * 1.4 - 25, 0, 255).astype(np.uint8)
    save(root / "img/033.png", np.pad(windowed, ((9, 14), (3, 20))))
    source.convert("RGB").save(root / "img/034.jpg", quality=70)
    rows.loc[34, "path"] = "img/034.jpg"
    return build(root, rows)


def test_copies_and_reexports_are_found_and_nothing_else(tmp_path: Path) -> None:
    manifest = reexported(tmp_path)
    pairs = duplicate_pairs(manifest)
    same = ["003", "030", "031", "032", "033", "034"]
    kinds = found(pairs)
    assert {name for pair in kinds for name in pair} == set(same)
    assert kinds["003", "030"] == "exact"
    assert kinds["003", "031"] == "exact"
    for name in same[3:]:
        assert kinds["003", name] == "near"
    assert pairs["similarity"].between(0.82, 1).all()
    groups = duplicate_groups(manifest)
    assert groups.nunique() == 30
    copies = manifest.table["slice_id"].isin(same).to_numpy()
    assert groups[copies].nunique() == 1


def test_levels(tmp_path: Path) -> None:
    manifest = reexported(tmp_path)
    exact = found(duplicate_pairs(manifest, "exact"))
    assert {name for pair in exact for name in pair} == {"003", "030", "031"}
    assert set(exact.values()) == {"exact"}
    assert duplicate_pairs(manifest, "none").empty
    assert duplicate_groups(manifest, "none").nunique() == 35
    with pytest.raises(ConfigError, match=r"split\.duplicates is 'nearly'"):
        duplicate_pairs(manifest, "nearly")


def test_unlike_heads_are_not_glued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = build(tmp_path, folder_of_heads(tmp_path, 60, seed=500))
    monkeypatch.setattr(duplicates, "MAX_BITS", 90)  # let the pixels alone decide about many candidates
    assert len(duplicates._candidates(manifest.table, [])) > 20
    assert duplicate_pairs(manifest).empty


def test_slices_of_one_patient_are_not_compared(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 4)
    Image.open(tmp_path / "img/000.png").resize((150, 160)).save(tmp_path / "img/001.png")
    assert len(duplicate_pairs(build(tmp_path, rows))) == 1
    assert duplicate_pairs(build(tmp_path, rows.assign(patient_id="one"))).empty


@pytest.mark.parametrize(("copies", "joined"), [(1, False), (2, True)])
def test_series_are_joined_by_a_share_of_their_slices(tmp_path: Path, copies: int, joined: bool) -> None:
    rows = folder_of_heads(tmp_path, 12)
    rows["patient_id"] = rows["series_id"] = [f"p{item // 6}" for item in range(12)]
    for item in range(copies):  # re-exports: other size, hence near and not exact
        source = Image.open(tmp_path / f"img/{item:03d}.png")
        source.resize((170, 185), Image.Resampling.BICUBIC).save(tmp_path / f"img/{item + 6:03d}.png")
    pairs = duplicate_pairs(build(tmp_path, rows))
    assert len(pairs) == (copies if joined else 0)


def test_kept_pairs_are_compared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = reexported(tmp_path / "set")
    first = kept_duplicate_pairs(manifest, "near", tmp_path / "cache")
    monkeypatch.setattr(duplicates, "duplicate_pairs", lambda *_: pytest.fail("compared again"))
    pd.testing.assert_frame_equal(kept_duplicate_pairs(manifest, "near", tmp_path / "cache"), first)


def test_flat_slices_are_no_duplicates_of_each_other(tmp_path: Path) -> None:
    rows = folder_of_heads(tmp_path, 4)
    for item, grey in ((0, 0), (1, 3), (2, 200)):
        save(tmp_path / f"img/{item:03d}.png", np.full((50, 60), grey, np.uint8))
    manifest = build(tmp_path, rows)
    assert manifest.table["phash"].tolist()[:3] == [""] * 3
    assert duplicate_pairs(manifest).empty
    assert perceptual_hash(np.zeros((9, 9), np.uint8)) == ""


@pytest.mark.parametrize("copies", [1, 3])
def test_in_large_sets_copied_series_are_found_and_compared_within_the_wider_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    rows = folder_of_heads(tmp_path, 12)
    rows["patient_id"] = rows["series_id"] = [f"p{item // 6}" for item in range(12)]
    for item in range(copies):
        source = Image.open(tmp_path / f"img/{item:03d}.png")
        source.resize((170, 185), Image.Resampling.BICUBIC).save(tmp_path / f"img/{item + 6:03d}.png")
    manifest = build(tmp_path, rows)
    known = found(duplicate_pairs(manifest))
    monkeypatch.setattr(duplicates, "LARGE", 10)
    assert found(duplicate_pairs(manifest)) == known
    assert len(known) == (copies if copies > 1 else 0)
    distances = duplicates._close(*_codes(manifest), duplicates.MAX_BITS)[0][:copies]
    monkeypatch.setattr(duplicates, "FAR_BITS", int(sorted(distances)[-2] if copies > 1 else 0))
    assert found(duplicate_pairs(manifest)) == known  # the last copy lies beyond the limit of the search


def _codes(manifest: Manifest) -> tuple[np.ndarray, np.ndarray]:
    raw = np.frombuffer(bytes.fromhex("".join(manifest.table["phash"])), np.uint8).reshape(-1, 32)
    return raw, pd.factorize(manifest.table["patient_id"])[0]


@pytest.mark.parametrize("upwards", [True, False])
def test_slices_of_copied_series_are_found_by_their_place_where_the_hash_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, upwards: bool
) -> None:
    rows = folder_of_heads(tmp_path, 12)
    rows["patient_id"] = rows["series_id"] = [f"p{item // 6}" for item in range(12)]
    copies = range(6, 12) if upwards else range(11, 5, -1)
    for item, copy in enumerate(copies):
        source = Image.open(tmp_path / f"img/{item:03d}.png")
        source.resize((170, 185), Image.Resampling.BICUBIC).save(tmp_path / f"img/{copy:03d}.png")
    manifest = build(tmp_path, rows)
    bits, first, second = duplicates._close(*_codes(manifest), duplicates.MAX_BITS)
    of_copies = sorted(bits[second == np.array(copies)[first]])
    monkeypatch.setattr(duplicates, "MAX_BITS", int(of_copies[2]))  # the hash shows three or four of the six
    assert len(duplicates._candidates(manifest.table, [])) < 6
    wanted = {(f"{item:03d}", f"{copy:03d}") for item, copy in enumerate(copies)}
    assert set(found(duplicate_pairs(manifest))) == wanted


def test_a_limit_on_candidates_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = reexported(tmp_path)
    monkeypatch.setattr(duplicates, "MAX_CONFIRM", 3)
    assert len(duplicate_pairs(manifest)) >= 3
    assert "only the 3 closest" in caplog.text


def test_hash_distances_agree_with_a_plain_count(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (40, 32), dtype=np.uint8)
    raw[20:] = raw[:20] ^ (rng.random((20, 32)) < 0.1)  # about 3 bits apart
    bits = np.unpackbits(raw, axis=1)
    plain = {
        (int((bits[a] != bits[b]).sum()), a, b)
        for a in range(40)
        for b in range(a + 1, 40)
        if (bits[a] != bits[b]).sum() <= duplicates.MAX_BITS
    }
    assert len(plain) >= 20
    monkeypatch.setattr(duplicates, "_BLOCK", 16)
    close = duplicates._close(raw, np.arange(40), duplicates.MAX_BITS)
    assert {tuple(pair) for pair in close.T.tolist()} == plain


def test_groups_join_through_others() -> None:
    labels = connected(6, np.array([0, 4]), np.array([2, 2]))
    assert labels[0] == labels[2] == labels[4]
    assert len({labels[0], labels[1], labels[3], labels[5]}) == 4
    manifest = bare_manifest(pd.DataFrame({"x": [0, 1, 0, 1]}), list("abcd"), ["k", "l", "k", "k"])
    groups = duplicate_groups(manifest, "exact")
    assert groups[0] == groups[2] == groups[3]
    assert groups[1] != groups[0]


def test_real_head_ct(head_ct: Manifest, head_ct_pairs: pd.DataFrame) -> None:
    kinds = found(head_ct_pairs)
    assert kinds["188", "189"] == "exact"
    assert kinds["198", "199"] == "near"
    assert kinds["011", "061"] == "near"
    # Looked at one by one: all sixteen show the same slice at another size, crop or window.
    assert len(kinds) == 16
    assert duplicate_groups(head_ct, pairs=head_ct_pairs).value_counts().max() == 3  # 005, 022, 058
