"""A small recipe for tests: dies, signals itself or meets a full disk at a named instant, and logs what it computes.

It trains timm's `test_resnet`, with dropout, on the first digits at 8x8 pixels: a few steps in about a second. All that
a recipe does goes through pitstop as in `recipes/digits.py`. The environment says what shall happen:

    STEP_LOG     a file: a line of JSON for each step and rank, before the step is committed
    KILL_AT      step:K      before the commit of step K (counted from 1)
                 commit:K    right after it
                 eval:K      inside the model, in the evaluation after K steps
                 begin, prepared, loading, restored
                 finish:before, finish:after_final
                 saving:K     in the thread that writes the checkpoint of step K, before it does
                 call:NAME:K before the K-th call of os.NAME (NAME `any`: of all in CALLS together)
                 compiling:K  in torch.compile's backend, after K steps (see COMPILE)
    KILL_RANK    on which rank (0)
    KILL_SIGNAL  which signal (KILL)
    FULL_AT      A-B: the disk is full during the steps A to B, and each save is waited for, to meet its own disk
    NAN_AT       A-B: the loss of the steps A to B is NaN, and so are its gradients
    NAN_RANK     on which rank (on all)
    POISON_AT    K: a weight is NaN after the update of step K
    HOLD_AT      an instant as above: there FILE.held appears, and it waits until FILE.go does
    HOLD         FILE
    NETNS        the network namespace in which it runs, as if on another machine
    NEW_GROUP    1: the process leads a group of its own
    WORKERS      how many processes of a DataLoader bring the batches
    WORKER_FAULT kill:K or hang:K: what becomes of the worker that shall bring step K
    MEMORY       N or N@A-B: there is memory for N images at once (in the steps A to B, the first step is 1)
    MEMORY_IN    in which pass there is none for more: forward (of training and probe), backward, update, evaluation
    MEMORY_RANK  on which rank (on all)
    COMPILE      compile the classifier (all else would take seconds) by a backend that changes nothing: `alone`, or by
                 one of inductor's worker processes, as a kernel of a GPU is, which takes it so many seconds
    PICTURES     if set, evaluations keep what they were computed from: class accuracies, predictions/
    STEP_SECONDS sleep so long in each step
    SAVES_WAIT   if set, each save is waited for: a kill some steps later, on however slow a machine, finds it done
    LOCK_WAIT    seconds instead of the ten for which a second process waits
    LEASE_TTL    seconds that a lease in the store lives, instead of its own
"""

import ctypes
import errno
import json
import os
import signal
import sys
import time

from pydantic import Field

from pitstop.config import RecipeConfig
from pitstop.flags import parse

CALLS = ("fsync", "rename", "replace", "unlink", "write")
WRITE = os.write  # the one that is not counted


class Config(RecipeConfig):
    """Not a recipe that anyone needs."""

    epochs: float = 3
    batch_size: int = 20
    peak_lr: float = 0.1
    log_every: int = 7
    eval_every: float = 1
    model: str = "test_resnet"
    images: int = Field(170, ge=20)
    """digits to learn from"""
    shift: int = Field(1, ge=0)
    """pixels"""
    dropout: float = 0.1
    """before the classifier"""
    group_norm: bool = False
    """instead of batch normalisation: the loss of a sample is then its own, whoever computes it"""


def span(variable: str) -> range:
    """The steps A-B that an environment variable names, if it does."""
    first, _, last = os.environ.get(variable, "").partition("-")
    return range(int(first), int(last) + 1) if first else range(0)


class Instants:
    """What shall happen when; `at` is called at each named instant."""

    def __init__(self) -> None:
        mine = os.environ.get("KILL_RANK", "0") == os.environ.get("RANK", "0")
        self.wanted = os.environ.get("KILL_AT", "") if mine else ""
        self.step = 0
        self.calls: dict[str, int] = {}
        ill = os.environ.get("NAN_RANK", rank := os.environ.get("RANK", "0")) == rank
        self.full, self.nan = span("FULL_AT"), span("NAN_AT") if ill else range(0)
        self.poison = int(os.environ.get("POISON_AT", "0"))
        self.held = os.environ.get("HOLD_AT", "") if mine else ""
        if self.wanted.startswith("call:") or self.full:
            for name in CALLS:
                setattr(os, name, self.counted(name, getattr(os, name)))

    def at(self, name: str) -> None:
        if name == self.held:
            self.held = ""
            self.hold(os.environ["HOLD"])
        if name == self.wanted:
            os.kill(os.getpid(), signal.Signals[f"SIG{os.environ.get('KILL_SIGNAL', 'KILL')}"])

    @staticmethod
    def hold(file: str) -> None:
        open(f"{file}.held", "w").close()
        while not os.path.exists(f"{file}.go"):
            time.sleep(0.005)

    def counted(self, name, function):
        def call(*arguments, **keywords):
            for kind in (name, "any"):
                self.calls[kind] = self.calls.get(kind, 0) + 1
                self.at(f"call:{kind}:{self.calls[kind]}")
            if name in ("fsync", "write") and self.step in self.full and not (name == "write" and arguments[0] == 2):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return function(*arguments, **keywords)

        return call

    def after(self, function, name: str):
        """`function`, and then the instant `name`."""

        def call(*arguments, **keywords):
            result = function(*arguments, **keywords)
            self.at(name)
            return result

        return call

    def saving(self, write):
        def call(directory, step, *arguments, **keywords):
            self.at(f"saving:{step}")
            return write(directory, step, *arguments, **keywords)

        return call


