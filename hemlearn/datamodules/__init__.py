"""One LightningDataModule per data set, over a base that splits, decodes and loads.

``DATAMODULES`` maps ``data.name`` to the class; classes are imported when they are first asked for. Imports data,
models.embeddings and phantom; audits, training, reading and the commands import it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hemlearn.plugins import REGISTRY
from hemlearn.util.errors import ConfigError, hint

if TYPE_CHECKING:
    from hemlearn.datamodules.base import SliceDataModule

DATAMODULES = {
    "head_ct": "head_ct:HeadCTDataModule",
    "rsna": "rsna:RSNADataModule",
    "ct_ich": "ct_ich:CTICHDataModule",
    "cq500": "cq500:CQ500DataModule",
    "basal_ganglia": "basal_ganglia:BasalGangliaDataModule",
    "six_class": "six_class:SixClassDataModule",
    "hydrocephalus_mri": "hydrocephalus_mri:HydrocephalusMRIDataModule",
    "dicom": "dicom:DicomDataModule",
    "table": "table:TableDataModule",
    "multi": "multi:MultiDataModule",
}
_BASES = ("base:SliceDataModule", "base:VolumeDataModule", "base:ManifestDataModule", "patients:PatientFolders")
_PUBLIC = {place.partition(":")[2]: place for place in (*DATAMODULES.values(), *_BASES)}
__all__ = ["DATAMODULES", "datamodule_class", "trait", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint(name, _PUBLIC)}")
    module, _, cls = _PUBLIC[name].partition(":")
    return getattr(import_module(f"{__name__}.{module}"), cls)


def datamodule_class(name: str) -> type[SliceDataModule]:
    """The data module that ``data.name`` names.

    Raises:
        ConfigError: An unknown name, with the nearest known one.

    >>> datamodule_class("head_ct").__name__
    'HeadCTDataModule'
    """
    if name in REGISTRY.parts.get("data", {}):
        own: type[SliceDataModule] = REGISTRY.get("data", name)
        return own
    if name not in DATAMODULES:
        raise ConfigError(
            f"data.name={name!r}: no such data module{hint(name, DATAMODULES)}",
            remedy=f"use one of {', '.join(DATAMODULES)}; any CSV of images is data=table",
        )
    found: type[SliceDataModule] = __getattr__(DATAMODULES[name].partition(":")[2])
    return found


def trait(source: str, name: str) -> Any:
    """A class attribute, such as ``display_window``, of the data set that a manifest calls its source.

    Sources that are not shipped with hemlearn have the attribute of ``SliceDataModule``.
    """
    cls = datamodule_class(source) if source in DATAMODULES else __getattr__("SliceDataModule")
    return getattr(cls, name)
