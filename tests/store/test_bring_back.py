"""What a fresh machine finds, and what it does with what is damaged there or newer here."""

import itertools
import json
import shutil
from collections.abc import Callable

import pytest
from s3 import S3, Proxy
from store.machines import PREFIX, Machine, contents, look, until, verify

from pitstop.errors import UserError
from pitstop.store import StoreUnreachable, back, bring_back

Make = Callable[[str], Machine]


def ran(machine: Machine, *steps: int, size: int = 1000, s3: S3, bucket: str) -> Machine:
    """A machine that committed at these steps, all uploaded, and then let go."""
    machine.begin()
    for step in steps:
        machine.commit(step, size)
        until(lambda step=step: look(s3, bucket)[:1] == [step])
    assert machine.mirror.finish(10)
    return machine


def key_of(s3: S3, bucket: str, ending: str) -> str:
    (key,) = [key for key in s3.keys(bucket) if key.endswith(ending)]
    return key


def flip(s3: S3, bucket: str, ending: str, position: int = -7) -> None:
    key = key_of(s3, bucket, ending)
    data = bytearray(s3.get(bucket, key) or b"")
    data[position] ^= 1
    s3.put(bucket, key, bytes(data))


def test_a_fresh_machine(machine: Make, s3: S3, bucket: str) -> None:
    one = ran(machine("a"), 5, 10, size=11 << 20, s3=s3, bucket=bucket)
    one.append("metrics.jsonl", {"step": 11})  # a row that no checkpoint covers
    two = machine("b").begin()
    assert two.brought == 10
    assert [path.name for path in two.checkpoints()] == ["step-00000010"]
    assert (two.checkpoints()[0] / "state.safetensors").read_bytes() == contents(10, 11 << 20)
    assert verify(two.checkpoints()[0]) == 10
    assert two.lines("metrics.jsonl") == [json.dumps({"step": step}) for step in range(1, 11)]
    assert (two.run / "config.json").read_bytes() == (one.run / "config.json").read_bytes()
    assert two.lines("events.jsonl")[:-1] == one.lines("events.jsonl")
    assert two.attempt == 2
    assert [path.name for path in two.run.iterdir() if path.name.startswith(".")] == []
    two.commit(15)
    assert two.mirror.finish(10)
    assert look(s3, bucket) == [15, 10, 5]
    assert machine("c").begin().brought == 15


def test_nothing_there(machine: Make) -> None:
    one = machine("a").begin()
    assert one.brought is None
    assert one.step == 0


def test_an_attempt_without_a_checkpoint_is_known_too(machine: Make, s3: S3, bucket: str) -> None:
    one = ran(machine("a"), s3=s3, bucket=bucket)
    two = machine("b").begin()
    assert two.brought is None
    assert two.attempt == 2
    assert (two.run / "config.json").read_bytes() == (one.run / "config.json").read_bytes()


def test_a_finished_run(machine: Make, s3: S3, bucket: str) -> None:
    one = machine("a").begin()
    one.commit(5)
    one.finished()
    assert one.mirror.finish(10)
    two = machine("b").begin()
    assert two.brought == 5
    for name in ("final/model.safetensors", "final/model.json"):
        assert (two.run / name).read_bytes() == (one.run / name).read_bytes()


def test_finished_is_not_believed_without_the_result(machine: Make, s3: S3, bucket: str, proxy: Proxy) -> None:
    """status.json arrived, `latest` with final/ did not: the next machine must finish the run itself."""
    one = machine("a").begin()
    one.commit(5)
    until(lambda: look(s3, bucket) == [5])
    proxy.fault = lambda seen: "503" if seen.method == "PUT" and seen.name.endswith("/latest") else None
    one.finished()
    assert not one.mirror.finish(1.5)
    proxy.fault = lambda seen: None
    records = json.loads(s3.get(bucket, f"{PREFIX}/latest"))["records"]
    assert json.loads(s3.get(bucket, f"{PREFIX}/{records}/status.json"))["state"] == "finished"
    two = machine("b")
    (two.run / "checkpoints").mkdir(parents=True)
    bucket_of_two = one.bucket
    assert bring_back(bucket_of_two, two.run, verify=verify, say=two.said.append) == 5
    assert not (two.run / "status.json").exists()
    assert not (two.run / "final").exists()