class Device:
    """One whose memory ends: raises torch's error in the middle of the pass that MEMORY_IN names."""

    def __init__(self, step) -> None:
        self.step, self.images = step, 0
        number, _, steps = os.environ.get("MEMORY", "").partition("@")
        mine = os.environ.get("MEMORY_RANK", rank := os.environ.get("RANK", "0")) == rank
        self.most = float(number) if number and mine else 0.0
        first, _, last = steps.partition("-")
        self.steps = range(int(first), int(last) + 1) if steps else None
        self.place = os.environ.get("MEMORY_IN", "forward")

    def check(self, place: str, images: int) -> None:
        import torch

        now = self.steps is None or self.step() in self.steps
        if self.most and place == self.place and now and images > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has no more.")

    def watch(self, module) -> None:
        """A module in the middle of the model: what comes before it has been through."""

        def passing(module, inputs, output):
            self.images = len(output)
            self.check("forward" if module.training else "evaluation", self.images)
            if module.training:
                output.register_hook(lambda gradient: self.check("backward", len(gradient)))

        module.register_forward_hook(passing)


class Average:
    """An owner of state, as an average of the weights would be: a tensor and a number."""

    def __init__(self, parameter) -> None:
        self.parameter, self.mean, self.count = parameter, parameter.detach().clone(), 0

    def update(self) -> None:
        self.count += 1
        self.mean.lerp_(self.parameter.detach(), 1 / (self.count + 1))

    def state_dict(self):
        return {"mean": self.mean, "count": self.count}

    def load_state_dict(self, state) -> None:
        if state:
            self.mean.copy_(state["mean"])
            self.count = state["count"]


def replace_norms(module) -> None:
    """Group for batch normalisation, in place."""
    from torch import nn

    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, nn.GroupNorm(2, child.num_features))
        replace_norms(child)


def compile_with(model, instants, session, how: str) -> None:
    """With a backend that is the instant compiling:K, where a real one would be at work."""

    def backend(graph, inputs):
        future = None
        if how != "alone":
            from torch._inductor.async_compile import AsyncCompile

            pool = AsyncCompile.process_pool()
            pool.submit(os.getpid).result()  # its process is there
            future = pool.submit(time.sleep, float(how))
        instants.at(f"compiling:{session.step}")
        if future:
            future.result()
        return graph.forward

    model.compile(backend=backend)


