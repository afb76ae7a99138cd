"""What the clouds' answers mean. Each function takes a body and raises ValueError unless it is exactly of the form that
the vendor documents: the page of a captive portal, or anything else, is no information."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

UTC8 = timezone(timedelta(hours=8))

UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(Z|[+-]\d\d:\d\d)", re.ASCII)  # 2015-01-05T18:02:00Z
LOCAL_TIME = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", re.ASCII)  # 2018-08-18 12:05:33
MAIL_TIME = re.compile(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", re.ASCII)  # Mon, 19 Sep 2016 18:29:47 GMT
EVENT_ID = re.compile(r"[0-9A-Za-z-]{1,64}")


@dataclass(frozen=True)
class Due:
    """What one answer says will happen."""

    key: str  # the same for the same event, however often it is told
    what: str  # for people
    at: datetime | None = None  # None: it does not say when
    at_once: bool = False
    stops: bool = True
    names: frozenset[str] | None = None  # the machines that are meant; None: this one


def _object(body: str) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _instant(text: Any) -> datetime:
    if not (isinstance(text, str) and UTC_TIME.fullmatch(text)):
        raise ValueError("not a time")
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def aws_action(body: str) -> Sequence[Due]:
    fields = _object(body)
    action, at = fields.get("action"), _instant(fields.get("time"))
    if action not in ("terminate", "stop", "hibernate"):
        raise ValueError("not an action")
    what = f"AWS takes this instance ({action})"
    return [Due(f"{action} {at.isoformat()}", what, at, at_once=action == "hibernate")]  # it begins with the notice


def aws_rebalance(body: str) -> Sequence[Due]:
    at = _instant(_object(body).get("noticeTime"))  # when it was told, which says nothing about the end
    return [Due(f"rebalance {at.isoformat()}", "AWS may take this instance soon (rebalance)", stops=False)]


def gcp(body: str) -> Sequence[Due]:
    if body.strip() not in ("TRUE", "FALSE"):
        raise ValueError("neither TRUE nor FALSE")
    return [Due("preempted", "Google Cloud preempts this instance")] if body.strip() == "TRUE" else []


def azure(body: str) -> Sequence[Due]:
    """Events of all machines of an availability or scale set, of every type; blank NotBefore: it has begun."""
    document = _object(body)
    events = document.get("Events")
    if not isinstance(document.get("DocumentIncarnation"), int) or not isinstance(events, list):
        raise ValueError("not a list of events")
    if not all(isinstance(event, dict) for event in events):
        raise ValueError("not an event")
    ours = [event for event in events if event.get("EventType") == "Preempt"]
    return [_azure_preempt(event) for event in ours if event.get("EventStatus") in ("Scheduled", "Started")]


def _azure_preempt(event: dict[str, Any]) -> Due:
    identity, names, when = (event.get(name) for name in ("EventId", "Resources", "NotBefore"))
    if not (isinstance(identity, str) and EVENT_ID.fullmatch(identity)):
        raise ValueError("not an event's id")
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError("not a list of names")
    if not (isinstance(when, str) and (when == "" or MAIL_TIME.fullmatch(when))):
        raise ValueError("not a time")
    at = parsedate_to_datetime(when) if when else None
    meant = frozenset(name.casefold() for name in names)
    return Due(identity, "Azure preempts this instance", at, at_once=at is None, names=meant)


def utc(what: str) -> Callable[[str], Sequence[Due]]:
    def read(body: str) -> Sequence[Due]:
        text = body.strip()
        return [Due(text, what, _instant(text))] if text else []

    return read


def tencent(body: str) -> Sequence[Due]:
    text = body.strip()
    if not LOCAL_TIME.fullmatch(text):
        raise ValueError("not a time")
    return [Due(text, "Tencent Cloud takes this instance", datetime.fromisoformat(text).replace(tzinfo=UTC8))]
