"""Converts models: `python -m pipelines.convert model=x.model weights=x.weights out=x`, dt=x, dpt=x, policy=x out=y."""

import logging

from omegaconf import OmegaConf

from pipelines.actions import spec_from
from pipelines.command import command
from pipelines.dpt_release import import_file
from pipelines.dt_folder import export_folder, import_folder
from pipelines.schema import DataError
from pipelines.vpt_release import convert

GIVEN = {  # our options -> entries of their config.json
    "state_mean": "state_mean", "state_std": "state_std", "returns_scale": "returns_scale", "context": "context_size",
    "low": "action_low", "high": "action_high",
}  # fmt: skip
SIZES = ("state_dim", "n_actions")
WITH = {  # what each source needs besides out=, and what it may have
    "model": (("weights",), ()), "dt": ((), tuple(GIVEN)), "dpt": (SIZES, ("context",)), "policy": ((), ()),
}  # fmt: skip
log = logging.getLogger(__name__)


@command("convert")
def main(cfg):
    sources = [name for name in WITH if cfg[name]]
    if len(sources) != 1:
        raise DataError("expected one of model=, dt=, dpt= and policy=, and out=; --help says what goes with each")
    (source,) = sources
    needed, optional = WITH[source]
    for name in (*needed, "out"):
        if cfg[name] in (None, ""):
            raise DataError(f"{name} is not set; --help shows what goes with {source}=")
    idle = [name for name in (*GIVEN, *SIZES) if cfg[name] is not None and name not in (*needed, *optional)]
    if idle:
        raise DataError(f"{', '.join(idle)} go with {'dpt' if idle[0] in SIZES else 'dt'}=; leave them out")
    if source == "policy":
        export_folder(cfg.policy, cfg.out)
    elif source == "dpt":
        import_file(cfg.dpt, cfg.out, cfg.state_dim, cfg.n_actions, cfg.context)
    elif source == "dt":
        options = OmegaConf.to_container(cfg)
        import_folder(cfg.dt, cfg.out, {theirs: options[ours] for ours, theirs in GIVEN.items()})
    else:
        report = convert(cfg.model, cfg.weights, cfg.out, spec_from(cfg.actions))
        log.info("%s", report)
        return {"out": str(cfg.out), "missing": len(report.missing), "unexpected": len(report.unexpected)}
    return {"out": str(cfg.out)}


if __name__ == "__main__":
    main()
