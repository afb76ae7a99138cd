"""Your own pictures, in folders: a timm model with pretrained weights learns their classes."""

from typing import Literal

from pydantic import Field

from pitstop.config import RecipeConfig, operational
from pitstop.flags import parse
from pitstop.values import Workers


class Config(RecipeConfig):
    """Pictures of any size: train/<class>/*, val/<class>/* and test/<class>/*, as a folder, .zip or .tar.gz.

    val selects the best weights, test is read once, at the end. Without val a tenth of train is held out. The head
    learns alone at first, then all; the backbone at a lower rate. Not measured on a GPU.
    """

    epochs: float = 20
    batch_size: int = 64
    peak_lr: float = 0.02
    weight_decay: float = 1e-4
    label_smoothing: float = 0.1
    data: str = Field(min_length=1)
    """a folder, .zip or .tar.gz with train/<class>/*, val/<class>/*, test/<class>/* (or the class folders alone)"""
    image_size: int = Field(224, ge=16, le=1024)
    """pixels of a side, as the model sees it"""
    weights: str = "pretrained"
    """pretrained (timm's), none, or a file (.safetensors, .pth), or final/ or best/ of another run"""
    stem: Literal["auto", "small", "imagenet"] = "auto"
    """small: 3x3 and no max-pool; imagenet: timm's own; auto: as the weights want it, else small under 64 pixels"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """adamw wants a --peak_lr of about 0.001"""
    freeze_epochs: float = Field(1.0, ge=0)
    """epochs in which the head learns alone, if weights were loaded"""
    backbone_lr: float = Field(0.1, gt=0, le=1)
    """learning rate of the backbone, as a share of the head's, if weights were loaded"""
    augment: Literal["none", "light", "strong"] = "light"
    """beside random crops and mirroring; light: colour 0.2 and rotation 15 degrees; strong: TrivialAugment"""
    crop_scale: float = Field(0.35, gt=0, le=1)
    """smallest share of a picture's area that a random crop keeps"""
    mixup: float = Field(0.0, ge=0)
    """alpha of mixup; 0: none"""
    cutmix: float = Field(0.0, ge=0)
    """alpha of cutmix; 0: none"""
    class_weights: Literal["none", "balanced", "resample"] = "none"
    """balanced: rare classes weigh more in the loss; resample: they are shown more often"""
    ema: float = Field(0.0, ge=0, lt=1)
    """decay of an average of the weights, which is then judged and kept; 0: none"""
    metric: Literal["auto", "accuracy", "macro_f1", "macro_recall", "loss"] = "auto"
    """what best/ is chosen by; auto: macro_f1 where the classes are unbalanced, else accuracy"""
    patience: int = Field(0, ge=0)
    """evaluations without a better one after which the run ends; 0: never"""
    workers: Workers = operational("auto")
    """processes that decode pictures, for each GPU; 0: none"""
    cache: bool = operational(False)
    """keep decoded pictures on the disk: later epochs are several times as fast"""
    check_data: bool = operational(True)
    """look through all files first, and leave out what cannot be read"""


def batches_of(config: Config, session, train, augment):
    """The stream of random crops; rare classes more often, pictures mixed, as the flags say."""
    from pitstop import balance, data
    from pitstop.crops import RandomCrop
    from pitstop.mix import Mix

    mixed = {"mixup": config.mixup, "cutmix": config.cutmix}
    return data.PhotoBatches(
        train,
        config.batch_size,
        seed=config.seed,
        crop=RandomCrop(config.image_size, config.seed, min_scale=config.crop_scale, augment=config.augment),
        augment=augment,
        mix=Mix(len(train.classes), config.seed, **mixed) if any(mixed.values()) else None,
        weights_N=balance.sample_weights(train.labels_N) if config.class_weights == "resample" else None,
        **session.slice,
    )


def main(config: Config) -> None:
    from copy import deepcopy
    from functools import partial

    from pitstop import augment, balance, data, models, optim, weights
    from pitstop.accumulate import accumulate
    from pitstop.ema import Ema
    from pitstop.evaluate import evaluate
    from pitstop.selection import Best
    from pitstop.session import Session

    is_fresh = config.weights == "none"  # a backbone that knows nothing learns as its head does
    with Session.open(config, __file__) as session:
        reading = {"cache": config.cache, "check": config.check_data, "workers": config.workers}
        photos = data.load_photos(
            config.data, image_size=config.image_size, seed=config.seed, **reading, **session.sources
        )
        stem = weights.stem(config.stem, config.weights)
        look = {"classes": photos.train.classes, "image_size": config.image_size, "stem": stem}
        model = models.create(config.model, channels=3, seed=config.seed, **look)
        loaded = weights.bring(model, config.weights, name=config.model, may_write=not config.dry_run, say=session.say)
        train, val, test = session.own(photos.train, photos.val, photos.test, held_out=photos.held_out, weights=loaded)

        mean, std = weights.normalisation(config.weights, name=config.model)
        normalise = partial(augment.normalise, mean=mean, std=std)
        batches = batches_of(config, session, train, lambda images_BCHW, positions_B: normalise(images_BCHW))
        frozen_steps = 0 if is_fresh or not config.freeze_epochs else batches.total_steps(config.freeze_epochs)
        if frozen_steps >= batches.total_steps(config.epochs):
            session.say(f"Only the head will learn: --freeze_epochs {config.freeze_epochs:g} is the whole run.")
        make = {"sgd": optim.sgd, "adamw": optim.adamw}[config.optimizer]
        model.to(session.device)
        optimizer = make(model, weight_decay=config.weight_decay, backbone_lr=1.0 if is_fresh else config.backbone_lr)
        ema = Ema(model, decay=config.ema) if config.ema else None
        judged = ema.module if ema else model
        best = Best(balance.metric(config.metric, train.labels_N), config.patience)
        model, optimizer = session.prepare(model, optimizer)
        by_class = balance.class_weights(train.labels_N, len(train.classes)).to(session.device)
        criterion = balance.criterion(by_class if config.class_weights == "balanced" else None, config.label_smoothing)
        score = partial(evaluate, normalise=normalise, by_class=True, **session.evaluation)
        card = models.card(config.model, mean=mean, std=std, load_size=data.load_size(config.image_size), **look)
        session.keep(best, judged, card, ema=ema)
        session.restore(batches)

        for batch in batches.between(session.step, session.total_steps):
            if session.due(config.eval_every) and not session.evaluated(score(judged, val)):
                break
            optim.freeze(model, session.step < frozen_steps)
            optim.set_lr(
                optimizer, optim.learning_rate(config, session.step, session.total_steps, batches.steps_per_epoch)
            )
            figures = accumulate(model, batch, criterion, precision=session.precision, memory=session.memory)
            session.precision.update(model, optimizer, clip_grad_norm=config.clip_grad_norm)
            if ema:
                ema.update(session.step)
            session.commit(figures)
        else:
            session.evaluated(score(judged, val))

        chosen = deepcopy(judged)
        chosen.load_state_dict(best.weights or judged.state_dict())  # none, where --metric loss was never a number
        session.finish(score(chosen, test or val), card, judged, split="test" if test else "val")


if __name__ == "__main__":
    main(parse(Config))
