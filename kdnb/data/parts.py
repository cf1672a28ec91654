"""One cache filled by several jobs on a shared folder, without a word between them.

Job `part` of `parts` makes the shards whose number leaves that remainder, and lists them in a file of its own,
`index_part_003_of_008.json`. Whoever finishes last sees all of them, writes the index and removes the lists: the folder is then
byte for byte what one process makes. Any job may be killed, and run again at any time.
"""

import json
import re
from pathlib import Path

from kdnb.data.shardfile import shard_name
from kdnb.data.shards import INDEX_FILE, Fault
from kdnb.files import write_json

_NAME = re.compile(r"index_part_(\d+)_of_(\d+)\.json")


def part_file(folder: Path, part: int, parts: int) -> Path:
    """The list of job `part`."""
    return folder / f"index_part_{part:03d}_of_{parts:03d}.json"


def check_parts(folder: Path, part: int, parts: int):
    """Refuse a part that does not exist, and a folder that other jobs fill with another number of parts."""
    if parts < 1 or not 0 <= part < parts:
        raise ValueError(f"part is {part} of parts {parts}; parts count from 0 to parts - 1.")
    others = {int(found[2]) for path in _lists(folder) if (found := _NAME.fullmatch(path.name))} - {parts}
    if others and parts > 1:
        raise ValueError(f"parts is {parts}, but other jobs fill {folder} in {min(others)} parts; give the same number to all, "
                         "or remove the index_part_*.json of jobs that nobody runs any more.")  # fmt: skip


def read_part(folder: Path, part: int, parts: int) -> dict | None:
    """What job `part` has listed; None where it has not begun, or its list is broken."""
    try:
        return json.loads(part_file(folder, part, parts).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None


def write_part(folder: Path, part: int, parts: int, index: dict):
    """List the shards of job `part`: an index of its own shards."""
    write_json(part_file(folder, part, parts), index)


def all_entries(folder: Path, parts: int) -> dict[int, dict]:
    """Entries of the shards that any job has listed, by number."""
    lists = [read_part(folder, part, parts) for part in range(parts)]
    return {entry["number"]: entry for index in lists if index for entry in index["shards"]}


def remove_lists(folder: Path):
    """Remove all jobs' lists: the index holds what they say."""
    for path in _lists(folder):
        path.unlink(missing_ok=True)


def missing(folder: str | Path) -> list[Fault] | None:
    """The shards that jobs have still to make, where the index waits for them; None where no such jobs are at work."""
    lists = _lists(Path(folder))
    if (Path(folder) / INDEX_FILE).exists() or not lists:
        return None
    parts = int(_NAME.fullmatch(lists[0].name)[2])
    entries = all_entries(Path(folder), parts)
    index = next(found for part in range(parts) if (found := read_part(Path(folder), part, parts)))
    count = -(-index["num_images"] // index["shard_size"])
    wanted = (number for number in range(count) if number not in entries)
    return [Fault(shard_name(number), f"is missing: part {number % parts} of {parts} has not made it yet") for number in wanted]


def _lists(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("index_part_*.json") if _NAME.fullmatch(path.name))
