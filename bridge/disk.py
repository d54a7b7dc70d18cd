"""Free space on the disks that a process writes to, or whose fullness it can see."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


def free_bytes(folder: Path) -> int | None:
    """The bytes that this user can still write on the disk of `folder`; None if that cannot be told.

    Of a folder that does not exist yet, the nearest existing parent counts.
    """
    for path in (folder, *folder.parents):
        try:
            disk = os.statvfs(path)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        # A file system without free inodes takes no new file. Some (btrfs) count none at all.
        return 0 if disk.f_files and not disk.f_favail else disk.f_bavail * disk.f_frsize
    return None


@dataclass(frozen=True)
class Disks:
    """Folders whose disks must keep at least `least` bytes free."""

    folders: tuple[Path, ...] = ()
    least: int = 0

    def shortage(self) -> str | None:
        """What is wrong if a disk has too little space, with its folder; None if all have enough."""
        for folder in self.folders:
            free = free_bytes(folder)
            if free is not None and free < self.least:
                return (
                    f"the disk of {folder} has {size(free)} free, less than {size(self.least)}: free space there, "
                    "or lower min_free_disk_bytes"
                )
        return None

    def free(self) -> str:
        """How much each disk has free, as a clause for an error; empty if no folder is known."""
        known = [(folder, free_bytes(folder)) for folder in self.folders]
        listed = [f"{size(free)} on the disk of {folder}" for folder, free in known if free is not None]
        return f"; free: {', '.join(listed)}" if listed else ""


def size(count: int) -> str:
    """A number of bytes for people: `3.2 GiB`."""
    for unit, name in ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"
