"""The clouds that tell an instance beforehand that they will take it: what to ask, and what the answer means.

Sources: for Volcengine volcengine.com/docs/6396/155893 and docs.byteplus.com, "View spot instance interruption event",
for the others the vendors' pages on spot instances and their notices. No answer was ever seen on the clouds themselves;
not documented, so guessed: how Volcengine answers while nothing is due, and its name in the DMI tables.
"""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from pitstop.errors import UserError
from pitstop.notice import answers

OVERRIDE = "PITSTOP_METADATA_URL"  # scheme://host:port in place of the cloud's own: for tests
TOKEN_SECONDS = 21600  # the longest that AWS and Alibaba give
VM_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")
HOST = re.compile(r"([a-zA-Z0-9-]{1,63}\.)*[a-zA-Z0-9-]{1,63}")


@dataclass(frozen=True)
class Item:
    """One thing to ask for. `read` raises ValueError for whatever is not exactly what the vendor documents."""

    path: str
    read: Callable[[str], Sequence[answers.Due]]
    missing_is_idle: bool = True  # 404: nothing is due


@dataclass(frozen=True)
class Provider:
    """How a cloud tells."""

    name: str  # for people
    base: str
    items: tuple[Item, ...]
    every_seconds: float  # as the vendor advises
    notice_seconds: float  # between notice and end, as the vendor says; more is never believed
    dmi: tuple[tuple[str, str], ...]  # file in /sys/class/dmi/id, pattern of the whole of it: any one will do
    headers: tuple[tuple[str, str], ...] = ()
    token: str | None = None  # the name of its header, to which "-ttl-seconds" is added when asking for one
    name_path: str | None = None  # where this machine's own name is told
    may_be_stale: bool = True  # an announced time may stay there, in the past, when the machine was not taken after all
    patience_seconds: float = 20.0  # until "no notice will come" is said
    hint: str = ""  # what may help when nothing answers


def find(cloud: str, dmi: Path = Path("/sys/class/dmi/id")) -> Provider | None:
    """The provider for --cloud `cloud`; None: there is nothing to ask. auto: by what the machine's firmware says.

    Raises:
        UserError: no such cloud, or PITSTOP_METADATA_URL is no address.
    """
    if cloud not in CLOUDS:
        raise UserError(f"--cloud {cloud}: expected one of {', '.join(CLOUDS)}.")
    if cloud == "auto":
        found = [provider for provider in PROVIDERS.values() if _is_on(provider, dmi)]
        provider = found[0] if found else None
    else:
        provider = PROVIDERS.get(cloud)
    override = os.environ.get(OVERRIDE)
    return replace(provider, base=_checked(override)) if provider and override else provider


def _is_on(provider: Provider, dmi: Path) -> bool:
    for file, pattern in provider.dmi:
        try:
            if re.fullmatch(pattern, (dmi / file).read_text(errors="replace").strip()):
                return True
        except OSError:  # not there, or for root's eyes only
            continue
    return False


def _checked(url: str) -> str:
    try:
        parts = urlsplit(url)
        plain = parts.scheme == "http" and HOST.fullmatch(parts.hostname or "") and not (parts.query or parts.fragment)
        if plain and parts.path in ("", "/") and parts.username is None and (parts.port or 80) > 0:
            return f"http://{parts.hostname}:{parts.port or 80}"
    except ValueError:  # a port that is no number
        pass
    raise UserError(f"{OVERRIDE}={url}: expected http://HOST:PORT, with nothing after it.")


PROVIDERS = {
    "aws": Provider(
        name="AWS",
        base="http://169.254.169.254",
        items=(
            Item("/latest/meta-data/spot/instance-action", answers.aws_action),
            Item("/latest/meta-data/events/recommendations/rebalance", answers.aws_rebalance),
        ),
        every_seconds=5,
        notice_seconds=120,
        dmi=(("sys_vendor", "Amazon EC2"), ("bios_vendor", "Amazon EC2"), ("bios_version", r".*\.amazon")),
        token="X-aws-ec2-metadata-token",
        hint="in a container, IMDSv2 answers only if the instance's HttpPutResponseHopLimit is 2 or more",
    ),
    "gcp": Provider(
        name="Google Cloud",
        base="http://169.254.169.254",  # metadata.google.internal, without a name server that may not answer
        # Not with wait_for_change=true, for a request that hangs on purpose cannot be told from one that just hangs.
        items=(Item("/computeMetadata/v1/instance/preempted", answers.gcp, missing_is_idle=False),),
        every_seconds=1,
        notice_seconds=30,  # 120 where the VM was made with --preemption-notice-duration=120s: it cannot be told
        dmi=(("product_name", "Google Compute Engine"),),
        headers=(("Metadata-Flavor", "Google"),),
    ),
    "azure": Provider(
        name="Azure",
        base="http://169.254.169.254",
        items=(Item("/metadata/scheduledevents?api-version=2020-07-01", answers.azure, missing_is_idle=False),),
        every_seconds=1,
        notice_seconds=30,
        dmi=(("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77"),),  # other Hyper-V machines have another
        headers=(("Metadata", "true"),),
        name_path="/metadata/instance/compute/name?api-version=2021-02-01&format=text",
        may_be_stale=False,  # an event that is over leaves the list
        patience_seconds=180,  # the first question switches the service on, which takes up to two minutes
    ),
    "alibaba": Provider(
        name="Alibaba Cloud",
        base="http://100.100.100.200",
        items=(
            Item("/latest/meta-data/instance/spot/termination-time", answers.utc("Alibaba Cloud takes this instance")),
        ),
        every_seconds=5,
        notice_seconds=300,
        dmi=(("product_name", "Alibaba Cloud ECS"), ("sys_vendor", "Alibaba Cloud")),
        token="X-aliyun-ecs-metadata-token",
    ),
    "tencent": Provider(
        name="Tencent Cloud",
        base="http://metadata.tencentyun.com",
        items=(Item("/latest/meta-data/spot/termination-time", answers.tencent),),
        every_seconds=5,
        notice_seconds=120,
        dmi=(("sys_vendor", "Tencent Cloud"),),
    ),
    "volcengine": Provider(
        name="Volcengine",
        base="http://100.96.0.96",
        items=(Item("/latest/spot_instance_termination_time", answers.utc("Volcengine takes this instance")),),
        every_seconds=5,
        notice_seconds=300,
        dmi=(("sys_vendor", "(?i)(volcengine|byteplus).*"), ("product_name", "(?i)(volcengine|byteplus).*")),
    ),
}
CLOUDS = ("auto", "none", *PROVIDERS)
