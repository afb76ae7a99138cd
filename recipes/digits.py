"""Handwritten digits: the first run, with nothing to download, no account and no GPU."""

from typing import Literal

from pydantic import Field

from pitstop.config import RecipeConfig
from pitstop.flags import parse


class Config(RecipeConfig):
    """scikit-learn's 1,797 real handwritten digits: 1,437 to learn from, the last 360 to test on."""

    epochs: float = 8
    batch_size: int = 64
    peak_lr: float = 0.2
    label_smoothing: float = 0.1
    log_every: int = 10
    eval_every: float = 2
    data: Literal["digits"] = "digits"
    """they come with scikit-learn; for your own images: recipes/cifar10.py --data FOLDER"""
    image_size: int = Field(32, ge=8, le=64)
    """pixels; the digits have 8x8 and are enlarged once, which lets timm's own stem be used"""
    shift: int = Field(2, ge=0)
    """pixels by which an image moves at most"""


def main(config: Config) -> None:
    from functools import partial

    from torch import nn

    from pitstop import augment, data, models, optim
    from pitstop.accumulate import accumulate
    from pitstop.evaluate import evaluate
    from pitstop.session import Session

    with Session.open(config, __file__) as session:
        train, test = session.own(*data.load_digits(config.image_size))
        mean, std = data.mean_and_std(train.images_NCHW)
        augmentation = augment.Standard(mean, std, size=train.size, seed=config.seed, flip=False, shift=config.shift)
        batches = data.Batches(train, config.batch_size, seed=config.seed, augment=augmentation, **session.slice)

        look = {"classes": train.classes, "image_size": train.size, "stem": "imagenet"}
        model = models.create(config.model, channels=train.channels, seed=config.seed, **look).to(session.device)
        optimizer = optim.sgd(model, weight_decay=config.weight_decay)
        model, optimizer = session.prepare(model, optimizer)
        criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing, reduction="sum")
        normalise = partial(augment.normalise, mean=mean, std=std)
        score = partial(evaluate, model, test, normalise=normalise, **session.evaluation)
        session.restore(batches)

        for batch in batches.between(session.step, session.total_steps):
            if session.due(config.eval_every):
                session.evaluated(score())
            optim.set_lr(
                optimizer, optim.learning_rate(config, session.step, session.total_steps, batches.steps_per_epoch)
            )
            figures = accumulate(model, batch, criterion, precision=session.precision, memory=session.memory)
            session.precision.update(model, optimizer, clip_grad_norm=config.clip_grad_norm)
            session.commit(figures)

        session.finish(score(), models.card(config.model, mean=mean, std=std, **look))


if __name__ == "__main__":
    main(parse(Config))