def log_step(session, batch, augmentation) -> None:
    """[position, index, hash of the draws, hash of the pixels that the model gets] of each sample of this rank."""
    import hashlib

    def digest(tensor) -> str:
        return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:12]

    images_BCHW = batch.images_NCHW
    samples = zip(batch.positions_N.tolist(), batch.indices_N.tolist(), augmentation.drawn, images_BCHW, strict=True)
    row = {
        "step": batch.step,
        "rank": session.rank,
        "scale": session.precision.scaler.get_scale(),
        "samples": [[position, index, digest(drawn), digest(image)] for position, index, drawn, image in samples],
    }
    descriptor = os.open(os.environ["STEP_LOG"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    WRITE(descriptor, (json.dumps(row) + "\n").encode())
    os.close(descriptor)


def brought(batches, augmentation, start: int, stop: int):
    """The batches of the steps start .. stop - 1, by the workers of a DataLoader if there shall be any."""
    from torch.utils.data import DataLoader

    from pitstop.data.workers import own_group

    class Steps:
        def __len__(self) -> int:
            return stop

        def __getitem__(self, step: int):
            fault, _, at = os.environ.get("WORKER_FAULT", "").partition(":")
            if at == str(step + 1) and fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if at == str(step + 1):
                time.sleep(1000)
            return batches.at(step), augmentation.drawn

    workers = int(os.environ.get("WORKERS", "0"))
    if workers == 0:
        yield from batches.between(start, stop)
        return
    loader = DataLoader(
        Steps(),
        batch_size=None,
        sampler=range(start, stop),
        num_workers=workers,
        collate_fn=lambda item: item,
        worker_init_fn=own_group,
        multiprocessing_context="fork",
        timeout=3 if "WORKER_FAULT" in os.environ else 0,
    )
    for batch, augmentation.drawn in loader:
        yield batch


def main(config: Config) -> None:
    from dataclasses import replace
    from functools import partial

    import safetensors.torch
    from torch import nn

    import pitstop.checkpoint.writer
    import pitstop.session.attempt
    import pitstop.session.remote
    import pitstop.session.session
    from pitstop import augment, data, models, optim
    from pitstop.accumulate import accumulate
    from pitstop.evaluate import evaluate
    from pitstop.session import Session

    if name := os.environ.get("NETNS"):
        with open(f"/run/netns/{name}") as file:
            assert ctypes.CDLL(None).setns(file.fileno(), 0) == 0
    if os.environ.get("NEW_GROUP") == "1":
        os.setpgid(0, 0)
    instants = Instants()
    safetensors.torch.load = instants.after(safetensors.torch.load, "loading")
    pitstop.session.results.write_final = instants.after(pitstop.session.results.write_final, "finish:after_final")
    pitstop.checkpoint.writer.write = instants.saving(pitstop.checkpoint.writer.write)
    if ttl := os.environ.get("LEASE_TTL"):
        pitstop.session.remote.LEASE_SECONDS = float(ttl)
    pitstop.session.attempt.LOCK_WAIT_SECONDS = float(os.environ.get("LOCK_WAIT", "10"))

    class Augmentation(augment.Standard):
        """Remembers what it drew last."""

        def draws(self, positions_B):
            self.drawn = super().draws(positions_B)
            return self.drawn

    instants.at("begin")
    with Session.open(config, __file__) as session:
        train, test = data.load_digits(8)
        train = replace(train, images_NCHW=train.images_NCHW[: config.images], labels_N=train.labels_N[: config.images])
        test = replace(test, images_NCHW=test.images_NCHW[:61], labels_N=test.labels_N[:61])
        if change := os.environ.get("CHANGE_DATA"):
            train, test = (
                replace(images, fingerprint=images.fingerprint | {"sha256": change}) for images in (train, test)
            )
        train, test = session.own(train, test)
        mean, std = data.mean_and_std(train.images_NCHW)
        augmentation = Augmentation(mean, std, size=train.size, seed=config.seed, flip=True, shift=config.shift)
        batches = data.Batches(train, config.batch_size, seed=config.seed, augment=augmentation, **session.slice)
        if session.precision.name == "fp16":  # so that the scale grows until it overflows, again and again
            session.precision.scaler.set_growth_interval(2)

        look = {"classes": train.classes, "image_size": train.size, "stem": "small"}
        model = bare = models.create(config.model, channels=train.channels, seed=config.seed, **look)
        bare.drop_rate = config.dropout
        if config.group_norm:
            replace_norms(bare)
        if how := os.environ.get("COMPILE"):
            compile_with(bare.get_classifier(), instants, session, how)
        average = Average(bare.conv1[0].weight if isinstance(bare.conv1, nn.Sequential) else bare.conv1.weight)
        session.track(average=average)
        optimizer = optim.sgd(model, weight_decay=config.weight_decay)
        model, optimizer = session.prepare(model, optimizer)
        instants.at("prepared")
        bare.layer2.register_forward_hook(lambda *_: None if bare.training else instants.at(f"eval:{session.step}"))
        memory = Device(lambda: session.step + 1)
        memory.watch(bare.layer2)
        cross_entropy = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing, reduction="sum")

        def criterion(logits_BK, labels_B):
            loss = cross_entropy(logits_BK, labels_B)
            return loss * float("nan") if session.step + 1 in instants.nan else loss

        normalise = partial(augment.normalise, mean=mean, std=std)
        plain = partial(evaluate, model, test, normalise=normalise, **session.evaluation | {"batch_size": 17})

        def score():
            result = plain()
            result["average"] = average.mean.double().abs().sum().item()
            return result if os.environ.get("PICTURES") else dict(result)

        session.restore(batches)
        instants.at("restored")

        for batch in brought(batches, augmentation, session.step, session.total_steps):
            if session.due(config.eval_every):
                session.evaluated(score())
            optim.set_lr(
                optimizer, optim.learning_rate(config, session.step, session.total_steps, batches.steps_per_epoch)
            )
            figures = accumulate(model, batch, criterion, precision=session.precision, memory=session.memory)
            memory.check("update", memory.images)
            session.precision.update(model, optimizer, clip_grad_norm=config.clip_grad_norm)
            if session.step + 1 == instants.poison:
                next(bare.parameters()).data.view(-1)[0] = float("nan")
            average.update()
            log_step(session, batch, augmentation)
            if seconds := float(os.environ.get("STEP_SECONDS", "0")):
                time.sleep(seconds)
            if os.environ.get("RAISE_AT") == str(batch.step) and str(session.rank) == os.environ.get("RAISE_RANK", "0"):
                raise RuntimeError("a defect of the recipe's")
            instants.step = session.step + 1
            instants.at(f"step:{session.step + 1}")
            session.commit(figures)
            if instants.full or os.environ.get("SAVES_WAIT"):
                session._saver.poll(session._rows.clock, wait=True)
            instants.at(f"commit:{session.step}")

        result = score()
        instants.at("finish:before")
        session.finish(result, models.card(config.model, mean=mean, std=std, **look))
    if log := os.environ.get("CALL_LOG"):
        with open(log, "w") as file:
            json.dump(instants.calls, file)


if __name__ == "__main__":
    main(parse(Config))
    sys.exit(0)
