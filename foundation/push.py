"""python -m foundation.push model=<hub folder or run directory> repo=owner/name: publishes a model on the hub."""

from foundation import hub
from pipelines.command import command


@command("push")
def main(cfg):
    """Uploads the folder and says the address that every model path takes: init=, policy=, idm=."""
    address = hub.push(cfg.model, cfg.repo, cfg.revision, cfg.private, cfg.message)
    print(f"{cfg.model} is now {address}")
    return {"push/address": address}


if __name__ == "__main__":
    main()
