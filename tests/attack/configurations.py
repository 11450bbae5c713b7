"""Values that cannot be meant, and commands that are wrongly called: refused before any data are read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.attack.case import Case, Judge, Trained, accepted, refused, told

KIND = "configuration"
BAD = """
optimizer.lr=-1 optimizer.lr=0 optimizer.lr=nan optimizer.lr=inf optimizer.lr=fast optimizer.weight_decay=-0.1
optimizer.weight_decay=nan optimizer.momentum=2 optimizer.momentum=-1 optimizer.betas=[0.9] optimizer.betas=[1.0,1.0]
optimizer.name=adamm optimizer.name= optimizer.schedule.warmup_epochs=-1 optimizer.schedule.name=cosinus
optimizer.layer_decay=-1 optimizer.layer_decay=nan trainer.max_epochs=-1 trainer.max_epochs=1.5 trainer.max_epochs=many
trainer.gradient_clip_val=-1 trainer.gradient_clip_val=nan trainer.patience=-1 trainer.log_every_n_steps=0
trainer.precision=17 trainer.accelerator=abacus trainer.devices=0 trainer.devices=-2 trainer.threads=-1
trainer.accumulate_grad_batches=0 trainer.ema_decay=2 trainer.ema_decay=-1 trainer.ema_decay=nan
data.batch_size=0 data.batch_size=-1 data.batch_size=1.5 data.batch_size=many data.image_size=0 data.image_size=-64
data.image_size=1e9 data.image_size=[64,64] data.num_workers=-1 data.sampler=coin data.fit=stretch data.name=nothing
data.cache_dir= data.root=[] data=nothing data=null task=null backbone=null loss=null split=null optimizer=null
channels=null augmentation=null trainer=null freeze=null sequence=null data={} task={} backbone={}
backbone.name= backbone.name=resnet1888 backbone.name=null backbone.drop_rate=1.5 backbone.drop_rate=-0.1
backbone.drop_path_rate=nan backbone.pretrained=maybe backbone.options=[1] backbone.options={nothing:1}
loss.name=bse loss=focal,loss loss.gamma=-1 loss.label_smoothing=1.5 loss.pos_weight=-1
augmentation.mixup=inf augmentation.mixup=-1 augmentation.steps=[{_target_:torch.nn.Linear}]
augmentation.steps=[{_target_:os.getcwd}] augmentation.steps=[{nothing:1}] augmentation.steps=5
augmentation.steps=[{name:nothing}] task.labels=[] task.labels=[a,a] task.labels=null task.kind=ternary
task.monitor=beauty task.tta=[horizontal,horizontal] task.tta=[upwards] task.aggregate=median_of_means
task.level=hospital task.threshold=2 task.label_weights=[1,2,3] task.label_weights=[-1] task.calibration=magic
channels.windows=[[40]] channels.windows=[[40,0]] channels.windows=[[40,-80]] channels.windows=[[nan,80]]
channels.percentiles=[99,1] channels.percentiles=[-5,200] channels.neighbours=-1 channels.kind=pet
split.name=random split.val_fraction=-0.1 split.val_fraction=1.5 seed=-1 seed=1e99 seed=99999999999 seed=one seed=1.5
name=.. name=. name= name=a/b name=../x output_dir= features.k=0 features.k=-3 features=nothing
logger=nothing logger.name=5 callbacks=nothing freeze.name=everything freeze.stages=-1 freeze.epochs=-1
nothing=1 +nothing=1 data.nothing=1 +data.nothing=1 data.manifest=m.csv optimizer.lrr=1 optimiser.lr=1
backbone.pretrianed=true hydra.job.chdir=true hydra.mode=nothing ~data ~backbone.name seed=${nope}
seed=${oc.env:NOPE_NOPE}
name=${seed} output_dir=${nope.nope} data.root=${oc.env:NOPE_NOPE} seed=${now:%Y} = ==  =1 a b seed seed= seed=1=2
'name=a,b' 'seed=[1' "name='x" 'name={' 'data.root=/a,b'
""".split()  # fmt: skip
SEQUENCE = """
sequence.hidden=[0] sequence.hidden=[-5] sequence.hidden=0 sequence.hidden=-5 sequence.layers=0 sequence.layers=-1
sequence.dropout=2 sequence.dropout=-1 sequence.members=0 sequence.chunk=0 sequence.series_per_batch=0
sequence.smoothing=-1 sequence.series_weight=-1 sequence.name=lstmm sequence.probabilities=some sequence.position=maybe
""".split()  # fmt: skip
ODD_BUT_RIGHT = {
    "~data",
    "~backbone.name",
    "seed=${now:%Y}",
    "freeze.name=everything",
    "data={}",
    "task={}",
    "backbone={}",
    "name=${seed}",
    "logger.name=5",
    "seed=",
    "data=head_ct",
}
COMMANDS: dict[str, tuple[Sequence[str], Judge]] = {
    "no command": ([], refused("usage")),
    "an unknown command": (["trian"], refused("train")),
    "predict without arguments": (["predict"], refused("run")),
    "predict without input": (["predict", "run=none"], refused("input|none")),
    "predict of no run": (["predict", "run=none", "input=none", "out=out"], refused("none")),
    "predict, run a file": (["predict", "run=/etc/passwd", "input=none", "out=out"], refused("passwd")),
    "predict, a key twice": (["predict", "run=a", "run=b", "input=c", "out=d"], refused("run")),
    "predict, a key unknown": (["predict", "run=a", "input=c", "out=d", "modle=5"], refused("modle")),
    "predict, batch_size 0": (["predict", "run=a", "input=c", "out=d", "batch_size=0"], refused("batch_size")),
    "predict, device tpu": (["predict", "run=a", "input=c", "out=d", "device=tpu"], refused("tpu|device")),
    "compare nothing": (["compare"], refused("folder|DIR")),
    "compare an empty folder": (["compare", "."], refused("run")),
    "compare a file": (["compare", "/etc/passwd"], refused("passwd")),
    "runs of nothing": (["runs", "none"], refused("none")),
    "plan without a word": (["plan"], refused("plan|auroc|run")),
    "plan, AUROC 2": (["plan", "auroc=2"], refused("auroc")),
    "plan, AUROC NaN": (["plan", "auroc=nan"], refused("auroc")),
    "phantom of nothing": (["phantom", "layout=nothing", "out=out"], refused("nothing")),
    "phantom, 0 patients": (["phantom", "layout=head_ct", "out=out", "patients=0"], refused("patients")),
    "phantom, -5 patients": (["phantom", "layout=head_ct", "out=out", "patients=-5"], refused("patients")),
    "export of no run": (["export", "run=none", "out=m.onnx"], refused("none")),
    "explain of no run": (["explain", "run=none", "out=out"], refused("none")),
    "evaluate of no run": (["evaluate", "run=none", "data=head_ct"], refused("none")),
    "evaluate without data": (["evaluate", "run=none"], refused("data")),
    "submit of no run": (["submit", "run=none", "data.root=x", "out=s.csv"], refused("none")),
    "index without a root": (["index", "data=dicom"], refused("data.root")),
    "index of a root that is missing": (["index", "data=dicom", "data.root=none"], refused("none")),
    "prepare of a root that is missing": (["prepare", "data=head_ct", "data.root=none"], refused("none")),
    "train, config dir missing": (["train", "--config-dir", "none"], refused("none")),
    "train, an option unknown": (["train", "--verbose"], refused("verbose")),
    "train, -m without a sweep": (["train", "-m", "--cfg", "job"], told("")),
    "doctor": (["doctor"], accepted("torch")),
    "version": (["--version"], accepted("hemlearn")),
    "help": (["--help"], accepted("train")),
    "doctor, a key unknown": (["doctor", "x=1"], refused("x")),
}


def cases() -> list[Case]:
    """``train`` with one wrong value, ended before training; and calls."""
    found = []
    names = set()
    for word in BAD:
        shown = word.strip("'\"")
        if shown in ODD_BUT_RIGHT or word in names:
            continue
        names.add(word)
        found.append(Case(KIND, f"train {shown}", _train([shown]), refused(_key(shown))))
    for word in SEQUENCE:
        words = ["experiment=rsna_small", word]
        found.append(Case(KIND, f"train rsna_small {word}", _train(words), refused(word.split("=")[0].split(".")[-1])))
    for name, (words, judge) in COMMANDS.items():
        found.append(Case(KIND, name, lambda folder, trained, words=words: list(words), judge))  # type: ignore[misc]
    return found


def _train(words: Sequence[str]) -> object:
    def build(folder: Path, trained: Trained) -> list[str]:
        return ["train", "data.phantom_patients=40", "data.image_size=32", "trainer.max_epochs=1",
                "backbone.pretrained=false", "logger=none", *words]  # fmt: skip

    return build


def _key(word: str) -> str:
    """What the message has to hold: the key's last part, or the word."""
    import re

    key = word.split("=")[0].strip("+~").split(".")[-1]
    return re.escape(key) if key else "="
