"""The layout of CQ500: full DICOM series in one folder each, and the reads of three radiologists per patient."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from scipy import ndimage

from hemlearn.phantom.head import HeadVolume, displacement, draw_volume, image_position, orientation, slice_truth
from hemlearn.phantom.slab import HU_RANGE, Grid, acquire, draw_slab
from hemlearn.phantom.writers.common import (
    SECONDARY_CAPTURE,
    Job,
    PhantomSummary,
    Row,
    decimal,
    decimals,
    derived_uid,
    each_patient,
    save,
    store_hu,
    summarize,
    window_8bit,
    write_truth,
)

SUBTYPES = {
    "IPH": "intraparenchymal",
    "IVH": "intraventricular",
    "SDH": "subdural",
    "EDH": "epidural",
    "SAH": "subarachnoid",
}
FINDINGS = (
    "ICH",
    *SUBTYPES,
    "BleedLocation-Left",
    "BleedLocation-Right",
    "ChronicBleed",
    "Fracture",
    "CalvarialFracture",
    "OtherFracture",
    "MassEffect",
    "MidlineShift",
)
READERS = ("R1", "R2", "R3")
PLAIN = ("CT Plain", "CT PLAIN", "CT 5mm", "CT Plain")
MAKERS = (
    ("GE MEDICAL SYSTEMS", "LightSpeed VCT", "STANDARD", "BONE"),
    ("SIEMENS", "Sensation 16", "H31s", "H60s"),
    ("Philips", "MX 16-slice", "UB", "D"),
)


class Study:
    """One patient's folder and what all its series share.

    Args:
        out: Folder of the data set.
        volume: The plain series.
        patient: Index of the patient.
    """

    def __init__(self, out: Path, volume: HeadVolume, patient: int) -> None:
        self.name = f"CQ500CT{patient}"
        self.folder = Path(f"{self.name} {self.name}") / "Unknown Study"
        self.out, self.volume, self.patient = out, volume, patient
        rng = np.random.default_rng(np.random.SeedSequence([volume.seed[0], patient, 11]))
        self.maker, self.model, self.soft, self.bone = MAKERS[int(rng.integers(len(MAKERS)))]
        self.signed = bool(rng.integers(2))
        self.descending = bool(rng.integers(2))  # whether files are numbered from the vertex down
        self.offset = (0.0, round(float(rng.uniform(-30, 30)), 3), round(float(rng.uniform(-200, 250)), 3))
        self.series = 0

    def open_series(self, description: str) -> Path:
        """Start a series: its folder, relative to the data set."""
        self.series += 1
        folder = self.folder / description
        (self.out / folder).mkdir(parents=True)
        return folder

    def header(self, number: int, image_type: tuple[str, ...], description: str) -> Dataset:
        """The elements that do not depend on the pixels, of image ``number`` of the open series."""
        seed = self.volume.seed[0]
        dataset = Dataset()
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.ImageType = list(image_type)
        dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        dataset.SOPInstanceUID = derived_uid(seed, self.patient, self.series, number)
        for key in ("StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID"):
            setattr(dataset, key, "")
        dataset.Modality = "CT"
        dataset.Manufacturer, dataset.ManufacturerModelName = self.maker, self.model
        dataset.SeriesDescription = description
        dataset.PatientName = dataset.PatientID = f"CQ500-CT-{self.patient}"
        dataset.PatientIdentityRemoved = "YES"
        dataset.BodyPartExamined = "HEAD"
        dataset.KVP = "120"
        dataset.PatientPosition = "HFS"
        dataset.StudyInstanceUID = derived_uid(seed, self.patient)
        dataset.SeriesInstanceUID = derived_uid(seed, self.patient, self.series)
        dataset.FrameOfReferenceUID = derived_uid(seed, self.patient, "frame")
        dataset.SeriesNumber, dataset.InstanceNumber, dataset.AcquisitionNumber = self.series, number + 1, 1
        return dataset

    def place(
        self,
        dataset: Dataset,
        position: NDArray[np.float64],
        directions: tuple[float, ...],
        spacing: tuple[float, float],
        thickness: float,
    ) -> None:
        """Add the geometry: of the first pixel (mm), row and column direction, spacing and thickness (mm)."""
        dataset.ImagePositionPatient = decimals(position)
        dataset.ImageOrientationPatient = decimals(directions)
        dataset.PixelSpacing = [decimal(spacing[0]), decimal(spacing[1])]
        dataset.SliceThickness = decimal(thickness, 3)

    def window(self, dataset: Dataset, centre: int, width: int) -> None:
        """Add the rescale and window elements."""
        dataset.WindowCenter, dataset.WindowWidth = str(centre), str(width)
        dataset.RescaleIntercept, dataset.RescaleSlope, dataset.RescaleType = "-1024", "1", "HU"

    def axial(self, volume: HeadVolume, description: str, kernel: str) -> list[tuple[str, float]]:
        """Write a stack of axial slices; returns file and position along the normal (mm), the lowest slice first."""
        folder = self.open_series(description)
        directions = orientation(volume.tilt_deg)
        up = np.cross(directions[:3], directions[3:])
        count = len(volume.hu)
        written: list[tuple[str, float]] = []
        for k in range(count):
            number = count - 1 - k if self.descending else k
            dataset = self.header(number, ("ORIGINAL", "PRIMARY", "AXIAL"), description)
            position = image_position(volume, k, self.offset)
            self.place(dataset, position, directions, volume.spacing[1:], volume.spacing[0])
            dataset.GantryDetectorTilt = decimal(volume.tilt_deg, 1)
            dataset.ConvolutionKernel = kernel
            dataset.SliceLocation = decimal(float(position @ up), 3)
            self.window(dataset, *((40, 80) if kernel == self.soft else (700, 3200)))
            store_hu(dataset, volume.hu[k], signed=self.signed, outside=-2000 if self.signed else None)
            file = folder / f"CT{number:06d}.dcm"
            save(dataset, self.out / file)
            written.append((file.as_posix(), round(float(position @ up), 3)))
        return written

    def thin(self) -> None:
        """Write the same head in slices of half the thickness; the look-alikes, of one slice each, are not in it."""
        volume = self.volume
        step = volume.spacing[0] / 2
        levels = tuple(z + shift for z in volume.z_mm for shift in (-step / 2, step / 2))
        rows, cols = volume.hu.shape[1:]
        grid = Grid(
            rows=rows,
            cols=cols,
            pixel_mm=volume.spacing[1],
            thickness_mm=step,
            z_mm=levels,
            samples=1,
            tilt_deg=volume.tilt_deg,
        )
        rng = np.random.default_rng(np.random.SeedSequence([volume.seed[0], self.patient, 19]))
        # A thinner slice has fewer photons.
        scanner = replace(volume.scanner, noise_hu=1.4 * volume.scanner.noise_hu)
        slabs = (draw_slab(volume.head, volume.lesions, grid, z) for z in levels)
        hu = np.stack([acquire(scanner, rng, slab.hu, grid.pixel_mm) for slab in slabs])
        thin = replace(volume, hu=hu, z_mm=levels, spacing=(step, grid.pixel_mm, grid.pixel_mm), masks={})
        self.axial(thin, "CT PLAIN THIN", self.soft)

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
        dataset = self.header(0, ("ORIGINAL", "PRIMARY", "LOCALIZER"), "SCOUT")
        corner = np.array([0.0, image_position(volume, 0, self.offset)[1], volume.z_mm[-1] + self.offset[2]])
        self.place(dataset, corner, (0.0, 1.0, 0.0, 0.0, 0.0, -1.0), (1.0, volume.spacing[1]), 1.0)
        self.window(dataset, 50, 500)
        store_hu(dataset, np.clip(view, *HU_RANGE).astype(np.int16), signed=self.signed)
        save(dataset, self.out / folder / "CT000000.dcm")

    def coronal(self) -> None:
        """Write reformatted coronal images."""
        volume = self.volume
        folder = self.open_series("CT CORONAL REFORMAT")
        rows = volume.hu.shape[1]
        down = np.array(orientation(volume.tilt_deg)[3:]) * volume.spacing[1]
        for number, row in enumerate(range(rows // 4, 3 * rows // 4, max(1, rows // 12))):
            view = ndimage.zoom(volume.hu[::-1, row].astype(np.float32), (volume.spacing[0] / 2, 1.0), order=1)
            dataset = self.header(number, ("DERIVED", "SECONDARY", "REFORMATTED"), "CORONAL REFORMAT")
            corner = image_position(volume, len(volume.hu) - 1, self.offset) + down * row
            self.place(dataset, corner, (1.0, 0.0, 0.0, 0.0, 0.0, -1.0), (2.0, volume.spacing[2]), 5.0)
            self.window(dataset, 40, 80)
            store_hu(dataset, np.clip(view, *HU_RANGE).astype(np.int16), signed=self.signed)
            save(dataset, self.out / folder / f"CT{number:06d}.dcm")

    def screen_save(self) -> None:
        """Write a colour picture of the workstation's screen."""
        volume = self.volume
        folder = self.open_series("CT D3D")
        grey = window_8bit(volume.hu[len(volume.hu) // 2], 40.0, 80.0)
        picture = np.stack([grey, grey // 2, grey // 3], axis=-1)
        dataset = self.header(0, ("DERIVED", "SECONDARY", "SCREEN SAVE"), "D3D")
        dataset.SOPClassUID = SECONDARY_CAPTURE
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.Rows, dataset.Columns = grey.shape
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        pixels = picture.tobytes()
        dataset.add_new("PixelData", "OB", pixels + b"\0" * (len(pixels) % 2))
        save(dataset, self.out / folder / "CT000000.dcm", sop_class=SECONDARY_CAPTURE)


def findings(volume: HeadVolume) -> dict[str, bool]:
    """What there is to see in a series, in the terms of reads.csv; no fracture is ever drawn."""
    labels = volume.labels()
    truth = {short: bool(labels[name].any()) for short, name in SUBTYPES.items()}
    left, right = (
        float(sum(mask[..., part].sum() for mask in volume.masks.values()))
        for part in (slice(volume.hu.shape[2] // 2, None), slice(0, volume.hu.shape[2] // 2))
    )
    any_blood = any(truth.values())
    anywhere, midline = displacement(volume)
    return {
        "ICH": any_blood,
        **truth,
        "BleedLocation-Left": any_blood and left > 0.2 * (left + right),
        "BleedLocation-Right": any_blood and right > 0.2 * (left + right),
        "ChronicBleed": truth["SDH"] and any(le.hu < 46.0 for le in volume.lesions if le.subtype == "subdural"),
        "Fracture": False,
        "CalvarialFracture": False,
        "OtherFracture": False,
        "MassEffect": any_blood and anywhere > 4.0,
        "MidlineShift": any_blood and midline > 4.0,
    }


def _read(rng: np.random.Generator, truth: dict[str, bool], conspicuity: float) -> dict[str, int]:
    """One radiologist's read: faint blood is missed now and then, a finding is seen where there is none rarely."""
    missed = 0.02 + 0.22 * max(0.0, 0.3 - conspicuity) / 0.3
    chance = rng.uniform(size=len(FINDINGS))  # drawn whole, so that one finding does not move the others
    seen = {key: bool(u > missed) if truth[key] else bool(u < 0.012) for key, u in zip(FINDINGS, chance, strict=True)}
    seen["ICH"] = any(seen[key] for key in SUBTYPES)
    for key in ("BleedLocation-Left", "BleedLocation-Right", "ChronicBleed", "MassEffect", "MidlineShift"):
        seen[key] = seen[key] and seen["ICH"]
    seen["CalvarialFracture"] = seen["CalvarialFracture"] and seen["Fracture"]
    seen["OtherFracture"] = seen["OtherFracture"] and seen["Fracture"]
    return {key: int(seen[key]) for key in FINDINGS}


def _patient(out: Path, seed: int, patient: int, grid: Grid | None) -> tuple[list[Row], Row]:
    volume = draw_volume(seed, patient, grid)
    study = Study(out, volume, patient)
    files = study.axial(volume, PLAIN[patient % len(PLAIN)], study.soft)
    match patient % 4:
        case 0:
            study.localiser()
            study.coronal()
        case 1:
            study.thin()
        case 2:
            study.bone_kernel()
            study.screen_save()
        case _:  # the plain series alone
            pass
    rows: list[Row] = [
        {"file": file, "name": f"CQ500-CT-{patient}", "z_mm": level} | slice_truth(volume, patient, k)
        for k, (file, level) in enumerate(files)
    ]
    rng = np.random.default_rng(np.random.SeedSequence([seed, patient, 17]))
    truth = findings(volume)
    grade = min((lesion.conspicuity for lesion in volume.lesions), default=1.0)
    read: Row = {"name": f"CQ500-CT-{patient}", "Category": str(rng.choice(("B1", "B2")))}
    for reader in READERS:
        read |= {f"{reader}:{key}": value for key, value in _read(rng, truth, grade).items()}
    return rows, read


def write_cq500(job: Job) -> PhantomSummary:
    """reads.csv and ``CQ500CT0 CQ500CT0/Unknown Study/CT Plain/CT000000.dcm``.

    Every patient has a plain axial series of 5 mm, described in phantom.csv slice by slice. Three of four have more: a
    scout and a coronal reformat, a thin series, or a bone kernel and a screen save.
    """
    results = list(each_patient(_patient, job))
    with (job.out / "reads.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(results[0][1]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(read for _, read in results)
    rows = [row for own, _ in results for row in own]
    write_truth(job.out / "phantom.csv", rows)
    return summarize("cq500", job, rows)
