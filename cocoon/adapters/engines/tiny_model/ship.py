"""Writes `manifest.json` beside the shipped GGUF: run it after `to_gguf.py`, from the repository's environment.

python cocoon/adapters/engines/tiny_model/ship.py cocoon-tiny-q8_0.gguf
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from pathlib import Path

from cocoon.adapters.gguf import read_head
from cocoon.adapters.model_manifest import manifest_of, model_id
from cocoon.adapters.models import SHIPPED


def main(source: Path) -> None:
    target = SHIPPED / "cocoon-tiny" / "cocoon-tiny-q8_0.gguf"
    if source.resolve() != target.resolve():
        shutil.copyfile(source, target)
    data = target.read_bytes()
    weights = hashlib.sha256(data).digest()
    record = {
        "name": "cocoon-tiny",
        "file": target.name,
        "sha256": weights.hex(),
        "size": len(data),
        "model_id": model_id(manifest_of(read_head(target), weights)).hex(),
        "licence": "Apache-2.0",
        "test_model": True,
        "note": "test model: for trying the software, not for answers",
        "origin": "trained by cocoon/adapters/engines/tiny_model/train.py on text that corpus.py makes",
    }
    target.with_name("manifest.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
