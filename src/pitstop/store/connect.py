"""From `--store URL` and the environment to a client of obstore. Keys come from the environment, never from the URL."""

import importlib.util
import os
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pitstop.errors import UserError
from pitstop.store.trouble import reason

SCHEMES = ("s3", "gs", "az", "file")
DATA_TIMEOUT_SECONDS = (
    120.0  # of a request with one part of a file: 5 MiB in 2 minutes is the slowest uplink that works
)
CONNECT_TIMEOUT_SECONDS = 5.0
ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
# S3 endpoints that want the bucket in the host name, not in the path: Alibaba OSS, Tencent COS, Volcengine TOS.
BUCKET_IN_HOST = (".aliyuncs.com", ".myqcloud.com", ".volces.com", ".ivolces.com")
EXAMPLES = "s3://BUCKET/FOLDER, gs://BUCKET/FOLDER, az://CONTAINER/FOLDER or file:///ABSOLUTE/PATH"


def connect(url: str, run_name: str, timeout_seconds: float) -> tuple[Any, Any, str]:
    """Clients for small and for large objects below <url>/<run name>, and what will be tried, in words.

    Raises:
        UserError: the url is none of those that are known, or obstore is not installed.
    """
    parts = urlsplit(url)
    wrong = parts.scheme not in SCHEMES or parts.query or parts.fragment or "@" in parts.netloc
    if wrong or bool(parts.netloc) == (parts.scheme == "file") or ".." in parts.path.split("/"):
        raise UserError(f"--store {url}: expected {EXAMPLES}; keys go into the environment, not into the URL.")
    if run_name in ("", ".", "..") or "/" in run_name:
        raise UserError(f"the run's name {run_name!r} cannot be a folder of the store {url}")
    if importlib.util.find_spec("obstore") is None:
        raise UserError(f"--store {url} needs the package obstore: pip install 'pitstop[store]'")
    if parts.scheme == "file" and not parts.path.startswith("/"):
        raise UserError(f"--store {url}: expected {EXAMPLES}.")
    prefix = "/".join(filter(None, [*parts.path.split("/"), run_name]))
    try:
        control = _client(parts.scheme, parts.netloc, prefix, timeout_seconds, retries=0)
        data = _client(parts.scheme, parts.netloc, prefix, DATA_TIMEOUT_SECONDS, retries=2)
    except Exception as error:  # of many types, by the store: whatever it is, it is in the environment or in the URL
        raise UserError(
            f"--store {url} cannot be used: {reason(error)}. See docs/store.md for the environment."
        ) from error
    return control, data, _tried(parts.scheme, parts.netloc)


def _client(scheme: str, bucket: str, prefix: str, timeout_seconds: float, *, retries: int) -> Any:
    from obstore.store import AzureStore, GCSStore, LocalStore, S3Store

    if scheme == "file":
        return LocalStore(prefix=Path("/", prefix), mkdir=True)
    # Plain http only where the person wrote it into the environment: for MinIO and the like.
    plain = any(value.startswith("http://") for name, value in os.environ.items() if "ENDPOINT" in name)
    common: dict[str, Any] = {
        "client_options": {
            "allow_http": plain,
            "timeout": timedelta(seconds=timeout_seconds),
            "connect_timeout": timedelta(seconds=min(CONNECT_TIMEOUT_SECONDS, timeout_seconds)),
        },
        "retry_config": {
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=timeout_seconds),
            "backoff": {"init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2},
        },
    }
    if scheme == "gs":
        return GCSStore(bucket, prefix=prefix, **common)
    if scheme == "az":
        return AzureStore(bucket, prefix=prefix, **common)
    return S3Store(bucket, prefix=prefix, **_bucket_in_host(bucket), **common)


def _bucket_in_host(bucket: str) -> dict[str, Any]:
    """Settings for an S3 endpoint that wants https://BUCKET.HOST, if the environment names one."""
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "")
    parts = urlsplit(endpoint)
    asked = os.environ.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "").lower() in ("1", "true")
    if not endpoint or not (asked or (parts.hostname or "").endswith(BUCKET_IN_HOST)):
        return {}
    host = parts.netloc if parts.netloc.startswith(f"{bucket}.") else f"{bucket}.{parts.netloc}"
    return {"endpoint": f"{parts.scheme}://{host}", "virtual_hosted_style_request": True}


def _tried(scheme: str, bucket: str) -> str:
    """Where a request goes and with which keys, without the keys."""
    if scheme == "file":
        return "to write, read and delete a file there"
    if scheme == "gs":
        known = [name for name in os.environ if name.startswith("GOOGLE_")]
        return f"bucket {bucket}, {_named(known) or 'the service account of this machine (no GOOGLE_... is set)'}"
    if scheme == "az":
        known = [name for name in os.environ if name.startswith("AZURE_")]
        return f"container {bucket}, {_named(known) or 'no AZURE_... is set'}"
    endpoint = next((os.environ[name] for name in ENDPOINTS if os.environ.get(name)), "AWS")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    keys = "AWS_ACCESS_KEY_ID from the environment"
    if "AWS_ACCESS_KEY_ID" not in os.environ:
        keys = "the role of this machine (AWS_ACCESS_KEY_ID is not set; ~/.aws/credentials is not read)"
    return f"bucket {bucket} at {endpoint}, region {region}, {keys}"


def _named(variables: list[str]) -> str:
    return ", ".join(sorted(variables)) + " from the environment" if variables else ""
