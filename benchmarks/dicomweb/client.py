"""Sends a folder by dicomweb-client over one connection, and prints the seconds from the first file to the last answer.

Arguments: the service's URL, the folder, instances of a request at most, bytes of a request at most. What is there is
told by the answers, which are read.
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from dicomweb_client import DICOMwebClient
from pydicom import Dataset, dcmread


def batches(folder: Path, files: int, size: int) -> Iterator[list[Path]]:
    """Yield a folder's files in batches."""
    batch: list[Path] = []
    room = size
    for path in sorted(folder.iterdir()):
        room -= path.stat().st_size
        if batch and (room < 0 or len(batch) == files):
            yield batch
            batch, room = [], size - path.stat().st_size
        batch.append(path)
    yield batch


def stored(answer: Dataset) -> int:
    """Return how many instances an answer says are stored."""
    return len(answer.get("ReferencedSOPSequence", ()))


def main() -> int:
    """Send; return the process's exit code."""
    url, folder, files, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    client = DICOMwebClient(url, timeout=60)
    begin = time.perf_counter()
    for batch in batches(folder, files, size):
        answer = client.store_instances([dcmread(path) for path in batch])
        if stored(answer) != len(batch):
            print(f"{stored(answer)} of {len(batch)} were stored", file=sys.stderr)
            return 1
    print(time.perf_counter() - begin)
    return 0


if __name__ == "__main__":
    sys.exit(main())
