"""One LightningDataModule per data set.

``base`` turns files into a manifest, a split and loaders; each module beside it says what is special about one data
set. Imports ``data``, ``phantom``, ``evaluation`` and below. Audits, training and reading use it, and notebooks do.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from hemlearn.util.errors import ConfigError, hint

if TYPE_CHECKING:
    from hemlearn.config.schema import Config
    from hemlearn.datamodules.base import SliceDataModule

DATAMODULES = {
    "head_ct": "hemlearn.datamodules.head_ct:HeadCTDataModule",
    "rsna": "hemlearn.datamodules.rsna:RSNADataModule",
    "ct_ich": "hemlearn.datamodules.ct_ich:CTICHDataModule",
    "cq500": "hemlearn.datamodules.cq500:CQ500DataModule",
    "basal_ganglia": "hemlearn.datamodules.basal_ganglia:BasalGangliaDataModule",
    "six_class": "hemlearn.datamodules.six_class:SixClassDataModule",
    "hydrocephalus_mri": "hemlearn.datamodules.hydrocephalus_mri:HydrocephalusMRIDataModule",
    "dicom": "hemlearn.datamodules.dicom:DicomDataModule",
    "table": "hemlearn.datamodules.table:TableDataModule",
}


def build_datamodule(config: Config) -> SliceDataModule:
    """The data module that ``config.data.name`` names.

    Raises:
        ConfigError: For an unknown name, with the nearest known one.
    """
    name = config.data.name
    if name not in DATAMODULES:
        listed = ", ".join(DATAMODULES)
        raise ConfigError(
            f"data.name={name!r}: no such data module{hint(name, DATAMODULES)}",
            remedy=f"use one of {listed}; any CSV of images is data=table",
        )
    module, _, cls = DATAMODULES[name].partition(":")
    built: SliceDataModule = getattr(import_module(module), cls)(config)
    return built