def test_a_disk_that_is_ahead_wins(machine: Make, s3: S3, bucket: str) -> None:
    one = ran(machine("a"), 5, s3=s3, bucket=bucket)
    one.commit(9, told=False)
    before = {path: path.read_bytes() for path in one.run.rglob("*") if path.is_file() and path.name != "lease.json"}
    assert bring_back(one.bucket, one.run, verify=verify, say=one.said.append) is None
    assert {path: path.read_bytes() for path in before} == before
    assert one.said == []


def test_a_disk_that_was_overtaken(machine: Make, s3: S3, bucket: str) -> None:
    """a stops at 5 and goes on to 9 unseen; b continues from 5 to 20; a comes back. No line of the bill is lost."""
    one = ran(machine("a"), 5, s3=s3, bucket=bucket)
    one.commit(9, told=False)
    ran(machine("b"), 20, s3=s3, bucket=bucket)
    lines_of_one, lines_of_two = one.lines("events.jsonl"), machine("b").lines("events.jsonl")
    again = machine("a").begin()
    assert again.brought == 20
    assert again.lines("metrics.jsonl") == [json.dumps({"step": step}) for step in range(1, 21)]
    merged = again.lines("events.jsonl")[:-1]
    assert sorted(merged) == sorted(set(lines_of_one) | set(lines_of_two))
    assert [line for line in merged if line in lines_of_one] == lines_of_one
    assert [line for line in merged if line in lines_of_two] == lines_of_two
    again.commit(25)
    assert again.mirror.finish(10)
    two = machine("b").begin()
    assert two.lines("events.jsonl")[:-1] == again.lines("events.jsonl"), "nothing doubles on its way around"


@pytest.mark.parametrize("ending", ["10/state.safetensors", "10/manifest.json"])
def test_a_flipped_bit_in_the_store(ending: str, machine: Make, s3: S3, bucket: str) -> None:
    ran(machine("a"), 5, 10, s3=s3, bucket=bucket)
    flip(s3, bucket, ending)
    two = machine("b").begin()
    assert two.brought == 5
    assert "CHECKPOINT step-00000010 IN" in two.said[0]
    assert "BAD AND NOT USED" in two.said[0]
    two.commit(8)
    assert two.mirror.finish(10)
    assert look(s3, bucket) == [8, 5]


def test_a_missing_object(machine: Make, s3: S3, bucket: str) -> None:
    ran(machine("a"), 5, 10, s3=s3, bucket=bucket)
    s3.request("DELETE", f"/{bucket}/{key_of(s3, bucket, '10/state.safetensors')}")
    assert machine("b").begin().brought == 5


def test_metrics_that_do_not_fit(machine: Make, s3: S3, bucket: str) -> None:
    """Two attempts: the rows of the second are damaged, those of the first are whole."""
    ran(machine("a"), 5, s3=s3, bucket=bucket)
    two = ran(machine("b"), 10, s3=s3, bucket=bucket)
    flip(s3, bucket, f"{two.lease.owner}/metrics.jsonl", 3)
    three = machine("c").begin()
    assert three.brought == 5
    assert len(three.lines("metrics.jsonl")) == 5
    assert "metrics.jsonl" in three.said[0]


def test_a_damaged_disk_takes_the_same_step_from_the_store(machine: Make, s3: S3, bucket: str) -> None:
    one = ran(machine("a"), 5, 10, s3=s3, bucket=bucket)
    (one.run / "checkpoints" / "step-00000010" / "state.safetensors").write_bytes(b"torn")
    again = machine("a").begin()
    assert again.brought == 10
    assert verify(one.run / "checkpoints" / "step-00000010") == 10
    assert (one.run / "checkpoints" / "bad-step-00000010-1" / "state.safetensors").read_bytes() == b"torn"


