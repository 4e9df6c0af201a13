"""Converts official VPT files to a hub folder: `python -m pipelines.convert model=x.model weights=x.weights out=x`."""

import logging

from pipelines.actions import spec_from
from pipelines.command import command
from pipelines.schema import DataError
from pipelines.vpt_release import convert

log = logging.getLogger(__name__)


@command("convert")
def main(cfg):
    for name in ("model", "weights", "out"):
        if not cfg[name]:
            raise DataError(f"{name} is not set; expected model=<file.model> weights=<file.weights> out=<folder>")
    report = convert(cfg.model, cfg.weights, cfg.out, spec_from(cfg.actions))
    log.info("%s", report)
    return {"out": str(cfg.out), "missing": len(report.missing), "unexpected": len(report.unexpected)}


if __name__ == "__main__":
    main()
