"""A run's copy in a bucket: uploaded behind the training's back, found again by the same command elsewhere.

    bucket = Bucket.open(url, run_name)               # checked by real requests
    lease = Lease(bucket, run, say=say)
    lease.acquire()                                   # one machine at a time
    bring_back(bucket, run, verify=verify, say=say)   # the newest of disk and store
    mirror = Mirror(bucket, run, lease, attempt=attempt, keep=keep, say=say)
    mirror.start()
    mirror.committed(step)                            # after each checkpoint
    mirror.finish(timeout_seconds)

See docs/store.md for the layout and for what is guaranteed.
"""

from pitstop.store.back import bring_back
from pitstop.store.bucket import Bucket
from pitstop.store.lease import Lease
from pitstop.store.mirror import Mirror
from pitstop.store.shelf import Shelf
from pitstop.store.trouble import StoreError, StoreUnreachable

__all__ = ["Bucket", "Lease", "Mirror", "Shelf", "StoreError", "StoreUnreachable", "bring_back"]