def test_the_result_is_flipped(machine: Make, s3: S3, bucket: str) -> None:
    one = machine("a").begin()
    one.commit(5)
    one.finished()
    assert one.mirror.finish(10)
    flip(s3, bucket, "final-1/model.safetensors")
    two = machine("b")
    (two.run / "checkpoints").mkdir(parents=True)
    assert bring_back(one.bucket, two.run, verify=verify, say=two.said.append) == 5
    assert not (two.run / "final").exists()
    assert not (two.run / "status.json").exists()
    assert "final/ IN" in two.said[0]


def test_another_run_of_the_same_name(machine: Make, s3: S3, bucket: str) -> None:
    ran(machine("a"), 5, s3=s3, bucket=bucket)
    two = machine("b")
    two.run.mkdir(parents=True)
    config = {"wandb_id": "other", "definition": {"seed": 1}, "begun": "yesterday"}
    (two.run / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"another run than .*begun with other flags.*--name"):
        two.begin()
    assert json.loads((two.run / "config.json").read_text()) == config


@pytest.mark.parametrize(
    "path",
    [
        "attempts/0001-0123456789abcdef/checkpoints/../../../../etc",
        "/etc/step-00000005",
        "attempts/0001-0123456789abcdef/checkpoints/step-00000005/..",
    ],
)
def test_names_from_the_store_are_not_trusted(path: str, machine: Make, s3: S3, bucket: str) -> None:
    ran(machine("a"), 5, s3=s3, bucket=bucket)
    latest = json.loads(s3.get(bucket, f"{PREFIX}/latest") or b"")
    latest["checkpoints"][0]["path"] = path
    s3.put(bucket, f"{PREFIX}/latest", json.dumps(latest).encode())
    with pytest.raises(UserError, match="latest cannot be used"):
        machine("b").begin()


def test_files_of_a_checkpoint_are_names(machine: Make, s3: S3, bucket: str) -> None:
    ran(machine("a"), 5, 10, s3=s3, bucket=bucket)
    folder = key_of(s3, bucket, "10/manifest.json").removesuffix("manifest.json")
    s3.put(bucket, folder + "sub/.bashrc", b"x")
    two = machine("b").begin()
    assert two.brought == 5
    assert not list(two.run.rglob(".bashrc"))


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"format": 99}', b"x" * (2 << 20)])
def test_damaged_latest(data: bytes, machine: Make, s3: S3, bucket: str) -> None:
    ran(machine("a"), 5, s3=s3, bucket=bucket)
    s3.put(bucket, f"{PREFIX}/latest", data)
    with pytest.raises(UserError, match="latest"):
        machine("b").begin()
    assert s3.get(bucket, f"{PREFIX}/latest") == data


def test_cut_while_it_downloads(machine: Make, s3: S3, bucket: str, proxy: Proxy) -> None:
    ran(machine("a"), 5, size=11 << 20, s3=s3, bucket=bucket)
    numbers = itertools.count()
    proxy.fault = lambda seen: "reset" if "attempts/" in seen.name and next(numbers) % 2 == 0 else None
    two = machine("b").begin()
    assert two.brought == 5
    assert verify(two.checkpoints()[0]) == 5
    assert next(numbers) > 10


def test_the_store_goes_away(machine: Make, s3: S3, bucket: str, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of it: nothing here is changed, and the same command may be given again."""
    one = ran(machine("a"), 5, 10, s3=s3, bucket=bucket)
    shutil.rmtree(one.run / "checkpoints" / "step-00000010")
    before = {path: path.read_bytes() for path in one.run.rglob("*") if path.is_file()}
    monkeypatch.setattr(back, "TRIES_SECONDS", 0.3)
    proxy.fault = lambda seen: "503" if "step-00000010" in seen.query else None
    with pytest.raises(StoreUnreachable, match="503") as refused:
        bring_back(one.bucket, one.run, verify=verify, say=one.said.append)
    assert refused.value.exit_code == 1
    assert {path: path.read_bytes() for path in one.run.rglob("*") if path.is_file()} == before
