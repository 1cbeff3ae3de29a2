"""rtx_layers.py GRAPH: builds it with TensorRT-RTX and prints, as JSON, what the builder says of the engine's layers.

An engine cannot be loaded without a GPU, so its inspector cannot be asked there. But a verbose builder logs the same
account of the engine it has just made: a line a layer, in the inspector's one-line format. In a process of its own,
because one logger serves a whole process.
"""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import tensorrt_rtx as rtx

from rdedge_export.engine import _configure, _network_flags


class Verbose(rtx.ILogger):  # type: ignore[misc]
    def __init__(self) -> None:
        rtx.ILogger.__init__(self)
        self.accounts: list[str] = []

    def log(self, severity: Any, msg: str) -> None:
        if msg.startswith("Layers:"):
            self.accounts.append(msg)


def main(path: str) -> dict[str, Any]:
    logger = Verbose()
    builder = rtx.Builder(logger)
    network = builder.create_network(_network_flags(rtx, True))
    assert rtx.OnnxParser(network, logger).parse_from_file(path)
    config = builder.create_builder_config()
    _configure(rtx, config, None)
    assert builder.build_serialized_network(network, config) is not None
    (account,) = logger.accounts
    return {"Layers": [layer(line) for line in account.splitlines() if line.startswith("Name: ")]}


def layer(line: str) -> dict[str, Any]:
    """The line as the inspector's JSON has it."""
    found = re.match(r"Name: (.+?), LayerType: (\w+), Inputs: \[(.*)\], Constants: \[(.*)\], Outputs: \[(.*)\],", line)
    assert found is not None, line
    name, kind, *tensors = found.groups()
    inputs, constants, outputs = ([{"Format/Datatype": t} for t in re.findall(r"Datatype: (\w+)", x)] for x in tensors)
    return {"Name": name, "LayerType": kind, "Inputs": inputs, "Constants": constants, "Outputs": outputs}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])))
