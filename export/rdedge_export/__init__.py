"""From a trained run to a bundle: graph, numeric check, thresholds, contract."""
