"""The layouts of the public DICOM sets: RSNA 2019 (stage 2, Kaggle) with its stripped headers, and CQ500.

CQ500 has full series in one folder each, and the reads of three radiologists per patient.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from scipy import ndimage

from hemlearn.phantom import files
from hemlearn.phantom.files import Job, PhantomSummary, Row
from hemlearn.phantom.slab import Grid, draw_slab
from hemlearn.phantom.volume import HU_RANGE, HeadVolume, acquire, draw_volume, orientation

# --- RSNA.

LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
TEST_PATIENTS = 1_000_000  # index of the first test patient: the train patients never depend on how many there are


@dataclass(frozen=True)
class Origin:
    """How one kind of scanner and de-identification tool left its files, as seen in the genuine set."""

    implicit: bool  # implicit VR little endian
    version: str  # implementation version name
    signed: bool  # 16-bit signed pixels, else 12-bit unsigned
    outside: int | None  # stored value outside the circular field of view; None where the square is filled
    centre: str | list[str]  # WindowCenter, one value or several
    width: str | list[str]  # WindowWidth, as many
    digits: int  # files.decimals of positions
    intercept: str = "-1024"  # RescaleIntercept as written
    slope: str = "1"  # RescaleSlope as written


ORIGINS = (
    Origin(False, "dcm4che-1.4.35", True, -2000, "30", "80", 6),
    Origin(False, "dcm4che-1.4.38", False, None, ["00040", "00040"], ["00080", "00080"], 7),
    Origin(True, "RSNA Challenge 2019", False, None, ["00036", "00036"], ["00080", "00080"], 6),
    Origin(False, "dcm4che-1.4.38", True, -1024, "40", "150", 3, slope="1.0"),
    Origin(False, "dcm4che-1.4.38", True, None, "35.000000", "135.000000", 6, "-1024.000000", "1.000000"),
)
SHARES = (0.36, 0.2, 0.2, 0.14, 0.1)


def scramble(number: int, seed: int, digits: int) -> str:
    """``ID_`` and ``digits`` hexadecimal digits: different for different numbers, in no order."""
    bits = 4 * digits
    mask = (1 << bits) - 1
    value = (number + 0x632BE5AB * (seed + 1)) & mask
    for factor in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F):  # odd, hence each step is one to one
        value = (value * factor) & mask
        value ^= value >> (bits // 2)
    return f"ID_{value:0{digits}x}"


def _rsna_patient(out: Path, seed: int, patient: int, grid: Grid | None) -> list[Row]:
    volume = draw_volume(seed, patient, grid)
    rng = default_rng(SeedSequence([seed, patient, 11]))
    origin = ORIGINS[int(rng.choice(len(ORIGINS), p=SHARES))]
    offset = files.draw_offset(rng)
    split = "test" if patient >= TEST_PATIENTS else "train"
    owner, study, series = (scramble(3 * patient + n, seed, digits) for n, digits in enumerate((8, 10, 10)))
    directions = orientation(volume.tilt_deg)
    up = np.cross(directions[:3], directions[3:])
    rows: list[Row] = []
    for k in range(len(volume.hu)):
        image = scramble(64 * patient + k, seed, 9)
        file, position, dataset = f"stage_2_{split}/{image}.dcm", volume.position(k, offset), Dataset()
        with disable_value_validation():  # identifiers that are no UIDs, a version name of 19 characters
            dataset.SOPInstanceUID, dataset.PatientID = image, owner
            dataset.StudyInstanceUID, dataset.SeriesInstanceUID = study, series
            dataset.Modality, dataset.StudyID = "CT", ""
            dataset.ImagePositionPatient = files.decimals(position, origin.digits)
            dataset.ImageOrientationPatient = files.decimals(directions, max(6, origin.digits))
            dataset.PixelSpacing = files.decimals(volume.spacing[1:])
            dataset.WindowCenter, dataset.WindowWidth = origin.centre, origin.width
            dataset.RescaleIntercept, dataset.RescaleSlope = origin.intercept, origin.slope
            files.set_hu(dataset, volume.hu[k], signed=origin.signed, outside=origin.outside)
            instance = files.derived_uid(seed, image)
            files.save(dataset, out / file, instance=instance, implicit=origin.implicit, version=origin.version)
        row: Row = {"file": file, "split": split, "patient_id": owner, "study_id": study, "series_id": series}
        rows.append(row | {"image": image, "z_mm": round(float(position @ up), 3)} | volume.truth(k))
    return rows


def write_rsna(job: Job) -> PhantomSummary:
    """stage_2_train.csv with stage_2_train/, and stage_2_sample_submission.csv with stage_2_test/.

    ``job.patients`` series for training and a fifth as many, at least two, for testing; one series per patient. As in
    the original the rows are in no order and one image stands there twice.
    """
    for split in ("train", "test"):
        (job.out / f"stage_2_{split}").mkdir(parents=True)
    tests = max(2, job.patients // 5)
    patients = [*range(job.patients), *range(TEST_PATIENTS, TEST_PATIENTS + tests)]
    rows = [row for series in job.each_patient(_rsna_patient, patients) for row in series]
    train = [row for row in rows if row["split"] == "train"]
    rng = default_rng(SeedSequence([job.seed, 13]))
    order = [train[i] for i in rng.permutation(len(train))]
    order.insert(int(rng.integers(len(order) // 2, len(order))), order[0])
    table = []
    for row in order:
        shown = {*str(row["subtypes"]).split("|"), "any" if row["hemorrhage"] else ""}
        table += [{"ID": f"{row['image']}_{label}", "Label": int(label in shown)} for label in LABELS]
    files.write_rows(job.out / "stage_2_train.csv", table)
    images = sorted(str(row["image"]) for row in rows if row["split"] == "test")
    sample = [{"ID": f"{image}_{label}", "Label": 0.5} for image in images for label in LABELS]
    files.write_rows(job.out / "stage_2_sample_submission.csv", sample)
    return job.finish("rsna", rows, len(patients))


# --- CQ500.

SUBTYPES = {
    "IPH": "intraparenchymal",
    "IVH": "intraventricular",
    "SDH": "subdural",
    "EDH": "epidural",
    "SAH": "subarachnoid",
}
_OF_BLOOD = ("BleedLocation-Left", "BleedLocation-Right", "ChronicBleed", "MassEffect", "MidlineShift")
_OF_BONE = ("Fracture", "CalvarialFracture", "OtherFracture")
FINDINGS = ("ICH", *SUBTYPES, *_OF_BLOOD[:3], *_OF_BONE, *_OF_BLOOD[3:])
READERS = ("R1", "R2", "R3")
PLAIN = ("CT Plain", "CT PLAIN", "CT 5mm", "CT Plain")
MAKERS = (
    ("GE MEDICAL SYSTEMS", "LightSpeed VCT", "STANDARD", "BONE"),
    ("SIEMENS", "Sensation 16", "H31s", "H60s"),
    ("Philips", "MX 16-slice", "UB", "D"),
)


class Study:
    """One patient's folder of CQ500 and what all its series share."""

    def __init__(self, out: Path, volume: HeadVolume, patient: int) -> None:
        self.folder = Path(f"CQ500CT{patient} CQ500CT{patient}") / "Unknown Study"
        self.out, self.volume, self.patient = out, volume, patient
        rng = default_rng(SeedSequence([volume.seed[0], patient, 11]))
        self.maker, self.model, self.soft, self.bone = MAKERS[int(rng.integers(len(MAKERS)))]
        self.signed = bool(rng.integers(2))
        self.descending = bool(rng.integers(2))  # whether files are numbered from the vertex down
        self.offset = files.draw_offset(rng)
        self.series = 0

    def open_series(self, description: str) -> Path:
        """Start a series: its folder, relative to the data set."""
        self.series += 1
        folder = self.folder / description
        (self.out / folder).mkdir(parents=True)
        return folder

    def header(self, number: int, description: str, *image_type: str) -> Dataset:
        """The elements that do not depend on the pixels, of image ``number`` of the open series."""
        keys = (self.volume.seed[0], self.patient, self.series)
        dataset = files.plain_header("CT", f"CQ500-CT-{self.patient}", keys, number, description)
        dataset.ImageType = list(image_type)
        dataset.Manufacturer, dataset.ManufacturerModelName = self.maker, self.model
        dataset.KVP = "120"
        dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = self.series, number + 1, 1
        return dataset

    def axial(self, volume: HeadVolume, description: str, kernel: str) -> list[tuple[str, float]]:
        """Write a stack of axial slices; returns file and position along the normal (mm), the lowest slice first."""
        folder = self.open_series(description)
        directions = orientation(volume.tilt_deg)
        up = np.cross(directions[:3], directions[3:])
        count = len(volume.hu)
        written: list[tuple[str, float]] = []
        for k in range(count):
            number = count - 1 - k if self.descending else k
            dataset = self.header(number, description, "ORIGINAL", "PRIMARY", "AXIAL")
            position = volume.position(k, self.offset)
            dataset.GantryDetectorTilt = files.decimal(volume.tilt_deg, 1)
            dataset.ConvolutionKernel = kernel
            dataset.SliceLocation = files.decimal(float(position @ up), 3)
            file = folder / f"CT{number:06d}.dcm"
            window, outside = (40, 80) if kernel == self.soft else (700, 3200), -2000 if self.signed else None
            place, pixels = (position, directions, volume.spacing), volume.hu[k]
            files.save_ct(dataset, self.out / file, pixels, *place, window=window, signed=self.signed, outside=outside)
            written.append((file.as_posix(), round(float(position @ up), 3)))
        return written

    def thin(self) -> None:
        """Write the same head in slices of half the thickness; the look-alikes, of one slice each, are not in it."""
        volume = self.volume
        step, pixel = volume.spacing[0] / 2, volume.spacing[1]
        levels = tuple(z + shift for z in volume.z_mm for shift in (-step / 2, step / 2))
        rows, cols = volume.hu.shape[1:]
        grid = Grid(rows, cols, pixel, step, z_mm=levels, samples=1, tilt_deg=volume.tilt_deg)
        rng = default_rng(SeedSequence([volume.seed[0], self.patient, 19]))
        # A thinner slice has fewer photons.
        scanner = replace(volume.scanner, noise_hu=1.4 * volume.scanner.noise_hu)
        slabs = (draw_slab(volume.head, volume.lesions, grid, z) for z in levels)
        hu = np.stack([acquire(scanner, rng, slab.hu, pixel) for slab in slabs])
        self.axial(replace(volume, hu=hu, z_mm=levels, spacing=grid.spacing, masks={}), "CT PLAIN THIN", self.soft)

    def bone_kernel(self) -> None:
        """Write the same slices as a sharp kernel shows them."""
        hu = self.volume.hu.astype(np.float32)
        sharp = hu + 1.8 * (hu - ndimage.gaussian_filter(hu, (0.0, 1.2, 1.2)))
        hard = np.clip(np.rint(sharp), *HU_RANGE).astype(np.int16)
        self.axial(replace(self.volume, hu=hard), "CT BONE", self.bone)

    def localiser(self) -> None:
        """Write the lateral scout view."""
        volume = self.volume
        view = ndimage.zoom(volume.hu.astype(np.float32).mean(axis=2)[::-1], (volume.spacing[0], 1.0), order=1)
        folder = self.open_series("CT SCOUT")
        dataset = self.header(0, "SCOUT", "ORIGINAL", "PRIMARY", "LOCALIZER")
        corner = (0.0, volume.position(0, self.offset)[1], volume.z_mm[-1] + self.offset[2])
        stored = np.clip(view, *HU_RANGE).astype(np.int16)
        place = (corner, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), (1.0, 1.0, volume.spacing[1]))
        files.save_ct(dataset, self.out / folder / "CT000000.dcm", stored, *place, window=(50, 500), signed=self.signed)

    def coronal(self) -> None:
        """Write reformatted coronal images."""
        volume = self.volume
        folder = self.open_series("CT CORONAL REFORMAT")
        rows = volume.hu.shape[1]
        down = np.array(orientation(volume.tilt_deg)[3:]) * volume.spacing[1]
        for number, row in enumerate(range(rows // 4, 3 * rows // 4, max(1, rows // 12))):
            view = ndimage.zoom(volume.hu[::-1, row].astype(np.float32), (volume.spacing[0] / 2, 1.0), order=1)
            dataset = self.header(number, "CORONAL REFORMAT", "DERIVED", "SECONDARY", "REFORMATTED")
            corner = volume.position(len(volume.hu) - 1, self.offset) + down * row
            stored = np.clip(view, *HU_RANGE).astype(np.int16)
            place = (corner, (1.0, 0.0, 0.0, 0.0, 0.0, -1.0), (5.0, 2.0, volume.spacing[2]))
            files.save_ct(dataset, self.out / folder / f"CT{number:06d}.dcm", stored, *place, signed=self.signed)

    def screen_save(self) -> None:
        """Write a colour picture of the workstation's screen."""
        hu = self.volume.hu
        folder = self.open_series("CT D3D")
        grey = files.window_8bit(hu[len(hu) // 2], 40.0, 80.0)
        pixels = np.stack([grey, grey // 2, grey // 3], axis=-1).tobytes()
        dataset = self.header(0, "D3D", "DERIVED", "SECONDARY", "SCREEN SAVE")
        dataset.SOPClassUID = files.SECONDARY_CAPTURE
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.Rows, dataset.Columns = grey.shape
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.add_new("PixelData", "OB", pixels + b"\0" * (len(pixels) % 2))
        files.save(dataset, self.out / folder / "CT000000.dcm")


def findings(volume: HeadVolume) -> dict[str, bool]:
    """What there is to see in a series, in the terms of reads.csv; no fracture is ever drawn."""
    labels = volume.labels()
    truth = {short: bool(labels[name].any()) for short, name in SUBTYPES.items()}
    middle = volume.hu.shape[2] // 2
    right, left = (
        float(sum(mask[..., half].sum() for mask in volume.masks.values())) for half in np.s_[:middle, middle:]
    )
    bled = any(truth.values())
    anywhere, midline = volume.displacement()
    return dict.fromkeys(FINDINGS, False) | {
        "ICH": bled,
        **truth,
        "BleedLocation-Left": bled and left > 0.2 * (left + right),
        "BleedLocation-Right": bled and right > 0.2 * (left + right),
        "ChronicBleed": truth["SDH"] and any(le.hu < 46.0 for le in volume.lesions if le.subtype == "subdural"),
        "MassEffect": bled and anywhere > 4.0,
        "MidlineShift": bled and midline > 4.0,
    }


def read_once(rng: Generator, truth: dict[str, bool], conspicuity: float) -> dict[str, int]:
    """One radiologist's read: faint blood is missed now and then, a finding is seen where there is none rarely."""
    missed = 0.02 + 0.22 * max(0.0, 0.3 - conspicuity) / 0.3
    chance = rng.uniform(size=len(FINDINGS))  # drawn whole, so that one finding does not move the others
    seen = {key: bool(u > missed) if truth[key] else bool(u < 0.012) for key, u in zip(FINDINGS, chance, strict=True)}
    seen["ICH"] = any(seen[key] for key in SUBTYPES)
    for whole, parts in (("ICH", _OF_BLOOD), ("Fracture", _OF_BONE[1:])):
        seen |= {key: seen[key] and seen[whole] for key in parts}
    return {key: int(seen[key]) for key in FINDINGS}


def _cq500_patient(out: Path, seed: int, patient: int, grid: Grid | None) -> tuple[list[Row], Row]:
    volume, name = draw_volume(seed, patient, grid), f"CQ500-CT-{patient}"
    study = Study(out, volume, patient)
    written = study.axial(volume, PLAIN[patient % len(PLAIN)], study.soft)
    others = ((study.localiser, study.coronal), (study.thin,), (study.bone_kernel, study.screen_save), ())
    for write in others[patient % 4]:
        write()
    rows = [{"file": file, "name": name, "z_mm": z} | volume.truth(k) for k, (file, z) in enumerate(written)]
    rng = default_rng(SeedSequence([seed, patient, 17]))
    truth = findings(volume)
    grade = min((lesion.conspicuity for lesion in volume.lesions), default=1.0)
    read: Row = {"name": name, "Category": str(rng.choice(("B1", "B2")))}
    for reader in READERS:
        read |= {f"{reader}:{key}": value for key, value in read_once(rng, truth, grade).items()}
    return rows, read


def write_cq500(job: Job) -> PhantomSummary:
    """reads.csv and ``CQ500CT0 CQ500CT0/Unknown Study/CT Plain/CT000000.dcm``.

    Every patient has a plain axial series of 5 mm, described in phantom.csv slice by slice. Three of four have more: a
    scout and a coronal reformat, a thin series, or a bone kernel and a screen files.save.
    """
    results = list(job.each_patient(_cq500_patient))
    files.write_rows(job.out / "reads.csv", [read for _, read in results])
    return job.finish("cq500", [row for own, _ in results for row in own])
