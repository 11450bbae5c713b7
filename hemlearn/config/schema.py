"""Typed schema of every configuration group: the one list of keys, their types, defaults and meaning.

Nothing heavy is imported here, so that ``hemlearn --help`` and ``hemlearn train --cfg job`` stay fast. A value of
``None`` always means "not set". Lists and dictionaries hold plain scalars, so that a resolved configuration can be
stored in a checkpoint that is read back without unpickling code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class GeometryConfig:
    """How series that are not evenly spaced, upright stacks are handled (inside group ``data``)."""

    duplicates: str = "first"  # slices at one position: first (the others are skipped and recorded) | keep | refuse
    gaps: str = "keep"  # uneven or missing positions: keep (reported) | refuse (the series is skipped and recorded)
    tilt: str = "keep"  # gantry tilt: keep (reported; positions run along the slice normal) | refuse
    min_slices: int = 1  # shorter series are skipped and recorded


@dataclass
class DataConfig:
    """Which data set, and how its slices become batches (group ``data``)."""

    name: str = "head_ct"  # data module: one of hemlearn.datamodules.DATAMODULES
    root: str | None = None  # folder of the data set; None: the synthetic phantom of the same layout
    manifest: str | None = None  # data=table only: CSV file with one row per image
    path_column: str = "path"  # data=table only: column names in that CSV
    patient_column: str = "patient_id"
    image_size: int = 192  # side of the square network input, pixels
    patient_pattern: str | None = None  # regular expression (group `patient`) for the patient in a file's path:
    # data=six_class, basal_ganglia, hydrocephalus_mri
    band: list[float] | None = None  # slices kept of each series: [low, high] as shares of its length from below:
    # data=basal_ganglia, hydrocephalus_mri
    fit: str = "letterbox"  # how a non-square image becomes square: letterbox | squash | crop | head (cut out)
    batch_size: int = 16
    num_workers: int = 0
    sampler: str = "shuffle"  # shuffle | balanced (slices of rarer label combinations drawn more often)
    cache_dir: str | None = None  # slice stores and phantoms; None: $HEMLEARN_CACHE, else ~/.cache/hemlearn
    phantom_patients: int = 240  # size and seed of the synthetic set used when root is None
    phantom_seed: int = 0
    geometry: GeometryConfig = field(default_factory=GeometryConfig)


@dataclass
class ChannelsConfig:
    """How stored intensities become network channels (group ``channels``)."""

    name: str = "brain"
    kind: str = "ct"  # ct: windows in HU | mr: percentile scaling
    windows: list[Any] = field(default_factory=lambda: [[40.0, 80.0]])  # [centre, width] in HU, per channel
    neighbours: int = 0  # slices added on each side (2.5D)
    percentiles: list[float] = field(default_factory=lambda: [1.0, 99.0])  # kind=mr only


@dataclass
class SplitConfig:
    """Which patients train, validate and test (group ``split``)."""

    name: str = "holdout"  # holdout | kfold | monte_carlo | file
    by: str = "patient"  # unit kept whole: patient | slice (leaks; needs allow_leak)
    allow_leak: bool = False
    fold: int = 0  # kfold: test fold; monte_carlo: index of the repetition
    folds: int = 5
    test_fraction: float = 0.2  # holdout and monte_carlo
    val_fraction: float = 0.15  # of the patients that are not test
    seed: int = 0  # of the split alone, so that run seeds share their patients
    file: str | None = None  # split=file: CSV with patient_id,split
    duplicates: str = "near"  # images kept in one group: near | exact | none


@dataclass
class AugmentationConfig:
    """Ordered augmentation steps on the device (group ``augmentation``)."""

    name: str = "none"
    steps: list[Any] = field(default_factory=list)  # each {_target_: dotted.name, argument: value, ...}
    mixup: float = 0.0  # alpha of the Beta distribution; 0 turns it off
    note: str = ""


@dataclass
class BackboneConfig:
    """The image encoder (group ``backbone``)."""

    name: str = "tf_efficientnet_lite0.in1k"  # any timm name, or alexnet / googlenet
    pretrained: bool = True
    weights: str | None = None  # None: the weights timm names | FILE | package:NAME | finished run folder
    drop_rate: float = 0.0
    drop_path_rate: float = 0.0
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model
    note: str = ""


@dataclass
class FreezeConfig:
    """What is trained when, and how fast (group ``freeze``)."""

    name: str = "none"
    trainable: Any = "all"  # from epoch 0: all | head | N (head and the last N backbone groups)
    schedule: dict[int, Any] = field(default_factory=dict)  # epoch -> all | head | N, replaces `trainable` from there
    layer_decay: float = 1.0  # learning-rate factor per group from head to stem
    head_lr_scale: float = 1.0
    freeze_batchnorm: bool = False  # keep the BatchNorm statistics of trainable layers too
    cached_draws: int = 0  # augmented views per slice whose frozen layers are computed once; 0: in every step, afresh


@dataclass
class TaskConfig:
    """What is predicted (group ``task``)."""

    name: str = "hemorrhage"
    kind: str = "binary"  # binary | multiclass | multilabel
    labels: list[str] = field(default_factory=lambda: ["hemorrhage"])
    level: str = "slice"  # what the labels of the data describe: slice | series
    hidden: list[int] = field(default_factory=list)  # widths of hidden layers in the head
    dropout: float = 0.0  # in the head
    monitor: str = "log_loss"  # validation metric that picks the best checkpoint; last: the last epoch
    threshold: Any = "youden"  # number; or youden | accuracy | f1 | sensitivity:0.95 | specificity:0.9 | cost:5 (of a
    # missed positive against a false alarm): chosen on validation
    tta: list[str] = field(default_factory=list)  # flips averaged at evaluation: horizontal, vertical
    aggregate: str = "mean"  # slice -> series -> patient: mean | max | model (the sequence model's series output)
    label_weights: list[float] | None = None  # of the weighted log loss; None: equal. RSNA 2019: any 2, subtypes 1
    calibration: str = "none"  # none | temperature | platt | isotonic: per label, fitted on validation only
    sides: list[list[str]] = field(default_factory=list)  # label pairs that a horizontal flip exchanges


@dataclass
class FeaturesConfig:
    """What a sequence model sees of the cached slice embeddings (group ``features``)."""

    name: str = "none"  # none | pca | variance | anova | mutual_info | l1 | random_projection
    k: int | None = None  # features kept; None: all of them
    strength: float = 0.1  # l1 only: inverse regularisation strength C


@dataclass
class SequenceConfig:
    """The model over the slices of a series (group ``sequence``)."""

    name: str = "none"  # none (2D slice task), or slice | mean | max | lstm | gru | attention |
    # transformer | conv_gru; several joined by + are averaged: slice+attention+gru
    hidden: int = 128  # width of the sequence model (per direction)
    layers: int = 1
    heads: int = 4  # transformer, attention
    kernel: int = 3  # conv_gru
    bidirectional: bool = True  # lstm, gru, conv_gru
    dropout: float = 0.3  # between layers and before the output layer
    output_dropout: float | None = None  # before the output layer; None: as dropout
    input_dropout: float = 0.0  # of the features that enter
    smoothing: int = 0  # each slice's features are averaged with those of so many slices below and above
    probabilities: str = "none"  # the slice run's own probabilities: none | in | out | both (Burduja 2020)
    differences: bool = False  # add the differences to the slices below and above
    position: bool = False  # add a z encoding, in mm from the series' lowest slice
    reverse_tta: bool = False  # average with the reversed series at evaluation
    series_weight: float = 0.0  # weight of the series output's loss beside the slices'
    members: int = 1  # networks from different initialisations, trained side by side and averaged
    series_per_batch: int = 8
    chunk: int = 16  # end to end: slices that pass the backbone at once, recomputed in the backward pass


@dataclass
class StageConfig:
    """A slice run that is trained first and gives the weights, unless ``backbone.weights`` does (key ``stage``)."""

    experiment: str | None = None  # file of conf/experiment; data, split, task, seed, logger and devices are shared
    set: dict[str, Any] = field(default_factory=dict)  # further keys of that run: stage.set.trainer.max_epochs=1


@dataclass
class LossConfig:
    """The training loss (group ``loss``)."""

    name: str = "bce"  # bce | cross_entropy | focal
    label_weights: list[float] | None = None  # one weight per label or class
    positive_weight: Any = None  # bce, focal: None | balanced | list, one per label
    label_smoothing: float = 0.0
    gamma: float = 2.0  # focal


@dataclass
class ScheduleConfig:
    """The learning-rate schedule inside group ``optimizer``."""

    name: str = "cosine"  # constant | cosine | step | plateau
    warmup_epochs: float = 0.0
    step_epochs: int = 5  # step: every so many epochs ...
    factor: float = 0.1  # ... multiplied by this; also plateau
    patience: int = 3  # plateau
    min_lr_ratio: float = 0.0  # cosine: final / initial


@dataclass
class OptimizerConfig:
    """Optimiser and learning-rate schedule (group ``optimizer``)."""

    name: str = "adamw"  # adamw | adam | sgd
    lr: float = 5e-4
    weight_decay: float = 0.01
    momentum: float = 0.9  # sgd
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # adam, adamw
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)


@dataclass
class TrainerConfig:
    """The fit loop (group ``trainer``)."""

    name: str = "cpu"
    max_epochs: int = 8
    accelerator: str = "cpu"
    devices: Any = 1
    num_nodes: int = 1
    strategy: str = "auto"
    precision: str = "32-true"
    channels_last: bool = True
    compile: bool = False
    gradient_clip: float | None = 1.0  # L2 norm
    accumulate_grad_batches: int = 1
    early_stopping_patience: int | None = None  # epochs without a better monitored metric
    ema_decay: float | None = None
    deterministic: bool = True
    log_every_n_steps: int = 10
    limit_train_batches: Any = 1.0
    threads: int | None = None  # CPU threads per job; None: torch's default
    options: dict[str, Any] = field(default_factory=dict)  # further arguments of pytorch_lightning.Trainer


@dataclass
class LoggerConfig:
    """Where curves go (group ``logger``)."""

    name: str = "wandb"
    kinds: list[str] = field(default_factory=lambda: ["wandb", "csv"])  # wandb | csv | tensorboard | mlflow
    project: str = "hemlearn"
    entity: str | None = None
    mode: str = "auto"  # wandb: auto (online when logged in, else offline) | online | offline | disabled
    tags: list[str] = field(default_factory=list)
    tracking_uri: str | None = None  # mlflow; None: a folder inside the run


@dataclass
class Config:
    """One run."""

    data: DataConfig = field(default_factory=DataConfig)
    channels: ChannelsConfig = field(default_factory=ChannelsConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    features: FeaturesConfig = field(default_factory=FeaturesConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 0
    output_dir: str = "runs"
    name: str = "default"
