"""MNIST and Fashion-MNIST: timm's resnet18 on 28 pixels and one channel, all images resident on the device."""

from typing import Literal

from pydantic import Field

from pitstop.config import RecipeConfig
from pitstop.flags import parse


class Config(RecipeConfig):
    """MNIST, Fashion-MNIST, or IDX files of your own.

    Fashion-MNIST, 50,000 of its training images to learn from, the other 10,000 to test on, 2 epochs: 89.3 % (n=1,
    torch 2.14, 19 minutes on one thread of a crowded CPU). Not measured: MNIST, the 3 epochs below, free cores, a GPU.
    """

    epochs: float = 3
    batch_size: int = 100
    peak_lr: float = 0.1
    label_smoothing: float = 0.1
    data: str = Field("mnist", min_length=1)
    """mnist, fashion_mnist, or a folder with IDX files, packed or not (Debian's /usr/share/datasets/fashion-mnist)"""
    weights: str = Field("none", min_length=1)
    """none, pretrained (timm's of ImageNet, made to fit one channel), or the path of a file or of another run"""
    stem: Literal["small", "imagenet"] = "imagenet"
    """imagenet: timm's own, quick on a CPU; small: 3x3 and no max-pool, more accurate, and 13 times the work"""
    image_size: int = Field(28, ge=8, le=128)
    """pixels; those of IDX files are not changed"""
    flip: bool = False
    """mirror every second image: for clothes, not for digits"""
    shift: int = Field(2, ge=0)
    """pixels by which an image moves at most"""


def main(config: Config) -> None:
    from functools import partial

    from torch import nn

    from pitstop import augment, data, models, optim, weights
    from pitstop.accumulate import accumulate
    from pitstop.evaluate import evaluate
    from pitstop.session import Session

    with Session.open(config, __file__) as session:
        train, test = data.load(config.data, image_size=config.image_size, **session.sources)
        mean, std = data.mean_and_std(train.images_NCHW)
        look = {"classes": train.classes, "image_size": train.size, "stem": config.stem}
        model = models.create(config.model, channels=train.channels, seed=config.seed, **look)
        origin = weights.bring(model, config.weights, name=config.model, may_write=not config.dry_run, say=session.say)
        train, test = session.own(train, test, weights=origin)

        augmentation = augment.Standard(
            mean, std, size=train.size, seed=config.seed, flip=config.flip, shift=config.shift
        )
        batches = data.Batches(train, config.batch_size, seed=config.seed, augment=augmentation, **session.slice)
        model = model.to(session.device)
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
