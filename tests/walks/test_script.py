"""The script of the README in a folder that holds nothing but pictures and a teacher: its outputs lie beside it."""

import json
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent.parent / "README.md"
HERS = {  # what she writes instead: a teacher of her own, and smaller
    '"vit_base_patch14_dinov2.lvd142m", img_size=224': '"resnet10t", teacher_checkpoint="teacher.pt", num_classes=5',
    "image_size=224": "image_size=32",
    "epochs=10": "epochs=2",
}


def test_seven_lines(tmp_path, bring_photos, walk):
    bring_photos(tmp_path)
    (script,) = re.findall(r"```python\n(import kdnb\n.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    for theirs, hers in HERS.items():
        assert script.count(theirs) == 1
        script = script.replace(theirs, hers)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True)
    walk.count(failed=done.returncode != 0)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^r18 +student +2 +[01]\.\d{3} ", done.stdout, flags=re.MULTILINE)
    assert {path.name for path in (tmp_path / "outputs").iterdir()} == {"cache_photos", "cache_evaluation", "r18"}
    summary = json.loads((tmp_path / "outputs/r18/summary.json").read_text())
    assert summary["steps"] == 2 and summary["images_seen"] == 64
