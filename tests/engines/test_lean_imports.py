"""Building an engine needs neither torch nor onnx: a board has room for neither."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnx", "onnxscript", "tensorrt", "rdedge_train"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
from rdedge.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_the_verb_loads_and_gets_as_far_as_tensorrt(engine_bundle: Path) -> None:
    command = [sys.executable, "-c", WITHOUT, "engine"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--if-needed" in done.stdout
    done = subprocess.run([*command, str(engine_bundle)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith("rdedge: error: tensorrt cannot be loaded (No module named")
    assert "pip install 'rdedge[tensorrt]'; on a Jetson it comes with JetPack" in done.stderr
