"""Which cloud is this: by the firmware's tables alone, for asking at every cloud's address would be noise."""

from pathlib import Path

import pytest

from pitstop import notice
from pitstop.errors import UserError

MACHINES = {  # as the tables of such machines read
    "aws": {"sys_vendor": "Amazon EC2", "product_name": "g5.xlarge", "bios_vendor": "Amazon EC2"},
    "gcp": {"sys_vendor": "Google", "product_name": "Google Compute Engine", "bios_vendor": "Google"},
    "azure": {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "7783-7084-3265-9085-8269-3286-77"},
    "alibaba": {"sys_vendor": "Alibaba Cloud", "product_name": "Alibaba Cloud ECS"},
    "tencent": {"sys_vendor": "Tencent Cloud", "product_name": "CVM"},
    "volcengine": {"sys_vendor": "Volcengine"},  # guessed
}
OTHERS = {
    "no tables at all": {},
    "Hyper-V at home": {"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": "4321-0000-0000-0000-0000-0000-12"},
    "a Chromebook": {"sys_vendor": "Google", "product_name": "Eve"},
    "QEMU": {"sys_vendor": "QEMU", "product_name": "Standard PC (i440FX + PIIX, 1996)", "bios_version": "1.16.0"},
    "a seller of Amazon": {"sys_vendor": "Not Amazon EC2", "bios_version": "amazon"},
}


def tables(root: Path, values: dict[str, str]) -> Path:
    for name, value in values.items():
        (root / name).write_text(value + "\n")
    return root


@pytest.fixture(autouse=True)
def no_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PITSTOP_METADATA_URL", raising=False)


def test_every_cloud_can_be_named() -> None:
    assert list(notice.CLOUDS) == ["auto", "none", *MACHINES]


@pytest.mark.parametrize("cloud", MACHINES)
def test_a_machine_is_known_by_its_tables(cloud: str, tmp_path: Path) -> None:
    found = notice.find("auto", tables(tmp_path, MACHINES[cloud]))
    assert found is not None
    assert found == notice.find(cloud, Path("/nonexistent"))


def test_the_older_machines_of_aws_run_on_xen(tmp_path: Path) -> None:
    found = notice.find("auto", tables(tmp_path, {"sys_vendor": "Xen", "bios_version": "4.11.amazon"}))
    assert found == notice.find("aws")


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_alone(name: str, tmp_path: Path) -> None:
    assert notice.find("auto", tables(tmp_path, OTHERS[name])) is None


def test_tables_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    (tmp_path / "sys_vendor").mkdir()  # reading it fails, for root too
    (tmp_path / "bios_version").write_bytes(b"\xff\xfe")
    assert notice.find("auto", tmp_path) is None


def test_none_asks_nobody(tmp_path: Path) -> None:
    assert notice.find("none", tables(tmp_path, MACHINES["aws"])) is None


def test_an_unknown_cloud_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="--cloud huawei: expected one of auto, none, aws"):
        notice.find("huawei")


def test_the_address_can_be_put_in_place_of_the_cloud_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITSTOP_METADATA_URL", "http://127.0.0.1:4321/")
    found = notice.find("gcp")
    assert found is not None
    assert found.base == "http://127.0.0.1:4321"
    assert notice.find("none") is None


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:80", "https://a:1", "file:///etc/passwd", "http://", "http://a:x", "http://a:99999", "http://a/b",
     "http://a?b", "http://me@a", "http://a..b", f"http://{'a' * 64}", "http://[::1"],
)  # fmt: skip
def test_what_is_no_address_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PITSTOP_METADATA_URL", url)
    with pytest.raises(UserError, match="expected http://HOST:PORT"):
        notice.find("aws")
